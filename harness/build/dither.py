"""Random rounding: every quantiser of a QDQ graph rounds up or down by chance instead of to the nearest step.

A value x = (n + f)·scale, 0 ≤ f < 1, becomes n + 1 with probability f. What that does to the logits is the noise of
last steps in this very model, through all its layers: an HTP, whose roundings fall to the other side now and then, can
be expected to be off by less, and anything wrong by more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_QUANTISE = "quantized_decomposed.quantize_per_tensor.default"


@contextmanager
def random_rounding(graph: torch.fx.GraphModule, seed: int) -> Iterator[int]:
    """Lets the activations' quantisers of a graph round at random, within `with`; yields how many there are.

    Args:
        graph: after `convert_pt2e`; changed in place and given back.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    quantise = torch.ops.quantized_decomposed.quantize_per_tensor.default

    def rounded(value: torch.Tensor, scale: float, *rest: Any) -> Any:
        noise = torch.rand(value.shape, generator=generator) - 0.5
        return quantise(value + noise * scale, scale, *rest)

    nodes = [node for node in graph.graph.nodes if node.op == "call_function" and str(node.target) == _QUANTISE]
    before = [node.target for node in nodes]
    for node in nodes:
        node.target = rounded
    graph.recompile()
    try:
        yield len(nodes)
    finally:
        for node, target in zip(nodes, before, strict=True):
            node.target = target
        graph.recompile()
