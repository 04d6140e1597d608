"""Measurements → checks: each bound from both sides, in between, and where there is nothing to judge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_witness import SPREAD, VOCAB, ToyQdq, random_window, top_of, toy_witness, witness_text

from harness.evaluate.deviations import Deviations, Figure, compare_rows
from harness.evaluate.grounds import GroundScore, ratio
from harness.evaluate.judge import (
    DECODE,
    REPLIES,
    Verdict,
    decide,
    delegation_check,
    difference,
    grey,
    make_check,
    perplexity_checks,
    qdq_check,
    row_checks,
    worst,
)
from harness.evaluate.rules import LIMIT_ROUNDS, RULES, VERSION, CellRules
from harness.evaluate.scored import Scored
from harness.model_file import Bounds
from harness.results.records import CheckRecord, Graph

QDQ = ToyQdq()
PASSED, FAILED, GREY, NOT_JUDGED = Verdict.PASSED, Verdict.FAILED, Verdict.INCONCLUSIVE, Verdict.NOT_JUDGED
BOUNDS = Bounds()


def bounds(**changes: float) -> Bounds:
    """The shipped bounds but for some."""
    return Bounds(**{**BOUNDS.model_dump(), **changes})


def test_a_change_of_a_bound_raises_the_version() -> None:
    """Records name the version alone: whoever changes a number adds a line here, and never changes one."""
    known = {1: CellRules(noise=1.0, cap=3.0, row=10.0, gain=0.006, tie=8.0, sure=2.6, floor=1.0)}
    assert known[VERSION] == RULES
    assert LIMIT_ROUNDS == 6


def test_a_check_says_how_it_was_judged() -> None:
    found = make_check("cell", "name", GREY, "in words", 0.5, 0.25)
    assert found == CheckRecord("cell", "name", False, 0.5, 0.25, "in words", "INCONCLUSIVE", VERSION)
    assert [make_check("c", "n", word, "").passed for word in Verdict] == [word is PASSED for word in Verdict]
    assert make_check("c", "n", PASSED, "").verdict == "PASSED"


@given(st.lists(st.sampled_from(list(Verdict)), max_size=6))
def test_several_verdicts_come_to_the_worst_of_them(verdicts: list[Verdict]) -> None:
    order = [FAILED, Verdict.INVALID, NOT_JUDGED, GREY, PASSED]
    assert worst(verdicts) == next((word for word in order if word in verdicts), NOT_JUDGED)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [
        (0.0, 0.0, PASSED),
        (1.0, 0.0, PASSED),
        (1.001, 0.0, FAILED),
        (0.5, 0.25, PASSED),
        (0.5, 0.26, GREY),
        (1.5, 0.25, GREY),
        (1.5, 0.24, FAILED),
        (0.0, 0.6, GREY),
        (9.0, math.inf, GREY),
        (math.inf, 0.0, FAILED),
        (math.inf, math.nan, FAILED),
        (math.inf, math.inf, GREY),
        (math.nan, 0.0, FAILED),
    ],
)
def test_a_figure_is_decided_by_its_error(value: float, error: float, verdict: Verdict, sign: int) -> None:
    assert decide(Figure(sign * value, error, 9), 1.0, CellRules(sure=2.0)) is verdict


def test_a_figure_of_no_rows_is_not_judged() -> None:
    assert decide(Figure(0.0, 0.0, 0), 1.0) is NOT_JUDGED
    assert decide(Figure(math.nan, math.nan, 0), 1.0) is NOT_JUDGED


def test_the_shipped_rules_ask_for_so_many_errors() -> None:
    just = RULES.sure * 0.1
    assert decide(Figure(1 - just * 1.001, 0.1, 9), 1.0) is PASSED
    assert decide(Figure(1 - just * 0.999, 0.1, 9), 1.0) is GREY
    assert decide(Figure(1 + just * 0.999, 0.1, 9), 1.0) is GREY
    assert decide(Figure(1 + just * 1.001, 0.1, 9), 1.0) is FAILED


def even(units: Sequence[float], graph: Graph = "kv", where: str = "held-out text", factor: float = 1.0) -> Deviations:
    """Rows off by so many spreads, of logits with a factor."""
    ones = np.ones(len(units))
    return Deviations(graph, where, np.asarray(units, dtype=float) * SPREAD, SPREAD * ones, factor * ones, ones)


def row_verdicts(parts: Mapping[Graph, Sequence[Deviations]], rules: CellRules = RULES) -> dict[str, str]:
    """Name of each check of rows, less its first words → verdict."""
    return {check.name.removeprefix("phone_vs_qdq_"): check.verdict for check in row_checks("c", parts, rules)}


def test_rows_at_the_shipped_bounds() -> None:
    """Many rows of one size: nothing is left to chance, so the bound itself decides."""
    for rules in (RULES, CellRules(noise=0.3, row=0.8, gain=0.002)):
        inside, outside = rules.noise * 0.999, rules.noise * 1.001
        assert row_verdicts({"kv": [even([inside] * 50)]}, rules) == dict.fromkeys(("noise", "gain", "row"), "PASSED")
        assert row_verdicts({"kv": [even([outside] * 50)]}, rules)["noise"] == "FAILED"
        for sign in (1, -1):
            near, far = (even([0.1] * 50, factor=1 + sign * rules.gain * share) for share in (0.999, 1.001))
            assert row_verdicts({"kv": [near]}, rules)["gain"] == "PASSED"
            assert row_verdicts({"kv": [far]}, rules) == {"noise": "PASSED", "gain": "FAILED", "row": "PASSED"}
        calm = [rules.noise * 0.2] * 5000
        assert row_verdicts({"kv": [even([*calm, rules.row * 0.999])]}, rules)["row"] == "PASSED"
        found = row_verdicts({"kv": [even([*calm, rules.row * 1.001])]}, rules)
        assert found == {"noise": "PASSED", "gain": "PASSED", "row": "FAILED"}


def planted(factor: float = 1.0, size: float = 0.0, count: int = 400, seed: int = 5) -> list[Deviations]:
    """A phone that is QDQ times a factor, with noise on each logit."""
    window = random_window(count, seed)
    text = witness_text(QDQ, window.inputs, window.targets)
    noisy = np.random.default_rng(seed).normal(0, size, (count, VOCAB))
    return [compare_rows("kv", "held-out text", text, 0, top_of(factor * QDQ(window.inputs) + noisy), SPREAD)]


RULE = CellRules(noise=1.0, row=6.0, gain=0.01, sure=2.6)


def test_a_small_factor_passes_and_a_larger_one_does_not() -> None:
    assert row_verdicts({"kv": planted(1.004, 0.02)}, RULE) == dict.fromkeys(("noise", "gain", "row"), "PASSED")
    assert row_verdicts({"kv": planted(1.02, 0.02)}, RULE)["gain"] == "FAILED"
    assert row_verdicts({"kv": planted(0.98, 0.02)}, RULE)["gain"] == "FAILED"


def test_noise_just_inside_passes_and_just_outside_does_not() -> None:
    assert row_verdicts({"kv": planted(size=0.075)}, RULE)["noise"] == "PASSED"
    assert row_verdicts({"kv": planted(size=0.105)}, RULE)["noise"] == "FAILED"


def test_what_few_rows_leave_open_many_decide() -> None:
    for size, decided in ((0.082, "PASSED"), (0.1, "FAILED")):
        verdicts = [row_verdicts({"kv": planted(size=size, count=count)}, RULE)["noise"] for count in (12, 1000)]
        assert verdicts == ["INCONCLUSIVE", decided]


def test_one_wrong_row_of_many_fails_and_is_named() -> None:
    calm, wrong = even([0.1] * 500), even([0.1] * 7 + [9.0] + [0.1] * 92, "prefill", "a prompt of 31")
    checks = {check.name: check for check in row_checks("c", {"kv": [calm], "prefill": [calm, wrong]}, RULE)}
    assert checks["phone_vs_qdq_noise"].passed
    assert not checks["phone_vs_qdq_row"].passed
    assert "row 7 of 100, a prompt of 31, prefill graph" in checks["phone_vs_qdq_row"].text
    assert "of 1100 rows is 9.00 times" in checks["phone_vs_qdq_row"].text
    assert checks["phone_vs_qdq_row"].value == pytest.approx(9.0)
    assert checks["phone_vs_qdq_row"].bound == 6.0


def test_each_graph_is_judged_by_itself() -> None:
    good, bad = even([0.2] * 100), even([1.2] * 100, "prefill", factor=1.1)
    checks = {check.name: check for check in row_checks("c", {"kv graph": [good], "prefill graph": [bad]}, RULE)}
    noise, gain = checks["phone_vs_qdq_noise"], checks["phone_vs_qdq_gain"]
    assert (noise.verdict, gain.verdict) == ("FAILED", "FAILED")
    assert (noise.value, noise.bound) == (pytest.approx(1.2), 1.0)
    assert (gain.value, gain.bound) == (pytest.approx(0.1), 0.01)
    assert "of the kv graph 0.2000 ± 0.0000 over 100 rows; of the prefill graph 1.2000" in noise.text
    assert "(bound 1)" in noise.text
    low = even([0.2] * 100, "prefill", factor=0.9)
    assert row_checks("c", {"kv": [good], "prefill": [low]}, RULE)[1].value == pytest.approx(-0.1)


def test_a_graph_without_rows_is_not_judged() -> None:
    good = even([0.2] * 100)
    assert row_verdicts({"kv": [good], "prefill": []}, RULE) == {
        **{"noise": "NOT_JUDGED", "gain": "NOT_JUDGED", "row": "PASSED"}
    }
    for nothing in ({}, {"kv": []}):
        checks = row_checks("c", nothing, RULE)
        assert [check.verdict for check in checks] == ["NOT_JUDGED"] * 3
    none = row_checks("c", {}, RULE)[0]
    assert none.value is None
    assert "of nothing" in none.text


def test_rows_that_are_no_numbers_fail_every_check_of_rows() -> None:
    broken = even([0.2, math.nan, 0.2], factor=math.nan)
    assert row_verdicts({"kv": [broken]}) == dict.fromkeys(("noise", "gain", "row"), "FAILED")
    assert row_verdicts({"kv": [even([0.2, math.inf, 0.2])]})["noise"] == "FAILED"


def test_the_reach_that_is_shown_is_the_one_that_decides() -> None:
    check = row_checks("c", {"kv": [even([0.5, 1.0] * 50)]}, replace(RULE, sure=10.0))[0]
    error = np.square([0.5, 1.0] * 50).std(ddof=1) / 10 / (2 * check.value)  # type: ignore[operator]
    assert f"± {10 * error:.4f}" in check.text


WINDOWS = [random_window(300, seed) for seed in (11, 12)]
WITNESS = toy_witness(QDQ, WINDOWS)


def scored(**shifts: float) -> Scored:
    """Graphs whose log-likelihoods are QDQ's, less so many nats a token."""
    found = Scored(WITNESS)
    for graph, shift in shifts.items():
        each = {
            number: [float(x) - shift for x in text.target_logprobs] for number, text in enumerate(WITNESS.held_out)
        }
        found.each[graph] = each  # type: ignore[index]
    return found


def ppl_verdicts(of: Scored, bounds: Bounds = BOUNDS) -> dict[str, str]:
    """Name of each check of perplexities → verdict."""
    return {check.name: check.verdict for check in perplexity_checks("c", of, bounds)}


@pytest.mark.parametrize(("share", "verdict"), [(0.0, "PASSED"), (0.99, "PASSED"), (1.01, "FAILED")])
def test_a_perplexity_is_held_to_qdqs_both_ways(share: float, verdict: str) -> None:
    for bound in (BOUNDS.phone_vs_qdq_ppl, 0.1):
        for sign in (1, -1):
            found = ppl_verdicts(scored(kv=sign * share * bound), bounds(phone_vs_qdq_ppl=bound))
            assert found == {"phone_vs_qdq_ppl": verdict}


@pytest.mark.parametrize(("share", "verdict"), [(0.99, "PASSED"), (1.01, "FAILED")])
def test_both_graphs_are_held_to_each_other(share: float, verdict: str) -> None:
    wide = bounds(phone_vs_qdq_ppl=0.5, prefill_vs_kv_ppl=0.04)
    for kv, prefill in ((share * 0.04, 0.0), (0.0, share * 0.04)):
        found = ppl_verdicts(scored(kv=kv, prefill=prefill), wide)
        assert found == {"phone_vs_qdq_ppl": "PASSED", "prefill_vs_kv_ppl": verdict}
    pair = perplexity_checks("c", scored(kv=0.0, prefill=0.03), wide)[1]
    assert pair.value == pytest.approx(0.03)
    assert pair.bound == 0.04
    assert "log of the perplexity of the prefill graph 0.0300" in pair.text


def test_either_graph_alone_can_fail() -> None:
    off = 2 * BOUNDS.phone_vs_qdq_ppl
    for shifts in ({"kv": off, "prefill": 0.0}, {"kv": 0.0, "prefill": off}):
        check = perplexity_checks("c", scored(**shifts), BOUNDS)[0]
        assert check.verdict == "FAILED"
        assert check.value == pytest.approx(off)
        assert check.bound == BOUNDS.phone_vs_qdq_ppl


def test_the_graphs_are_named_in_order_and_one_alone_is_held_to_no_other() -> None:
    text = perplexity_checks("c", scored(prefill=0.0, kv=0.0), BOUNDS)[0].text
    assert 0 < text.index("of the kv graph") < text.index("of the prefill graph")
    for graph in ("kv", "prefill"):
        assert ppl_verdicts(scored(**{graph: 0.0})) == {"phone_vs_qdq_ppl": "PASSED"}


def test_a_phone_that_scored_nothing_is_not_judged() -> None:
    assert ppl_verdicts(Scored(WITNESS)) == {"phone_vs_qdq_ppl": "NOT_JUDGED"}
    nothing = scored(kv=0.0)
    nothing.each["kv"] = {}
    assert ppl_verdicts(nothing) == {"phone_vs_qdq_ppl": "NOT_JUDGED"}
    beyond = scored(kv=0.0)
    beyond.each["kv"] = {5: [-1.0] * 50}
    assert ppl_verdicts(beyond) == {"phone_vs_qdq_ppl": "NOT_JUDGED"}
    assert ppl_verdicts(Scored(WITNESS, each={"prefill": {0: [-1.0]}, "kv": {1: [-1.0]}}))["prefill_vs_kv_ppl"] == (
        "NOT_JUDGED"
    )


def test_perplexities_of_few_tokens_are_left_open_and_more_tokens_decide() -> None:
    """Noise of a token hides a bias over 8 tokens, and not over all of the text."""
    bias = 2 * BOUNDS.phone_vs_qdq_ppl
    noise = np.random.default_rng(6).normal(0, 2 * bias, 300)
    noise -= noise.mean()
    verdicts = []
    for count in (8, 300):
        each = WITNESS.held_out[0].target_logprobs[:count] - bias + noise[:count]
        verdicts.append(ppl_verdicts(Scored(WITNESS, each={"kv": {0: each.tolist()}}))["phone_vs_qdq_ppl"])
    assert verdicts == ["INCONCLUSIVE", "FAILED"]


@given(st.lists(st.tuples(st.floats(-9, 0), st.floats(-9, 0)), min_size=2, max_size=20))
def test_a_difference_is_the_mean_of_the_pairs(pairs: list[tuple[float, float]]) -> None:
    one, other = [a for a, _ in pairs], [b for _, b in pairs]
    gaps = np.asarray(other) - np.asarray(one)
    found = difference(one, other)
    assert found.value == pytest.approx(gaps.mean(), abs=1e-12)
    assert found.error == pytest.approx(gaps.std(ddof=1) / math.sqrt(len(gaps)), abs=1e-12)
    assert found.rows == len(pairs)
    assert math.exp(found.value) - 1 == pytest.approx(ratio(one, other), rel=1e-9, abs=1e-12)


def test_a_difference_of_one_token_or_none() -> None:
    assert difference([-1.0], [-1.5]) == Figure(-0.5, math.inf, 1)
    assert difference([], []) == Figure(math.inf, math.inf, 0)
    with pytest.raises(ValueError, match="zip"):
        difference([-1.0], [])


def ground(nll: float, tokens: int = 100) -> GroundScore:
    """A ground where each token has the same likelihood."""
    return GroundScore("QDQ", "full", (-nll,) * tokens, 50, 128)


@pytest.mark.parametrize(("share", "passed"), [(0.0, True), (0.999, True), (1.001, False)])
def test_quantisation_may_cost_so_much_and_help_as_it_likes(share: float, passed: bool) -> None:
    for some in (BOUNDS, bounds(qdq_vs_fp_ppl=0.3)):
        bound = some.qdq_vs_fp_ppl
        check = qdq_check("c", ground(2.0), ground(2.0 + math.log1p(share * bound)), some)
        assert (check.name, check.passed, check.bound) == ("qdq_vs_fp_ppl", passed, bound)
        assert check.verdict == ("PASSED" if passed else "FAILED")
        assert check.value == pytest.approx(share * bound)
    assert qdq_check("c", ground(2.0), ground(1.5), BOUNDS).passed
    exact = ratio(ground(2.1).each, ground(2.0).each)
    assert qdq_check("c", ground(2.0), ground(2.1), bounds(qdq_vs_fp_ppl=exact)).passed
    assert f"float model {math.exp(2):.3f}" in check.text


def test_quantisation_is_judged_over_the_whole_text() -> None:
    for fp, qdq in ((99, 100), (100, 99), (0, 0)):
        assert not qdq_check("c", ground(2.0, fp), ground(2.0, qdq), BOUNDS).passed
    assert not qdq_check("c", ground(2.0), ground(math.nan), BOUNDS).passed


def test_what_is_left_to_the_cpu_is_named() -> None:
    assert delegation_check("c", ()).passed
    assert delegation_check("c", ("llama::fallback.out", "quantized_decomposed::embedding_byte.out")).passed
    check = delegation_check("c", ("llama::fallback.out", "aten::layer_norm.out", "aten::add.out"))
    assert (check.verdict, check.value, check.bound) == ("FAILED", 2.0, 0.0)
    assert check.text == "left to the CPU: aten::layer_norm.out, aten::add.out"
    assert (delegation_check("c", ()).value, delegation_check("c", ()).name) == (0.0, "whole_on_htp")


def test_only_what_more_rows_can_decide_is_grey() -> None:
    def check(word: Verdict) -> CheckRecord:
        return make_check("c", "n", word, "")

    assert not grey([])
    assert [grey([check(PASSED), check(word)]) for word in (PASSED, FAILED, NOT_JUDGED, GREY, Verdict.INVALID)] == [
        *(False, False, False, True, False)
    ]


def test_a_factor_is_known_from_the_replies_and_the_scores_together() -> None:
    calm, few = even([0.2] * 300), even([0.2] * 20, factor=1.02)
    noises, gains, _ = row_checks("c", {DECODE: [calm], REPLIES: [few]}, RULE)
    assert "of the replies 0.2000" in noises.text
    assert "over 320 rows" in gains.text
    assert gains.verdict == "PASSED"
    assert row_checks("c", {DECODE: [], REPLIES: [even([0.2] * 300, factor=1.02)]}, RULE)[1].verdict == "FAILED"
    assert (
        row_checks("c", {"prefill graph": [calm], REPLIES: [even([0.2] * 300, factor=1.02)]}, RULE)[1].verdict
        == "FAILED"
    )
