"""How each family of models names and stores its tensors in Hugging Face's format, and what they are in Meta's naming.

Facts as data. Sources: transformers' modeling_*.py for what is stored and how it is used; ExecuTorch 1.5.1's
examples/models/*/convert_weights.py for the names that upstream's static Llama loads; its __init__.py's
`transform_weight` for which models it expects with interleaved rotary rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from harness.errors import ConfigError
from harness.model_file import Params
from harness.soc import suggestion

Fused = Literal["qkv", "qkv_blocks", "gate_up"]

_ATTENTION = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "input_layernorm": "attention_norm",
}
_MLP = {
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}
_LLAMA = {**_ATTENTION, **_MLP, "post_attention_layernorm": "ffn_norm"}
_QK_NORM = {"self_attn.q_norm": "attention.q_norm_fn", "self_attn.k_norm": "attention.k_norm_fn"}
_FOUR_NORMS = {
    **_ATTENTION,
    **_MLP,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffn_norm",
}
_TOP = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}
# Constants that older checkpoints carry; none is a weight.
BUFFERS = ("rotary_emb.inv_freq", "attn.causal_mask", "attn.masked_bias", "attn.bias", "rope.freqs")


@dataclass(frozen=True)
class Family:
    """Models that are stored alike.

    Attributes:
        name: short.
        config: transformers' config class; `hf_type` is its `model_type`, as config.json has it.
        decoders: upstream's keys of its models.
        layer: what the names of a layer's tensors begin with, before the layer's number.
        names: in a layer, Hugging Face's name without `.weight` → Meta's.
        top: the same for the others.
        fused: names of tensors that hold several: their rows are cut apart.
        interleaves: whether upstream expects rotary rows interleaved, as Meta stores them, while Hugging Face has them
            as two halves. Where Hugging Face has them interleaved too, nothing is to be done.
        unit_offset: whether a norm multiplies by 1 + weight.
    """

    name: str
    config: str
    hf_type: str
    decoders: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=lambda: _LLAMA)
    top: Mapping[str, str] = field(default_factory=lambda: _TOP)
    layer: str = "model.layers."
    fused: Mapping[str, Fused] = field(default_factory=dict)
    interleaves: bool = False
    unit_offset: bool = False


FAMILIES: tuple[Family, ...] = (
    Family(
        "llama",
        "LlamaConfig",
        "llama",
        ("stories260k", "stories110m", "llama3_2-1b_instruct", "llama3_2-3b_instruct", "smollm2_135m"),
        interleaves=True,
    ),
    Family(
        "codegen",
        "CodeGenConfig",
        "codegen",
        ("codegen2_1b",),
        names={
            "ln_1": "attention_norm",
            "attn.out_proj": "attention.wo",
            "mlp.fc_in": "feed_forward.fc_in",
            "mlp.fc_out": "feed_forward.fc_out",
        },
        top={"transformer.wte": "tok_embeddings", "transformer.ln_f": "norm", "lm_head": "output"},
        layer="transformer.h.",
        fused={"attn.qkv_proj": "qkv_blocks"},
    ),
    Family("gemma", "GemmaConfig", "gemma", ("gemma-2b",), unit_offset=True),
    Family("gemma2", "Gemma2Config", "gemma2", ("gemma2-2b",), names=_FOUR_NORMS, unit_offset=True),
    Family(
        "gemma3",
        "Gemma3TextConfig",
        "gemma3_text",
        ("gemma3-1b",),
        names={**_FOUR_NORMS, **_QK_NORM},
        unit_offset=True,
    ),
    Family(
        "glm",
        "GlmConfig",
        "glm",
        ("glm-1_5b",),
        names={
            **_ATTENTION,
            "post_attention_layernorm": "ffn_norm",
            "mlp.gate_up_proj": "feed_forward.gate_up_proj",
            "mlp.down_proj": "feed_forward.down_proj",
        },
    ),
    Family("granite", "GraniteConfig", "granite", ("granite_3_3-2b_instruct",)),
    Family(
        "phi3",
        "Phi3Config",
        "phi3",
        ("phi_4_mini",),
        fused={"self_attn.qkv_proj": "qkv", "mlp.gate_up_proj": "gate_up"},
    ),
    Family("qwen2", "Qwen2Config", "qwen2", ("qwen2_5-0_5b", "qwen2_5-1_5b")),
    Family("qwen3", "Qwen3Config", "qwen3", ("qwen3-0_6b", "qwen3-1_7b"), names={**_LLAMA, **_QK_NORM}),
    Family("smollm3", "SmolLM3Config", "smollm3", ("smollm3-3b",)),
)

_BY_DECODER: Mapping[str, Family] = MappingProxyType(
    {decoder: family for family in FAMILIES for decoder in family.decoders}
)


def family_of(decoder: str) -> Family:
    """The family of one of upstream's decoders.

    Raises:
        ConfigError: how its tensors are stored is not known here.
    """
    if family := _BY_DECODER.get(decoder):
        return family
    raise ConfigError(
        f"checkpoints of upstream's decoder {decoder!r} are not known here", remedy=suggestion(decoder, _BY_DECODER)
    )


def parts_of(kind: Fused) -> tuple[str, ...]:
    """What a fused tensor holds, in Meta's naming, in the order of its rows (of each block's, for blocks)."""
    if kind == "gate_up":
        return ("feed_forward.w1", "feed_forward.w3")
    order = ("wq", "wv", "wk") if kind == "qkv_blocks" else ("wq", "wk", "wv")
    return tuple(f"attention.{part}" for part in order)


def expected_shapes(params: Params) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors that upstream's static Llama loads, in Meta's naming.

    As its model/static_llama.py and model/feed_forward.py define them (ExecuTorch 1.5.1).
    """
    dim, width = params.dim, params.ffn_width
    query, key = params.n_heads * params.head_width, params.n_kv_heads * params.head_width
    layer_norm = params.norm_type == "layernorm"
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int, columns: int, bias: bool | None = False) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)

    def norm(name: str, size: int, bias: bool = False) -> None:
        shapes[f"{name}.weight"] = (size,)
        if bias:
            shapes[f"{name}.bias"] = (size,)

    linear("tok_embeddings", params.vocab_size, dim)
    for number in range(params.n_layers):
        at = f"layers.{number}."
        linear(f"{at}attention.wq", query, dim, params.attention_qkv_bias)
        linear(f"{at}attention.wk", key, dim, params.attention_qkv_bias)
        linear(f"{at}attention.wv", key, dim, params.attention_qkv_bias)
        linear(f"{at}attention.wo", dim, query)
        if params.use_qk_norm:
            norm(f"{at}attention.q_norm_fn", params.head_width)
            norm(f"{at}attention.k_norm_fn", params.head_width)
        match params.model_architecture:
            case "CodeGenModel":
                linear(f"{at}feed_forward.fc_in", width, dim, True)
                linear(f"{at}feed_forward.fc_out", dim, width, True)
            case "GlmForCausalLM":
                linear(f"{at}feed_forward.gate_up_proj", 2 * width, dim)
                linear(f"{at}feed_forward.down_proj", dim, width)
            case _:
                linear(f"{at}feed_forward.w1", width, dim)
                linear(f"{at}feed_forward.w2", dim, width)
                linear(f"{at}feed_forward.w3", width, dim)
        norm(f"{at}attention_norm", dim, layer_norm)
        if params.use_ffn_norm is not False:
            norm(f"{at}ffn_norm", dim, layer_norm)
        if params.post_attention_norm:
            norm(f"{at}post_attention_norm", dim)
        if params.post_ffn_norm:
            norm(f"{at}post_ffn_norm", dim)
    norm("norm", dim, layer_norm)
    linear("output", params.vocab_size, dim, params.output_bias)
    return shapes


def weight_count(params: Params) -> int:
    """Weights of the whole model, a tied output layer counted once more: upstream's graph holds it twice."""
    total = 0
    for shape in expected_shapes(params).values():
        size = 1
        for side in shape:
            size *= side
        total += size
    return total
