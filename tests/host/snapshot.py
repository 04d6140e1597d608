"""Texts that are kept beside the tests and compared whole: `HTPFARM_REWRITE_SNAPSHOTS=1 pytest …` writes them again."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

FOLDER = Path(__file__).with_name("snapshots")
REWRITE = "HTPFARM_REWRITE_SNAPSHOTS"


def assert_snapshot(name: str, text: str) -> None:
    """Fails with the lines that differ from `snapshots/<name>`."""
    path = FOLDER / name
    if os.environ.get(REWRITE):
        FOLDER.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    kept = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = difflib.unified_diff(kept.splitlines(), text.splitlines(), "kept", "now", lineterm="", n=1)
    difference = "\n".join(lines)
    assert not difference, f"{path} differs; if it should, run again with {REWRITE}=1\n{difference}"
