"""Sole use of a phone, among all processes of this host: a lock the kernel frees when its holder dies.

A lease is `flock` on `<folder>/<serial>.lock`. The file also says who holds it, for people and for messages only: the
lock decides. Files are never deleted, since a waiter may have one open already.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import quote, unquote

import psutil

from harness.errors import ConfigError, InfraError
from harness.paths import cache_root
from harness.shared_files import make_shared_folder, open_shared

POLL_SECONDS = 0.2
PROGRESS_SECONDS = 5.0
HEARTBEAT_SECONDS = 2.0
SHARED = (Path("/run/lock/htpfarm"), Path("/var/lock/htpfarm"))
"""Where all users of a rack host keep their leases, if an administrator has made one of these (see docs/rack.md)."""
SHARED_VARIABLE = "HTPFARM_SHARED"
"""Environment variable: another folder for that."""
_SUFFIX = ".lock"


@dataclass(frozen=True)
class Owner:
    """Who holds a lease.

    Attributes:
        user: login name.
        host: its computer.
        pid: its process.
        process_start: when that process started, in seconds since the epoch; tells it from a later one of its number.
        run_id: the run it belongs to.
        since: when it took the lease, in seconds since the epoch; 0 before.
        deadline: when it means to be done, likewise; None if it does not know. Advice: nothing is taken from anyone.
    """

    user: str
    host: str
    pid: int
    process_start: float
    run_id: str
    since: float = 0.0
    deadline: float | None = None

    @classmethod
    def this_process(cls, run_id: str, *, deadline: float | None = None) -> Owner:
        """This process, on behalf of a run."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user without a name
            user = str(os.getuid())
        start = psutil.Process().create_time()
        return cls(user, socket.gethostname(), os.getpid(), start, run_id, deadline=deadline)

    def __str__(self) -> str:
        held = max(0.0, time.time() - self.since)
        return f"{self.user}'s run {self.run_id} (process {self.pid} on {self.host}) for {held:.0f} s"

    def alive(self) -> bool:
        """Whether that very process still runs on this host."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.process_start) < 2.0
        except psutil.Error:
            return False


@dataclass(frozen=True)
class Holder:
    """A phone that is leased, and to whom.

    Attributes:
        serial: the phone.
        owner: None if the file does not say.
        heartbeat: when the holder last showed that it lives and is not stopped, in seconds since the epoch.
    """

    serial: str
    owner: Owner | None
    heartbeat: float = 0.0


# Leases of this process. A forked child shares the lock with its parent, and would keep it after the parent's death.
_held: weakref.WeakSet[Lease] = weakref.WeakSet()
_heart: threading.Thread | None = None


class Lease:
    """Sole use of one phone until `release`, the end of a `with` block, or the death of this process."""

    def __init__(self, serial: str, owner: Owner, path: Path, descriptor: int) -> None:
        self.serial = serial
        self.owner = owner
        self.path = path
        self._descriptor = descriptor
        _held.add(self)
        _start_heart()

    @property
    def held(self) -> bool:
        """Whether it has not been released."""
        return self._descriptor >= 0

    def release(self) -> None:
        """Frees the phone; a second time does nothing."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def _beat(self) -> None:
        with contextlib.suppress(OSError):  # released meanwhile
            os.utime(self._descriptor)

    def _forget_in_child(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _start_heart() -> None:
    """One thread a process touches the files of all its leases."""
    global _heart
    if _heart is None or not _heart.is_alive():
        _heart = threading.Thread(target=_beat, name="htpfarm-leases", daemon=True)
        _heart.start()


def _beat() -> None:
    while held := [lease for lease in list(_held) if lease.held]:
        for lease in held:
            lease._beat()
        time.sleep(HEARTBEAT_SECONDS)


def _after_fork() -> None:
    global _heart
    _heart = None
    for lease in list(_held):
        lease._forget_in_child()


os.register_at_fork(after_in_child=_after_fork)


def shared_folder() -> Path | None:
    """The folder that all users of this host share; None if there is none, or this process has a cache of its own.

    Raises:
        ConfigError: HTPFARM_SHARED names no folder that this user may write to.
    """
    if named := os.environ.get(SHARED_VARIABLE):
        if not (Path(named).is_dir() and os.access(named, os.W_OK)):
            raise ConfigError(
                "it names no folder that this user may write to",
                where=f"{SHARED_VARIABLE}={named}",
                remedy="let an administrator make it (docs/rack.md, Several users), or unset the variable",
            )
        return Path(named)
    if os.environ.get("HTPFARM_CACHE"):
        return None
    return next((folder for folder in SHARED if folder.is_dir() and os.access(folder, os.W_OK)), None)


def default_lease_dir() -> Path:
    """Where leases lie unless told otherwise: one folder for all users of this host, else for all runs of this user."""
    return (shared_folder() or cache_root()) / "leases"


def acquire(
    serial: str,
    owner: Owner,
    *,
    wait_s: float = 0.0,
    lease_dir: Path | None = None,
    progress: Callable[[tuple[Holder, ...]], None] | None = None,
) -> Lease:
    """Leases one phone; see `acquire_any`."""
    return acquire_any([serial], owner, wait_s=wait_s, lease_dir=lease_dir, progress=progress)


def acquire_any(
    serials: Sequence[str],
    owner: Owner,
    *,
    wait_s: float = 0.0,
    lease_dir: Path | None = None,
    progress: Callable[[tuple[Holder, ...]], None] | None = None,
) -> Lease:
    """Leases the first of several phones that is free.

    Args:
        serials: phones, in the order of preference.
        owner: who takes it.
        wait_s: seconds to wait for one to become free; 0 to try once.
        lease_dir: `default_lease_dir()` if None.
        progress: told at once and then every few seconds who holds the phones, while this waits.

    Raises:
        InfraError: none became free in time; names the holders.
    """
    if not serials:
        raise InfraError("there is no phone to lease")
    folder = lease_dir or default_lease_dir()
    make_shared_folder(folder)
    deadline = time.monotonic() + wait_s
    next_report = time.monotonic()
    while True:
        for serial in serials:
            if lease := _try(serial, owner, folder):
                return lease
        now = time.monotonic()
        if now >= deadline:
            raise _none_free(serials, folder, wait_s)
        if progress and now >= next_report:
            progress(_holders_of(serials, folder))
            next_report = now + PROGRESS_SECONDS
        time.sleep(min(POLL_SECONDS, deadline - now))


def holders(lease_dir: Path | None = None) -> tuple[Holder, ...]:
    """The phones leased at this moment by living processes, by serial. Touches no lock, so it disturbs nobody."""
    folder = lease_dir or default_lease_dir()
    found = []
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        if (owner := _read_owner(path)) and (owner.host != socket.gethostname() or owner.alive()):
            found.append(Holder(unquote(path.name.removesuffix(_SUFFIX)), owner, path.stat().st_mtime))
    return tuple(found)


def break_lease(serial: str, *, lease_dir: Path | None = None, patience_s: float = 5.0) -> tuple[int, ...]:
    """Ends the process that holds a phone, and whatever else keeps its lock: each by its number.

    Returns:
        The processes that were ended; none if the phone was free.

    Raises:
        InfraError: the lock is still held: by another user's process, or from another host.
    """
    folder = lease_dir or default_lease_dir()
    path = _path(serial, folder)
    ended: list[int] = []
    if not path.exists() or _free(path):
        return ()
    owner = _read_owner(path)
    if owner and owner.host == socket.gethostname() and owner.alive():
        ended += _end_process(owner.pid, patience_s)
    if not _free(path):
        for pid in _openers(path):
            ended += _end_process(pid, patience_s)
    if not _free(path):
        raise InfraError(
            "the lease is still held",
            where=f"{serial}: {path}",
            remedy="ask its holder, or an administrator",
            evidence="\n".join(_lines(_holders_of([serial], folder))),
        )
    return tuple(ended)


def _free(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _openers(path: Path) -> list[int]:
    """Processes of this user that have a lock file open: children may outlive the holder and keep its lock."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            open_files = Path(f"/proc/{process.pid}/fd").iterdir()
            if process.pid != os.getpid() and any(fd.readlink() == path.resolve() for fd in open_files):
                found.append(process.pid)
    return found


def _end_process(pid: int, patience_s: float) -> list[int]:
    """SIGTERM, then SIGKILL; psutil checks that the number is still the same process's."""
    try:
        process = psutil.Process(pid)
        process.terminate()
        try:
            process.wait(patience_s)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(patience_s)
    except psutil.NoSuchProcess:
        return []
    except psutil.Error:
        return []
    return [pid]


def _path(serial: str, folder: Path) -> Path:
    return folder / f"{quote(serial, safe='')}{_SUFFIX}"


def _try(serial: str, owner: Owner, folder: Path) -> Lease | None:
    path = _path(serial, folder)
    try:
        descriptor = open_shared(path, os.O_RDWR)
    except PermissionError as error:
        raise InfraError(
            "this user may not write another user's leases",
            where=str(path),
            remedy="see docs/rack.md, Several users: the folder must be the users' group's, and so must this file",
            evidence=str(error),
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise InfraError(f"this folder cannot hold leases: {error}", where=str(path)) from error
    try:
        taken = Owner(**{**asdict(owner), "since": time.time()})
        # One write after the truncation: who reads in between sees an empty file, never half a name.
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(taken)).encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return Lease(serial, taken, path, descriptor)


def _read_owner(path: Path) -> Owner | None:
    try:
        return Owner(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _holders_of(serials: Sequence[str], folder: Path) -> tuple[Holder, ...]:
    return tuple(Holder(serial, _read_owner(_path(serial, folder))) for serial in serials)


def _lines(found: Sequence[Holder]) -> Iterator[str]:
    for holder in found:
        if holder.owner is None:
            yield f"{holder.serial}: held by a process that has not said who it is"
        elif holder.owner.alive() or holder.owner.host != socket.gethostname():
            yield f"{holder.serial}: {holder.owner}"
        else:
            yield f"{holder.serial}: a child that outlives {holder.owner}"


def _none_free(serials: Sequence[str], folder: Path, wait_s: float) -> InfraError:
    return InfraError(
        f"no phone is free after {wait_s:g} s" if wait_s else "no phone is free",
        where=", ".join(serials),
        remedy="wait for the run that holds it, or end that run: its lease ends with it",
        evidence="\n".join(_lines(_holders_of(serials, folder))),
    )
