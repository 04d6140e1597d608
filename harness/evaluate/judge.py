"""Measurements → checks: what had to hold, what was found. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.build.reference import Reference
from harness.evaluate.text import TextReport, describe
from harness.model_file import Bounds
from harness.results.records import CheckRecord, PerplexityRecord


def perplexity_checks(
    cell: str, reference: Reference, phone: PerplexityRecord, bounds: Bounds
) -> tuple[CheckRecord, ...]:
    """The phone's perplexity against QDQ's (both ways: a phone that beats its own reference is as suspect), and QDQ's
    against the float model's (one way: quantisation may help by chance).
    """
    phone_ratio = math.exp((phone.nll_sum + reference.qdq.log_likelihood) / phone.tokens) - 1
    qdq_ratio = math.exp((reference.fp.log_likelihood - reference.qdq.log_likelihood) / reference.qdq.tokens) - 1
    same = phone.tokens == reference.qdq.tokens
    return (
        CheckRecord(
            cell,
            "phone_vs_qdq_ppl",
            same and abs(phone_ratio) <= bounds.phone_vs_qdq_ppl,
            phone_ratio,
            bounds.phone_vs_qdq_ppl,
            f"token perplexity of the phone's {phone.graph} graph {phone.token_ppl:.3f}, "
            f"QDQ's {reference.qdq.token_perplexity:.3f}: {phone_ratio:+.2%} (bound ±{bounds.phone_vs_qdq_ppl:.0%}, "
            f"{phone.tokens} tokens)",
        ),
        CheckRecord(
            cell,
            "qdq_vs_fp_ppl",
            qdq_ratio <= bounds.qdq_vs_fp_ppl,
            qdq_ratio,
            bounds.qdq_vs_fp_ppl,
            f"token perplexity of QDQ {reference.qdq.token_perplexity:.3f}, of the float model "
            f"{reference.fp.token_perplexity:.3f}: {qdq_ratio:+.2%} (bound {bounds.qdq_vs_fp_ppl:.0%})",
        ),
    )


def noise(reference: Reference, phone_each: Sequence[float]) -> float:
    """RMS of the difference between the phone's and QDQ's log-likelihood of a token, nats; inf if unpaired.

    This is what the HTP's integer arithmetic does to a logit in this model, measured where both saw the same text.
    """
    if len(phone_each) != len(reference.qdq_each) or not phone_each:
        return math.inf
    squares = [(a - b) ** 2 for a, b in zip(phone_each, reference.qdq_each, strict=True)]
    return math.sqrt(math.fsum(squares) / len(squares))


def noise_check(cell: str, rms: float, bounds: Bounds) -> CheckRecord:
    """The noise itself is bounded, since near ties are measured by it."""
    text = (
        f"a token's log-likelihood on the phone is {rms:.4f} nats (RMS) from QDQ's (bound {bounds.phone_vs_qdq_rms:g})"
    )
    return CheckRecord(cell, "phone_vs_qdq_rms", rms <= bounds.phone_vs_qdq_rms, rms, bounds.phone_vs_qdq_rms, text)


def text_check(cell: str, reports: tuple[TextReport, ...]) -> CheckRecord:
    """All replies against QDQ: no mismatch, near ties allowed and counted."""
    compared = sum(report.compared for report in reports)
    ties = sum(len(report.near_ties) for report in reports)
    wrong = [difference for report in reports for difference in report.mismatches]
    text = f"{compared} greedy tokens as QDQ's, {ties} of them near ties"
    if wrong:
        text = f"{len(wrong)} of {compared} greedy tokens are not QDQ's; {describe(wrong[0])}"
    return CheckRecord(cell, "text_as_qdq", not wrong and compared > 0, float(len(wrong)), 0.0, text)
