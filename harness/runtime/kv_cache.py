"""The KV cache of the Smart Mask scheme: quantised, never moved within a graph, only new columns copied.

A graph of AR tokens reads a cache of CL−AR: K as [1,Hkv,D,CL−AR] (transposed), V as [1,Hkv,CL−AR,D]. One flat buffer a
layer holds it in the layout of the graph that runs next; a change of graph re-strides it, as upstream's
`KVManager::rearrange_cache`. Outputs share the inputs' encoding, so bytes are copied as they are. What lies beyond the
valid columns is never read: the mask blocks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt

from harness.runtime.program import Graph, ProgramInfo

Array = npt.NDArray[np.generic]


@dataclass
class Copied:
    """Bytes copied so far: by commits (a step's new columns), and by changes of graph."""

    commit: int = 0
    switch: int = 0


@dataclass
class KvCache:
    """Caches of all layers, in the layout of `graph`.

    Attributes:
        info: the program.
        graph: the graph whose layout the buffers have now.
        n_valid: columns that hold tokens.
        copied: counters.
    """

    info: ProgramInfo
    graph: Graph
    n_valid: int = 0
    copied: Copied = field(default_factory=Copied)

    def __post_init__(self) -> None:
        graphs = list(self.info.graphs.values())
        self._flat_k = [_flat([g.k_in[layer].shape for g in graphs], self.dtype) for layer in range(self.info.n_layers)]
        self._flat_v = [_flat([g.v_in[layer].shape for g in graphs], self.dtype) for layer in range(self.info.n_layers)]
        self._shape()

    @property
    def dtype(self) -> str:
        """numpy's name of the caches' dtype."""
        return self.info.kv_dtype

    @property
    def capacity(self) -> int:
        """Tokens the present layout holds: CL−AR."""
        return self.info.context_len - self.graph.ar_len

    def inputs(self) -> tuple[Array, ...]:
        """All K, then all V, as the graph takes them; the same arrays until `switch`."""
        return (*self.k, *self.v)

    def switch(self, graph: Graph) -> int:
        """Re-strides to another graph's layout, keeping the first min(valid, its capacity) tokens; returns bytes."""
        if graph.name == self.graph.name:
            return 0
        before = self.n_valid
        kept = min(before, self.info.context_len - graph.ar_len)
        saved = [(k[..., :kept].copy(), v[:, :, :kept].copy()) for k, v in zip(self.k, self.v, strict=True)]
        self.graph = graph
        self._shape()
        for (old_k, old_v), k, v in zip(saved, self.k, self.v, strict=True):
            k[..., :kept] = old_k
            v[:, :, :kept] = old_v
        self.n_valid = kept
        count = sum(k.nbytes + v.nbytes for k, v in saved)
        self.copied.switch += count
        return count

    def commit(self, k_out: Sequence[Array], v_out: Sequence[Array], rows: Sequence[int] | slice) -> int:
        """Appends the columns of `rows` of a step's outputs (K [1,Hkv,D,AR], V [1,Hkv,AR,D] a layer); returns bytes.

        Raises:
            ValueError: they do not fit.
        """
        index = rows if isinstance(rows, slice) else list(rows)
        count = v_out[0][:, :, index].shape[2]
        start, end = self.n_valid, self.n_valid + count
        if end > self.capacity:
            raise ValueError(f"{count} tokens after {start} do not fit a cache of {self.capacity}")
        copied = 0
        for k, v, new_k, new_v in zip(self.k, self.v, k_out, v_out, strict=True):
            k[..., start:end] = new_k[..., index]
            v[:, :, start:end] = new_v[:, :, index]
            copied += k[..., start:end].nbytes + v[:, :, start:end].nbytes
        self.n_valid = end
        self.copied.commit += copied
        return copied

    def rewind(self, n_valid: int) -> None:
        """Forgets the tokens after the first `n_valid`; copies nothing."""
        if not 0 <= n_valid <= self.n_valid:
            raise ValueError(f"cannot rewind to {n_valid} from {self.n_valid}")
        self.n_valid = n_valid

    def _shape(self) -> None:
        self.k = [_view(flat, s.shape) for flat, s in zip(self._flat_k, self.graph.k_in, strict=True)]
        self.v = [_view(flat, s.shape) for flat, s in zip(self._flat_v, self.graph.v_in, strict=True)]


def _flat(shapes: Sequence[tuple[int, ...]], dtype: str) -> Array:
    return np.zeros(max(prod(shape) for shape in shapes), dtype=dtype)


def _view(flat: Array, shape: tuple[int, ...]) -> Array:
    return flat[: prod(shape)].reshape(shape)
