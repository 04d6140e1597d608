"""What a run's records come to: a line a cell, counts, and the verdict. Pure."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from harness.errors import FailureClass
from harness.results.records import (
    ArtifactRecord,
    CheckRecord,
    DeployRecord,
    Graph,
    Ground,
    OutcomeRecord,
    PerplexityRecord,
    PlanEntry,
    RunInfo,
    SampleRecord,
    Status,
    TaskRecord,
    TtftRecord,
)
from harness.results.store import RunData
from harness.target import Target

NOT_RUN = "NOT RUN"
"""What a cell is called that was to run and has no outcome: the run was interrupted, or is still going."""

STATUSES: tuple[str, ...] = (
    Status.FAILED.value,
    Status.ERROR.value,
    NOT_RUN,
    Status.PASSED.value,
    Status.SKIPPED.value,
)
"""All, in the order a verdict names them."""

SIM_NOTE = "sim speed is not a phone's speed: these times and rates are the simulator's, on this host's CPU"

GROUNDS: tuple[Ground, ...] = ("FP", "QDQ", "PHONE")
"""In the order a model goes through them."""

GRAPHS: tuple[Graph, ...] = ("full", "kv", "prefill")
_RACK = (FailureClass.INFRA, FailureClass.ENV)


@dataclass(frozen=True)
class CellSummary:
    """One planned cell.

    A number is the median over sessions of each session's median over its samples, of the last attempt; None when
    nothing was measured.

    Attributes:
        plan: the cell as planned.
        status: one of STATUSES.
        failure_class: why it did not pass; None when it did, or was not run.
        reason, remedy, evidence, evidence_path: of the outcome; of the gate when that skipped it.
        phones: names of the phones it ran on or is pinned to.
        samples: the measured generations of the last attempt that measured anything.
        sessions: how many sessions they come from.
        load_ms, ttft_ms, prefill_tok_s, decode_tok_s: see `SampleRecord`.
        peak_mb: peak resident memory of the runner, MB.
        decode_steps: executions of the decode graph for a sample.
        steps_saved: generated tokens − decode steps.
        accepted_per_step: accepted tokens / decode steps, in lookahead; None in other modes.
        perplexities: the last one of each ground and graph, in the order FP, QDQ, PHONE.
        ttfts: times to first token by prompt length, of the same attempt as the samples.
        tasks: the last record of each lm-eval task, ground and graph; a task at a time, FP, QDQ, PHONE.
        checks: the last of each name, in the order first made.
        artifact: the `.pte`; None when it came to none.
        deploys: what was pushed, each attempt.
        seconds: how long the cell took.
        attempts: how many there were; 0 when not run.
    """

    plan: PlanEntry
    status: str
    failure_class: FailureClass | None = None
    reason: str = ""
    remedy: str = ""
    evidence: str = ""
    evidence_path: str | None = None
    phones: tuple[str, ...] = ()
    samples: tuple[SampleRecord, ...] = ()
    sessions: int = 0
    load_ms: float | None = None
    ttft_ms: float | None = None
    prefill_tok_s: float | None = None
    decode_tok_s: float | None = None
    peak_mb: float | None = None
    decode_steps: float | None = None
    steps_saved: float | None = None
    accepted_per_step: float | None = None
    perplexities: tuple[PerplexityRecord, ...] = ()
    ttfts: tuple[TtftRecord, ...] = ()
    tasks: tuple[TaskRecord, ...] = ()
    checks: tuple[CheckRecord, ...] = ()
    artifact: ArtifactRecord | None = None
    deploys: tuple[DeployRecord, ...] = ()
    seconds: float = 0.0
    attempts: int = 0

    @property
    def id(self) -> str:
        """The cell's id."""
        return self.plan.cell

    def on(self, ground: Ground) -> tuple[PerplexityRecord, ...]:
        """The perplexities on one ground, a graph each."""
        return tuple(record for record in self.perplexities if record.ground == ground)


@dataclass(frozen=True)
class RunSummary:
    """A run.

    Attributes:
        run: how it was started.
        resumed: how it was started again, each time.
        cells: the planned cells in the order planned.
        counts: status → number of cells, all of STATUSES.
        headline: PASSED, FAILED, ERROR, INCOMPLETE or NOTHING RAN.
        detail: the counts in words, as `3 cells: 1 failed (PRODUCT 1), 2 passed`.
        notes: what a reader must know about the records.
        last_time: when the last record was written, ISO UTC.
    """

    run: RunInfo
    resumed: tuple[RunInfo, ...]
    cells: tuple[CellSummary, ...]
    counts: dict[str, int]
    headline: str
    detail: str
    notes: tuple[str, ...] = ()
    last_time: str = ""

    @property
    def verdict(self) -> str:
        """The run in one line."""
        return f"{self.headline}: {self.detail}"

    @property
    def is_sim(self) -> bool:
        """Whether the speeds are a simulator's."""
        return self.run.target is Target.SIM

    @property
    def has_lookahead(self) -> bool:
        """Whether any cell decoded with lookahead, so that its steps are worth a column."""
        return any(cell.accepted_per_step is not None for cell in self.cells)

    def with_status(self, *statuses: str) -> tuple[CellSummary, ...]:
        """The cells with one of the statuses, in order."""
        return tuple(cell for cell in self.cells if cell.status in statuses)


def summarise(data: RunData) -> RunSummary:
    """Sum up a run, also one that was interrupted."""
    cells = tuple(_cell(entry, data) for entry in data.plan)
    found = Counter(cell.status for cell in cells)
    counts = {status: found[status] for status in STATUSES}
    headline = _headline(counts)
    return RunSummary(
        run=data.run,
        resumed=data.resumed,
        cells=cells,
        counts=counts,
        headline=headline,
        detail=_detail(cells, counts),
        notes=_notes(data),
        last_time=data.last_time,
    )


def exit_status(summary: RunSummary) -> int:
    """0 good; 1 a cell is wrong or slow, or could not be built; 2 configuration; 3 only the rack, or interrupted."""
    bad = summary.with_status(Status.FAILED, Status.ERROR)
    if any(cell.failure_class not in (*_RACK, FailureClass.CONFIG) for cell in bad):
        return 1
    if any(cell.failure_class is FailureClass.CONFIG for cell in bad):
        return 2
    return 3 if bad or summary.counts[NOT_RUN] else 0


def median_of_sessions(samples: Iterable[SampleRecord], value: Callable[[SampleRecord], float | None]) -> float | None:
    """Median over sessions of each session's median; None when no sample has the value.

    A session is one fresh process on one phone; samples inside it are not independent, so that a session counts
    once, however many samples it has. NaN is what 0/0 gives, not a measurement, and has no place in an order.
    """
    sessions: dict[tuple[str, int], list[float]] = {}
    for sample in samples:
        if (number := value(sample)) is not None and not math.isnan(number):
            sessions.setdefault((sample.serial, sample.session), []).append(number)
    return statistics.median(statistics.median(numbers) for numbers in sessions.values()) if sessions else None


def steps_saved(sample: SampleRecord) -> int | None:
    """Decode steps that the generation did without: generated tokens − steps; 0 in a mode of one token a step."""
    return None if sample.decode_steps is None else sample.generated_tokens - sample.decode_steps


def accepted_per_step(sample: SampleRecord) -> float | None:
    """Tokens from verified n-grams that a lookahead step brought on top of its own; None in other modes."""
    if sample.accepted_tokens is None or not sample.decode_steps:
        return None
    return sample.accepted_tokens / sample.decode_steps


def _cell(entry: PlanEntry, data: RunData) -> CellSummary:
    outcome = data.outcomes.get(entry.cell)
    every = data.samples.get(entry.cell, ())
    curve = data.ttfts.get(entry.cell, ())
    # What an earlier attempt measured is void, also what the last one did not come to measure again.
    last = max([sample.attempt for sample in every] + [record.attempt for record in curve], default=0)
    samples = tuple(sample for sample in every if sample.attempt == last)
    ttfts = tuple(record for record in curve if record.attempt == last)
    deploys = data.deploys.get(entry.cell, ())
    measured_on = [sample.phone for sample in samples] + [record.phone for record in ttfts]
    used = measured_on or [deploy.phone for deploy in deploys[-1:]]
    phones = [outcome.phone] if outcome and outcome.phone and not used else used
    if not phones and entry.phone:
        phones = [entry.phone]
    status, failure_class, reason, remedy = _ending(entry, outcome)
    return CellSummary(
        plan=entry,
        status=status,
        failure_class=failure_class,
        reason=reason,
        remedy=remedy,
        evidence=outcome.evidence if outcome else "",
        evidence_path=outcome.evidence_path if outcome else None,
        phones=tuple(dict.fromkeys(phones)),
        samples=samples,
        sessions=len({(sample.serial, sample.session) for sample in samples}),
        load_ms=median_of_sessions(samples, lambda sample: sample.load_ms),
        ttft_ms=median_of_sessions(samples, lambda sample: sample.ttft_ms),
        prefill_tok_s=median_of_sessions(samples, lambda sample: sample.prefill_tok_s),
        decode_tok_s=median_of_sessions(samples, lambda sample: sample.decode_tok_s),
        peak_mb=median_of_sessions(samples, lambda sample: sample.peak_rss_mb),
        decode_steps=median_of_sessions(samples, lambda sample: sample.decode_steps),
        steps_saved=median_of_sessions(samples, steps_saved),
        accepted_per_step=median_of_sessions(samples, accepted_per_step),
        perplexities=_perplexities(data.perplexities.get(entry.cell, ())),
        ttfts=ttfts,
        tasks=_tasks(data.tasks.get(entry.cell, ())),
        checks=tuple({check.name: check for check in data.checks.get(entry.cell, ())}.values()),
        artifact=data.artifacts.get(entry.cell),
        deploys=deploys,
        seconds=outcome.seconds if outcome else 0.0,
        attempts=outcome.attempts if outcome else last,
    )


def _ending(entry: PlanEntry, outcome: OutcomeRecord | None) -> tuple[str, FailureClass | None, str, str]:
    if outcome:
        is_bare_skip = outcome.status is Status.SKIPPED and not outcome.reason
        reason, remedy = (entry.reason, entry.remedy) if is_bare_skip else (outcome.reason, outcome.remedy)
        return outcome.status.value, outcome.failure_class, reason, remedy
    if entry.verdict == "skip":
        return Status.SKIPPED.value, FailureClass.UNSUPPORTED, entry.reason, entry.remedy
    return NOT_RUN, None, "the run ended before this cell did", "run it again, or resume the run"


def _perplexities(records: Sequence[PerplexityRecord]) -> tuple[PerplexityRecord, ...]:
    last = {(record.ground, record.graph): record for record in records}
    return tuple(sorted(last.values(), key=_place))


def _tasks(records: Sequence[TaskRecord]) -> tuple[TaskRecord, ...]:
    last = {(record.task, record.ground, record.graph): record for record in records}
    names = list(dict.fromkeys(name for name, _, _ in last))
    return tuple(sorted(last.values(), key=lambda record: (names.index(record.task), *_place(record))))


def _place(record: PerplexityRecord | TaskRecord) -> tuple[int, int]:
    return GROUNDS.index(record.ground), GRAPHS.index(record.graph)


def _headline(counts: dict[str, int]) -> str:
    if counts[Status.FAILED]:
        return "FAILED"
    if counts[Status.ERROR]:
        return "ERROR"
    if counts[NOT_RUN]:
        return "INCOMPLETE"
    return "PASSED" if counts[Status.PASSED] else "NOTHING RAN"


def _detail(cells: Sequence[CellSummary], counts: dict[str, int]) -> str:
    parts = []
    for status in STATUSES:
        if not counts[status]:
            continue
        part = f"{counts[status]} {status.lower()}"
        if status in (Status.FAILED, Status.ERROR):
            classes = Counter(cell.failure_class or "no class" for cell in cells if cell.status == status)
            part += f" ({', '.join(f'{name} {count}' for name, count in sorted(classes.items()))})"
        parts.append(part)
    noun = "cell" if len(cells) == 1 else "cells"
    return f"{len(cells)} {noun}" + (f": {', '.join(parts)}" if parts else "")


def _notes(data: RunData) -> tuple[str, ...]:
    notes = []
    if data.resumed:
        notes.append(f"the run was resumed {len(data.resumed)} time(s)")
    if data.raw:
        first = data.raw[0]
        notes.append(f"{len(data.raw)} line(s) were not understood; the first is line {first.line}: {first.problem}")
    planned = {entry.cell for entry in data.plan}
    seen = {*data.artifacts, *data.deploys, *data.samples, *data.perplexities, *data.ttfts, *data.tasks}
    seen |= {*data.checks, *data.outcomes}
    if stray := sorted(seen - planned):
        notes.append(f"records of {len(stray)} cell(s) that are not in the plan were left out, as {stray[0]}")
    return tuple(notes)
