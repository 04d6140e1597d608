"""A conversation with a `.pte`: what is in the KV cache, and the two ways to add to it, blocks of AR and single steps.

Positions, masks and cache columns are kept consistent here and nowhere else. Prompts may be as long as the context
allows: a last block that would reach past it starts earlier and computes some tokens again (upstream's runner refuses
prompts longer than CL−AR).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.runtime.engine import Executor
from harness.runtime.kv_cache import KvCache
from harness.runtime.masks import init_mask, update_mask
from harness.runtime.program import KV_GRAPH, Graph

Array = npt.NDArray[np.generic]
OnRows = Callable[[Array], None]


@dataclass(frozen=True)
class StepOutput:
    """One execution's outputs: logits [AR,V], raw; K [1,Hkv,D,AR] and V [1,Hkv,AR,D] of each layer.

    They are overwritten by the next execution.
    """

    logits: Array
    k: tuple[Array, ...]
    v: tuple[Array, ...]


@dataclass
class _Masks:
    """The masks of the last step, kept up to date by commits while the same graph goes on with the same tree.

    Attributes:
        tree: name of the graph, attention map and offsets.
        past: cached tokens they were made for.
        plain, windowed: [AR,CL]; `windowed` for graphs with a sliding window.
    """

    tree: tuple[str, tuple[int, ...] | None, tuple[int, ...] | None]
    past: int
    plain: Array
    windowed: Array | None


@dataclass(frozen=True)
class Block:
    """Tokens [start, end) in one execution, of which [fresh, end) are new; `start` tokens are in the cache."""

    start: int
    fresh: int
    end: int


def plan_blocks(done: int, total: int, ar_len: int, context_len: int) -> Iterator[Block]:
    """Cuts the tokens [done, total) into blocks of at most AR, each with its past within CL−AR columns. Pure."""
    if not 0 <= done <= total <= context_len:
        raise ValueError(f"tokens {done} to {total} do not fit a context of {context_len}")
    while done < total:
        start = min(done, context_len - ar_len)
        end = min(start + ar_len, total)
        yield Block(start, done, end)
        done = end


class Session:
    """State of one conversation. Not thread-safe.

    Args:
        executor: runs the graphs.
        prefill: name of the graph that takes prompts; default `prefill_forward` where there is one.

    Attributes:
        tokens: the text so far.
        bytes_per_step: bytes that each step copied into the cache.
        run_seconds: spent in the graphs so far, all else left out.
    """

    def __init__(self, executor: Executor, prefill: str | None = None) -> None:
        self.executor = executor
        self.info = executor.info
        default = (self.info.prefill or self.info.kv).name
        self.prefill_graph = self.info.graphs[prefill or default]
        self.kv_graph = self.info.graphs[KV_GRAPH]
        self.tokens: list[int] = []
        self.cache = KvCache(self.info, self.prefill_graph)
        self.bytes_per_step: list[int] = []
        self.run_seconds = 0.0
        self._masks: _Masks | None = None

    @property
    def n_past(self) -> int:
        """Tokens so far."""
        return len(self.tokens)

    @property
    def limit(self) -> int:
        """Tokens that may be taken in all if generation is to go on: what the decode graph's cache holds, CL−AR."""
        return self.info.context_len - self.kv_graph.ar_len

    def rewind(self, n_past: int) -> None:
        """Forgets all but the first `n_past` tokens."""
        del self.tokens[n_past:]
        self.cache.rewind(min(n_past, self.cache.n_valid))

    def feed(
        self, tokens: Sequence[int], *, graph: Graph | None = None, keep: bool = True, on_rows: OnRows | None = None
    ) -> Array:
        """Takes `tokens` in blocks and returns the raw logits [V] of the last.

        Args:
            tokens: at least one, ids below the vocabulary's size.
            graph: which to use; default the prefill graph.
            keep: whether the last block goes into the cache, ready for `step`; without it the tokens may fill the
                whole context, and only `rewind(0)` may follow.
            on_rows: called with the raw logits [n,V] of each block's new tokens; copy what you keep.

        Raises:
            ValueError: no tokens, ids out of range, or more than the context holds.
        """
        graph = graph or self.prefill_graph
        self._check(tokens, keep)
        done, total = self.n_past, self.n_past + len(tokens)
        self.tokens.extend(int(token) for token in tokens)
        row: Array | None = None
        for block in plan_blocks(done, total, graph.ar_len, self.info.context_len):
            self._ensure(graph, block.start)
            output = self.execute(graph, self.tokens[block.start : block.end])
            rows = output.logits[block.fresh - block.start : block.end - block.start]
            if on_rows:
                on_rows(rows)
            last = block.end == total
            if last:
                row = rows[-1].copy()
                if keep:
                    self._ensure(self.kv_graph, block.start)  # its cache has room for the whole block
            if not last or keep:
                self._commit(output, block)
        assert row is not None
        return row

    def step(self, token: int) -> Array:
        """Takes one token through the decode graph and returns its raw logits [V]; errors as in `feed`."""
        return self.feed([token], graph=self.kv_graph, keep=self.n_past + 1 < self.info.context_len)

    def branch(self, tokens: Sequence[int], offsets: tuple[int, ...], attention_map: tuple[int, ...]) -> StepOutput:
        """One execution of the decode graph over guessed continuations, none of which is taken yet; see `execute`."""
        self._ensure(self.kv_graph, self.n_past)
        return self.execute(self.kv_graph, tokens, offsets=offsets, attention_map=attention_map)

    def accept(self, output: StepOutput, tokens: Sequence[int], rows: Sequence[int]) -> None:
        """Takes the tokens of some rows of a `branch`, in this order, into text and cache.

        Raises:
            ValueError: they do not fit the cache.
        """
        have = self.cache.n_valid
        self.bytes_per_step.append(self.cache.commit(output.k, output.v, rows))
        self.tokens.extend(tokens)
        self._extend_masks(have, len(rows))

    def execute(
        self,
        graph: Graph,
        tokens: Sequence[int],
        *,
        offsets: tuple[int, ...] | None = None,
        attention_map: tuple[int, ...] | None = None,
    ) -> StepOutput:
        """One execution after the tokens in the cache, without changing it; fewer tokens than AR are padded.

        Args:
            graph: must be the cache's present one.
            tokens: at most AR.
            offsets: position of each row relative to the cache's end; default its number.
            attention_map: for each row the one it follows; default the one before it.
        """
        past = self.cache.n_valid
        ids = np.zeros(graph.tokens.shape, dtype=graph.tokens.dtype)
        ids[0, : len(tokens)] = tokens
        steps = np.arange(graph.ar_len) if offsets is None else np.asarray(offsets)
        # A padded row's position may lie past the tables' end; its value is never read.
        places = np.minimum(past + steps, self.info.context_len - 1).astype(graph.positions.dtype)[None]
        mask, windowed = self._mask(graph, past, attention_map, offsets)
        inputs = [ids, mask[None, None], *([windowed[None, None]] if windowed is not None else []), places]
        start = time.perf_counter()
        outputs = self.executor.run(graph.name, [*inputs, *self.cache.inputs()])
        self.run_seconds += time.perf_counter() - start
        layers = self.info.n_layers
        return StepOutput(outputs[0][0], tuple(outputs[1 : 1 + layers]), tuple(outputs[1 + layers :]))

    def _check(self, tokens: Sequence[int], keep: bool) -> None:
        if len(tokens) == 0:
            raise ValueError("no tokens to process")
        if bad := [token for token in tokens if not 0 <= token < self.info.vocab]:
            raise ValueError(f"token {bad[0]} is outside the vocabulary of {self.info.vocab}")
        limit = self.limit if keep else self.info.context_len
        if self.n_past + len(tokens) > limit:
            raise ValueError(f"{len(tokens)} tokens after {self.n_past} do not fit: there is room for {limit}")

    def _ensure(self, graph: Graph, n_valid: int) -> None:
        self.cache.switch(graph)
        self.cache.rewind(n_valid)

    def _commit(self, output: StepOutput, block: Block) -> None:
        # A block that is not the last may overhang this graph's cache; the next block then starts earlier.
        have = self.cache.n_valid
        count = min(block.end, self.cache.capacity) - have
        self.bytes_per_step.append(self.cache.commit(output.k, output.v, slice(0, count)))
        self._extend_masks(have, count)

    def _extend_masks(self, have: int, count: int) -> None:
        """Makes the columns of `count` newly cached tokens visible."""
        masks = self._masks
        if masks is None or masks.tree[0] != self.cache.graph.name or masks.past != have:
            return
        update_mask(masks.plain, have, count)
        if masks.windowed is not None:
            update_mask(masks.windowed, have, count, self.info.sliding_window, masks.tree[2])
        masks.past = have + count

    def _mask(
        self, graph: Graph, past: int, attention_map: tuple[int, ...] | None, offsets: tuple[int, ...] | None
    ) -> tuple[Array, Array | None]:
        tree = graph.name, attention_map, offsets
        if self._masks is None or self._masks.tree != tree or self._masks.past != past:
            size = (graph.ar_len, self.info.context_len, past, graph.mask.dtype, attention_map)
            windowed = init_mask(*size, window=self.info.sliding_window, offsets=offsets) if graph.sliding else None
            self._masks = _Masks(tree, past, init_mask(*size), windowed)
        return self._masks.plain, self._masks.windowed
