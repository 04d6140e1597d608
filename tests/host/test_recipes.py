"""Recipes as YAML: what may be said, which layers it is about, what an architecture refuses, what stands in ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from random_states import random_params
from sample_models import line_of, make_model, write_model

from harness.errors import ConfigError
from harness.matrix import cells
from harness.model_file import Mode, ModelFile, Params
from harness.models import load_model
from harness.recipes import READY, UPSTREAM, LayerException, Recipe, linear_names, matching, ready, recipe_problems
from harness.soc import find_soc


def test_every_ready_made_recipe_is_one_and_says_what_it_is_called() -> None:
    for name, written in READY.items():
        recipe = ready(name)
        assert recipe.name == name
        assert recipe.changes == written
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_a_name_alone_is_a_ready_made_recipe_and_stands_in_the_cells_id(tmp_path: Path) -> None:
    spec = make_model(tmp_path, recipe="16a4w_kv8_spin", needs={"lpbq": True, "kv_bits": 16})
    assert (spec.recipe.weights, spec.kv_bits, spec.lpbq) == ("16a4w", 8, False)
    assert (spec.recipe.spinquant.r1, spec.recipe.spinquant.r2, spec.recipe.spinquant.r3) == (True, True, None)
    (cell,) = cells([spec], [Mode.KV], [find_soc("SM8350")])
    assert cell.id == "tiny-kv-SM8350-16a4w_kv8_spin"


def test_everything_can_be_said_at_once(tmp_path: Path) -> None:
    exceptions = [
        {"weights": "16a8w", "layers": [0, 4], "names": ["*.w2", "*.wv"]},
        {"weights": "lpbq", "block_size": 64, "names": ["output"]},
    ]
    spec = make_model(
        tmp_path,
        recipe={
            **{"name": "all", "weights": "lpbq", "block_size": 16, "kv_bits": 16, "exceptions": exceptions},
            **{"seq_mse_candidates": 20, "masked_softmax": False, "spinquant": {"r1": True, "r3": True, "seed": 7}},
        },
    )
    first, second = spec.recipe.exceptions
    part = ("attention.wv", "feed_forward.w2")
    assert matching(first, spec.params) == tuple(f"layers.{number}.{name}" for number in (0, 4) for name in part)
    assert matching(second, spec.params) == ("output",)
    assert spec.recipe.seq_mse_candidates == 20
    assert spec.recipe.masked_softmax is False  # not None: upstream's own may be on
    assert (spec.lpbq, spec.kv_bits) == (True, 16)


@pytest.mark.parametrize(
    ("upstream", "recipe", "expected"),
    [
        (True, Recipe(), True),
        (False, Recipe(), False),
        (True, Recipe(name="a", kv_bits=8), True),
        (True, ready("16a4w"), False),
        (False, Recipe(name="a", exceptions=(LayerException(weights="lpbq", layers=(0,)),)), True),
        (True, Recipe(name="a", weights="16a4w", exceptions=(LayerException(weights="16a8w", layers=(0,)),)), False),
    ],
)
def test_lpbq_is_asked_for_by_any_layer(upstream: bool, recipe: Recipe, expected: bool) -> None:
    assert recipe.asks_lpbq(upstream) is expected


@pytest.mark.parametrize("name", ["layers.7.attention.wq", "*.w2.weight", "*.W2", "w2", "layers.[7-9].*"])
def test_an_exception_that_fits_no_layer_is_refused(tmp_path: Path, name: str) -> None:
    recipe = {"name": "x", "weights": "16a4w", "exceptions": [{"weights": "16a8w", "names": [name]}]}
    with pytest.raises(ConfigError, match="no layer fits"):
        make_model(tmp_path, recipe=recipe)


def test_layer_1_is_not_layer_11() -> None:
    params = random_params(n_layers=12)
    for exception in (
        LayerException(weights="16a8w", layers=(1,)),
        LayerException(weights="16a8w", names=("layers.1.*",)),
    ):
        assert {name.split(".")[1] for name in matching(exception, params)} == {"1"}


@pytest.mark.parametrize(
    ("changes", "place", "line", "words"),
    [
        ({"recipe": "16a4"}, "recipe", "recipe:", ["no recipe '16a4'", "16a4w_kv8_spin"]),
        ({"recipe": {"name": "x"}}, "recipe", "recipe:", ["changes nothing"]),
        ({"recipe": {"name": "16a4w", "weights": "16a8w"}}, "recipe", "recipe:", ["ready-made"]),
        ({"recipe": {"name": "16a4w"}}, "recipe", "recipe:", ["ready-made"]),
        ({"recipe": {"spinquant": {"r2": True}}}, "recipe", "recipe:", ["spinquant", "name of its own"]),
        ({"recipe": {"name": "x", "masked_softmax": 1}}, "recipe.masked_softmax", "masked_softmax:", ["boolean"]),
        ({"recipe": {"name": "x", "seq_mse_candidates": -1}}, "recipe.seq_mse_candidates", "seq_mse", ["-1"]),
        ({"recipe": {"name": "x", "kv_bits": 4}}, "recipe.kv_bits", "kv_bits:", ["8 or 16"]),
        ({"recipe": {"name": "x", "spinquant": {"r4": True}}}, "recipe.spinquant.r4", "r4:", ["unknown key", "r1"]),
        (
            {"recipe": {"name": "x", "exceptions": [{"weights": "16a8w"}]}},
            *("recipe.exceptions[0]", "weights: 16a8w", ["names, layers or both"]),
        ),
        (
            {"recipe": {"name": "x", "exceptions": [{"weights": "16a8w", "layer": [1]}]}},
            *("recipe.exceptions[0].layer", "layer:", ["did you mean layers?"]),
        ),
        (
            {"recipe": {"name": "x", "exceptions": [{"weights": "16a8w", "block_size": 8, "layers": [0]}]}},
            *("recipe.exceptions[0]", "weights: 16a8w", ["weights: lpbq only"]),
        ),
        (
            {"recipe": {"name": "x", "exceptions": [{"weights": "16a8w", "layers": [4, 5]}]}},
            *("recipe.exceptions[0].layers", " layers:", ["no layer 5", "there are 5"]),
        ),
        (
            {"recipe": {"name": "x", "exceptions": [{"weights": "16a8w", "names": ["*.down_proj"]}]}},
            *("recipe.exceptions[0].names", "names:", ["layers.*.feed_forward.w2"]),
        ),
        (
            {"recipe": {"name": "x", "weights": "lpbq", "block_size": 48}},
            *("recipe.block_size", "block_size:", ["do not divide the 64 input channels of layers.*.attention.wq"]),
        ),
        (
            {
                "recipe": {
                    **{"name": "x", "weights": "16a4w"},
                    "exceptions": [{"weights": "lpbq", "block_size": 24, "names": ["*.wo"]}],
                }
            },
            *("recipe.exceptions[0].block_size", "block_size:", ["24", "layers.*.attention.wo"]),
        ),
    ],
)
def test_a_mistake_is_refused_with_its_place(
    tmp_path: Path, changes: dict[str, Any], place: str, line: str, words: list[str]
) -> None:
    path = write_model(tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        load_model(path)
    assert caught.value.where == f"{path}:{line_of(path, line)}: {place}"
    for word in words:
        assert word in caught.value.what


def test_blocks_have_to_divide_only_what_is_quantised_by_blocks() -> None:
    params = random_params(hidden_dim=80)
    blocks = Recipe(name="x", weights="lpbq", block_size=32)
    (problem,) = recipe_problems(blocks, params)
    assert "80 input channels of layers.*.feed_forward.w2" in problem.message
    without = Recipe(
        name="x", weights="lpbq", block_size=32, exceptions=(LayerException(weights="16a8w", names=("*.w2",)),)
    )
    assert recipe_problems(without, params) == []


SPIN = Recipe(name="x", spinquant={"r1": True, "r2": True, "r3": True})


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"norm_type": "layernorm"}, "r1", "LayerNorm subtracts the mean"),
        ({"post_attention_norm": True, "post_ffn_norm": True}, "r1", "post_attention_norm and post_ffn_norm"),
        ({"head_dim": 48}, "r3", "power of two, not of 48"),
    ],
)
def test_an_architecture_that_cannot_be_rotated_is_refused_and_says_why(
    changes: dict[str, Any], key: str, words: str
) -> None:
    (problem,) = recipe_problems(SPIN, random_params(**changes))
    assert problem.place == ("recipe", "spinquant", key)
    assert words in problem.message


def test_an_architecture_that_can_is_not() -> None:
    for changes in ({}, {"attention_qkv_bias": True, "use_qk_norm": True}, {"head_dim": 32}):
        assert recipe_problems(SPIN, random_params(**changes)) == []
    # R2 alone asks nothing of the norms.
    assert recipe_problems(Recipe(name="x", spinquant={"r2": True}), random_params(post_ffn_norm=True)) == []


def test_names_are_metas_for_each_feed_forward() -> None:
    def parts(params: Params) -> list[str]:
        return [name.removeprefix("layers.0.") for name in linear_names(params) if name.startswith("layers.0.f")]

    assert parts(random_params()) == ["feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
    glm = random_params(model_architecture="GlmForCausalLM")
    assert parts(glm) == ["feed_forward.gate_up_proj", "feed_forward.down_proj"]
    codegen = random_params(model_architecture="CodeGenModel")
    assert parts(codegen) == ["feed_forward.fc_in", "feed_forward.fc_out"]
    mixed = ready("16a4w_kv8_mixed").exceptions[0]
    for params in (random_params(), glm, codegen):
        assert len(matching(mixed, params)) == 2 * params.n_layers


def test_editors_are_told_the_ready_made_names() -> None:
    schema = ModelFile.model_json_schema()
    recipe = schema["$defs"]["Recipe"]
    assert recipe["anyOf"][0] == {"enum": list(READY), "type": "string"}
    assert "exceptions" in recipe["anyOf"][1]["properties"]


def test_a_recipe_that_is_not_ready_made_is_no_recipe() -> None:
    with pytest.raises(ValidationError, match="there are: upstream, 16a4w"):
        ready("w4")
    assert ready(UPSTREAM) == Recipe()
