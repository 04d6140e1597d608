"""Where htpfarm keeps what it makes outside the checkout: compiled artifacts, the SDK view, the virtual rack."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
MODELS = REPOSITORY / "models"


def cache_root() -> Path:
    """The user's cache folder: `$HTPFARM_CACHE`, else `$XDG_CACHE_HOME/htpfarm`, else `~/.cache/htpfarm`."""
    if explicit := os.environ.get("HTPFARM_CACHE"):
        return Path(explicit).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "htpfarm"


def weights_root() -> Path:
    """Where weights are looked for that a model's file gives no path of: `$HTPFARM_WEIGHTS`, else in the cache folder.

    Each model has a folder of its name there.
    """
    if explicit := os.environ.get("HTPFARM_WEIGHTS"):
        return Path(explicit).expanduser().resolve()
    return cache_root() / "weights"
