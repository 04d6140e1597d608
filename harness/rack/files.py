"""Replacing a small file in one step."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Replaces `path` in one step, so that a reader sees the old text or the new one.

    Not synced to disk: what the rack writes describes running processes and means nothing after a power cut.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.chmod(mode)
    temporary.replace(path)
