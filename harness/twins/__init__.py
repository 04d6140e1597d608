"""Twins: a row's architecture at toy size with seeded random weights, where the real weights cannot be had.

A twin of `qwen3_0_6b` is the model `qwen3_0_6b_twin`: a Hugging Face folder that transformers makes from its own config
class, with a small tokenizer of the same kind, and a model file beside it. It lives in the user's cache, made once,
when it is first asked for, in a process of its own: this module imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from harness.build.families import family_of, weight_count
from harness.errors import BuildError, ConfigError
from harness.models import ModelSpec, load_model
from harness.paths import REPOSITORY, cache_root
from harness.twins.toy import toy

ALL = "all-twins"
ONE_A_FAMILY = "family-twins"
"""The twin of one row of each architecture family: its first by name."""
SUFFIX = "_twin"
# What changes a twin's files.
_SOURCES = ("config.py", "make.py", "tokenizer.py", "toy.py", "../build/families.py")
_TIMEOUT_S = 900
_SMALL = 10_000_000


def has_twin(row: ModelSpec) -> bool:
    """Whether a model is large enough to need a stand-in."""
    return weight_count(row.params) > _SMALL


def select_twins(models: Mapping[str, ModelSpec], names: Sequence[str]) -> tuple[tuple[ModelSpec, ...], list[str]]:
    """The twins that names ask for, and the names that ask for none.

    Raises:
        ConfigError: the twin of a model that has none.
        BuildError: a twin cannot be made.
    """
    rows: dict[str, ModelSpec] = {}
    others = []
    for name in names:
        row = models.get(name.removesuffix(SUFFIX)) if name.endswith(SUFFIX) else None
        if name == ALL:
            rows.update((row.name, row) for row in models.values() if has_twin(row))
        elif name == ONE_A_FAMILY:
            firsts = {family_of(models[key].decoder).name: key for key in sorted(models, reverse=True)}
            rows.update((key, models[key]) for key in firsts.values() if has_twin(models[key]))
        elif row is None:
            others.append(name)
        elif has_twin(row):
            rows[row.name] = row
        else:
            raise ConfigError(f"{row.name} is small enough to have no twin", remedy=f"use {row.name} itself")
    return twins([rows[name] for name in sorted(rows)]), others


def twins(rows: Sequence[ModelSpec]) -> tuple[ModelSpec, ...]:
    """The twins of models, in their order; those that are not in the cache are made.

    Raises:
        BuildError: one cannot be made.
    """
    files = {row.name: twin_file(row) for row in rows}
    missing = [row for row in rows if not files[row.name].is_file()]
    if missing:
        lock = cache_root() / "locks" / "twins.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=_TIMEOUT_S):
            _make([row for row in missing if not files[row.name].is_file()])
    return tuple(load_model(files[row.name]) for row in rows)


def twin_file(row: ModelSpec) -> Path:
    """Where the model file of a twin is, or will be: its folder's name has the hash of all that makes it."""
    texts = [row.eval.text, *([row.calibration.text] if row.calibration else [])]
    small = toy(row)
    parts = {
        "params": small.params.model_args(),
        "lengths": asdict(small.lengths),
        "row": [row.name, row.decoder, row.title, row.instruct, row.system_prompt, row.tokenizer.kind],
        "recipe": row.recipe.model_dump(mode="json"),
        "needs": row.needs.model_dump(),
        "rest": [list(map(str, row.modes)), row.shards, list(row.prompts), row.max_new_tokens],
        "bounds": row.bounds.model_dump(),
        "texts": [_hash(path.read_bytes()) for path in texts],
        "sources": [_hash((Path(__file__).parent / name).read_bytes()) for name in _SOURCES],
        "versions": [version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")],
    }
    key = _hash(json.dumps(parts, sort_keys=True).encode())
    return cache_root() / "twins" / f"{row.name}{SUFFIX}-{key[:16]}" / f"{row.name}{SUFFIX}.yaml"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _make(rows: Sequence[ModelSpec]) -> None:
    if not rows:
        return
    arguments = [word for row in rows for word in (str(row.file), str(twin_file(row).parent))]
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "harness.twins.make", *arguments],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(
            "a twin cannot be made",
            where=", ".join(row.name for row in rows),
            evidence="\n".join((done.stderr or done.stdout).splitlines()[-15:]),
        )
