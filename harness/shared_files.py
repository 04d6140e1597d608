"""Folders and files that several users of one computer write: as open as the folder they lie in, whatever the umask.

A folder that its administrator made for a group (`install -d -m 3770 -g GROUP`) or for all (`-m 1777`) gives what is
made in it the same bits; in a folder of one user nothing is opened to others.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

_WRITERS = stat.S_IWGRP | stat.S_IWOTH


def make_shared_folder(folder: Path) -> None:
    """Makes a folder, where there is none, that whoever may write to its parent may write to as well.

    Raises:
        OSError: it cannot be made.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    mode = stat.S_IMODE(folder.parent.stat().st_mode)
    if not mode & _WRITERS:
        folder.mkdir(exist_ok=True)
        return
    # Under its name only when it has its bits: another user may be about to use it.
    made = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    made.chmod(mode)
    try:
        made.rename(folder)
    except OSError:
        made.rmdir()
        if not folder.is_dir():
            raise


def open_shared(path: Path, flags: int) -> int:
    """Opens a file, made where there is none, that whoever may write to its folder may write to as well.

    The kernel may refuse O_CREAT for another user's file in a folder for all (`fs.protected_regular`), so opening and
    making are two steps.

    Args:
        path: the file.
        flags: of `os.open`, without O_CREAT.

    Returns:
        A descriptor that programs started later do not inherit.

    Raises:
        OSError: it cannot be opened or made.
    """
    while True:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags | os.O_CLOEXEC)
        _make(path)


def _make(path: Path) -> None:
    writers = path.parent.stat().st_mode & _WRITERS
    descriptor, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        os.fchmod(descriptor, 0o644 | writers)
        with contextlib.suppress(FileExistsError):  # another process was first
            os.link(name, path)
    finally:
        os.close(descriptor)
        Path(name).unlink()
