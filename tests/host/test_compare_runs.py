"""Two runs compared, piece by piece: what each field says, which samples pair, and every threshold from both sides."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sample_run import perplexity, planned, run_info, sample
from scipy import stats

from harness.compare.runs import (
    CellComparison,
    RunComparison,
    SpeedComparison,
    compare_cells,
    compare_perplexities,
    compare_runs,
    compare_speeds,
    compare_texts,
    controlled,
    has_tokens,
    perplexity_record,
    reply_tokens,
    worst_change,
)
from harness.errors import FailureClass
from harness.results.records import ComparisonRecord, OutcomeRecord, PerplexityRecord, SampleRecord, Status
from harness.results.store import RunData
from harness.results.summary import NOT_RUN, CellSummary
from harness.target import Target
from harness.verdicts import RULES, Judgement, PerplexityComparison, TextComparison

REGRESSED, OK, IMPROVED = Judgement.REGRESSED, Judgement.OK, Judgement.IMPROVED
INCONCLUSIVE, INVALID = Judgement.INCONCLUSIVE, Judgement.INVALID
PASSED, FAILED, ERROR, SKIPPED = (one.value for one in (Status.PASSED, Status.FAILED, Status.ERROR, Status.SKIPPED))
NAME = "tiny_llama-kv-SM8650"


def one_sample(session: int, factor: float = 1.0, **changes: object) -> SampleRecord:
    values = {"decode_tok_s": 20.0 * factor, "prefill_tok_s": 300.0 * factor, "ttft_ms": 40.0 / factor}
    return sample(NAME, session, **(values | changes))  # type: ignore[arg-type]


def side(*factors: float, **changes: object) -> list[SampleRecord]:
    """A session a factor, one sample each."""
    return [one_sample(number, factor, **changes) for number, factor in enumerate(factors)]


def speeds(base: Sequence[SampleRecord], candidate: Sequence[SampleRecord], *more: Any) -> dict[str, SpeedComparison]:
    return {one.metric: one for one in compare_speeds(base, candidate, *more)}


def reasons(base: Sequence[SampleRecord], candidate: Sequence[SampleRecord], *more: Any) -> str:
    """Why they do not compare; empty when they do."""
    found = compare_speeds(base, candidate, *more)
    assert len({one.reason for one in found if one.judgement is INVALID}) <= 1
    assert len({one.judgement is INVALID for one in found}) == 1
    return found[0].reason if found[0].judgement is INVALID else ""


# Records of comparisons


def test_a_speed_becomes_a_record() -> None:
    one = SpeedComparison("decode_tok_s", OK, REGRESSED, -0.1, -0.12, -0.08, 8, 0.002, 20.0, 18.0, "why")
    assert one.record("cell", "base", "s24", REGRESSED) == ComparisonRecord(
        "cell", "base", "s24", "decode_tok_s", "REGRESSED", -0.1, -0.12, -0.08, 8, 0.002, 20.0, 18.0, "why"
    )


def test_a_perplexity_becomes_a_record() -> None:
    one = PerplexityComparison(REGRESSED, 1.5, 1.25, 1.75, 9, 900, "", 10.0, 15.0)
    assert perplexity_record("cell", "base", "s24", "kv", one) == ComparisonRecord(
        "cell", "base", "s24", "token_ppl[kv]", "REGRESSED", 0.5, 0.25, 0.75, 9, 1.0, 10.0, 15.0, ""
    )
    invalid = PerplexityComparison(INVALID, math.nan, reason="other tokens")
    assert perplexity_record("cell", "base", "s24", "prefill", invalid) == ComparisonRecord(
        "cell", "base", "s24", "token_ppl[prefill]", "INVALID", None, None, None, 0, reason="other tokens"
    )
    few = PerplexityComparison(OK, 1.0, None, None, 2, 200, "", 10.0, 10.0)
    assert perplexity_record("cell", "base", "s24", "kv", few).change == 0.0


# A cell's word


def speed(judgement: Judgement, change: float | None = -0.1, metric: str = "decode_tok_s") -> SpeedComparison:
    return SpeedComparison(metric, judgement, judgement, change)


def made_of(outcome: Judgement, of_speed: Judgement, of_score: Judgement) -> CellComparison:
    return CellComparison(
        NAME, PASSED, PASSED, outcome, (speed(OK), speed(of_speed)), {"kv": PerplexityComparison(of_score, 1.0)}
    )


def test_a_cells_word_is_the_worst_of_what_it_is_made_of() -> None:
    worst_first = [REGRESSED, INVALID, INCONCLUSIVE, IMPROVED, OK]
    for words in itertools.product(worst_first, repeat=3):
        expected = min(words + (OK,), key=worst_first.index)  # noqa: RUF005
        assert made_of(*words).judgement is expected
    other_text = TextComparison(False, 1, 1, 0, 0)
    assert CellComparison(NAME, PASSED, PASSED, OK, text=other_text).judgement is OK


@pytest.mark.parametrize("before", [PASSED, FAILED, ERROR, SKIPPED, NOT_RUN, None])
@pytest.mark.parametrize("after", [PASSED, FAILED, ERROR, SKIPPED, NOT_RUN, None])
def test_a_cell_vanished_that_was_carried_out_and_is_no_more(before: str | None, after: str | None) -> None:
    carried_out = (PASSED, FAILED, ERROR)
    one = CellComparison(NAME, before, after, OK)
    assert one.vanished is (before in carried_out and after not in carried_out)


def test_a_comparison_counts_its_cells() -> None:
    words = [REGRESSED, OK, OK, INVALID]
    cells = tuple(CellComparison(f"{n}", PASSED, PASSED if n else None, word) for n, word in enumerate(words))
    found = RunComparison("a", "b", Target.SIM, cells, {})
    assert found.counts == {"REGRESSED": 1, "INVALID": 1, "INCONCLUSIVE": 0, "IMPROVED": 0, "OK": 2}
    assert list(found.counts) == ["REGRESSED", "INVALID", "INCONCLUSIVE", "IMPROVED", "OK"]
    assert found.with_judgement(OK) == cells[1:3]
    assert found.vanished == cells[:1]


# How cells ended


def ended(status: str, kind: FailureClass | None = None, **changes: Any) -> CellSummary:
    return CellSummary(planned(NAME, 75), status, kind, **changes)


BY_THE_PRODUCT = (FailureClass.PRODUCT, FailureClass.PERF, FailureClass.BUILD, FailureClass.CRASH)
GOOD = [ended(PASSED)]
BAD = [ended(status, kind) for status in (FAILED, ERROR) for kind in BY_THE_PRODUCT]
SILENT = [
    None,
    ended(NOT_RUN),
    ended(NOT_RUN, FailureClass.PRODUCT),
    ended(SKIPPED, FailureClass.UNSUPPORTED),
    ended(SKIPPED, FailureClass.PRODUCT),
    ended(ERROR),
    *(ended(ERROR, kind) for kind in FailureClass if kind not in BY_THE_PRODUCT),
]


def test_how_a_cell_ended_against_how_it_ended_before() -> None:
    sides = [(one, True) for one in GOOD] + [(one, False) for one in BAD] + [(one, None) for one in SILENT]
    for (before, good), (after, better) in itertools.product(sides, repeat=2):
        expected = {
            (True, True): OK, (False, False): INCONCLUSIVE, (True, False): REGRESSED, (False, True): IMPROVED
        }.get((good, better), INVALID)  # type: ignore[call-overload]  # fmt: skip
        assert compare_cells(before, after, NAME).outcome is expected, (before, after)


def test_a_cell_of_one_run_only_says_which() -> None:
    assert compare_cells(None, ended(PASSED), NAME) == CellComparison(
        NAME, None, PASSED, INVALID, reason="not in the base"
    )
    assert compare_cells(ended(FAILED, FailureClass.PRODUCT), None, NAME) == CellComparison(
        NAME, FAILED, None, INVALID, reason="not in the new run"
    )


def test_what_the_candidate_ended_with_is_kept() -> None:
    base = ended(FAILED, FailureClass.CRASH, reason="1", remedy="2", evidence="3")
    found = compare_cells(
        base, ended(ERROR, FailureClass.BUILD, reason="why", remedy="do", evidence="log", evidence_path="path"), NAME
    )
    assert (found.cell, found.base, found.candidate) == (NAME, FAILED, ERROR)
    assert (found.failure_class, found.reason, found.remedy, found.evidence) == (
        FailureClass.BUILD, "why", "do", "log",
    )  # fmt: skip
    assert (found.speeds, found.perplexity, found.text) == ((), {}, None)


def with_samples(*samples: SampleRecord, **changes: Any) -> CellSummary:
    return ended(PASSED, samples=tuple(samples), **changes)


def test_a_cells_speeds_scores_and_texts_are_compared() -> None:
    scores = (perplexity(NAME, "PHONE", "kv", 5000.0),)
    before, after = side(*[1.0] * 5), side(*[0.5] * 5)
    found = compare_cells(with_samples(*before, perplexities=scores), with_samples(*after, perplexities=scores), NAME)
    assert [one.judgement for one in found.speeds] == [REGRESSED] * 3
    assert found.perplexity["kv"].judgement is OK
    assert found.text == TextComparison(True, 1)
    assert found.judgement is REGRESSED
    assert compare_cells(with_samples(*before), ended(PASSED), NAME).speeds == ()
    assert compare_cells(ended(PASSED), with_samples(*before), NAME).speeds == ()


def test_facts_of_the_runs_and_lengths_that_differ_are_reasons() -> None:
    a = with_samples(*side(*[1.0] * 5))
    plan = planned(NAME, 75)
    b = replace(a, plan=replace(plan, lengths=replace(plan.lengths, max_seq_len=64)))
    assert {one.reason for one in compare_cells(a, b, NAME, ["host"]).speeds} == {"host differs; lengths differ"}
    assert {one.reason for one in compare_cells(a, a, NAME, ["host"]).speeds} == {"host differs"}
    assert {one.reason for one in compare_cells(a, b, NAME).speeds} == {"lengths differ"}
    assert {one.judgement for one in compare_cells(a, a, NAME).speeds} == {OK}


def test_the_rules_reach_a_cells_speeds() -> None:
    rules = replace(RULES, margin=0.6)
    before, after = with_samples(*side(*[1.0] * 5)), with_samples(*side(*[0.5] * 5))
    assert {one.judgement for one in compare_cells(before, after, NAME, (), rules).speeds} == {OK, REGRESSED}


# Speeds


def wobble(count: int, by: float, seed: int = 0) -> list[float]:
    return [float(one) for one in np.exp(np.random.default_rng(seed).normal(0, by, count))]


@pytest.mark.parametrize("pairs", [5, 8])
@pytest.mark.parametrize("shift", [0.9, 1.0, 1.1])
def test_every_number_of_a_speeds_change(pairs: int, shift: float) -> None:
    a, b = wobble(pairs, 0.01, 1), [shift * one for one in wobble(pairs, 0.01, 2)]
    found = speeds(side(*a), side(*b))
    assert list(found) == ["ttft_ms", "prefill_tok_s", "decode_tok_s"]
    expected = {0.9: REGRESSED, 1.0: OK, 1.1: IMPROVED}[shift]
    for metric, unit, sign in (("decode_tok_s", 20.0, 1), ("prefill_tok_s", 300.0, 1), ("ttft_ms", 40.0, -1)):
        old, new = ([unit * one**sign for one in values] for values in (a, b))
        d = np.log(new) - np.log(old)
        reach = stats.t.ppf(0.95, pairs - 1) * d.std(ddof=1) / math.sqrt(pairs)
        one = found[metric]
        assert one.change == pytest.approx(math.exp(d.mean()) - 1)
        assert one.lower == pytest.approx(math.exp(d.mean() - reach) - 1)
        assert one.upper == pytest.approx(math.exp(d.mean() + reach) - 1)
        assert one.p == pytest.approx(stats.ttest_1samp(-sign * d, 0, alternative="greater").pvalue)
        assert (one.base, one.candidate) == pytest.approx((statistics.median(old), statistics.median(new)))
        assert one.each == tuple(
            (n, pytest.approx(x), pytest.approx(y)) for n, (x, y) in enumerate(zip(old, new, strict=True))
        )
        assert (one.pairs, one.judgement, one.alone, one.reason) == (pairs, expected, expected, "")


FEW = "{} pair(s) of sessions, 5 are needed: run `pytest -m device --ab`"


def test_one_pair_has_a_change_and_no_interval() -> None:
    found = speeds(side(1.0), side(0.5))
    assert found["decode_tok_s"] == SpeedComparison(
        "decode_tok_s", INCONCLUSIVE, INCONCLUSIVE, pytest.approx(-0.5), None, None, 1, 1.0, 20.0, 10.0,
        FEW.format(1), ((0, 20.0, 10.0),),
    )  # fmt: skip
    assert found["ttft_ms"].change == pytest.approx(1.0)


@pytest.mark.parametrize("pairs", [2, 4])
def test_too_few_pairs_have_an_interval_and_no_judgement(pairs: int) -> None:
    one = speeds(side(*wobble(pairs, 0.001)), side(*[0.5] * pairs))["decode_tok_s"]
    assert (one.judgement, one.alone, one.reason, one.pairs) == (INCONCLUSIVE, INCONCLUSIVE, FEW.format(pairs), pairs)
    assert one.change == pytest.approx(-0.5, abs=0.01)
    assert one.lower is not None
    assert one.upper is not None
    assert one.lower < one.change < one.upper  # type: ignore[operator]
    assert one.p < 0.01


def test_the_rules_say_how_many_pairs_are_needed() -> None:
    rules = replace(RULES, first=3)
    found = compare_speeds(side(*wobble(3, 0.001)), side(*[0.5] * 3), (), rules)
    assert {one.judgement for one in found} == {REGRESSED}
    found = compare_speeds(side(1.0, 1.0), side(0.5, 0.5), (), rules)
    assert {one.reason for one in found} == {"2 pair(s) of sessions, 3 are needed: run `pytest -m device --ab`"}


def test_a_session_is_the_median_of_its_iterations_and_a_side_the_median_of_its_sessions() -> None:
    base = [one_sample(n, f) for n in range(5) for f in (1.0, 1.0, 7.0)]
    candidate = [one_sample(n, f) for n in range(5) for f in (1.0, 1.0, 0.1)]
    one = speeds(base, candidate)["decode_tok_s"]
    assert (one.judgement, one.change, one.base, one.candidate) == (OK, 0.0, 20.0, 20.0)
    uneven = speeds(side(1.0, 2.0, 9.0), side(1.0, 1.0, 1.0))["decode_tok_s"]
    assert (uneven.base, uneven.candidate) == (40.0, 20.0)


def test_only_sessions_of_both_sides_pair() -> None:
    base = [*side(1.0, 2.0, 4.0), one_sample(7, 8.0)]
    candidate = [one_sample(7, 4.0), one_sample(2, 2.0), one_sample(5, 1.0)]
    one = speeds(base, candidate)["decode_tok_s"]
    assert one.each == ((2, 80.0, 40.0), (7, 160.0, 80.0))
    assert one.pairs == 2
    assert reasons(side(1.0), [one_sample(3)]) == "no session has its counterpart"


def test_samples_of_pairs_are_compared_alone_where_there_are_any() -> None:
    def paired(factor: float) -> list[SampleRecord]:
        return [one_sample(100 + n, factor, pair=n + 1) for n in range(5)]

    warm = [one_sample(0, 0.01, phone="another"), one_sample(101, 0.01)]
    for base, candidate in ((warm + paired(1.0), paired(0.5)), (paired(1.0), warm + paired(0.5))):
        one = speeds(base, candidate)["decode_tok_s"]
        assert (one.judgement, one.pairs) == (REGRESSED, 5)
        assert [number for number, _, _ in one.each] == [1, 2, 3, 4, 5]
    # One side in pairs and the other not: nothing is measured on that side.
    assert "nothing was measured" not in reasons(paired(1.0), paired(1.0))
    assert reasons(paired(1.0), side(*[1.0] * 5)).startswith("SoC differs: SM8650 and ;")
    assert reasons(side(*[1.0] * 5), paired(1.0)).startswith("SoC differs:  and SM8650;")


def test_what_one_side_did_not_measure_is_invalid_for_that_metric_alone() -> None:
    base = side(*[1.0] * 5)
    for missing in (None, 0.0, math.nan):
        for a, b in ((base, side(*[1.0] * 5, ttft_ms=missing)), (side(*[1.0] * 5, ttft_ms=missing), base)):
            found = speeds(a, b)
            assert found["ttft_ms"].judgement is found["ttft_ms"].alone is INVALID
            assert found["ttft_ms"].reason == "ttft_ms was not measured on both sides"
            assert (found["ttft_ms"].change, found["ttft_ms"].each, found["ttft_ms"].p) == (None, (), 1.0)
            assert found["decode_tok_s"].judgement is OK
    lost = [replace(one, decode_tok_s=None) if n == 2 else one for n, one in enumerate(base)]
    assert [n for n, _, _ in speeds(base, lost)["decode_tok_s"].each] == [0, 1, 3, 4]
    assert [n for n, _, _ in speeds(lost, base)["decode_tok_s"].each] == [0, 1, 3, 4]


VITALS: Callable[..., dict[str, Any]] = lambda **after: {"vitals": {"after": after}}  # noqa: E731


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"phone": "s25"}, "phone differs: s24 and s25"),
        ({"soc": "SM8750"}, "SoC differs: SM8650 and SM8750"),
        ({"target": Target.ANDROID}, "target differs: sim and android"),
        ({"settings": {"seed": 7, "temperature": 1}}, "settings differs"),
        ({"raw": VITALS(clocks={"cpu": 1})}, "clocks differs: absent and {'cpu': 1}"),
        ({"generated_tokens": 60}, "session 0: token counts differ: 5 in, 60 out, 5 in, 63 out"),
        ({"prompt_tokens": 4}, "session 0: token counts differ: 4 in, 63 out, 5 in, 63 out"),
        ({"prompt": "Other"}, "session 0: prompt differs: ('In the beginning',) and ('Other',)"),
        ({"raw": VITALS(throttled=True)}, "throttled in 5 session(s)"),
    ],
)  # fmt: skip
def test_why_speeds_do_not_compare(changes: dict[str, object], reason: str) -> None:
    base, other = side(*[1.0] * 5), side(*[1.0] * 5, **changes)
    assert reasons(base, other).startswith(reason)
    assert reasons(other, other) == ("throttled in 10 session(s)" if "throttled" in reason else "")
    found = speeds(base, other)["decode_tok_s"]
    assert (found.judgement, found.alone, found.change, found.pairs) == (INVALID, INVALID, None, 0)
    assert (found.base, found.candidate, found.each, found.p) == (20.0, 20.0, (), 1.0)


def test_settings_in_another_order_are_the_same() -> None:
    other = side(*[1.0] * 5, settings={"seed": 7, "temperature": 0})
    assert reasons(side(*[1.0] * 5), other) == ""


def test_the_same_phones_in_another_order_are_the_same() -> None:
    base = [one_sample(n, phone=name) for n, name in enumerate(("a", "b", "a"))]
    candidate = [one_sample(n, phone=name) for n, name in enumerate(("b", "a", "b"))]
    assert reasons(base, candidate) == ""
    assert reasons(base, [one_sample(n, phone="a") for n in range(3)]).startswith("phone differs: a, b and a")
    mixed = [one_sample(n, soc=soc) for n, soc in enumerate(("SM8750", "SM8650"))]
    assert "SoC differs: SM8650, SM8750 and SM8650" in reasons(mixed, side(1.0, 1.0))
    warm = [one_sample(n, settings={"t": n}) for n in range(2)]
    assert reasons(warm, list(reversed(warm))) == ""
    kinds = [one_sample(n, target=kind) for n, kind in enumerate((Target.SIM, Target.ANDROID))]
    assert reasons(kinds, [one_sample(n, target=kind) for n, kind in enumerate((Target.ANDROID, Target.SIM))]) == ""


def test_of_many_phones_socs_and_clocks_all_are_named_in_order() -> None:
    names = "fbdace"
    single = [one_sample(0, phone="x", soc="y", raw=VITALS(clocks="z"))]
    for changes in (
        [{"phone": name, "soc": "y", "raw": VITALS(clocks="z")} for name in names],
        [{"phone": "x", "soc": name, "raw": VITALS(clocks="z")} for name in names],
        [{"phone": "x", "soc": "y", "raw": VITALS(clocks=name)} for name in names],
    ):
        many = [one_sample(n, **one) for n, one in enumerate(changes)]  # type: ignore[arg-type]
        assert " differs: a, b, c, d, e, f and " in reasons(many, single)
    many = [one_sample(n, settings={"t": name}) for n, name in enumerate(names)]
    assert "; ".join(f"[('t', '{name}')]" for name in sorted(names)) in reasons(many, side(1.0))


def test_sessions_pair_in_the_order_of_their_numbers() -> None:
    numbers = (8, 1, 16, 3)
    found = speeds([one_sample(n) for n in numbers], [one_sample(n) for n in numbers])["decode_tok_s"]
    assert [n for n, _, _ in found.each] == [1, 3, 8, 16]


def test_a_speed_below_one_a_second_is_a_speed() -> None:
    slow, fast = side(*[1.0] * 5, decode_tok_s=0.4), side(*[1.0] * 5)
    assert speeds(slow, slow)["decode_tok_s"].judgement is OK
    assert speeds(slow, fast)["decode_tok_s"].judgement is IMPROVED
    assert speeds(fast, slow)["decode_tok_s"].judgement is REGRESSED


def test_clocks_that_are_the_same_compare_and_sort() -> None:
    clocks = [[one_sample(n, raw=VITALS(clocks=c)) for n, c in enumerate(order)] for order in ("xyx", "yxy")]
    assert reasons(*clocks) == ""
    assert reasons(clocks[0], clocks[0][:1]).startswith("clocks differs: x, y and x")


@pytest.mark.parametrize("raw", [{}, {"vitals": None}, {"vitals": {}}, {"vitals": {"after": None}}, {"vitals": 3}])
def test_vitals_that_are_not_there_say_nothing(raw: dict[str, Any]) -> None:
    assert reasons(side(1.0, raw=raw), side(1.0)) == ""


def test_only_a_phone_that_says_it_is_throttled_is() -> None:
    for word in (False, None, "yes", 1):
        assert reasons(side(1.0), side(1.0, raw=VITALS(throttled=word))) == ""
    one = [one_sample(0), one_sample(1, raw=VITALS(throttled=True))]
    assert reasons(one, side(1.0, 1.0)) == "throttled in 1 session(s)"
    assert reasons(side(1.0, 1.0), one) == "throttled in 1 session(s)"


def test_three_reasons_are_told_those_known_already_first() -> None:
    other = side(1.0, phone="s25", soc="SM8750", prompt="Other")
    assert reasons(side(1.0), other, ["host differs", "lengths differ"]) == (
        "host differs; lengths differ; SoC differs: SM8650 and SM8750"
    )
    assert reasons(side(1.0), side(1.0), ["host differs"]) == "host differs"


def test_prompts_are_those_of_the_session_in_their_order_each_once() -> None:
    base = [one_sample(0, prompt=word) for word in "abba"]
    assert reasons(base, [one_sample(0, prompt=word) for word in "abab"]) == ""
    assert "prompt differs: ('a', 'b') and ('b', 'a')" in reasons(base, [one_sample(0, prompt=w) for w in "baba"])


# Among all


def as_cells(*found: SpeedComparison) -> list[CellComparison]:
    return [CellComparison(str(n), PASSED, PASSED, OK, (one,)) for n, one in enumerate(found)]


@pytest.mark.parametrize("metric", ["decode_tok_s", "ttft_ms"])
@pytest.mark.parametrize("pairs", [5, 8])
def test_the_p_value_among_all_is_that_of_the_pairs(metric: str, pairs: int) -> None:
    """It is had again from the interval; alone in its family it is held against q as it is."""
    one = speeds(side(*wobble(pairs, 0.02, 3)), side(*(0.9 * f for f in wobble(pairs, 0.02, 4))))[metric]
    assert one.alone is REGRESSED
    for factor, expected in ((1.0001, REGRESSED), (0.9999, INCONCLUSIVE)):
        (cell,) = controlled(as_cells(one), replace(RULES, q=one.p * factor))
        assert cell.speeds[0].judgement is expected


def test_two_pairs_have_a_p_value_and_one_has_none() -> None:
    rules = replace(RULES, first=2)
    two = compare_speeds(side(1.0, 1.01), side(0.5, 0.5), (), rules)[2]
    assert two.alone is REGRESSED
    assert controlled(as_cells(two), replace(rules, q=two.p * 1.001))[0].speeds[0].judgement is REGRESSED
    one = SpeedComparison("decode_tok_s", REGRESSED, REGRESSED, -0.5, -0.6, -0.4, 1)
    assert controlled(as_cells(one), replace(RULES, q=0.999))[0].speeds[0].judgement is INCONCLUSIVE
    unknown = SpeedComparison("decode_tok_s", REGRESSED, REGRESSED, None, None, None, 8)
    assert controlled(as_cells(unknown), replace(RULES, q=0.999))[0].speeds[0].judgement is INCONCLUSIVE
    assert controlled(as_cells(unknown), replace(RULES, q=1.0))[0].speeds[0].judgement is REGRESSED


def test_a_judgement_taken_back_says_among_how_many() -> None:
    doubtful = speeds(side(*wobble(5, 0.02, 3)), side(*(0.93 * f for f in wobble(5, 0.02, 4))))["decode_tok_s"]
    doubtful = replace(doubtful, alone=REGRESSED, judgement=REGRESSED)
    even = speeds(side(*wobble(5, 0.02, 5)), side(*wobble(5, 0.02, 6)))["decode_tok_s"]
    invalid = SpeedComparison("decode_tok_s", INVALID, INVALID, reason="phone differs")
    cells = as_cells(doubtful, even, invalid)
    cells.append(CellComparison("x", PASSED, PASSED, OK))
    found = controlled(cells, replace(RULES, q=doubtful.p * 1.5))
    assert found[0].speeds == (
        replace(doubtful, judgement=INCONCLUSIVE, reason="REGRESSED alone, but not among 3 comparisons"),
    )
    assert [one.speeds for one in found[1:]] == [(even,), (invalid,), ()]
    assert [one.cell for one in found] == ["0", "1", "2", "x"]
    assert controlled([]) == ()


def test_each_cell_keeps_its_own_speeds_in_order() -> None:
    found = compare_speeds(side(*[1.0] * 5), side(*[0.5] * 5))
    cells = [CellComparison(name, PASSED, PASSED, OK, found) for name in "ab"]
    assert [one.speeds for one in controlled(cells)] == [found, found]


# Perplexity and text


def score(ground: str, graph: str, tokens: int, nll: float, *blocks: tuple[int, float]) -> PerplexityRecord:
    return replace(perplexity(NAME, ground, graph, nll), tokens=tokens, blocks=blocks)  # type: ignore[arg-type]


def test_only_the_phones_graphs_are_compared_and_only_over_the_same_tokens() -> None:
    base = [
        score("QDQ", "prefill", 100, 300.0),
        score("PHONE", "kv", 100, 400.0),
        score("QDQ", "kv", 100, 300.0),
        score("PHONE", "prefill", 200, 800.0),
        score("PHONE", "full", 100, 400.0),
    ]
    candidate = [
        score("PHONE", "prefill", 100, 400.0),
        score("PHONE", "full", 100, 500.0),
        score("PHONE", "kv", 100, 400.0),
        score("QDQ", "full", 100, 400.0),
        score("FP", "kv", 100, 450.0),
    ]
    found = compare_perplexities(base, candidate)
    assert list(found) == ["prefill", "full", "kv"]
    assert found["kv"].judgement is OK
    assert found["full"].judgement is REGRESSED
    assert (found["full"].base, found["full"].candidate) == pytest.approx((math.exp(4.0), math.exp(5.0)))
    unlike = found["prefill"]
    assert unlike.judgement is INVALID
    assert (unlike.base, unlike.candidate, unlike.documents, unlike.tokens) == (None, None, 0, 0)
    assert math.isnan(unlike.ratio)
    assert unlike.reason == "200 tokens against 100, and no first ones that both records tell apart"
    assert compare_perplexities([], candidate) == compare_perplexities(base, []) == {}


def test_scores_are_paired_block_by_block_where_they_have_blocks() -> None:
    blocks = [(32, 100.0 + n) for n in range(6)]
    base = score("PHONE", "kv", 192, 615.0, *blocks)
    worse = score("PHONE", "kv", 192, 645.0, *((tokens, nll + 5) for tokens, nll in blocks))
    one = compare_perplexities([base], [worse])["kv"]
    assert (one.documents, one.tokens, one.judgement) == (6, 192, REGRESSED)
    assert one.ratio == pytest.approx(math.exp(30 / 192))
    plain = compare_perplexities([replace(base, blocks=())], [replace(worse, blocks=())])["kv"]
    assert (plain.documents, plain.tokens) == (1, 192)
    assert plain.ratio == pytest.approx(math.exp(30 / 192))
    # Blocks of one side alone, or other ones: the same tokens as one document.
    others = ((96, 320.0), (96, 325.0))
    for sides in (
        (base, replace(worse, blocks=())),
        (replace(base, blocks=()), worse),
        (base, replace(worse, blocks=others)),
    ):
        assert compare_perplexities([sides[0]], [sides[1]]) == {"kv": plain}


def test_scores_of_different_shares_are_compared_block_by_block_over_the_common_one() -> None:
    blocks = [(32, 100.0 + n) for n in range(6)]
    base = score("PHONE", "kv", 192, 615.0, *blocks)
    first = score("PHONE", "kv", 96, 303.0 + 15, *((tokens, nll + 5) for tokens, nll in blocks[:3]))
    one = compare_perplexities([base], [first])["kv"]
    assert (one.documents, one.tokens, one.judgement) == (3, 96, REGRESSED)
    assert one.ratio == pytest.approx(math.exp(15 / 96))
    assert (one.base, one.candidate) == pytest.approx((math.exp(303 / 96), math.exp(318 / 96)))
    assert one.reason == "over the first 96 tokens, of 192 against 96"
    back = compare_perplexities([first], [base])["kv"]
    assert (back.documents, back.tokens) == (3, 96)
    assert back.ratio == pytest.approx(math.exp(-15 / 96))
    assert back.reason == "over the first 96 tokens, of 96 against 192"
    plain = compare_perplexities([base], [replace(first, blocks=())])["kv"]
    assert (plain.documents, plain.tokens, plain.reason) == (1, 96, one.reason)
    assert plain.ratio == pytest.approx(math.exp(15 / 96))


def reply(prompt: str, *tokens: int, **changes: Any) -> SampleRecord:
    return sample(NAME, 0, prompt=prompt, raw={"turns": [{"tokens": list(tokens)}]}, **changes)


def test_the_first_reply_to_each_prompt_of_both_is_compared() -> None:
    base = [reply("b", 1), reply("only here", 5), reply("a", 2), reply("a", 9), reply("b", 8)]
    candidate = [reply("a", 2), reply("b", 1), reply("a", 7), reply("only there", 5)]
    assert compare_texts(base, candidate) == TextComparison(True, 2)
    assert compare_texts(base, [reply("a", 3), *candidate]) == TextComparison(False, 2, 1, 1, 0)
    assert compare_texts(base, [reply("b", 3), *candidate]) == TextComparison(False, 2, 1, 0, 0)
    assert compare_texts(base, [reply("other", 1)]) is None
    assert compare_texts([], candidate) is None
    assert compare_texts(base, []) is None


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"turns": []},
        {"turns": None},
        {"turns": [3]},
        {"turns": [{}]},
        {"turns": [{"tokens": None}]},
        {"turns": {"0": 1}},
        {"turns": [{"tokens": "12"}]},
    ],
)
def test_a_record_without_tokens_is_compared_by_its_characters(raw: dict[str, Any]) -> None:
    one = sample(NAME, raw=raw, text="aé")
    assert reply_tokens(one) == [97, 233]
    assert has_tokens(one) is False


def test_the_tokens_of_the_first_turn_are_the_reply() -> None:
    one = sample(NAME, raw={"turns": [{"tokens": ["1", 2.0]}, {"tokens": [3]}]}, text="a")
    assert reply_tokens(one) == [1, 2]
    assert has_tokens(one) is True
    empty = sample(NAME, raw={"turns": [{"tokens": []}]}, text="a")
    assert (reply_tokens(empty), has_tokens(empty)) == ([], True)


def test_the_worst_change_is_that_of_what_regressed() -> None:
    def worst(*found: SpeedComparison, **scores: PerplexityComparison) -> float:
        return worst_change(CellComparison(NAME, PASSED, PASSED, OK, found, scores))

    assert worst() == 0
    assert worst(speed(OK, -0.5), speed(IMPROVED, 0.5), speed(REGRESSED, None)) == 0
    assert worst(speed(REGRESSED, -0.25), speed(REGRESSED, -0.125)) == 0.25
    assert worst(speed(REGRESSED, 0.5, "ttft_ms"), speed(REGRESSED, -0.25)) == 0.5
    assert worst(speed(REGRESSED, -0.25), kv=PerplexityComparison(REGRESSED, 1.5)) == 0.5
    assert worst(kv=PerplexityComparison(INCONCLUSIVE, 1.5)) == 0
    assert worst(speed(REGRESSED, 0.25)) == 0


# Whole runs


def data(name: str, *cells: str, **changes: Any) -> RunData:
    info = replace(run_info(), id=name, **changes)
    made = {cell: tuple(replace(one, cell=cell) for one in side(*[1.0] * 5)) for cell in cells}
    return RunData(
        run=info, resumed=(), plan=tuple(planned(cell, 75) for cell in cells), artifacts={}, deploys={}, samples=made,
        perplexities={}, ttfts={}, tasks={}, checks={},
        outcomes={cell: OutcomeRecord(cell, Status.PASSED) for cell in cells},
    )  # fmt: skip


A, B, C = (f"{letter}-kv-SM8650" for letter in "abc")


def test_all_cells_of_either_run_are_compared_in_order() -> None:
    found = compare_runs(data("old", C, A), data("new", B, C))
    assert (found.base, found.candidate, found.target) == ("old", "new", Target.SIM)
    assert [(one.cell, one.base, one.candidate) for one in found.cells] == [
        (A, PASSED, None), (B, None, PASSED), (C, PASSED, PASSED),
    ]  # fmt: skip
    assert [one.judgement for one in found.cells] == [INVALID, INVALID, OK]


def test_parts_of_the_toolchain_that_differ_are_named() -> None:
    old = data("old", A, toolchain={"qnn": "2.4", "z": "1", "same": "1"})
    new = data("new", A, toolchain={"qnn": "2.7", "same": "1", "added": "3"})
    found = compare_runs(old, new).toolchain
    assert found == {"added": ("absent", "3"), "qnn": ("2.4", "2.7"), "z": ("1", "absent")}
    assert list(found) == ["added", "qnn", "z"]


def test_runs_on_other_targets_or_hosts_have_no_speeds_to_compare() -> None:
    old = data("old", A)

    def why(new: RunData, base: RunData = old) -> set[str]:
        return {one.reason for one in compare_runs(base, new).cells[0].speeds}

    assert why(data("new", A)) == {""}
    assert why(data("new", A, host="bench-2")) == {"host differs"}
    phones = [data(name, A, target=Target.ANDROID, host=name) for name in ("one", "two")]
    assert why(phones[1], phones[0]) == {""}
    assert why(phones[1]) == {"host differs; target differs"}
    assert compare_runs(old, phones[0]).target is Target.ANDROID


def test_the_rules_of_a_whole_comparison_reach_cells_and_their_control() -> None:
    old, new = data("old", A), data("new", A)
    slow = replace(new, samples={A: tuple(replace(one, cell=A) for one in side(*(0.9 * f for f in wobble(5, 0.01))))})
    assert compare_runs(old, slow).cells[0].judgement is REGRESSED
    assert compare_runs(old, slow, replace(RULES, margin=0.3)).cells[0].judgement is OK
    assert compare_runs(old, slow, replace(RULES, q=1e-12)).cells[0].judgement is INCONCLUSIVE
