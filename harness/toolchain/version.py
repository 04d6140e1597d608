"""Which version of QNN the libraries are, as (2, 48): what gates with a version floor are judged by. No torch here."""

from __future__ import annotations

import re

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


def qnn_version(toolchain: Toolchain) -> tuple[int, int]:
    """The version of a toolchain's QNN libraries: known for PyPI's, else asked once and kept in the cache.

    Raises:
        ConfigError: the libraries do not load.
    """
    package, _, version = toolchain.qnn.source.rpartition(" ")
    if package == PACKAGE and version in _OF_PACKAGE:
        return _OF_PACKAGE[version]
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
