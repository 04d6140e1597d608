from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from sample_models import TINY, line_of, make_model, write_model

from harness.build.families import weight_count
from harness.errors import ConfigError
from harness.models import Lengths, Mode, load_model, load_models, select
from harness.paths import MODELS
from harness.text.decoders import VERSIONS
from harness.weights import have_weights


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_model(path)
    return str(caught.value)


def test_a_whole_model(tmp_path: Path) -> None:
    spec = make_model(tmp_path)
    assert (spec.name, spec.decoder, spec.instruct, spec.repo_id) == ("tiny", "stories260k", False, None)
    assert spec.folder == tmp_path
    assert spec.checkpoint.path == tmp_path / "tiny.pt"
    assert have_weights(spec)
    assert spec.tokenizer.path == tmp_path / "tok.model"
    assert (spec.eval.text, spec.eval.tokens) == (tmp_path / "held_out.txt", 500)
    assert (spec.calibration.text, spec.calibration.samples) == (tmp_path / "calibration.txt", 4)
    assert spec.modes == (Mode.KV, Mode.HYBRID)
    assert spec.lengths == Lengths(128, 32)
    assert (spec.bounds.phone_vs_qdq_ppl, spec.bounds.qdq_vs_fp_ppl) == (0.01, 0.10)
    assert (spec.recipe.name, spec.shards, spec.kv_bits, spec.lpbq) == ("upstream", 1, 8, False)
    assert hash(spec) == hash(make_model(tmp_path))


def test_a_checkpoint_without_a_path_may_be_elsewhere(tmp_path: Path) -> None:
    spec = make_model(tmp_path, checkpoint={"format": "llama2c"}, tokenizer={"kind": "sentencepiece"})
    assert (spec.checkpoint.path, spec.tokenizer.path) == (None, None)
    assert not have_weights(spec)


def test_upstreams_further_names_of_parameters_pass(tmp_path: Path) -> None:
    params = TINY["params"] | {"attention_type": "mha"}
    assert make_model(tmp_path, params=params).params.model_args() == params


def test_params_are_what_upstream_reads(tmp_path: Path) -> None:
    assert make_model(tmp_path).params.model_args() == TINY["params"]


def test_relative_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    spec = load_models(Path("models"))["tiny"]
    assert spec.eval.text.is_absolute()
    assert spec.eval.text.is_file()


def test_a_package_brings_its_tokenizer(tmp_path: Path) -> None:
    package = {"format": "gguf_package", "package": "no_such_package_here", "extra": "smollm2"}
    spec = make_model(tmp_path, checkpoint=package, tokenizer={"kind": "huggingface"})
    assert (spec.checkpoint.path, spec.checkpoint.package, spec.tokenizer.path) == (None, "no_such_package_here", None)
    assert not have_weights(spec)


def test_a_recipe_overrides_what_upstream_needs(tmp_path: Path) -> None:
    needs = {"lpbq": True, "kv_bits": 16}
    assert (make_model(tmp_path, needs=needs).kv_bits, make_model(tmp_path, needs=needs).lpbq) == (16, True)
    light = make_model(tmp_path, needs=needs, recipe={"name": "light", "weights": "16a8w", "kv_bits": 8})
    assert (light.kv_bits, light.lpbq) == (8, False)
    blocks = make_model(tmp_path, recipe={"name": "blocks", "weights": "lpbq", "block_size": 32})
    assert (blocks.kv_bits, blocks.lpbq) == (8, True)


@pytest.mark.parametrize(
    ("changes", "key", "marker", "words"),
    [
        ({"decodr": "x"}, "decodr", "decodr:", ["unknown key", "did you mean decoder?"]),
        ({"instruct": "maybe"}, "instruct", "instruct:", ["valid boolean"]),
        ({"modes": ["kv", "hybird"]}, "modes[1]", "- hybird", ["'kv', 'hybrid' or 'lookahead'", "'hybird'"]),
        ({"modes": []}, "modes", "modes:", ["at least 1"]),
        ({"modes": ["kv", "kv"]}, "modes", "modes:", ["kv is there twice"]),
        ({"prompts": []}, "prompts", "prompts:", ["at least 1"]),
        ({"prompts": ["a", ""]}, "prompts[1]", "- ''", ["at least 1"]),
        ({"shards": 0}, "shards", "shards:", ["greater than 0"]),
        ({"shards": 6}, "shards", "shards:", ["5 layers"]),
        ({"max_new_tokens": 128}, "max_new_tokens", "max_new_tokens:", ["128"]),
        ({"lengths": {"max_seq_len": 32}}, "lengths", "lengths:", ["prefill_ar_len (32)", "max_seq_len (32)"]),
        ({"needs": {"kv_bits": 12}}, "needs.kv_bits", "kv_bits:", ["8 or 16", "12"]),
        ({"recipe": {"name": "x", "weights": "4w"}}, "recipe.weights", "weights:", ["16a4w", "'4w'"]),
        ({"recipe": {"kv_bits": 8}}, "recipe", "recipe:", ["name of its own"]),
        ({"recipe": {"name": "x", "block_size": 8}}, "recipe", "recipe:", ["weights: lpbq"]),
        ({"checkpoint": {"format": "gguf_package"}}, "checkpoint", "checkpoint:", ["needs the key package"]),
        ({"checkpoint": {"format": "meta", "extra": "x"}}, "checkpoint", "checkpoint:", ["no key extra"]),
        (
            {"checkpoint": {"format": "huggingface", "path": "tiny.pt"}},
            "checkpoint.path",
            "tiny.pt",
            ["must be the folder that holds config.json"],
        ),
        ({"checkpoint": {"format": "gguf", "path": "."}}, "checkpoint.path", "path: .", ["must be a file"]),
        (
            {"checkpoint": {"format": "gguf_package", "package": "x", "path": "tiny.pt"}},
            "checkpoint",
            "checkpoint:",
            ["no key path"],
        ),
        ({"checkpoint": {"format": "meta", "path": "lost.pt"}}, "checkpoint.path", "lost.pt", ["no such file"]),
        ({"tokenizer": {"kind": "sentencepiece"}}, "tokenizer", "tokenizer:", ["path is missing"]),
        ({"tokenizer": {"kind": "sentencepiece", "path": "lost"}}, "tokenizer.path", "path: lost", ["no such file"]),
        ({"eval": {"text": "lost.txt", "tokens": 5}}, "eval.text", "lost.txt", ["no such file"]),
        ({"calibration": {"text": "lost.txt", "samples": 5}}, "calibration.text", "lost.txt", ["no such file"]),
        ({"params": TINY["params"] | {"n_kv_heads": 3}}, "params", "params:", ["n_kv_heads (3)"]),
        ({"params": TINY["params"] | {"dim": 63}}, "params", "params:", ["give head_dim"]),
        (
            {"params": TINY["params"] | {"rope_thta": 1e4}},
            "params",
            "params:",
            ["rope_thta", "did you mean rope_theta?"],
        ),
        (
            {"params": TINY["params"] | {"layer_types": ["full_attention"]}},
            "params",
            "params:",
            ["layer_types lists 1", "n_layers is 5"],
        ),
        (
            {"params": TINY["params"] | {"original_max_position_embeddings": 100}, "lengths": {"max_seq_len": 101}},
            "lengths",
            "lengths:",
            ["beyond 100 tokens"],
        ),
        ({"params": TINY["params"] | {"dim": "64"}}, "params.dim", "dim:", ["valid integer"]),
        ({"bounds": {"phone_vs_qdq_ppl": -1}}, "bounds.phone_vs_qdq_ppl", "phone_vs", ["greater than 0"]),
    ],
)
def test_mistakes_have_their_line(
    tmp_path: Path, changes: dict[str, Any], key: str, marker: str, words: list[str]
) -> None:
    path = write_model(tmp_path, **changes)
    message = refused(path)
    line = min(n for n, row in enumerate(path.read_text().splitlines(), 1) if marker in row)
    assert f"tiny.yaml:{line}: {key}: " in message, message
    for word in words:
        assert word in message


@pytest.mark.parametrize("key", [key for key in TINY if key not in ("name", "calibration")])
def test_every_key_of_the_sample_is_required(tmp_path: Path, key: str) -> None:
    assert f"tiny.yaml:1: {key}: the key is missing" in refused(write_model(tmp_path, **{key: None}))


def test_a_model_without_calibration_text_is_calibrated_with_its_prompts(tmp_path: Path) -> None:
    assert load_model(write_model(tmp_path, calibration=None)).calibration is None


def test_the_name_is_the_files(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    other = path.rename(tmp_path / "other.yaml")
    assert f"other.yaml:{line_of(other, 'name: tiny')}: name: is 'tiny'" in refused(other)
    assert "pattern" in refused(write_model(tmp_path, "tiny-2"))  # a dash would break ids apart


def test_both_layouts_sorted_by_name(tmp_path: Path) -> None:
    for name in ("zeta", "alpha"):
        write_model(tmp_path, name)
    write_model(tmp_path / "mid", "mid").rename(tmp_path / "mid" / "model.yaml")
    found = load_models(tmp_path)
    assert list(found) == ["alpha", "mid", "zeta"]
    assert found["mid"].folder == tmp_path / "mid"
    assert [spec.name for spec in found.values()] == list(found)


def test_a_model_in_both_layouts_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    write_model(tmp_path / "tiny").rename(tmp_path / "tiny" / "model.yaml")
    with pytest.raises(ConfigError, match="twice"):
        load_models(tmp_path)


def test_no_models(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match=re.escape(f"{folder}: no models here")):
            load_models(folder)


def test_select(tmp_path: Path) -> None:
    models = {name: make_model(tmp_path, name) for name in ("tiny_b", "tiny_a", "other")}
    assert [spec.name for spec in select(models, None)] == ["other", "tiny_a", "tiny_b"]
    assert [spec.name for spec in select(models, ["all"])] == ["other", "tiny_a", "tiny_b"]
    assert [spec.name for spec in select(models, ["tiny_b", "other", "tiny_b"])] == ["other", "tiny_b"]
    with pytest.raises(ConfigError, match="unknown model 'tiny_c'") as caught:
        select(models, ["other", "tiny_c"])
    assert "tiny_a" in caught.value.remedy
    with pytest.raises(ConfigError, match="no model selected"):
        select(models, [])


LIST = (
    *("codegen2_1b", "gemma2_2b", "gemma3_1b", "gemma_2b", "glm_edge_1_5b", "granite_3_3_2b_instruct"),
    *("llama3_2_1b_instruct", "llama3_2_3b_instruct", "phi_4_mini_instruct", "qwen2_5_0_5b", "qwen2_5_1_5b"),
    *("qwen3_0_6b", "qwen3_1_7b", "smollm2_135m", "smollm3_3b", "stories110m"),
)


def test_the_models_that_ship() -> None:
    rows = load_models(MODELS)
    assert list(rows) == sorted([*LIST, "tiny_llama"])
    for name in LIST:
        row = rows[name]
        assert row.repo_id
        assert row.decoder in VERSIONS
        assert row.modes == tuple(Mode)
        assert row.host is not None
        assert 0 < row.host.kv.memory_gb <= row.host.hybrid.memory_gb
        assert row.host.kv.hours <= row.host.hybrid.hours
        billions = weight_count(row.params) / 1e9
        # As the names say, but for embeddings, which some leave out of the count and upstream's graph holds twice.
        assert 0.1 < billions < 4.6
    assert rows["llama3_2_1b_instruct"].host.hybrid.memory_gb == 80
    assert rows["qwen3_0_6b"].published.decode_tok_s.SM8650 == 47
    assert weight_count(rows["llama3_2_1b_instruct"].params) - 128256 * 2048 == 1_235_814_400
    assert weight_count(rows["qwen2_5_0_5b"].params) - 151936 * 896 == 494_032_768
    assert weight_count(rows["gemma3_1b"].params) - 262144 * 1152 == 999_885_952


def test_select_by_file(tmp_path: Path) -> None:
    models = {"known": make_model(tmp_path / "models", "known")}
    mine = write_model(tmp_path / "mine", "mine")
    assert [spec.name for spec in select(models, [str(mine), "known", str(mine)])] == ["known", "mine"]
    assert [spec.name for spec in select(models, [str(models["known"].file)])] == ["known"]
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such file"):
        select(models, [str(tmp_path / "absent.yaml")])
    with pytest.raises(ConfigError, match="the name 'known' is taken by") as caught:
        select(models, [str(write_model(tmp_path / "mine", "known"))])
    assert str(tmp_path / "mine" / "known.yaml") in str(caught.value)
