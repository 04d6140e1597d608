"""A against B on one phone: interleaved sessions, a log ratio a pair, Student's t over pairs.

All functions take arrays whose last axis is the pairs of one comparison; axes before it are comparisons at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from harness.verdicts.rules import RULES, Better, Judgement, Rules

Floats = NDArray[np.float64]
Words = NDArray[np.str_]


def abba(pairs: int, start: int = 0) -> tuple[tuple[str, str], ...]:
    """Which side goes first in each pair: ("A", "B"), ("B", "A"), … so that a drift in time cancels.

    Args:
        pairs: how many.
        start: number of the first one, when pairs are added to earlier ones.
    """
    return tuple(("A", "B") if number % 2 == 0 else ("B", "A") for number in range(start, start + pairs))


def log_ratios(base: ArrayLike, candidate: ArrayLike, better: Better) -> Floats:
    """d = ±ln(candidate / base) of each pair; positive is worse.

    Args:
        base, candidate: medians of sessions, positive, in the same unit; `[..., pairs]`.

    Raises:
        ValueError: a value that is not positive and finite has no logarithm.
    """
    a, b = np.asarray(base, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if not (np.all(np.isfinite(a) & (a > 0)) and np.all(np.isfinite(b) & (b > 0))):
        raise ValueError("speeds must be positive and finite")
    change: Floats = np.log(b / a)
    return -change if better is Better.HIGHER else change


def log_margin(better: Better, rules: Rules = RULES) -> float:
    """δ, the margin ε on the scale of `log_ratios`: −ln(1−ε) of a rate, ln(1+ε) of a latency."""
    return float(-np.log1p(-rules.margin) if better is Better.HIGHER else np.log1p(rules.margin))


@dataclass(frozen=True)
class Interval:
    """Mean and spread over pairs, on the scale of `log_ratios`. Arrays of one shape: that of the comparisons.

    Attributes:
        mean: d̄.
        sd: standard deviation of a pair's d.
        pairs: how many, k.
    """

    mean: Floats
    sd: Floats
    pairs: int

    def half_width(self, alpha: float) -> Floats:
        """t(1−α, k−1)·s/√k: what lies between the mean and a one-sided bound of level α."""
        return np.asarray(stats.t.ppf(1 - alpha, self.pairs - 1) * self.sd / np.sqrt(self.pairs), dtype=np.float64)


def interval(d: ArrayLike) -> Interval:
    """Mean and spread of log ratios `[..., pairs]`.

    Raises:
        ValueError: fewer than two pairs have no spread.
    """
    values = np.asarray(d, dtype=np.float64)
    if values.shape[-1] < 2:
        raise ValueError("at least two pairs are needed")
    return Interval(values.mean(-1), values.std(-1, ddof=1), values.shape[-1])


def judge(d: ArrayLike, better: Better, rules: Rules = RULES) -> Words:
    """The judgement of each comparison, by its own pairs alone.

    REGRESSED: the lower bound at level alpha is above 0, and the mean reaches the margin. IMPROVED: its mirror. OK: the
    upper bound at level ok_alpha is below the margin. Else INCONCLUSIVE.

    Args:
        d: `[..., pairs]`, see `log_ratios`.

    Returns:
        names of `Judgement`, of the shape of the comparisons.
    """
    found = interval(d)
    strict = found.half_width(rules.alpha)
    delta = log_margin(better, rules)
    # A gain of ε mirrors a loss of ε: the rate times 1+ε, the latency times 1−ε.
    gain = log_margin(Better.LOWER if better is Better.HIGHER else Better.HIGHER, rules)
    return np.select(
        [
            (found.mean - strict > 0) & (found.mean >= delta),
            (found.mean + strict < 0) & (found.mean <= -gain),
            found.mean + found.half_width(rules.ok_alpha) < delta,
        ],
        [Judgement.REGRESSED.value, Judgement.IMPROVED.value, Judgement.OK.value],
        Judgement.INCONCLUSIVE.value,
    )


def wants_more(judgement: ArrayLike) -> NDArray[np.bool_]:
    """Whether the first pairs leave something to measure again: they are neither OK nor IMPROVED.

    REGRESSED is among them: nothing blocks that was not measured again. That alone takes false alarms down tenfold.
    """
    words = np.asarray(judgement)
    return np.asarray((words != Judgement.OK.value) & (words != Judgement.IMPROVED.value))


def judge_extended(d: ArrayLike, better: Better, rules: Rules = RULES) -> tuple[Words, NDArray[Any], Interval]:
    """What measuring `first` pairs, and `more` where they are wanted, comes to.

    Args:
        d: `[..., first + more]`: what would be measured.

    Returns:
        the judgements; how many pairs each took; mean and spread over those pairs (its `pairs` is the most taken).
    """
    values = np.asarray(d, dtype=np.float64)
    early = values[..., : rules.first]
    first = judge(early, better, rules)
    more = wants_more(first)
    short, full = interval(early), interval(values)
    return (
        np.where(more, judge(values, better, rules), first),
        np.where(more, rules.first + rules.more, rules.first),
        Interval(np.where(more, full.mean, short.mean), np.where(more, full.sd, short.sd), full.pairs),
    )
