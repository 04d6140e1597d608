"""A Llama of any shape with random weights, and the tiny model's tokenizer and texts: for benchmarks of compiling."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from harness.build.families import expected_shapes
from harness.models import ModelSpec, load_model
from harness.paths import MODELS


def make_model(folder: Path, title: str, params: Mapping[str, Any], modes: Sequence[str], **more: Any) -> ModelSpec:
    """Writes the model's folder: weights from a fixed seed, norms of one.

    Args:
        folder: does not exist; its name is the model's.
        title: for people.
        params: the architecture; the vocabulary is at least the tiny model's 1,024.
        modes: it lists.
        more: further keys of its file, and others in place of those given here.
    """
    folder.mkdir(parents=True)
    tiny = MODELS / "tiny_llama"
    for name in ("tokenizer.model", "heldout.txt", "calibration.txt"):
        shutil.copy(tiny / name, folder / name)
    file = {
        "name": folder.name,
        "title": title,
        "decoder": "smollm2_135m",
        "license": "made here",
        "params": dict(params),
        "checkpoint": {"format": "meta", "path": "model.safetensors"},
        "tokenizer": {"kind": "sentencepiece", "path": "tokenizer.model"},
        "instruct": False,
        "needs": {"kv_bits": 16},
        "modes": list(modes),
        "lengths": {"max_seq_len": 128, "prefill_ar_len": 32},
        "eval": {"text": "heldout.txt", "tokens": 64},
        "calibration": {"text": "calibration.txt", "samples": 1},
        "prompts": ["In the beginning"],
        "max_new_tokens": 16,
    } | more
    (folder / "model.yaml").write_text(yaml.safe_dump(file), encoding="utf-8")
    (folder / "model.safetensors").touch()
    spec = load_model(folder / "model.yaml")
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.02
        for name, shape in expected_shapes(spec.params).items()
        if name != "output.weight"  # tied
    }
    save_file(state, folder / "model.safetensors")
    return spec
