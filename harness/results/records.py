"""What one run writes down: one frozen dataclass a kind of record, and how it becomes a line of `records.jsonl`.

A line is `{"record": kind, "schema": 1, "time": ISO UTC, "run": run id, …fields}`, strict JSON in ASCII, so that
`pandas.read_json(path, lines=True)` reads a file as it is. Rules of the schema:

- A field may be added with a default; readers ignore fields they do not know. Any other change raises `schema` of
  that kind, and a reader keeps a newer one as `RawRecord`.
- A float that is not finite (the perplexity of a broken model) is the string "NaN", "Infinity" or "-Infinity".
- Times of day are ISO 8601 in UTC; durations are in seconds, or milliseconds where the name ends in `_ms`; memory is
  in MB of 10^6 bytes, sizes of files in bytes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import Any, ClassVar, Literal

from pydantic import TypeAdapter, ValidationError

from harness.errors import FailureClass
from harness.gates import Verdict
from harness.matrix import Cell
from harness.models import Lengths
from harness.target import Target

Ground = Literal["FP", "QDQ", "PHONE"]
Graph = Literal["full", "kv", "prefill"]


class Status(StrEnum):
    """How a cell ended. A planned cell without an outcome was not run, see `summary.NOT_RUN`."""

    PASSED = "PASSED"
    FAILED = "FAILED"
    ERROR = "ERROR"
    SKIPPED = "SKIPPED"


@dataclass(frozen=True)
class Record:
    """Base of all kinds. `kind` and `schema` go into the line, and are no fields."""

    kind: ClassVar[str] = ""
    schema: ClassVar[int] = 1


@dataclass(frozen=True)
class RunInfo(Record):
    """The first record of a run; again in the same file when the run is resumed.

    Attributes:
        id: the run's id, also the name of its folder.
        started: ISO time in UTC.
        command: the command line, a word an item.
        host: name of the machine the harness ran on.
        harness_version: `harness.__version__`.
        toolchain: `toolchain.fingerprint`: name → version or hash.
        rack: path of the rack file.
        target: what the artifacts are for; `sim` means that no speed here is a phone's.
    """

    kind: ClassVar[str] = "run"
    id: str
    started: str
    command: tuple[str, ...]
    host: str
    harness_version: str
    toolchain: dict[str, str]
    rack: str
    target: Target


@dataclass(frozen=True)
class PlanEntry(Record):
    """One planned cell and what the gates said; all of them are written before anything is built.

    Attributes:
        cell: the cell's id.
        model, mode, soc, arch, recipe, lengths: as in `Cell`; `arch` as 75 for V75.
        phone: the phone it is pinned to; None when any with the SoC will do.
        verdict: run, or skip for the reason below.
        gate, reason, remedy: as in `gates.Verdict`; empty when it runs.
    """

    kind: ClassVar[str] = "plan"
    cell: str
    model: str
    mode: str
    soc: str
    arch: int
    recipe: str
    phone: str | None
    lengths: Lengths
    verdict: Literal["run", "skip"]
    gate: str = ""
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class ArtifactRecord(Record):
    """The `.pte` a cell runs.

    Attributes:
        cell: the cell's id.
        key: the cache key.
        path: where the file is on the host.
        bytes: its size.
        reused: True when the cache had it.
        seconds: how long it took to get it; of the reuse, when reused.
        stages: stage of the build → seconds; of the build that made it, also when reused.
        peak_mb: peak resident memory of the build, MB; None when not known.
    """

    kind: ClassVar[str] = "artifact"
    cell: str
    key: str
    path: str
    bytes: int
    reused: bool
    seconds: float
    stages: dict[str, float] = field(default_factory=dict)
    peak_mb: float | None = None


@dataclass(frozen=True)
class DeployRecord(Record):
    """What was pushed to a phone for a cell, and what was there already.

    Attributes:
        cell: the cell's id.
        phone: the phone's name.
        pushed: names of the files pushed.
        reused: names of the files that were there with the right content.
        bytes: how much was pushed.
        seconds: how long all of it took.
    """

    kind: ClassVar[str] = "deploy"
    cell: str
    phone: str
    pushed: tuple[str, ...]
    reused: tuple[str, ...]
    bytes: int
    seconds: float


@dataclass(frozen=True)
class SampleRecord(Record):
    """One measured generation. What was not measured is None.

    Attributes:
        cell: the cell's id.
        phone, serial, soc: the phone it ran on.
        target: `sim` when the numbers are the simulator's.
        session: which fresh runner process, from 0: the unit of noise.
        prompt, text: what went in and what came out.
        prompt_tokens: tokens of the prompt.
        generated_tokens: tokens after the first, as the runner counts.
        load_ms: model load time.
        ttft_ms: first_token − inference_start; load excluded, tokenisation included.
        prefill_tok_s: prompt_tokens / (prompt_eval_end − inference_start).
        decode_tok_s: generated_tokens / (inference_end − prompt_eval_end).
        peak_rss_mb: the runner's peak resident memory, MB.
        settings: what the runner was told (temperature, lengths, seed, …).
        raw: the runner's `PyTorchObserver` JSON as it printed it.
        attempt: which try of the cell, from 1, counted on when a run is resumed; a summary takes the last one's.
        decode_steps: executions of the decode graph; fewer than `generated_tokens` in lookahead.
        accepted_tokens: tokens that came from verified n-grams, in lookahead; None in other modes.
        pair: number of the ABBA pair in a run of A against B; None of other samples.
        host_ms: the process's life on the harness's clock, from the command being sent to its exit status; None in
            records from before it was kept.
    """

    kind: ClassVar[str] = "sample"
    cell: str
    phone: str
    serial: str
    soc: str
    target: Target
    session: int
    prompt: str
    prompt_tokens: int
    generated_tokens: int
    text: str
    load_ms: float | None = None
    ttft_ms: float | None = None
    prefill_tok_s: float | None = None
    decode_tok_s: float | None = None
    peak_rss_mb: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)
    attempt: int = 1
    decode_steps: int | None = None
    accepted_tokens: int | None = None
    pair: int | None = None
    host_ms: float | None = None


@dataclass(frozen=True)
class PerplexityRecord(Record):
    """Perplexity of the held-out text on one ground.

    Attributes:
        cell: the cell's id.
        ground: FP (the checkpoint), QDQ (quantised, on the host) or PHONE (the compiled graph).
        graph: which graph scored: `full` attention over a window, or the `kv` or `prefill` graph.
        tokens: tokens scored.
        words: words of the text scored, as lm-eval counts them (split at blanks).
        nll_sum: −Σ log-likelihood of the scored tokens, in nats.
        context_len: tokens a score could look back at, at most.
        steps: graph executions it took.
        seconds: how long it took.
        blocks: tokens and −Σ log-likelihood of each block of the text, in order: what two scores are paired by; empty
            where they were not kept.
    """

    kind: ClassVar[str] = "perplexity"
    cell: str
    ground: Ground
    graph: Graph
    tokens: int
    words: int
    nll_sum: float
    context_len: int
    steps: int
    seconds: float
    blocks: tuple[tuple[int, float], ...] = ()

    @property
    def token_ppl(self) -> float:
        """exp(nll_sum / tokens); NaN of no tokens."""
        return _exp_of_mean(self.nll_sum, self.tokens)

    @property
    def word_ppl(self) -> float:
        """exp(nll_sum / words), lm-eval's `word_perplexity`; NaN of no words."""
        return _exp_of_mean(self.nll_sum, self.words)


@dataclass(frozen=True)
class TtftRecord(Record):
    """Time to first token of one prompt length: prefill in blocks of AR, then one token.

    Attributes:
        cell: the cell's id.
        phone, serial: the phone it ran on.
        target: `sim` when the time is the simulator's.
        graph: which graph took the prompt.
        ar_len: tokens that graph takes at once.
        prompt_tokens: length of the prompt, in tokens.
        blocks: executions of the graph: ceil(prompt_tokens / ar_len).
        ttft_ms: from the tokens' arrival to the first token; neither loading nor tokenising is in it.
        repeat: which measurement of this length, from 0.
        attempt: which try of the cell, from 1.
    """

    kind: ClassVar[str] = "ttft"
    cell: str
    phone: str
    serial: str
    target: Target
    graph: Graph
    ar_len: int
    prompt_tokens: int
    blocks: int
    ttft_ms: float
    repeat: int = 0
    attempt: int = 1


@dataclass(frozen=True)
class TaskRecord(Record):
    """An lm-eval task on one ground.

    Attributes:
        cell: the cell's id.
        ground, graph: as in `PerplexityRecord`.
        task: lm-eval's name of it.
        metrics: metric → value, by lm-eval's names (`word_perplexity`, `acc_norm`, `acc_norm_stderr`).
        samples: documents scored.
        limit, fewshot, seed: what the task was run with; None where the task's own default.
        steps: graph executions it took.
        seconds: how long it took.
        path: lm-eval's own JSON, relative to the run's folder.
    """

    kind: ClassVar[str] = "task"
    cell: str
    ground: Ground
    graph: Graph
    task: str
    metrics: dict[str, float]
    samples: int
    limit: int | None = None
    fewshot: int | None = None
    seed: int | None = None
    steps: int = 0
    seconds: float = 0.0
    path: str = ""


@dataclass(frozen=True)
class CheckRecord(Record):
    """One thing that had to hold, as `phone_vs_qdq_ppl`.

    Attributes:
        cell: the cell's id.
        name: name of the check.
        passed: whether it held.
        value: what was found; None when it is no number.
        bound: what it was compared with; None when it is no number.
        text: the check in words, with its numbers.
        verdict: PASSED or FAILED; or why neither can be said: INCONCLUSIVE, INVALID or NOT_JUDGED, which are classes
            of failure. Empty in records from before there were more than two.
        rules: version of the bounds that it was judged by (`harness.evaluate.rules`); 0 from before they had one.
        attempt: which try of the cell it judges, as a sample's.
    """

    kind: ClassVar[str] = "check"
    cell: str
    name: str
    passed: bool
    value: float | None = None
    bound: float | None = None
    text: str = ""
    verdict: str = ""
    rules: int = 0
    attempt: int = 1


@dataclass(frozen=True)
class ComparisonRecord(Record):
    """One metric of a cell against the base's, in a run of A against B; see `harness.verdicts`.

    Attributes:
        cell: the cell's id.
        base_run: the base's run id.
        phone: name of the phone both ran on.
        metric: as `decode_tok_s`, or `token_ppl[kv]`.
        judgement: by its own pairs or documents; `htpfarm gate` controls false discoveries over all.
        change: candidate / base − 1; None when INVALID.
        lower, upper: its two-sided 90% interval.
        pairs: ABBA pairs, or blocks of the text.
        p: p-value of a slowdown.
        base, candidate: medians over sessions; of a perplexity, a token's.
        reason: why it is INVALID or INCONCLUSIVE.
    """

    kind: ClassVar[str] = "comparison"
    cell: str
    base_run: str
    phone: str
    metric: str
    judgement: str
    change: float | None = None
    lower: float | None = None
    upper: float | None = None
    pairs: int = 0
    p: float = 1.0
    base: float | None = None
    candidate: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class OutcomeRecord(Record):
    """How a cell ended; the last one of a cell counts.

    Attributes:
        cell: the cell's id.
        status: PASSED, FAILED (the product's fault), ERROR (ours or the rack's) or SKIPPED.
        failure_class: why, unless it passed.
        reason: what happened, one sentence.
        remedy: what to do about it.
        evidence: output that proves it.
        evidence_path: file with all of it, relative to the run's folder.
        seconds: how long the cell took, all attempts.
        attempts: how many there were.
        phone: name of the phone of the last attempt; None when it came to none.
    """

    kind: ClassVar[str] = "outcome"
    cell: str
    status: Status
    failure_class: FailureClass | None = None
    reason: str = ""
    remedy: str = ""
    evidence: str = ""
    evidence_path: str | None = None
    seconds: float = 0.0
    attempts: int = 1
    phone: str | None = None


@dataclass(frozen=True)
class RawRecord(Record):
    """A line that this version does not understand, kept as it was read.

    Attributes:
        problem: why, as "kind 'power' is unknown".
        text: the line.
        line: its number in the file, from 1.
    """

    kind: ClassVar[str] = "raw"
    problem: str
    text: str
    line: int


@dataclass(frozen=True)
class Entry:
    """A record with its envelope.

    Attributes:
        record: the record.
        time: when it was written, ISO UTC; empty of a RawRecord.
        run: id of the run that wrote it; empty of a RawRecord.
    """

    record: Record
    time: str = ""
    run: str = ""


KINDS: Mapping[str, type[Record]] = {
    kind.kind: kind
    for kind in (
        RunInfo,
        PlanEntry,
        ArtifactRecord,
        DeployRecord,
        SampleRecord,
        PerplexityRecord,
        TtftRecord,
        TaskRecord,
        CheckRecord,
        ComparisonRecord,
        OutcomeRecord,
    )
}


def plan_entry(cell: Cell, verdict: Verdict) -> PlanEntry:
    """The record of a planned cell."""
    return PlanEntry(
        cell=cell.id,
        model=cell.model.name,
        mode=cell.mode.value,
        soc=cell.soc.name,
        arch=cell.soc.arch,
        recipe=cell.recipe,
        phone=cell.phone,
        lengths=cell.lengths,
        verdict="run" if verdict.run else "skip",
        gate=verdict.gate,
        reason=verdict.reason,
        remedy=verdict.remedy,
    )


def utc_now() -> str:
    """Now, as ISO 8601 in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def encode(record: Record, run: str, time: str | None = None) -> bytes:
    """One line, with its newline.

    Args:
        record: any kind of `KINDS`.
        run: the run's id.
        time: when; None for now.

    Raises:
        TypeError: a RawRecord, or a value (in `settings` or `raw`) that JSON cannot hold.
    """
    if type(record) is not KINDS.get(record.kind):
        raise TypeError(f"{type(record).__name__} is not a kind of record that is written")
    line: dict[str, Any] = {"record": record.kind, "schema": record.schema, "time": time or utc_now(), "run": run}
    line |= dataclasses.asdict(record)
    if isinstance(record, PerplexityRecord):  # for whoever reads the file without us
        line |= {"token_ppl": record.token_ppl, "word_ppl": record.word_ppl}
    return json.dumps(_plain(line), allow_nan=False).encode("ascii") + b"\n"


def decode(text: str, line: int = 0) -> Entry:
    """Read one line; what is not understood becomes a RawRecord.

    Args:
        text: the line, without its newline.
        line: its number, for the RawRecord.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        return Entry(RawRecord(f"not JSON: {error}", text, line))
    if not isinstance(data, dict):
        return Entry(RawRecord("not a JSON object", text, line))
    kind = KINDS.get(str(data.get("record")))
    schema = data.get("schema")
    if kind is None:
        return Entry(RawRecord(f"kind {data.get('record')!r} is unknown", text, line))
    if schema != kind.schema:
        return Entry(RawRecord(f"kind {kind.kind!r} has schema {schema!r}, known is {kind.schema}", text, line))
    try:
        record = _adapter(kind.kind).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return Entry(RawRecord(f"kind {kind.kind!r}: {place}: {first['msg']}", text, line))
    return Entry(record, str(data.get("time", "")), str(data.get("run", "")))


@cache
def _adapter(kind: str) -> TypeAdapter[Record]:
    return TypeAdapter(KINDS[kind])


def _plain(value: Any) -> Any:
    """The value as strict JSON holds it: no NaN, no half of a surrogate pair."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _exp_of_mean(total: float, count: int) -> float:
    if count <= 0:
        return math.nan
    try:
        return math.exp(total / count)
    except OverflowError:
        return math.inf
