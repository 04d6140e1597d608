"""A regression between two versions of the QNN libraries, as the harness shows it: the same cells, compiled by both.

    python benchmarks/qnn_regression.py [VERSION ...]        (2.4.0 and 2.7.0)

The model has SmolLM2-135M's shape (9 heads, 3 KV heads, dim 576, 16-bit KV cache) in two layers with random weights and
the tiny model's vocabulary. Each version is installed into a folder of its own that is gone afterwards (about 240 MB).
Exit status 1 if a version fails where the first one passes.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from random_model import make_model

from harness.build.builder import Builder, Request
from harness.build.cache import locate
from harness.matrix import cells
from harness.model_file import Mode
from harness.models import ModelSpec
from harness.soc import find_soc
from harness.target import Target
from harness.toolchain.environment import find_toolchain, fingerprint
from harness.toolchain.qnn import PACKAGE, lay_out

VERSIONS = ("2.4.0", "2.7.0")
PARAMS = {
    "dim": 576,
    "n_layers": 2,
    "n_heads": 9,
    "n_kv_heads": 3,
    "vocab_size": 1024,
    "hidden_dim": 1536,
    "norm_eps": 1.0e-5,
    "rope_theta": 100000.0,
}


def compile_with(version: str, spec: ModelSpec, scratch: Path) -> dict[str, str]:
    """Mode → `compiles`, or the line of the compiler's log that says why not."""
    packages = scratch / version
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", packages, f"{PACKAGE}=={version}"],
        check=True,
        timeout=900,
        capture_output=True,
    )
    toolchain = dataclasses.replace(find_toolchain(), qnn=lay_out(packages / "onnxruntime_qnn", version))
    known = fingerprint(toolchain)
    requests = [
        Request(cell, Target.SIM, locate(spec, cell.mode, cell.soc, Target.SIM, cell.lengths, known))
        for cell in cells([spec], [Mode.KV, Mode.HYBRID], [find_soc("SM8650")])
    ]
    found = {}
    for result in Builder(toolchain, scratch / "logs").build(requests):
        found[str(result.request.cell.mode)] = "compiles" if result.error is None else _reason(result.error.remedy)
    return found


def _reason(remedy: str) -> str:
    """The first error of the log that the build's remedy names."""
    log = Path(remedy.removeprefix("read "))
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else [remedy]
    errors = [line.strip() for line in lines if "could not create op" in line or "graph prepare failed" in line]
    return f"FAILS: {(errors or lines[-1:])[0][-160:]}"


def main() -> int:
    """Prints a row a version and mode."""
    results: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="htpfarm-regression-") as name:
        scratch = Path(name)
        os.environ["HTPFARM_CACHE"] = str(scratch / "cache")
        folder = scratch / "two_layers"
        spec = make_model(folder, "SmolLM2's shape in two layers", PARAMS, ["kv", "hybrid"])
        for version in sys.argv[1:] or VERSIONS:
            results[version] = compile_with(version, spec, scratch)
            for mode, what in sorted(results[version].items()):
                print(f"{version:<8}{spec.name}-{mode}-SM8650  {what}", flush=True)
    first, *others = results.values()
    worse = [
        mode for other in others for mode, what in other.items() if what != "compiles" and first[mode] == "compiles"
    ]
    print(f"regressed: {', '.join(sorted(worse)) or 'none'}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
