"""The tiny model as Hugging Face has it, and lm-eval's own HFLM over it: what our numbers are held to."""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from harness.models import ModelSpec

LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
TOP = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}


def half_split(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows [heads × (half × 2), dim] of Meta's interleaved rotary order → Hugging Face's half-split order.

    The inverse of `harness.build.checkpoint.interleave`.
    """
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()


def llama(spec: ModelSpec) -> LlamaForCausalLM:
    """The same weights in float32."""
    params = spec.params
    config = LlamaConfig(
        vocab_size=params.vocab_size,
        hidden_size=params.dim,
        intermediate_size=params.hidden_dim,
        num_hidden_layers=params.n_layers,
        num_attention_heads=params.n_heads,
        num_key_value_heads=params.n_kv_heads,
        rms_norm_eps=params.norm_eps,
        rope_theta=params.rope_theta,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    heads = {"attention.wq": params.n_heads, "attention.wk": params.n_kv_heads}
    state: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(spec.checkpoint.path).items():
        stem = name.removesuffix(".weight")
        if stem in TOP:
            state[f"{TOP[stem]}.weight"] = tensor.float()
            continue
        _, layer, kind = stem.split(".", 2)
        weight = half_split(tensor.float(), heads[kind]) if kind in heads else tensor.float()
        state[f"model.layers.{layer}.{LAYER[kind]}.weight"] = weight
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


def hflm(spec: ModelSpec, context: int, *, add_bos: bool = False) -> Any:
    """lm-eval's own model over it, with Hugging Face's own tokenizer, one request at a time."""
    return HFLM(
        pretrained=llama(spec),
        tokenizer=LlamaTokenizer.from_pretrained(str(spec.folder), add_bos_token=add_bos),
        max_length=context,
        batch_size=1,
        add_bos_token=add_bos,
        device="cpu",
    )
