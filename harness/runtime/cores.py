"""One core for each runner on a virtual phone.

The simulator starts a thread a core and lets them wait busily: alone it gains nothing from a second core, and four
runners on two cores spend much of their time in each other's way. So each runner binds itself to the core with the
fewest runners. They agree through locks on files that the rack makes beforehand (`<slot>-<core>`): a runner takes the
first free one, and the kernel frees it when the runner ends. All racks of a user share them, since they share the host;
racks of several users do where those share a folder.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from harness.shared_files import make_shared_folder, open_shared

CORE_LOCKS = "HTPFARM_CORE_LOCKS"
"""Environment variable: the folder of the lock files; unset off a virtual phone."""
SLOTS = 8


def make_core_locks(shared: Path | None = None) -> Path:
    """Makes the lock files, one a slot and core of this host, where there are none; returns their folder.

    Args:
        shared: a folder that all users of this host share; None if there is none.
    """
    if shared is None:
        folder = Path(tempfile.gettempdir()) / f"htpfarm-cores-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
    else:
        folder = shared / "cores"
        make_shared_folder(folder)
    for slot in range(SLOTS):
        for core in range(os.cpu_count() or 1):
            os.close(open_shared(folder / f"{slot:02}-{core:03}", os.O_RDONLY))
    return folder


def bind_to_core(environ: Mapping[str, str]) -> int | None:
    """Binds this process to one core for its whole life; returns it, or None where nothing is to be bound."""
    if not environ.get(CORE_LOCKS):
        return None
    allowed = os.sched_getaffinity(0)
    for path in sorted(Path(environ[CORE_LOCKS]).glob("*-*")):
        core = int(path.name.partition("-")[2])
        if core not in allowed:
            continue
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        # The descriptor stays open on purpose: the lock is the claim.
        os.sched_setaffinity(0, {core})
        return core
    return None
