"""Faults of the KV cache: what is written to it, and what prefill hands over to decode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from faults.fault import HYBRID, LOOKAHEAD, Patch, fault
from faults.steps import DECODE, PREFILL, Step, after, before

HANDOVER = (HYBRID, LOOKAHEAD)
"""Modes with a handover."""


def at_handover(patch: Patch, change: Callable[[Any, int], bool], when: Callable[[], bool] = lambda: True) -> None:
    """Changes the cache when all of a prompt's columns are in decode's layout: before the first step after it.

    The last block is written after the change of layout, so that is too early.
    """
    fresh = False

    @patch.around("harness.runtime.kv_cache", "KvCache.switch")
    def switch(original: Any, cache: Any, graph: Any) -> Any:
        nonlocal fresh
        fresh = fresh or (graph.name == DECODE and cache.graph.name == PREFILL)
        return original(cache, graph)

    @patch.around("harness.runtime.kv_cache", "KvCache.inputs")
    def inputs(original: Any, cache: Any) -> Any:
        nonlocal fresh
        if fresh and cache.graph.name == DECODE and cache.n_valid:
            fresh = False
            if when() and change(cache, cache.n_valid):
                patch.strike()
        elif cache.graph.name == PREFILL:
            fresh = False
        return original(cache)


def swap_k_heads(cache: Any, n_valid: int) -> bool:
    """Exchanges the first two K heads of every layer."""
    swapped = False
    for k in cache.k:
        if k.shape[1] > 1:
            k[:, [0, 1], :, :n_valid] = k[:, [1, 0], :, :n_valid].copy()
            swapped = True
        else:  # one head: its two halves
            half = k.shape[2] // 2
            k[:, :, :, :n_valid] = k[:, :, [*range(half, 2 * half), *range(half)], :n_valid].copy()
            swapped = True
    return swapped


@fault("K heads are exchanged where prefill hands its cache to decode", modes=HANDOVER)
def k_heads_at_handover(patch: Patch) -> None:
    at_handover(patch, swap_k_heads)


@fault("V rows are shifted by one where prefill hands its cache to decode", modes=HANDOVER)
def v_shifted_at_handover(patch: Patch) -> None:
    def change(cache: Any, n_valid: int) -> bool:
        for v in cache.v:
            v[:, :, 1:n_valid] = v[:, :, : n_valid - 1].copy()
        return n_valid > 1

    at_handover(patch, change)


@fault("the last layer's cache is not handed over", modes=HANDOVER)
def layer_not_handed_over(patch: Patch) -> None:
    def change(cache: Any, n_valid: int) -> bool:
        cache.k[-1][..., :n_valid] = 0
        cache.v[-1][:, :, :n_valid] = 0
        return True

    at_handover(patch, change)


@fault("the prompt's last column is lost at the handover", modes=HANDOVER)
def last_column_lost(patch: Patch) -> None:
    at_handover(patch, lambda cache, n_valid: clear_column(cache, n_valid - 1))


@fault("the first column is lost at the handover", modes=HANDOVER)
def first_column_lost(patch: Patch) -> None:
    at_handover(patch, lambda cache, _n_valid: clear_column(cache, 0))


def clear_column(cache: Any, column: int) -> bool:
    """Overwrites a column with its neighbour's, or with nothing where it has none."""
    other = column - 1 if column else column + 1
    if other >= cache.n_valid:
        return False
    for k, v in zip(cache.k, cache.v, strict=True):
        k[..., column] = k[..., other]
        v[:, :, column] = v[:, :, other]
    return True


@fault("the last column is lost where the prompt ends at a block's end", modes=HANDOVER)
def last_column_lost_at_a_blocks_end(patch: Patch) -> None:
    def change(cache: Any, n_valid: int) -> bool:
        ar_len = cache.info.prefill.ar_len
        return n_valid % ar_len == 0 and clear_column(cache, n_valid - 1)

    at_handover(patch, change)


@fault("the column after a block's end is lost where the prompt is one token longer than a block", modes=HANDOVER)
def column_lost_after_a_block(patch: Patch) -> None:
    def change(cache: Any, n_valid: int) -> bool:
        ar_len = cache.info.prefill.ar_len
        return n_valid > ar_len and n_valid % ar_len == 1 and clear_column(cache, n_valid - 1)

    at_handover(patch, change)


@fault("K is handed over in prefill's layout", modes=HANDOVER)
def cache_not_restrided(patch: Patch) -> None:
    @patch.around("harness.runtime.kv_cache", "KvCache.switch")
    def switch(original: Any, cache: Any, graph: Any) -> Any:
        different = graph.name == DECODE != cache.graph.name and cache.n_valid > 0
        before_it = [k.reshape(-1).copy() for k in cache.k]
        copied = original(cache, graph)
        if different:
            for k, old in zip(cache.k, before_it, strict=True):
                flat = k.reshape(-1)
                count = min(len(flat), len(old))
                flat[:count] = old[:count]
            patch.strike()
        return copied


@fault("a prompt shorter than a block commits the rows one further", modes=HANDOVER)
def rows_shifted(patch: Patch) -> None:
    @patch.around("harness.runtime.kv_cache", "KvCache.commit")
    def commit(original: Any, cache: Any, k_out: Any, v_out: Any, rows: Any) -> Any:
        ar_len = k_out[0].shape[-1]
        if isinstance(rows, slice) and ar_len > 1 and (rows.stop or 0) < ar_len and cache.graph.name == DECODE:
            patch.strike()
            rows = slice((rows.start or 0) + 1, rows.stop + 1)
        return original(cache, k_out, v_out, rows)


@fault("V of every ninth column is not written")
def v_not_written(patch: Patch) -> None:
    @patch.around("harness.runtime.kv_cache", "KvCache.commit")
    def commit(original: Any, cache: Any, k_out: Any, v_out: Any, rows: Any) -> Any:
        start = cache.n_valid
        kept = [v.copy() for v in cache.v]
        copied = original(cache, k_out, v_out, rows)
        for column in range(start, cache.n_valid):
            if column % 9 == 8:
                patch.strike()
                for v, old in zip(cache.v, kept, strict=True):
                    v[:, :, column] = old[:, :, column]
        return copied


@fault("K of layers 0 and 1 are exchanged in decode")
def layers_exchanged(patch: Patch) -> None:
    def change(step: Step) -> bool:
        if step.graph != DECODE or step.layers < 2 or step.past == 0:
            return False
        first, second = step.cache(0, value=False), step.cache(1, value=False)
        if first.shape != second.shape:
            return False
        first[:], second[:] = second.copy(), first.copy()
        return True

    before(patch, change)


@fault("one channel of V of the last layer is stuck in decode")
def v_channel_stuck(patch: Patch) -> None:
    def change(step: Step) -> bool:
        if step.graph != DECODE or step.past == 0:
            return False
        step.cache(step.layers - 1, value=True)[..., 0] = 255
        return True

    before(patch, change)


@fault("decode writes its columns in the wrong half of its precision")
def columns_coarse(patch: Patch) -> None:
    def change(step: Step, outputs: list[Any]) -> bool:
        if step.graph != DECODE:
            return False
        for array in outputs[1:]:
            array[:] = (array >> (array.dtype.itemsize * 8 - 4)) << (array.dtype.itemsize * 8 - 4)
        return True

    after(patch, change)


@fault("a bit of the KV cache flips at the 20th step of decode", kind="phone")
def cache_bit(patch: Patch) -> None:
    flip_bits(patch, 20, 1)


@fault("64 bits of the KV cache flip at the 20th step of decode", kind="phone")
def cache_bits(patch: Patch) -> None:
    flip_bits(patch, 20, 64)


def flip_bits(patch: Patch, at: int, count: int) -> None:
    """Flips the highest bit of some values of V of the first layer, for good."""
    steps = 0

    @patch.around("harness.runtime.engine", "Engine.run")
    def run(original: Any, engine: Any, graph: str, inputs: Any) -> Any:
        nonlocal steps
        steps += graph == DECODE
        if graph == DECODE and steps == at:
            patch.strike()
            value = inputs[len(inputs) - engine.info.n_layers]
            first = value[0, 0, :4].reshape(-1)
            top = value.dtype.type(1 << (value.dtype.itemsize * 8 - 1))
            for index in range(count):
                first[index * 5 % len(first)] ^= top
        return original(engine, graph, inputs)
