"""How far a phone's rows are from QDQ's, row by row, in units of what random rounding does there. Pure; numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.build.witness import COMPARED, WitnessText
from harness.evaluate.rules import RULES, CellRules
from harness.results.records import Graph
from harness.runtime.score import TopRows

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Deviations:
    """n rows of one graph against QDQ's; all arrays are [n].

    Attributes:
        graph: which graph gave them.
        where: what they are of, as "held-out text" or "after the handover at 32".
        top: RMS of phone − QDQ over QDQ's likeliest log-probabilities, nats.
        scale: what random rounding does to them, nats.
        along: Σ of the phone's log-probabilities × QDQ's centred ones: with `power` it gives the gain.
        power: Σ of QDQ's centred log-probabilities squared.
    """

    graph: Graph
    where: str
    top: Floats
    scale: Floats
    along: Floats
    power: Floats

    def __len__(self) -> int:
        return len(self.top)

    @property
    def units(self) -> Floats:
        """Each row's deviation in units of the spread."""
        return self.top / self.scale


def compare_rows(
    graph: Graph,
    where: str,
    text: WitnessText,
    start: int,
    rows: TopRows,
    typical: float,
    rules: CellRules = RULES,
) -> Deviations:
    """A phone's rows against a witness's from row `start` on.

    Args:
        graph, where: see `Deviations`.
        text: the witness of the same tokens.
        start: row of the text that the phone's first row is.
        rows: the phone's.
        typical: the model's typical spread, nats.
        rules: for the spread's floor.
    """
    here = slice(start, start + len(rows))
    return compare_logprobs(
        graph,
        where,
        text.ids[here, :COMPARED],
        text.logprobs[here, :COMPARED],
        row_scale(text.spread[here], typical, rules),
        rows,
    )


def row_scale(spread: Floats, typical: float, rules: CellRules = RULES) -> Floats:
    """Each row's own spread, and never below `floor` times the typical one."""
    return np.maximum(spread, rules.floor * typical)


def compare_logprobs(
    graph: Graph,
    where: str,
    ids: npt.NDArray[np.int64],
    logprobs: Floats,
    scale: Floats,
    rows: TopRows,
) -> Deviations:
    """The same, of QDQ's likeliest tokens `ids` and their `logprobs`, [n,k] both."""
    phone = logprobs_of(rows, ids, logprobs)
    off = phone - logprobs
    x = logprobs - logprobs.mean(axis=1, keepdims=True)
    return Deviations(
        graph,
        where,
        np.sqrt(np.square(off).mean(axis=1)),
        scale,
        (x * phone).sum(axis=1),
        np.square(x).sum(axis=1),
    )


def logprobs_of(rows: TopRows, ids: npt.NDArray[np.int64], expected: Floats) -> Floats:
    """The phone's log-probability of each of `ids` [n,k].

    One that is not among the phone's likeliest is at most its least one: that is taken, or what is expected where that
    is less.
    """
    if rows.ids.shape != rows.logprobs.shape or ids.shape != expected.shape:
        raise ValueError(f"{rows.ids.shape} ids of {rows.logprobs.shape}; {ids.shape} wanted of {expected.shape}")
    same = ids[:, :, None] == rows.ids[:, None, :]  # [n,k,phone's k]
    place = same.argmax(axis=2)
    known = np.take_along_axis(rows.logprobs, place, axis=1)
    least = np.minimum(rows.logprobs.min(axis=1, keepdims=True, initial=0.0), expected)
    return np.asarray(np.where(same.any(axis=2), known, least))


@dataclass(frozen=True)
class Figure:
    """A mean over rows.

    Attributes:
        value: it.
        error: its standard error; infinite of fewer than two rows.
        rows: how many.
    """

    value: float
    error: float
    rows: int


def noise(parts: Sequence[Deviations], rules: CellRules = RULES) -> Figure:
    """Mean over all rows of their deviations in units of the spread, each counted for `rules.cap` at most.

    A mean, and capped: a right product has a few rows that are far off, where one 8-bit value fell to the other side,
    and they would be all that an RMS shows. `worst_row` has its own bound.
    """
    units = _joined([part.units for part in parts])
    return _mean(np.where(np.isfinite(units), np.minimum(units, rules.cap), units))


def gain(parts: Sequence[Deviations]) -> Figure:
    """Factor between the phone's logits and QDQ's, least squares over all rows' likeliest tokens, less 1.

    Rows are weighted by the inverse square of their spread. A scale that is wrong by a percent shows in no single row.
    """
    square = np.square(_joined([part.scale for part in parts]))
    along, power = (_joined([getattr(part, name) for part in parts]) / square for name in ("along", "power"))
    if len(square) < 2 or not power.sum():
        return Figure(math.inf, math.inf, len(square))
    slope = float(along.sum() / power.sum())
    left = along - slope * power
    error = math.sqrt(float(np.square(left).sum()) * len(left) / (len(left) - 1)) / float(power.sum())
    return Figure(slope - 1, error, len(square))


def worst_row(parts: Sequence[Deviations]) -> tuple[float, str]:
    """The row that is furthest off, in units of its spread, and where it is; what is no number is infinitely far."""
    worst, where = 0.0, "no row"
    for part in parts:
        units = np.where(np.isnan(part.units), np.inf, part.units)
        if len(part) and float(units.max()) > worst:
            row = int(units.argmax())
            worst, where = float(units[row]), f"row {row} of {len(part)}, {part.where}, {part.graph} graph"
    return worst, where


def _mean(values: Floats) -> Figure:
    count = len(values)
    if not count:
        return Figure(math.inf, math.inf, 0)
    error = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    return Figure(float(values.mean()), error, count)


def _joined(parts: Sequence[Floats]) -> Floats:
    return np.concatenate(parts) if parts else np.empty(0)
