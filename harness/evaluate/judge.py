"""Measurements → checks: what had to hold, what was found. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from harness.evaluate.grounds import GroundScore, chance, noise, noise_chance, ratio
from harness.evaluate.text import NOISE_MULTIPLE, TextReport, describe
from harness.model_file import Bounds
from harness.results.records import CheckRecord


def perplexity_checks(
    cell: str, fp: GroundScore, qdq: GroundScore, phone: Sequence[GroundScore], bounds: Bounds
) -> tuple[CheckRecord, ...]:
    """Each graph's perplexity against QDQ's (both ways: a phone that beats its own reference is as suspect), the
    prefill graph's against the kv graph's, and QDQ's against the float model's (one way: quantisation may help by
    chance). Each over the tokens that both sides scored. The first two fail where the difference exceeds its bound by
    more than chance: over few tokens the noise of each, which `noise_check` bounds, moves the mean.
    """
    checks = [_phone_check(cell, qdq, phone, bounds)]
    graphs = {score.graph: score for score in phone}
    if "kv" in graphs and "prefill" in graphs:
        checks.append(_graphs_check(cell, graphs["prefill"], graphs["kv"], bounds))
    loss = ratio(qdq.each, fp.each)
    text = (
        f"token perplexity of QDQ {qdq.token_ppl:.3f}, of the float model {fp.token_ppl:.3f}: {loss:+.2%} "
        f"(bound {bounds.qdq_vs_fp_ppl:.0%})"
    )
    passed = loss <= bounds.qdq_vs_fp_ppl and len(fp.each) == len(qdq.each)
    return (*checks, CheckRecord(cell, "qdq_vs_fp_ppl", passed, loss, bounds.qdq_vs_fp_ppl, text))


def _phone_check(cell: str, qdq: GroundScore, phone: Sequence[GroundScore], bounds: Bounds) -> CheckRecord:
    bound = bounds.phone_vs_qdq_ppl
    found = [(score, ratio(score.each, qdq.each), chance(score.each, qdq.each)) for score in phone]
    passed = bool(found) and all(abs(value) <= bound + luck and score.each for score, value, luck in found)
    parts = [
        f"the phone's {one.graph} graph {one.token_ppl:.3f}: {value:+.2%} ± {luck:.2%} over {len(one.each)} tokens"
        for one, value, luck in found
    ]
    text = f"token perplexity of QDQ {qdq.token_ppl:.3f}, of {'; of '.join(parts)} (bound ±{bound:.0%})"
    worst = max((value for _, value, _ in found), key=abs, default=math.inf)
    return CheckRecord(cell, "phone_vs_qdq_ppl", passed, worst, bound, text)


def _graphs_check(cell: str, prefill: GroundScore, kv: GroundScore, bounds: Bounds) -> CheckRecord:
    value, luck = ratio(prefill.each, kv.each), chance(prefill.each, kv.each)
    count = min(len(prefill.each), len(kv.each))
    text = f"the prefill graph's perplexity is {value:+.2%} ± {luck:.2%} from the kv graph's over {count} tokens"
    text += f" (bound ±{bounds.prefill_vs_kv_ppl:.0%})"
    passed = abs(value) <= bounds.prefill_vs_kv_ppl + luck
    return CheckRecord(cell, "prefill_vs_kv_ppl", passed, value, bounds.prefill_vs_kv_ppl, text)


def worst_noise(qdq: GroundScore, phone: Sequence[GroundScore]) -> float:
    """RMS of the difference between a graph's and QDQ's log-likelihood of a token, nats; the noisiest graph's.

    This is what the HTP's integer arithmetic does to a logit in this model, measured where both saw the same text.
    """
    return max((noise(score.each, qdq.each) for score in phone), default=math.inf)


def noise_check(cell: str, qdq: GroundScore, phone: Sequence[GroundScore], bounds: Bounds) -> CheckRecord:
    """The noise of each graph is bounded; it fails where it exceeds the bound by more than chance."""
    bound = bounds.phone_vs_qdq_rms
    found = [(noise(score.each, qdq.each), noise_chance(score.each, qdq.each), score) for score in phone]
    passed = bool(found) and all(rms**2 <= bound**2 + luck for rms, luck, _ in found)
    parts = [f"{rms:.4f} over {len(score.each)} tokens of the {score.graph} graph" for rms, _, score in found]
    text = f"a token's log-likelihood on the phone is off QDQ's by {', '.join(parts)} (nats, RMS; bound {bound:g})"
    worst = max((rms for rms, _, _ in found), default=math.inf)
    return CheckRecord(cell, "phone_vs_qdq_rms", passed, worst, bound, text)


def logits_check(cell: str, found: Mapping[str, tuple[float, int]], bounds: Bounds) -> CheckRecord:
    """Each graph's logits against QDQ's; `found`: by graph, SQNR in dB and the tokens it is over."""
    bound = bounds.phone_vs_qdq_sqnr
    parts = [f"of the {graph} graph {db:.1f} dB over {tokens} tokens" for graph, (db, tokens) in found.items()]
    worst = min((db for db, _ in found.values()), default=-math.inf)
    text = f"SQNR of the phone's logits against QDQ's: {'; '.join(parts)} (bound {bound:g} dB)"
    return CheckRecord(cell, "phone_vs_qdq_sqnr", worst >= bound, worst, bound, text)


# What upstream leaves to the CPU on purpose: the cut between two shards, and its option --embedding-quantize.
_CPU_ON_PURPOSE = ("llama::fallback", "quantized_decomposed::embedding")


def delegation_check(cell: str, operators: Sequence[str]) -> CheckRecord:
    """Every node runs on the HTP; `operators`: kernels of a `.pte` beyond its delegates."""
    left = [name for name in operators if not name.startswith(_CPU_ON_PURPOSE)]
    text = f"left to the CPU: {', '.join(left)}" if left else "every node runs on the HTP"
    return CheckRecord(cell, "whole_on_htp", not left, float(len(left)), 0.0, text)


def text_check(cell: str, reports: tuple[TextReport, ...], noise: float) -> CheckRecord:
    """All replies against QDQ: no mismatch, near ties and what the witness vouches for allowed and counted."""
    compared = sum(report.compared for report in reports)
    ties = sum(len(report.near_ties) for report in reports)
    wrong = [difference for report in reports for difference in report.mismatches]
    near = f"near ties, within {NOISE_MULTIPLE:g} times {noise:.2g} nats"
    text = f"{compared} greedy tokens as QDQ's, {ties} of them {near}"
    if vouched := [difference for report in reports for difference in report.vouched]:
        text += f", {len(vouched)} as the prefill graph's instead ({describe(vouched[0])})"
    if wrong:
        text = f"{len(wrong)} of {compared} greedy tokens are not QDQ's; {describe(wrong[0])}"
    return CheckRecord(cell, "text_as_qdq", not wrong and compared > 0, float(len(wrong)), 0.0, text)
