"""Two runs' records → a comparison of each cell: how it ended, its speeds, its perplexity, its text. Pure.

Sessions are paired by their number: `pytest -m device --ab` numbers both sides' sessions by ABBA pair; two runs of
their own have a session a prompt, the same prompt on both sides.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from harness.errors import FailureClass
from harness.results.alike import alike, sums
from harness.results.records import ComparisonRecord, PerplexityRecord, SampleRecord, Status
from harness.results.store import RunData
from harness.results.summary import NOT_RUN, CellSummary, RunSummary, summarise
from harness.target import Target
from harness.verdicts import (
    RULES,
    Document,
    Judgement,
    PerplexityComparison,
    Rules,
    TextComparison,
    compare_greedy,
    compare_perplexity,
    control_discoveries,
    differences,
    interval,
    invalid_reasons,
    judge,
    log_ratios,
    session_medians,
    slowdown_p_values,
)
from harness.verdicts.metrics import BETTER, JUDGED
from harness.verdicts.rules import Better

_PRODUCT = (FailureClass.PRODUCT, FailureClass.PERF, FailureClass.BUILD, FailureClass.CRASH)
_LEVEL = 0.95
CARRIED_OUT = (Status.PASSED.value, Status.FAILED.value, Status.ERROR.value)
"""How a cell ends that was tried."""


@dataclass(frozen=True)
class SpeedComparison:
    """One metric of one cell.

    Attributes:
        metric: name of it.
        judgement: among all comparisons, after false discovery control.
        alone: by its own pairs.
        change: candidate / base − 1, geometric mean over pairs; None when INVALID.
        lower, upper: its two-sided 90% interval; None of fewer than two pairs.
        pairs: how many.
        p: p-value of a slowdown by its own pairs; 1 when INVALID.
        base, candidate: medians over sessions.
        reason: why INVALID or INCONCLUSIVE; empty when it is not.
        each: number, base's and candidate's median of every pair of sessions, in the order of the numbers.
    """

    metric: str
    judgement: Judgement
    alone: Judgement
    change: float | None = None
    lower: float | None = None
    upper: float | None = None
    pairs: int = 0
    p: float = 1.0
    base: float | None = None
    candidate: float | None = None
    reason: str = ""
    each: tuple[tuple[int, float, float], ...] = ()

    def record(self, cell: str, base_run: str, phone: str, judgement: Judgement) -> ComparisonRecord:
        """It as a record; `judgement`: the one by its own pairs, or the one among all comparisons."""
        return ComparisonRecord(
            cell, base_run, phone, self.metric, judgement.value, self.change, self.lower, self.upper, self.pairs,
            self.p, self.base, self.candidate, self.reason,
        )  # fmt: skip


def perplexity_record(cell: str, base_run: str, phone: str, graph: str, one: PerplexityComparison) -> ComparisonRecord:
    """The comparison of a graph's perplexity as a record."""
    edges = (one.ratio, one.lower, one.upper)
    change, lower, upper = (None if edge is None or math.isnan(edge) else edge - 1 for edge in edges)
    return ComparisonRecord(
        cell, base_run, phone, f"token_ppl[{graph}]", one.judgement.value, change, lower, upper, one.documents,
        base=one.base, candidate=one.candidate, reason=one.reason,
    )  # fmt: skip


@dataclass(frozen=True)
class CellComparison:
    """One cell in both runs.

    Attributes:
        cell: its id.
        base, candidate: how it ended on each side; None where it was not planned.
        outcome: REGRESSED where it passed and no longer does by the product's fault; IMPROVED the mirror; INVALID where
            one side has no outcome of the product's; INCONCLUSIVE where both fail.
        speeds: a metric each.
        perplexity: `graph` of the phone → comparison.
        text: greedy text; None where a side wrote none.
        failure_class, reason, remedy, evidence: the candidate's.
    """

    cell: str
    base: str | None
    candidate: str | None
    outcome: Judgement
    speeds: tuple[SpeedComparison, ...] = ()
    perplexity: dict[str, PerplexityComparison] = field(default_factory=dict)
    text: TextComparison | None = None
    failure_class: FailureClass | None = None
    reason: str = ""
    remedy: str = ""
    evidence: str = ""

    @property
    def vanished(self) -> bool:
        """Whether the base carried it out and the candidate did not: it is not there, was not run, or was skipped."""
        return self.base in CARRIED_OUT and self.candidate not in CARRIED_OUT

    @property
    def judgement(self) -> Judgement:
        """The cell in one word: the worst of what it is made of; text that differs is for people to look at."""
        words = [self.outcome, *(speed.judgement for speed in self.speeds)]
        words += [one.judgement for one in self.perplexity.values()]
        return next((word for word in _WORST_FIRST if word in words), Judgement.OK)


@dataclass(frozen=True)
class RunComparison:
    """Two runs.

    Attributes:
        base, candidate: their ids.
        target: `sim` or `android`; speeds of `sim` are the simulator's.
        cells: those of either, sorted by id.
        toolchain: part → (base's, candidate's) where they differ: what is under test.
    """

    base: str
    candidate: str
    target: Target
    cells: tuple[CellComparison, ...]
    toolchain: dict[str, tuple[str, str]]

    def with_judgement(self, judgement: Judgement) -> tuple[CellComparison, ...]:
        """The cells of one judgement."""
        return tuple(cell for cell in self.cells if cell.judgement is judgement)

    @property
    def vanished(self) -> tuple[CellComparison, ...]:
        """The cells that the base carried out and the candidate did not."""
        return tuple(cell for cell in self.cells if cell.vanished)

    @property
    def counts(self) -> dict[str, int]:
        """Judgement → cells."""
        return {word.value: len(self.with_judgement(word)) for word in _WORST_FIRST}


_WORST_FIRST = (
    Judgement.REGRESSED,
    Judgement.INVALID,
    Judgement.INCONCLUSIVE,
    Judgement.IMPROVED,
    Judgement.OK,
)


def compare_runs(base: RunData, candidate: RunData, rules: Rules = RULES) -> RunComparison:
    """Compare all cells of two runs; false discovery control goes over all their speeds."""
    old, new = summarise(base), summarise(candidate)
    before, after = {cell.id: cell for cell in old.cells}, {cell.id: cell for cell in new.cells}
    run_facts = differences(_facts(old), _facts(new))
    cells = [
        compare_cells(before.get(name), after.get(name), name, run_facts, rules) for name in sorted({*before, *after})
    ]
    parts = sorted({*old.run.toolchain, *new.run.toolchain})
    pairs = {part: (old.run.toolchain.get(part, "absent"), new.run.toolchain.get(part, "absent")) for part in parts}
    return RunComparison(
        old.run.id,
        new.run.id,
        new.run.target,
        controlled(cells, rules),
        {part: both for part, both in pairs.items() if both[0] != both[1]},
    )


def compare_cells(
    base: CellSummary | None,
    candidate: CellSummary | None,
    cell: str,
    run_facts: Sequence[str] = (),
    rules: Rules = RULES,
) -> CellComparison:
    """Compare one cell, by itself.

    Args:
        base, candidate: how it went; None where it was not planned.
        cell: its id.
        run_facts: facts of the runs that differ and must not (the host, of a simulator's speeds).
        rules: levels.
    """
    outcome = _outcome(base, candidate)
    if base is None or candidate is None:
        return CellComparison(
            cell, base.status if base else None, candidate.status if candidate else None, outcome,
            reason="not in the base" if base is None else "not in the new run",
        )  # fmt: skip
    speeds: tuple[SpeedComparison, ...] = ()
    if base.samples and candidate.samples:
        reasons = [f"{fact} differs" for fact in run_facts]
        reasons += ["lengths differ"] if base.plan.lengths != candidate.plan.lengths else []
        speeds = compare_speeds(base.samples, candidate.samples, reasons, rules)
    return CellComparison(
        cell,
        base.status,
        candidate.status,
        outcome,
        speeds,
        compare_perplexities(base.perplexities, candidate.perplexities),
        compare_texts(base.samples, candidate.samples),
        candidate.failure_class,
        candidate.reason,
        candidate.remedy,
        candidate.evidence,
    )


def controlled(cells: Sequence[CellComparison], rules: Rules = RULES) -> tuple[CellComparison, ...]:
    """The comparisons with each speed's judgement as it is among all of them."""
    every = [(cell, speed) for cell in cells for speed in cell.speeds]
    words = control_discoveries(
        [speed.alone.value for _, speed in every], _p_values([s for _, s in every], rules), rules
    )
    made: dict[str, list[SpeedComparison]] = {}
    for (cell, speed), word in zip(every, words, strict=True):
        judgement = Judgement(str(word))
        reason = speed.reason
        if judgement is not speed.alone:
            reason = f"{speed.alone} alone, but not among {len(every)} comparisons"
        made.setdefault(cell.cell, []).append(dataclasses.replace(speed, judgement=judgement, reason=reason))
    return tuple(dataclasses.replace(cell, speeds=tuple(made.get(cell.cell, ()))) for cell in cells)


def _p_values(speeds: Sequence[SpeedComparison], rules: Rules) -> list[float]:
    """Those of comparisons with pairs anew, with variances pooled where there are enough; 1 of the others."""
    places = [number for number, speed in enumerate(speeds) if speed.pairs >= 2 and speed.change is not None]
    found = [1.0] * len(speeds)
    made = [_moments(speeds[place]) for place in places]
    p = slowdown_p_values([m for m, _, _ in made], [s for _, s, _ in made], [k for _, _, k in made], rules)
    for place, value in zip(places, p, strict=True):
        found[place] = float(value)
    return found


def _moments(speed: SpeedComparison) -> tuple[float, float, int]:
    """Mean and SD of a comparison's log ratios, from its interval: positive is worse."""
    assert speed.change is not None
    assert speed.lower is not None
    assert speed.upper is not None
    sign = -1 if BETTER[speed.metric] is Better.HIGHER else 1
    mean = sign * float(np.log1p(speed.change))
    half = float(np.log1p(speed.upper) - np.log1p(speed.lower)) / 2
    sd = half * np.sqrt(speed.pairs) / float(stats.t.ppf(_LEVEL, speed.pairs - 1))
    return mean, float(sd), speed.pairs


def _outcome(base: CellSummary | None, candidate: CellSummary | None) -> Judgement:
    sides = [_ending(side) for side in (base, candidate)]
    if None in sides:
        return Judgement.INVALID
    before, after = sides
    if before == after:
        return Judgement.OK if after else Judgement.INCONCLUSIVE
    return Judgement.IMPROVED if after else Judgement.REGRESSED


def _ending(side: CellSummary | None) -> bool | None:
    """Whether a cell is good; None where the rack, a gate or the user kept it from saying."""
    if side is None or side.status in (NOT_RUN, Status.SKIPPED.value):
        return None
    if side.status == Status.PASSED.value:
        return True
    return False if side.failure_class in _PRODUCT else None


def _facts(run: RunSummary) -> dict[str, object]:
    """What must agree for speeds to compare. The simulator's are this host's; a phone's are not."""
    facts: dict[str, object] = {"target": run.run.target.value}
    if run.is_sim:
        facts["host"] = run.run.host
    return facts


def _sample_facts(samples: Sequence[SampleRecord]) -> dict[str, object]:
    facts: dict[str, object] = {
        "phone": ", ".join(sorted({sample.phone for sample in samples})),
        "SoC": ", ".join(sorted({sample.soc for sample in samples})),
        "target": ", ".join(sorted({sample.target.value for sample in samples})),
        "settings": "; ".join(sorted({str(sorted(sample.settings.items())) for sample in samples})),
    }
    clocks = {str(found) for sample in samples if (found := _vital(sample, "clocks")) is not None}
    return facts | ({"clocks": ", ".join(sorted(clocks))} if clocks else {})


def _vital(sample: SampleRecord, name: str) -> object:
    vitals = sample.raw.get("vitals")
    after: Any = vitals.get("after") if isinstance(vitals, dict) else None
    return after.get(name) if isinstance(after, dict) else None


def compare_speeds(
    base: Sequence[SampleRecord],
    candidate: Sequence[SampleRecord],
    reasons: Sequence[str] = (),
    rules: Rules = RULES,
) -> tuple[SpeedComparison, ...]:
    """Each metric of a cell by itself, from both sides' samples.

    Where samples carry the number of an ABBA pair, those alone are compared; else sessions of the same number.

    Args:
        base, candidate: samples of one attempt each.
        reasons: why they do not compare, as far as it is known already.
        rules: levels.
    """
    if any(sample.pair is not None for sample in (*base, *candidate)):
        base, candidate = ([sample for sample in side if sample.pair is not None] for side in (base, candidate))
    sides = [_by_session(base), _by_session(candidate)]
    numbers = sorted(sides[0].keys() & sides[1].keys())
    found = [*reasons, *invalid_reasons(_sample_facts(base), _sample_facts(candidate), [(0, 0)], [(0, 0)])]
    found += [
        f"session {number}: {reason}"
        for number in numbers
        for reason in invalid_reasons(
            {"prompt": _prompts(sides[0][number])},
            {"prompt": _prompts(sides[1][number])},
            _tokens(sides[0][number]),
            _tokens(sides[1][number]),
        )
    ]
    if throttled := sum(_vital(sample, "throttled") is True for sample in (*base, *candidate)):
        found.append(f"throttled in {throttled} session(s)")
    if not numbers:
        found.append("no session has its counterpart")
    return tuple(_speed(metric, sides, numbers, found, rules) for metric in JUDGED)


def _speed(
    metric: str,
    sides: Sequence[dict[int, list[SampleRecord]]],
    numbers: Sequence[int],
    reasons: Sequence[str],
    rules: Rules,
) -> SpeedComparison:
    medians = [
        session_medians((number, getattr(sample, metric)) for number, samples in side.items() for sample in samples)
        for side in sides
    ]
    middle = [statistics.median(values.values()) if values else None for values in medians]
    unmeasured = SpeedComparison(
        metric, Judgement.INVALID, Judgement.INVALID, base=middle[0], candidate=middle[1], reason="; ".join(reasons[:3])
    )
    if reasons:
        return unmeasured
    both = [number for number in numbers if medians[0].get(number, 0) > 0 and medians[1].get(number, 0) > 0]
    if not both:
        return dataclasses.replace(unmeasured, reason=f"{metric} was not measured on both sides")
    unmeasured = dataclasses.replace(unmeasured, each=tuple((n, medians[0][n], medians[1][n]) for n in both))
    way = BETTER[metric]
    d = log_ratios([medians[0][n] for n in both], [medians[1][n] for n in both], way)
    sign = -1 if way is Better.HIGHER else 1
    change = float(np.expm1(sign * d.mean()))
    if len(both) < 2:
        word = Judgement.INCONCLUSIVE
        return dataclasses.replace(
            unmeasured, judgement=word, alone=word, change=change, pairs=1, reason=_few(1, rules)
        )
    found = interval(d)
    half = float(found.half_width(1 - _LEVEL))
    edges = sorted(float(np.expm1(sign * float(found.mean) + reach)) for reach in (-half, half))
    enough = len(both) >= rules.first
    word = Judgement(str(judge(d, way, rules))) if enough else Judgement.INCONCLUSIVE
    reason = "" if enough else _few(len(both), rules)
    p = float(slowdown_p_values([float(found.mean)], [float(found.sd)], [len(both)], rules)[0])
    return dataclasses.replace(
        unmeasured, judgement=word, alone=word, change=change, lower=edges[0], upper=edges[1], pairs=len(both), p=p,
        reason=reason,
    )  # fmt: skip


def _few(pairs: int, rules: Rules) -> str:
    return f"{pairs} pair(s) of sessions, {rules.first} are needed: run `pytest -m device --ab`"


def _by_session(samples: Iterable[SampleRecord]) -> dict[int, list[SampleRecord]]:
    found: dict[int, list[SampleRecord]] = {}
    for sample in samples:
        found.setdefault(sample.session if sample.pair is None else sample.pair, []).append(sample)
    return found


def _prompts(samples: Sequence[SampleRecord]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(sample.prompt for sample in samples))


def _tokens(samples: Sequence[SampleRecord]) -> list[tuple[int, int]]:
    return [(sample.prompt_tokens, sample.generated_tokens) for sample in samples]


def compare_perplexities(
    base: Sequence[PerplexityRecord], candidate: Sequence[PerplexityRecord]
) -> dict[str, PerplexityComparison]:
    """Each of the phone's graphs that both sides scored, over the first tokens that both did; INVALID without any."""
    before = {score.graph: score for score in base if score.ground == "PHONE"}
    return {
        score.graph: _compare_scores(before[score.graph], score)
        for score in candidate
        if score.ground == "PHONE" and score.graph in before
    }


def _compare_scores(base: PerplexityRecord, candidate: PerplexityRecord) -> PerplexityComparison:
    if math.isfinite(base.nll_sum) and not math.isfinite(candidate.nll_sum):
        words = f"the candidate's log-likelihoods sum up to {-candidate.nll_sum:g}"
        return PerplexityComparison(Judgement.REGRESSED, math.inf, reason=words)
    tokens = alike((base, candidate)).tokens
    if tokens is None:
        words = f"{base.tokens} tokens against {candidate.tokens}, and no first ones that both records tell apart"
        return PerplexityComparison(Judgement.INVALID, math.nan, reason=words)
    sides = [_documents(score, tokens) for score in (base, candidate)]
    if [one.tokens for one in sides[0]] != [one.tokens for one in sides[1]]:  # other blocks, or none on one side
        sides = [[Document(tokens, sums(score)[tokens])] for score in (base, candidate)]
    found = compare_perplexity(sides[0], sides[1])
    if tokens == base.tokens == candidate.tokens:
        return found
    part = f"over the first {tokens} tokens, of {base.tokens} against {candidate.tokens}"
    return dataclasses.replace(found, reason=f"{found.reason}; {part}" if found.reason else part)


def _documents(score: PerplexityRecord, tokens: int) -> list[Document]:
    """The text's first tokens: block by block where the record has them, else as one."""
    found: list[Document] = []
    for count, nll in score.blocks:
        if sum(one.tokens for one in found) >= tokens:
            break
        found.append(Document(count, nll))
    return found or [Document(tokens, sums(score)[tokens])]


def compare_texts(base: Sequence[SampleRecord], candidate: Sequence[SampleRecord]) -> TextComparison | None:
    """The first reply to each prompt; None where no prompt was given to both."""
    sides = [{sample.prompt: reply_tokens(sample) for sample in reversed(side)} for side in (base, candidate)]
    prompts = [prompt for prompt in dict.fromkeys(sample.prompt for sample in base) if prompt in sides[1]]
    if not prompts:
        return None
    return compare_greedy([sides[0][prompt] for prompt in prompts], [sides[1][prompt] for prompt in prompts])


def reply_tokens(sample: SampleRecord) -> list[int]:
    """The tokens of a reply; of a record without them its characters."""
    tokens = _recorded_tokens(sample)
    return [ord(character) for character in sample.text] if tokens is None else tokens


def has_tokens(sample: SampleRecord) -> bool:
    """Whether a sample's record holds the tokens of its reply, and not the text alone."""
    return _recorded_tokens(sample) is not None


def _recorded_tokens(sample: SampleRecord) -> list[int] | None:
    turns = sample.raw.get("turns")
    first = turns[0] if isinstance(turns, list) and turns else None
    tokens = first.get("tokens") if isinstance(first, dict) else None
    return [int(token) for token in tokens] if isinstance(tokens, list) else None


def worst_change(cell: CellComparison) -> float:
    """How much worse the cell's worst REGRESSED speed or perplexity got, as a fraction; 0 of none."""
    found = [0.0]
    for speed in cell.speeds:
        if speed.judgement is Judgement.REGRESSED and speed.change is not None:
            found.append(-speed.change if BETTER[speed.metric] is Better.HIGHER else speed.change)
    found += [one.ratio - 1 for one in cell.perplexity.values() if one.judgement is Judgement.REGRESSED]
    return max(found)
