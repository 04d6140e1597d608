"""The gate by itself: each finding whole, with its rank and its exit status, and each bound from both sides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from sample_run import perplexity, planned, run_info

from harness.compare.baselines import Accepted, Baseline, BaselineCell
from harness.compare.gate import Finding, GateResult, GoodRun, gate, last_whole
from harness.compare.runs import CellComparison, RunComparison, SpeedComparison
from harness.errors import FailureClass
from harness.history.query import RunValue
from harness.history.trend import Trend
from harness.results.records import PerplexityRecord, Status
from harness.results.summary import NOT_RUN, CellSummary, RunSummary
from harness.target import Target
from harness.verdicts import RULES, Better, Bound, Declared, Judgement, PerplexityComparison, TextComparison

REGRESSED, OK, IMPROVED = Judgement.REGRESSED, Judgement.OK, Judgement.IMPROVED
INCONCLUSIVE, INVALID = Judgement.INCONCLUSIVE, Judgement.INVALID
PASSED, FAILED, ERROR, SKIPPED = (
    one.value for one in (Status.PASSED, Status.FAILED, Status.ERROR, Status.SKIPPED)
)  # fmt: skip
NAME = "tiny_llama-kv-SM8650"


def cell(status: str = PASSED, kind: FailureClass | None = None, name: str = NAME, **changes: object) -> CellSummary:
    return CellSummary(planned(name, 75), status, kind, **changes)  # type: ignore[arg-type]


def summary(*cells: CellSummary, target: Target = Target.SIM) -> RunSummary:
    return RunSummary(run_info(target), (), cells, {}, "", "")


def comparison(*cells: CellComparison) -> RunComparison:
    return RunComparison("the-base", "the-run", Target.SIM, cells, {})


def compared(name: str = NAME, **changes: object) -> CellComparison:
    values: dict[str, object] = {"base": PASSED, "candidate": PASSED, "outcome": OK}
    return CellComparison(name, **(values | changes))  # type: ignore[arg-type]


def findings(one: CellSummary, **arguments: object) -> list[Finding]:
    return list(gate(summary(one), **arguments).findings)  # type: ignore[arg-type]


def said(one: CellComparison) -> list[Finding]:
    """What the gate finds in a comparison of a cell that passed."""
    return findings(cell(name=one.cell), comparison=comparison(one))


# How a cell ended


@pytest.mark.parametrize("ended", [FAILED, ERROR])
@pytest.mark.parametrize(
    ("kind", "rank", "status"),
    [
        (FailureClass.PRODUCT, 0, 1),
        (FailureClass.CRASH, 1, 1),
        (FailureClass.BUILD, 2, 1),
        (FailureClass.PERF, 4, 1),
        (FailureClass.INVALID, 5.2, 1),
        (FailureClass.INCONCLUSIVE, 5.4, 1),
        (FailureClass.NOT_JUDGED, 5.6, 1),
        (FailureClass.CONFIG, 6, 2),
        (FailureClass.ENV, 8, 3),
        (FailureClass.INFRA, 8, 3),
        (FailureClass.UNSUPPORTED, 0, 1),
    ],
)
def test_each_class_of_failure_has_its_place_and_its_status(
    ended: str, kind: FailureClass, rank: float, status: int
) -> None:
    one = cell(ended, kind, reason="why", remedy="do this", evidence="the output")
    expected = Finding(rank, NAME, f"{kind}: why", "do this", "the output", status, "run 7")
    assert findings(one, last_good={NAME: "run 7", "another": "run 8"}) == [expected]
    assert findings(one) == [replace(expected, last_good="")]


@pytest.mark.parametrize("ended", [FAILED, ERROR])
def test_a_failure_without_a_class_blocks_as_the_products(ended: str) -> None:
    assert findings(cell(ended, reason="nobody said why")) == [Finding(0, NAME, "PRODUCT: nobody said why", status=1)]


def test_a_path_to_the_evidence_is_better_than_the_output() -> None:
    one = cell(FAILED, FailureClass.PRODUCT, evidence="the output", evidence_path="evidence/a.log")
    assert findings(one)[0].evidence == "evidence/a.log"


def test_a_cell_that_was_not_run_is_for_the_rack_to_mend() -> None:
    expected = Finding(7, NAME, "not run: the run was interrupted", "resume it", status=3)
    assert findings(cell(NOT_RUN)) == [expected]


def test_a_cell_that_passed_or_was_skipped_is_no_finding() -> None:
    assert findings(cell(PASSED)) == []
    assert findings(cell(SKIPPED, FailureClass.UNSUPPORTED)) == []
    assert findings(cell(PASSED, FailureClass.PRODUCT)) == []


def test_a_run_without_cells_is_no_good_run() -> None:
    found = gate(summary())
    assert found.findings == (Finding(7, "", "the run has no cells", "choose some", status=3),)
    assert (found.status, found.passed) == (3, False)


@pytest.mark.parametrize(
    ("kinds", "status"),
    [
        ([], 0),
        ([FailureClass.ENV], 3),
        ([FailureClass.INFRA, FailureClass.CONFIG], 2),
        ([FailureClass.CONFIG, FailureClass.INFRA, FailureClass.BUILD], 1),
        ([FailureClass.INFRA, FailureClass.PRODUCT], 1),
    ],
)
def test_the_products_fault_comes_before_the_configurations_and_that_before_the_racks(
    kinds: Sequence[FailureClass], status: int
) -> None:
    cells = [cell(ERROR, kind, f"{NAME}-{number}") for number, kind in enumerate(kinds)]
    found = gate(summary(cell(), *cells))
    assert (found.status, found.passed) == (status, status == 0)
    assert found.run == run_info().id


def test_findings_come_by_rank_and_then_by_cell() -> None:
    kinds = {"a": FailureClass.INFRA, "c": FailureClass.PRODUCT, "b": FailureClass.PRODUCT, "d": FailureClass.CRASH}
    found = gate(summary(*(cell(ERROR, kind, f"{name}-kv-SM8650") for name, kind in kinds.items())))
    assert [one.cell[0] for one in found.findings] == ["b", "c", "d", "a"]


# What it is held against


def baseline(*cells: str, target: str = "sim", name: str = "x.json", **kept: float) -> Accepted:
    made = {one: BaselineCell(status=PASSED, perplexity=kept) for one in cells}
    return Accepted(
        Path("baselines") / name,
        Baseline(
            run="r", started="2026", target=target, toolchain={}, accepted="2026", who="Ada", why="good", cells=made
        ),
    )


def trend(judgement: Judgement | None = REGRESSED, p: float = 1e-6, name: str = NAME, metric: str = "decode_tok_s",
          bounded: bool = True) -> Trend:  # fmt: skip
    bound = Bound(12, 20.0, 19.0, 21.0, 0.01) if bounded else None
    return Trend(name, metric, "sim", (RunValue("tonight", "", 18.0, 1, "sim"),), judgement, bound, p)


def test_what_the_run_was_held_against_is_said() -> None:
    run = summary(cell())
    assert gate(run).against == "nothing: no base, no baseline, and no history of ten runs"
    assert gate(run, baselines=[baseline(NAME)] * 2).against == "2 baseline(s)"
    trends = [trend(OK), trend(None, bounded=False), trend(OK, metric="ttft_ms")]
    assert gate(run, trends=trends).against == "the history of 2 speed(s)"
    both = gate(run, baselines=[baseline(NAME)], trends=trends)
    assert both.against == "1 baseline(s) and the history of 2 speed(s)"
    assert gate(run, comparison(compared()), [baseline(NAME)], trends).against == "run the-base"
    assert gate(run, trends=[trend(None, bounded=False)]).against.startswith("nothing")


def test_a_slowdown_found_by_pairs_is_judged_among_all_the_runs() -> None:
    slow = cell(FAILED, FailureClass.PERF, reason="slow alone")
    assert findings(slow, comparison=comparison(compared(candidate=FAILED))) == []
    other = compared("another-kv-SM8650", base=None)
    assert [one.what for one in findings(slow, comparison=comparison(other))] == ["PERF: slow alone"]
    assert [one.what for one in findings(slow)] == ["PERF: slow alone"]
    wrong = cell(FAILED, FailureClass.PRODUCT, reason="wrong")
    assert [one.what for one in findings(wrong, comparison=comparison(compared(candidate=FAILED)))] == [
        "PRODUCT: wrong"
    ]


def test_a_cell_that_fails_in_the_base_too_is_noted() -> None:
    note = Finding(9, NAME, "it fails in the base, too")
    assert said(compared(outcome=INCONCLUSIVE, base=FAILED)) == [note]
    assert said(compared(outcome=INCONCLUSIVE, base=PASSED)) == []
    assert said(compared(outcome=IMPROVED, base=FAILED)) == []


@pytest.mark.parametrize(
    ("judgement", "expected"),
    [
        (
            REGRESSED,
            Finding(
                3, NAME, "perplexity of the kv graph +5.00% against the base", "compare the two sides' QDQ", status=1
            ),
        ),
        (INVALID, Finding(9, NAME, "perplexity of the kv graph: INVALID: other tokens")),
        (OK, None),
        (INCONCLUSIVE, None),
        (IMPROVED, None),
    ],
)
def test_perplexity_against_the_base(judgement: Judgement, expected: Finding | None) -> None:
    one = PerplexityComparison(judgement, 1.05, reason="other tokens")
    assert said(compared(perplexity={"kv": one})) == ([expected] if expected else [])


def speed(judgement: Judgement, change: float | None = -0.1, metric: str = "decode_tok_s", **more: object) -> object:
    values: dict[str, object] = {
        "lower": -0.12, "upper": -0.08, "pairs": 8, "base": 20.0, "candidate": 18.0, "reason": ""
    }  # fmt: skip
    return SpeedComparison(metric, judgement, judgement, change, **(values | more))  # type: ignore[arg-type]


def test_a_slowdown_against_the_base_is_told_with_its_numbers() -> None:
    expected = Finding(
        pytest.approx(4.9),  # type: ignore[arg-type]
        NAME,
        "decode_tok_s REGRESSED: 20.0 → 18.0, -10.0% (-12.0% to -8.0%, 8 pairs)",
        "look at what the change does in this graph",
        status=1,
    )
    assert said(compared(speeds=(speed(REGRESSED),))) == [expected]


@pytest.mark.parametrize("judgement", [OK, IMPROVED, INCONCLUSIVE])
def test_a_speed_that_is_not_regressed_is_no_finding(judgement: Judgement) -> None:
    assert said(compared(speeds=(speed(judgement),))) == []


def test_a_slowdown_without_a_number_is_none() -> None:
    assert said(compared(speeds=(speed(REGRESSED, None),))) == []


def test_the_larger_slowdown_comes_first_and_all_come_after_accuracy() -> None:
    cells = {"a": -0.05, "b": -0.4, "c": -0.2}
    parts = [compared(f"{name}-kv-SM8650", speeds=(speed(REGRESSED, by),)) for name, by in cells.items()]
    worse = compared("d-kv-SM8650", perplexity={"kv": PerplexityComparison(REGRESSED, 1.02)})
    latency = compared("e-kv-SM8650", speeds=(speed(REGRESSED, 3.0, "ttft_ms"),))
    every = [*parts, worse, latency]
    found = gate(summary(*(cell(name=one.cell) for one in every)), comparison(*every))
    assert [one.cell[0] for one in found.findings] == ["d", "e", "b", "c", "a"]
    assert [one.rank for one in found.findings] == pytest.approx([3, 4.0, 4.6, 4.8, 4.95])


def test_speeds_that_do_not_compare_are_told_once_for_each_reason() -> None:
    speeds = (
        speed(INVALID, None, "ttft_ms", reason="phone differs"),
        speed(INVALID, None, "prefill_tok_s", reason="phone differs"),
        speed(INVALID, None, "decode_tok_s", reason="not measured"),
    )
    assert said(compared(speeds=speeds)) == [
        Finding(9, NAME, "ttft_ms, prefill_tok_s: INVALID: phone differs"),
        Finding(9, NAME, "decode_tok_s: INVALID: not measured"),
    ]


def test_another_text_is_for_people_to_look_at() -> None:
    text = TextComparison(False, 2, 1, 0, 3)
    assert said(compared(text=text)) == [Finding(9, NAME, text.words, "near ties may; the cell's own checks judge it")]
    assert said(compared(text=TextComparison(True, 2))) == []


@pytest.mark.parametrize(
    "one",
    [
        compared(text=TextComparison(False, 2, 1, 0, 3)),
        compared(speeds=(speed(INVALID, None, reason="phone differs"),)),
        compared(perplexity={"kv": PerplexityComparison(INVALID, math.nan, reason="other tokens")}),
        compared(outcome=INCONCLUSIVE, base=FAILED),
    ],
    ids=["text", "speed", "perplexity", "base"],
)
def test_a_note_does_not_block(one: CellComparison) -> None:
    found = gate(summary(cell()), comparison(one))
    assert [finding.status for finding in found.findings] == [0]
    assert found.passed


# Baselines


def scored(ppl: float, ground: str = "PHONE", graph: str = "kv") -> PerplexityRecord:
    return replace(perplexity(NAME, ground, graph, 0.0), nll_sum=2032 * math.log(ppl))  # type: ignore[arg-type]


KEY = {"PHONE/kv/2032": 100.0}


def test_perplexity_against_the_accepted_one() -> None:
    worse = cell(perplexities=(scored(103.0),))
    expected = Finding(
        3,
        NAME,
        "perplexity on PHONE [kv] 103 over 2032 tokens, accepted was 100: +3.00 %",
        "find what changed it, or accept it: `htpfarm baseline accept RUN --why …`",
        "baselines/x.json",
        1,
    )
    assert findings(worse, baselines=[baseline(NAME, **KEY)]) == [expected]


@pytest.mark.parametrize(("ppl", "blocks"), [(50.0, False), (100.99, False), (101.01, True), (math.inf, True)])
def test_one_percent_above_the_accepted_perplexity_blocks(ppl: float, blocks: bool) -> None:
    assert bool(findings(cell(perplexities=(scored(ppl),)), baselines=[baseline(NAME, **KEY)])) is blocks


def test_right_at_one_percent_and_no_number_at_all_block_too() -> None:
    exact = replace(scored(1.0), nll_sum=0.0)
    accepted = 1 / 1.01
    while accepted * 1.01 != 1.0:
        accepted = math.nextafter(accepted, 0.9 if accepted * 1.01 > 1.0 else 1.1)
    assert findings(cell(perplexities=(exact,)), baselines=[baseline(NAME, **{"PHONE/kv/2032": accepted})])
    nan = replace(scored(1.0), nll_sum=math.nan)
    assert findings(cell(perplexities=(nan,)), baselines=[baseline(NAME, **KEY)])[0].status == 1


@pytest.mark.parametrize("key", ["PHONE/prefill/2032", "QDQ/kv/2032", "PHONE/full/2032"])
def test_only_the_same_graph_on_the_same_ground_is_held_against_it(key: str) -> None:
    worse = cell(perplexities=(scored(200.0),))
    assert findings(worse, baselines=[baseline(NAME, **{key: 100.0})]) == []
    assert findings(worse, baselines=[baseline(NAME, **{key: 100.0, "PHONE/kv/2032": 199.0})]) == []
    found = findings(worse, baselines=[baseline(NAME, **{key: 300.0, "PHONE/kv/2032": 100.0})])
    assert [one.what for one in found] == ["perplexity on PHONE [kv] 200 over 2032 tokens, accepted was 100: +100.00 %"]


@pytest.mark.parametrize("tokens", ["2031", "2033", "many", "", "²"])
def test_an_accepted_perplexity_over_tokens_that_the_score_cannot_tell_apart_is_noted(tokens: str) -> None:
    said = Finding(
        9,
        NAME,
        f"perplexity on PHONE [kv]: INVALID: accepted over {tokens} tokens, scored over 2032",
        "score as many, or accept this run",
        "baselines/x.json",
        0,
    )
    held = [baseline(NAME, **{f"PHONE/kv/{tokens}": 100.0})]
    assert findings(cell(perplexities=(scored(200.0),)), baselines=held) == [said]
    assert findings(cell(perplexities=(scored(50.0),)), baselines=held) == [said]
    assert gate(summary(cell(perplexities=(scored(200.0),))), baselines=held).status == 0


@pytest.mark.parametrize(
    ("accepted", "what"),
    [(149.0, []), (100.0, ["perplexity on PHONE [kv] 150 over 1016 tokens, accepted was 100: +50.00 %"])],
)
def test_a_perplexity_accepted_over_the_first_blocks_is_held_against_those(accepted: float, what: list[str]) -> None:
    """Over the first half of its tokens it is 150, over all of them 200."""
    half = 1016 * math.log(150.0)
    whole = replace(scored(200.0), blocks=((508, half / 2), (508, half / 2), (1016, 2032 * math.log(200.0) - half)))
    found = findings(cell(perplexities=(whole,)), baselines=[baseline(NAME, **{"PHONE/kv/1016": accepted})])
    assert [one.what for one in found] == what
    assert all((one.rank, one.status) == (3, 1) for one in found)


def test_nothing_holds_against_an_accepted_perplexity_that_can_be_none() -> None:
    """No perplexity is below 1: a baseline with 0 is broken, and does not let everything through."""
    found = findings(cell(perplexities=(scored(200.0),)), baselines=[baseline(NAME, **{"PHONE/kv/2032": 0.0})])
    assert [(one.rank, one.what, one.status) for one in found] == [
        (3, "perplexity on PHONE [kv] 200 over 2032 tokens, accepted was 0.000: -", 1)
    ]


def test_every_score_is_held_against_its_own() -> None:
    scores = (scored(200.0, "QDQ", "full"), scored(300.0), scored(90.0, graph="prefill"))
    kept = {"QDQ/full/2032": 100.0, "PHONE/kv/2032": 100.0, "PHONE/prefill/2032": 100.0}
    found = findings(cell(perplexities=scores), baselines=[baseline(NAME, **kept)])
    assert [one.what.split("]")[0] for one in found] == ["perplexity on QDQ [full", "perplexity on PHONE [kv"]


def test_a_baseline_is_asked_only_of_a_cell_that_passed_on_its_target_and_has_no_base() -> None:
    scores = (scored(200.0),)
    held = [baseline(NAME, **KEY)]
    kinds = [one.what[:7] for one in findings(cell(FAILED, FailureClass.PRODUCT, perplexities=scores), baselines=held)]
    assert kinds == ["PRODUCT"]
    assert gate(summary(cell(perplexities=scores), target=Target.ANDROID), baselines=held).findings == ()
    assert findings(cell(perplexities=scores), baselines=held, comparison=comparison(compared())) == []
    assert findings(cell(perplexities=scores), baselines=[*held, baseline(NAME, **{"PHONE/kv/2032": 250.0})]) == []


# The model's file, and the history


def test_a_stated_bound_that_is_not_kept_blocks() -> None:
    bad = Declared("decode_tok_s", 20.0, Better.HIGHER, 18.0, False)
    good = replace(bad, metric="pte_bytes", passed=True)
    remedy = "measure it against the last good version, or see what the model's file cites (published)"
    expected = [Finding(4, NAME, "decode_tok_s 18, declared at least 20", remedy, status=1)]
    assert findings(cell(), stated={NAME: (good, bad)}) == expected
    assert findings(cell(), stated={NAME: (good,)}) == []


WHAT = "decode_tok_s 18.0, expected 20.0, at worst 19.0 (after 12 runs)"
AGAIN = "measure it against the last good version: `pytest -m device --ab …` (tonight)"


def test_a_night_slower_than_history_lets_expect_blocks() -> None:
    assert findings(cell(), trends=[trend()]) == [Finding(4, NAME, f"{WHAT}: REGRESSED", AGAIN, status=1)]


def test_nights_that_are_well_do_not_hide_the_one_that_is_not() -> None:
    well = trend(OK, 0.5, metric="ttft_ms")
    assert [one.status for one in findings(cell(), trends=[well, trend(), well])] == [1]


def test_a_slow_night_that_does_not_hold_among_all_is_noted() -> None:
    trends = [trend(p=0.01), *(trend(OK, 0.5, f"{name}-kv-SM8650") for name in "abc")]
    found = gate(summary(cell(), *(cell(name=f"{name}-kv-SM8650") for name in "abc")), trends=trends)
    assert found.findings == (Finding(9, NAME, f"{WHAT}: slow, but not surely among 4 speeds", AGAIN, status=0),)
    assert found.passed
    assert gate(summary(cell()), trends=trends, rules=replace(RULES, q=0.05)).status == 1
    assert gate(summary(cell()), trends=trends[:1]).status == 1


@pytest.mark.parametrize(
    "other",
    [trend(OK, 0.5), trend(INCONCLUSIVE, 0.5), trend(IMPROVED, 0.5), trend(p=0.5, bounded=False), trend(None, 0.5)],
    ids=lambda one: f"{one.judgement} {bool(one.bound)}",
)
def test_a_night_that_history_says_nothing_against_is_no_finding(other: Trend) -> None:
    assert findings(cell(), trends=[other]) == []
    # Nor does it count among the speeds that are judged, unless it is judged.
    counted = other.bound is not None and other.judgement is not None
    found = findings(cell(), trends=[trend(p=0.01), other])
    assert found[0].status == (0 if counted else 1)


def test_history_is_not_asked_of_a_cell_that_has_a_base() -> None:
    assert findings(cell(), trends=[trend()], comparison=comparison(compared())) == []
    other = cell(name="another-kv-SM8650")
    found = gate(summary(cell(), other), comparison(compared("another-kv-SM8650")), trends=[trend()])
    assert [one.cell for one in found.findings] == [NAME]


# What vanished


ALLOW = (
    "run the cells that are missing, or, where they are meant to be (other models, modes or SoCs were chosen), say so: "
    "--allow-missing"
)


@pytest.mark.parametrize(("allowed", "rank", "status"), [(False, 5.8, 1), (True, 9, 0)])
def test_cells_of_the_base_that_are_gone(allowed: bool, rank: float, status: int) -> None:
    gone = [compared(f"{name}-kv-SM8650", candidate=None) for name in "ba"]
    skipped = compared("c-kv-SM8650", base=SKIPPED, candidate=None)
    found = gate(summary(cell()), comparison(compared(), *gone, skipped), allow_missing=allowed)
    what = "2 of 3 cell(s) of the base the-base vanished: a-kv-SM8650, b-kv-SM8650"
    assert found.findings == (Finding(rank, "", what, ALLOW, status=status),)


def test_a_cell_that_is_there_and_was_not_carried_out_is_gone_too() -> None:
    found = findings(cell(SKIPPED), comparison=comparison(compared(candidate=SKIPPED)))
    assert found == [
        Finding(5.8, "", f"1 of 1 cell(s) of the base the-base vanished: {NAME} (SKIPPED)", ALLOW, status=1)
    ]
    for ended in (PASSED, FAILED, ERROR):
        assert "vanished" not in "".join(one.what for one in findings(cell(ended), comparison=comparison(compared())))


def test_cells_of_baselines_and_of_the_last_good_run_that_are_gone() -> None:
    run = summary(cell())
    old = baseline(NAME, "a-kv-SM8650", name="1.json")
    new = baseline("a-kv-SM8650", "b-kv-SM8650", name="2.json")
    phones = baseline("p-kv-SM8650", target="android")
    last = GoodRun("monday", ("b-kv-SM8650", "c-kv-SM8650", NAME))
    found = gate(run, baselines=[old, new, phones], last_run=last)
    assert [one.what for one in found.findings] == [
        "2 of 2 cell(s) of the accepted baseline 2.json vanished: a-kv-SM8650, b-kv-SM8650",
        "1 of 1 cell(s) of the history's last good run monday vanished: c-kv-SM8650",
    ]
    assert found.status == 1
    # With a base, that alone says which cells there have to be.
    assert gate(run, comparison(compared()), [old, new], last_run=last).findings == ()
    assert gate(run, last_run=GoodRun("monday", (NAME,))).findings == ()


def test_the_last_whole_run_has_all_that_those_before_it_had() -> None:
    a, ab, ba, bc = (GoodRun(name, tuple(name)) for name in ("a", "ab", "ba", "bc"))
    assert last_whole([]) is None
    assert last_whole([a]) is a
    assert last_whole([a, ab]) is ab
    assert last_whole([ab, a]) is ab
    assert last_whole([ab, ba]) is ba
    assert last_whole([ab, bc]) is ab
    assert last_whole([GoodRun("none", ()), a]) is a


def test_a_result_without_a_blocking_finding_has_passed() -> None:
    assert GateResult("r", "", 0, ()).passed
    assert not GateResult("r", "", 2, ()).passed
