"""What this machine has of what htpfarm needs: one line a part, good or bad, with its version and the remedy."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from harness.adb_program import adb_path
from harness.errors import HarnessError
from harness.paths import cache_root
from harness.toolchain.environment import PINNED_EXECUTORCH, build_id, find_toolchain
from harness.toolchain.interposer import find_compiler
from harness.toolchain.mends import stub_paths
from harness.toolchain.qnn import PACKAGE, PINNED

DISK_GB = 5
MEMORY_GB = 4

LICENCE_NOTE = (
    f"The QNN libraries come with PyPI's {PACKAGE} under Qualcomm's own licence (Qualcomm_LICENSE.pdf in the package), "
    "not under this project's; it forbids taking them apart."
)


@dataclass(frozen=True)
class Finding:
    """One part of the machine: whether it is good, what it is, and what to do if it is not."""

    part: str
    good: bool
    version: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Every part, in the order a repair would go."""
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("Python", _python),
        ("torch", lambda: _package("torch", "pip install torch==2.13.0 (a CPU build is enough)")),
        ("ExecuTorch", _executorch),
        ("C compiler", _compiler),
        ("QNN libraries", _libraries),
        ("QNN build id", _build_id),
        ("interposer", _interposer),
        ("mends", _mends),
        ("adb", _adb),
        ("namespaces", _namespaces),
        ("rack", _rack),
        ("disk", _disk),
        ("memory", _memory),
    ]
    findings = []
    for part, check in checks:
        try:
            findings.append(check())
        except HarnessError as error:
            findings.append(Finding(part, False, error.what, error.remedy))
    return findings


def _python() -> Finding:
    good = sys.version_info[:2] >= (3, 11) and platform.machine() == "x86_64" and sys.platform == "linux"
    text = f"{platform.python_version()}, {sys.platform} {platform.machine()}"
    return Finding("Python", good, text, "" if good else "Python 3.11 or later on Linux x86-64")


def _package(name: str, remedy: str) -> Finding:
    import importlib.metadata

    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", remedy)


def _executorch() -> Finding:
    toolchain = find_toolchain()
    pinned = toolchain.executorch_version.startswith(PINNED_EXECUTORCH)
    note = "" if pinned else f"tested with {PINNED_EXECUTORCH}; another version may need other mends"
    return Finding("ExecuTorch", True, f"{toolchain.executorch_version} at {toolchain.executorch}", note)


def _compiler() -> Finding:
    compiler = find_compiler()
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=30, check=False)
    first = (done.stdout or done.stderr).splitlines()
    good = done.returncode == 0
    return Finding("C compiler", good, first[0] if first else compiler, "" if good else "reinstall it")


def _libraries() -> Finding:
    qnn = find_toolchain().qnn
    pinned = PINNED in qnn.source or qnn.source == "QNN_SDK_ROOT"
    note = "" if pinned else f"{PINNED} is the version known good: later ones refuse some hybrid models"
    return Finding("QNN libraries", True, f"{qnn.source} at {qnn.root}", note)


def _build_id() -> Finding:
    return Finding("QNN build id", True, build_id(find_toolchain()))


def _interposer() -> Finding:
    qnn = find_toolchain().qnn
    if not qnn.interposed:
        return Finding("interposer", True, "not needed: the SDK of QNN_SDK_ROOT is used as it is")
    return Finding("interposer", True, f"built, in front of {qnn.real_htp}")


def _mends() -> Finding:
    toolchain = find_toolchain()
    applied = [path.name for path in stub_paths(toolchain.executorch)]
    return Finding("mends", True, "torchtune stub, params.json from YAML" if applied else "params.json from YAML")


def _adb() -> Finding:
    path = adb_path()
    done = subprocess.run([path, "version"], capture_output=True, text=True, timeout=30, check=False)
    lines = done.stdout.splitlines()
    good = done.returncode == 0 and len(lines) > 1
    text = f"{lines[0].rsplit(' ', 1)[-1]} ({lines[1].removeprefix('Version ')}) at {path}" if good else path
    return Finding("adb", good, text, "" if good else "pip install --force-reinstall adbutils")


def _namespaces() -> Finding:
    from harness.rack.namespace import namespace_support

    ok, why = namespace_support()
    if ok:
        return Finding("namespaces", True, "virtual phones get a file system of their own")
    return Finding("namespaces", True, f"forbidden ({why}): virtual phones use the plain fallback, paths are rewritten")


def _rack() -> Finding:
    from harness.rack.manage import status

    state = status()
    if state is None:
        return Finding("rack", True, "down (starts by itself, or: htpfarm rack up)")
    phones = ", ".join(phone.name for phone in state.phones)
    return Finding("rack", True, f"up, adb server on port {state.adb_port}: {phones}")


def _disk() -> Finding:
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free / (1 << 30)
    good = free >= DISK_GB and os.access(root, os.W_OK)
    return Finding(
        "disk",
        good,
        f"{free:.0f} GB free at {root}",
        "" if good else f"{DISK_GB} GB are needed: free some, or set HTPFARM_CACHE to a larger disk",
    )


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    total, free = memory.total / (1 << 30), memory.available / (1 << 30)
    good = free >= MEMORY_GB
    text = f"{free:.0f} of {total:.0f} GB available, {os.cpu_count()} cores"
    return Finding("memory", good, text, "" if good else f"{MEMORY_GB} GB are needed for the tiny model: end something")
