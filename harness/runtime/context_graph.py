"""A graph that takes a whole context at once (AR = CL) and needs no cache, run by torch on the host.

It is upstream's calibration graph: the float model, or QDQ after quantisation. Its inputs in order: tokens [1,CL], mask
[1,1,CL,CL], a second mask where the model has a sliding window, positions [1,CL], and empty caches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import ConfigError

_BLOCKED = -255.0
"""Upstream's PADDING_MASK_VALUE."""

Sees = npt.NDArray[np.bool_]


class ContextGraph:
    """Calls such a graph with any text, and with any tree of continuations.

    Args:
        module: takes and returns tensors.
        inputs: tensors (or stand-ins with shape and dtype) like those it takes.
        window: width of the model's sliding window; None without one.
        where: what to call it in an error.

    Attributes:
        context_len: CL.

    Raises:
        ConfigError: its inputs are another graph's.
    """

    def __init__(self, module: Callable[..., Any], inputs: Sequence[Any], window: int | None, where: str) -> None:
        mask = tuple(int(n) for n in inputs[1].shape) if len(inputs) > 1 else ()
        if len(mask) != 4 or mask[2] != mask[3]:
            raise ConfigError(f"not the module of a whole context: its mask is {mask}", where=where)
        self.context_len = mask[3]
        self._module, self._inputs, self._window = module, list(inputs), window

    def run(self, tokens: Sequence[int], sees: Sees | None = None, positions: Sequence[int] | None = None) -> list[Any]:
        """All outputs of one pass, torch tensors: logits [1,CL,V] and the caches. The rows after `tokens` are padding.

        Args:
            tokens: at most CL.
            sees: [n,n]: whether the row of a token attends to the column of another; default all up to itself.
            positions: of each token; default its number.
        """
        import torch

        context, count = self.context_len, len(tokens)
        ids = torch.zeros(tuple(self._inputs[0].shape), dtype=self._inputs[0].dtype)
        ids[0, :count] = torch.tensor(tokens, dtype=ids.dtype)
        places = torch.arange(context)
        if positions is not None:
            places[:count] = torch.tensor(positions)
        seen = torch.tril(torch.ones(context, context, dtype=torch.bool))
        if sees is not None:
            seen[:count, :count] = torch.from_numpy(sees)
        masks = [seen]
        caches = [value for value in self._inputs[2:] if value.dim() == 4 and 0 in value.shape]
        if self._inputs[2].shape == self._inputs[1].shape:
            masks.append(seen & (places[:, None] - places[None] < (self._window or context)))
        arguments: list[Any] = [ids]
        arguments += [torch.where(m, 0.0, _BLOCKED).to(self._inputs[1].dtype)[None, None] for m in masks]
        if len(self._inputs) > len(arguments) + len(caches):
            arguments.append(places.to(torch.int32)[None])
        elif positions is not None:
            raise ConfigError("this graph takes no positions", where="positions")
        arguments += [torch.zeros(tuple(value.shape), dtype=value.dtype) for value in caches]
        with torch.no_grad():
            leaves: list[Any] = torch.utils._pytree.tree_leaves(self._module(*arguments))
        return leaves

    def logits(
        self, tokens: Sequence[int], sees: Sees | None = None, positions: Sequence[int] | None = None
    ) -> npt.NDArray[np.float64]:
        """Logits [n,V] after each token; arguments as in `run`."""
        return np.asarray(self.run(tokens, sees, positions)[0][0, : len(tokens)].double().numpy())
