"""Processes by identity: a number and its start time, so that a number used again is not mistaken."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InfraError


@dataclass(frozen=True)
class ProcessRef:
    """One process: its number, and its start in clock ticks since the host's boot (`/proc/PID/stat`, field 22)."""

    pid: int
    start: int


def _stat(pid: int) -> list[str]:
    # The second field, the name, may hold spaces and brackets: fields are counted from its last bracket.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def reference(pid: int) -> ProcessRef:
    """The process that has this number now. Raises OSError if there is none."""
    return ProcessRef(pid, int(_stat(pid)[19]))


def alive(ref: ProcessRef) -> bool:
    """Whether that very process still runs; one that waits to be collected does not."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(ref.pid, os.WNOHANG)  # collects it if it is a child of ours
    try:
        fields = _stat(ref.pid)
    except OSError:
        return False
    return int(fields[19]) == ref.start and fields[0] not in ("Z", "X")


def end(ref: ProcessRef, *, patience: float = 5.0) -> None:
    """SIGTERM, then after `patience` seconds SIGKILL. Harmless if it is gone."""
    for sign, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, patience)):
        if not alive(ref):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(ref.pid, sign)
        deadline = time.monotonic() + seconds
        while alive(ref) and time.monotonic() < deadline:
            time.sleep(0.02)


def spawn(argv: list[str], env: dict[str, str], log: Path) -> ProcessRef:
    """Starts a process in a session of its own that outlives this one; its output goes to `log`."""
    program = shutil.which(argv[0])
    if program is None:
        raise InfraError(f"{argv[0]} cannot be run")
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return reference(os.posix_spawn(program, argv, env, file_actions=actions, setsid=True))


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, for an error's evidence; empty if there is none."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
