"""The toolchain of another Python environment: it is asked of that environment's own interpreter.

    python -m harness.toolchain.describe

prints it as JSON. `$EXECUTORCH_ROOT` is not passed on, nor is `$QNN_SDK_ROOT` where the environment has QNN libraries
of its own: they would make two environments the same.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness.errors import ConfigError, HarnessError
from harness.paths import REPOSITORY
from harness.toolchain.environment import Toolchain, find_toolchain, fingerprint
from harness.toolchain.qnn import QnnLibraries

_TIMEOUT_S = 300.0
_KEEP_SDK = "--keep-sdk"
# What a build worker needs beside ExecuTorch; asked for by name, so that the answer names what is missing.
_NEEDED = ("torch", "torchao", "pydantic", "yaml", "numpy", "safetensors", "sentencepiece", "transformers", "filelock")


def interpreter(prefix: Path) -> Path:
    """The Python of an environment, by its prefix.

    Raises:
        ConfigError: there is none.
    """
    python = prefix / "bin" / "python"
    if not os.access(python, os.X_OK):
        raise ConfigError(
            f"{prefix} is neither a Python environment (no bin/python) nor a folder of .pte files",
            where="--ab",
            remedy="give the folder of a virtual environment with ExecuTorch in it, or one that "
            "`htpfarm compile --out DIR` wrote",
        )
    return python.absolute()  # not resolved: a venv's python is a link whose place says which environment it is


def toolchain_at(prefix: Path, sdk: Path | None = None) -> tuple[Toolchain, dict[str, str]]:
    """The toolchain of the environment at `prefix`, and its fingerprint.

    Args:
        prefix: of the environment.
        sdk: the QNN SDK it takes its libraries from, whatever it has of its own; None: its own, else `$QNN_SDK_ROOT`.

    Raises:
        ConfigError: no environment, or one without ExecuTorch, the QNN libraries or what a build needs.
    """
    python = interpreter(prefix)
    environment = {key: value for key, value in os.environ.items() if key not in ("EXECUTORCH_ROOT", "PYTHONHOME")}
    environment["PYTHONPATH"] = str(REPOSITORY)
    if sdk is not None:
        environment["QNN_SDK_ROOT"] = str(sdk)
    try:
        done = subprocess.run(
            [python, "-m", "harness.toolchain.describe", *([_KEEP_SDK] if sdk is not None else [])],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            cwd=REPOSITORY,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError("the environment's Python does not run", where=str(python), evidence=str(error)) from error
    lines = done.stdout.strip().splitlines()
    try:
        said: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    except ValueError:
        said = {}
    if "problem" in said or "toolchain" not in said:
        raise ConfigError(
            said.get("problem", "the environment does not say what toolchain it has"),
            where=str(prefix),
            remedy=said.get("remedy", "install htpfarm's dependencies and ExecuTorch into it"),
            evidence=done.stderr[-2000:] if "problem" not in said else "",
        )
    return _from_json(said["toolchain"]), dict(said["fingerprint"])


def _from_json(data: dict[str, Any]) -> Toolchain:
    qnn = data["qnn"]
    libraries = QnnLibraries(
        Path(qnn["root"]),
        tuple(Path(place) for place in qnn["library_path"]),
        qnn["source"],
        qnn["interposed"],
        Path(qnn["real_htp"]),
    )
    return Toolchain(
        Path(data["executorch"]),
        data["executorch_version"],
        libraries,
        tuple(Path(place) for place in data["python_path"]),
        Path(data["python"]),
    )


def main() -> int:
    """Prints the toolchain of this interpreter, or what keeps it from having one."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            json.dumps(
                {
                    "problem": f"the environment lacks {', '.join(missing)}",
                    "remedy": f"{sys.prefix}/bin/python -m pip install htpfarm's dependencies",
                }
            )
        )
        return 2
    if _KEEP_SDK not in sys.argv and importlib.util.find_spec("onnxruntime_qnn") is not None:
        os.environ.pop("QNN_SDK_ROOT", None)
    said: dict[str, Any]
    try:
        toolchain = find_toolchain()
        said = {"toolchain": dataclasses.asdict(toolchain), "fingerprint": fingerprint(toolchain)}
    except HarnessError as error:
        said = {"problem": error.what, "remedy": error.remedy}
    print(json.dumps(said, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
