"""Lookahead: the tree, the pool, and that it writes what greedy decoding writes, whatever the settings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_fixtures import ToyHtp, toy_info

from harness.errors import ConfigError, ProductError
from harness.runtime.generate import Generation, generate
from harness.runtime.lookahead import Course, Lookahead, NgramPool, Settings, fitting, run_lookahead
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


def test_the_tree_of_three_levels_and_two_ngrams() -> None:
    tree = Settings(4, 3, 2)
    assert (tree.levels, tree.ar_len, str(tree)) == (3, 16, "ngram 4, window 3, gcap 2")
    # Level 0 is a chain, each lower level hangs below the one above it, each n-gram is a chain that hangs on row 0.
    assert tree.attention_map == (-1, 0, 1, 0, 1, 2, 3, 4, 5, 0, 9, 10, 0, 12, 13)
    assert tree.offsets == (0, 1, 2, 1, 2, 3, 2, 3, 4, 1, 2, 3, 1, 2, 3, 0)
    assert [tree.verification_row(gram, place) for gram in range(2) for place in range(3)] == [9, 10, 11, 12, 13, 14]


def test_the_tree_of_ngrams_of_two() -> None:
    tree = Settings(2, 3, 2)
    assert (tree.levels, tree.ar_len) == (1, 8)
    assert tree.attention_map == (-1, 0, 1, 0, 0)
    assert tree.offsets == (0, 1, 2, 1, 1, 0, 0, 0)


@pytest.mark.parametrize("bad", [(1, 8, 8), (5, 0, 8), (5, 8, 0), (0, 0, 0), (1, 0, 0)])
def test_settings_that_are_none(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(*bad)
    assert caught.value.what == "ngram {}, window {}, gcap {} are no lookahead settings".format(*bad)
    assert caught.value.where == "--ngram, --window, --gcap"
    assert "ngram is at least 2, window and gcap at least 1" in caught.value.remedy


def test_the_least_settings() -> None:
    tree = Settings(2, 1, 1)
    assert (tree.ar_len, tree.attention_map, tree.offsets) == (2, (-1, 0), (0, 1))


def test_the_pool_keeps_each_ngram_once_and_replaces_the_oldest() -> None:
    pool = NgramPool(2)
    for gram in ((1, 2), (3, 4), (1, 2), (5, 6)):
        pool.add(9, gram)
    assert pool.after(9) == ((5, 6), (3, 4))
    pool.add(9, (7, 8))
    assert pool.after(9) == ((5, 6), (7, 8))
    assert pool.after(8) == ()


def test_the_pool_is_a_ring_for_each_token() -> None:
    pool = NgramPool(3)
    seen = []
    for number in range(8):
        pool.add(1, (number,))
        seen.append(pool.after(1))
    assert seen == [
        ((0,),),
        ((0,), (1,)),
        ((0,), (1,), (2,)),
        ((3,), (1,), (2,)),
        ((3,), (4,), (2,)),
        ((3,), (4,), (5,)),
        ((6,), (4,), (5,)),
        ((6,), (7,), (5,)),
    ]
    pool.add(1, (5,))  # it is there: its slot stays, and the next one to go is still the oldest
    assert pool.after(1) == ((6,), (7,), (5,))
    pool.add(2, (5,))  # another token's ring begins at its own first slot
    pool.add(2, (6,))
    assert pool.after(2) == ((5,), (6,))
    pool.add(1, (0,))  # one that went may come back
    assert pool.after(1) == ((6,), (7,), (0,))


def test_a_pool_of_one_ngram_keeps_the_newest() -> None:
    pool = NgramPool(1)
    pool.add(1, (2,))
    pool.add(1, (3,))
    assert pool.after(1) == ((3,),)
    assert NgramPool(1).after(1) == ()


def test_the_branch_begins_with_the_text_without_its_first_token() -> None:
    tree, text = Settings(4, 3, 2), [1, 7, 8, 9]
    lookahead = Lookahead(tree, seed=5)
    lookahead.begin(text)
    drawn = np.random.default_rng(5).choice([7, 8, 9], (3, 3)).tolist()
    assert lookahead.branch == drawn
    assert all(type(token) is int for level in lookahead.branch for token in level)
    lookahead.begin([1, 2, 2])  # a later turn goes on with the branch there is
    assert lookahead.branch == drawn
    again, other = Lookahead(tree), Lookahead(tree, seed=0)
    again.begin(text)
    other.begin(text)
    assert again.branch == other.branch == np.random.default_rng(0).choice([7, 8, 9], (3, 3)).tolist()


def began(tree: Settings, branch: list[list[int]], *grams: tuple[int, ...], current: int = 5) -> Lookahead:
    """A lookahead with this branch and these n-grams after the current token."""
    lookahead = Lookahead(tree)
    lookahead.branch = branch
    for gram in grams:
        lookahead.pool.add(current, gram)
    return lookahead


def test_a_step_has_the_current_token_the_branch_and_the_tokens_ngrams() -> None:
    branch = [[1, 2, 3], [4, 6, 7], [8, 9, 10]]
    lookahead = began(Settings(4, 3, 2), branch, (11, 12, 13), (14, 15, 16))
    assert lookahead.draft(5) == [5, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
    assert lookahead.draft(4) == [4, 2, 3, 4, 6, 7, 8, 9, 10]
    assert lookahead.branch == [[1, 2, 3], [4, 6, 7], [8, 9, 10]]


def test_without_an_ngram_a_step_gives_one_token_and_moves_the_branch_on() -> None:
    lookahead = began(Settings(4, 3, 2), [[1, 2, 3], [4, 6, 7], [8, 9, 10]])
    asked: list[int] = []

    def choose(row: int) -> int:
        asked.append(row)
        return 6

    found = lookahead.verify(5, choose, lambda row: 20 + row)
    assert (found.tokens, found.rows, asked) == ((6,), (0,), [0])
    # The last level is guessed from the rows of the one that was last: rows 6 to 8.
    assert lookahead.branch == [[4, 6, 7], [8, 9, 10], [26, 27, 28]]
    # Each column is an n-gram after the token that stood at its head: the first one's is 1, not the current token 5.
    assert lookahead.pool.after(1) == ((4, 8, 26),)
    assert lookahead.pool.after(2) == ((6, 9, 27),)
    assert lookahead.pool.after(3) == ((7, 10, 28),)
    assert lookahead.pool.after(5) == ()


def test_with_ngrams_of_two_the_last_level_is_the_first() -> None:
    lookahead = began(Settings(2, 2, 1), [[5, 6]], (7,))
    assert lookahead.draft(5) == [5, 6, 7]
    found = lookahead.verify(5, {0: 7, 2: 8}.__getitem__, lambda row: 20 + row)
    assert (found.tokens, found.rows) == ((7, 8), (0, 2))
    assert lookahead.branch == [[20, 21]]
    assert lookahead.pool.after(5) == ((20,),)
    assert lookahead.pool.after(6) == ((21,),)


def test_columns_with_the_same_head_are_filed_from_the_first_to_the_last() -> None:
    lookahead = began(Settings(2, 3, 2), [[5, 5, 5]])
    lookahead.verify(5, lambda row: 0, lambda row: 20 + row)
    assert lookahead.pool.after(5) == ((22,), (21,))


def test_an_ngram_counts_as_far_as_it_is_right() -> None:
    tree = Settings(4, 2, 2)  # n-grams in rows 6 to 8 and 9 to 11
    for answers, tokens, rows in [
        ({0: 3}, (3,), (0,)),  # not even its first token
        ({0: 7, 6: 3}, (7, 3), (0, 6)),
        ({0: 7, 6: 8, 7: 3}, (7, 8, 3), (0, 6, 7)),
        ({0: 7, 6: 8, 7: 9, 8: 3}, (7, 8, 9, 3), (0, 6, 7, 8)),
    ]:
        lookahead = began(tree, [[5, 5], [5, 5], [5, 5]], (7, 8, 9))
        found = lookahead.verify(5, answers.__getitem__, lambda row: 0)
        assert (found.tokens, found.rows) == (tokens, rows)


def test_of_ngrams_that_agree_the_first_slot_answers() -> None:
    lookahead = began(Settings(4, 2, 2), [[5, 5], [5, 5], [5, 5]], (7, 8, 9), (7, 8, 4))
    found = lookahead.verify(5, {0: 7, 6: 8, 7: 4, 11: 3}.__getitem__, lambda row: 0)
    assert (found.tokens, found.rows) == ((7, 8, 4, 3), (0, 6, 7, 11))


def test_only_the_ngrams_that_were_in_the_step_are_verified() -> None:
    # The step's own columns are filed while it is looked at: they replace the only n-gram, which still counts.
    lookahead = began(Settings(3, 1, 1), [[5], [6]], (7, 8))
    found = lookahead.verify(5, {0: 7, 2: 8, 3: 4}.__getitem__, lambda row: 20 + row)
    assert (found.tokens, found.rows) == ((7, 8, 4), (0, 2, 3))
    assert lookahead.pool.after(5) == ((6, 21),)
    # And what they bring is not taken for verified when nothing was.
    lookahead = began(Settings(3, 1, 1), [[5], [6]])
    assert lookahead.verify(5, {0: 6}.__getitem__, lambda row: 20 + row).tokens == (6,)


@pytest.mark.parametrize(
    ("stop", "tokens", "rows"),
    [(7, (7,), (0,)), (8, (7, 8), (0, 6)), (9, (7, 8, 9), (0, 6, 7)), (1, (7, 8, 9, 1), (0, 6, 7, 8))],
)
def test_a_stop_token_ends_what_an_ngram_gives(stop: int, tokens: tuple[int, ...], rows: tuple[int, ...]) -> None:
    lookahead = began(Settings(4, 2, 2), [[5, 5], [5, 5], [5, 5]], (7, 8, 9))
    found = lookahead.verify(5, {0: 7, 6: 8, 7: 9, 8: 1}.__getitem__, lambda row: 0, stop={stop})
    assert (found.tokens, found.rows) == (tokens, rows)


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


def test_the_path_of_a_row_is_what_it_attends_to() -> None:
    tree = Settings(3, 2, 2)
    assert [tree.path(row) for row in range(8)] == [
        *((0,), (0, 1), (0, 2), (0, 1, 3), (0, 4), (0, 4, 5), (0, 6), (0, 6, 7))
    ]
    assert tree.guessing_rows == (2, 3)
    assert Settings(2, 3, 1).guessing_rows == (0, 1, 2)
    assert Settings(4, 2, 3).guessing_rows == (4, 5)
    for settings_ in TREES:
        mask = init_mask(settings_.ar_len, 64, 0, "uint16", settings_.attention_map)[:, -settings_.ar_len :]
        for row in range(len(settings_.attention_map)):
            assert settings_.path(row) == tuple(np.flatnonzero(mask[row]))
            assert settings_.offsets[row] == len(settings_.path(row)) - 1
    assert str(tree) == "ngram 3, window 2, gcap 2"


@pytest.mark.parametrize(
    ("found", "n_past", "seq_len", "limit", "fits", "taken"),
    [
        (3, 10, 30, 40, 3, 3),
        (3, 26, 30, 40, 3, 3),
        (3, 27, 30, 40, 2, 2),
        (3, 28, 30, 40, 1, 1),
        (3, 38, 60, 40, 3, 2),
        (3, 37, 60, 40, 3, 3),
        (3, 40, 60, 40, 3, 0),
        (5, 38, 42, 40, 3, 2),
    ],
)
def test_what_fits_the_text_and_what_fits_the_cache(
    found: int, n_past: int, seq_len: int, limit: int, fits: int, taken: int
) -> None:
    assert fitting(found, n_past, seq_len, limit) == (fits, taken)


@settings(max_examples=60, deadline=None)
@given(
    tree=st.sampled_from(TREES),
    prompt=st.lists(st.integers(0, 12), min_size=1, max_size=14),
    seq_len=st.integers(20, CONTEXT),
    stop=st.sets(st.integers(0, 12), max_size=1),
)
def test_the_course_on_the_rows_choices_is_the_runtimes_own(
    tree: Settings, prompt: list[int], seq_len: int, stop: set[int]
) -> None:
    lookahead = Lookahead(tree, seed=3)
    done = generate(
        session(tree), prompt, seq_len=seq_len, choose=greedy, stop=stop, lookahead=lookahead, keep_rows=True
    )
    choices, drafts = list(done.row_choices), []

    def step(draft: list[int]) -> tuple[int, ...]:
        drafts.append(draft)
        return choices[len(drafts) - 1]

    emitted = list(done.tokens[:1])
    limit = CONTEXT - tree.ar_len
    course = run_lookahead(
        Lookahead(tree, seed=3),
        prompt,
        emitted,
        step,  # type: ignore[arg-type]
        seq_len=seq_len,
        limit=limit,
        stop=stop,
    )
    assert (course.tokens, course.steps, course.accepted) == (done.tokens, done.decode_steps, done.accepted)
    assert len(drafts) == len(choices)
    assert tuple(emitted) == course.tokens
    short = len(course.tokens) < seq_len - len(prompt) and course.tokens[-1] not in stop
    assert course.full or not short


def test_a_course_ends_where_the_text_or_the_cache_does() -> None:
    def step(draft: list[int]) -> list[int]:
        return [(token + 1) % 13 for token in draft]

    def course(seq_len: int, limit: int, stop: tuple[int, ...] = ()) -> Course:
        return run_lookahead(
            Lookahead(Settings(3, 2, 2)), [0, 1, 2], [3], step, seq_len=seq_len, limit=limit, stop=stop
        )  # type: ignore[arg-type]

    whole = course(40, 60)
    assert whole.tokens == tuple((3 + place) % 13 for place in range(37))
    assert whole.steps + whole.accepted == 36
    assert whole.accepted > 8
    assert not whole.full
    assert course(4, 60) == Course((3,), 0, 0)
    assert course(5, 60) == Course((3, 4), 1, 0)
    full = course(60, 20)
    assert full.full
    assert 18 <= len(full.tokens) <= 21
    assert full.steps + full.accepted == len(full.tokens) - 1
    assert course(40, 60, (6,)).tokens == (3, 4, 5, 6)
    assert course(40, 60, (3,)) == Course((3,), 0, 0)
