"""What recipes make of a graph: `recipe_graphs.py JSON`, where JSON is a list of [decoder, params, recipe, seed].

Prints `GRAPH {…}` for each: what upstream's decode graph holds after it was quantised. A program of its own, since the
toolchain's environment must be there before the process starts.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from random_states import random_params, random_spec, random_state

from harness.build import upstream
from harness.build.spinquant import rotate
from harness.model_file import Lengths, Mode
from harness.recipes import Recipe
from harness.toolchain.mends import write_params

CONTEXT = 16
_BITS = {7: 4, 127: 8, 32767: 16, 255: 8, 65535: 16}


def main() -> None:
    torch.set_num_threads(1)
    for decoder, params, recipe, seed in json.loads(sys.argv[1]):
        print("GRAPH " + json.dumps(graph_facts(decoder, params, Recipe.model_validate(recipe), seed)), flush=True)


def graph_facts(decoder: str, changes: dict[str, Any], recipe: Recipe, seed: int) -> dict[str, Any]:
    torch.manual_seed(0)
    params = random_params(**changes)
    spec = random_spec(params, decoder=decoder, recipe=recipe)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(rotate(random_state(params, seed, 20.0), params, recipe.spinquant), folder / "c.pt")
        written = write_params(params.model_args(), folder)
        args = upstream.control_args(spec, Mode.KV, Lengths(CONTEXT, 4), written, folder / "c.pt")
        decoders = upstream.construct(spec, args)
    tokens = torch.randint(params.vocab_size, (CONTEXT,), generator=torch.Generator().manual_seed(1)).tolist()
    float_logits = upstream.full_logits(decoders.calibration_prefill, tokens)
    upstream.quantise(decoders, [tokens], CONTEXT, "SM8650")
    noise = upstream.full_logits(decoders.calibration_prefill, tokens) - float_logits
    return {
        **facts(decoders.decode.decoder),
        "kv_bit_width": decoders.decode.meta["get_kv_io_bit_width"],
        "sqnr_db": 10 * float(torch.log10(float_logits.square().mean() / noise.square().mean())),
    }


def facts(module: torch.fx.GraphModule) -> dict[str, Any]:
    nodes = list(module.graph.nodes)
    hadamards = [node for node in nodes if "hadamard_transform" in str(node.target)]
    return {
        "layers": {layer_name(node): layer(module, node) for node in nodes if target(node) == "aten.conv2d.default"},
        "kv_inputs": sorted({width(user) for node in nodes if node.name.startswith("args_") for user in node.users}),
        "hadamards": len(hadamards),
        "before_hadamard": min((narrowest(node) for node in hadamards), default=0),
        "masks_by_where": any(target(node).startswith("aten.where") for node in nodes),
    }


def target(node: torch.fx.Node) -> str:
    return str(node.target)


def layer_name(node: torch.fx.Node) -> str:
    path = list(node.meta["nn_module_stack"].values())[-1][0]
    return path.replace("forward.__self__.", "").removesuffix("_conv").removesuffix(".conv")


def layer(module: torch.fx.GraphModule, node: torch.fx.Node) -> dict[str, Any]:
    activation, weight = node.args[:2]
    if "per_channel" in target(weight):
        _, scale, _, axis, _, high, _ = weight.args
        kind, bits = ["channel", axis], _BITS[high]
    else:
        # torchao.dequantize_affine(input, block_size, scale, zero_point, dtype, quant_min, quant_max, …)
        scale, kind, bits = weight.args[2], ["block", list(weight.args[1])], _BITS[weight.args[6]]
    scales = getattr(module, scale.target)
    return {"bits": bits, "scales": kind, "activation": width(activation), "scale": scales.flatten().tolist()}


def width(node: torch.fx.Node) -> int:
    """Bits of a quantize_per_tensor or dequantize_per_tensor."""
    return _BITS[node.args[4]]


def narrowest(hadamard: torch.fx.Node) -> int:
    """The least width of what a Hadamard op reads, back to the convolutions."""
    todo, found, seen = list(hadamard.all_input_nodes), [], set()
    while todo:
        node = todo.pop()
        if node in seen or target(node) == "aten.conv2d.default":
            continue
        seen.add(node)
        if "quantize_per_tensor" in target(node):
            found.append(width(node))
        todo += node.all_input_nodes
    return min(found)


if __name__ == "__main__":
    main()
