"""A checkpoint's own description (config.json, params.json) against a model's file.

Shapes do not show a wrong rotary base or epsilon, and a model that is a little wrong still talks. Only what is given on
both sides is compared: descriptions differ by version, and leave defaults out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from harness.build.families import Family
from harness.model_file import Params

_Config = Mapping[str, Any]
# Parameter → places in config.json, the first that is given counts; old and new transformers differ.
_PLACES: Mapping[str, tuple[str, ...]] = {
    "dim": ("hidden_size", "n_embd"),
    "n_layers": ("num_hidden_layers", "n_layer"),
    "n_heads": ("num_attention_heads", "n_head"),
    "n_kv_heads": ("num_key_value_heads",),
    "vocab_size": ("vocab_size",),
    "ffn_width": ("intermediate_size", "n_inner"),
    "head_width": ("head_dim",),
    "norm_eps": ("rms_norm_eps", "layer_norm_epsilon"),
    "rope_theta": ("rope_parameters.full_attention.rope_theta", "rope_parameters.rope_theta", "rope_theta"),
    "local_rope_theta": ("rope_parameters.sliding_attention.rope_theta", "rope_local_base_freq"),
    "partial_rotary_factor": ("rope_parameters.partial_rotary_factor", "partial_rotary_factor"),
    "attention_qkv_bias": ("attention_bias",),
    "attention_multiplier": ("attention_multiplier",),
    "residual_multiplier": ("residual_multiplier",),
    "logits_scaling": ("logits_scaling",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "original_max_position_embeddings": ("original_max_position_embeddings",),
    "rotary_dim": ("rotary_dim",),
    "embedding_multiplier": ("embedding_multiplier",),
    "query_pre_attn_scalar": ("query_pre_attn_scalar",),
    "no_rope_layers": ("no_rope_layers",),
}
# Of these families alone: others carry the keys without using them.
_WINDOWED = ("gemma2", "gemma3")
_DERIVED: Mapping[str, Callable[[Params], Any]] = {
    "rope_theta": lambda params: params.rope_theta or 10000.0,
    "partial_rotary_factor": lambda params: params.partial_rotary_factor or 1.0,
    "attention_qkv_bias": lambda params: bool(params.attention_qkv_bias),
    "attention_multiplier": lambda params: params.attention_multiplier or params.head_width**-0.5,
    "residual_multiplier": lambda params: params.residual_multiplier or 1.0,
    "logits_scaling": lambda params: params.logits_scaling or 1.0,
    "rotary_dim": lambda params: int(params.head_width * (params.partial_rotary_factor or 1.0)),
    "embedding_multiplier": lambda params: params.embedding_scale_factor or 1.0,
    # Upstream divides by the root of the head's width.
    "query_pre_attn_scalar": lambda params: params.head_width,
    "no_rope_layers": lambda params: [
        int((number + 1) % (params.no_rope_layer_interval or params.n_layers + 1) != 0)
        for number in range(params.n_layers)
    ],
}
_LLAMA3 = {"low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}


def config_problems(config: _Config, params: Params, family: Family) -> list[str]:
    """What of a config.json contradicts a model's file, each as a phrase; empty where they agree."""
    model_type = config.get("model_type")
    if model_type is not None and model_type != family.hf_type:
        return [f"model_type is {model_type}, the model's decoder takes {family.hf_type}"]
    return [
        *_different(config, params),
        *_activation(config, params, family),
        *_windows(config, params, family),
        *_embedding(params, family),
        *_rope(config, params),
    ]


def params_problems(described: _Config, params: Params) -> list[str]:
    """The same of Meta's params.json, or of the `model_args` in a checkpoint of llama2.c's."""
    problems = []
    for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "norm_eps", "rope_theta", "use_scaled_rope"):
        theirs, ours = described.get(name), getattr(params, name)
        # Llama 2's says −1: the tokenizer knows.
        if theirs is None or ours is None or (name == "vocab_size" and theirs < 0):
            continue
        if not _equal(theirs, ours):
            problems.append(f"{name} is {theirs}, the model's file has {ours}")
    return problems


def _different(config: _Config, params: Params) -> Iterator[str]:
    for name, places in _PLACES.items():
        place, theirs = next(
            ((place, value) for place in places if (value := _at(config, place)) is not None), ("", None)
        )
        if theirs is None:
            continue
        ours = _DERIVED[name](params) if name in _DERIVED else getattr(params, name)
        if ours is None or not _equal(theirs, ours):
            yield f"{place} is {theirs}, the model's file has {_words(name)} {ours}"


def _words(name: str) -> str:
    return {"ffn_width": "hidden_dim", "head_width": "head_dim"}.get(name, name)


def _activation(config: _Config, params: Params, family: Family) -> Iterator[str]:
    # CodeGen's is upstream's own (the exact GELU in place of the one with tanh), whatever a file says.
    theirs = config.get("hidden_activation") or config.get("hidden_act")
    if theirs is None or family.name == "codegen":
        return
    ours: str = params.act_fn or "silu"
    # Gemma's older files say gelu and mean the one with tanh.
    if str(theirs)[:4] != ours[:4]:
        yield f"the activation is {theirs}, the model's file has act_fn {ours}"


def _windows(config: _Config, params: Params, family: Family) -> Iterator[str]:
    if family.name not in _WINDOWED:
        return
    for name in ("sliding_window", "layer_types"):
        theirs, ours = config.get(name), getattr(params, name)
        if theirs is not None and not _equal(theirs, list(ours) if isinstance(ours, tuple) else ours):
            yield f"{name} is {theirs}, the model's file has {ours}"


def _embedding(params: Params, family: Family) -> Iterator[str]:
    # Not in any config.json: the code has it.
    if family.name.startswith("gemma") and not _equal(math.sqrt(params.dim), params.embedding_scale_factor or 1.0):
        yield (
            f"Gemma multiplies its embeddings by √dim = {math.sqrt(params.dim):.9g}, the model's file has "
            f"embedding_scale_factor {params.embedding_scale_factor}"
        )


def _rope(config: _Config, params: Params) -> Iterator[str]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "llama3":
        factor = params.rope_scale_factor or 8
        if not params.use_scaled_rope or not _equal(rope.get("factor", factor), factor):
            yield (
                f"the rotary scaling is llama3's by {rope.get('factor')}, the model's file has use_scaled_rope "
                f"{bool(params.use_scaled_rope)} and rope_scale_factor {factor}"
            )
        for name, fixed in _LLAMA3.items():
            if not _equal(rope.get(name, fixed), fixed):
                yield f"rope_parameters.{name} is {rope[name]}, upstream's static Llama has {fixed}"
    elif kind == "longrope":
        if any(not _equal(value, 1.0) for value in rope.get("short_factor") or ()):
            yield "short_factor is not all 1, and upstream's static Llama scales no frequency by itself"
        if attention_factor(params) == 1.0:
            yield "the rotary scaling is LongRoPE's; give original_max_position_embeddings and max_position_embeddings"
        elif not _equal(theirs := rope.get("attention_factor") or attention_factor(params), attention_factor(params)):
            yield f"attention_factor is {theirs}, the model's file makes it {attention_factor(params)}"
    elif kind != "default":
        yield f"the rotary scaling is {kind}, which upstream's static Llama has not"
    elif params.use_scaled_rope and not {"rope_parameters", "rope_scaling"}.isdisjoint(config):
        yield "the rotary embedding is not scaled, the model's file has use_scaled_rope true"


def attention_factor(params: Params) -> float:
    """What LongRoPE multiplies rotated queries and keys by; 1 where it is not used.

    √(1 + ln s / ln L), L = original_max_position_embeddings, s = max_position_embeddings / L: Ding et al., "LongRoPE",
    arXiv 2402.13753; transformers' `_compute_longrope_parameters`.
    """
    first, stretched = params.original_max_position_embeddings, params.max_position_embeddings
    if first is None or stretched is None or stretched <= first:
        return 1.0
    return math.sqrt(1 + math.log(stretched / first) / math.log(first))


def _at(config: _Config, place: str) -> Any:
    value: Any = config
    for key in place.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)
