"""Lookahead: the tree, the pool, and that it writes what greedy decoding writes, whatever the settings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_fixtures import ToyHtp, toy_info

from harness.errors import ConfigError, ProductError
from harness.runtime.generate import Generation, generate
from harness.runtime.lookahead import Lookahead, NgramPool, Settings, run_lookahead
from harness.runtime.masks import init_mask
from harness.runtime.sampling import greedy
from harness.runtime.session import Session

CONTEXT = 48
TREES = [Settings(2, 1, 1), Settings(3, 2, 2), Settings(3, 3, 1), Settings(4, 2, 3), Settings(5, 3, 1)]


def session(tree: Settings | None, context: int = CONTEXT, window: int | None = None) -> Session:
    return Session(ToyHtp(toy_info(context, 4, window, decode_ar=tree.ar_len if tree else 1)))


def write(
    tree: Settings | None,
    prompt: list[int],
    seq_len: int,
    stop: frozenset[int] = frozenset(),
    window: int | None = None,
) -> Generation:
    lookahead = Lookahead(tree, seed=3) if tree else None
    return generate(
        session(tree, window=window), prompt, seq_len=seq_len, choose=greedy, stop=stop, lookahead=lookahead
    )


def test_the_tree_of_executorchs_own_example() -> None:
    """The mask of W=2, N=3, G=2 drawn in upstream's lhd_token_generator.h and masking_utils.py."""
    tree = Settings(3, 2, 2)
    assert tree.ar_len == 8
    assert tree.attention_map == (-1, 0, 0, 1, 0, 4, 0, 6)
    assert tree.offsets == (0, 1, 1, 2, 1, 2, 1, 2)
    mask = init_mask(8, 16, 3, "uint16", tree.attention_map)
    seen = [[int(column) for column in np.flatnonzero(row[8:])] for row in mask]
    assert seen == [[0], [0, 1], [0, 2], [0, 1, 3], [0, 4], [0, 4, 5], [0, 6], [0, 6, 7]]
    assert all(list(np.flatnonzero(row[:8])) == [0, 1, 2] for row in mask)


def test_the_step_is_rounded_up_to_a_power_of_two() -> None:
    assert [Settings(5, 8, 8).ar_len, Settings(3, 4, 4).ar_len, Settings(4, 6, 4).ar_len] == [64, 16, 32]
    assert len(Settings(4, 6, 4).offsets) == 32
    assert len(Settings(4, 6, 4).attention_map) == 30


@pytest.mark.parametrize("bad", [(1, 8, 8), (5, 0, 8), (5, 8, 0), (0, 0, 0)])
def test_settings_that_are_none(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="no lookahead settings"):
        Settings(*bad)


def test_the_pool_keeps_each_ngram_once_and_replaces_the_oldest() -> None:
    pool = NgramPool(2)
    for gram in ((1, 2), (3, 4), (1, 2), (5, 6)):
        pool.add(9, gram)
    assert pool.after(9) == ((5, 6), (3, 4))
    pool.add(9, (7, 8))
    assert pool.after(9) == ((5, 6), (7, 8))
    assert pool.after(8) == ()


def test_a_right_ngram_gives_as_many_tokens_as_it_is_long_and_one_more() -> None:
    tree = Settings(4, 2, 2)
    lookahead = Lookahead(tree)
    lookahead.begin([1, 5, 5])
    lookahead.pool.add(5, (6, 9, 9))
    lookahead.pool.add(5, (6, 7, 8))
    assert lookahead.draft(5) == [5, 5, 5, 5, 5, 5, 6, 9, 9, 6, 7, 8]
    answers = {0: 6, 6: 7, 9: 7, 10: 8, 11: 4}
    found = lookahead.verify(5, answers.__getitem__, lambda row: 20 + row)
    # The first n-gram is right for one token; its row answers, and the second one goes on from there.
    assert found.tokens == (6, 7, 8, 4)
    assert found.rows == (0, 6, 10, 11)
    assert lookahead.branch == [[5, 5], [5, 5], [24, 25]]
    assert (5, 5, 24) in lookahead.pool.after(5)


def test_a_stop_token_ends_the_step_and_the_branch_stays() -> None:
    lookahead = Lookahead(Settings(3, 2, 1))
    lookahead.begin([1, 5, 6])
    before = [list(level) for level in lookahead.branch]
    assert lookahead.verify(5, lambda row: 2, lambda row: 0, stop={2}).tokens == (2,)
    assert lookahead.branch == before


@settings(max_examples=60, deadline=None)
@given(
    tree=st.sampled_from(TREES),
    prompt=st.lists(st.integers(0, 12), min_size=1, max_size=14),
    seq_len=st.integers(20, CONTEXT),
    stop=st.sets(st.integers(0, 12), max_size=1),
    window=st.sampled_from([None, 5, 11]),
)
def test_the_same_tokens_as_greedy_kv(
    tree: Settings, prompt: list[int], seq_len: int, stop: set[int], window: int | None
) -> None:
    plain = write(None, prompt, seq_len, stop, window)
    ahead = write(tree, prompt, seq_len, stop, window)
    assert ahead.tokens == plain.tokens[: len(ahead.tokens)]
    assert ahead.decode_steps + ahead.accepted >= len(ahead.tokens) - 1
    if len(ahead.tokens) < len(plain.tokens):
        # The cache of a step of AR tokens holds CONTEXT − AR: where upstream's generation ends too.
        assert len(prompt) + len(ahead.tokens) > CONTEXT - tree.ar_len
    else:
        assert ahead.stopped == plain.stopped


@settings(max_examples=40, deadline=None)
@given(
    tree=st.sampled_from(TREES),
    prompt=st.lists(st.integers(0, 12), min_size=1, max_size=14),
    seq_len=st.integers(20, CONTEXT),
    stop=st.sets(st.integers(0, 12), max_size=1),
)
def test_what_the_rows_chose_is_enough_to_go_the_same_way_again(
    tree: Settings, prompt: list[int], seq_len: int, stop: set[int]
) -> None:
    run = session(tree)
    done = generate(
        run, prompt, seq_len=seq_len, choose=greedy, stop=stop, lookahead=Lookahead(tree, 3), keep_rows=True
    )
    assert done.chosen_from is not None
    assert tuple(done.chosen_from.argmax(axis=1)) == done.tokens
    assert [len(step) for step in done.row_choices] == [tree.ar_len] * done.decode_steps
    steps = iter(done.row_choices)
    emitted = [done.tokens[0]]
    course = run_lookahead(
        Lookahead(tree, 3), prompt, emitted, lambda _: next(steps), seq_len=seq_len, limit=run.limit, stop=stop
    )
    assert (course.tokens, course.steps, course.accepted) == (done.tokens, done.decode_steps, done.accepted)
    assert tuple(emitted) == done.tokens
    assert not list(steps)


def test_rows_are_kept_where_they_are_asked_for() -> None:
    plain = generate(session(None), [1, 2, 3], seq_len=20, choose=greedy, keep_rows=True)
    assert plain.chosen_from is not None
    assert tuple(plain.chosen_from.argmax(axis=1)) == plain.tokens
    assert plain.row_choices == ()
    without = write(TREES[1], [1, 2, 3], 20)
    assert without.chosen_from is None
    assert without.row_choices == ()


def test_ngrams_save_steps_where_the_text_repeats() -> None:
    """The toy's text is no language: a loop comes from a model whose next token depends on the last alone."""

    class Loop(ToyHtp):
        def run(self, graph, inputs):  # type: ignore[no-untyped-def]
            outputs = super().run(graph, inputs)
            outputs[0][0] = np.eye(13, dtype=np.uint16)[(inputs[0][0] + 1) % 13]
            return outputs

    tree = Settings(4, 4, 2)
    run = Session(Loop(toy_info(96, 4, decode_ar=tree.ar_len)))
    found = generate(run, [0, 1, 2], seq_len=64, choose=greedy, lookahead=Lookahead(tree))
    assert found.tokens == tuple((3 + i) % 13 for i in range(61))
    assert found.decode_steps < 40
    assert found.accepted == 60 - found.decode_steps
    columns = 2 * 2 * (2 * 3)  # layers × (K and V) × heads × head_dim, a byte each
    assert sum(run.bytes_per_step) == columns * run.n_past


def test_two_turns_are_one_text() -> None:
    tree = Settings(3, 2, 2)
    results = []
    for setting in (None, tree):
        run, lookahead = session(setting), Lookahead(setting) if setting else None
        first = generate(run, [1, 2, 3], seq_len=12, choose=greedy, lookahead=lookahead)
        second = generate(run, [first.tokens[-1], 4, 5], seq_len=30, choose=greedy, lookahead=lookahead)
        results.append((first.tokens, second.tokens))
    assert results[0] == results[1]


def test_a_prompt_must_leave_a_step_room() -> None:
    tree = Settings(3, 2, 2)
    assert len(write(tree, [1] * (CONTEXT - 8), CONTEXT).tokens) >= 2
    with pytest.raises(ProductError, match="do not fit the cache of 40 tokens"):
        write(tree, [1] * (CONTEXT - 7), CONTEXT)
