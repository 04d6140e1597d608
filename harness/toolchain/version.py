"""Which version of QNN the libraries are, as (2, 48): what gates with a version floor are judged by. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping

from harness.errors import ConfigError
from harness.files import write_atomically
from harness.paths import cache_root
from harness.toolchain.environment import Toolchain, build_id, find_toolchain, fingerprint_id
from harness.toolchain.qnn import PACKAGE

# As each said of itself (`python benchmarks/qnn_versions.py`): asking takes seconds and torch.
_OF_PACKAGE = {"2.3.0": (2, 47), "2.4.0": (2, 48), "2.5.0": (2, 49), "2.6.0": (2, 50), "2.7.0": (2, 51)}


def parse_build_id(text: str) -> tuple[int, int]:
    """`v2.48.40.260702151143` → (2, 48).

    Raises:
        ConfigError: it is no build id.
    """
    if found := re.match(r"v?(\d+)\.(\d+)(?:\.|$)", text):
        return int(found[1]), int(found[2])
    raise ConfigError(f"{text!r} is no QNN build id", where="toolchain", remedy="run `htpfarm doctor`")


def version_of_package(source: str) -> tuple[int, int] | None:
    """The QNN version of PyPI's libraries (`onnxruntime-qnn 2.4.0` → (2, 48)); None of other or unknown ones. Pure."""
    package, _, version = source.rpartition(" ")
    return _OF_PACKAGE.get(version) if package == PACKAGE else None


def qnn_words(recorded: Mapping[str, str]) -> str:
    """`QNN 2.48` of a recorded fingerprint; of libraries without a known version where they are from and their hash.

    Empty where the fingerprint names none. Pure.
    """
    source, hashed = recorded.get("qnn", ""), recorded.get("qnn_htp_sha256", "")
    if known := version_of_package(source):
        return f"QNN {known[0]}.{known[1]}"
    return f"QNN {source}{f' {hashed[:12]}' if hashed else ''}" if source else ""


def version_words(recorded: Mapping[str, str]) -> str:
    """`QNN 2.48 (onnxruntime-qnn 2.4.0), ExecuTorch 1.5.1` of a recorded fingerprint; empty of an empty one. Pure."""
    source, executorch, qnn = recorded.get("qnn", ""), recorded.get("executorch", ""), qnn_words(recorded)
    parts = [qnn if source in qnn else f"{qnn} ({source})"] if qnn else []
    return ", ".join([*parts, f"ExecuTorch {executorch}"] if executorch else parts)


def qnn_version(toolchain: Toolchain) -> tuple[int, int]:
    """The version of a toolchain's QNN libraries: known for PyPI's, else asked once and kept in the cache.

    Raises:
        ConfigError: the libraries do not load.
    """
    if known := version_of_package(toolchain.qnn.source):
        return known
    kept = cache_root() / "qnn-build-ids" / fingerprint_id(toolchain)
    if not kept.is_file():
        said = build_id(toolchain)
        parse_build_id(said)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, said)
    return parse_build_id(kept.read_text(encoding="utf-8").strip())


def qnn_version_here() -> tuple[int, int] | None:
    """The version on this machine; None where ExecuTorch or the QNN libraries are missing or do not load."""
    try:
        return qnn_version(find_toolchain())
    except ConfigError:
        return None
