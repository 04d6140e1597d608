"""One object that says which toolchain this is, gives subprocesses their environment, and its fingerprint."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ConfigError
from harness.paths import REPOSITORY
from harness.toolchain.interposer import source_hash
from harness.toolchain.mends import stub_paths
from harness.toolchain.qnn import QnnLibraries, find_qnn

PINNED_EXECUTORCH = "1.5.1"


@dataclass(frozen=True)
class Toolchain:
    """ExecuTorch and the QNN libraries that a build or a run uses.

    Attributes:
        executorch: folder of the package.
        executorch_version: its version, with the git revision it states.
        qnn: the libraries.
        python_path: folders for `PYTHONPATH` (this repository, and the mends that apply).
        python: the interpreter that builds and, on virtual phones, runs.
    """

    executorch: Path
    executorch_version: str
    qnn: QnnLibraries
    python_path: tuple[Path, ...]
    python: Path = Path(sys.executable)

    def exports(self) -> dict[str, str]:
        """The variables that make ExecuTorch's own programs work with this toolchain; nothing else is needed."""
        return {
            "QNN_SDK_ROOT": str(self.qnn.root),
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, self.qnn.library_path)),
            "PYTHONPATH": os.pathsep.join(map(str, self.python_path)),
        }

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """`base` (default: this process's) with `exports()` in front; hub access off: nothing waits for a network."""
        result = dict(os.environ if base is None else base)
        for key, value in self.exports().items():
            inherited = result.get(key, "")
            parts = value.split(os.pathsep)
            parts += [part for part in inherited.split(os.pathsep) if part and part not in parts]
            result[key] = value if key == "QNN_SDK_ROOT" else os.pathsep.join(parts)
        result.setdefault("HF_HUB_OFFLINE", "1")
        result.setdefault("TOKENIZERS_PARALLELISM", "false")
        return result


@functools.cache
def find_toolchain() -> Toolchain:
    """The toolchain of this interpreter.

    ExecuTorch may be a wheel or a source checkout: whatever `import executorch` finds, or the folder of
    `$EXECUTORCH_ROOT` (a checkout whose Python package is built in place), which then goes first on the path.

    Raises:
        ConfigError: ExecuTorch or the QNN libraries are not there.
    """
    package, extra = _find_executorch()
    paths = (*extra, REPOSITORY, *stub_paths(package))
    return Toolchain(package, _executorch_version(package), find_qnn(), paths)


def _find_executorch() -> tuple[Path, tuple[Path, ...]]:
    if checkout := os.environ.get("EXECUTORCH_ROOT"):
        root = Path(checkout)
        # A checkout that lies in a folder named executorch is imported through that folder's parent.
        for parent in (root / "src", root.parent):
            if (parent / "executorch" / "exir").is_dir():
                return parent / "executorch", (parent,)
        raise ConfigError(
            f"EXECUTORCH_ROOT={checkout} is no ExecuTorch checkout (no executorch/exir in it)",
            where="environment variable EXECUTORCH_ROOT",
            remedy="point it at the checkout, or unset it to use the installed package",
        )
    spec = importlib.util.find_spec("executorch")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "ExecuTorch is not installed",
            where="toolchain",
            remedy=f"pip install executorch=={PINNED_EXECUTORCH} (Linux x86-64 has the Qualcomm backend in its wheel)",
        )
    return Path(next(iter(spec.submodule_search_locations))), ()


def _executorch_version(package: Path) -> str:
    """Version and revision as the package's own version.py states them; read, not imported."""
    found: dict[str, str] = {}
    version_file = package / "version.py"
    if version_file.is_file():
        for line in version_file.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition("=")
            found[key.split(":")[0].strip()] = value.strip().strip("'\"")
    version = found.get("__version__") or _installed("executorch")
    revision = found.get("git_version", "")[:12]
    return f"{version} ({revision})" if revision and revision != "None" else version


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def build_id(toolchain: Toolchain, timeout_s: float = 600) -> str:
    """QNN's build id ("v2.48.40.…"), asked of the library through ExecuTorch's adaptor in a process of its own.

    Raises:
        ConfigError: the library does not load.
    """
    code = (
        "import torch; from executorch.backends.qualcomm.utils.check_qnn_version import get_sdk_build_id;"
        "print(get_sdk_build_id())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=toolchain.environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise ConfigError(
            "the QNN libraries do not load",
            where=str(toolchain.qnn.root),
            remedy="run `htpfarm doctor`; the libraries need x86-64 Linux and a build of one of the known versions",
            evidence=(done.stderr or done.stdout)[-2000:],
        )
    return lines[-1]


def fingerprint(toolchain: Toolchain) -> dict[str, str]:
    """Everything of the toolchain that could change an artifact: versions and hashes. Keys are stable names."""
    backend = toolchain.executorch / "lib" / "libexecutorch_backend_qnn.so"
    adaptor = sorted((toolchain.executorch / "backends" / "qualcomm" / "python").glob("PyQnnManagerAdaptor*"))
    result = {
        "executorch": toolchain.executorch_version,
        "executorch_qualcomm": _python_hash(toolchain.executorch),
        "torch": _installed("torch"),
        "torchao": _installed("torchao"),
        "qnn": toolchain.qnn.source,
        "qnn_htp_sha256": _file_hash(toolchain.qnn.real_htp),
        "interposer_sha256": source_hash() if toolchain.qnn.interposed else "none",
    }
    for library in (backend, *adaptor):
        if library.is_file():
            result[f"{library.name.split('.')[0]}_sha256"] = _file_hash(library)
    return result


def _python_hash(package: Path) -> str:
    """Hash of the Python that compiles: the Qualcomm backend and its Llama scripts (a checkout may be edited)."""
    digest = hashlib.sha256()
    for folder in ("backends/qualcomm", "examples/qualcomm/oss_scripts/llama"):
        for source in sorted((package / folder).rglob("*.py")):
            digest.update(str(source.relative_to(package)).encode())
            digest.update(source.read_bytes())
    return digest.hexdigest()


def _file_hash(path: Path) -> str:
    """SHA-256 of a library, remembered by size and time of change: hashing 100 MB takes a moment."""
    stat = path.stat()
    return _hash_once(str(path), stat.st_size, stat.st_mtime_ns)


@functools.cache
def _hash_once(path: str, _size: int, _mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint_id(toolchain: Toolchain) -> str:
    """The fingerprint as one short hash."""
    return hashlib.sha256(json.dumps(fingerprint(toolchain), sort_keys=True).encode()).hexdigest()[:16]
