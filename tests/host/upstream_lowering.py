"""Lowers one small model twice, our way (split for many SoCs) and upstream's own way: `upstream_lowering.py OUT_DIR`.

A program of its own, since the toolchain's environment must be there before the process starts.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from executorch.backends.qualcomm._passes.build_quant_io import BuildQuantIo
from executorch.backends.qualcomm.utils.utils import to_edge_transform_and_lower_to_qnn
from executorch.exir.capture._config import ExecutorchBackendConfig
from executorch.exir.passes.memory_planning_pass import MemoryPlanningPass

from harness.build import upstream
from harness.model_file import Lengths, Mode, Params
from harness.models import ModelSpec, load_models
from harness.paths import MODELS
from harness.target import Target
from harness.toolchain.mends import write_params


def small(spec: ModelSpec) -> tuple[ModelSpec, dict[str, torch.Tensor]]:
    """One layer of the tiny model's kind, with seeded random weights."""
    params = Params(dim=64, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=64, norm_eps=1e-5, hidden_dim=64)
    torch.manual_seed(0)
    shapes = {
        "tok_embeddings": (64, 64),
        "output": (64, 64),
        "norm": (64,),
        "layers.0.attention_norm": (64,),
        "layers.0.ffn_norm": (64,),
        "layers.0.attention.wq": (64, 64),
        "layers.0.attention.wk": (32, 64),
        "layers.0.attention.wv": (32, 64),
        "layers.0.attention.wo": (64, 64),
        "layers.0.feed_forward.w1": (64, 64),
        "layers.0.feed_forward.w2": (64, 64),
        "layers.0.feed_forward.w3": (64, 64),
    }
    return replace(spec, params=params), {f"{k}.weight": torch.randn(*v) * 0.1 + 0.01 for k, v in shapes.items()}


def main() -> None:
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    spec, weights = small(load_models(MODELS)["tiny_llama"])
    torch.save(weights, out / "checkpoint.pt")
    params = write_params(spec.params.model_args(), out)
    args = upstream.control_args(spec, Mode.HYBRID, Lengths(32, 8), params, out / "checkpoint.pt")
    decoders = upstream.construct(spec, args)
    upstream.quantise(decoders, [list(range(1, 33))], 32, "SM8650")
    upstream.quantise_prefill(decoders, "SM8650")
    names = upstream.graph_names()
    pair = (decoders.decode, decoders.prefill)
    options = upstream.compiler_spec("SM8650", Target.SIM, 1)
    manager = to_edge_transform_and_lower_to_qnn(
        module={name: decoder.decoder for name, decoder in zip(names, pair, strict=True)},
        inputs={name: decoder.export_input for name, decoder in zip(names, pair, strict=True)},
        compiler_specs=dict.fromkeys(names, options),
        constant_methods=dict(decoders.decode.meta),
        dep_table={name: decoder.dep_table for name, decoder in zip(names, pair, strict=True)},
        passes_job={name: decoder.passes_job for name, decoder in zip(names, pair, strict=True)},
        skip_node_op_set={"llama.fallback.default"},
    )
    planning = MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=False)
    program = manager.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning, passes=[BuildQuantIo()]))
    with (out / "upstream.pte").open("wb") as stream:
        program.write_to_file(stream)
    graphs = [upstream.to_edge(decoder, name, options) for name, decoder in zip(names, pair, strict=True)]
    upstream.lower(graphs, dict(decoders.decode.meta), options, 1, out / "ours.pte")


if __name__ == "__main__":
    main()
