"""SpinQuant's R1 and R2 folded into the weights: the same float model, in a basis that quantises better.

Liu et al., "SpinQuant: LLM quantization with learned rotations", arXiv 2405.16406, section 3: a residual stream that is
rotated (R1) and values that are rotated head by head (R2) are undone by the next linear layer, so that neither costs
anything at run time. The matrices are the randomised Hadamard ones that the paper starts from; they are not learned.
Upstream's own implementation (torchao's) went with ExecuTorch 1.5. R3 is upstream's: an op in the graph.
"""

from __future__ import annotations

import torch

from harness.build.hadamard import rotation
from harness.errors import ConfigError
from harness.model_file import Params
from harness.recipes import SpinQuant, r1_refusal

State = dict[str, torch.Tensor]

# Parts of a decoder layer, by what they have to do with the residual stream.
_READ_NORMED = {
    "attention_norm": ("attention.wq", "attention.wk", "attention.wv"),
    "ffn_norm": ("feed_forward.w1", "feed_forward.w3", "feed_forward.gate_up_proj"),
}
_WRITE = ("attention.wo", "feed_forward.w2", "feed_forward.down_proj")
# Within a head, after the linear layers: R1 does not reach them.
_UNTOUCHED = ("attention.q_norm_fn.weight", "attention.k_norm_fn.weight")
_CHUNK = 16384  # rows multiplied at once: bounds the float64 copy of an embedding table


def rotate(state: State, params: Params, asked: SpinQuant) -> State:
    """The same model with R1 and R2 folded in, as the recipe asks; neither asked: `state` itself.

    R1 [dim, dim]: embeddings and everything that is added to the residual stream are multiplied by it, everything that
    reads the stream by its inverse. The weights of each RMSNorm go into the linear layers that follow, and become
    ones. Biases of queries, keys and values are beyond that product and stay. R2 [head_dim, head_dim], another one for
    each layer and the same for all its heads: wv and its bias, and the columns of wo.

    Args:
        state: as `load_state_dict` gives it: Meta's naming, float32, the output layer filled in. Not changed.
        params: the architecture.
        asked: which rotations, and the seed.

    Returns:
        Float32 tensors of the same names and shapes. With R1 a tied output layer is another tensor than the embeddings.

    Raises:
        ConfigError: the architecture, or a tensor that is not known here, stands against it.
    """
    if asked.r1:
        state = _rotate_stream(state, params, rotation(params.dim, asked.seed))
    if asked.r2:
        state = _rotate_values(state, params, asked.seed)
    return state


def _rotate_stream(state: State, params: Params, r1: torch.Tensor) -> State:
    if reason := r1_refusal(params):
        raise _refusal(reason)
    # What reads the stream, and the norm that it reads it through.
    norms = {"output.weight": "norm.weight"}
    written = []
    for layer in (f"layers.{number}." for number in range(params.n_layers)):
        for norm, readers in _READ_NORMED.items():
            # Without a norm of its own the feed-forward reads what attention reads.
            source = norm if f"{layer}{norm}.weight" in state else "attention_norm"
            norms |= {f"{layer}{reader}.weight": f"{layer}{source}.weight" for reader in readers}
        written += [f"{layer}{writer}" for writer in _WRITE]
    result: State = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        if name == "tok_embeddings.weight":
            result[name] = _times(tensor, r1)
        elif name in norms:
            result[name] = _times(tensor, state[norms[name]].double()[:, None] * r1)
        elif stem in written:
            # [dim, in] and its bias [dim]: what is added to the stream.
            result[name] = (r1.T @ tensor.double()).float()
        elif name in norms.values():
            result[name] = torch.ones_like(tensor)
        elif (kind == "bias" and f"{stem}.weight" in norms) or name.endswith(_UNTOUCHED):
            result[name] = tensor
        else:
            raise _refusal(f"R1 does not know what {name} does with the residual stream")
    return result


def _rotate_values(state: State, params: Params, seed: int) -> State:
    head_dim = params.head_dim or params.dim // params.n_heads
    result = dict(state)
    for number in range(params.n_layers):
        r2 = rotation(head_dim, seed + 1 + number)
        wv, bias, wo = (f"layers.{number}.attention.{name}" for name in ("wv.weight", "wv.bias", "wo.weight"))
        if wv not in state or wo not in state:
            raise _refusal(f"R2 needs {wv} and {wo}")
        # Rows of wv are heads × head_dim, as are the columns of wo, where several query heads share a value head.
        values, results = (params.n_kv_heads, head_dim), (params.dim, params.n_heads, head_dim)
        result[wv] = (r2.T @ state[wv].double().reshape(*values, params.dim)).flatten(0, 1).float()
        if bias in state:
            result[bias] = (state[bias].double().reshape(values) @ r2).flatten().float()
        result[wo] = _times(state[wo].reshape(results), r2).flatten(1)
    return result


def _times(tensor: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """`tensor @ matrix` in float64, as float32."""
    parts = (tensor[start : start + _CHUNK] for start in range(0, len(tensor), _CHUNK))
    return torch.cat([(part.double() @ matrix).float() for part in parts])


def _refusal(reason: str) -> ConfigError:
    return ConfigError(reason, where="recipe.spinquant", remedy="set r1 or r2 to false, or take another recipe")
