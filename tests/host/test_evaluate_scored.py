"""What the graphs scored, beside QDQ's: each token with its own, and nothing that was not asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from toy_witness import SPREAD, Floats, ToyQdq, random_window, top_of, toy_witness

from harness.errors import ProductError
from harness.evaluate.scored import Scored
from harness.evaluate.seams import Stage, decode_stages, prefill_stages
from harness.results.records import Graph
from harness.runtime.sampling import log_softmax
from harness.runtime.score import Leg, LegScore, TopRows
from harness.text.windows import Window

QDQ = ToyQdq()
WINDOWS = [random_window(20, 1), random_window(12, 2)]
WITNESS = toy_witness(QDQ, WINDOWS)


def score_of(stage: Stage, logits: Floats | None = None) -> LegScore:
    """What a perfect phone makes of a leg; or one that has other logits."""
    text = [*WINDOWS[stage.window].inputs[: stage.leg.keep], *stage.leg.inputs]
    rows = QDQ(text)[stage.leg.keep :] if logits is None else logits
    if not stage.leg.targets:
        return LegScore((), top_of(rows)[:0], 1, 0.25)
    each = log_softmax(rows)[np.arange(len(rows)), list(stage.leg.targets)]
    return LegScore(tuple(each.tolist()), top_of(rows), 2, 0.25)


def scored(*batches: list[Stage]) -> Scored:
    """A perfect phone's scores of stages."""
    found = Scored(WITNESS)
    for stages in batches:
        found.add(stages, [score_of(stage) for stage in stages])
    return found


PREFILL = prefill_stages(WINDOWS)
KV = decode_stages(WINDOWS, whole=WINDOWS[0], context=20, prefill_ar=8, decode_ar=1)


def test_a_perfect_phone_says_what_qdq_says_of_each_token_once() -> None:
    found = scored(PREFILL, KV)
    graphs: tuple[Graph, ...] = ("prefill", "kv")
    for graph in graphs:
        phone, qdq = found.against_qdq(graph)
        assert phone == pytest.approx(qdq)
        assert qdq == tuple(x for text in WITNESS.held_out for x in text.target_logprobs.tolist())
        assert len(phone) == 32
        assert found.targets(graph, [1, 0]) == pytest.approx((*qdq[20:], *qdq[:20]))
        assert found.targets(graph, [1]) == pytest.approx(qdq[20:])
        assert found.targets(graph, [7]) == ()
    assert found.common("prefill", "kv") == (pytest.approx(qdq), pytest.approx(qdq))


def test_rows_are_there_of_every_scored_leg_and_of_its_graph() -> None:
    found = scored(PREFILL, KV)
    assert sum(len(part) for part in found.rows) == sum(len(s.leg.targets) for s in (*PREFILL, *KV))
    assert {part.graph for part in found.rows_of("kv")} == {"kv"}
    assert len(found.rows_of("kv")) + len(found.rows_of("prefill")) == len(found.rows)
    assert max(part.top.max() for part in found.rows) < 1e-9
    prompts = [stage for stage in KV if stage.leg.graph == "prefill"]
    assert len(found.rows_of("prefill")) == 2 + len(prompts)  # a prompt's rows are judged, though they count nowhere
    assert "after the handover at 8" in {part.where for part in found.rows_of("kv")}
    assert {value for part in found.rows for value in part.scale} == {SPREAD}


def test_steps_and_seconds_are_of_the_legs_whose_tokens_count() -> None:
    """A prompt that only leads to a seam, or tokens that are forgotten again, cost steps that are no score's."""
    found = scored(PREFILL, KV)
    kv = [stage for stage in KV if stage.counted]
    assert {stage.leg.graph for stage in KV if not stage.counted} == {"kv", "prefill"}
    assert found.steps == {"kv": 2 * len(kv), "prefill": 2 * len(PREFILL)}
    assert found.seconds == pytest.approx({"kv": 0.25 * len(kv), "prefill": 0.25 * len(PREFILL)})


def test_windows_are_taken_in_the_texts_order_whenever_they_were_scored() -> None:
    found = scored(PREFILL[1:], KV[-3:], PREFILL[:1], KV[:-3])
    whole = tuple(x for text in WITNESS.held_out for x in text.target_logprobs.tolist())
    for graph in ("prefill", "kv"):
        assert found.against_qdq(graph) == (pytest.approx(whole), whole)  # type: ignore[arg-type]
    assert found.common("prefill", "kv") == (pytest.approx(whole), pytest.approx(whole))


def test_a_wrong_row_deviates_at_its_place() -> None:
    stage = KV[-1]
    rows = QDQ(WINDOWS[1].inputs)[stage.leg.keep :]
    rows[2] = rows[2][::-1]
    found = Scored(WITNESS)
    found.add([stage], [score_of(stage, rows)])
    (part,) = found.rows
    assert (part.top > 0.1).tolist() == [place == 2 for place in range(len(rows))]


def test_windows_that_the_witness_does_not_have_count_and_are_not_compared() -> None:
    further = Stage(Leg(0, "kv", (3, 4), (4, 5)), 2, "window 2")
    other = Stage(Leg(0, "kv", (3, 4), (4, 5)), 1, "another text")
    each = tuple(log_softmax(QDQ([3, 4]))[[0, 1], [4, 5]].tolist())
    score = LegScore(each, top_of(QDQ([3, 4])), 2, 0.5)
    found = Scored(WITNESS)
    found.add([further, other], [score, score])
    assert found.rows == []
    assert found.targets("kv", [2]) == each
    assert found.against_qdq("kv")[0] == each  # of window 1 alone


def test_a_part_of_a_window_is_compared_with_its_own_part() -> None:
    part = [Stage(Leg(0, "prefill", WINDOWS[0].inputs[:5], WINDOWS[0].targets[:5]), 0, "the beginning")]
    found = scored(part, KV)
    phone, qdq = found.against_qdq("prefill")
    assert phone == pytest.approx(qdq)
    assert len(qdq) == 5
    one, other = found.common("prefill", "kv")
    assert one == pytest.approx(other)
    assert len(one) == 5
    assert len(found.common("kv", "prefill")[0]) == 5
    assert found.common("full", "kv") == ((), ())
    assert found.against_qdq("full") == ((), ())


def test_more_targets_than_the_witness_has_are_left_out_of_the_comparison() -> None:
    longer = Window((*WINDOWS[1].inputs, 3), (*WINDOWS[1].targets, 4))
    each = tuple(log_softmax(QDQ(longer.inputs))[np.arange(13), list(longer.targets)].tolist())
    found = Scored(WITNESS)
    found.add(
        [Stage(Leg(0, "kv", longer.inputs, longer.targets), 1, "window 1")],
        [LegScore(each, top_of(QDQ(longer.inputs)), 13, 0.1)],
    )
    assert [len(side) for side in found.against_qdq("kv")] == [12, 12]
    assert found.rows == []


@pytest.mark.parametrize(("scores", "rows"), [(4, 5), (5, 4), (6, 5), (0, 0)])
def test_other_than_the_tokens_asked_for_is_a_fault_of_the_runner(scores: int, rows: int) -> None:
    stage = Stage(Leg(0, "kv", WINDOWS[0].inputs[:5], WINDOWS[0].targets[:5]), 0, "here")
    answer = LegScore((-1.0,) * scores, top_of(QDQ(WINDOWS[0].inputs))[:rows], 5, 0.1)
    with pytest.raises(ProductError, match=f"{scores} scores and {rows} rows of 5 tokens"):
        Scored(WITNESS).add([stage], [answer])
    with pytest.raises(ValueError, match="zip"):
        Scored(WITNESS).add([stage], [])


def test_a_score_that_is_not_its_rows_is_the_runners_fault() -> None:
    stage = PREFILL[0]
    good = score_of(stage)
    Scored(WITNESS).add([stage], [good])
    inside = [row for row, target in enumerate(stage.leg.targets) if target in good.top.ids[row]]
    for row, off, right in ((inside[0], 9e-5, True), (inside[0], 2e-4, False), (inside[-1], -2e-4, False)):
        each = list(good.logprobs)
        each[row] += off
        said = replace(good, logprobs=tuple(each))
        if right:
            Scored(WITNESS).add([stage], [said])
            continue
        with pytest.raises(ProductError, match=f"token {stage.leg.targets[row]}") as error:
            Scored(WITNESS).add([stage], [said])
        assert f"input {row}" in str(error.value)


def test_a_target_beyond_the_likeliest_may_not_be_likelier_than_they_are() -> None:
    stage = PREFILL[0]
    good = score_of(stage)
    cut = replace(good, top=TopRows(good.top.ids[:, :2], good.top.logprobs[:, :2]))
    Scored(WITNESS).add([stage], [cut])
    row = next(row for row, target in enumerate(stage.leg.targets) if target not in cut.top.ids[row])
    each = list(cut.logprobs)
    each[row] = float(cut.top.logprobs[row].min()) + 0.01
    with pytest.raises(ProductError, match="row says otherwise"):
        Scored(WITNESS).add([stage], [replace(cut, logprobs=tuple(each))])
