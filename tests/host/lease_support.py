"""Locks that nobody leased, processes that do nothing, and time that stands still: for the tests of leases."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import psutil

from harness.farm.lease import Owner


def me(run: str = "run-b") -> Owner:
    return Owner.this_process(run)


@dataclass
class Clock:
    """Time that only sleeping moves, in place of the module's."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)
    thread: int = field(default_factory=threading.get_ident)

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        if threading.get_ident() != self.thread:  # the heart's, which takes the time it takes
            time.sleep(0.01)
            return
        assert seconds > 0, "a waiter that does not sleep eats a core"
        self.slept.append(seconds)
        self.now += seconds


@contextlib.contextmanager
def locked(path: Path, owner: Owner | None = None) -> Iterator[int]:
    """A lock file that somebody holds who is no lease of this process's; its file says `owner`."""
    path.write_text(json.dumps(asdict(owner)) if owner else "")
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def sleeper(**more: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing for a minute."""
    process = subprocess.Popen(["sleep", "60"], **more)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def owner_of(pid: int, **changes: object) -> Owner:
    made = Owner("ann", socket.gethostname(), pid, psutil.Process(pid).create_time(), "run-x", since=1.0)
    return replace(made, **changes)  # type: ignore[arg-type]


def dead() -> Owner:
    """Of a process that has ended."""
    with sleeper() as process:
        return owner_of(process.pid)


def refuse(error: OSError) -> Callable[..., object]:
    def call(*_: object, **__: object) -> object:
        raise error

    return call


def own_processes() -> list[psutil.Process]:
    """This process and its children: all that a test of breaking may reach, whatever is wrong with what it tests."""
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def python(program: str, *arguments: Path) -> str:
    """What a Python says that has harness at hand."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path])}
    argv = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
