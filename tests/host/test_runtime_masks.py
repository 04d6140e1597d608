"""Masks: the same as a mask computed from first principles, for any past, window and tree of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.runtime.masks import causal_map, init_mask, mask_values, update_mask


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
    ("past", "parents"), [(-1, None), (4, None), (0, [0]), (0, [-1, 1]), (0, [-2]), (0, [-1, 0, 1, 2])]
)
def test_nonsense_is_refused(past: int, parents: list[int] | None) -> None:
    with pytest.raises(ValueError):
        init_mask(3, 6, past, "uint16", parents)


def test_the_causal_map() -> None:
    assert causal_map(4) == (-1, 0, 1, 2)
