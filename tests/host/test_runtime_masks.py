"""Masks: the same as a mask computed from first principles, for any past, window and tree of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.runtime.masks import causal_map, init_mask, mask_values, update_mask


def columns(mask: np.ndarray) -> list[list[int]]:
    """The columns that each row may attend to."""
    return [np.flatnonzero(row == mask_values(str(mask.dtype))[0]).tolist() for row in mask]


@pytest.mark.parametrize(
    ("dtype", "values"),
    [("uint16", (65535, 0)), ("uint8", (255, 0)), ("float16", (0.0, -65504.0)), ("float32", (0.0, -65535.0))],
)
def test_the_values_are_those_of_upstream(dtype: str, values: tuple[float, float]) -> None:
    assert mask_values(dtype) == values
    assert init_mask(2, 6, 3, dtype).dtype == np.dtype(dtype)
    # A block of half precision is its least finite value: −65535 is −inf there.
    assert init_mask(1, 2, 0, dtype).tolist() == [[values[1], values[0]]]


def test_a_mask_of_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="no graph has a mask of int8"):
        mask_values("int8")


def test_a_causal_step_of_three_after_two() -> None:
    assert columns(init_mask(3, 8, 2, "uint16")) == [[0, 1, 5], [0, 1, 5, 6], [0, 1, 5, 6, 7]]


def test_an_empty_and_a_full_cache() -> None:
    assert columns(init_mask(2, 5, 0, "uint8")) == [[3], [3, 4]]
    assert columns(init_mask(2, 5, 3, "uint8")) == [[0, 1, 2, 3], [0, 1, 2, 3, 4]]
    # A graph as wide as its context has no cache.
    assert columns(init_mask(3, 3, 0, "uint8")) == [[0], [0, 1], [0, 1, 2]]


def test_rows_that_the_map_does_not_name_see_nothing_but_themselves() -> None:
    assert columns(init_mask(4, 10, 3, "uint16", [-1, 0])) == [[0, 1, 2, 6], [0, 1, 2, 6, 7], [8], [9]]
    assert columns(init_mask(2, 6, 3, "uint16", [])) == [[4], [5]]


def test_a_window_of_three_over_a_step_of_four() -> None:
    # Positions 5 to 8; the cache holds 0 to 4. A window below the step's width blocks the step's own first columns too.
    mask = init_mask(4, 12, 5, "uint16", window=3)
    assert columns(mask) == [[3, 4, 8], [4, 8, 9], [8, 9, 10], [9, 10, 11]]
    # A window of one leaves each token itself alone, with a full cache as with an empty one.
    for past in (0, 8):
        assert columns(init_mask(4, 12, past, "uint16", window=1)) == [[8], [9], [10], [11]]


@pytest.mark.parametrize(("window", "seen"), [(5, [1, 2, 3, 4, 5]), (6, [0, 1, 2, 3, 4, 5]), (7, [0, 1, 2, 3, 4, 5])])
def test_a_window_loses_the_first_token_when_it_is_full(window: int, seen: list[int]) -> None:
    assert columns(init_mask(1, 6, 5, "uint16", window=window)) == [seen]


def test_offsets_say_which_rows_of_the_step_a_window_still_shows() -> None:
    # A chain at positions 4, 5, 7 and 8 and a window of 3: the third row has lost the first, the fourth the second too.
    mask = init_mask(4, 10, 4, "uint16", window=3, offsets=[0, 1, 3, 4])
    assert columns(mask) == [[2, 3, 6], [3, 6, 7], [7, 8], [8, 9]]


def test_a_row_that_follows_another_sees_what_that_one_sees() -> None:
    # W=2, N=3: rows 0 and 1 are the chain, 2 and 3 hang below them, 3 sees 0 and 1 but not 2.
    assert columns(init_mask(4, 8, 1, "uint16", [-1, 0, 0, 1])) == [[0, 4], [0, 4, 5], [0, 4, 6], [0, 4, 5, 7]]


def test_an_update_opens_the_new_columns_and_no_others() -> None:
    mask = init_mask(2, 9, 2, "uint8")
    update_mask(mask, 2, 3)
    assert columns(mask) == [[0, 1, 2, 3, 4, 7], [0, 1, 2, 3, 4, 7, 8]]
    update_mask(mask, 5, 0)
    assert columns(mask) == [[0, 1, 2, 3, 4, 7], [0, 1, 2, 3, 4, 7, 8]]


def test_an_update_leaves_closed_what_was_closed_before_it() -> None:
    # The second row is a padded one: the two tokens that came before stay out of its sight.
    mask = init_mask(2, 9, 2, "uint8", [-1])
    update_mask(mask, 2, 1)
    assert columns(mask) == [[0, 1, 2, 7], [2, 8]]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32"])
def test_an_update_moves_the_window_on(dtype: str) -> None:
    mask = init_mask(2, 10, 3, dtype, window=4)
    assert columns(mask) == [[0, 1, 2, 8], [1, 2, 8, 9]]
    update_mask(mask, 3, 2, window=4)
    assert columns(mask) == [[2, 3, 4, 8], [3, 4, 8, 9]]
    np.testing.assert_array_equal(mask, init_mask(2, 10, 5, dtype, window=4))


def test_an_update_to_a_full_cache_leaves_the_steps_own_columns() -> None:
    mask = init_mask(3, 8, 4, "uint16", window=1)
    update_mask(mask, 4, 1, window=1)
    assert columns(mask) == [[5], [6], [7]]


def test_a_window_never_takes_a_row_from_itself() -> None:
    # Rows two and three places after the cache's end, which a window of two leaves: all of the cache is out of sight.
    far = {"window": 2, "offsets": [2, 3]}
    assert columns(init_mask(2, 6, 4, "uint16", **far)) == [[4], [4, 5]]
    mask = init_mask(2, 6, 3, "uint16", **far)
    update_mask(mask, 3, 1, **far)
    assert columns(mask) == [[4], [4, 5]]


def test_an_update_takes_each_rows_offset() -> None:
    # Three rows at one position, as n-grams of one token each; then two at the next.
    tree = {"window": 3, "offsets": [0, 1, 1]}
    mask = init_mask(3, 12, 4, "uint16", [-1, 0, 0], **tree)
    assert columns(mask) == [[2, 3, 9], [3, 9, 10], [3, 9, 11]]
    update_mask(mask, 4, 2, **tree)
    assert columns(mask) == [[4, 5, 9], [5, 9, 10], [5, 9, 11]]


@st.composite
def trees(draw: st.DrawFn) -> tuple[int, int, int, list[int]]:
    ar = draw(st.integers(1, 8))
    context = draw(st.integers(ar + 1, 24))
    past = draw(st.integers(0, context - ar))
    return ar, context, past, [draw(st.integers(-1, row - 1)) for row in range(ar)]


@given(trees())
def test_a_row_sees_the_past_itself_and_its_ancestors(tree: tuple[int, int, int, list[int]]) -> None:
    ar, context, past, parents = tree
    mask = init_mask(ar, context, past, "uint16", parents)
    for row in range(ar):
        seen = set(range(past))
        node = row
        while node >= 0:
            seen.add(context - ar + node)
            node = parents[node]
        assert set(np.flatnonzero(mask[row]).tolist()) == seen
        assert set(mask[row].tolist()) <= {0, 65535}


@given(trees(), st.integers(1, 12), st.data())
def test_updating_equals_starting_later(
    tree: tuple[int, int, int, list[int]], window: int, data: st.DataObject
) -> None:
    ar, context, past, _ = tree
    count = data.draw(st.integers(0, context - ar - past))
    limit = data.draw(st.sampled_from([None, window]))
    mask = init_mask(ar, context, past, "uint16", window=limit)
    update_mask(mask, past, count, limit)
    np.testing.assert_array_equal(mask, init_mask(ar, context, past + count, "uint16", window=limit))


@given(trees(), st.integers(1, 30))
def test_a_window_keeps_the_last_positions(tree: tuple[int, int, int, list[int]], window: int) -> None:
    ar, context, past, _ = tree
    mask = init_mask(ar, context, past, "uint16", window=window)
    for row in range(ar):
        position = past + row
        cached = np.flatnonzero(mask[row, : context - ar]).tolist()
        assert cached == [p for p in range(past) if position - p < window]


def test_a_tree_row_has_its_own_offset_in_the_window() -> None:
    # Two rows at the same position (offset 0), both after six cached tokens, window 3: they see tokens 4 and 5.
    mask = init_mask(2, 10, 6, "uint16", [-1, -1], window=3, offsets=[0, 0])
    assert [np.flatnonzero(row).tolist() for row in mask] == [[4, 5, 8], [4, 5, 9]]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32"])
def test_values_are_finite_in_the_masks_dtype(dtype: str) -> None:
    attend, block = mask_values(dtype)
    mask = init_mask(1, 4, 1, dtype)
    assert np.isfinite(mask.astype(np.float64)).all()
    assert mask.tolist() == [[attend, block, block, attend]]
    assert attend > block


@pytest.mark.parametrize(
    ("past", "parents", "words"),
    [
        (-1, None, "n_past -1 does not fit a cache of 6 − 3 tokens"),
        (4, None, "n_past 4 does not fit a cache of 6 − 3 tokens"),
        (0, [0], r"attention map \[0\]: each row must follow an earlier one or −1, 3 at most"),
        (0, [-1, 1], r"attention map \[-1, 1\]"),
        (0, [-2], r"attention map \[-2\]"),
        (0, [-1, 0, 1, 2], r"attention map \[-1, 0, 1, 2\]"),
    ],
)
def test_nonsense_is_refused(past: int, parents: list[int] | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        init_mask(3, 6, past, "uint16", parents)


def test_the_causal_map() -> None:
    assert causal_map(4) == (-1, 0, 1, 2)
    assert causal_map(1) == (-1,)
