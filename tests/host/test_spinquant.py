"""R1 and R2: orthogonal matrices, a float model that stays what it was, weights that quantise better, refusals."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from events import HANG_S
from hypothesis import given, settings
from hypothesis import strategies as st
from random_states import random_params, random_state

from harness.build.hadamard import hadamard, rotation
from harness.build.spinquant import State, rotate
from harness.errors import ConfigError
from harness.paths import REPOSITORY
from harness.recipes import SpinQuant
from harness.toolchain.environment import find_toolchain

BOTH = SpinQuant(r1=True, r2=True)
# Widths and heads of the models that upstream knows: 64, 128, 256; tiny_llama 192, SmolLM2 576, stories110M 768,
# Qwen2.5 896 and 1536, Gemma3 1152, Llama-3.2 3B and Phi-4-mini 3072.
WIDTHS = (32, 64, 128, 192, 256, 576, 768, 896, 1024, 1152, 1536)


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 28, 36, 60, 84, 144, *WIDTHS])
def test_hadamard_matrices_are(order: int) -> None:
    matrix = hadamard(order)
    assert set(matrix.unique().tolist()) <= {1.0, -1.0}
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order))


def test_an_order_that_has_none_is_refused() -> None:
    for order in (3, 6, 92):  # 92 has one, but none by the constructions here
        with pytest.raises(ValueError, match=str(order)):
            hadamard(order)


@settings(max_examples=40, deadline=None)
@given(order=st.integers(1, 400), seed=st.integers(0, 2**31 - 1))
def test_rotations_of_every_order_are_orthogonal_and_repeat(order: int, seed: int) -> None:
    matrix = rotation(order, seed)
    assert (matrix @ matrix.T - torch.eye(order)).abs().max() < 1e-12
    assert torch.equal(matrix, rotation(order, seed))


@pytest.mark.parametrize("order", [*WIDTHS, 2048, 3072])
def test_no_channel_of_the_models_keeps_an_outlier(order: int) -> None:
    """Every entry has the same size: an outlier is spread evenly."""
    matrix = rotation(order, 0)
    assert torch.allclose(matrix.abs(), torch.full_like(matrix, 1 / math.sqrt(order)), rtol=1e-12)
    assert not torch.equal(matrix, rotation(order, 1))


FLOAT_CASES: list[tuple[dict[str, Any] | None, dict[str, Any]]] = [
    (None, {"r1": True, "seed": 5}),
    (None, {"r1": True, "r2": True}),
    (
        {"attention_qkv_bias": True, "use_qk_norm": True, "qk_norm_before_rope": True, "output_bias": True},
        {"r1": True, "r2": True},
    ),
    ({"attention_qkv_bias": True, "n_kv_heads": 1}, {"r2": True}),
    (
        {"model_architecture": "GlmForCausalLM", "partial_rotary_factor": 0.5, "use_hf_rope": True},
        {"r1": True, "r2": True},
    ),
    # No Hadamard matrix of 92; heads that are wider than dim / n_heads.
    ({"dim": 92, "head_dim": 16}, {"r1": True, "r2": True}),
    (
        {
            **{"residual_multiplier": 0.22, "attention_multiplier": 0.0625, "logits_scaling": 8.0},
            "no_rope_layer_interval": 2,
        },
        {"r1": True, "r2": True},
    ),
    ({"use_ffn_norm": False}, {"r1": True}),
]


@pytest.mark.slow
def test_the_float_model_stays_what_it_was() -> None:
    """Through upstream's own model, the one that is compiled: every logit, as a fraction of their range."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tests" / "host" / "spinquant_logits.py"), json.dumps(FLOAT_CASES)],
        env=find_toolchain().environment(),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    lines = [line.removeprefix("MOVED ") for line in done.stdout.splitlines() if line.startswith("MOVED ")]
    assert len(lines) == len(FLOAT_CASES), done.stderr[-3000:]
    for case, line in zip(FLOAT_CASES, lines, strict=True):
        moved = json.loads(line)
        assert moved["logits"] < 1e-4, case  # seen: at most 1e-6
        if case[1].get("r1"):
            assert moved["by_mistake"] > 0.1, case  # the comparison can fail


def test_the_state_is_not_changed_and_keeps_its_names_shapes_and_width() -> None:
    params = random_params(attention_qkv_bias=True)
    state = random_state(params)
    before = {name: tensor.clone() for name, tensor in state.items()}
    turned = rotate(state, params, BOTH)
    assert list(turned) == list(state)
    for name, tensor in turned.items():
        assert (tensor.shape, tensor.dtype) == (state[name].shape, torch.float32), name
        assert torch.equal(state[name], before[name]), name


def test_nothing_asked_is_nothing_done() -> None:
    params = random_params()
    state = random_state(params)
    assert rotate(state, params, SpinQuant(r3=True)) is state


def test_each_rotation_touches_what_it_is_about() -> None:
    params = random_params(attention_qkv_bias=True, use_qk_norm=True)
    state = random_state(params)

    def touched(asked: SpinQuant) -> set[str]:
        turned = rotate(state, params, asked)
        return {name.removeprefix("layers.0.") for name in state if not torch.equal(turned[name], state[name])} - {
            name for name in state if name.startswith("layers.1.")
        }

    assert touched(SpinQuant(r2=True)) == {"attention.wv.weight", "attention.wv.bias", "attention.wo.weight"}
    linear = {f"attention.{part}.weight" for part in ("wq", "wk", "wv", "wo")}
    linear |= {f"feed_forward.{part}.weight" for part in ("w1", "w2", "w3")}
    top = {"tok_embeddings.weight", "output.weight", "norm.weight"}
    assert touched(SpinQuant(r1=True)) == linear | top | {"attention_norm.weight", "ffn_norm.weight"}


def test_the_seed_decides() -> None:
    params = random_params()
    state = random_state(params)

    def embeddings(seed: int) -> torch.Tensor:
        return rotate(state, params, SpinQuant(r1=True, seed=seed))["tok_embeddings.weight"]

    assert torch.equal(embeddings(1), embeddings(1))
    assert not torch.equal(embeddings(1), embeddings(2))


def test_tied_embeddings_come_apart() -> None:
    params = random_params()
    state = random_state(params)
    state["output.weight"] = state["tok_embeddings.weight"]
    turned = rotate(state, params, SpinQuant(r1=True))
    assert not torch.equal(turned["output.weight"], turned["tok_embeddings.weight"])


def fake_quantised(weight: torch.Tensor) -> torch.Tensor:
    """Symmetric 4-bit weights with a scale an output channel, as 16a4w has them."""
    scale = weight.abs().amax(dim=1, keepdim=True) / 7
    return (weight / scale).round().clamp(-7, 7) * scale


def error(state: State, name: str) -> float:
    """Of 4-bit weights, as a fraction of the weights' own size."""
    weight = state[name].flatten(1)
    return float((fake_quantised(weight) - weight).norm() / weight.norm())


def test_outliers_in_the_input_channels_of_weights_cost_less() -> None:
    """R1 for what reads the residual stream, R2 for what reads the values."""
    params = random_params(dim=192, n_heads=6, n_kv_heads=2, hidden_dim=256)
    state = random_state(params)
    names = [f"layers.{number}.{part}.weight" for number in (0, 1) for part in ("attention.wq", "feed_forward.w1")]
    outputs = [f"layers.{number}.attention.wo.weight" for number in (0, 1)]
    for name in (*names, *outputs):
        state[name][:, [3, 100]] *= 30
    turned = rotate(state, params, BOTH)
    for name in (*names, *outputs):
        assert error(turned, name) < 0.5 * error(state, name), name


@pytest.mark.parametrize(
    ("changes", "extra", "words"),
    [
        ({"norm_type": "layernorm"}, (), "LayerNorm subtracts the mean"),
        ({"post_ffn_norm": True}, (), "post_ffn_norm"),
        ({}, ("layers.1.post_attention_norm.weight",), "layers.1.post_attention_norm.weight"),
        ({}, ("layers.0.feed_forward.fc_in.weight",), "layers.0.feed_forward.fc_in.weight"),
        ({}, ("norm.bias",), "norm.bias"),
    ],
)
def test_r1_refuses_what_it_cannot_rotate_and_names_it(
    changes: dict[str, Any], extra: tuple[str, ...], words: str
) -> None:
    params = random_params(**changes)
    state = random_state(params) | {name: torch.ones(params.dim) for name in extra}
    with pytest.raises(ConfigError) as caught:
        rotate(state, params, SpinQuant(r1=True))
    assert words in caught.value.what
    assert caught.value.where == "recipe.spinquant"
    rotate(state, params, SpinQuant(r2=True))


def test_r2_refuses_values_that_are_not_there() -> None:
    params = random_params()
    state = random_state(params)
    del state["layers.1.attention.wv.weight"]
    with pytest.raises(ConfigError, match=r"layers\.1\.attention\.wv"):
        rotate(state, params, SpinQuant(r2=True))
