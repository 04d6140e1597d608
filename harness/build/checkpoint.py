"""Checkpoint → a state dict in Meta's naming, float32, as upstream's static Llama loads it. Safe loading only.

What upstream's converters and its `_prepare_model` do to a checkpoint from the hub is done here for all formats: cut
fused tensors apart, interleave rotary rows, add one to Gemma's norms, scale embeddings, fill in a tied output layer.
Everything is then held to the names and shapes that the static Llama has, before any of it is converted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.build.config_check import attention_factor, config_problems, params_problems
from harness.build.families import Family, expected_shapes, family_of
from harness.errors import BuildError, ConfigError
from harness.model_file import Params
from harness.models import ModelSpec
from harness.weights import Weights, find_weights

if TYPE_CHECKING:
    import torch

    from harness.build.pieces import Piece, Renamed
    from harness.build.stored import Stored

_SHOWN = 8


def checkpoint_files(spec: ModelSpec) -> tuple[Path, ...]:
    """Every file that a build of the model reads for its weights and tokenizer, sorted: what a cache key must hash.

    Raises:
        ConfigError: they are not here.
    """
    weights = find_weights(spec)
    tokenizer = spec.tokenizer.path or weights.tokenizer
    return tuple(sorted({*weights.files, *weights.beside, *((tokenizer,) if tokenizer else ())}))


def load_state_dict(spec: ModelSpec) -> dict[str, torch.Tensor]:
    """All tensors in Meta's naming, float32; `output.weight` is filled from the embeddings where it is tied.

    Raises:
        ConfigError: the weights are not on this computer; the decoder's checkpoints are not known.
        BuildError: a file cannot be read as a checkpoint, or is another model's: tensors that are missing, too many, of
            another shape or not finite, or a description that contradicts the model's file. Names tensor and file.
    """
    weights, family = find_weights(spec), family_of(spec.decoder)
    if spec.checkpoint.format in ("meta", "llama2c"):
        renamed = _meta(spec, weights)
        tied = "output.weight" not in renamed.pieces

        def theirs(name: str) -> str:
            return name

    else:
        renamed, tied = _hugging_face(spec, weights, family)

        def theirs(name: str) -> str:
            from harness.build.pieces import hugging_face_name

            return hugging_face_name(name, family)

    expected = expected_shapes(spec.params)
    if tied:
        expected.pop("output.weight")
    _refuse_misfits(spec, weights, renamed, expected, theirs)
    state = {name: _load(renamed.pieces[name], weights) for name in expected}
    state = _fold(state, spec.params, family, interleaved=spec.checkpoint.format in ("meta", "llama2c"))
    if tied:
        state["output.weight"] = state["tok_embeddings.weight"]
    return _scale_embeddings(state, spec.params)


def _hugging_face(spec: ModelSpec, weights: Weights, family: Family) -> tuple[Renamed, bool]:
    """The pieces, and whether the output layer is the embedding table."""
    from harness.build.pieces import from_hugging_face

    if spec.checkpoint.format == "huggingface":
        stored, config = _read_hugging_face(weights)
    else:
        stored, config = _read_gguf(weights.files[0])
    _refuse_contradictions(spec, weights, config_problems(config, spec.params, family))
    if "qkv_blocks" in family.fused.values() and spec.checkpoint.qkv_blocks is None:
        raise ConfigError(
            "the model's file does not say in how many blocks q, v and k are fused",
            where=f"{spec.file}: checkpoint",
            remedy="give qkv_blocks: 8 for CodeGen2's own checkpoints, 4 for those of transformers' CodeGen",
        )
    tied = config.get("tie_word_embeddings")
    if tied:
        # Some files carry a copy, which transformers does not look at either.
        stored = {name: tensor for name, tensor in stored.items() if name != "lm_head.weight"}
    renamed = from_hugging_face(stored, family, spec.params, spec.checkpoint.qkv_blocks)
    return renamed, tied is not False and "output.weight" not in renamed.pieces


def _read_hugging_face(weights: Weights) -> tuple[dict[str, Stored], dict[str, Any]]:
    from harness.build.stored import read_folder

    config = weights.named("config.json")
    if config is None:
        raise BuildError(
            "config.json is not there", where=str(weights.folder), remedy="download the whole checkpoint, with its JSON"
        )
    kind = "model.safetensors" if weights.files[0].suffix == ".safetensors" else "pytorch_model.bin"
    return read_folder(weights.files, weights.named(f"{kind}.index.json")), _read_json(config)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(described, dict):
            raise ValueError("it is no mapping")
    except (OSError, ValueError) as error:
        raise BuildError("this is no description of a checkpoint", where=str(path), evidence=str(error)) from error
    return described


def _read_gguf(path: Path) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Dequantised by transformers, under Hugging Face's names."""
    from transformers import AutoModelForCausalLM

    from harness.build.stored import torch_tensors

    try:
        model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name)
    except Exception as error:  # the gguf package raises whatever a damaged file makes it stumble over
        raise BuildError(
            "this is no checkpoint: it is no GGUF file that transformers can read",
            where=str(path),
            remedy="download it again; transformers documents which architectures it reads",
            evidence=repr(error),
        ) from error
    config = model.config.to_dict()
    if (rope := config.get("rope_parameters") or {}).get("rope_type", "default") == "default":
        # llama.cpp keeps a scaling in a tensor (rope_freqs), which transformers passes over.
        config = {key: value for key, value in config.items() if key not in ("rope_parameters", "rope_scaling")}
        config["rope_theta"] = rope.get("rope_theta")
    return torch_tensors(path, model.state_dict()), config


def _meta(spec: ModelSpec, weights: Weights) -> Renamed:
    from harness.build.pieces import from_meta
    from harness.build.stored import read_safetensors, read_torch, torch_tensors

    described = weights.named("params.json")
    problems = params_problems(_read_json(described), spec.params) if described else []
    files = []
    for path in weights.files:
        if path.suffix == ".safetensors":
            files.append(read_safetensors(path))
            continue
        loaded = read_torch(path)
        if isinstance(arguments := loaded.get("model_args"), Mapping):  # llama2.c's
            problems += params_problems(arguments, spec.params)
        inner = loaded.get("model", loaded)
        files.append(torch_tensors(path, inner if isinstance(inner, Mapping) else loaded))
    _refuse_contradictions(spec, weights, problems)
    return from_meta(files, expected_shapes(spec.params))


def _refuse_contradictions(spec: ModelSpec, weights: Weights, problems: list[str]) -> None:
    if problems:
        raise BuildError(
            f"the checkpoint is not {spec.name}'s: {'; '.join(problems)}",
            where=str(weights.folder if len(weights.files) > 1 else weights.files[0]),
            remedy=f"take {spec.repo_id or spec.title}'s weights, or set params in {spec.file.name} to this model's",
        )


def _refuse_misfits(
    spec: ModelSpec,
    weights: Weights,
    renamed: Renamed,
    expected: Mapping[str, tuple[int, ...]],
    theirs: Callable[[str], str],
) -> None:
    """Raises BuildError unless names and shapes are just what is expected."""
    pieces = renamed.pieces
    missing = sorted({theirs(name) for name in expected if name not in pieces})
    surplus = sorted({*renamed.surplus, *(pieces[name].origin for name in pieces if name not in expected)})
    shapes = [
        f"{piece.origin} is {list(piece.shape)} for {name}, expected {list(expected[name])}"
        for name, piece in pieces.items()
        if name in expected and piece.shape != expected[name]
    ]
    rows = [*_some("missing", missing), *_some("not a part of this architecture", surplus), *_some("shape", shapes)]
    if rows:
        first = f"{missing[0]} is missing" if missing else f"{surplus[0]} is too many" if surplus else shapes[0]
        raise BuildError(
            f"the checkpoint is not {spec.name}'s: {first}",
            where=str(weights.folder if len(weights.files) > 1 else weights.files[0]),
            remedy=f"take {spec.repo_id or spec.title}'s weights, or set params in {spec.file.name} to this model's",
            evidence="\n".join(rows),
        )


def _some(what: str, names: list[str]) -> list[str]:
    rows = [f"{what}: {name}" for name in names[:_SHOWN]]
    return [*rows, f"{what}: and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else rows


def _load(piece: Piece, weights: Weights) -> torch.Tensor:
    tensor = piece.load()
    if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
        raise BuildError(
            f"{piece.origin} holds what is no number ({piece.name})",
            where=str(weights.folder),
            remedy="the file is damaged: download it again",
        )
    return tensor.float()


def _fold(
    state: dict[str, torch.Tensor], params: Params, family: Family, *, interleaved: bool
) -> dict[str, torch.Tensor]:
    """Tensors as upstream's `_prepare_model` takes them from a `--checkpoint`.

    Args:
        interleaved: rotary rows are as Meta stores them already.
    """
    heads = {"attention.wq": params.n_heads, "attention.wk": params.n_kv_heads}
    factor = attention_factor(params)
    for name, tensor in state.items():
        stem, _, _ = name.rpartition(".")
        if family.unit_offset and "norm" in stem:
            state[name] = tensor + 1
        count = heads.get(stem.partition(".")[2].partition(".")[2])
        if count is None:
            continue
        if factor != 1.0:
            state[name] = _scale_rotated(tensor, count, params, factor)
        if family.interleaves and not interleaved:
            state[name] = interleave(tensor, count)
    return state


def _scale_rotated(weight: torch.Tensor, heads: int, params: Params, factor: float) -> torch.Tensor:
    """LongRoPE multiplies what is rotated; upstream's static Llama does not, so the weights do."""
    result = weight.clone().view(heads, params.head_width, -1)
    result[:, : int(params.head_width * (params.partial_rotary_factor or 1.0))] *= factor
    return result.view(weight.shape)


def _scale_embeddings(state: dict[str, torch.Tensor], params: Params) -> dict[str, torch.Tensor]:
    """Upstream's graph has no such product; a tied output layer stays as it is."""
    if (factor := params.embedding_scale_factor) is not None:
        state["tok_embeddings.weight"] = state["tok_embeddings.weight"] * factor
    return state


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows [heads × (2 × half), …] of a half-split rotary order → the interleaved order of Meta's Llama.

    Hugging Face stores q and k for a half-split rotary embedding, Meta for an interleaved one.
    """
    rows, *rest = weight.shape
    return weight.view(heads, 2, rows // heads // 2, *rest).transpose(1, 2).reshape(rows, *rest).contiguous()
