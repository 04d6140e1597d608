"""What a history knows of a run's cells, for the plots of its report."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from harness.results.cell_plots import Past
from harness.results.report import Pasts
from harness.results.summary import RunSummary

if TYPE_CHECKING:
    from harness.history.store import History

TITLES = {"decode_tok_s": "decode, tok/s", "ttft_ms": "TTFT, ms"}
"""Metrics that are drawn over runs, and what they are called."""
LAST = 60
"""Runs of one cell that are drawn at most."""


def history_url(reports: Path, given: str | None = None) -> str | None:
    """The history to read: the one given, `$HTPFARM_HISTORY`, or the file among the runs; None where there is none."""
    if given or os.environ.get("HTPFARM_HISTORY"):
        return given or os.environ["HTPFARM_HISTORY"]
    file = reports / "history.sqlite"
    return f"sqlite:///{file.absolute()}" if file.is_file() else None


def past_of(history: History, summary: RunSummary) -> Pasts:
    """Cell → title → values over runs of the same target, oldest first, with change points where they can be found."""
    from harness.history.changepoints import UnavailableError, with_changes
    from harness.history.query import Choice, session_values
    from harness.history.trend import trends

    cells = tuple(cell.id for cell in summary.cells)
    choice = Choice(cells, None, tuple(TITLES), None, summary.last_time or None, summary.run.target.value)
    found = trends(session_values(history, choice))
    with contextlib.suppress(UnavailableError):  # advisory: the plots do without
        found = with_changes(found)
    made: dict[str, dict[str, list[Past]]] = {}
    for trend in found:
        values = [Past(one.run, one.time, one.value, one.time in trend.changes) for one in trend.values[-LAST:]]
        made.setdefault(trend.cell, {})[TITLES[trend.metric]] = values
    return made
