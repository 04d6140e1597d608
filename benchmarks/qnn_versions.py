"""Does every known version of onnxruntime-qnn start through the interposer? One row a version.

    python benchmarks/qnn_versions.py [VERSION ...]

Each version is installed into a folder of its own that is gone afterwards (about 240 MB each), laid out as htpfarm
lays out the pinned one, and asked by ExecuTorch's own Python for its build id and for an HTP device for SM8650. It
also says whether the library accepted the device configuration as given, or only after the mend: a refused first call
logs three <E> lines. The last column is gate softcap16's (`harness.build.probe`): whether capped logits of 16 rows come
out right.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

from harness.build.probe.run import probe
from harness.toolchain.environment import find_toolchain
from harness.toolchain.qnn import PACKAGE, lay_out

VERSIONS = ("2.3.0", "2.4.0", "2.5.0", "2.6.0", "2.7.0")
START = """
import torch
from executorch.backends.qualcomm.utils.check_qnn_version import get_sdk_build_id
from executorch.backends.qualcomm.utils.qnn_manager_lifecycle import QnnManagerContext
from executorch.backends.qualcomm.utils.utils import (
    generate_htp_compiler_spec, generate_qnn_executorch_compiler_spec, get_soc_to_chipset_map)
print("BUILD", get_sdk_build_id())
spec = generate_qnn_executorch_compiler_spec(
    soc_model=get_soc_to_chipset_map()["SM8650"], backend_options=generate_htp_compiler_spec(use_fp16=False))
with QnnManagerContext({"forward": spec}):
    print("STARTED")
"""


def try_version(version: str) -> tuple[str, str, str, str]:
    """Build id, whether a device was made, how the first configuration was received, and what capped logits came to."""
    with tempfile.TemporaryDirectory(prefix="htpfarm-qnn-") as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, f"{PACKAGE}=={version}"],
            check=True,
            timeout=900,
            capture_output=True,
        )
        toolchain = dataclasses.replace(find_toolchain(), qnn=lay_out(Path(folder) / "onnxruntime_qnn", version))
        done = subprocess.run(
            [sys.executable, "-c", START],
            env=toolchain.environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        (capped,) = probe(toolchain, ("softcap16",), ("SM8650",))
    lines = done.stdout.splitlines()
    build = next((line.split()[1] for line in lines if line.startswith("BUILD ")), "?")
    refused = "unknown custom config socModel 0" in done.stdout + done.stderr
    return build, "yes" if "STARTED" in lines else "NO", "after the mend" if refused else "as given", capped.answer


def main() -> int:
    """Prints the table; 1 if a version does not start."""
    print(f"{'version':<9}{'build id':<26}{'starts':<8}{'configuration':<16}16 rows")
    bad = 0
    for version in sys.argv[1:] or VERSIONS:
        build, starts, how, capped = try_version(version)
        bad += starts != "yes"
        print(f"{version:<9}{build:<26}{starts:<8}{how:<16}{capped}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
