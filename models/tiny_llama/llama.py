"""The tiny model in plain torch: Meta's Llama 2 with interleaved rotary pairs, RMSNorm, SwiGLU, grouped queries and an
output layer tied to the embeddings. Its weights give the same logits in ExecuTorch's eager llama and static_llama.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

BOS, EOS = 1, 2


@dataclass(frozen=True)
class Params:
    """Keys and meaning of ExecuTorch's `examples/models/llama/model_args.py::ModelArgs`."""

    dim: int = 192
    n_layers: int = 3
    n_heads: int = 6
    n_kv_heads: int = 2
    vocab_size: int = 1024
    hidden_dim: int = 512
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_seq_len: int = 256
    bos_idx: int = BOS
    eos_idx: int = EOS


class Linear(nn.Linear):
    """Linear without bias whose weight can be seen through symmetric per-output-channel rounding (straight-through)."""

    bits = 0

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        if self.bits:
            w = w + (fake_quantize(w, self.bits) - w).detach()
        out: Tensor = F.linear(x, w)
        return out


def fake_quantize(w: Tensor, bits: int) -> Tensor:
    """Round [out, in] weights to the symmetric grid ±(2^(bits-1)-1), one scale a row, as QNN's 4-bit weights are."""
    top = float((1 << bits - 1) - 1)
    scale = w.abs().amax(dim=1, keepdim=True).clamp_min(1e-8) / top
    return (w / scale).round() * scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [batch, heads, time, head_dim] in Meta's convention: pairs are neighbours (2i, 2i+1)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Attention(nn.Module):
    def __init__(self, p: Params) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = p.n_heads, p.n_kv_heads, p.dim // p.n_heads
        self.wq = Linear(p.dim, p.n_heads * self.head_dim, bias=False)
        self.wk = Linear(p.dim, p.n_kv_heads * self.head_dim, bias=False)
        self.wv = Linear(p.dim, p.n_kv_heads * self.head_dim, bias=False)
        self.wo = Linear(p.n_heads * self.head_dim, p.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = rotate(self.wq(x).view(b, t, self.heads, self.head_dim).transpose(1, 2), cos, sin)
        k = rotate(self.wk(x).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2), cos, sin)
        v = self.wv(x).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        repeat = self.heads // self.kv_heads
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        # Written out: at these sizes it is faster on a CPU than torch's fused attention.
        future = torch.ones(t, t, dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)).masked_fill(future, -math.inf)
        y = scores.softmax(-1) @ v
        out: Tensor = self.wo(y.transpose(1, 2).reshape(b, t, -1))
        return out


class FeedForward(nn.Module):
    def __init__(self, p: Params) -> None:
        super().__init__()
        self.w1 = Linear(p.dim, p.hidden_dim, bias=False)
        self.w2 = Linear(p.hidden_dim, p.dim, bias=False)
        self.w3 = Linear(p.dim, p.hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class Block(nn.Module):
    def __init__(self, p: Params) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(p), FeedForward(p)
        self.attention_norm, self.ffn_norm = nn.RMSNorm(p.dim, p.norm_eps), nn.RMSNorm(p.dim, p.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


class Llama(nn.Module):
    """Token ids [batch, time] to logits [batch, time, vocab]; state-dict keys are Meta's (llama2.c's)."""

    def __init__(self, p: Params) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(p.vocab_size, p.dim)
        self.layers = nn.ModuleList(Block(p) for _ in range(p.n_layers))
        self.norm = nn.RMSNorm(p.dim, p.norm_eps)
        half = torch.arange(0, p.dim // p.n_heads, 2).float() / (p.dim // p.n_heads)
        angles = torch.outer(torch.arange(p.max_seq_len).float(), p.rope_theta**-half)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, w in self.named_parameters():
            if w.dim() == 2:  # residual branches start smaller, as in GPT-2
                branch = name.endswith(("wo.weight", "w2.weight"))
                nn.init.normal_(w, std=0.02 / math.sqrt(2 * p.n_layers) if branch else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        t = ids.shape[1]
        x: Tensor = self.tok_embeddings(ids)
        for layer in self.layers:
            x = layer(x, self.get_buffer("cos")[:t], self.get_buffer("sin")[:t])
        logits: Tensor = F.linear(self.norm(x), self.tok_embeddings.weight)
        return logits

    def set_weight_bits(self, bits: int) -> None:
        for m in self.modules():
            if isinstance(m, Linear):
                m.bits = bits


def load_model(folder: Path) -> Llama:
    """The model as shipped (fp16 on disk), in fp32 on the CPU."""
    model = Llama(Params(**json.loads((folder / "params.json").read_text())))
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    return model.eval()


def save(model: Llama, folder: Path) -> None:
    """fp16; the output layer shares `tok_embeddings.weight` and is stored once."""
    state = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    target = folder / "model.safetensors"
    save_file(state, target, metadata={"format": "pt", "tied": "output.weight=tok_embeddings.weight"})
    target.chmod(0o644)


@torch.no_grad()
def negative_log_likelihood(model: Llama, ids: list[int], context: int) -> float:
    """Sum of -ln p over `ids`, in windows of context-1 tokens, each after a BOS."""
    total = 0.0
    for i in range(0, len(ids), context - 1):
        window = torch.tensor([BOS, *ids[i : i + context - 1]])
        total += F.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="sum").item()
    return total


@torch.no_grad()
def greedy(model: Llama, ids: list[int], new_tokens: int) -> list[int]:
    """The likeliest continuation of `ids`, at most `new_tokens` long, up to and with an EOS."""
    out = list(ids)
    for _ in range(new_tokens):
        out.append(int(model(torch.tensor([out]))[0, -1].argmax()))
        if out[-1] == EOS:
            break
    return out[len(ids) :]
