"""Artifacts of the tiny model, made once by the real compiler and kept in the user's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.build.builder import Builder, Request
from harness.build.cache import Artifact, locate
from harness.matrix import cells
from harness.model_file import Mode
from harness.models import load_models
from harness.paths import MODELS
from harness.soc import find_soc
from harness.target import Target
from harness.toolchain.environment import find_toolchain, fingerprint


@pytest.fixture(scope="session")
def tiny_artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The tiny model's kv and hybrid artifacts for SM8650, by mode."""
    toolchain = find_toolchain()
    known = fingerprint(toolchain)
    model = load_models(MODELS)["tiny_llama"]
    requests = [
        Request(cell, Target.SIM, locate(model, cell.mode, cell.soc, Target.SIM, cell.lengths, known))
        for cell in cells([model], [Mode.KV, Mode.HYBRID], [find_soc("SM8650")])
    ]
    for result in Builder(toolchain, tmp_path_factory.mktemp("builds")).build(requests):
        assert result.error is None, result.error
    return {str(request.cell.mode): request.artifact for request in requests}


@pytest.fixture(scope="session")
def runtime_artifacts(tiny_artifacts: dict[str, Artifact]) -> dict[str, Path]:
    """`hybrid` and `kv` .pte, their `qdq` module and the `tokenizer`."""
    reference = tiny_artifacts["hybrid"].reference
    return {
        "hybrid": tiny_artifacts["hybrid"].pte,
        "kv": tiny_artifacts["kv"].pte,
        "qdq": reference / "decode_qdq.pt2",
        "tokenizer": reference / "tokenizer.model",
    }
