"""What an attempt makes of its checks, which tokens decide what is grey, and what a walk on a phone brings back."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from runtime_fixtures import ToyHtp, toy_info
from toy_witness import SPREAD, ToyQdq, random_window, top_of, toy_witness

from harness.conduct.accuracy import again, further, judge_scores
from harness.conduct.attempt import not_judged_check, verdict
from harness.errors import FailureClass, NotJudgedError, ProductError
from harness.evaluate.deviations import Deviations
from harness.evaluate.judge import Verdict, make_check
from harness.evaluate.phone_scorer import ANSWER_LIMIT_S, CHUNK_STEPS, walk
from harness.evaluate.rules import RULES
from harness.evaluate.scored import Scored
from harness.evaluate.seams import prefill_stages
from harness.model_file import Bounds
from harness.results.records import CheckRecord
from harness.runtime import score as runtime_score
from harness.runtime.score import Leg, LegScore, legs_json, parse_legs, parse_walk, rows_json, walk_json
from harness.runtime.session import Session
from harness.text.windows import Window


def checks(*words: str) -> list[CheckRecord]:
    """A check of each verdict, named by its place."""
    return [make_check("cell", f"check{place}", Verdict(word), f"text{place}") for place, word in enumerate(words)]


def test_a_cell_whose_checks_all_passed_has_no_failure() -> None:
    assert verdict(checks("PASSED")) is None
    assert verdict(checks("PASSED", "PASSED")) is None


def test_a_cell_without_a_check_is_not_judged() -> None:
    failure = verdict([])
    assert failure is not None
    assert (failure.failure_class, failure.reason) == (FailureClass.NOT_JUDGED, "nothing was judged")
    assert "compile again" in failure.remedy


@pytest.mark.parametrize(
    ("words", "failure_class", "named"),
    [
        (("PASSED", "FAILED"), FailureClass.PRODUCT, "check1: text1"),
        (("INVALID", "FAILED", "NOT_JUDGED", "FAILED"), FailureClass.PRODUCT, "check1: text1; check3: text3"),
        (("NOT_JUDGED", "INVALID", "INCONCLUSIVE"), FailureClass.INVALID, "check1: text1"),
        (("INCONCLUSIVE", "NOT_JUDGED", "PASSED"), FailureClass.NOT_JUDGED, "check1: text1"),
        (("PASSED", "INCONCLUSIVE", "INCONCLUSIVE"), FailureClass.INCONCLUSIVE, "check1: text1; check2: text2"),
    ],
)
def test_a_cell_fails_by_the_worst_of_its_checks(
    words: tuple[str, ...], failure_class: FailureClass, named: str
) -> None:
    failure = verdict(checks(*words))
    assert failure is not None
    assert (failure.failure_class, failure.reason) == (failure_class, named)
    remedies = {
        FailureClass.PRODUCT: "",
        FailureClass.INVALID: "quiet computer",
        FailureClass.NOT_JUDGED: "compile again",
        FailureClass.INCONCLUSIVE: "longer eval text",
    }
    assert remedies[failure_class] in failure.remedy
    assert bool(failure.remedy) is (failure_class is not FailureClass.PRODUCT)


def test_what_cannot_be_judged_is_a_check_that_did_not_pass() -> None:
    check = not_judged_check("cell", NotJudgedError("no witness", where="/cache/x"))
    assert (check.cell, check.name, check.verdict, check.passed) == ("cell", "witness", "NOT_JUDGED", False)
    assert check.text == "/cache/x: no witness"


# What decides a grey figure.

QDQ = ToyQdq()
WINDOWS = [random_window(size, size) for size in (20, 20, 20, 20, 11)]
WITNESS = toy_witness(QDQ, WINDOWS)


def part(number: int, size: int) -> Window:
    """The beginning of a window."""
    return Window(WINDOWS[number].inputs[:size], WINDOWS[number].targets[:size])


def test_more_of_the_text_is_scored_where_nothing_was_scored_before() -> None:
    assert further(WITNESS, 1, 8) == [part(1, 8)]
    assert further(WITNESS, 2, 20) == [WINDOWS[2]]
    assert further(WITNESS, 2, 21) == [WINDOWS[2], part(3, 1)]
    assert further(WITNESS, 3, 100) == [WINDOWS[3], WINDOWS[4]]  # it has no more
    assert further(WITNESS, 5, 8) == []
    assert further(WITNESS, 0, 0) == []


def test_each_round_scores_as_much_as_all_before_it() -> None:
    rounds = [again(7, number) for number in (1, 2, 3)]
    assert rounds == [7, 14, 28]
    assert [7 + sum(rounds[:number]) for number in range(3)] == rounds


def judged(scored: Scored, replies: Sequence[Deviations] = ()) -> dict[str, CheckRecord]:
    """Name → check, of a cell with the shipped bounds."""
    cell = SimpleNamespace(id="cell", model=SimpleNamespace(bounds=Bounds()))
    found = judge_scores(SimpleNamespace(cell=cell), scored, replies)  # type: ignore[arg-type]
    assert {check.cell for check in found} == {"cell"}
    return {check.name: check for check in found}


def walked(graph: str = "prefill", noise: float = 0.0) -> Scored:
    """A phone's scores of all windows through one graph."""
    scored = Scored(WITNESS)
    for stage in prefill_stages(WINDOWS):
        leg = Leg(0, graph, stage.leg.inputs, stage.leg.targets)  # type: ignore[arg-type]
        rows = QDQ(leg.inputs) + np.random.default_rng(3).normal(0, noise, (len(leg.inputs), 40))
        each = (rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)))[np.arange(len(rows)), list(leg.targets)]
        stage = type(stage)(leg, stage.window, stage.where)
        scored.add([stage], [LegScore(tuple(each.tolist()), top_of(rows), 1, 0.1)])
    return scored


def replies_of(units: float) -> Deviations:
    """Rows that a reply was chosen from."""
    ones = np.ones(50)
    return Deviations("kv", "reply 0", units * SPREAD * ones, SPREAD * ones, ones, ones)


def test_the_rows_of_replies_are_judged_on_their_own() -> None:
    good = judged(walked(), [replies_of(0.1)])
    assert {name: check.verdict for name, check in good.items()} == {
        **dict.fromkeys(("phone_vs_qdq_noise", "phone_vs_qdq_gain", "phone_vs_qdq_row", "phone_vs_qdq_ppl"), "PASSED")
    }
    assert "of the prefill graph" in good["phone_vs_qdq_noise"].text
    assert "of the replies" in good["phone_vs_qdq_noise"].text
    bad = judged(walked(), [replies_of(1.1 * RULES.noise)])
    assert bad["phone_vs_qdq_noise"].verdict == "FAILED"
    with_kv = judged(walked("kv"), [replies_of(1.1 * RULES.noise)])
    assert "of the kv graph 0.0000 ± 0.0000 over 91 rows" in with_kv["phone_vs_qdq_noise"].text
    assert with_kv["phone_vs_qdq_noise"].verdict == "FAILED"  # as many right rows hide nothing


def test_a_decode_graph_without_a_row_is_not_judged() -> None:
    assert judged(walked())["phone_vs_qdq_noise"].verdict == "NOT_JUDGED"
    assert judged(walked())["phone_vs_qdq_row"].verdict == "PASSED"
    assert set(judged(Scored(WITNESS))) == {
        *("phone_vs_qdq_noise", "phone_vs_qdq_gain", "phone_vs_qdq_row", "phone_vs_qdq_ppl")
    }
    assert {check.verdict for check in judged(Scored(WITNESS)).values()} == {"NOT_JUDGED"}


def test_perplexities_and_rows_are_judged_together() -> None:
    noisy = judged(walked("kv", noise=0.5))
    assert noisy["phone_vs_qdq_noise"].verdict == "FAILED"
    assert noisy["phone_vs_qdq_ppl"].verdict in ("FAILED", "INCONCLUSIVE")


# A walk on a phone.


class ToyResident:
    """A runner that stays, over the toy HTP; every message goes through JSON, as on the wire."""

    def __init__(self, spoil: Callable[[list[Any]], Any] = lambda legs: legs) -> None:
        self.session = Session(ToyHtp(toy_info(32, 4)))
        self.spoil = spoil
        self.asked: list[tuple[int, float]] = []

    def request(self, op: str, *, timeout_s: float, legs: Any) -> dict[str, Any]:
        assert op == "walk"
        given = parse_legs(json.loads(json.dumps(legs)))
        self.asked.append((sum(len(leg.inputs) for leg in given), timeout_s))
        answer = walk_json(runtime_score.walk(self.session, given))
        found: dict[str, Any] = json.loads(json.dumps({"legs": self.spoil(answer)}))
        return found


LEGS = [
    Leg(0, "prefill", (1, 2, 3, 4, 5), (2, 3, 4, 5, 6)),
    Leg(5, "kv", (9, 9)),
    Leg(5, "kv", (6, 7), (7, 8)),
]


def test_a_walk_brings_back_what_the_runner_scored() -> None:
    resident, seen = ToyResident(), []
    found = walk(resident, LEGS, progress=lambda *counts: seen.append(counts), step_limit_s=2.0)  # type: ignore[arg-type]
    here = runtime_score.walk(Session(ToyHtp(toy_info(32, 4))), LEGS)
    assert [len(score.logprobs) for score in found] == [5, 0, 2]
    for one, other in zip(found, here, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs)
        assert one.top.ids.tolist() == other.top.ids.tolist()
        np.testing.assert_allclose(one.top.logprobs, other.top.logprobs, atol=1e-6)
        assert one.steps == other.steps
    assert [score.steps for score in found] == [2, 2, 2]
    assert resident.asked == [(9, ANSWER_LIMIT_S + 9 * 2.0)]
    assert seen == [(3, 3)]


def test_a_long_walk_goes_in_pieces_that_begin_with_an_empty_cache() -> None:
    legs = [leg for _ in range(20) for leg in LEGS]
    resident, seen = ToyResident(), []
    found = walk(resident, legs, progress=lambda *counts: seen.append(counts))  # type: ignore[arg-type]
    assert len(found) == 60
    assert [tokens for tokens, _ in resident.asked] == [72, 72, 36]
    assert CHUNK_STEPS == 64
    assert seen == [(24, 60), (48, 60), (60, 60)]
    assert len({score.logprobs for score in found}) == 3
    exact = [Leg(0, "kv", (1,) * 16, (1,) * 16)] * 5
    resident = ToyResident()
    walk(resident, exact)  # type: ignore[arg-type]
    assert [tokens for tokens, _ in resident.asked] == [64, 16]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda legs: legs[:-1],
        lambda legs: [*legs, legs[0]],
        lambda legs: [{**legs[0], "logprobs": [float("nan")] * 5}, *legs[1:]],
        lambda legs: [{**legs[0], "logprobs": [float("-inf")] * 5}, *legs[1:]],
        lambda legs: [{**legs[0], "seconds": float("nan")}, *legs[1:]],
        lambda legs: [{**legs[0], "top": {"ids": [[1]], "logprobs": [[float("nan")]]}}, *legs[1:]],
        lambda legs: [{**legs[0], "top": {"ids": [[1, 2]], "logprobs": [[-1.0]]}}, *legs[1:]],
        lambda legs: [{**legs[0], "top": {"ids": [1, 2], "logprobs": [-1.0, -2.0]}}, *legs[1:]],
        lambda legs: [{**legs[0], "top": {"ids": [[]], "logprobs": [[]]}}, *legs[1:]],
        lambda legs: [{"logprobs": []}],
        lambda legs: None,
        lambda legs: [None] * 3,
    ],
)
def test_an_answer_of_another_form_is_a_fault_of_the_product(spoil: Callable[[list[Any]], Any]) -> None:
    with pytest.raises(ProductError, match="the runner's scores have another form") as caught:
        walk(ToyResident(spoil), LEGS)  # type: ignore[arg-type]
    assert caught.value.where == "walk"


def test_an_answer_without_legs_is_a_fault_of_the_product() -> None:
    resident = SimpleNamespace(request=lambda op, **_: {})
    with pytest.raises(ProductError, match="have another form"):
        walk(resident, LEGS)  # type: ignore[arg-type]


def test_legs_and_scores_go_through_json_unchanged() -> None:
    assert parse_legs(json.loads(json.dumps(legs_json(LEGS)))) == tuple(LEGS)
    scores = runtime_score.walk(Session(ToyHtp(toy_info(32, 4))), LEGS)
    again = parse_walk(json.loads(json.dumps(walk_json(scores))))
    assert [(s.steps, s.seconds, s.logprobs) for s in again] == [(s.steps, s.seconds, s.logprobs) for s in scores]
    assert rows_json(again[0].top) == rows_json(scores[0].top)
    assert len(again[1].top) == 0
