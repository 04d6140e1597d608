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
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import quote, unquote

import psutil

from harness.errors import InfraError
from harness.paths import cache_root

POLL_SECONDS = 0.2
PROGRESS_SECONDS = 5.0
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
    """A phone that is leased, and to whom; the owner is None if the file does not say."""

    serial: str
    owner: Owner | None


# Leases of this process. A forked child shares the lock with its parent, and would keep it after the parent's death.
_held: weakref.WeakSet[Lease] = weakref.WeakSet()


class Lease:
    """Sole use of one phone until `release`, the end of a `with` block, or the death of this process."""

    def __init__(self, serial: str, owner: Owner, path: Path, descriptor: int) -> None:
        self.serial = serial
        self.owner = owner
        self.path = path
        self._descriptor = descriptor
        _held.add(self)

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


def _after_fork() -> None:
    for lease in list(_held):
        lease._forget_in_child()


os.register_at_fork(after_in_child=_after_fork)


def default_lease_dir() -> Path:
    """Where leases lie unless told otherwise: one folder for all runs of this user."""
    return cache_root() / "leases"


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
    folder.mkdir(parents=True, exist_ok=True)
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
            found.append(Holder(unquote(path.name.removesuffix(_SUFFIX)), owner))
    return tuple(found)


def _path(serial: str, folder: Path) -> Path:
    return folder / f"{quote(serial, safe='')}{_SUFFIX}"


def _try(serial: str, owner: Owner, folder: Path) -> Lease | None:
    path = _path(serial, folder)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
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
