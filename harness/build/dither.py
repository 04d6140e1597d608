"""Random rounding: every quantiser of a QDQ graph is off by a few of its steps at random.

What that does to the logits is the noise of rounding in this very model, through all its layers. An HTP computes with
integers what QDQ computes with rounded floats, so it can be expected to be off by less, and anything wrong by more.

- To 8 bits (a KV cache, as a rule) a value x = (n + f)·scale, 0 ≤ f < 1, becomes n + 1 with probability f, else n: on
  the HTP such values were never seen more than one step off.
- To 16 bits it is moved by up to STEPS_16 / 2 steps, evenly distributed, before it is rounded. The HTP's operators are
  not exact to the last of 65,536 steps (norms, softmax, activation functions by tables). Measured on twins whose values
  are all of 16 bits (sim, SM8650, kv): with one step as for 8 bits the phone's deviation was 1.24 times the spread on
  qwen2_5_0_5b_twin and 1.71 times on qwen3_0_6b_twin, where 8-bit KV caches give 0.16 to 0.45. With four steps it is
  0.3 to 0.45 on these two as well; codegen2_1b_twin, which showed first that one step is too little (2.6) and was left
  out of the choice, comes to 0.7.

Inputs of the graph keep their steps: masks are compared with 0, and rounding of a value that is on a step already does
not move it, which a wider noise would.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

STEPS_16 = 4.0
"""Width of the noise on what is quantised to more than 8 bits, in steps; see above."""
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

    def rounded(value: torch.Tensor, scale: float, zero_point: int, low: int, high: int, *rest: Any) -> Any:
        steps = 1.0 if high - low < 256 else STEPS_16
        noise = (torch.rand(value.shape, generator=generator) - 0.5) * steps
        return quantise(value + noise * scale, scale, zero_point, low, high, *rest)

    nodes = [
        node
        for node in graph.graph.nodes
        if node.op == "call_function" and str(node.target) == _QUANTISE and node.args[0].op != "placeholder"
    ]
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
