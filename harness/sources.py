"""What this checkout is, to its last line."""

from __future__ import annotations

import hashlib
from functools import cache

from harness.paths import MODELS, REPOSITORY


@cache
def source_digest() -> str:
    """Hash of the harness's modules and the models' files: two checkouts of one version may differ."""
    digest = hashlib.sha256()
    files = [*(REPOSITORY / "harness").rglob("*.py"), *MODELS.rglob("*.yaml")]
    for path in sorted(files):
        digest.update(str(path.relative_to(REPOSITORY)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
