"""The pairs of one metric as inline SVG: each pair's change in the order taken, the mean's interval behind them.

A disc is a pair whose base was measured first, a ring one whose candidate was: where rings and discs lie apart, the
order matters and not the change. Colours are the page's. Pure.
"""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

from markupsafe import Markup

from harness.results.against import Measured, percent
from harness.results.cell_plots import HEIGHT, WIDTH, new_svg, put_label, put_path, to_markup
from harness.results.ttft_plot import ticks

_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 30, 22
_MARK = 3.5
MARGIN = 0.03
"""A change below it does not matter: `harness.verdicts.RULES.margin`, which a test holds this to."""


def draw_pairs(measured: Measured, ident: str, sim: str = "") -> Markup | None:
    """The plot as an `svg` element; None with fewer than two pairs.

    Args:
        measured: the metric.
        ident: unique in the page.
        sim: `sim ` before the title of a simulator's speed.
    """
    pairs = [pair for pair in measured.pairs if math.isfinite(pair.change)]
    if len(pairs) < 2:
        return None
    one = measured.record
    edges = [edge for edge in (one.lower, one.upper) if edge is not None and math.isfinite(edge)]
    most = max(MARGIN, *(abs(pair.change) for pair in pairs), *(abs(edge) for edge in edges)) * 100
    top = ticks(most, 2)[-1]
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    middle = (_TOP + bottom) / 2

    def x(index: int) -> float:
        return _LEFT + 12 + index / (len(pairs) - 1) * (right - _LEFT - 24)

    def y(change: float) -> float:
        return middle - change * 100 / top * (middle - _TOP)

    title = f"{sim}{measured.name}, change of each pair"
    svg = new_svg(ident, title, _said(measured))
    if len(edges) == 2:
        height = max(1.0, y(edges[0]) - y(edges[1]))
        places = {"x": _LEFT, "y": y(edges[1]), "width": right - _LEFT, "height": height}
        ET.SubElement(svg, "rect", {"class": "band"} | {name: f"{value:.1f}" for name, value in places.items()})
    axes = ET.SubElement(svg, "g", {"class": "axes"})
    for value in (-top, top):
        put_path(axes, "grid", f"M{_LEFT} {y(value / 100):.1f}H{right}")
        put_label(axes, _LEFT - 6, y(value / 100) + 4, f"{value:+g}%", "end")
    put_path(axes, "axis", f"M{_LEFT} {y(0):.1f}H{right}")
    put_label(axes, _LEFT - 6, y(0) + 4, "0", "end")
    margin = -MARGIN if measured.higher_is_better else MARGIN
    put_path(axes, "boundary", f"M{_LEFT} {y(margin):.1f}H{right}")
    put_label(axes, _LEFT + 2, HEIGHT - 6, "first pair", "start")
    put_label(axes, right, HEIGHT - 6, "last", "end")
    put_label(axes, 2, 14, title, "start", "name")
    put_label(axes, right, 14, f"{'down' if measured.higher_is_better else 'up'} is worse", "end")
    group = ET.SubElement(svg, "g", {"class": "series s0"})
    for index, pair in enumerate(pairs):
        kind = "ring" if pair.first == "candidate" else "disc"
        places = {"cx": x(index), "cy": y(pair.change), "r": _MARK}
        ET.SubElement(group, "circle", {"class": kind} | {name: f"{value:.1f}" for name, value in places.items()})
    return to_markup(svg)


def _said(measured: Measured) -> str:
    each = ", ".join(percent(pair.change) for pair in measured.pairs)
    mean = f"; mean {measured.change}" if measured.record.change is not None else ""
    return f"{measured.record.judgement}: {len(measured.pairs)} pairs in the order taken: {each}{mean}"
