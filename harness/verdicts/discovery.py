"""Many comparisons in one run: which of those that look REGRESSED alone stay so among all.

Benjamini and Hochberg's procedure (`scipy.stats.false_discovery_control`) over the one-sided p-values of all
comparisons. A lone slow cell among 200 needs p ≤ q/200, which Student's t over eight pairs seldom reaches; so where
there are enough comparisons each one's variance is squeezed towards the others' (the moderated t of Smyth 2004, "Linear
models and empirical Bayes methods for assessing differential expression in microarray experiments", section 6.2).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from harness.verdicts.rules import RULES, Judgement, Rules

Floats = NDArray[np.float64]


def slowdown_p_values(mean: ArrayLike, sd: ArrayLike, pairs: ArrayLike, rules: Rules = RULES) -> Floats:
    """P(a mean at least as bad | no slowdown) of each comparison of one run.

    Args:
        mean, sd, pairs: of the log ratios of each comparison; `[comparisons]`.
    """
    m, s = np.asarray(mean, dtype=np.float64), np.asarray(sd, dtype=np.float64)
    df = np.asarray(pairs, dtype=np.float64) - 1
    if m.size == 0:
        return m
    variance, freedom = s**2, df
    if m.size >= rules.pool_from:
        squeezed, freedom = _squeeze(variance, df)
        # Never below its own: a few noisy phones among quiet ones must not borrow their quiet.
        variance = np.maximum(variance, squeezed)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = m / np.sqrt(variance / (df + 1))
    # Equal to the last bit in each pair: no noise, and no slowdown either.
    return np.asarray(stats.t.sf(np.where(np.isnan(t), 0.0, t), freedom), dtype=np.float64)


def control_discoveries(judgements: ArrayLike, p_values: ArrayLike, rules: Rules = RULES) -> NDArray[np.str_]:
    """The judgements of one run's comparisons, with those REGRESSED that do not hold among all made INCONCLUSIVE.

    Args:
        judgements, p_values: `[comparisons]`; those INVALID are no part of the family.
    """
    words, p = np.array(judgements, dtype="U12"), np.asarray(p_values, dtype=np.float64)
    family = words != Judgement.INVALID.value
    if not family.any():
        return words
    adjusted = np.ones(p.shape)
    adjusted[family] = stats.false_discovery_control(p[family], method="bh")
    words[(words == Judgement.REGRESSED.value) & (adjusted > rules.q)] = Judgement.INCONCLUSIVE.value
    return words


def _squeeze(variance: Floats, df: Floats) -> tuple[Floats, Floats]:
    """Variances drawn towards their common prior, and their degrees of freedom with it."""
    floor = 1e-5 * np.median(variance)
    if floor == 0:  # half of them never vary: nothing to learn from
        return variance, df
    logs = np.log(np.maximum(variance, floor))
    e = logs - special.digamma(df / 2) + np.log(df / 2)
    spread = float(np.var(e, ddof=1) - np.mean(special.polygamma(1, df / 2)))
    if spread <= 1e-6:  # no more spread than chance gives: one noise for all
        common = np.full(variance.shape, np.exp(e.mean()))
        return common, np.full(variance.shape, df.sum())
    half = optimize.brentq(lambda x: float(special.polygamma(1, x)) - spread, 1e-6, 1e7)
    prior = np.exp(e.mean() + special.digamma(half) - np.log(half))
    freedom = 2 * half
    return (freedom * prior + df * variance) / (freedom + df), np.minimum(freedom + df, df.sum())
