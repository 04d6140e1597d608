"""A run without a base beside it, against the sessions of its history since the last accepted change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from harness.verdicts.paired import log_margin
from harness.verdicts.rules import RULES, Better, Judgement, Rules


@dataclass(frozen=True)
class Bound:
    """Where the next session is expected.

    Attributes:
        sessions: how many the history has, n.
        mean: geometric mean of them, in the metric's unit.
        worst, best: one-sided prediction bounds, in the metric's unit.
        spread: s·√(1+1/n): standard deviation of the next session's logarithm around the mean.
    """

    sessions: int
    mean: float
    worst: float
    best: float
    spread: float


def prediction_bound(history: Sequence[float], better: Better, rules: Rules = RULES) -> Bound | None:
    """x̄ ± t(level, n−1)·s·√(1+1/n) over the logarithms of the sessions' medians; None of fewer than history_least.

    Args:
        history: medians of sessions, positive, oldest first or not.
    """
    if len(history) < rules.history_least:
        return None
    logs = np.log(np.asarray(history, dtype=np.float64))
    count, mean = len(logs), float(logs.mean())
    spread = float(logs.std(ddof=1) * np.sqrt(1 + 1 / count))
    reach = float(stats.t.ppf(rules.history_level, count - 1)) * spread
    low, high = float(np.exp(mean - reach)), float(np.exp(mean + reach))
    worst, best = (low, high) if better is Better.HIGHER else (high, low)
    return Bound(count, float(np.exp(mean)), worst, best, spread)


def judge_against_history(
    value: float, history: Sequence[float], better: Better, rules: Rules = RULES
) -> tuple[Judgement, Bound | None, float]:
    """One session's median against the history.

    REGRESSED: beyond the worst that the history lets expect, and worse than its mean by the margin. IMPROVED: the
    mirror. INCONCLUSIVE: too short a history, or one so noisy that a change of the margin lies within its bounds while
    the value is worse than the mean by the margin. Else OK.

    Returns:
        the judgement; the bound; the p-value of a slowdown, 1 without a bound.
    """
    bound = prediction_bound(history, better, rules)
    if bound is None:
        return Judgement.INCONCLUSIVE, None, 1.0
    change = float(np.log(value / bound.mean))
    worse = -change if better is Better.HIGHER else change
    delta = log_margin(better, rules)
    reach = float(stats.t.ppf(rules.history_level, bound.sessions - 1)) * bound.spread
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.float64(worse) / bound.spread if worse else np.float64(0)
    p = float(stats.t.sf(t, bound.sessions - 1))
    if worse >= delta:
        return (Judgement.REGRESSED if worse > reach else Judgement.INCONCLUSIVE), bound, p
    if worse <= -log_margin(Better.LOWER if better is Better.HIGHER else Better.HIGHER, rules) and -worse > reach:
        return Judgement.IMPROVED, bound, p
    return Judgement.OK, bound, p
