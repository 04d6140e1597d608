"""Programs of other users of this computer, for what users of one rack do to each other. Only root can start them.

The users need no entry in the password file: LOGNAME says what they are called. Where they may not reach the
interpreter or this checkout (below /root, for example), they get both in a mount namespace of their own, at the same
paths.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.paths import REPOSITORY

GROUP = 64100
"""Of all users of the rack; see docs/rack.md, Several users of one rack host."""


@dataclass(frozen=True)
class User:
    """A user by number; its own group has the same."""

    name: str
    uid: int


ANN, BOB = User("ann", 64101), User("bob", 64102)


def why_not() -> str:
    """Why programs of other users cannot be started here; empty where they can."""
    if os.geteuid() != 0:
        return f"only root can start programs of other users, and this is uid {os.geteuid()}"
    if missing := [name for name in ("setpriv", "unshare") if shutil.which(name) is None]:
        return f"{', '.join(missing)} (util-linux) cannot be found"
    tried = subprocess.run(as_user(ANN, ["id", "-u"]), capture_output=True, text=True, timeout=300, check=False)
    return "" if tried.stdout.strip() == str(ANN.uid) else f"unshare or setpriv is refused: {tried.stderr.strip()}"


def as_user(user: User, command: Sequence[str]) -> list[str]:
    """The command line that becomes `command` of that user, in the same process."""
    become = ["setpriv", "--reuid", str(user.uid), "--regid", str(user.uid), "--groups", str(GROUP)]
    script = " && ".join([*_openings([Path(sys.prefix), Path(sys.base_prefix), REPOSITORY]), 'exec "$@"'])
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *become, *command]


def environment(user: User, home: Path, **more: str) -> dict[str, str]:
    """What a user's programs find: a home and cache of its own, nothing of this user's."""
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "CC", "QNN_SDK_ROOT") if key in os.environ}
    own = {"HOME": str(home), "LOGNAME": user.name, "HTPFARM_CACHE": str(home / "cache"), "PYTHONPATH": str(REPOSITORY)}
    return {**kept, **own, "PYTHONDONTWRITEBYTECODE": "1", **more}


def make_home(user: User, folder: Path) -> Path:
    """A folder of the user's."""
    home = folder / user.name
    home.mkdir()
    os.chown(home, user.uid, user.uid)
    return home


def make_shared(folder: Path) -> Path:
    """A folder as an administrator makes it for the users' group."""
    shared = folder / "shared"
    shared.mkdir()
    os.chown(shared, 0, GROUP)
    shared.chmod(0o3770)
    return shared


def _openings(wanted: Sequence[Path]) -> list[str]:
    """Shell commands after which others reach `wanted`, though a folder above is closed to them."""
    closed: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(p.resolve() for p in wanted):
        above = [p for p in reversed(path.parents) if not p.stat().st_mode & 0o001]
        if above:
            closed.setdefault(above[0], []).append(path)
    lines: list[str] = []
    for folder, paths in closed.items():
        lines += ["kept=$(mktemp -d)", f'mount --bind {shlex.quote(str(folder))} "$kept"']
        lines.append(f"mount -t tmpfs -o mode=755,size=1m none {shlex.quote(str(folder))}")
        for path in paths:
            there, below = shlex.quote(str(path)), shlex.quote(str(path.relative_to(folder)))
            lines += [f"mkdir -p {there}", f'mount --bind "$kept"/{below} {there}']
        lines += ['umount -l "$kept"', 'rmdir "$kept"']
    return lines


def started(user: User, command: Sequence[str], home: Path, log: Path, **more: str) -> subprocess.Popen[bytes]:
    """Starts a program of the user's, whose output goes to a file. Its number is the program's own."""
    environ: Mapping[str, str] = environment(user, home, **more)
    with log.open("ab") as stream:
        return subprocess.Popen(as_user(user, command), env=dict(environ), stdout=stream, stderr=stream, cwd=REPOSITORY)


def said(
    user: User, command: Sequence[str], home: Path, timeout: float = 300, **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs a program of the user's to its end."""
    environ = environment(user, home, **more)
    argv = as_user(user, command)
    return subprocess.run(
        argv, env=environ, capture_output=True, text=True, timeout=timeout, cwd=REPOSITORY, check=False
    )
