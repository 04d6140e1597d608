"""Time to first token against prompt length: what is drawn and tabled, a model and mode at a time. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from harness.results.page import label
from harness.results.records import Graph, TtftRecord
from harness.results.summary import CellSummary, RunSummary
from harness.target import Target

LONGEST_PROMPT = 10**9
"""Tokens. A record of a longer one is broken, as is one of a longer time: 30 years."""
_LONGEST_MS = 1e12


@dataclass(frozen=True)
class Point:
    """One prompt length on one phone.

    Attributes:
        tokens: length of the prompt.
        blocks: executions of the graph that it took.
        times: the repeats, in ms; without what is no time (NaN, infinite, negative).
    """

    tokens: int
    blocks: int
    times: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the repeats, ms; NaN without any."""
        return statistics.median(self.times) if self.times else math.nan


@dataclass(frozen=True)
class Series:
    """One cell on its phone.

    Attributes:
        cell: the cell.
        name: what tells it from the others of its plot: `SM8650 · s24`.
        points: rising in length.
        left_out: records that hold no time, or a length that is none.
    """

    cell: CellSummary
    name: str
    points: tuple[Point, ...]
    left_out: int = 0

    @property
    def drawn(self) -> tuple[Point, ...]:
        """The points with a time."""
        return tuple(point for point in self.points if point.times)

    @property
    def ms_per_block(self) -> float | None:
        """How much one more block costs, from the first measured block to the last; None within one block.

        A block's level is the median over its lengths, each the median of its repeats.
        """
        blocks: dict[int, list[float]] = {}
        for point in self.drawn:
            blocks.setdefault(point.blocks, []).append(point.median)
        first, last = min(blocks, default=0), max(blocks, default=0)
        if first == last:
            return None
        return (statistics.median(blocks[last]) - statistics.median(blocks[first])) / (last - first)


@dataclass(frozen=True)
class Plot:
    """One model and mode, through one graph with one AR length.

    Attributes:
        label: as the matrix's row.
        graph: which graph took the prompts.
        ar_len: tokens that it takes at once.
        is_sim: whether any of the times are the simulator's.
        series: one a cell, in the order planned; each has a point.
    """

    label: str
    graph: Graph
    ar_len: int
    is_sim: bool
    series: tuple[Series, ...]

    @property
    def rows(self) -> tuple[tuple[int, int, tuple[Point | None, ...]], ...]:
        """Length, blocks, and each series' point there; rising in length."""
        lengths = sorted({(point.tokens, point.blocks) for series in self.series for point in series.points})
        at = [{(point.tokens, point.blocks): point for point in series.points} for series in self.series]
        return tuple((*length, tuple(points.get(length) for points in at)) for length in lengths)

    @property
    def left_out(self) -> int:
        """Records that no series could use."""
        return sum(series.left_out for series in self.series)


def plots(summary: RunSummary) -> tuple[Plot, ...]:
    """All plots of a run, in the order planned: one a model, mode, graph and AR length."""
    found: dict[tuple[str, Graph, int], dict[tuple[str, str], tuple[CellSummary, list[TtftRecord]]]] = {}
    for cell in summary.cells:
        for record in cell.ttfts:
            lines = found.setdefault((label(cell.plan), record.graph, record.ar_len), {})
            lines.setdefault((cell.id, record.phone), (cell, []))[1].append(record)
    return tuple(
        Plot(
            name,
            graph,
            ar_len,
            any(record.target is Target.SIM for _, records in lines.values() for record in records),
            tuple(_series(cell, records) for cell, records in lines.values()),
        )
        for (name, graph, ar_len), lines in found.items()
    )


def _series(cell: CellSummary, records: list[TtftRecord]) -> Series:
    lengths: dict[tuple[int, int], list[float]] = {}
    for record in records:
        if 0 < record.prompt_tokens <= LONGEST_PROMPT:
            lengths.setdefault((record.prompt_tokens, record.blocks), []).append(record.ttft_ms)
    points = tuple(Point(*length, tuple(_times(times))) for length, times in sorted(lengths.items()))
    used = sum(len(point.times) for point in points)
    return Series(cell, f"{cell.plan.soc} · {records[0].phone}", points, len(records) - used)


def _times(values: Iterable[float]) -> Iterable[float]:
    return (value for value in values if math.isfinite(value) and 0 <= value < _LONGEST_MS)
