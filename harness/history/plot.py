"""The history as a page: one chart a metric, a line a cell, in one file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from harness.files import write_atomically
from harness.history.trend import Trend
from harness.results.text import visible
from harness.verdicts.metrics import UNITS

ROW_PX = 320


def figure(trends: Sequence[Trend]) -> go.Figure:
    """A chart for each metric, one below the other, with time along; change points are dotted lines."""
    metrics = list(dict.fromkeys(trend.metric for trend in trends))
    made = make_subplots(
        rows=max(1, len(metrics)),
        cols=1,
        subplot_titles=[visible(metric) for metric in metrics],
        vertical_spacing=min(0.12, 0.5 / max(1, len(metrics))),
    )
    shown: set[str] = set()
    cells = list(dict.fromkeys((trend.cell, trend.target) for trend in trends))
    for trend in trends:
        row = metrics.index(trend.metric) + 1
        name = visible(trend.cell) + (" (sim)" if trend.target == "sim" else "")
        made.add_trace(
            go.Scatter(
                x=[value.time for value in trend.values],
                y=[value.value for value in trend.values],
                mode="lines+markers",
                name=name,
                legendgroup=name,
                showlegend=name not in shown,
                line={"color": _COLOURS[cells.index((trend.cell, trend.target)) % len(_COLOURS)]},
                text=[f"{value.run}, {value.sessions} session(s)" for value in trend.values],
                hovertemplate="%{x}<br>%{y}<br>%{text}",
            ),
            row=row,
            col=1,
        )
        shown.add(name)
        made.update_yaxes(title_text=UNITS.get(trend.metric.partition("@")[0], ""), row=row, col=1)
        for time in trend.changes:
            made.add_vline(x=time, line_dash="dot", line_color="#6b7280", row=row, col=1)
    made.update_layout(height=ROW_PX * max(1, len(metrics)), template="plotly_white", title="htpfarm: history")
    return made


def write_plot(trends: Sequence[Trend], path: Path) -> None:
    """Writes the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, figure(trends).to_html(include_plotlyjs=True, full_html=True))


# Okabe and Ito's colours, told apart by the colour-blind; yellow is left out on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
