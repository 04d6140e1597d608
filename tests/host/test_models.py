from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from sample_models import TINY, line_of, make_model, write_model

from harness.errors import ConfigError
from harness.models import Lengths, Mode, load_model, load_models, select


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_model(path)
    return str(caught.value)


def test_a_whole_model(tmp_path: Path) -> None:
    spec = make_model(tmp_path)
    assert (spec.name, spec.decoder, spec.instruct, spec.repo_id) == ("tiny", "stories260k", False, None)
    assert spec.folder == tmp_path
    assert spec.checkpoint.path == tmp_path / "tiny.pt"
    assert spec.checkpoint.installed
    assert spec.tokenizer.path == tmp_path / "tok.model"
    assert (spec.eval.text, spec.eval.tokens) == (tmp_path / "held_out.txt", 500)
    assert (spec.calibration.text, spec.calibration.samples) == (tmp_path / "calibration.txt", 4)
    assert spec.modes == (Mode.KV, Mode.HYBRID)
    assert spec.lengths == Lengths(128, 32)
    assert (spec.bounds.phone_vs_qdq_ppl, spec.bounds.qdq_vs_fp_ppl) == (0.02, 0.10)
    assert (spec.recipe.name, spec.shards, spec.kv_bits, spec.lpbq) == ("upstream", 1, 8, False)
    assert hash(spec) == hash(make_model(tmp_path))


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
    assert not spec.checkpoint.installed


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
        ({"checkpoint": {"format": "meta"}}, "checkpoint", "checkpoint:", ["needs the key path"]),
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
