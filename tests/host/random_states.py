"""Models of a few kinds with seeded random weights, in Meta's naming, and outliers where real models have them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from harness.model_file import Params
from harness.models import ModelSpec, load_models
from harness.paths import MODELS

SMALL: dict[str, Any] = {
    **{"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 64, "norm_eps": 1e-5},
    **{"hidden_dim": 96},
}


def random_params(**changes: Any) -> Params:
    """A model of two layers."""
    return Params(**(SMALL | changes))


def random_state(params: Params, seed: int = 0, outliers: float = 1.0) -> dict[str, torch.Tensor]:
    """Weights for `params`: biases, norms of q and k, and GLM's feed-forward where they ask for them.

    Args:
        outliers: factor of four channels of the residual stream, both in what is written and in the norms' weights.
    """
    generator = torch.Generator().manual_seed(seed)
    args = params.model_args()
    dim, hidden = params.dim, params.hidden_dim or 4 * params.dim
    head = params.head_dim or dim // params.n_heads
    loud = torch.ones(dim)
    loud[[1, dim // 3, dim // 2, dim - 2]] = outliers
    state: dict[str, torch.Tensor] = {}

    def linear(name: str, rows: int, columns: int, *, writes: bool = False) -> None:
        weight = torch.randn(rows, columns, generator=generator) / columns**0.5
        state[f"{name}.weight"] = weight * loud[:, None] if writes else weight

    def norm(name: str, size: int, scale: torch.Tensor | float = 1.0) -> None:
        state[f"{name}.weight"] = (1 + 0.3 * torch.randn(size, generator=generator)) * scale

    state["tok_embeddings.weight"] = torch.randn(params.vocab_size, dim, generator=generator) * loud
    for layer in (f"layers.{number}." for number in range(params.n_layers)):
        for part, heads in (("wq", params.n_heads), ("wk", params.n_kv_heads), ("wv", params.n_kv_heads)):
            linear(f"{layer}attention.{part}", heads * head, dim)
            if args.get("attention_qkv_bias"):
                state[f"{layer}attention.{part}.bias"] = torch.randn(heads * head, generator=generator)
        linear(f"{layer}attention.wo", dim, params.n_heads * head, writes=True)
        if args.get("use_qk_norm"):
            norm(f"{layer}attention.q_norm_fn", head)
            norm(f"{layer}attention.k_norm_fn", head)
        if args.get("model_architecture") == "GlmForCausalLM":
            linear(f"{layer}feed_forward.gate_up_proj", 2 * hidden, dim)
            linear(f"{layer}feed_forward.down_proj", dim, hidden, writes=True)
        else:
            linear(f"{layer}feed_forward.w1", hidden, dim)
            linear(f"{layer}feed_forward.w3", hidden, dim)
            linear(f"{layer}feed_forward.w2", dim, hidden, writes=True)
        norm(f"{layer}attention_norm", dim, loud**-0.5)
        if args.get("use_ffn_norm", True):
            norm(f"{layer}ffn_norm", dim, loud**-0.5)
    norm("norm", dim, loud**-0.5)
    linear("output", params.vocab_size, dim)
    if args.get("output_bias"):
        state["output.bias"] = torch.randn(params.vocab_size, generator=generator)
    return state


def random_spec(params: Params, **changes: Any) -> ModelSpec:
    """The tiny model's file with other params."""
    return replace(load_models(MODELS)["tiny_llama"], params=params, **changes)
