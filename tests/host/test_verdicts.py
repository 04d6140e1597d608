"""Verdicts: properties that hold for all numbers, and rates that the simulation of the shipped functions must keep."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harness.paths import REPOSITORY
from harness.verdicts import (
    RULES,
    Better,
    Document,
    Judgement,
    Rules,
    abba,
    compare_greedy,
    compare_perplexity,
    control_discoveries,
    differences,
    invalid_reasons,
    judge,
    judge_against_history,
    judge_declared,
    judge_extended,
    log_margin,
    log_ratios,
    prediction_bound,
    session_medians,
    slowdown_p_values,
    wants_more,
)

HIGHER, LOWER = Better.HIGHER, Better.LOWER
REGRESSED, OK, IMPROVED = Judgement.REGRESSED, Judgement.OK, Judgement.IMPROVED
INCONCLUSIVE, INVALID = Judgement.INCONCLUSIVE, Judgement.INVALID

speeds = st.lists(st.floats(1.0, 100.0), min_size=5, max_size=8)
drifts = st.lists(st.floats(-0.2, 0.2), min_size=5, max_size=8)


def one(d: object, better: Better = HIGHER) -> str:
    return str(judge(np.asarray(d), better))


# Sessions


def test_a_session_counts_once_by_its_median() -> None:
    measured = [("a", 1.0), ("b", 5.0), ("a", 9.0), ("a", 2.0), ("b", None), ("b", math.nan), ("c", None)]
    assert session_medians(measured) == {"a": 2.0, "b": 5.0}
    assert list(session_medians(measured)) == ["a", "b"]


def test_sides_take_turns_at_going_first() -> None:
    assert abba(5) == (("A", "B"), ("B", "A"), ("A", "B"), ("B", "A"), ("A", "B"))
    assert abba(5) + abba(3, start=5) == abba(8)


@given(st.floats(-0.02, 0.02), st.integers(2, 6))
def test_a_steady_drift_cancels_over_two_pairs(drift: float, pairs: int) -> None:
    """Each later session is faster by the same factor: ABBA sees none of it."""
    clock = 0
    d = []
    for order in abba(2 * pairs):
        side = {}
        for name in order:
            side[name] = 20 * math.exp(drift * clock)
            clock += 1
        d.append(float(log_ratios([side["A"]], [side["B"]], HIGHER)[0]))
    assert abs(sum(d)) < 1e-9


# A against B


@pytest.mark.parametrize(
    ("d", "expected"),
    [
        ([0.05, 0.051, 0.049, 0.052, 0.05], REGRESSED),
        ([-0.05, -0.051, -0.049, -0.052, -0.05], IMPROVED),
        ([0.001, -0.002, 0.0, 0.002, -0.001], OK),
        ([0.02, 0.021, 0.019, 0.02, 0.02], OK),  # slower for sure, by less than the margin
        ([0.2, -0.2, 0.15, -0.1, 0.05], INCONCLUSIVE),
        ([0.1, 0.0, 0.12, -0.01, 0.05], INCONCLUSIVE),  # slow on average, but not surely
        ([0.0] * 5, OK),
    ],
)
def test_what_pairs_come_to(d: list[float], expected: Judgement) -> None:
    assert one(d) == expected


def test_positive_is_worse_for_rates_and_for_latencies() -> None:
    base, candidate = [20.0, 20.2, 19.9, 20.1, 20.0], [18.0, 18.1, 17.9, 18.2, 18.0]
    assert one(log_ratios(base, candidate, HIGHER)) == REGRESSED
    assert one(log_ratios(base, candidate, LOWER), LOWER) == IMPROVED


def test_margins_are_fractions_of_the_base() -> None:
    assert log_margin(HIGHER) == pytest.approx(-math.log(0.97))
    assert log_margin(LOWER) == pytest.approx(math.log(1.03))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_speed_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        log_ratios([1.0, 2.0], [1.0, value], HIGHER)


def test_one_pair_has_no_spread() -> None:
    with pytest.raises(ValueError, match="two pairs"):
        judge([0.1], HIGHER)


@given(speeds, st.floats(0.001, 1000))
def test_the_unit_does_not_matter(base: list[float], unit: float) -> None:
    candidate = [value * 0.96 for value in reversed(base)]
    a = log_ratios(base, candidate, HIGHER)
    b = log_ratios([value * unit for value in base], [value * unit for value in candidate], HIGHER)
    assert np.allclose(a, b)


@given(drifts)
def test_swapping_the_sides_never_makes_both_regressed(d: list[float]) -> None:
    there, back = one(d), one([-value for value in d])
    assert not (there == REGRESSED and back == REGRESSED)
    if there == IMPROVED:
        assert back in (REGRESSED, INCONCLUSIVE)


@given(drifts, st.floats(0, 0.5))
def test_slower_by_more_is_never_judged_better(d: list[float], more: float) -> None:
    order = [IMPROVED, OK, INCONCLUSIVE, REGRESSED]
    ranks = [order.index(Judgement(one([value + shift for value in d]))) for shift in (0, more)]
    assert ranks[0] <= ranks[1] or {order[rank] for rank in ranks} == {INCONCLUSIVE, OK}


@given(drifts, st.permutations(range(5)))
def test_the_order_of_pairs_does_not_matter(d: list[float], order: list[int]) -> None:
    assert one(d[:5]) == one([d[place] for place in order])


@given(st.lists(drifts.map(lambda d: (d * 2)[:8]), min_size=1, max_size=6))
def test_many_at_once_are_as_each_alone(rows: list[list[float]]) -> None:
    together, pairs, _ = judge_extended(np.array(rows), HIGHER)
    for row, judged, used in zip(rows, together, pairs, strict=True):
        first = judge(row[: RULES.first], HIGHER)
        expected = judge(row, HIGHER) if wants_more(first) else first
        assert str(judged) == str(expected)
        assert used == (8 if wants_more(first) else 5)


def test_regressed_at_first_is_measured_again() -> None:
    """Five pairs say REGRESSED, three more take it back."""
    d = [0.05, 0.051, 0.049, 0.052, 0.05, -0.05, -0.05, -0.06]
    assert one(d[:5]) == REGRESSED
    judged, pairs, _ = judge_extended(d, HIGHER)
    assert str(judged) == INCONCLUSIVE
    assert pairs == 8


# Many comparisons


def test_false_discovery_control_is_scipys_over_valid_comparisons() -> None:
    p = np.array([1e-6, 0.01, 0.2, 0.9, 1e-9])
    words = [REGRESSED, REGRESSED, INCONCLUSIVE, OK, INVALID]
    adjusted = stats.false_discovery_control(p[:4])
    assert adjusted[0] <= RULES.q < adjusted[1]
    assert control_discoveries(words, p).tolist() == [REGRESSED, INCONCLUSIVE, INCONCLUSIVE, OK, INVALID]
    assert control_discoveries([], []).tolist() == []
    assert control_discoveries([INVALID], [0.0]).tolist() == [INVALID]


def test_few_comparisons_have_students_p_values() -> None:
    rng = np.random.default_rng(3)
    d = rng.normal(0.01, 0.02, (4, 5))
    expected = stats.ttest_1samp(d, 0, axis=1, alternative="greater").pvalue
    assert np.allclose(slowdown_p_values(d.mean(1), d.std(1, ddof=1), np.full(4, 5)), expected)


@pytest.mark.filterwarnings("error")
@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(0, 2**31), st.sampled_from([0.0, 1e-9, 0.01, 1.0]))
def test_p_values_are_probabilities_whatever_the_noise(count: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    sd = scale * np.exp(rng.normal(0, 1, count))
    p = slowdown_p_values(rng.normal(0, 0.01, count), sd, rng.choice([5, 8], count))
    assert np.all((p >= 0) & (p <= 1))


def test_equal_to_the_last_bit_is_no_slowdown() -> None:
    assert slowdown_p_values([0.0], [0.0], [5]).tolist() == [0.5]


def test_pooled_noise_finds_what_eight_pairs_alone_cannot() -> None:
    """One of 200 cells slower by 5%, SD of a pair 2%: the t of its own pairs does not reach q/200."""
    rng = np.random.default_rng(11)
    d = rng.normal(0, 0.02, (200, 8))
    d[0] = 0.05 + 0.02 * np.array([1, -1, 1, -1, 1, -1, 1.2, -1.2])
    mean, sd = d.mean(1), d.std(1, ddof=1)
    words = judge(d, HIGHER)
    own = stats.ttest_1samp(d, 0, axis=1, alternative="greater").pvalue
    assert control_discoveries(words, own)[0] == INCONCLUSIVE
    assert control_discoveries(words, slowdown_p_values(mean, sd, np.full(200, 8)))[0] == REGRESSED


# Against history


def test_the_prediction_bound_is_the_textbooks() -> None:
    history = [20.0, 21.0, 19.5, 20.5, 20.2, 19.8, 20.1, 20.9, 19.9, 20.3]
    logs = np.log(history)
    reach = stats.t.ppf(0.995, 9) * logs.std(ddof=1) * math.sqrt(1.1)
    bound = prediction_bound(history, HIGHER)
    assert bound is not None
    assert bound.worst == pytest.approx(math.exp(logs.mean() - reach))
    assert bound.best == pytest.approx(math.exp(logs.mean() + reach))
    assert prediction_bound(history, LOWER).worst == pytest.approx(bound.best)  # type: ignore[union-attr]
    assert prediction_bound(history[:9], HIGHER) is None


@pytest.mark.parametrize(
    ("value", "better", "expected"),
    [
        (20.0, HIGHER, OK),
        (15.0, HIGHER, REGRESSED),
        (25.0, HIGHER, IMPROVED),
        (25.0, LOWER, REGRESSED),
        (15.0, LOWER, IMPROVED),
        (19.2, HIGHER, INCONCLUSIVE),  # worse by 4%, which this history's noise may do
    ],
)
def test_a_night_against_history(value: float, better: Better, expected: Judgement) -> None:
    history = [20.0, 21.0, 19.5, 20.5, 20.2, 19.8, 20.1, 20.9, 19.9, 19.0]
    judged, bound, p = judge_against_history(value, history, better)
    assert judged is expected
    assert bound is not None
    assert (p < 0.01) is (expected is REGRESSED)


def test_a_quiet_history_does_not_make_a_small_change_a_regression() -> None:
    history = [20.0 + 0.001 * number for number in range(12)]
    assert judge_against_history(19.8, history, HIGHER)[0] is OK
    assert judge_against_history(19.0, history, HIGHER)[0] is REGRESSED
    assert judge_against_history(19.0, [20.0] * 12, HIGHER)[0] is REGRESSED
    assert judge_against_history(20.0, [20.0] * 12, HIGHER)[0] is OK


def test_a_short_history_says_nothing() -> None:
    assert judge_against_history(1.0, [20.0] * 9, HIGHER) == (INCONCLUSIVE, None, 1.0)


# Perplexity, text, declared bounds, validity


def documents(rng: np.random.Generator, count: int, extra: float = 0.0, noise: float = 0.02) -> list[Document]:
    return [Document(t, t * (4.0 + extra) + float(rng.normal(0, noise * t))) for t in rng.integers(50, 200, count)]


def test_perplexity_is_paired_by_document() -> None:
    """Documents differ by far more than the models do."""
    rng = np.random.default_rng(5)
    base = [Document(100, 100 * level) for level in rng.uniform(2, 6, 30)]
    worse = [Document(d.tokens, d.nll + 100 * 0.03 + float(rng.normal(0, 0.5))) for d in base]
    found = compare_perplexity(base, worse)
    assert found.judgement is REGRESSED
    assert found.ratio == pytest.approx(math.exp(0.03), rel=2e-3)
    assert found.lower is not None
    assert found.upper is not None
    assert found.lower < found.ratio < found.upper
    assert compare_perplexity(worse, base).judgement is IMPROVED
    assert (found.documents, found.tokens) == (30, 3000)


def test_the_same_scores_are_ok_and_exact() -> None:
    base = documents(np.random.default_rng(1), 8)
    found = compare_perplexity(base, base)
    assert (found.judgement, found.ratio, found.lower, found.upper) == (OK, 1.0, 1.0, 1.0)


def test_few_documents_are_judged_by_the_change_alone() -> None:
    base, worse = [Document(128, 500.0), Document(128, 480.0)], [Document(128, 504.0), Document(128, 484.0)]
    found = compare_perplexity(base, worse)
    assert (found.judgement, found.lower) == (REGRESSED, None)


def test_one_bad_document_among_many_is_not_sure() -> None:
    base = [Document(100, 400.0)] * 20
    found = compare_perplexity(base, [Document(100, 430.0), *base[1:]])
    assert found.judgement is INCONCLUSIVE


@pytest.mark.parametrize(
    "other", [[], [Document(99, 400.0)], [Document(100, math.inf)], [Document(100, math.nan)], [Document(100, 1.0)] * 2]
)
def test_other_documents_do_not_compare(other: list[Document]) -> None:
    found = compare_perplexity([Document(100, 400.0)], other)
    assert found.judgement is INVALID
    assert found.reason


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=4))
def test_text_equals_itself(replies: list[list[int]]) -> None:
    assert compare_greedy(replies, replies).equal


@pytest.mark.parametrize(
    ("base", "candidate", "prompt", "place"),
    [
        ([[1, 2, 3]], [[1, 5, 3]], 0, 1),
        ([[1, 2], [3, 4]], [[1, 2], [3]], 1, 1),
        ([[1]], [[1], [2]], 1, 0),
    ],
)
def test_text_that_differs_says_where(
    base: list[list[int]], candidate: list[list[int]], prompt: int, place: int
) -> None:
    found = compare_greedy(base, candidate)
    assert (found.equal, found.different, found.prompt, found.place) == (False, 1, prompt, place)
    assert f"reply {prompt}, from token {place}" in found.words


def test_declared_bounds_hold_each_way() -> None:
    better = {"decode_tok_s": HIGHER, "ttft_ms": LOWER}
    bounds = {"decode_tok_s": 20.0, "ttft_ms": 500.0}
    good = judge_declared({"decode_tok_s": 20.0, "ttft_ms": 500.0}, bounds, better)
    assert [one.passed for one in good] == [True, True]
    bad = judge_declared({"decode_tok_s": 19.0, "ttft_ms": math.nan, "load_ms": 3.0}, bounds, better)
    assert [one.passed for one in bad] == [False, False]
    assert bad[0].words == "decode_tok_s 19, declared at least 20"
    assert judge_declared({"decode_tok_s": None}, bounds, better) == ()


def test_what_must_agree_is_named() -> None:
    base = {"phone": "s24", "clock": 940, "executorch": "1.5.1"}
    candidate = {"phone": "s24", "clock": 800, "executorch": "1.6.0"}
    assert differences(base, candidate, ["executorch"]) == ["clock"]
    found = invalid_reasons(base, candidate, [(5, 16)], [(5, 16), (5, 12)], may_differ=["executorch"], throttled=["3A"])
    assert found == [
        "clock differs: 940 and 800",
        "throttled in 3A",
        "token counts differ: 5 in, 12 out, 5 in, 16 out",
    ]
    assert invalid_reasons({}, {}, [(5, 16)], [(5, 16)]) == []
    assert invalid_reasons({}, {}, [], [(5, 16)]) == ["nothing was measured on one side"]


# The rates


def _benchmark() -> object:
    spec = importlib.util.spec_from_file_location("verdict_rates", REPOSITORY / "benchmarks" / "verdict_rates.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["verdict_rates"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("sd", "shared"), [(0.03, 0.8), (0.03, 0.0), (0.10, 0.0)])
def test_false_alarms_are_rare_at_any_noise(sd: float, shared: float) -> None:
    bench = _benchmark()
    got = bench.rates(np.random.default_rng(7), 200, bench.Condition("", sd, shared))  # type: ignore[attr-defined]
    assert got.alone <= 0.0115  # 1%, and what 40,000 cells let chance add
    assert got.false_cell <= 0.001
    assert got.false_run <= 0.05


def test_nine_of_ten_slowdowns_of_5_percent_are_found() -> None:
    bench = _benchmark()
    rng = np.random.default_rng(7)
    got = bench.rates(rng, 200, bench.Condition("", 0.03, 0.8, 1, 0.05))  # type: ignore[attr-defined]
    assert got.found >= 0.9


def test_looser_rules_would_not_keep_the_rates() -> None:
    """The simulation can fail: without the margin and the second look, false alarms are many."""
    rng = np.random.default_rng(7)
    d = rng.normal(0, 0.04, (20_000, 5))
    loose = Rules(margin=0.0, alpha=0.05)
    assert (judge(d, HIGHER, loose) == REGRESSED).mean() > 0.03


def test_the_history_bound_keeps_its_level() -> None:
    rng = np.random.default_rng(7)
    bench = _benchmark()
    assert bench.history_rates(rng, 2000, 0.03, 0, 10) <= 0.01  # type: ignore[attr-defined]


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    bench = _benchmark()
    text = bench.svg([0.0, 0.05, 0.1], {"a": [0.0, 0.9, 1.0]})  # type: ignore[attr-defined]
    assert text.startswith("<svg")
    assert "polyline" in text
