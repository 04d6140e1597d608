"""What a gate advises for older HTPs, followed to the letter: it compiles for them, whole, and runs on them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from events import HANG_S

from harness.build.builder import Builder, Request
from harness.build.cache import locate
from harness.gates import OLDER_HTP, judge
from harness.matrix import cells
from harness.model_file import Mode
from harness.models import ModelSpec, load_models
from harness.paths import MODELS
from harness.runtime.program import read_info
from harness.soc import find_soc
from harness.target import Target
from harness.toolchain.environment import find_toolchain, fingerprint

SOCS = ("SM8350", "SM8450")
STEP = """
import json, sys
from pathlib import Path
from harness.runtime.engine import Engine
from harness.runtime.program import read_info
from harness.runtime.session import Session
session = Session(Engine(read_info(Path(sys.argv[1]))))
session.feed([1, 5, 9])
print("LOGITS " + json.dumps(session.step(33).tolist()))
"""


def model_with(folder: Path, recipe: dict[str, object] | str) -> ModelSpec:
    """The tiny model with a recipe."""
    shutil.copytree(MODELS / "tiny_llama", folder / "tiny_llama")
    path = folder / "tiny_llama" / "model.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(content | {"recipe": recipe}, sort_keys=False), encoding="utf-8")
    return load_models(folder)["tiny_llama"]


@pytest.mark.slow
def test_the_advised_recipe_compiles_and_runs_for_htps_before_v73(tmp_path: Path) -> None:
    socs = [find_soc(name) for name in SOCS]
    asking = model_with(tmp_path / "asking", {"name": "wide", "weights": "16a4w", "kv_bits": 16})
    advised = OLDER_HTP[0]
    for cell in cells([asking], [Mode.KV], socs):
        verdict = judge(cell, Target.ANDROID)
        assert (verdict.run, verdict.gate) == (False, "kv16")
        assert re.search(rf"recipe: {advised}\b", verdict.remedy)

    model = model_with(tmp_path / "advised", advised)
    toolchain = find_toolchain()
    known = fingerprint(toolchain)
    requests = [
        Request(cell, Target.SIM, locate(model, cell.mode, cell.soc, Target.SIM, cell.lengths, known))
        for cell in cells([model], [Mode.KV], socs)
    ]
    assert all(judge(request.cell, target).run for request in requests for target in Target)
    for result in Builder(toolchain, tmp_path / "logs").build(requests):
        assert result.error is None, result.error
    for request in requests:
        artifact = request.artifact
        info = read_info(artifact.pte)
        assert info.delegate is not None
        assert (info.delegate.soc, info.delegate.htp_arch) == (request.cell.soc.name, request.cell.soc.arch)
        assert {cache.dtype for graph in info.graphs.values() for cache in (*graph.k_in, *graph.v_in)} == {"uint8"}
        # The partitioner says of each node whether the HTP takes it.
        log = (artifact.folder / "build.log").read_text(encoding="utf-8", errors="replace")
        taken = re.findall(r"\[QnnPartitioner\] (\S+) \| (True|False)", log)
        assert len(taken) > 100
        assert [name for name, yes in taken if yes == "False"] == []
        done = subprocess.run(
            [sys.executable, "-c", STEP, str(artifact.pte)],
            env=toolchain.environment(),
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("LOGITS ")]
        assert lines, done.stderr[-2000:]
        assert len(set(json.loads(lines[0].removeprefix("LOGITS ")))) > 100
