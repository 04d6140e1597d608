"""What a report shows, in the order it shows it: the matrix, the numbers, the bars. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from harness.models import UPSTREAM
from harness.results.records import PlanEntry, SampleRecord, Status
from harness.results.summary import NOT_RUN, CellSummary, RunSummary

MARKS = {
    Status.PASSED.value: "✓",
    Status.FAILED.value: "✗",
    Status.ERROR.value: "!",
    Status.SKIPPED.value: "–",
    NOT_RUN: "…",
}
"""A sign for each status, so that colour is never all that tells them apart."""


@dataclass(frozen=True)
class Column:
    """One column of the matrix: a SoC, or one phone of several with it.

    Attributes:
        soc: name of the chipset.
        arch: its HTP architecture, as 75.
        pinned: the phone its cells are pinned to; None when any will do.
        phones: names of the phones its cells ran on or are pinned to.
    """

    soc: str
    arch: int
    pinned: str | None
    phones: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One row of the matrix.

    Attributes:
        label: `model · mode`, with the recipe unless it is upstream's.
        cells: a cell a column; None where none was planned.
    """

    label: str
    cells: tuple[CellSummary | None, ...]


@dataclass(frozen=True)
class Matrix:
    """Model and mode by SoC and phone."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Answer:
    """A gate's answer on a run, for the head of a page or a summary.

    Attributes:
        passed: whether the change may go in.
        against: what the run was held against.
        blocking: cell (empty of the run as a whole), what happened, what to do; first things first.
    """

    passed: bool
    against: str
    blocking: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Bar:
    """One bar of a chart: a cell, its number, and the number's share of the chart's greatest, in percent."""

    cell: CellSummary
    value: float
    percent: float


@dataclass(frozen=True)
class Chart:
    """Bars of one number, all from zero.

    Attributes:
        title: what it is, with its unit.
        better: `more` or `less` is better.
        bars: a cell each, in the order planned; only cells that have the number.
    """

    title: str
    better: str
    bars: tuple[Bar, ...]


def matrix(summary: RunSummary) -> Matrix:
    """The cells as a matrix; columns by HTP generation, then SoC, then phone; rows in the order planned."""
    keys = sorted({_column_key(cell.plan) for cell in summary.cells})
    at = {(label(cell.plan), _column_key(cell.plan)): cell for cell in summary.cells}
    labels = dict.fromkeys(label(cell.plan) for cell in summary.cells)
    columns = []
    for key in keys:
        arch, soc, pinned = key
        phones = [phone for cell in summary.cells if _column_key(cell.plan) == key for phone in cell.phones]
        columns.append(Column(soc, arch, pinned or None, tuple(dict.fromkeys(phones))))
    rows = [Row(label, tuple(at.get((label, key)) for key in keys)) for label in labels]
    return Matrix(tuple(columns), tuple(rows))


def label(plan: PlanEntry) -> str:
    """A row's label: `model · mode`, with the recipe unless it is upstream's."""
    name = f"{plan.model} · {plan.mode}"
    return name if plan.recipe == UPSTREAM else f"{name} · {plan.recipe}"


def same_texts(cell: CellSummary) -> tuple[tuple[SampleRecord, ...], ...]:
    """The samples of a cell, those of one prompt, text and settings together: at temperature 0 most are the same."""
    found: dict[tuple[str, str, str], list[SampleRecord]] = {}
    for sample in cell.samples:
        found.setdefault((sample.prompt, sample.text, repr(sample.settings)), []).append(sample)
    return tuple(tuple(group) for group in found.values())


def raw_text(sample: SampleRecord) -> str:
    """Where in the run's folder a sample's text is as the runner wrote it."""
    return f"cells/{sample.cell}/{sample.attempt}-{sample.session}/outputs.txt"


def charts(summary: RunSummary) -> tuple[Chart, ...]:
    """Decode, prefill and time to first token; a chart without a bar is left out."""
    wanted: tuple[tuple[str, str, Callable[[CellSummary], float | None]], ...] = (
        ("decode, tok/s", "more", lambda cell: cell.decode_tok_s),
        ("prefill, tok/s", "more", lambda cell: cell.prefill_tok_s),
        ("time to first token, ms", "less", lambda cell: cell.ttft_ms),
    )
    found = [Chart(title, better, _bars(summary, value)) for title, better, value in wanted]
    return tuple(chart for chart in found if chart.bars)


def _bars(summary: RunSummary, value: Callable[[CellSummary], float | None]) -> tuple[Bar, ...]:
    found = [(cell, number) for cell in summary.cells if (number := value(cell)) is not None and _can_be_drawn(number)]
    most = max((number for _, number in found), default=0.0)
    return tuple(Bar(cell, number, number / most * 100 if most else 0.0) for cell, number in found)


def _can_be_drawn(number: float) -> bool:
    return math.isfinite(number) and number >= 0


def _column_key(plan: PlanEntry) -> tuple[int, str, str]:
    return plan.arch, plan.soc, plan.phone or ""
