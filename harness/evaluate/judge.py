"""Measurements → checks: what had to hold, what was found. Pure.

A figure is a mean over rows and has a standard error. It PASSED if it is within its bound by so many errors, FAILED if
it is beyond it by as many, and is INCONCLUSIVE between: then more is scored (`conduct.accuracy`), up to what the
witness has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum

from harness.evaluate.deviations import Deviations, Figure, gain, noise, worst_row
from harness.evaluate.grounds import GroundScore, ratio
from harness.evaluate.rules import RULES, VERSION, CellRules
from harness.evaluate.scored import Scored
from harness.model_file import Bounds
from harness.results.records import CheckRecord


class Verdict(StrEnum):
    """What a check comes to; all but PASSED are classes of failure, FAILED that of PRODUCT."""

    PASSED = "PASSED"
    FAILED = "FAILED"
    INCONCLUSIVE = "INCONCLUSIVE"
    INVALID = "INVALID"
    NOT_JUDGED = "NOT_JUDGED"


_WORST_FIRST = (Verdict.FAILED, Verdict.INVALID, Verdict.NOT_JUDGED, Verdict.INCONCLUSIVE, Verdict.PASSED)


DECODE, REPLIES = "kv graph", "replies"
"""What rows are of: the decode graph's scores, and the logits that the replies' tokens were chosen from."""


def make_check(
    cell: str, name: str, verdict: Verdict, text: str, value: float | None = None, bound: float | None = None
) -> CheckRecord:
    """A check's record, with the version of the rules."""
    return CheckRecord(cell, name, verdict is Verdict.PASSED, value, bound, text, verdict.value, VERSION)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """What several come to together; NOT_JUDGED of none."""
    return min(verdicts, key=_WORST_FIRST.index, default=Verdict.NOT_JUDGED)


def decide(figure: Figure, bound: float, rules: CellRules = RULES) -> Verdict:
    """A figure that is 0 of a perfect product against its bound, both ways; see the module."""
    if not figure.rows:
        return Verdict.NOT_JUDGED
    if math.isnan(figure.value) or math.isnan(figure.error):
        return Verdict.FAILED  # of rows that are no finite numbers: more of them decide nothing
    reach = rules.sure * figure.error
    if abs(figure.value) + reach <= bound:
        return Verdict.PASSED
    return Verdict.FAILED if abs(figure.value) - reach > bound else Verdict.INCONCLUSIVE


def row_checks(cell: str, parts: Mapping[str, Sequence[Deviations]], rules: CellRules = RULES) -> list[CheckRecord]:
    """Noise, gain and worst row of the logits against QDQ's; `parts`: rows by what they are of, as DECODE."""
    noises = {part: noise(rows, rules) for part, rows in parts.items()}
    # A factor is a graph's, and the replies are too few rows to know one to a percent: they count with decode's.
    graphs = {part: list(rows) for part, rows in parts.items() if part != REPLIES}
    if replies := parts.get(REPLIES):
        graphs.setdefault(DECODE, []).extend(replies)
    gains = {graph: gain(rows) for graph, rows in graphs.items()}
    return [
        _figures(
            cell, "phone_vs_qdq_noise", noises, rules.noise, rules, "noise of the logits {}, in units of rounding"
        ),
        _figures(cell, "phone_vs_qdq_gain", gains, rules.gain, rules, "factor of the logits {}, less 1"),
        _row_check(cell, parts, rules),
    ]


def _figures(
    cell: str, name: str, found: Mapping[str, Figure], bound: float, rules: CellRules, words: str
) -> CheckRecord:
    verdicts = [decide(figure, bound, rules) for figure in found.values()]
    said = "; ".join(
        f"of the {part} {figure.value:.4f} ± {rules.sure * figure.error:.4f} over {figure.rows} rows"
        for part, figure in found.items()
    )
    value = max((figure.value for figure in found.values()), key=abs, default=None)
    text = f"{words.format(said or 'of nothing')} (bound {bound:g})"
    return make_check(cell, name, worst(verdicts), text, value, bound)


def _row_check(cell: str, parts: Mapping[str, Sequence[Deviations]], rules: CellRules) -> CheckRecord:
    every = [part for rows in parts.values() for part in rows]
    count = sum(len(part) for part in every)
    value, where = worst_row(every)
    verdict = Verdict.NOT_JUDGED if not count else Verdict.PASSED if value <= rules.row else Verdict.FAILED
    text = f"the furthest of {count} rows is {value:.2f} times what rounding does there (bound {rules.row:g}): {where}"
    return make_check(cell, "phone_vs_qdq_row", verdict, text, value, rules.row)


def perplexity_checks(cell: str, scored: Scored, bounds: Bounds, rules: CellRules = RULES) -> list[CheckRecord]:
    """Each graph's perplexity against QDQ's (both ways: a phone that beats its own reference is as suspect), and the
    prefill graph's against the decode graph's: each over the tokens that both sides scored."""
    against = {f"{graph} graph": difference(*scored.against_qdq(graph)) for graph in sorted(scored.each)}
    checks = [
        _figures(
            cell, "phone_vs_qdq_ppl", against, bounds.phone_vs_qdq_ppl, rules, "log of the perplexity {} over QDQ's"
        )
    ]
    if {"kv", "prefill"} <= set(scored.each):
        pair = {"prefill graph": difference(*scored.common("prefill", "kv"))}
        words = "log of the perplexity {} over the decode graph's"
        checks.append(_figures(cell, "prefill_vs_kv_ppl", pair, bounds.prefill_vs_kv_ppl, rules, words))
    return checks


def difference(one: Sequence[float], other: Sequence[float]) -> Figure:
    """ln of the perplexity under `one` over that under `other`, from log-likelihoods of the same tokens, paired."""
    gaps = [b - a for a, b in zip(one, other, strict=True)]
    count = len(gaps)
    if not count:
        return Figure(math.inf, math.inf, 0)
    mean = math.fsum(gaps) / count
    spread = math.fsum((gap - mean) ** 2 for gap in gaps) / (count - 1) if count > 1 else math.inf
    return Figure(mean, math.sqrt(spread / count), count)


def qdq_check(cell: str, fp: GroundScore, qdq: GroundScore, bounds: Bounds) -> CheckRecord:
    """QDQ's perplexity against the float model's, over all of the text; one way: quantisation may help by chance."""
    loss = ratio(qdq.each, fp.each)
    bound = bounds.qdq_vs_fp_ppl
    text = (
        f"token perplexity of QDQ {qdq.token_ppl:.3f}, of the float model {fp.token_ppl:.3f}: {loss:+.2%} "
        f"(bound {bound:.0%})"
    )
    passed = loss <= bound and len(fp.each) == len(qdq.each)
    return make_check(cell, "qdq_vs_fp_ppl", Verdict.PASSED if passed else Verdict.FAILED, text, loss, bound)


# What upstream leaves to the CPU on purpose: the cut between two shards, and its option --embedding-quantize.
_CPU_ON_PURPOSE = ("llama::fallback", "quantized_decomposed::embedding")


def delegation_check(cell: str, operators: Sequence[str]) -> CheckRecord:
    """Every node runs on the HTP; `operators`: kernels of a `.pte` beyond its delegates."""
    left = [name for name in operators if not name.startswith(_CPU_ON_PURPOSE)]
    text = f"left to the CPU: {', '.join(left)}" if left else "every node runs on the HTP"
    verdict = Verdict.FAILED if left else Verdict.PASSED
    return make_check(cell, "whole_on_htp", verdict, text, float(len(left)), 0.0)


def grey(checks: Sequence[CheckRecord]) -> bool:
    """Whether more rows could decide what is not decided yet."""
    return any(check.verdict == Verdict.INCONCLUSIVE for check in checks)
