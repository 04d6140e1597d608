"""Model folders for tests: a complete model file with the files it points at, and ways to spoil it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from harness.models import ModelSpec, load_model

TINY: dict[str, Any] = {
    "name": "tiny",
    "title": "Tiny llama",
    "decoder": "stories260k",
    "license": "Apache-2.0",
    "params": {
        "dim": 64,
        "n_layers": 5,
        "n_heads": 8,
        "n_kv_heads": 4,
        "vocab_size": 512,
        "norm_eps": 1e-5,
        "multiple_of": 4,
    },
    "checkpoint": {"format": "meta", "path": "tiny.pt"},
    "tokenizer": {"path": "tok.model", "kind": "sentencepiece"},
    "instruct": False,
    "modes": ["kv", "hybrid"],
    "eval": {"text": "held_out.txt", "tokens": 500},
    "calibration": {"text": "calibration.txt", "samples": 4},
    "prompts": ["Once upon a time"],
    "max_new_tokens": 32,
}


def write_model(folder: Path, name: str = "tiny", **changes: Any) -> Path:
    """Write `<name>.yaml` and what it points at; changes replace top-level keys, None removes one."""
    content = copy.deepcopy(TINY) | {"name": name} | changes
    content = {key: value for key, value in content.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("tiny.pt", "tok.model", "held_out.txt", "calibration.txt"):
        (folder / file).touch()
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def make_model(folder: Path, name: str = "tiny", **changes: Any) -> ModelSpec:
    """`write_model`, then load it."""
    return load_model(write_model(folder, name, **changes))


def line_of(path: Path, text: str) -> int:
    """The number (from 1) of the only line that holds `text`."""
    found = [number for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if text in line]
    assert len(found) == 1, f"{text!r} stands in lines {found}"
    return found[0]
