"""The one place that calls into upstream's static-Llama scripts: its model, quantiser, passes and lowering.

Upstream's `MultiModalManager.compile` does, for one SoC, what is done here for many. The steps and their order
are upstream's (examples/qualcomm/oss_scripts/llama/wrappers/llm_wrappers.py, HybridTextDecoder.compile, and
backends/qualcomm/utils/utils.py, to_edge_transform_and_lower_to_qnn, ExecuTorch 1.5.1); only the cut is ours:
everything up to the backend is independent of the SoC and done once. tests/host/test_build.py holds the
result to be the same program with the same logits as upstream's own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from executorch.backends.qualcomm._passes.build_quant_io import BuildQuantIo
from executorch.backends.qualcomm._passes.qnn_pass_manager import get_qnn_pass_manager_cls
from executorch.backends.qualcomm.partition.qnn_partitioner import QnnPartitioner
from executorch.backends.qualcomm.serialization.qc_schema import QnnExecuTorchBackendType
from executorch.backends.qualcomm.utils.qnn_manager_lifecycle import QnnManagerContext
from executorch.backends.qualcomm.utils.qnn_sdk_setup import disable_mkldnn_on_amd
from executorch.backends.qualcomm.utils.utils import (
    generate_htp_compiler_spec,
    generate_qnn_executorch_compiler_spec,
    get_soc_to_chipset_map,
    qnn_edge_config,
    update_spill_fill_size,
)
from executorch.examples.qualcomm.oss_scripts.llama import SUPPORTED_LLM_MODELS
from executorch.examples.qualcomm.oss_scripts.llama.dataset.collators import LLMCalibCollator
from executorch.examples.qualcomm.oss_scripts.llama.dataset.datasets import LLMDataset
from executorch.examples.qualcomm.oss_scripts.llama.decoder_constants import (
    AUDIO_ENCODER,
    DECODER_GRAPH_NAMES,
    TEXT_DECODER,
    VISION_ENCODER,
)
from executorch.examples.qualcomm.oss_scripts.llama.wrappers.base_component import Mode as UpstreamMode
from executorch.examples.qualcomm.oss_scripts.llama.wrappers.base_component import Request
from executorch.examples.qualcomm.oss_scripts.llama.wrappers.llm_wrappers import HybridTextDecoder, TextDecoder
from executorch.exir.capture._config import ExecutorchBackendConfig
from executorch.exir.passes.memory_planning_pass import MemoryPlanningPass
from executorch.exir.program._program import (
    EdgeProgramManager,
    _gen_edge_manager_for_partitioners,
    lift_constant_tensor_pass,
)
from torch.utils.data import DataLoader

from harness.build.dither import random_rounding
from harness.build.recipe import config_for
from harness.model_file import Lengths, Mode
from harness.models import ModelSpec
from harness.runtime.context_graph import ContextGraph
from harness.target import Target

# Upstream sets it in llama.py: deep graphs recurse.
sys.setrecursionlimit(8192)
# Never partitioned to QNN; the op that cuts a sharded model. As in upstream's HybridTextDecoder.compile.
NOT_DELEGATED = {"llama.fallback.default"}


def control_args(spec: ModelSpec, mode: Mode, lengths: Lengths, params: Path, checkpoint: Path) -> argparse.Namespace:
    """What upstream's llama.py would have parsed for this model and mode; defaults are its parser's."""
    return argparse.Namespace(
        decoder_model=spec.decoder,
        checkpoint=str(checkpoint),
        params=str(params),
        model_mode=str(mode),
        max_seq_len=lengths.max_seq_len,
        max_context_len=lengths.max_seq_len,
        prefill_ar_len=lengths.prefill_ar_len,
        ngram=lengths.ngram,
        window=lengths.window,
        gcap=lengths.gcap,
        batch_size=1,
        qat=False,
        embedding_quantize=None,
        dtype_override="fp32",
        verbose=False,
        use_attention_sink=None,
        quant_recipe_suggestion=False,
        use_fp16=False,
        eval_tasks=None,
    )


def construct(spec: ModelSpec, args: argparse.Namespace) -> HybridTextDecoder:
    """Upstream's three decoders (decode, prefill, calibration), weights loaded, still float.

    `args.model_mode` is kv, whose prefill decoder is empty, or hybrid; see `lookahead_decoder`.
    """
    if spec.decoder not in SUPPORTED_LLM_MODELS:
        known = ", ".join(sorted(SUPPORTED_LLM_MODELS))
        raise ValueError(f"upstream knows no decoder {spec.decoder!r}; it knows {known}")
    disable_mkldnn_on_amd()
    return HybridTextDecoder(args, config_for(spec, SUPPORTED_LLM_MODELS[spec.decoder]))


def lookahead_decoder(spec: ModelSpec, args: argparse.Namespace) -> TextDecoder:
    """The decode graph of lookahead: upstream's, for several tokens a step; weights loaded, still float.

    Upstream would make it with a prefill and a calibration graph of its own; they are those of hybrid.
    """
    return TextDecoder(args, config_for(spec, SUPPORTED_LLM_MODELS[spec.decoder]), UpstreamMode.DECODE)


def full_logits(decoder: TextDecoder, tokens: list[int]) -> torch.Tensor:
    """Logits [len(tokens), vocab] float32 of a whole sequence through the calibration graph.

    It is the float model until `quantise`, then QDQ.

    The graph takes the context's length at once; the tail is padding that causal attention never looks at.
    """
    inference = decoder._decoder_inference
    padded = torch.zeros_like(decoder.export_input[0])
    padded[0, : len(tokens)] = torch.tensor(tokens, dtype=padded.dtype)
    logits: torch.Tensor = inference.predict_step(decoder.decoder, padded)
    return logits[0, : len(tokens)].float()


def context_graph(decoders: HybridTextDecoder, window: int | None) -> ContextGraph:
    """The calibration graph, for trees of guesses too; QDQ after `quantise`. `window`: of a sliding window, if any."""
    graph = decoders.calibration_prefill
    return ContextGraph(graph.decoder, graph.export_input, window, "the calibration graph")


def dithered(decoders: HybridTextDecoder, graph: ContextGraph, replicas: int) -> list[Callable[[Sequence[int]], Any]]:
    """QDQ rounding at random: a function a replica, token ids → logits [n,V]; each call draws the same numbers."""

    def replica(seed: int, tokens: Sequence[int]) -> Any:
        with random_rounding(decoders.calibration_prefill.decoder, seed):
            return graph.logits(tokens)

    return [partial(replica, seed) for seed in range(replicas)]


def quantise(
    decoders: HybridTextDecoder,
    calibration: list[list[int]],
    context: int,
    soc: str,
    lookahead: TextDecoder | None = None,
) -> None:
    """Quantises and calibrates the calibration graph, then gives its encodings to the decode graphs.

    Args:
        calibration: token sequences, each at most `context` long.
        soc: upstream's quantiser wants one; without the SDK's op-info library it does not look at it.
        lookahead: the decode graph of lookahead, where it is wanted too.
    """
    collate = LLMCalibCollator(decoders.calibration_prefill.attn_mask, context)
    loader = DataLoader(LLMDataset(calibration), batch_size=1, shuffle=False, collate_fn=collate)
    request = _request("quantize", calib_loader=loader, soc=soc)
    decoders.calibration_prefill.quantize(request)
    for decode in (decoders.decode, lookahead):
        if decode is None:
            continue
        decode.quantize(request)
        decoders._encoding_override(decoders.calibration_prefill.decoder, decode.decoder, override_kv_cache=True)
        decode._save_logits_quant_attrs()
        decode._save_output_kv_cache_quant_attrs()


def quantise_prefill(decoders: HybridTextDecoder, soc: str) -> None:
    """Gives the decode graph's encodings to the prefill graph, so that both read and write one KV cache."""
    decoders.prefill.quantize(_request("quantize", calib_loader=None, soc=soc))
    decoders._encoding_override(decoders.decode.decoder, decoders.prefill.decoder, override_kv_cache=True)


def _request(name: str, calib_loader: DataLoader[Any] | None, soc: str) -> Request:
    data = Request.QuantizationData(calib_loader=calib_loader)
    return Request(
        name,
        {
            part: Request.Data(quantization_data=data, soc_model=soc, backend=QnnExecuTorchBackendType.kHtpBackend)
            for part in (TEXT_DECODER, AUDIO_ENCODER, VISION_ENCODER)
        },
    )


def save_reference(decoders: HybridTextDecoder, path: Path) -> None:
    """Saves the calibration graph: the float model before `quantise`, QDQ (as upstream saves it) after it."""
    graph = decoders.calibration_prefill
    torch.export.save(torch.export.export(graph.decoder, graph.export_input, strict=True), str(path))


def compiler_spec(soc: str, target: Target, shards: int) -> list[Any]:
    """Upstream's compile options for one graph, as llama.py gives them for phones and for `--enable_x86_64`."""
    on_phone = target is Target.ANDROID
    options = generate_htp_compiler_spec(use_fp16=False, use_multi_contexts=shards > 1, use_weight_sharing=on_phone)
    specs: list[Any] = generate_qnn_executorch_compiler_spec(
        soc_model=get_soc_to_chipset_map()[soc],
        backend_options=options,
        shared_buffer=on_phone,
        use_mha2sha=True,
        online_prepare=False,
    )
    return specs


@dataclass(frozen=True)
class EdgeGraph:
    """One graph in the edge dialect with upstream's passes applied, ready for any SoC's backend."""

    name: str
    program: Any
    preserved: list[Any]
    config: Any


def to_edge(decoder: TextDecoder, name: str, spec: list[Any]) -> EdgeGraph:
    """Export, decompose and transform one graph: the last step that knows no SoC.

    Args:
        decoder: its module is quantised.
        name: `kv_forward` or `prefill_forward`.
        spec: any SoC's compile options: the passes read the backend's kind from it, nothing else.
    """
    exported = torch.export.export(decoder.decoder, decoder.export_input, strict=True)
    passes = get_qnn_pass_manager_cls(QnnExecuTorchBackendType.kHtpBackend)()
    aten = {name: passes.transform_for_export_pipeline(exported)}
    transforms = {
        name: passes.get_to_edge_transform_passes(
            exported,
            passes_job=decoder.passes_job,
            dep_table=decoder.dep_table,
            compiler_specs=spec,
            skip_node_id_set=None,
            skip_node_op_set=NOT_DELEGATED,
            convert_linear_to_conv2d=False,
        )
    }
    config = qnn_edge_config()
    manager = _gen_edge_manager_for_partitioners({name: [_partitioner(spec)]}, aten, config, None)
    manager = manager.transform(transforms)
    lift_constant_tensor_pass(manager.exported_program(name))
    return EdgeGraph(name, manager.exported_program(name), list(config._core_aten_ops_exception_list), config)


def _partitioner(spec: list[Any]) -> QnnPartitioner:
    return QnnPartitioner(spec, skip_node_id_set=None, skip_node_op_set=NOT_DELEGATED, skip_mutable_buffer=False)


def lower(graphs: list[EdgeGraph], metadata: dict[str, Any], spec: list[Any], shards: int, output: Path) -> None:
    """Partitions the graphs for one SoC, compiles its context binaries and writes the `.pte`.

    Args:
        graphs: decode, or decode and prefill; their programs are consumed.
        metadata: constant methods of the `.pte`: those of the decode graph.
    """
    config = qnn_edge_config()
    preserved = [op for graph in graphs for op in graph.preserved]
    config._core_aten_ops_exception_list = list({*config._core_aten_ops_exception_list, *preserved})
    programs = {graph.name: graph.program for graph in graphs}
    specs = dict.fromkeys(programs, spec)
    with QnnManagerContext(specs):
        manager = EdgeProgramManager(programs, metadata, config, preserved)
        manager = manager.to_backend({name: _partitioner(spec) for name in programs})
    if shards > 1:
        for name in programs:
            update_spill_fill_size(manager.exported_program(name))
    executorch = manager.to_executorch(
        ExecutorchBackendConfig(
            # With shared buffers the runner gives the addresses; upstream plans the same for both targets.
            memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=False),
            passes=[BuildQuantIo()],
        )
    )
    with output.open("wb") as stream:
        executorch.write_to_file(stream)


def graph_names() -> tuple[str, str]:
    """Upstream's names of the decode and the prefill graph."""
    decode, prefill = DECODER_GRAPH_NAMES[:2]
    return decode, prefill
