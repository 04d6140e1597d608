"""Perplexity of one text by two models, paired by document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from harness.verdicts.rules import Judgement

MARGIN = 0.01
"""A perplexity that is higher by less does not matter."""
LEVEL = 0.95
LEAST_DOCUMENTS = 5
"""From how many documents on the change's interval is asked too. One text scored again by the same graphs gives the
same numbers, so with fewer the change itself decides."""


@dataclass(frozen=True)
class Document:
    """One document, or one window of a text.

    Attributes:
        tokens: tokens scored.
        nll: −Σ of their log-likelihoods, nats.
    """

    tokens: int
    nll: float


@dataclass(frozen=True)
class PerplexityComparison:
    """The candidate's perplexity against the base's.

    Attributes:
        judgement: INVALID when the documents are not the same.
        ratio: exp(ΣΔNLL / Σtokens): 1.02 is 2% worse; NaN when INVALID.
        lower, upper: its two-sided 90% interval over documents; None of fewer than LEAST_DOCUMENTS.
        documents, tokens: what it is made of.
        reason: why INVALID; or what part of the text it is of.
        base, candidate: a token's perplexity on each side; None when INVALID.
    """

    judgement: Judgement
    ratio: float
    lower: float | None = None
    upper: float | None = None
    documents: int = 0
    tokens: int = 0
    reason: str = ""
    base: float | None = None
    candidate: float | None = None


def compare_perplexity(
    base: Sequence[Document], candidate: Sequence[Document], margin: float = MARGIN
) -> PerplexityComparison:
    """Compare two scores of the same documents.

    The interval is that of a ratio estimator: r = ΣΔ/ΣT, with the spread of Δᵢ − r·Tᵢ over documents (Cochran, Sampling
    Techniques, 1977, section 6.4).
    """
    if not base or len(base) != len(candidate):
        return _invalid(f"{len(base)} documents against {len(candidate)}")
    if [one.tokens for one in base] != [one.tokens for one in candidate]:
        return _invalid("the documents have other numbers of tokens: another tokenizer or text")
    tokens = np.array([one.tokens for one in base], dtype=np.float64)
    change = np.array([new.nll - old.nll for old, new in zip(base, candidate, strict=True)])
    if tokens.sum() <= 0 or not np.all(np.isfinite(change)):
        return _invalid("a log-likelihood is not finite, or no token was scored")
    count, mean = len(base), float(change.sum() / tokens.sum())
    before, after = (_exp(sum(one.nll for one in side) / float(tokens.sum())) for side in (base, candidate))
    found: tuple[float, float | None, float | None] = (_exp(mean), None, None)
    if count >= LEAST_DOCUMENTS:
        residual = change - mean * tokens
        error = math.sqrt(count / (count - 1) * float((residual**2).sum())) / float(tokens.sum())
        reach = float(stats.t.ppf(LEVEL, count - 1)) * error
        found = (_exp(mean), _exp(mean - reach), _exp(mean + reach))
    return replace(_judged(found, count, int(tokens.sum()), margin), base=before, candidate=after)


def _judged(
    found: tuple[float, float | None, float | None], count: int, tokens: int, margin: float
) -> PerplexityComparison:
    ratio, lower, upper = found
    low, high = (ratio, ratio) if lower is None or upper is None else (lower, upper)
    if ratio >= 1 + margin and low > 1:
        judgement = Judgement.REGRESSED
    elif ratio <= 1 - margin and high < 1:
        judgement = Judgement.IMPROVED
    elif high < 1 + margin:
        judgement = Judgement.OK
    else:
        judgement = Judgement.INCONCLUSIVE
    return PerplexityComparison(judgement, ratio, lower, upper, count, tokens)


def _invalid(reason: str) -> PerplexityComparison:
    return PerplexityComparison(Judgement.INVALID, math.nan, reason=reason)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
