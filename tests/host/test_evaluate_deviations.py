"""A phone's rows against QDQ's: what is measured of each, and what several rows come to."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_witness import SPREAD, VOCAB, ToyQdq, random_window, top_of, witness_text

from harness.build.witness import COMPARED
from harness.evaluate.deviations import (
    Deviations,
    compare_logprobs,
    compare_rows,
    gain,
    logprobs_of,
    noise,
    row_scale,
    worst_row,
)
from harness.evaluate.rules import RULES, CellRules
from harness.results.records import Graph
from harness.runtime.sampling import log_softmax
from harness.runtime.score import TopRows

WINDOW = random_window(30)
QDQ = ToyQdq()
TEXT = witness_text(QDQ, WINDOW.inputs, WINDOW.targets)


def rows_of(units: list[float], graph: Graph = "kv", where: str = "held-out text") -> Deviations:
    """Rows that are off by so many spreads; of logits with the right factor."""
    top = np.asarray(units) * SPREAD
    ones = np.ones(len(units))
    return Deviations(graph, where, top, SPREAD * ones, ones, ones)


def test_the_same_logits_deviate_by_nothing() -> None:
    found = compare_rows("kv", "here", TEXT, 0, top_of(QDQ(WINDOW.inputs)), SPREAD)
    assert (found.graph, found.where, len(found)) == ("kv", "here", 30)
    assert found.top.tolist() == pytest.approx([0] * 30, abs=1e-12)
    assert noise([found]).value == pytest.approx(0, abs=1e-12)
    assert gain([found]).value == pytest.approx(0, abs=1e-12)


def test_a_row_is_off_by_the_rms_over_qdqs_likeliest_tokens() -> None:
    qdq = np.log(np.array([[0.4, 0.3, 0.2, 0.1]]))
    ids = np.array([[7, 3, 5, 1]])
    phone = TopRows(np.array([[3, 7, 9, 5, 1]]), np.array([[-1.0, -2.0, -2.5, -3.0, -4.0]]))
    found = compare_logprobs("prefill", "here", ids, qdq, np.array([0.5]), phone)
    off = np.array([-2.0, -1.0, -3.0, -4.0]) - qdq[0]
    assert found.top.tolist() == pytest.approx([math.sqrt((off**2).mean())])
    assert found.units.tolist() == pytest.approx([math.sqrt((off**2).mean()) / 0.5])
    x, y = qdq[0] - qdq[0].mean(), np.array([-2.0, -1.0, -3.0, -4.0]) + 2.5
    assert found.along.tolist() == pytest.approx([float(x @ y)])
    assert found.power.tolist() == pytest.approx([float(x @ x)])


def test_what_is_beyond_the_likeliest_compared_tokens_does_not_count() -> None:
    logits = QDQ(WINDOW.inputs)
    order = np.argsort(-logits, axis=1)
    last_counted, first_not = logits.copy(), logits.copy()
    for place, row in enumerate(order):
        last_counted[place, row[COMPARED - 1]] -= 0.5
        first_not[place, row[COMPARED]] -= 0.001
    assert compare_rows("kv", "", TEXT, 0, top_of(first_not), SPREAD).top.max() < 0.001
    assert compare_rows("kv", "", TEXT, 0, top_of(last_counted), SPREAD).top.min() > 0.1


def test_a_token_that_the_phone_does_not_report_is_at_most_its_least_one() -> None:
    phone = TopRows(np.array([[1, 2]]), np.array([[-0.5, -3.0]]))
    found = logprobs_of(phone, np.array([[1, 2, 8, 9]]), np.array([[-0.4, -1.0, -2.0, -5.0]]))
    # 8 should have −2, but cannot have more than −3; 9 is expected below that, and nothing speaks against it.
    assert found.tolist() == [[-0.5, -3.0, -3.0, -5.0]]


def test_rows_of_another_width_than_they_say_do_not_compare() -> None:
    phone, ragged = (TopRows(np.array([[1, 2]]), np.array([values])) for values in ([-0.5, -3.0], [-0.5, -3.0, -4.0]))
    with pytest.raises(ValueError, match="wanted of"):
        logprobs_of(ragged, np.array([[1, 2]]), np.array([[-0.4, -1.0]]))
    with pytest.raises(ValueError, match="wanted of"):
        logprobs_of(phone, np.array([[1, 2]]), np.array([[-0.4]]))


def test_rows_are_compared_with_those_of_their_own_places() -> None:
    rows = top_of(QDQ(WINDOW.inputs))[10:15]
    assert compare_rows("kv", "", TEXT, 10, rows, SPREAD).top.max() < 1e-9
    assert compare_rows("kv", "", TEXT, 11, rows, SPREAD).top.min() > 0.5
    assert compare_rows("kv", "", TEXT, 9, rows, SPREAD).top.min() > 0.5
    moved = replace(TEXT, spread=np.arange(1.0, 31.0))
    assert compare_rows("kv", "", moved, 10, rows, 0.0).scale.tolist() == [11, 12, 13, 14, 15]


def test_a_row_that_hardly_moves_by_itself_is_granted_a_share_of_the_typical_spread() -> None:
    spread = np.array([0.01, 0.05, 0.2])
    assert row_scale(spread, 0.1, CellRules(floor=0.5)).tolist() == [0.05, 0.05, 0.2]
    assert row_scale(spread, 0.1, CellRules(floor=1.0)).tolist() == [0.1, 0.1, 0.2]
    assert row_scale(spread, 0.1).tolist() == np.maximum(spread, RULES.floor * 0.1).tolist()
    rows, text = top_of(QDQ(WINDOW.inputs)), replace(TEXT, spread=np.full(30, 0.01))
    assert compare_rows("kv", "", text, 0, rows, 0.1, CellRules(floor=3.0)).scale.tolist() == pytest.approx([0.3] * 30)


@pytest.mark.parametrize("size", [0.05, 0.2])
def test_the_noise_that_was_added_is_the_noise_that_is_found(size: float) -> None:
    window = random_window(400, seed=1)
    text = witness_text(QDQ, window.inputs, window.targets)
    added = np.random.default_rng(2).normal(0, size, (400, VOCAB))
    found = noise([compare_rows("kv", "", text, 0, top_of(QDQ(window.inputs) + added), SPREAD)], CellRules(cap=99))
    # A log-probability moves by what is added to its logit, less the mean of all by their probability.
    each = np.exp(log_softmax(QDQ(window.inputs)))
    moved = 1 - 2 * -np.sort(-each)[:, :COMPARED] + np.square(each).sum(axis=1, keepdims=True)
    # The RMS of ten normal values is 0.975 standard deviations on average.
    assert found.value == pytest.approx(0.975 * size * np.sqrt(moved.mean(axis=1)).mean() / SPREAD, rel=0.05)
    assert found.rows == 400


@given(st.lists(st.lists(st.floats(0.1, 9), min_size=1, max_size=9), min_size=1, max_size=4))
def test_noise_is_the_mean_of_all_rows_whatever_leg_they_are_from(parts: list[list[float]]) -> None:
    every = np.asarray([value for part in parts for value in part])
    found = noise([rows_of(part) for part in parts], CellRules(cap=9))
    assert found.value == pytest.approx(every.mean())
    assert found.rows == len(every)
    if len(every) > 1:
        assert found.error == pytest.approx(every.std(ddof=1) / math.sqrt(len(every)))
    else:
        assert math.isinf(found.error)


def test_a_row_counts_for_its_cap_at_most() -> None:
    assert noise([rows_of([0.5, 1.5, 100.0])], CellRules(cap=4)).value == pytest.approx(2)
    assert noise([rows_of([0.5, 1.5, RULES.cap + 7])]).value == pytest.approx((2 + RULES.cap) / 3)
    assert math.isnan(noise([rows_of([0.5, math.nan])]).value)


def test_a_noises_error_is_how_much_noise_varies_from_text_to_text() -> None:
    rng = np.random.default_rng(3)
    found = [noise([rows_of(np.abs(rng.normal(1, 0.5, 50)).tolist())]) for _ in range(400)]
    assert np.std([one.value for one in found]) == pytest.approx(np.mean([one.error for one in found]), rel=0.1)


def test_no_rows_are_no_figure() -> None:
    assert (noise([]).value, noise([]).rows) == (math.inf, 0)
    assert (gain([]).value, gain([]).error, gain([]).rows) == (math.inf, math.inf, 0)
    assert worst_row([]) == (0.0, "no row")
    assert noise([rows_of([0.0, 0.0])]) == noise([rows_of([0.0]), rows_of([0.0])])
    assert (noise([rows_of([0.0, 0.0])]).value, noise([rows_of([0.0, 0.0])]).error) == (0, 0)


@pytest.mark.parametrize("factor", [0.98, 1.004, 1.02])
def test_the_factor_of_the_logits_is_found(factor: float) -> None:
    exact = compare_rows("kv", "", TEXT, 0, top_of(factor * QDQ(WINDOW.inputs)), SPREAD)
    assert gain([exact]).value == pytest.approx(factor - 1)
    assert gain([exact]).error == pytest.approx(0, abs=1e-9)
    assert gain([exact]).rows == 30


def test_a_gains_error_is_how_much_it_varies_by_noise_alone() -> None:
    rng, logits = np.random.default_rng(4), QDQ(WINDOW.inputs)
    found = [
        gain([compare_rows("kv", "", TEXT, 0, top_of(logits + rng.normal(0, 0.1, logits.shape)), SPREAD)])
        for _ in range(200)
    ]
    assert np.std([one.value for one in found]) == pytest.approx(np.mean([one.error for one in found]), rel=0.15)


def test_rows_that_random_rounding_moves_less_weigh_more_in_the_gain() -> None:
    power = np.array([2.0, 3.0])
    slopes, weights = np.array([1.1, 1.0]), np.array([1.0, 1 / 4])
    part = Deviations("kv", "", np.zeros(2), np.array([1.0, 2.0]), slopes * power, power)
    found = gain([part])
    slope = (weights * slopes * power).sum() / (weights * power).sum()
    assert found.value == pytest.approx(slope - 1)
    left = weights * power * (slopes - slope)
    assert found.error == pytest.approx(math.sqrt(2 * (left**2).sum()) / (weights * power).sum())
    three = gain([part, replace(part, along=part.along[:1], power=power[:1], scale=np.ones(1), top=np.zeros(1))])
    assert three.rows == 3
    weights, slopes, power = np.array([1, 1 / 4, 1]), np.array([1.1, 1, 1.1]), np.array([2.0, 3, 2])
    slope = (weights * slopes * power).sum() / (weights * power).sum()
    left = weights * power * (slopes - slope)
    assert three.error == pytest.approx(math.sqrt(1.5 * (left**2).sum()) / (weights * power).sum())


def test_the_factor_of_one_row_or_of_equal_logits_is_not_known() -> None:
    one = gain([rows_of([1.0])])
    assert (one.value, one.error, one.rows) == (math.inf, math.inf, 1)
    flat = replace(rows_of([1.0, 2.0]), power=np.zeros(2))
    assert (gain([flat]).value, gain([flat]).error, gain([flat]).rows) == (math.inf, math.inf, 2)
    assert gain([rows_of([1.0, 2.0])]).value == pytest.approx(0)


def test_the_row_that_is_furthest_off_is_named_with_its_place() -> None:
    parts = [rows_of([0.5, 0.7]), rows_of([0.2, 3.0, 0.1], "prefill", "window 1"), rows_of([]), rows_of([2.9, 3.0])]
    value, where = worst_row(parts)
    assert value == pytest.approx(3.0)
    assert where == "row 1 of 3, window 1, prefill graph"


def test_a_row_that_is_no_number_is_the_worst_of_all() -> None:
    value, where = worst_row([rows_of([9.0]), rows_of([1.0, math.nan, 2.0], where="window 7"), rows_of([8.0])])
    assert value == math.inf
    assert "row 1 of 3, window 7" in where
    assert math.isnan(noise([rows_of([1.0, math.nan])]).value)
