"""Time to first token against prompt length as inline SVG: points, a staircase through their medians, block boundaries.

Drawn here and not by plotly or matplotlib: plotly brings megabytes of script into the page, and matplotlib, one more
dependency of the harness, writes its colours into the picture, while this takes the page's light or dark ones from its
style sheet and costs about 170 bytes a point. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree import ElementTree as ET

from markupsafe import Markup

from harness.results.text import number, visible
from harness.results.ttft import LONGEST_PROMPT, Plot, Point, Series

WIDTH, HEIGHT = 640, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 50, 46

COLOURS = 6
"""Classes `s0`… of the style sheet; a seventh series takes the first colour with another shape."""

# Relative outlines around a point, so that colour is never all that tells two series apart.
_SHAPES = (
    "m-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0z",
    "m-3.3 -3.3h6.6v6.6h-6.6z",
    "m0 -4.4l4.2 7.4h-8.4z",
    "m0 -4.6l4.6 4.6l-4.6 4.6l-4.6 -4.6z",
    "m0 4.4l4.2 -7.4h-8.4z",
)

# Closer than this, boundaries would be a grey area, and their labels run into each other.
_LINE_PX = 8
_BLOCK_PX = 20
_TICK_PX = 46


@dataclass(frozen=True)
class _Scale:
    """Where tokens and ms lie in the drawing."""

    tokens: int
    ms: float
    ar_len: int

    def x(self, tokens: float) -> float:
        return _LEFT + tokens / self.tokens * (WIDTH - _LEFT - _RIGHT)

    def y(self, ms: float) -> float:
        return HEIGHT - _BOTTOM - ms / self.ms * (HEIGHT - _TOP - _BOTTOM)

    @property
    def block_px(self) -> float:
        return self.x(self.ar_len) - self.x(0)

    @property
    def shows_blocks(self) -> bool:
        return self.ar_len > 1 and self.block_px >= _LINE_PX


def draw(plot: Plot, ident: str, named: bool = True) -> Markup:
    """The plot as an `svg` element; well-formed XML, foreign text escaped.

    Args:
        plot: what to draw.
        ident: prefix of the ids of its title and description; unique in the page.
        named: whether each mark says what it is under the pointer; without, a series' marks are one path, which a
            page of thousands needs.
    """
    scale = _scale(plot)
    sim = "sim " if plot.is_sim else ""
    svg = ET.Element(
        "svg",
        {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-labelledby": f"{ident}-title {ident}-desc"},
    )
    _text(svg, "title", f"{sim}time to first token against prompt length: {plot.label}", id=f"{ident}-title")
    _text(svg, "desc", _description(plot), id=f"{ident}-desc")
    _axes(svg, scale, sim)
    for index, series in enumerate(plot.series):
        _series(svg, scale, series, index, named)
    return _markup(svg)


def swatch(index: int) -> Markup:
    """The line and the shape of a series, for a legend."""
    svg = ET.Element("svg", {"class": "swatch", "viewBox": "0 0 28 12", "aria-hidden": "true"})
    group = ET.SubElement(svg, "g", {"class": _style(index)})
    ET.SubElement(group, "path", {"class": "stairs", "d": "M1 6H27"})
    ET.SubElement(group, "path", {"class": "mark", "d": f"M14 6{_SHAPES[index % len(_SHAPES)]}"})
    return _markup(svg)


def ticks(most: float, about: int = 5) -> list[float]:
    """Round numbers from 0 to the first that is not below `most`: 0, 50, 100, 150."""
    if most < 1e-9:
        return [0.0, 1.0]
    raw = most / about
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= raw * (1 - 1e-9))
    return [index * step for index in range(math.ceil(most / step - 1e-9) + 1)]


def _scale(plot: Plot) -> _Scale:
    points = [point for series in plot.series for point in series.drawn]
    longest = max((point.tokens for point in points), default=1)
    ar_len = plot.ar_len if 0 < plot.ar_len <= LONGEST_PROMPT else 0
    whole = -(-longest // ar_len) * ar_len if ar_len else longest
    most = max((time for point in points for time in point.times), default=0.0)
    return _Scale(whole, ticks(most)[-1], ar_len)


def _axes(svg: ET.Element, scale: _Scale, sim: str) -> None:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    group = ET.SubElement(svg, "g", {"class": "axes"})
    for value in ticks(scale.ms):
        _line(group, "grid", _LEFT, scale.y(value), right, scale.y(value))
        _label(group, _LEFT - 8, scale.y(value) + 4, f"{value:g}", "end")
    if scale.shows_blocks:
        blocks = scale.tokens // scale.ar_len
        for block in range(1, blocks + 1):
            x = scale.x(block * scale.ar_len)
            _line(group, "boundary", x, _TOP, x, bottom)
            if scale.block_px >= _BLOCK_PX:
                _label(group, x - scale.block_px / 2, _TOP - 11, str(block), "middle", "block")
        if scale.block_px >= _BLOCK_PX:
            _label(group, _LEFT - 8, _TOP - 11, "block", "end", "block")
    _line(group, "axis", _LEFT, bottom, right, bottom)
    for tokens in _lengths(scale):
        _line(group, "axis", scale.x(tokens), bottom, scale.x(tokens), bottom + 4)
        _label(group, scale.x(tokens), bottom + 18, str(tokens), "middle")
    _label(group, 4, 15, f"{sim}TTFT, ms", "start", "name")
    _label(group, right, HEIGHT - 8, "prompt length, tokens", "end", "name")


def _lengths(scale: _Scale) -> Sequence[int]:
    """Ticks at block boundaries, as many as have room: every one, every other, every fourth…"""
    step = scale.ar_len if 0 < scale.ar_len <= scale.tokens else 1
    while scale.x(step) - scale.x(0) < _TICK_PX and step < scale.tokens:
        step *= 2
    return range(0, scale.tokens + 1, step)


def _series(svg: ET.Element, scale: _Scale, series: Series, index: int, named: bool) -> None:
    group = ET.SubElement(svg, "g", {"class": _style(index)})
    stairs, gaps = _stairs(scale, series.drawn)
    if gaps:
        ET.SubElement(group, "path", {"class": "gap", "d": gaps})
    if stairs:
        ET.SubElement(group, "path", {"class": "stairs", "d": stairs})
    shape = _SHAPES[index % len(_SHAPES)]
    if not named:
        marks = (f"M{scale.x(p.tokens):.1f} {scale.y(time):.1f}{shape}" for p in series.drawn for time in p.times)
        ET.SubElement(group, "path", {"class": "mark point", "d": "".join(marks)})
        return
    for point in series.drawn:
        for time in point.times:
            where = f"M{scale.x(point.tokens):.1f} {scale.y(time):.1f}{shape}"
            mark = ET.SubElement(group, "path", {"class": "mark point", "d": where})
            _text(mark, "title", f"{series.name}: {_tokens(point)}, {number(time)} ms")


def _stairs(scale: _Scale, points: Sequence[Point]) -> tuple[str, str]:
    """The line through the medians, and the pieces of it over blocks that were not measured.

    From a length in one block to one in the next the line is level up to the boundary, rises there, and is level
    again; within a block it is straight.
    """
    stairs, gaps = [], []
    for before, after in pairwise(points):
        x0, y0 = scale.x(before.tokens), scale.y(before.median)
        x1, y1 = scale.x(after.tokens), scale.y(after.median)
        boundary = before.blocks * scale.ar_len
        if not scale.shows_blocks or before.blocks == after.blocks:
            stairs.append(f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}")
        elif after.blocks == before.blocks + 1 and before.tokens <= boundary <= after.tokens:
            stairs.append(f"M{x0:.1f} {y0:.1f}H{scale.x(boundary):.1f}V{y1:.1f}H{x1:.1f}")
        else:
            gaps.append(f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}")
    return "".join(stairs), "".join(gaps)


def _description(plot: Plot) -> str:
    parts = [f"{plot.graph} graph, {plot.ar_len} tokens a block."]
    for series in plot.series:
        if not series.drawn:
            parts.append(f"{series.name}: no time.")
            continue
        first, last = series.drawn[0], series.drawn[-1]
        parts.append(
            f"{series.name}: {number(first.median)} ms at {_tokens(first)}, "
            f"{number(last.median)} ms at {_tokens(last)}."
        )
    return " ".join(parts)


def _tokens(point: Point) -> str:
    return (
        f"{point.tokens} token{'' if point.tokens == 1 else 's'}, "
        f"{point.blocks} block{'' if point.blocks == 1 else 's'}"
    )


def _style(index: int) -> str:
    return f"series s{index % COLOURS}"


def _line(parent: ET.Element, kind: str, x0: float, y0: float, x1: float, y1: float) -> None:
    places = {"x1": x0, "y1": y0, "x2": x1, "y2": y1}
    ET.SubElement(parent, "line", {"class": kind} | {name: f"{value:.1f}" for name, value in places.items()})


def _label(parent: ET.Element, x: float, y: float, text: str, anchor: str, kind: str = "") -> None:
    attributes = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}
    _text(parent, "text", text, **attributes | ({"class": kind} if kind else {}))


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = visible(text)


def _markup(svg: ET.Element) -> Markup:
    return Markup(ET.tostring(svg, encoding="unicode"))  # noqa: S704 - ElementTree has escaped all text
