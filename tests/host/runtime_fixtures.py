"""A stand-in for the HTP that computes real attention; the real `.pte` of the slow tests comes from conftest.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.model_file import Mode
from harness.runtime.program import Graph, ProgramInfo, TensorSpec

Array = npt.NDArray[np.generic]


def graph(name: str, ar: int, context: int, layers: int, heads: int, dim: int, vocab: int, window: bool) -> Graph:
    k = TensorSpec((1, heads, dim, context - ar), "uint8")
    v = TensorSpec((1, heads, context - ar, dim), "uint8")
    return Graph(
        name,
        ar,
        TensorSpec((1, ar), "int32"),
        TensorSpec((1, 1, ar, context), "uint16"),
        TensorSpec((1, ar), "int32"),
        window,
        (k,) * layers,
        (v,) * layers,
        TensorSpec((1, ar, vocab), "uint16"),
    )


def toy_info(
    context: int = 16, ar: int = 4, window: int | None = None, prefill: bool = True, decode_ar: int = 1
) -> ProgramInfo:
    """A made-up program: 2 layers, 2 heads of 3, 13 tokens; lookahead where `decode_ar` is more than 1."""
    size = (context, 2, 2, 3, 13, window is not None)
    graphs = {"kv_forward": graph("kv_forward", decode_ar, *size)}
    if prefill:
        graphs["prefill_forward"] = graph("prefill_forward", ar, *size)
    return ProgramInfo(
        path=Path("toy.pte"),
        mode=Mode.LOOKAHEAD if decode_ar > 1 else Mode.HYBRID if prefill else Mode.KV,
        n_layers=2,
        n_kv_heads=2,
        head_dim=3,
        vocab=13,
        context_len=context,
        graphs=graphs,
        logits_scale=0.01,
        logits_zero_point=30000,
        sliding_window=window,
        metadata={},
        delegate=None,
        operators=(),
    )


@dataclass
class ToyHtp:
    """Executes the toy program: K and V of a token depend on id and position, logits on what the mask lets it see.

    Everything is an integer function of the set of attended (K, V) columns, so two ways to the same text must give
    exactly the same logits, and a wrong column, position or mask gives others. Invalid cache columns hold noise.
    """

    info: ProgramInfo
    calls: int = 0

    def run(self, graph: str, inputs: Sequence[Array]) -> list[Array]:
        self.calls += 1
        spec = self.info.graphs[graph]
        tokens, mask, *rest = inputs
        window = rest.pop(0) if spec.sliding else mask
        positions, *caches = rest
        layers = self.info.n_layers
        assert [(x.shape, str(x.dtype)) for x in caches] == [(s.shape, s.dtype) for s in (*spec.k_in, *spec.v_in)]
        assert mask.shape == spec.mask.shape
        assert str(mask.dtype) == spec.mask.dtype
        ids, places = tokens[0].astype(np.int64), positions[0].astype(np.int64)
        logits = np.zeros((spec.ar_len, self.info.vocab), dtype=np.int64)
        k_out, v_out = [], []
        for layer in range(layers):
            k = _columns(ids, places, layer, 1)  # [H,D,AR]
            v = _columns(ids, places, layer, 2).transpose(0, 2, 1)  # [H,AR,D]
            all_k = np.concatenate([caches[layer][0].astype(np.int64), k], axis=2)
            all_v = np.concatenate([caches[layers + layer][0].astype(np.int64), v], axis=1)
            seen = (window if layer else mask)[0, 0] > 0
            for row in range(spec.ar_len):
                mixed = all_k[:, :, seen[row]] * all_v[:, seen[row]].transpose(0, 2, 1)
                logits[row] += mixed.sum() * np.arange(3, 3 + self.info.vocab) ** 2
                logits[row] += ids[row] * 31 + places[row] * 7
            k_out.append(k[None].astype(np.uint8))
            v_out.append(v[None].astype(np.uint8))
        return [(logits % 65521).astype(np.uint16)[None], *k_out, *v_out]


def _columns(ids: Array, places: Array, layer: int, kind: int) -> npt.NDArray[np.int64]:
    heads, dims = np.arange(2)[:, None, None], np.arange(3)[None, :, None]
    mixed = (ids + 1) * (17 + 3 * layer) + places * (29 + kind) + heads * 41 + dims * 53 + kind * 7
    return np.asarray(mixed * mixed % 251, dtype=np.int64)
