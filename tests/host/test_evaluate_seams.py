"""Which legs a cell walks: every token counted once, every seam crossed, and any runner can walk them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_fixtures import ToyHtp, toy_info
from test_runtime_session import truth

from harness.evaluate.seams import JUNK, SPAN, Stage, decode_stages, handover_depths, prefill_stages
from harness.runtime.sampling import log_softmax
from harness.runtime.score import Leg, walk
from harness.runtime.session import Session
from harness.text.windows import Window


def window_of(count: int, first: int = 0) -> Window:
    """Tokens of the toy, none of them twice within 13."""
    tokens = tuple((first + 5 * place) % 13 for place in range(count + 1))
    return Window(tokens[:-1], tokens[1:])


def counted(stages: list[Stage], number: int) -> list[tuple[int, int]]:
    """Places and targets that count for a window's perplexity, in the order of the walk."""
    return [
        (stage.leg.keep + place, target)
        for stage in stages
        if stage.counted and stage.window == number
        for place, target in enumerate(stage.leg.targets)
    ]


def check_whole(stages: list[Stage], windows: dict[int, Window]) -> None:
    """Each target once and in order, fed after what stands before it."""
    assert {stage.window for stage in stages} == set(windows)
    for number, window in windows.items():
        assert counted(stages, number) == list(enumerate(window.targets))


def check_walk(stages: list[Stage], context: int, ar: int | None, decode_ar: int) -> None:
    """A runner can walk the legs, and a right one gives each scored row as the text alone gives it."""
    info = toy_info(context, ar or 4, prefill=ar is not None, decode_ar=decode_ar)
    scores = walk(Session(ToyHtp(info)), [stage.leg for stage in stages])
    text: list[int] = []
    for stage, score in zip(stages, scores, strict=True):
        text = [*text[: stage.leg.keep], *stage.leg.inputs]
        assert len(text) == stage.leg.keep + len(stage.leg.inputs), "a leg keeps what was fed"
        rows = log_softmax((truth(text, None)[stage.leg.keep :].astype(float) - 30000) * 0.01)
        expected = [float(row[target]) for row, target in zip(rows, stage.leg.targets, strict=False)]
        assert list(score.logprobs) == pytest.approx(expected, abs=1e-9)


@st.composite
def shapes(draw: st.DrawFn, lookahead: bool) -> tuple[int, int, int, int, int]:
    """Context, AR of prefill and of decode, tokens of the first window, and how many of them are scored."""
    context = draw(st.integers(4, 24))
    ar = draw(st.integers(1, context - 1))
    decode_ar = draw(st.integers(2, context - 1)) if lookahead else 1
    size = draw(st.integers(1, context))
    return context, ar, decode_ar, size, draw(st.integers(1, size))


@settings(max_examples=120, deadline=None)
@given(shapes(lookahead=False), st.integers(0, 2))
def test_hybrid_counts_each_token_once_and_any_runner_walks_it(
    shape: tuple[int, int, int, int, int], more: int
) -> None:
    context, ar, decode_ar, size, count = shape
    whole = window_of(size)
    first = Window(whole.inputs[:count], whole.targets[:count])
    windows = [first, *(window_of(min(context, count + 3), 1 + number) for number in range(more))]
    stages = decode_stages(windows, whole=whole, context=context, prefill_ar=ar, decode_ar=decode_ar)
    check_whole(stages, dict(enumerate(windows)))
    check_walk(stages, context, ar, decode_ar)


@settings(max_examples=120, deadline=None)
@given(shapes(lookahead=True), st.integers(0, 2))
def test_lookahead_counts_each_token_once_and_any_runner_walks_it(
    shape: tuple[int, int, int, int, int], more: int
) -> None:
    context, ar, decode_ar, size, count = shape
    whole = window_of(size)
    first = Window(whole.inputs[:count], whole.targets[:count])
    windows = [first, *(window_of(min(context, count + 3), 1 + number) for number in range(more))]
    stages = decode_stages(windows, whole=whole, context=context, prefill_ar=ar, decode_ar=decode_ar)
    check_whole(stages, dict(enumerate(windows)))
    check_walk(stages, context, ar, decode_ar)


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 24), st.integers(1, 24), st.integers(0, 5), st.integers(1, 2))
def test_kv_counts_each_token_once_and_any_runner_walks_it(context: int, count: int, first: int, more: int) -> None:
    windows = [window_of(min(context, count), number) for number in range(more)]
    stages = decode_stages(windows, first, whole=windows[0], context=context, prefill_ar=None, decode_ar=1)
    check_whole(stages, dict(enumerate(windows, first)))
    check_walk(stages, context, None, 1)
    assert {stage.leg.graph for stage in stages} == {"kv"}


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 24), st.integers(1, 23), st.integers(1, 24), st.integers(0, 5), st.integers(1, 3))
def test_prefill_takes_each_window_from_an_empty_cache(
    context: int, ar: int, count: int, first: int, more: int
) -> None:
    windows = [window_of(min(context, count), number) for number in range(more)]
    stages = prefill_stages(windows, first)
    check_whole(stages, dict(enumerate(windows, first)))
    check_walk(stages, context, min(ar, context - 1), 1)
    assert [stage.leg for stage in stages] == [Leg(0, "prefill", w.inputs, w.targets) for w in windows]
    assert stages[-1].where == f"window {first + more - 1} of the held-out text"
    assert prefill_stages(windows)[0].window == 0


def handovers(stages: list[Stage]) -> list[int]:
    """After how many tokens of prefill a scored decode leg begins."""
    found, prompt = [], None
    for stage in stages:
        if stage.leg.graph == "prefill":
            assert not stage.counted, "a prompt's tokens are the prefill graph's to count"
            prompt = len(stage.leg.inputs)
        elif stage.leg.targets and prompt is not None and stage.leg.keep == prompt:
            found.append(prompt)
            prompt = None
    return found


@pytest.mark.parametrize(("decode_ar", "last"), [(1, [126, 127]), (16, [111, 112])])
def test_decode_takes_over_around_a_blocks_end_deeper_and_at_the_contexts_end(decode_ar: int, last: list[int]) -> None:
    depths = [31, 32, 33, 65, *last]
    assert handover_depths(128, 32, decode_ar) == tuple(depths)
    whole = window_of(128)
    for count in (8, 32, 60, 128):
        first = Window(whole.inputs[:count], whole.targets[:count])
        stages = decode_stages([first], whole=whole, context=128, prefill_ar=32, decode_ar=decode_ar)
        assert handovers(stages) == depths
        check_whole(stages, {0: first})


def test_depths_that_do_not_exist_are_left_out() -> None:
    assert handover_depths(16, 1, 1) == (1, 2, 3, 14, 15)  # a prompt has a token at least
    assert handover_depths(16, 10, 1) == (9, 10, 11, 14, 15)
    assert handover_depths(16, 15, 1) == (14, 15)
    assert handover_depths(16, 4, 15) == (1,)
    whole = window_of(40)
    stages = decode_stages([whole], whole=whole, context=128, prefill_ar=32, decode_ar=1)
    assert handovers(stages) == [31, 32, 33]  # the text ends before 65
    exact = window_of(33)
    assert handovers(decode_stages([exact], whole=exact, context=128, prefill_ar=32, decode_ar=1)) == [31, 32]


def test_beyond_what_is_counted_a_handover_is_scored_on_both_sides_of_its_first_step() -> None:
    whole = window_of(128)
    first = Window(whole.inputs[:32], whole.targets[:32])
    stages = decode_stages([first], whole=whole, context=128, prefill_ar=32, decode_ar=1)
    legs = {stage.leg.keep: stage for stage in stages if stage.leg.keep and stage.leg.targets}
    assert {depth: (len(stage.leg.inputs), stage.counted) for depth, stage in legs.items()} == {
        **{31: (1, True), 32: (SPAN, False), 33: (SPAN, False), 65: (SPAN, False), 126: (SPAN, False), 127: (1, False)}
    }
    assert SPAN == 2
    assert [stage.where for stage in stages[:4]] == [
        "held-out text from an empty cache",
        "a prompt of 31",
        "forgotten tokens",
        "after the handover at 31 and a rewind to it",
    ]
    assert (stages[4].where, stages[5].where) == ("a prompt of 32", "after the handover at 32")


def test_in_lookahead_each_handover_is_crossed_by_a_step_of_its_own() -> None:
    whole = window_of(128)
    first = Window(whole.inputs[:70], whole.targets[:70])
    stages = decode_stages([first], whole=whole, context=128, prefill_ar=32, decode_ar=16)
    assert stages[0].leg == Leg(0, "kv", first.inputs, first.targets)
    after = [(s.leg.keep, len(s.leg.inputs)) for s in stages if s.leg.keep and s.leg.targets]
    assert after == [(31, 16), (32, 16), (33, 16), (65, 16), (111, 16), (112, 16)]
    assert not any(stage.counted for stage in stages[1:])
    two = decode_stages([first], whole=whole, context=128, prefill_ar=32, decode_ar=2)
    assert two[0].leg == stages[0].leg
    assert {len(s.leg.inputs) for s in two if s.leg.keep and s.leg.targets} == {2}


def test_other_tokens_are_forgotten_before_decode_goes_on() -> None:
    window = window_of(20)
    straight = decode_stages([window], 3, whole=window, context=32, prefill_ar=None, decode_ar=1)
    assert [(s.leg.keep, len(s.leg.inputs), s.counted) for s in straight] == [
        *((0, 10, True), (10, JUNK, False), (10, 10, True))
    ]
    assert [stage.where for stage in straight] == [
        "window 3 of the held-out text",
        "forgotten tokens",
        "window 3 of the held-out text, after a rewind to 10",
    ]
    handed = decode_stages([window], whole=window, context=32, prefill_ar=8, decode_ar=1)
    junk = [stage for stage in (*straight, *handed) if stage.where == "forgotten tokens"]
    assert len(junk) == 2
    for stage in junk:
        assert len(stage.leg.inputs) == JUNK == 3
        assert stage.leg.inputs[0] != window.inputs[stage.leg.keep]
        assert window.inputs[stage.leg.keep] not in stage.leg.inputs
        assert (stage.leg.targets, stage.leg.graph, stage.counted) == ((), "kv", False)
    assert handed.index(junk[1]) == 2


def test_a_text_of_one_token_repeated_has_no_others_to_forget() -> None:
    window = Window((4,) * 9, (4,) * 9)
    stages = decode_stages([window], whole=window, context=16, prefill_ar=None, decode_ar=1)
    assert [stage.leg.inputs for stage in stages] == [(4,) * 4, (4,) * 3, (4,) * 5]


def test_a_short_window_is_scored_in_one_go() -> None:
    for size, parts in ((5, 1), (6, 3)):
        window = window_of(size)
        stages = decode_stages([window], whole=window, context=16, prefill_ar=None, decode_ar=1)
        assert len(stages) == parts
        assert stages[0].where == "window 0 of the held-out text"
        assert np.concatenate([s.leg.targets for s in stages if s.counted]).tolist() == list(window.targets)


def test_where_the_contexts_end_is_near_less_is_forgotten_and_earlier() -> None:
    whole = window_of(16)
    stages = decode_stages([whole], whole=whole, context=16, prefill_ar=15, decode_ar=1)
    assert [(s.leg.keep, len(s.leg.inputs)) for s in stages if s.where == "forgotten tokens"] == [(14, 2)]
    stages = decode_stages([whole], 1, whole=whole, context=16, prefill_ar=4, decode_ar=12)
    assert [(s.leg.keep, len(s.leg.inputs)) for s in stages] == [(0, 4), (4, JUNK), (4, 12)]


def test_in_hybrid_only_the_texts_first_window_has_handovers() -> None:
    windows = [window_of(40), window_of(40, 1)]
    both = decode_stages(windows, whole=windows[0], context=64, prefill_ar=8, decode_ar=1)
    assert {stage.window for stage in both if stage.leg.graph == "prefill"} == {0}
    later = decode_stages(windows, 2, whole=windows[0], context=64, prefill_ar=8, decode_ar=1)
    assert {stage.leg.graph for stage in later} == {"kv"}
    assert [stage.window for stage in later] == [2, 2, 2, 3, 3, 3]
