"""Artifacts of the tiny model, made once by the real compiler and kept in the user's cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.build.builder import Builder, Request
from harness.build.cache import Artifact, locate
from harness.build.reference import FILE, Reference
from harness.matrix import cells
from harness.model_file import Lengths, Mode
from harness.models import load_models
from harness.paths import MODELS
from harness.soc import find_soc
from harness.target import Target
from harness.text.heldout import held_out
from harness.text.tokenizer import load_tokenizer
from harness.toolchain.environment import find_toolchain, fingerprint


@pytest.fixture(scope="session")
def tiny_artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The tiny model's artifacts for SM8650, by mode."""
    return _build(list(Mode), None, tmp_path_factory.mktemp("builds"))


@pytest.fixture(scope="session")
def other_lookahead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lookahead .pte with other settings than the model's own: steps of 32 tokens instead of 16."""
    lengths = replace(load_models(MODELS)["tiny_llama"].lengths, ngram=4, window=6, gcap=4)
    return _build([Mode.LOOKAHEAD], lengths, tmp_path_factory.mktemp("builds"))["lookahead"].pte


def _build(modes: list[Mode], lengths: Lengths | None, logs: Path) -> dict[str, Artifact]:
    toolchain = find_toolchain()
    known = fingerprint(toolchain)
    model = load_models(MODELS)["tiny_llama"]
    requests = [
        Request(cell, Target.SIM, locate(model, cell.mode, cell.soc, Target.SIM, cell.lengths, known))
        for cell in cells([model], modes, [find_soc("SM8650")], lengths)
    ]
    for result in Builder(toolchain, logs).build(requests):
        assert result.error is None, result.error
    return {str(request.cell.mode): request.artifact for request in requests}


@pytest.fixture(scope="session")
def runtime_artifacts(tiny_artifacts: dict[str, Artifact]) -> dict[str, Path]:
    """`hybrid`, `kv` and `lookahead` .pte, their `fp` and `qdq` modules and the `tokenizer`."""
    reference = tiny_artifacts["hybrid"].reference
    return {
        "hybrid": tiny_artifacts["hybrid"].pte,
        "kv": tiny_artifacts["kv"].pte,
        "lookahead": tiny_artifacts["lookahead"].pte,
        "fp": reference / "decode_fp.pt2",
        "qdq": reference / "decode_qdq.pt2",
        "tokenizer": reference / "tokenizer.model",
    }


@pytest.fixture
def scripted_artifact(tmp_path: Path) -> Artifact:
    """An artifact for a scripted runner: the tiny model's tokenizer and a text, and a program of one word."""
    folder = tmp_path / "reference"
    folder.mkdir()
    source = MODELS / "tiny_llama" / "tokenizer.model"
    (folder / "tokenizer.model").write_bytes(source.read_bytes())
    text = held_out(load_tokenizer(source), "In the beginning", 4, 128)
    made = Reference(128, text, (-1.0,) * text.tokens, (-1.0,) * text.tokens, "tokenizer.model", 1.0)
    (folder / FILE).write_text(made.to_json())
    (tmp_path / "model.pte").write_text("program")
    return Artifact("given", tmp_path / "model.pte", folder, {})
