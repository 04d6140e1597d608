"""A toy architecture as transformers' config of its family.

A twin has what its published model has, but for one thing: Gemma 2's has no soft cap on its attention, since upstream's
graph has none: `forward_attention_conv` of its static Llama (ExecuTorch 1.5.1) does not read attn_logit_softcapping.
"""

from __future__ import annotations

import math
from typing import Any

from harness.build.families import Family
from harness.model_file import Params

# Families whose published models have an output layer of their own.
UNTIED = ("codegen", "glm")
_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_approx": "gelu_pytorch_tanh"}
_POSITIONS = 2048


def config_arguments(params: Params, family: Family, bos: int | None, eos: int | None) -> dict[str, Any]:
    """Arguments of the family's config class (transformers 5)."""
    tokens = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": eos}
    tied = {"tie_word_embeddings": family.name not in UNTIED}
    if family.name == "codegen":
        return {
            "vocab_size": params.vocab_size,
            "n_embd": params.dim,
            "n_inner": params.ffn_width,
            "n_layer": params.n_layers,
            "n_head": params.n_heads,
            "n_positions": _POSITIONS,
            "n_ctx": _POSITIONS,
            "rotary_dim": int(params.head_width * (params.partial_rotary_factor or 1.0)),
            "layer_norm_epsilon": params.norm_eps,
            "activation_function": "gelu_new",  # upstream's graph has the exact GELU: seen were 74 dB
            **tokens,
            **tied,
        }
    activation = _ACTIVATIONS[params.act_fn or "silu"]
    return {
        "vocab_size": params.vocab_size,
        "hidden_size": params.dim,
        "intermediate_size": params.ffn_width,
        "num_hidden_layers": params.n_layers,
        "num_attention_heads": params.n_heads,
        "num_key_value_heads": params.n_kv_heads,
        "head_dim": params.head_width,
        "rms_norm_eps": params.norm_eps,
        "max_position_embeddings": _POSITIONS,
        ("hidden_activation" if family.name in ("gemma2", "gemma3") else "hidden_act"): activation,
        "rope_parameters": _rope(params, family),
        **tokens,
        **tied,
        **_own(params, family),
    }


def _rope(params: Params, family: Family) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": params.rope_theta or 10000.0}
    if family.name == "gemma3":
        return {
            "full_attention": rope,
            "sliding_attention": {**rope, "rope_theta": params.local_rope_theta},
        }
    if family.name in ("glm", "phi3"):
        rope["partial_rotary_factor"] = params.partial_rotary_factor or 1.0
    if params.use_scaled_rope:
        return {
            **rope,
            "rope_type": "llama3",
            "factor": float(params.rope_scale_factor or 8),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    if params.original_max_position_embeddings is not None:
        frequencies = int(params.head_width * (params.partial_rotary_factor or 1.0)) // 2
        return {
            **rope,
            "rope_type": "longrope",
            "short_factor": [1.0] * frequencies,
            "long_factor": [1.0 + number for number in range(frequencies)],
            "original_max_position_embeddings": params.original_max_position_embeddings,
        }
    return rope


def _own(params: Params, family: Family) -> dict[str, Any]:
    """What one family alone has."""
    match family.name:
        case "glm":
            return {"attention_bias": bool(params.attention_qkv_bias)}
        case "granite":
            return {
                "embedding_multiplier": params.embedding_scale_factor or 1.0,
                "attention_multiplier": params.attention_multiplier or 1 / math.sqrt(params.head_width),
                "residual_multiplier": params.residual_multiplier or 1.0,
                "logits_scaling": params.logits_scaling or 1.0,
            }
        case "phi3":
            return {
                "max_position_embeddings": params.max_position_embeddings,
                "original_max_position_embeddings": params.original_max_position_embeddings,
            }
        case "smollm3":
            interval = params.no_rope_layer_interval or params.n_layers + 1
            return {
                "no_rope_layers": [int((number + 1) % interval != 0) for number in range(params.n_layers)],
                "no_rope_layer_interval": interval,
            }
        case "gemma2" | "gemma3":
            return {
                "sliding_window": params.sliding_window,
                "layer_types": list(params.layer_types or ()),
                "query_pre_attn_scalar": params.head_width,
                "attn_logit_softcapping": params.attn_logit_softcapping,
                "final_logit_softcapping": params.final_logit_softcapping,
            }
        case _:
            return {}
