"""Verdicts at their bounds: thresholds from just inside and just outside, numbers against a second reckoning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, special, stats

from harness.verdicts import (
    RULES,
    Better,
    Bound,
    Declared,
    Document,
    Interval,
    Judgement,
    PerplexityComparison,
    Rules,
    TextComparison,
    abba,
    compare_greedy,
    compare_perplexity,
    control_discoveries,
    differences,
    interval,
    invalid_reasons,
    judge,
    judge_against_history,
    judge_declared,
    judge_extended,
    log_ratios,
    prediction_bound,
    session_medians,
    slowdown_p_values,
    wants_more,
)
from harness.verdicts.metrics import BETTER, JUDGED, UNITS, better

HIGHER, LOWER = Better.HIGHER, Better.LOWER
REGRESSED, OK, IMPROVED = Judgement.REGRESSED, Judgement.OK, Judgement.IMPROVED
INCONCLUSIVE, INVALID = Judgement.INCONCLUSIVE, Judgement.INVALID

pytestmark = pytest.mark.filterwarnings("error")


def where(function: Callable[[float], float], target: float, near: float) -> float:
    """The x close to `near` with exactly function(x) == target, so that a threshold can be met to the last bit."""
    steps = [near]
    low = high = near
    for _ in range(2000):
        low, high = math.nextafter(low, -math.inf), math.nextafter(high, math.inf)
        steps += [low, high]
    return next(x for x in steps if function(x) == target)


# Pairs


def pattern(mean: float, sd: float, pairs: int = 5) -> NDArray[np.float64]:
    """Log ratios with exactly this mean and this standard deviation, up to rounding."""
    shape = np.linspace(-1, 1, pairs) ** 3 + 0.1
    shape = (shape - shape.mean()) / shape.std(ddof=1)
    return mean + sd * shape


def word(d: object, better: Better = HIGHER, rules: Rules = RULES) -> str:
    return str(judge(np.asarray(d), better, rules))


def test_a_pair_counts_what_its_number_is() -> None:
    assert abba(0) == ()
    assert abba(2) == (("A", "B"), ("B", "A"))
    assert abba(3, 4) == (("A", "B"), ("B", "A"), ("A", "B"))
    assert abba(1, 5) == (("B", "A"),)


def test_log_ratios_are_candidates_over_base() -> None:
    assert log_ratios([2.0, 4.0], [1.0, 8.0], LOWER).tolist() == [math.log(0.5), math.log(2.0)]
    assert log_ratios([2.0, 4.0], [1.0, 8.0], HIGHER).tolist() == [math.log(2.0), math.log(0.5)]
    assert log_ratios([5e-324], [5e-324], LOWER).tolist() == [0.0]


@pytest.mark.parametrize("wrong", [0.0, -2.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_one_value_of_either_side_that_is_no_speed_is_refused(side: int, wrong: float) -> None:
    sides = [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
    sides[side][1] = wrong
    with pytest.raises(ValueError, match=r"^speeds must be positive and finite$"):
        log_ratios(sides[0], sides[1], HIGHER)


def test_mean_and_spread_are_over_the_pairs_of_each_comparison() -> None:
    d = np.array([[0.1, 0.3, 0.2], [1.0, 1.0, 4.0]])
    found = interval(d)
    assert found.mean == pytest.approx([0.2, 2.0])
    assert found.sd == pytest.approx([0.1, math.sqrt(3.0)])
    assert found.pairs == 3
    assert interval([0.0, 1.0]).sd == pytest.approx(math.sqrt(0.5))
    # Student's t at 99% with 2 degrees of freedom is 6.9646 (any table).
    assert found.half_width(0.01) == pytest.approx([6.964557 * 0.1 / math.sqrt(3), 6.964557], rel=1e-6)
    assert found.half_width(0.05) == pytest.approx([2.919986 * 0.1 / math.sqrt(3), 2.919986], rel=1e-6)


@pytest.mark.parametrize("d", [[0.1], [[0.1], [0.2]]])
def test_one_pair_each_has_no_spread(d: list[object]) -> None:
    with pytest.raises(ValueError, match=r"^at least two pairs are needed$"):
        interval(d)


@pytest.mark.parametrize("better", [HIGHER, LOWER])
@pytest.mark.parametrize("pairs", [5, 8])
def test_regressed_needs_the_bound_at_99_percent_above_nothing(better: Better, pairs: int) -> None:
    mean = 0.06
    widest = mean * math.sqrt(pairs) / stats.t.ppf(0.99, pairs - 1)
    assert word(pattern(mean, widest * 0.999, pairs), better) == REGRESSED
    assert word(pattern(mean, widest * 1.001, pairs), better) == INCONCLUSIVE


@pytest.mark.parametrize("better", [HIGHER, LOWER])
@pytest.mark.parametrize("pairs", [5, 8])
def test_improved_needs_the_bound_at_99_percent_below_nothing(better: Better, pairs: int) -> None:
    mean = -0.06
    widest = -mean * math.sqrt(pairs) / stats.t.ppf(0.99, pairs - 1)
    assert word(pattern(mean, widest * 0.999, pairs), better) == IMPROVED
    # Not surely better, and surely not worse by the margin.
    assert word(pattern(mean, widest * 1.001, pairs), better) == OK


def test_a_loss_of_3_percent_is_the_margin_of_rates_and_of_latencies() -> None:
    for way, loss, gain in ((HIGHER, 0.97, 1.03), (LOWER, 1.03, 0.97)):
        sign = -1 if way is HIGHER else 1
        worse, gained = sign * math.log(loss), sign * math.log(gain)
        quiet = [pattern(at, 1e-5) for at in (worse + 1e-5, worse - 1e-4, gained - 1e-5, gained + 1e-4)]
        assert [word(d, way) for d in quiet] == [REGRESSED, OK, IMPROVED, OK]


@pytest.mark.parametrize("better", [HIGHER, LOWER])
@pytest.mark.parametrize("pairs", [5, 8])
def test_ok_needs_the_bound_at_95_percent_below_the_margin(better: Better, pairs: int) -> None:
    delta = -math.log(0.97) if better is HIGHER else math.log(1.03)
    for mean in (0.0, 0.01, -0.02):
        widest = (delta - mean) * math.sqrt(pairs) / stats.t.ppf(0.95, pairs - 1)
        assert word(pattern(mean, widest * 0.999, pairs), better) == OK
        assert word(pattern(mean, widest * 1.001, pairs), better) == INCONCLUSIVE


def test_a_mean_right_at_the_margin_has_reached_it() -> None:
    """Four equal pairs have their own value for a mean, to the last bit."""
    rules = replace(RULES, margin=0.5)
    worse = -math.log1p(-0.5)
    assert word([worse] * 4, HIGHER, rules) == REGRESSED
    assert word([math.log1p(0.5)] * 4, LOWER, rules) == REGRESSED
    assert word([-math.log1p(0.5)] * 4, HIGHER, rules) == IMPROVED
    assert word([math.log1p(-0.5)] * 4, LOWER, rules) == IMPROVED
    assert word([math.nextafter(worse, 0)] * 4, HIGHER, rules) == OK


def test_without_a_margin_no_change_at_all_is_not_called_anything() -> None:
    assert word([0.0] * 4, HIGHER, replace(RULES, margin=0.0)) == INCONCLUSIVE
    assert word([0.0] * 4, LOWER, replace(RULES, margin=0.0)) == INCONCLUSIVE


def test_all_but_ok_and_improved_is_measured_again() -> None:
    words = [REGRESSED, OK, IMPROVED, INCONCLUSIVE, INVALID]
    assert wants_more([one.value for one in words]).tolist() == [True, False, False, True, True]


def test_five_pairs_and_three_more_where_they_are_wanted() -> None:
    quiet = [*pattern(0.0, 0.001), 0.5, 0.5, 0.5]
    slow = [*pattern(0.06, 0.001), *pattern(0.07, 0.002, 3)]
    noisy = [*pattern(0.0, 0.2), *pattern(0.0, 0.2, 3)]
    fast = [*pattern(-0.06, 0.001), 0.5, 0.5, 0.5]
    words, pairs, found = judge_extended([quiet, slow, noisy, fast], HIGHER)
    assert words.tolist() == [OK, REGRESSED, INCONCLUSIVE, IMPROVED]
    assert pairs.tolist() == [5, 8, 8, 5]
    every = [quiet[:5], slow, noisy, fast[:5]]
    assert found.mean == pytest.approx([np.mean(d) for d in every])
    assert found.sd == pytest.approx([np.std(d, ddof=1) for d in every])
    assert found.pairs == 8


def test_the_rules_say_how_many_pairs() -> None:
    rules = replace(RULES, first=3, more=2)
    d = [0.0, 0.3, -0.3, 0.01, 0.02]
    words, pairs, found = judge_extended(d, LOWER, rules)
    assert (str(words), int(pairs), found.pairs) == (INCONCLUSIVE, 5, 5)
    words, pairs, found = judge_extended([-0.06, -0.061, -0.0605, 0.5, 0.5], LOWER, rules)
    assert (str(words), int(pairs)) == (IMPROVED, 3)
    assert float(found.mean) == pytest.approx(-0.0605)


def test_numbers_of_single_precision_are_reckoned_with_in_double() -> None:
    half = np.array([20.1, 19.7, 20.3, 20.2, 19.9, 20.4, 20.0, 19.8, 20.6, 20.5], dtype=np.float32)
    full, third = half.astype(np.float64), half[::-1].astype(np.float64)
    assert log_ratios(half, half[::-1], LOWER).tolist() == log_ratios(full, third, LOWER).tolist()
    d = (half / 1000).astype(np.float32)
    exact = d.astype(np.float64)
    assert float(interval(d).mean) == float(interval(exact).mean)
    assert float(interval(d).sd) == float(interval(exact).sd)
    assert float(judge_extended(d[:8], HIGHER)[2].sd) == float(judge_extended(exact[:8], HIGHER)[2].sd)
    assert prediction_bound(list(half), HIGHER) == prediction_bound(list(map(float, half)), HIGHER)
    few = d[:3]
    assert slowdown_p_values(few, few, [5, 5, 5]).tolist() == slowdown_p_values(exact[:3], exact[:3], [5] * 3).tolist()


# A night against history


def spread_out(mean: float, sd: float, count: int = 10) -> list[float]:
    """Sessions whose logarithms have this mean and standard deviation."""
    return [math.exp(one) for one in pattern(mean, sd, count)]


@pytest.mark.parametrize("better", [HIGHER, LOWER])
@pytest.mark.parametrize("count", [10, 14])
def test_every_number_of_the_bound(better: Better, count: int) -> None:
    found = prediction_bound(spread_out(math.log(20.0), 0.05, count), better)
    assert found is not None
    spread = 0.05 * math.sqrt(1 + 1 / count)
    reach = stats.t.ppf(0.995, count - 1) * spread
    low, high = 20.0 * math.exp(-reach), 20.0 * math.exp(reach)
    worst, best = (low, high) if better is HIGHER else (high, low)
    assert found.sessions == count
    assert (found.mean, found.worst, found.best, found.spread) == pytest.approx((20.0, worst, best, spread))


def test_ten_sessions_are_a_history_and_nine_are_not() -> None:
    assert prediction_bound([20.0] * 9, HIGHER) is None
    assert prediction_bound([20.0] * 10, HIGHER) is not None
    assert prediction_bound([20.0, 21.0], HIGHER, replace(RULES, history_least=2)) is not None
    assert judge_against_history(20.0, [20.0] * 10, HIGHER)[0] is OK
    assert judge_against_history(20.0, [20.0] * 9, HIGHER) == (INCONCLUSIVE, None, 1.0)


def moved(mean: float, worse: float, better: Better) -> float:
    """The value that is worse than the mean by so much, on the logarithmic scale."""
    return mean * math.exp(-worse if better is HIGHER else worse)


@pytest.mark.parametrize("better", [HIGHER, LOWER])
def test_beyond_what_history_lets_expect(better: Better) -> None:
    """A noisy history: the worst it lets expect is farther than the margin."""
    history = spread_out(math.log(20.0), 0.05, 12)
    reach = stats.t.ppf(0.995, 11) * 0.05 * math.sqrt(1 + 1 / 12)
    cases = {1.001: REGRESSED, 0.999: INCONCLUSIVE, -1.001: IMPROVED, -0.999: OK}
    for factor, expected in cases.items():
        judged, bound, p = judge_against_history(moved(20.0, factor * reach, better), history, better)
        assert judged is expected, factor
        assert bound == prediction_bound(history, better)
        assert p == pytest.approx(stats.t.sf(factor * stats.t.ppf(0.995, 11), 11), rel=1e-6)


@pytest.mark.parametrize("better", [HIGHER, LOWER])
def test_the_margin_where_history_is_quiet(better: Better) -> None:
    history = spread_out(math.log(20.0), 1e-6, 12)
    loss, gain = (0.97, 1.03) if better is HIGHER else (1.03, 0.97)
    inside, outside = (1 - 1e-4, 1 + 1e-4)
    for edge, expected in ((loss, REGRESSED), (gain, IMPROVED)):
        for side in (inside, outside):
            beyond = (side < 1) == (edge < 1)
            judged = judge_against_history(20.0 * edge * side, history, better)[0]
            assert judged is (expected if beyond else OK), (edge, side)


def test_a_value_right_at_the_margin_has_reached_it() -> None:
    rules = replace(RULES, margin=0.5)
    steady = [1.0] * 10  # their mean is 1 to the last bit
    assert judge_against_history(0.5, steady, HIGHER, rules)[0] is REGRESSED
    assert judge_against_history(1.5, steady, LOWER, rules)[0] is REGRESSED
    assert judge_against_history(1.5, steady, HIGHER, rules)[0] is IMPROVED
    assert judge_against_history(0.5, steady, LOWER, rules)[0] is IMPROVED
    assert judge_against_history(0.51, steady, HIGHER, rules)[0] is OK
    assert judge_against_history(1.49, steady, LOWER, rules)[0] is OK


def test_a_value_right_at_the_worst_is_still_expected() -> None:
    history = spread_out(0.0, 0.4, 10)
    bound = prediction_bound(history, LOWER)
    assert bound is not None
    reach = float(stats.t.ppf(RULES.history_level, 9)) * bound.spread
    worst = where(lambda x: float(np.log(x / bound.mean)), reach, bound.mean * math.exp(reach))
    assert judge_against_history(worst, history, LOWER)[0] is INCONCLUSIVE
    assert judge_against_history(worst, history, HIGHER)[0] is OK
    assert judge_against_history(worst * (1 + 1e-12), history, LOWER)[0] is REGRESSED
    assert judge_against_history(worst * (1 + 1e-12), history, HIGHER)[0] is IMPROVED


def test_where_nothing_ever_varied_any_change_is_sure_and_none_is_even() -> None:
    steady = [1.0] * 10
    assert judge_against_history(1.0, steady, HIGHER) == (OK, Bound(10, 1.0, 1.0, 1.0, 0.0), 0.5)
    assert judge_against_history(0.99, steady, HIGHER)[2] == 0.0
    assert judge_against_history(1.01, steady, HIGHER)[2] == 1.0
    assert judge_against_history(1.0, steady, HIGHER, replace(RULES, margin=0.0))[0] is INCONCLUSIVE


# Declared bounds


def test_a_declared_bound_holds_right_at_it_and_not_beyond() -> None:
    better = {"decode_tok_s": HIGHER, "pte_bytes": LOWER}
    bounds = {"pte_bytes": 500.0, "decode_tok_s": 20.0}
    for value, size, expected in ((20.0, 500.0, True), (19.999, 500.001, False), (20.001, 499.999, True)):
        found = judge_declared({"decode_tok_s": value, "pte_bytes": size}, bounds, better)
        assert found == (
            Declared("pte_bytes", 500.0, LOWER, size, expected),
            Declared("decode_tok_s", 20.0, HIGHER, value, expected),
        )


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("better", [HIGHER, LOWER])
def test_what_is_not_finite_keeps_no_bound(value: float, better: Better) -> None:
    (found,) = judge_declared({"a": value}, {"a": 1.0}, {"a": better})
    assert found.passed is False


def test_a_measured_zero_is_measured() -> None:
    (found,) = judge_declared({"a": 0.0, "b": None}, {"a": 1.0, "b": 1.0, "c": 1.0}, dict.fromkeys("abc", HIGHER))
    assert found.passed is False
    assert found.words == "a 0, declared at least 1"
    assert replace(found, better=LOWER).words == "a 0, declared at most 1"


# Many comparisons


def moderated(mean: NDArray[np.float64], sd: NDArray[np.float64], pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smyth's moderated t, reckoned otherwise: the prior's degrees of freedom by bisection over their logarithm."""
    df, variance = pairs - 1.0, sd**2
    lifted = np.maximum(variance, np.median(variance) / 100_000)
    e = np.log(lifted) - special.psi(df / 2) + np.log(df / 2)
    excess = ((e - e.mean()) ** 2).sum() / (e.size - 1) - special.polygamma(1, df / 2).mean()
    root = optimize.bisect(lambda x: math.log(special.polygamma(1, math.exp(x)) / excess), -12, 18, xtol=1e-13)
    half = math.exp(root)
    prior = math.exp(e.mean() + special.psi(half) - math.log(half))
    posterior = (2 * half * prior + df * variance) / (2 * half + df)
    t = mean / np.sqrt(np.maximum(variance, posterior) / pairs)
    return np.asarray(stats.t.sf(t, np.minimum(2 * half + df, df.sum())))


def family(seed: int, count: int, spread: float) -> tuple[NDArray[np.float64], ...]:
    rng = np.random.default_rng(seed)
    pairs = rng.choice([5, 8], count).astype(float)
    own = 0.02 * np.exp(rng.normal(0, spread, count))
    return rng.normal(0.01, 0.02, count), own, pairs


@pytest.mark.parametrize(("seed", "count", "spread"), [(1, 20, 1.0), (2, 40, 0.8), (3, 25, 2.0)])
def test_pooled_p_values_are_smyths(seed: int, count: int, spread: float) -> None:
    mean, sd, pairs = family(seed, count, spread)
    assert slowdown_p_values(mean, sd, pairs) == pytest.approx(moderated(mean, sd, pairs), rel=1e-6)


def test_a_comparison_that_never_varies_is_taken_for_a_hundred_thousandth_of_the_middle() -> None:
    mean, sd, pairs = family(4, 24, 1.0)
    for value in (0.0, 1e-6, 5e-5):
        sd[3] = value
        assert slowdown_p_values(mean, sd, pairs) == pytest.approx(moderated(mean, sd, pairs), rel=1e-6)


def test_hardly_more_spread_than_chance_gives_is_still_reckoned_with() -> None:
    mean, sd, pairs = family(5, 30, 1.0)
    logs, pairs = np.log(sd) - np.log(sd).mean(), np.full(30, 6.0)

    def excess(scale: float) -> float:
        e = 2 * scale * logs
        return float(np.var(e, ddof=1) - special.polygamma(1, 2.5))

    for wanted in (1.5e-6, 0.01):
        scale = optimize.bisect(lambda x, wanted=wanted: excess(x) - wanted, 0.01, 10, xtol=1e-16)
        sd = 0.02 * np.exp(scale * logs)
        assert slowdown_p_values(mean, sd, pairs) == pytest.approx(moderated(mean, sd, pairs), rel=1e-9)


def test_noise_alike_is_one_noise_for_all() -> None:
    rng = np.random.default_rng(6)
    mean, sd = rng.normal(0.01, 0.01, 30), np.full(30, 0.02)
    sd[::2] *= 1.05
    pairs = np.where(np.arange(30) < 10, 5.0, 8.0)
    df = pairs - 1
    # The common variance: the geometric mean, each logarithm without what its degrees of freedom take off.
    common = math.exp(np.mean(np.log(sd**2) - special.psi(df / 2) + np.log(df / 2)))
    t = mean / np.sqrt(np.maximum(sd**2, common) / pairs)
    assert slowdown_p_values(mean, sd, pairs) == pytest.approx(stats.t.sf(t, df.sum()), rel=1e-9)


def test_never_below_its_own_noise() -> None:
    """A few noisy phones among quiet ones borrow none of their quiet; a quiet one among noisy ones does pay."""
    sd = np.array([0.2, 0.2, *np.geomspace(0.001, 0.01, 28)])
    mean, pairs = np.full(30, 0.02), np.full(30, 6)
    p = slowdown_p_values(mean, sd, pairs)
    alone = slowdown_p_values(mean[:2], sd[:2], pairs[:2])
    assert np.all(p[:2] >= alone - 0.05)
    assert p[0] > 0.3
    assert p[2] > slowdown_p_values(mean[2:3], sd[2:3], pairs[2:3])[0] / 10


def test_pooling_begins_with_twenty_comparisons() -> None:
    mean, sd, pairs = family(7, 20, 1.0)
    own = stats.t.sf(mean / (sd / np.sqrt(pairs)), pairs - 1)
    assert slowdown_p_values(mean[:19], sd[:19], pairs[:19]) == pytest.approx(own[:19], rel=1e-12)
    assert slowdown_p_values(mean, sd, pairs) == pytest.approx(moderated(mean, sd, pairs), rel=1e-6)
    few = replace(RULES, pool_from=5)
    assert slowdown_p_values(mean[:5], sd[:5], pairs[:5], few)[0] != pytest.approx(own[0], rel=1e-3)


def test_where_half_never_vary_nothing_is_pooled() -> None:
    mean, sd, pairs = np.full(30, 0.01), np.zeros(30), np.full(30, 5)
    sd[:14] = 0.02
    p = slowdown_p_values(mean, sd, pairs)
    assert p[:14] == pytest.approx(np.full(14, stats.t.sf(0.01 / (0.02 / math.sqrt(5)), 4)))
    assert p[14:].tolist() == [0.0] * 16


def test_p_values_where_nothing_varies() -> None:
    assert slowdown_p_values([0.0, 0.1, -0.1], [0.0] * 3, [5, 5, 8]).tolist() == [0.5, 0.0, 1.0]
    assert slowdown_p_values([], [], []).tolist() == []
    assert slowdown_p_values([], [], [], replace(RULES, pool_from=0)).tolist() == []


def test_the_false_discovery_rate_is_one_and_a_half_percent() -> None:
    """Of two, the second is held against q itself."""
    words = [REGRESSED.value, REGRESSED.value]
    assert control_discoveries(words, [0.001, 0.015]).tolist() == [REGRESSED, REGRESSED]
    assert control_discoveries(words, [0.001, 0.0151]).tolist() == [REGRESSED, INCONCLUSIVE]
    assert control_discoveries(words, [0.0151, 0.0151]).tolist() == [INCONCLUSIVE, INCONCLUSIVE]
    assert control_discoveries(words, [0.001, 0.04], replace(RULES, q=0.05)).tolist() == words


def test_only_regressed_is_taken_back() -> None:
    words = [one.value for one in (OK, IMPROVED, INCONCLUSIVE, INVALID, REGRESSED)]
    assert control_discoveries(words, [0.9] * 5).tolist() == [*words[:4], INCONCLUSIVE]
    # Those that are INVALID count neither way: with them among the family the first would not hold.
    many = [REGRESSED.value, *[INVALID.value] * 9]
    assert control_discoveries(many, [0.01, *[1.0] * 9]).tolist() == many
    assert control_discoveries([INVALID.value, REGRESSED.value], [0.0, 0.02]).tolist() == [INVALID, INCONCLUSIVE]


def test_the_judgements_given_are_not_changed() -> None:
    words = np.array([REGRESSED.value, OK.value])
    control_discoveries(words, [0.9, 0.9])
    assert words.tolist() == [REGRESSED, OK]


# Text


@pytest.mark.parametrize(
    ("base", "candidate", "expected"),
    [
        ([], [], TextComparison(True, 0)),
        ([[1, 2]], [[1, 2]], TextComparison(True, 1)),
        ([[1], [2]], [[1], [2]], TextComparison(True, 2)),
        ([[1]], [[1], [2]], TextComparison(False, 2, 1, 1, 0)),
        ([[1], [2], [3]], [[1]], TextComparison(False, 3, 2, 1, 0)),
        ([[1]], [[2]], TextComparison(False, 1, 1, 0, 0)),
        ([[1, 2], [5], [3, 4]], [[1, 9], [5], [3]], TextComparison(False, 3, 2, 0, 1)),
        ([[1], [3, 4]], [[1], [3, 4, 5, 6]], TextComparison(False, 2, 1, 1, 2)),
        ([[0]], [[]], TextComparison(False, 1, 1, 0, 0)),
    ],
)
def test_text_against_text(base: list[list[int]], candidate: list[list[int]], expected: TextComparison) -> None:
    assert compare_greedy(base, candidate) == expected


def test_an_empty_reply_that_one_side_lacks_differs_too() -> None:
    assert compare_greedy([[1]], [[1], []]).equal is False
    assert compare_greedy([[1], []], [[1]]).equal is False
    assert compare_greedy([[1], []], [[1]]).replies == 2


def test_equal_text_differs_nowhere() -> None:
    found = compare_greedy([[1], [2]], [[1], [2]])
    assert (found.different, found.prompt, found.place) == (0, None, None)


def test_text_in_words() -> None:
    assert compare_greedy([[1], [2]], [[1], [2]]).words == "2 greedy replies, the same to the last token"
    found = compare_greedy([[1], [2], [3]], [[1], [2, 5], [4]])
    assert found.words == "2 of 3 greedy replies differ; the first is reply 1, from token 1 on"


# Metrics


@pytest.mark.parametrize(
    ("metric", "way"),
    [
        ("load_ms", LOWER),
        ("ttft_ms", LOWER),
        ("prefill_tok_s", HIGHER),
        ("decode_tok_s", HIGHER),
        ("peak_rss_mb", LOWER),
        ("ttft_ms@64[prefill]", LOWER),
        ("decode_tok_s@x", HIGHER),
        ("token_ppl[kv]", LOWER),
        ("word_ppl[prefill]", LOWER),
        ("my_token_ppl", None),
        ("phone_vs_qdq_ppl", None),
    ],
)
def test_which_way_a_metric_gets_better(metric: str, way: Better | None) -> None:
    assert better(metric) is way


def test_the_metrics_of_speed() -> None:
    assert set(BETTER) == {"load_ms", "ttft_ms", "prefill_tok_s", "decode_tok_s", "peak_rss_mb"}
    assert JUDGED == ("ttft_ms", "prefill_tok_s", "decode_tok_s")
    assert {name: unit for name, unit in UNITS.items() if name in BETTER} == {
        "load_ms": "ms",
        "ttft_ms": "ms",
        "prefill_tok_s": "tok/s",
        "decode_tok_s": "tok/s",
        "peak_rss_mb": "MB",
    }


# Perplexity


def scores(*pairs: tuple[int, float]) -> list[Document]:
    return [Document(tokens, nll) for tokens, nll in pairs]


def shifted(base: Sequence[Document], *deltas: float) -> list[Document]:
    return [Document(one.tokens, one.nll + delta) for one, delta in zip(base, deltas, strict=True)]


FIVE = scores((100, 400.0), (50, 180.0), (80, 300.0), (120, 500.0), (150, 640.0))


@pytest.mark.parametrize("count", [5, 12])
def test_every_number_of_a_perplexitys_change(count: int) -> None:
    """The ratio estimator's standard error, as Cochran has it, with the sum of tokens for n times their mean."""
    rng = np.random.default_rng(count)
    tokens, old = rng.integers(20, 300, count), rng.normal(4, 0.5, count)
    delta = rng.normal(0.02, 0.03, count) * tokens
    base = [Document(int(t), float(t * level)) for t, level in zip(tokens, old, strict=True)]
    found = compare_perplexity(base, shifted(base, *map(float, delta)))
    ratio = delta.sum() / tokens.sum()
    variance = ((delta - ratio * tokens) ** 2).sum() / (count - 1)
    error = math.sqrt(variance / count) / tokens.mean()
    reach = stats.t.ppf(0.95, count - 1) * error
    assert found.ratio == pytest.approx(math.exp(ratio))
    assert (found.lower, found.upper) == pytest.approx((math.exp(ratio - reach), math.exp(ratio + reach)))
    assert (found.documents, found.tokens, found.reason) == (count, int(tokens.sum()), "")
    whole = sum(one.nll for one in base)
    assert found.base == pytest.approx(math.exp(whole / tokens.sum()))
    assert found.candidate == pytest.approx(math.exp((whole + delta.sum()) / tokens.sum()))


def test_an_interval_is_asked_from_five_documents_on() -> None:
    worse = [0.0, 0.0, 0.0, 0.0, 30.0]
    five = compare_perplexity(FIVE, shifted(FIVE, *worse))
    assert five.judgement is INCONCLUSIVE
    assert five.lower is not None
    assert five.upper is not None
    four = compare_perplexity(FIVE[1:], shifted(FIVE[1:], *worse[1:]))
    assert (four.judgement, four.lower, four.upper, four.documents) == (REGRESSED, None, None, 4)


def alike(change: float, count: int = 4, margin: float | None = None) -> PerplexityComparison:
    """Documents that all change by so much a token."""
    base = [Document(100, 400.0)] * count
    candidate = [Document(100, 400.0 + 100 * change)] * count
    return compare_perplexity(base, candidate) if margin is None else compare_perplexity(base, candidate, margin)


@pytest.mark.parametrize("count", [1, 4, 5, 9])
def test_one_percent_is_what_matters(count: int) -> None:
    assert alike(math.log(1.0101), count).judgement is REGRESSED
    assert alike(math.log(1.0099), count).judgement is OK
    assert alike(math.log(0.9899), count).judgement is IMPROVED
    assert alike(math.log(0.9901), count).judgement is OK
    assert alike(math.log(1.03), count, 0.05).judgement is OK


def test_a_change_right_at_the_margin_has_reached_it() -> None:
    worse, better = alike(0.3), alike(-0.3)
    assert alike(0.3, margin=worse.ratio - 1).judgement is REGRESSED
    assert alike(-0.3, margin=1 - better.ratio).judgement is IMPROVED
    assert alike(0.3, margin=worse.ratio - 1 + 1e-9).judgement is OK


def test_without_a_margin_equal_scores_are_not_called_anything() -> None:
    assert alike(0.0, margin=0.0).judgement is INCONCLUSIVE
    assert alike(0.0, 7, margin=0.0).judgement is INCONCLUSIVE


def uneven(mean: float, spread: float) -> PerplexityComparison:
    """Six documents of 100 tokens whose change has this mean a token and this 90% interval around it."""
    reach = float(stats.t.ppf(0.95, 5))
    deltas = pattern(mean, spread * math.sqrt(6) / reach, 6) * 100
    base = [Document(100, 400.0)] * 6
    return compare_perplexity(base, shifted(base, *map(float, deltas)))


def test_worse_needs_its_interval_above_nothing_and_better_below() -> None:
    assert uneven(0.03, 0.0299).judgement is REGRESSED
    assert uneven(0.03, 0.0301).judgement is INCONCLUSIVE
    assert uneven(-0.03, 0.0299).judgement is IMPROVED
    assert uneven(-0.03, 0.0301).judgement is OK  # its upper end is far below the margin
    assert uneven(-0.03, 0.045).judgement is INCONCLUSIVE
    # The whole interval must lie below the margin to be OK.
    assert uneven(0.0, math.log(1.01) - 1e-5).judgement is OK
    assert uneven(0.0, math.log(1.01) + 1e-5).judgement is INCONCLUSIVE


def test_a_single_token_is_scored_and_none_is_not() -> None:
    found = compare_perplexity(scores((1, 2.0)), scores((1, 2.0)))
    assert (found.judgement, found.ratio, found.tokens) == (OK, 1.0, 1)
    nothing = compare_perplexity(scores((0, 0.0)), scores((0, 0.0)))
    assert nothing.judgement is INVALID
    assert nothing.reason == "a log-likelihood is not finite, or no token was scored"


@pytest.mark.parametrize(
    ("base", "candidate", "reason"),
    [
        ([], [], "0 documents against 0"),
        ([], FIVE, "0 documents against 5"),
        (FIVE, FIVE[:4], "5 documents against 4"),
        (FIVE, [], "5 documents against 0"),
        (FIVE, [*FIVE[:4], Document(151, 640.0)], "the documents have other numbers of tokens"),
        (FIVE, [*FIVE[1:], FIVE[0]], "the documents have other numbers of tokens"),
        (FIVE, [*FIVE[:4], Document(150, math.nan)], "a log-likelihood is not finite"),
        ([*FIVE[:4], Document(150, math.inf)], FIVE, "a log-likelihood is not finite"),
    ],
)
def test_what_does_not_compare_says_why_and_has_no_numbers(
    base: list[Document], candidate: list[Document], reason: str
) -> None:
    found = compare_perplexity(base, candidate)
    assert found.judgement is INVALID
    assert found.reason.startswith(reason)
    assert math.isnan(found.ratio)
    assert (found.lower, found.upper, found.base, found.candidate) == (None, None, None, None)
    assert (found.documents, found.tokens) == (0, 0)


def test_a_perplexity_beyond_all_numbers_is_worse_without_bound() -> None:
    found = compare_perplexity(scores((1, 2.0)), scores((1, 1000.0)))
    assert (found.judgement, found.ratio, found.candidate) == (REGRESSED, math.inf, math.inf)
    assert found.base == pytest.approx(math.exp(2.0))


# Sessions and validity


def test_what_was_not_measured_makes_no_session() -> None:
    measured = [("b", math.nan), ("a", 2.0), ("a", 4.0), ("a", math.nan), ("a", None), ("b", 0.0), ("c", math.inf)]
    assert session_medians(measured) == {"a": 3.0, "b": 0.0, "c": math.inf}
    assert session_medians([("a", 1.0), ("a", 9.0), ("a", 2.0), ("a", 100.0), ("a", 3.0)]) == {"a": 3.0}


def test_differences_are_sorted_and_count_what_one_side_lacks() -> None:
    assert differences({"b": 1, "a": 1, "same": 0}, {"b": 2, "c": 3, "same": 0}) == ["a", "b", "c"]
    assert differences({"b": 1}, {"b": 2, "c": 3}, {"c"}) == ["b"]
    assert differences({"b": 1}, {"b": 1}) == []


def test_every_reason_against_comparing_is_named_in_order() -> None:
    found = invalid_reasons(
        {"soc": "a", "only": 1}, {"soc": "b"}, [(5, 16)], [(4, 16)], throttled=["b", "a"], may_differ=()
    )  # fmt: skip
    assert found == [
        "only differs: 1 and absent",
        "soc differs: a and b",
        "throttled in a, b",
        "token counts differ: 4 in, 16 out, 5 in, 16 out",
    ]
    assert invalid_reasons({}, {"new": 2}, [(1, 1)], [(1, 1)]) == ["new differs: absent and 2"]
    assert invalid_reasons({}, {"new": 2}, [(1, 1)], [(1, 1)], may_differ=["new"]) == []


def test_tokens_compare_whatever_their_order_but_as_often() -> None:
    assert invalid_reasons({}, {}, [(1, 2), (3, 4)], [(3, 4), (1, 2)]) == []
    assert invalid_reasons({}, {}, [(3, 4), (1, 2)], [(1, 2), (3, 4)]) == []
    assert invalid_reasons({}, {}, [(1, 2), (1, 2)], [(1, 2)]) == ["token counts differ: 1 in, 2 out"]
    assert invalid_reasons({}, {}, [(1, 2)], []) == ["nothing was measured on one side"]
    assert invalid_reasons({}, {}, [], [(1, 2)]) == ["nothing was measured on one side"]
    many = [(number, 16) for number in (90, 7, 55, 8, 31, 1)]
    assert invalid_reasons({}, {}, many[:3], many[3:]) == [
        "token counts differ: 1 in, 16 out, 7 in, 16 out, 8 in, 16 out, 31 in, 16 out, 55 in, 16 out, 90 in, 16 out"
    ]
    assert invalid_reasons({}, {}, [], []) == ["nothing was measured on one side"]


def test_an_interval_keeps_what_it_is_made_of() -> None:
    found = Interval(np.asarray(0.5), np.asarray(0.1), 4)
    assert float(found.half_width(0.5)) == pytest.approx(0.0, abs=1e-15)
