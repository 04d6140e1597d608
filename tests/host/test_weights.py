"""Where weights are looked for, and what is said where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_models import make_model

from harness.errors import ConfigError
from harness.models import ModelSpec, load_models
from harness.paths import MODELS, weights_root
from harness.weights import find_weights, have_weights


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTPFARM_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def hub_model(folder: Path, **checkpoint: str) -> ModelSpec:
    return make_model(
        folder,
        repo_id="someone/tiny",
        checkpoint={"format": "huggingface", **checkpoint},
        tokenizer={"kind": "huggingface"},
    )


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("x")
    return folder


def test_every_row_says_what_to_download_and_where_to_put_it() -> None:
    missing = [spec for spec in load_models(MODELS).values() if spec.checkpoint.format != "gguf_package"]
    missing = [spec for spec in missing if spec.checkpoint.path is None]
    assert len(missing) >= 15
    for spec in missing:
        with pytest.raises(ConfigError) as caught:
            find_weights(spec)
        message = str(caught.value)
        assert str(weights_root() / spec.name) in message
        assert str(spec.repo_id) in message
        assert ".safetensors" in message or ".pt " in message
        assert not have_weights(spec)


def test_a_licence_to_accept_is_named() -> None:
    with pytest.raises(ConfigError, match="accept Google's terms"):
        find_weights(load_models(MODELS)["gemma3_1b"])


def test_the_rows_folder(tmp_path: Path) -> None:
    spec = hub_model(tmp_path)
    folder = fill(
        weights_root() / "tiny",
        *("config.json", "tokenizer.json", "tokenizer.model", "model-2.safetensors", "model-1.safetensors"),
        *("consolidated.safetensors", "adapter_model.safetensors", "pytorch_model.bin"),
    )
    found = find_weights(spec)
    assert found.folder == folder
    assert [path.name for path in found.files] == ["model-1.safetensors", "model-2.safetensors"]
    assert found.tokenizer == folder / "tokenizer.json"
    assert found.named("config.json") == folder / "config.json"
    assert found.named("params.json") is None


def test_pickles_count_where_there_are_no_safetensors(tmp_path: Path) -> None:
    fill(weights_root() / "tiny", "config.json", "pytorch_model-1.bin", "pytorch_model-2.bin", "optimizer.bin")
    assert [path.name for path in find_weights(hub_model(tmp_path)).files] == [
        "pytorch_model-1.bin",
        "pytorch_model-2.bin",
    ]


def test_the_hubs_cache(tmp_path: Path) -> None:
    spec = hub_model(tmp_path)
    cached = tmp_path / "hub" / "models--someone--tiny"
    snapshot = fill(cached / "snapshots" / "0123abcd", "config.json", "model.safetensors", "tokenizer.json")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123abcd")
    assert find_weights(spec).folder == snapshot
    folder = fill(weights_root() / "tiny", "config.json", "model.safetensors")
    assert find_weights(spec).folder == folder  # what the user put there goes first


def test_a_half_downloaded_snapshot_is_none(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--someone--tiny"
    fill(cached / "snapshots" / "0123abcd", "config.json")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123abcd")
    with pytest.raises(ConfigError, match="not on this computer") as caught:
        find_weights(hub_model(tmp_path))
    assert str(cached) in caught.value.evidence


def test_a_path_in_the_file_counts_alone(tmp_path: Path) -> None:
    folder = fill(tmp_path / "mine", "config.json")
    fill(weights_root() / "tiny", "config.json", "model.safetensors")
    spec = hub_model(tmp_path, path="mine")
    with pytest.raises(ConfigError) as caught:
        find_weights(spec)
    assert str(folder) in caught.value.remedy
    (folder / "model.safetensors").touch()
    assert find_weights(spec).files == (folder / "model.safetensors",)


@pytest.mark.parametrize(
    ("kind", "names", "files"),
    [
        ("meta", ("consolidated.01.pth", "consolidated.00.pth", "params.json"), 2),
        ("llama2c", ("stories110M.pt", "tokenizer.model"), 1),
        ("gguf", ("model-q4.gguf",), 1),
    ],
)
def test_other_formats(tmp_path: Path, kind: str, names: tuple[str, ...], files: int) -> None:
    spec = make_model(tmp_path, checkpoint={"format": kind}, tokenizer={"kind": "huggingface"})
    with pytest.raises(ConfigError, match="not on this computer"):
        find_weights(spec)
    fill(weights_root() / "tiny", *names)
    assert len(find_weights(spec).files) == files


def test_a_package_that_is_not_installed(tmp_path: Path) -> None:
    package = {"format": "gguf_package", "package": "no_such_package_here", "extra": "smollm2"}
    spec = make_model(tmp_path, checkpoint=package, tokenizer={"kind": "huggingface"})
    with pytest.raises(ConfigError, match="no_such_package_here, which is not installed") as caught:
        find_weights(spec)
    assert caught.value.remedy == "pip install 'htpfarm[smollm2]'"
