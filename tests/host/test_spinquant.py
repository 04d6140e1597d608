"""SpinQuant's rotations leave the float model as it is, through upstream's own static Llama."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.toolchain.environment import find_toolchain


@pytest.mark.slow
def test_r1_and_r2_leave_the_float_logits_as_they_are(tmp_path: Path) -> None:
    environment = find_toolchain().environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), environment["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "spinquant_logits", json.dumps([[None, {"r1": True, "r2": True}]])],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (moved,) = [
        json.loads(line.removeprefix("MOVED ")) for line in done.stdout.splitlines() if line.startswith("MOVED")
    ]
    assert moved["logits"] < 1e-4  # seen: 8e-7 of the logits' range
    assert moved["by_mistake"] > 0.1
