"""Small plots of one cell as inline SVG: speed over the run's samples, perplexity by phase, a metric over past runs.

Light on purpose, since a report has hundreds: the marks of a line are one path, and the numbers stand in a table or a
text beside it. Colours are the page's. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from markupsafe import Markup

from harness.results.accuracy import where
from harness.results.alike import alike_of
from harness.results.records import SampleRecord
from harness.results.summary import CellSummary
from harness.results.text import clock, number, perplexity, visible
from harness.results.ttft_plot import ticks

WIDTH, HEIGHT = 360, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 24, 22
_DOT = "h0"
"""A line of no length, which round caps make a dot."""
LIMIT = 1e12
"""A value beyond it is broken, and would flatten all others."""


@dataclass(frozen=True)
class Past:
    """One earlier run's value of a metric.

    Attributes:
        run: its id.
        time: when, ISO UTC.
        value: the median over its sessions.
        is_change: whether a change point was found here.
    """

    run: str
    time: str
    value: float
    is_change: bool = False


@dataclass(frozen=True)
class Line:
    """What is drawn: values in order, from zero or around themselves.

    Attributes:
        title: what it is, with its unit.
        description: the same in words, for who cannot see it.
        values: in order.
        breaks: indices before which a line is drawn: a new session, a change point.
        first, last: words under the ends of the axis.
    """

    title: str
    description: str
    values: tuple[float, ...]
    breaks: tuple[int, ...] = ()
    first: str = ""
    last: str = ""


def speed_line(cell: CellSummary) -> Line | None:
    """Decode speed over the samples in the order measured; None with fewer than two."""
    found = [sample for sample in cell.samples if _good(sample.decode_tok_s)]
    values = tuple(float(sample.decode_tok_s or 0.0) for sample in found)
    if len(values) < 2:
        return None
    sessions = [(sample.serial, sample.session) for sample in found]
    breaks = tuple(i for i in range(1, len(sessions)) if sessions[i] != sessions[i - 1])
    said = f"{len(values)} samples in {len(breaks) + 1} session(s), from {number(min(values))} to {number(max(values))}"
    return Line("decode, tok/s, over time", f"{said} tok/s", values, breaks, "first sample", "last")


def heat_line(cell: CellSummary) -> Line | None:
    """The phone's temperature after each sample, where it was recorded; None with fewer than two."""
    values = tuple(value for sample in cell.samples if (value := celsius(sample)) is not None)
    if len(values) < 2:
        return None
    said = f"from {number(min(values))} to {number(max(values))} degrees Celsius after {len(values)} samples"
    return Line("temperature, °C", said, values, (), "first sample", "last")


def celsius(sample: SampleRecord) -> float | None:
    """The hottest of battery, skin and HTP when the sample ended, as the runner's record keeps it."""
    vitals = sample.raw.get("vitals")
    after = vitals.get("after") if isinstance(vitals, dict) else None
    value = after.get("celsius") if isinstance(after, dict) else None
    return float(value) if isinstance(value, int | float) and _good(float(value)) else None


def past_line(title: str, past: Sequence[Past]) -> Line | None:
    """A metric over past runs, oldest first; None with fewer than two."""
    good = [one for one in past if _good(one.value)]
    if len(good) < 2:
        return None
    changes = tuple(index for index, one in enumerate(good) if one.is_change and index)
    said = f"{len(good)} runs, from {number(good[0].value)} to {number(good[-1].value)}"
    said += "".join(f"; a change point at {clock(good[i].time)}, run {good[i].run}" for i in changes)
    values = tuple(one.value for one in good)
    return Line(f"{title}, over runs", said, values, changes, good[0].time[:10], good[-1].time[:10])


def draw_line(line: Line, ident: str) -> Markup:
    """The plot as an `svg` element, from zero up; well-formed XML, foreign text escaped."""
    svg = new_svg(ident, line.title, line.description)
    top = ticks(max(line.values), 3)[-1]
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM

    def x(index: float) -> float:
        return _LEFT + 8 + index / (len(line.values) - 1) * (right - _LEFT - 16)

    def y(value: float) -> float:
        return bottom - value / top * (bottom - _TOP)

    axes = ET.SubElement(svg, "g", {"class": "axes"})
    for value in ticks(max(line.values), 3):
        put_path(axes, "grid", f"M{_LEFT} {y(value):.1f}H{right}")
        put_label(axes, _LEFT - 6, y(value) + 4, f"{value:g}", "end")
    if line.breaks:
        put_path(axes, "boundary", "".join(f"M{x(index - 0.5):.1f} {_TOP}V{bottom}" for index in line.breaks))
    put_label(axes, _LEFT + 2, HEIGHT - 6, line.first, "start")
    put_label(axes, right, HEIGHT - 6, line.last, "end")
    put_label(axes, 2, 14, line.title, "start", "name")
    group = ET.SubElement(svg, "g", {"class": "series s0"})
    places = [f"{x(index):.1f} {y(value):.1f}" for index, value in enumerate(line.values)]
    put_path(group, "stairs", "M" + "L".join(places))
    put_path(group, "dots", "".join(f"M{place}{_DOT}" for place in places))
    return to_markup(svg)


def draw_perplexities(cell: CellSummary, ident: str) -> Markup | None:
    """Perplexity of a token by phase (FP, QDQ, the phone's graphs) as dots on one scale, each with its number.

    All over the first tokens that all scored: what was not over the same tokens is no point of one scale. Not bars:
    what is looked for is a percent, and bars start at zero. None with fewer than two finite ones.
    """
    both = alike_of(cell)
    shown = [(where(record), both.token(record).value) for record in cell.perplexities]
    found = [(name, value) for name, value in shown if _good(value)]
    if len(found) < 2 or both.tokens is None:
        return None
    title = f"token perplexity by phase, {both.tokens} tokens"
    values = [value for _, value in found]
    middle = (max(values) + min(values)) / 2
    half = max((max(values) - min(values)) / 2, 0.02 * middle)
    said = ", ".join(f"{name} {perplexity(value)}" for name, value in found)
    row, left = 24, 96
    height = _TOP + row * len(found) + 4
    svg = new_svg(ident, title, said, height)
    axes = ET.SubElement(svg, "g", {"class": "axes"})
    put_label(axes, 2, 14, title, "start", "name")
    group = ET.SubElement(svg, "g", {"class": "series s2"})
    for index, (name, value) in enumerate(found):
        y = _TOP + row * (index + 0.5)
        x = left + 16 + (value - middle + half) / (2 * half) * (WIDTH - left - 86)
        put_label(axes, left - 8, y + 4, name, "end")
        put_path(axes, "grid", f"M{left} {y:.1f}H{WIDTH - 56}")
        put_path(group, "dots", f"M{x:.1f} {y:.1f}{_DOT}")
        put_label(axes, WIDTH - 2, y + 4, perplexity(value), "end", "name")
    return to_markup(svg)


def _good(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and 0 <= value < LIMIT


def new_svg(ident: str, title: str, description: str, height: int = HEIGHT) -> ET.Element:
    """An `svg` of a small plot's width, with its title and what it shows in words; `ident` is unique in the page."""
    attributes = {"viewBox": f"0 0 {WIDTH} {height}", "role": "img", "aria-labelledby": f"{ident}-t {ident}-d"}
    svg = ET.Element("svg", attributes)
    ET.SubElement(svg, "title", {"id": f"{ident}-t"}).text = visible(title)
    ET.SubElement(svg, "desc", {"id": f"{ident}-d"}).text = visible(description)
    return svg


def put_path(parent: ET.Element, kind: str, d: str) -> None:
    """A path of a class of the style sheet."""
    ET.SubElement(parent, "path", {"class": kind, "d": d})


def put_label(parent: ET.Element, x: float, y: float, text: str, anchor: str, kind: str = "") -> None:
    """A text; foreign characters are made visible."""
    attributes = {"x": f"{x:.0f}", "y": f"{y:.0f}", "text-anchor": anchor} | ({"class": kind} if kind else {})
    ET.SubElement(parent, "text", attributes).text = visible(text)


def to_markup(svg: ET.Element) -> Markup:
    """The element as text, all foreign text escaped."""
    return Markup(ET.tostring(svg, encoding="unicode"))  # noqa: S704 - ElementTree has escaped all text
