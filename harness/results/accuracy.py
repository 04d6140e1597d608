"""Perplexities and lm-eval tasks of a cell, each against the ground before it: FP, then QDQ, then the phone. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar
from urllib.parse import quote

from harness.results.alike import alike, over
from harness.results.records import Graph, Ground, PerplexityRecord, TaskRecord
from harness.results.summary import GRAPHS, GROUNDS, CellSummary, RunSummary
from harness.results.text import NONE, change, number, perplexity, visible

_R = TypeVar("_R", PerplexityRecord, TaskRecord)
# Metrics of which a ratio tells more than a difference; of a share, as acc, it is the other way round.
_RATIOS = ("perplexity", "bits_per_byte")


@dataclass(frozen=True)
class Column:
    """One ground of a table, of a phone one graph.

    Attributes:
        head: `FP`, `QDQ`, `phone kv`.
        ground: of its records.
        graph: of its records; None for all, which then name it where they are several.
        against: the ground that its changes are against; None for the first.
    """

    head: str
    ground: Ground
    graph: Graph | None = None
    against: Ground | None = None

    def take(self, records: Iterable[_R]) -> tuple[_R, ...]:
        """Those that belong here."""
        return tuple(
            record for record in records if record.ground == self.ground and self.graph in (None, record.graph)
        )


@dataclass(frozen=True)
class Comparison:
    """One perplexity against another, over the tokens that both scored.

    Attributes:
        other: which other.
        word, token: the change of a word's and of a token's, as `+1.20 %`; NONE where one is not finite. Bounds are
            on the token's. Words are only counted for all that a record scored: NONE too where the two differ in that.
        tokens: over how many of the text's first tokens.
        note: `over the first 128 tokens` where one of the two scored more; else empty.
    """

    other: PerplexityRecord
    word: str
    token: str
    tokens: int
    note: str = ""


@dataclass(frozen=True)
class TaskValue:
    """One metric of one record.

    Attributes:
        record: the record.
        value: the metric.
        stderr: its standard error; None when lm-eval gave none.
        other: the record of the ground before that it compares with; None without one of the same documents.
        change: against that: `+0.012`, or `+1.20 %` for a perplexity; empty without it.
        is_ratio: whether it is a perplexity or the like, of which the change is a ratio.
    """

    record: TaskRecord
    value: float
    stderr: float | None
    other: TaskRecord | None
    change: str
    is_ratio: bool

    @property
    def shown(self) -> str:
        """The value, as in the other tables."""
        return perplexity(self.value) if self.is_ratio else number(self.value)


@dataclass(frozen=True)
class Metric:
    """A row: one metric of the records that have it, FP first."""

    name: str
    values: tuple[TaskValue, ...]

    def at(self, column: Column) -> tuple[TaskValue, ...]:
        """The values that belong in a column."""
        return tuple(value for value in self.values if column.take([value.record]))


@dataclass(frozen=True)
class Task:
    """One lm-eval task of a cell: its metrics in lm-eval's order, and the records they come from, FP first."""

    name: str
    metrics: tuple[Metric, ...]
    records: tuple[TaskRecord, ...]

    @property
    def main(self) -> Metric | None:
        """What upstream's scripts report: `acc_norm`, else the first, as `word_perplexity`; None without any."""
        named = [metric for metric in self.metrics if metric.name.partition(",")[0] == "acc_norm"]
        return next(iter((*named, *self.metrics)), None)

    @property
    def settings(self) -> str:
        """What it was run with; ground by ground when they differ."""
        each = [(where(record), _settings(record)) for record in self.records]
        texts = {text for _, text in each}
        return texts.pop() if len(texts) == 1 else "; ".join(f"{name}: {text}" for name, text in each)


def columns(records: Iterable[PerplexityRecord | TaskRecord]) -> tuple[Column, ...]:
    """The columns that hold all the records, in the order FP, QDQ, phone kv, phone prefill."""
    found = {(record.ground, record.graph if record.ground == "PHONE" else None) for record in records}
    before: list[Ground] = [ground for ground in GROUNDS[:2] if (ground, None) in found]
    host = [
        Column(ground, ground, None, ground_before)
        for ground_before, ground in zip([None, *before], before, strict=False)
    ]
    phone = [
        Column(f"phone {graph}", "PHONE", graph, before[-1] if before else None)
        for graph in GRAPHS
        if ("PHONE", graph) in found
    ]
    return (*host, *phone)


def where(record: PerplexityRecord | TaskRecord) -> str:
    """`FP`, `QDQ`, `phone kv`, `phone prefill`; with the graph too when a host's ground ran none but `full`."""
    if record.ground == "PHONE":
        return f"phone {record.graph}"
    return record.ground if record.graph == "full" else f"{record.ground} {record.graph}"


def against_before(record: PerplexityRecord, cell: CellSummary, tokens: int | None = None) -> Comparison | None:
    """Against the ground before, through the same graph if that was scored; None where nothing compares.

    Args:
        record: which.
        cell: its cell.
        tokens: over so many of the text's first tokens; None for all that both scored.
    """
    before = (_compare(record, other, tokens) for other in _before(record, cell.perplexities))
    return next((found for found in before if found), None)


def against_kv(record: PerplexityRecord, cell: CellSummary, tokens: int | None = None) -> Comparison | None:
    """The phone's prefill graph against its kv graph: the same model, so that they should agree; None of others."""
    if (record.ground, record.graph) != ("PHONE", "prefill"):
        return None
    others = (_compare(record, other, tokens) for other in cell.on("PHONE") if other.graph == "kv")
    return next((found for found in others if found), None)


def tasks(cell: CellSummary) -> tuple[Task, ...]:
    """The tasks of a cell in the order recorded."""
    found: dict[str, list[TaskRecord]] = {}
    for record in cell.tasks:
        found.setdefault(record.task, []).append(record)
    return tuple(Task(name, _metrics(records), tuple(records)) for name, records in found.items())


def with_tasks(summary: RunSummary) -> tuple[tuple[CellSummary, tuple[Task, ...]], ...]:
    """The cells that ran tasks, with them."""
    return tuple((cell, tasks(cell)) for cell in summary.cells if cell.tasks)


def link(path: str) -> str:
    """A path that a record gives, as a relative URL into the run's folder; empty if it is empty or leads elsewhere."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or path != visible(path):
        return ""
    return quote(path)  # of a colon too, so that nothing of it reads as a scheme


def _compare(record: PerplexityRecord, other: PerplexityRecord, tokens: int | None) -> Comparison | None:
    both = alike((record, other))
    count = both.tokens if tokens is None else tokens
    if count is None:
        return None
    word = change(record.word_ppl, other.word_ppl) if both.whole else NONE
    token = change(over(record, count), over(other, count))
    note = "" if count == record.tokens == other.tokens else f"over the first {count} tokens"
    return Comparison(other, word, token, count, note)


def _metrics(records: Sequence[TaskRecord]) -> tuple[Metric, ...]:
    names = dict.fromkeys(name for record in records for name in record.metrics)
    errors = {_stderr(name) for name in names}
    shown = [name for name in names if name not in errors]
    return tuple(
        Metric(name, tuple(_value(record, name, records) for record in records if name in record.metrics))
        for name in shown
    )


def _value(record: TaskRecord, name: str, records: Sequence[TaskRecord]) -> TaskValue:
    is_ratio = name.partition(",")[0].endswith(_RATIOS)
    value = record.metrics[name]
    same = [one for one in _before(record, records) if name in one.metrics and _settings(one) == _settings(record)]
    other = same[0] if same else None
    difference = ""
    if other:
        difference = change(value, other.metrics[name]) if is_ratio else _difference(value, other.metrics[name])
    return TaskValue(record, value, record.metrics.get(_stderr(name)), other, difference, is_ratio)


def _before(record: _R, records: Sequence[_R]) -> tuple[_R, ...]:
    """The one record of the ground before that this one is held against; none for FP, or where none was made."""
    for ground in reversed(GROUNDS[: GROUNDS.index(record.ground)]):
        if found := [other for other in records if other.ground == ground]:
            return next(((other,) for other in found if other.graph == record.graph), (found[0],))
    return ()


def _stderr(name: str) -> str:
    """The name of a metric's standard error; lm-eval may put a filter after a comma: `acc_stderr,none`."""
    base, comma, rest = name.partition(",")
    return f"{base}_stderr{comma}{rest}"


def _difference(new: float, old: float) -> str:
    return f"{new - old:+.3f}" if math.isfinite(new) and math.isfinite(old) else NONE


def _settings(record: TaskRecord) -> str:
    parts = [f"{record.samples} document{'' if record.samples == 1 else 's'}"]
    parts += [f"limit {record.limit}"] if record.limit is not None else []
    parts += [f"{record.fewshot}-shot"] if record.fewshot is not None else []
    parts += [f"seed {record.seed}"] if record.seed is not None else []
    return ", ".join(parts)
