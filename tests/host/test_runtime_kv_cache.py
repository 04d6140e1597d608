"""The KV cache: which bytes a commit, a change of graph and a rewind touch, and what they count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from runtime_fixtures import toy_info

from harness.runtime.kv_cache import Copied, KvCache
from harness.runtime.program import ProgramInfo, TensorSpec

CONTEXT, AR, LAYERS, HEADS, DIM = 16, 4, 2, 2, 3
COLUMN = LAYERS * 2 * HEADS * DIM
"""Bytes of a token: layers × (K and V) × heads × head_dim, a byte each."""
UNTOUCHED = 99


def outputs(first: int, count: int = AR) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A step's K and V: each number tells the token, the layer, and K from V; heads and dimensions too."""
    k = np.arange(HEADS * DIM, dtype=np.uint8).reshape(1, HEADS, DIM, 1) + 10 * np.arange(
        first, first + count, dtype=np.uint8
    )
    v = (k + 5).transpose(0, 1, 3, 2)
    return [(k + 100 * layer).astype(np.uint8) for layer in range(LAYERS)], [
        (v + 100 * layer).astype(np.uint8) for layer in range(LAYERS)
    ]


def cache(graph: str = "prefill_forward") -> KvCache:
    """An empty cache whose every byte is known."""
    info = toy_info(CONTEXT, AR)
    made = KvCache(info, info.graphs[graph])
    for flat in (*made._flat_k, *made._flat_v):
        flat[:] = UNTOUCHED
    return made


def assert_holds(made: KvCache, tokens: list[int], untouched_from: int | None = None) -> None:
    """Its valid columns are those of `tokens`, and those from `untouched_from` on were never written."""
    assert made.n_valid == len(tokens)
    for layer in range(LAYERS):
        for column, token in enumerate(tokens):
            (k, v) = outputs(token, 1)
            np.testing.assert_array_equal(made.k[layer][..., column], k[layer][..., 0])
            np.testing.assert_array_equal(made.v[layer][:, :, column], v[layer][:, :, 0])
        if untouched_from is not None:
            assert (made.k[layer][..., untouched_from:] == UNTOUCHED).all()
            assert (made.v[layer][:, :, untouched_from:] == UNTOUCHED).all()


def test_an_empty_cache() -> None:
    info = toy_info(CONTEXT, AR)
    made = KvCache(info, info.graphs["prefill_forward"])
    assert (made.n_valid, made.copied, made.capacity, made.dtype) == (0, Copied(0, 0), 12, "uint8")
    assert [x.shape for x in made.inputs()] == [(1, 2, 3, 12)] * 2 + [(1, 2, 12, 3)] * 2
    assert all(x.dtype == np.uint8 and not x.any() for x in made.inputs())
    other = KvCache(info, info.graphs["kv_forward"])
    assert (other.capacity, other.inputs()[0].shape) == (15, (1, 2, 3, 15))
    other.copied.commit += 1
    assert made.copied == Copied()


def test_the_caches_dtype_is_the_programs() -> None:
    info = toy_info(CONTEXT, AR)
    graphs = {
        name: replace(
            graph,
            k_in=tuple(TensorSpec(spec.shape, "uint16") for spec in graph.k_in),
            v_in=tuple(TensorSpec(spec.shape, "uint16") for spec in graph.v_in),
        )
        for name, graph in info.graphs.items()
    }
    wide = KvCache(replace(info, graphs=graphs), graphs["prefill_forward"])
    assert wide.dtype == "uint16"
    assert {str(array.dtype) for array in wide.inputs()} == {"uint16"}
    k, v = outputs(0)
    assert wide.commit([x.astype(np.uint16) for x in k], [x.astype(np.uint16) for x in v], [0]) == 2 * COLUMN


def test_a_commit_fills_the_next_columns_and_no_others() -> None:
    made = cache()
    assert made.commit(*outputs(0), slice(0, 3)) == 3 * COLUMN
    assert_holds(made, [0, 1, 2], untouched_from=3)
    assert made.commit(*outputs(7), [2, 0]) == 2 * COLUMN  # rows in the order asked for
    assert_holds(made, [0, 1, 2, 9, 7], untouched_from=5)
    assert made.commit(*outputs(5), slice(1, 2)) == COLUMN
    assert_holds(made, [0, 1, 2, 9, 7, 6], untouched_from=6)
    assert made.copied == Copied(commit=6 * COLUMN, switch=0)


def test_a_commit_of_nothing_copies_nothing() -> None:
    made = cache()
    assert made.commit(*outputs(0), slice(0, 0)) == 0
    assert made.commit(*outputs(0), []) == 0
    assert_holds(made, [], untouched_from=0)


def test_a_cache_can_be_filled_to_its_last_column_and_not_beyond() -> None:
    made = cache()
    for first in (0, 4, 8):
        made.commit(*outputs(first), slice(0, 4))
    assert_holds(made, list(range(12)))
    with pytest.raises(ValueError, match=r"^1 tokens after 12 do not fit a cache of 12$"):
        made.commit(*outputs(12), [0])
    assert_holds(made, list(range(12)))
    made.rewind(10)
    with pytest.raises(ValueError, match=r"^3 tokens after 10 do not fit a cache of 12$"):
        made.commit(*outputs(20), [0, 1, 2])
    made.commit(*outputs(20), [0, 1])
    assert_holds(made, [*range(10), 20, 21])
    assert made.copied == Copied(commit=14 * COLUMN, switch=0)  # what was refused is not counted


def test_inputs_are_the_arrays_themselves_until_the_graph_changes() -> None:
    made = cache()
    before = made.inputs()
    made.commit(*outputs(0), slice(0, 2))
    assert made.switch(made.info.graphs["prefill_forward"]) == 0
    assert all(a is b for a, b in zip(before, made.inputs(), strict=True))
    assert made.copied.switch == 0
    np.testing.assert_array_equal(before[0], made.k[0])
    np.testing.assert_array_equal(before[1], made.k[1])
    np.testing.assert_array_equal(before[2], made.v[0])
    np.testing.assert_array_equal(before[3], made.v[1])


def test_a_change_of_graph_keeps_every_column_both_ways() -> None:
    made = cache()
    made.commit(*outputs(0), slice(0, 4))
    made.commit(*outputs(4), slice(0, 1))
    assert made.switch(made.info.graphs["kv_forward"]) == 5 * COLUMN
    assert (made.graph.name, made.capacity) == ("kv_forward", 15)
    assert_holds(made, [0, 1, 2, 3, 4])
    made.commit(*outputs(5), [0])
    assert made.switch(made.info.graphs["prefill_forward"]) == 6 * COLUMN
    assert (made.graph.name, made.capacity) == ("prefill_forward", 12)
    assert_holds(made, [0, 1, 2, 3, 4, 5])
    assert made.copied == Copied(commit=6 * COLUMN, switch=11 * COLUMN)


@pytest.mark.parametrize(("valid", "kept"), [(0, 0), (11, 11), (12, 12), (13, 12), (15, 12)])
def test_a_narrower_cache_keeps_the_first_columns(valid: int, kept: int) -> None:
    made = cache("kv_forward")
    for token in range(valid):
        made.commit(*outputs(token, 1), [0])
    assert made.switch(made.info.graphs["prefill_forward"]) == kept * COLUMN
    assert_holds(made, list(range(kept)))
    if kept < 12:
        made.commit(*outputs(20), [0])
        assert_holds(made, [*range(kept), 20])


def test_the_buffer_holds_the_wider_layout_whatever_graph_comes_first() -> None:
    for graph in ("kv_forward", "prefill_forward"):
        made = cache(graph)
        assert {flat.size for flat in (*made._flat_k, *made._flat_v)} == {HEADS * DIM * 15}
        for layout in ("prefill_forward", "kv_forward"):
            made.switch(made.info.graphs[layout])
            assert made.inputs()[0].size == HEADS * DIM * made.capacity


def test_layers_may_have_shapes_of_their_own() -> None:
    info = toy_info(CONTEXT, AR)

    def widened(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0], 2 * shape[1], *shape[2:])

    graphs = {
        name: replace(
            graph,
            k_in=(graph.k_in[0], TensorSpec(widened(graph.k_in[1].shape), "uint8")),
            v_in=(graph.v_in[0], TensorSpec(widened(graph.v_in[1].shape), "uint8")),
        )
        for name, graph in info.graphs.items()
    }
    made = KvCache(replace(info, graphs=graphs), graphs["prefill_forward"])
    made.switch(graphs["kv_forward"])
    assert [x.shape for x in made.inputs()] == [(1, 2, 3, 15), (1, 4, 3, 15), (1, 2, 15, 3), (1, 4, 15, 3)]


def test_a_rewind_forgets_columns_and_moves_none() -> None:
    made = cache()
    made.commit(*outputs(0), slice(0, 4))
    copied = Copied(made.copied.commit, made.copied.switch)
    before = [array.copy() for array in made.inputs()]
    made.rewind(4)
    assert made.n_valid == 4
    made.rewind(1)
    assert (made.n_valid, made.copied) == (1, copied)
    for now, then in zip(made.inputs(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    made.commit(*outputs(8), [0])  # the next token takes the place of the first that was forgotten
    assert_holds(made, [0, 8])
    made.rewind(0)
    assert made.n_valid == 0


@pytest.mark.parametrize("n_valid", [-1, 3, 4])
def test_there_is_no_rewind_to_what_is_not_there(n_valid: int) -> None:
    made = cache()
    made.commit(*outputs(0), slice(0, 2))
    with pytest.raises(ValueError, match=f"^cannot rewind to {n_valid} from 2$"):
        made.rewind(n_valid)
    assert made.n_valid == 2


def test_outputs_of_too_few_layers_are_refused() -> None:
    made = cache()
    k, v = outputs(0)
    with pytest.raises(ValueError):
        made.commit(k[:1], v[:1], [0])


@pytest.mark.parametrize("side", ["k_in", "v_in"])
def test_a_graph_with_more_caches_than_layers_is_refused(side: str) -> None:
    info = toy_info(CONTEXT, AR)
    graph = info.graphs["kv_forward"]
    wide = replace(graph, **{side: getattr(graph, side) * 2})
    with pytest.raises(ValueError):
        KvCache(replace(info, graphs=info.graphs | {"kv_forward": wide}), wide)


def test_a_program_of_one_graph_has_a_buffer_of_its_own_size() -> None:
    info: ProgramInfo = toy_info(CONTEXT, AR, prefill=False)
    made = KvCache(info, info.graphs["kv_forward"])
    assert {flat.size for flat in (*made._flat_k, *made._flat_v)} == {HEADS * DIM * 15}
