"""A against B for one cell: both sides' builds, the usual checks of both, then ABBA sessions on one phone, a verdict.

The base's records go to the folder `base` in the run's; the run's own are the candidate's. So each side is a run that
`htpfarm report` and `htpfarm compare` read, and only pairs are new: samples of ABBA sessions carry their pair's number.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from harness.build.cache import Artifact
from harness.compare.runs import (
    SpeedComparison,
    compare_perplexities,
    compare_speeds,
    compare_texts,
    perplexity_record,
)
from harness.conduct.attempt import Attempt, Bench
from harness.conduct.real import real_payload, run_real_prompt
from harness.conduct.replies import run_prompt
from harness.conduct.run_attempt import run_attempt
from harness.conduct.run_cell import not_built, run_cell
from harness.errors import FailureClass, HarnessError
from harness.farm.awake import kept_awake
from harness.farm.deploy import DeployReport
from harness.farm.failures import Failure
from harness.farm.payload import Payload
from harness.results.records import ComparisonRecord, OutcomeRecord, PerplexityRecord, Record, SampleRecord, Status
from harness.target import Target
from harness.verdicts import RULES, Judgement, PerplexityComparison, Rules, abba

if TYPE_CHECKING:
    from harness.conduct.plan import Planned
    from harness.conduct.session import Run

FIRST_SESSION = 100
"""Number of the first ABBA session: those below are the prompts' own."""
_THE_BASE_OWN = frozenset(
    {FailureClass.PRODUCT, FailureClass.INCONCLUSIVE, FailureClass.INVALID, FailureClass.NOT_JUDGED}
)
"""What the base's checks may say of the base alone: the candidate is run and compared all the same."""


def run_ab_cell(base: Run, candidate: Run, planned: Planned, first: str | None = None) -> OutcomeRecord:
    """Carries a cell out on both sides; records everything and returns the candidate's outcome.

    Args:
        base, candidate: the two sides.
        planned: the cell.
        first: name of the phone the scheduler chose.
    """
    cell = planned.cell
    artifacts = [_artifact(side, planned) for side in (base, candidate)]
    before, after = artifacts
    if isinstance(after, HarnessError):
        passed = OutcomeRecord(cell.id, Status.PASSED, reason="compiled; not run, since the candidate does not build")
        base.writer.append(not_built(cell.id, before) if isinstance(before, HarnessError) else passed)
        outcome = not_built(cell.id, after)
        candidate.writer.append(outcome)
        return outcome
    if isinstance(before, HarnessError):
        base.writer.append(not_built(cell.id, before))
        return run_cell(candidate.bench(), cell, after, first=first)
    both = partial(ab_attempt, candidate.base_bench(), before, new_tokens=candidate.options.ab_tokens)
    return run_cell(candidate.bench(), cell, after, first=first, run=both)


def ab_attempt(
    base_bench: Bench,
    base_artifact: Artifact,
    attempt: Attempt,
    new_tokens: int | None = None,
    rules: Rules = RULES,
) -> Failure | None:
    """One attempt at a cell on one leased phone, both sides.

    Args:
        base_bench, base_artifact: the base's.
        attempt: the candidate's.
        new_tokens: how many tokens a timed session generates; None for the model's own.
        rules: how many pairs, and levels.

    Returns:
        None when the candidate is good by itself and against the base.

    Raises:
        HarnessError: the phone or the connection failed.
    """
    kept: tuple[list[Record], list[Record]] = ([], [])
    sides = (
        replace(attempt, bench=_keeping(base_bench, kept[0]), artifact=base_artifact),
        replace(attempt, bench=_keeping(attempt.bench, kept[1])),
    )
    sides[0].say("the base's checks")
    failed = run_attempt(sides[0])
    if failed and failed.failure_class not in _THE_BASE_OWN:
        return failed  # the phone's or the rack's: nothing is known of either side
    base_bench.record(_outcome(attempt, failed))
    sides[1].say("the candidate's checks")
    if failure := run_attempt(sides[1]):
        return failure
    measured = measure_pairs(sides, new_tokens, rules)
    if isinstance(measured, Failure):
        return measured
    scores = [[record for record in records if isinstance(record, PerplexityRecord)] for records in kept]
    perplexity = compare_perplexities(scores[0], scores[1])
    texts = [[record for record in records if isinstance(record, SampleRecord)] for records in kept]
    for record in _records(attempt, base_bench.run_id, measured, perplexity):
        attempt.bench.record(record)
    text = compare_texts(texts[0], texts[1])
    attempt.say(_words(measured, perplexity) + (f"; {text.words}" if text else ""))
    return verdict(measured, perplexity)


def measure_pairs(
    sides: tuple[Attempt, Attempt], new_tokens: int | None = None, rules: Rules = RULES
) -> tuple[SpeedComparison, ...] | Failure:
    """ABBA sessions of the first prompt: `first` pairs, and `more` unless those come to OK or IMPROVED in all speeds.

    Raises:
        HarnessError: the phone or the connection failed.
    """
    link = sides[0].phone.link
    real = sides[0].bench.target is Target.ANDROID
    payloads = [real_payload(side, side.cell.soc) if real else side.payload for side in sides]
    deployed = [side.deploy(payload) for side, payload in zip(sides, payloads, strict=True)]
    samples: tuple[list[SampleRecord], list[SampleRecord]] = ([], [])
    found: tuple[SpeedComparison, ...] = ()
    with kept_awake(link) if real else nullcontext():
        for start, count in ((0, rules.first), (rules.first, rules.more)):
            for pair, order in enumerate(abba(count, start), start=start):
                for name in order:
                    number = 0 if name == "A" else 1
                    side = sides[number]
                    side.say(f"{side.bench.side}, pair {pair + 1}/{start + count}")
                    taken = _session(side, payloads[number], deployed[number], pair, new_tokens)
                    if isinstance(taken, Failure):
                        return taken
                    samples[number].append(taken)
            found = compare_speeds(samples[0], samples[1], rules=rules)
            if all(speed.alone in (Judgement.OK, Judgement.IMPROVED, Judgement.INVALID) for speed in found):
                break
    return found


def verdict(speeds: Sequence[SpeedComparison], perplexity: dict[str, PerplexityComparison]) -> Failure | None:
    """A failure that names what REGRESSED: PRODUCT for perplexity, PERF for speed; else None. Pure."""
    worse = [
        f"perplexity of the {graph} graph {one.ratio - 1:+.2%} against the base"
        for graph, one in perplexity.items()
        if one.judgement is Judgement.REGRESSED
    ]
    if worse:
        return Failure(FailureClass.PRODUCT, "; ".join(worse), "compare what the two sides' quantisers chose")
    slower = [speed for speed in speeds if speed.alone is Judgement.REGRESSED]
    if slower:
        said = "; ".join(f"{speed.metric} {speed.change:+.1%} over {speed.pairs} pairs" for speed in slower)
        return Failure(FailureClass.PERF, said, "look at what the candidate does in this graph; `htpfarm gate RUN`")
    return None


def _artifact(side: Run, planned: Planned) -> Artifact | HarnessError:
    try:
        return side.wait_for_artifact(planned)
    except HarnessError as error:
        return error


def _keeping(bench: Bench, into: list[Record]) -> Bench:
    def record(one: Record) -> None:
        into.append(one)
        bench.record(one)

    return replace(bench, record=record)


def _outcome(attempt: Attempt, failed: Failure | None) -> OutcomeRecord:
    name = attempt.phone.phone.name
    if failed is None:
        return OutcomeRecord(attempt.cell.id, Status.PASSED, attempts=attempt.number, phone=name)
    said = (failed.reason, failed.remedy, failed.evidence)
    status = Status.FAILED if failed.failure_class is FailureClass.PRODUCT else Status.ERROR
    return OutcomeRecord(attempt.cell.id, status, failed.failure_class, *said, attempts=attempt.number, phone=name)


def _session(
    side: Attempt, payload: Payload, deployed: DeployReport, pair: int, new_tokens: int | None
) -> SampleRecord | Failure:
    prompt, number = side.cell.model.prompts[0], FIRST_SESSION + pair
    if side.bench.target is Target.ANDROID:
        real = run_real_prompt(side, payload, deployed, prompt, number, pair=pair, new_tokens=new_tokens)
        return real if isinstance(real, Failure) else real[0]
    taken = run_prompt(side, deployed, prompt, number, pair=pair, new_tokens=new_tokens)
    return taken if isinstance(taken, Failure) else taken[0]


def _records(
    attempt: Attempt,
    base_run: str,
    speeds: Sequence[SpeedComparison],
    perplexity: dict[str, PerplexityComparison],
) -> list[ComparisonRecord]:
    where = attempt.cell.id, base_run, attempt.phone.phone.name
    made = [speed.record(*where, speed.alone) for speed in speeds]
    return made + [perplexity_record(*where, graph, one) for graph, one in perplexity.items()]


def _words(speeds: Sequence[SpeedComparison], perplexity: dict[str, PerplexityComparison]) -> str:
    parts = [
        f"{speed.metric} {speed.alone}" + (f" {speed.change:+.1%}" if speed.change is not None else "")
        for speed in speeds
    ]
    parts += [f"perplexity [{graph}] {one.judgement} {one.ratio - 1:+.2%}" for graph, one in perplexity.items()]
    return ", ".join(parts)
