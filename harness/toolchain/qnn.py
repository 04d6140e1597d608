"""QNN libraries: those of `$QNN_SDK_ROOT`, else those that PyPI's `onnxruntime-qnn` installs, laid out as an SDK.

Qualcomm's licence governs these libraries: the user installs them, they are never copied into the repository
(the SDK view below links to them) and never taken apart.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from harness.errors import ConfigError
from harness.paths import cache_root
from harness.toolchain.interposer import build_interposer, source_hash

PACKAGE = "onnxruntime-qnn"
PINNED = "2.4.0"
HOST_LIBRARIES = "lib/x86_64-linux-clang"
# libQnnHtp.so is ours; the provider is ONNX Runtime's own and of no use here.
NOT_LINKED = frozenset({"libQnnHtp.so", "libonnxruntime_providers_qnn.so"})


@dataclass(frozen=True)
class QnnLibraries:
    """Where the QNN libraries are.

    Attributes:
        root: what `QNN_SDK_ROOT` is set to.
        library_path: the folders for `LD_LIBRARY_PATH`, in order.
        source: `QNN_SDK_ROOT`, or the PyPI package and its version.
        interposed: whether `libQnnHtp.so` under `root` is ours.
        real_htp: Qualcomm's own `libQnnHtp.so`.
    """

    root: Path
    library_path: tuple[Path, ...]
    source: str
    interposed: bool
    real_htp: Path


def find_qnn() -> QnnLibraries:
    """The QNN libraries to use; lays out the SDK view and builds the interposer when they are not there yet.

    Raises:
        ConfigError: neither an SDK nor the package is installed, or it lacks the HTP library.
    """
    if explicit := os.environ.get("QNN_SDK_ROOT"):
        return _given_sdk(Path(explicit))
    spec = importlib.util.find_spec("onnxruntime_qnn")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "no QNN libraries: QNN_SDK_ROOT is not set and the package onnxruntime-qnn is not installed",
            where="toolchain",
            remedy=f"pip install {PACKAGE}=={PINNED} (Linux x86-64), or set QNN_SDK_ROOT to a QAIRT SDK",
        )
    package = Path(next(iter(spec.submodule_search_locations)))
    return lay_out(package, importlib.metadata.version(PACKAGE))


def _given_sdk(root: Path) -> QnnLibraries:
    library = root / HOST_LIBRARIES / "libQnnHtp.so"
    if not library.is_file():
        raise ConfigError(
            f"QNN_SDK_ROOT={root} has no {HOST_LIBRARIES}/libQnnHtp.so",
            where="environment variable QNN_SDK_ROOT",
            remedy=f"point it at a QAIRT SDK, or unset it to use the PyPI package {PACKAGE}=={PINNED}",
        )
    # An SDK view of ours that a parent process exported: the libc++ folder rides along with it.
    libcxx = root / "libcxx"
    extra = (libcxx,) if libcxx.is_dir() else ()
    real = root / "real" / "libQnnHtp.so"
    if not real.exists():
        return QnnLibraries(root, (library.parent, *extra), "QNN_SDK_ROOT", False, library)
    return QnnLibraries(root, (library.parent, *extra), _source_of(real), True, real)


def _source_of(real: Path) -> str:
    """What a view of ours links to, in the words of `lay_out`: the same libraries make the same artifacts."""
    spec = importlib.util.find_spec("onnxruntime_qnn")
    folders = [Path(place).resolve() for place in (spec.submodule_search_locations or ())] if spec else []
    return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}" if real.resolve().parent in folders else "QNN_SDK_ROOT"


def lay_out(package: Path, version: str) -> QnnLibraries:
    """Lays `package` (an installed `onnxruntime_qnn` folder) out as an SDK in the user's cache, once.

    The key holds the package's place and version and the interposer's source, so a change of any makes a new view.
    """
    real = package / "libQnnHtp.so"
    if not real.is_file():
        raise ConfigError(
            f"{PACKAGE} {version} at {package} ships no libQnnHtp.so",
            where="toolchain",
            remedy=f"pip install {PACKAGE}=={PINNED} on Linux x86-64",
        )
    stamp = f"{package}:{version}:{real.stat().st_size}:{real.stat().st_mtime_ns}:{source_hash()}"
    root = cache_root() / "sdk" / f"{version}-{hashlib.sha256(stamp.encode()).hexdigest()[:12]}"
    if not root.is_dir():
        root.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{root}.lock", timeout=900):
            if not root.is_dir():
                _write_view(package, real, root)
    library_path = (root / HOST_LIBRARIES, root / "libcxx")
    return QnnLibraries(root, library_path, f"{PACKAGE} {version}", True, real)


def _write_view(package: Path, real: Path, root: Path) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=".sdk-", dir=root.parent))
    try:
        libraries = scratch / HOST_LIBRARIES
        libraries.mkdir(parents=True)
        for library in sorted(package.glob("*.so")):
            if library.name not in NOT_LINKED:
                (libraries / library.name).symlink_to(library)
        (scratch / "real").mkdir()
        (scratch / "real" / "libQnnHtp.so").symlink_to(real)
        (scratch / "libcxx").symlink_to(package.with_name("onnxruntime_qnn.libs"))
        build_interposer(real, libraries / "libQnnHtp.so")
        scratch.rename(root)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
