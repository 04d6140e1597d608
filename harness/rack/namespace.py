"""A phone's own view of files and processes: Linux namespaces where they are allowed, a plain prefix where they are
not.

A view is alive between `start` and `stop` (one boot of the phone). While it is, it turns a command into an argument
vector that runs it inside. Entering costs one `nsenter`, a few milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness.errors import InfraError
from harness.rack.image import BOOT_ID, CONTROL, PROPERTIES

HOLDER = Path(__file__).resolve().parent / "holder.py"
SYNC = Path(__file__).resolve().parent / "sync.py"
START_SECONDS = 120.0
_PYTHON = (sys.executable, "-I", "-S")


@dataclass(frozen=True)
class Launch:
    """How to start one program: its argument vector and environment."""

    argv: list[str]
    env: dict[str, str]


class View(Protocol):
    """What a phone needs of its surroundings."""

    @property
    def fallback(self) -> bool:
        """Whether this is the plain view, without isolation."""

    @property
    def running(self) -> bool:
        """Whether commands can be started."""

    async def start(self) -> None:
        """Boots the view. Raises InfraError where it cannot."""

    async def stop(self) -> None:
        """Ends every process in it."""

    async def ended(self) -> None:
        """Returns when the view has died by itself."""

    def shell(self, command: str, *, terminal: str = "") -> Launch:
        """`sh -c command`, or an interactive sh for an empty one; on its own controlling terminal if `terminal` names a
        type.
        """

    def sync(self) -> Launch:
        """The file sync program."""

    def started(self, pid: int) -> None:
        """A program launched through this view runs as process group `pid`."""

    def finished(self, pid: int) -> None:
        """And is over."""


def phone_env(root: str, *, terminal: str = "") -> dict[str, str]:
    """The environment of a phone's shell. `root` is empty, or the prefix of the plain view."""
    env = {
        "PATH": f"{root}/system/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": f"{root}/data/local/tmp",
        "TMPDIR": f"{root}/data/local/tmp",
        "ANDROID_ROOT": f"{root}/system",
        "ANDROID_DATA": f"{root}/data",
        "USER": "shell",
        "LOGNAME": "shell",
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
        "TERM": terminal or "dumb",
    }
    if root:
        env["HTPFARM_PHONE_ROOT"] = root
    return env


def _shell_argv(command: str, *, terminal: bool) -> list[str]:
    argv = ["/bin/sh", "-c", command] if command else ["/bin/sh", "-i"] if terminal else ["/bin/sh"]
    return ["setsid", "--ctty", "--wait", *argv] if terminal else argv


class NamespaceView:
    """User, mount and process namespaces, held by one process (see holder.py) that ends with the rack."""

    fallback = False

    def __init__(self, root: Path, expose: Sequence[str] = ()) -> None:
        self._root = root
        self._expose = list(expose)
        self._holder: asyncio.subprocess.Process | None = None
        self._inner_pid = 0

    @property
    def running(self) -> bool:
        """See View."""
        return self._inner_pid > 0

    async def start(self) -> None:
        """Starts the holder and waits until the phone's root stands."""
        spec = json.dumps({"root": str(self._root), "expose": self._expose})
        self._holder = await asyncio.create_subprocess_exec(
            *_PYTHON,
            str(HOLDER),
            spec,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                said = (await self._holder.stdout.readline()).decode().strip()
        except TimeoutError:
            said = f"failed: no answer within {START_SECONDS:.0f} s"
        word, _, rest = said.partition(" ")
        if word != "ready":
            await self.stop()
            raise InfraError(
                "a virtual phone's namespaces could not be made",
                where=str(self._root),
                remedy="allow unprivileged user namespaces, or let the rack fall back to plain commands",
                evidence=said,
            )
        self._inner_pid = int(rest)

    async def stop(self) -> None:
        """Kills process 1 of the phone; the kernel ends the others before the holder is gone."""
        holder, self._holder = self._holder, None
        inner_pid, self._inner_pid = self._inner_pid, 0
        if holder is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if inner_pid and holder.returncode is None:
                os.kill(inner_pid, signal.SIGKILL)
            else:
                holder.kill()
        async with asyncio.timeout(START_SECONDS):
            await holder.wait()

    async def ended(self) -> None:
        """Waits for the holder."""
        if self._holder is not None:
            await self._holder.wait()

    def _enter(self, argv: Sequence[str]) -> list[str]:
        return ["nsenter", "-t", str(self._inner_pid), "-U", "-m", "-p", "--preserve-credentials", "--", *argv]

    def shell(self, command: str, *, terminal: str = "") -> Launch:
        """See View."""
        return Launch(self._enter(_shell_argv(command, terminal=bool(terminal))), phone_env("", terminal=terminal))

    def sync(self) -> Launch:
        """See View."""
        return Launch(self._enter([*_PYTHON, str(SYNC)]), phone_env(""))

    def started(self, pid: int) -> None:
        """Nothing to note: the kernel knows what runs in a namespace."""

    def finished(self, pid: int) -> None:
        """Nothing to note."""


_PHONE_PLACES = f"data|system|sdcard|sys/class/thermal|sys/class/power_supply|{BOOT_ID}|{PROPERTIES}|{CONTROL}"
_PHONE_PATH = re.compile(rf"(?<![\w./-])/(?=(?:{_PHONE_PLACES})(?![\w.-]))")


def rewrite(command: str, root: str) -> str:
    """Points the phone's paths in a command at its tree. Textual: a path that is put together at run time is missed."""
    return _PHONE_PATH.sub(lambda _: f"{root}/", command).replace(f"{root}/sdcard", f"{root}/data/media/0")


class PlainView:
    """No isolation: commands run on the host, in the phone's tree, with its paths rewritten. A reboot kills the process
    groups.
    """

    fallback = True

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._groups: set[int] = set()
        self._stopped = asyncio.Event()

    @property
    def running(self) -> bool:
        """See View."""
        return not self._stopped.is_set()

    async def start(self) -> None:
        """See View."""
        self._stopped.clear()

    async def stop(self) -> None:
        """Kills every process group that was started and has not been reported as finished."""
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        self._groups.clear()
        self._stopped.set()

    async def ended(self) -> None:
        """Only by `stop`."""
        await self._stopped.wait()

    def _guarded(self, argv: list[str]) -> list[str]:
        # Where util-linux has it, the command dies with the rack.
        return ["setpriv", "--pdeathsig", "KILL", *argv] if shutil.which("setpriv") else argv

    def shell(self, command: str, *, terminal: str = "") -> Launch:
        """See View."""
        argv = _shell_argv(rewrite(command, self._root), terminal=bool(terminal))
        return Launch(self._guarded(argv), phone_env(self._root, terminal=terminal))

    def sync(self) -> Launch:
        """See View."""
        return Launch(self._guarded([*_PYTHON, str(SYNC), "--root", self._root]), phone_env(self._root))

    def started(self, pid: int) -> None:
        """See View."""
        self._groups.add(pid)

    def finished(self, pid: int) -> None:
        """A group whose leader is over may still have members (a job in the background); those are kept for `stop`."""
        try:
            os.killpg(pid, 0)
        except (ProcessLookupError, PermissionError):
            self._groups.discard(pid)


def namespace_support() -> tuple[bool, str]:
    """Whether phones can have views of their own here, and if not, why: builds one for a moment, enters it and lets it
    go.
    """
    if sys.platform != "linux":
        return False, f"namespaces are a Linux feature; this is {sys.platform}"
    for program in ("nsenter", "setsid"):
        if shutil.which(program) is None:
            return False, f"{program} (util-linux) is not installed"
    with tempfile.TemporaryDirectory(prefix="htpfarm-probe-") as folder:
        root = Path(folder)
        for place in ("data", "system", "sys/devices/system", PROPERTIES, str(Path(BOOT_ID).parent)):
            (root / place).mkdir(parents=True)
        (root / BOOT_ID).write_text("probe\n")
        os.mkfifo(root / CONTROL)
        return _probe(root)


def _probe(root: Path) -> tuple[bool, str]:
    spec = json.dumps({"root": str(root), "expose": []})
    with subprocess.Popen(
        [*_PYTHON, str(HOLDER), spec],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        killer = threading.Timer(START_SECONDS, holder.kill)
        killer.start()
        try:
            word, _, rest = holder.stdout.readline().strip().partition(" ")
            if word != "ready":
                return False, rest or "the holder of a phone's namespaces died"
            entered = subprocess.run(
                ["nsenter", "-t", rest, "-U", "-m", "-p", "--preserve-credentials", "--", "/bin/cat", f"/{BOOT_ID}"],
                capture_output=True,
                text=True,
                timeout=START_SECONDS,
                check=False,
            )
        finally:
            killer.cancel()
            holder.kill()
    if entered.stdout != "probe\n":
        return False, f"a phone's namespaces cannot be entered: {entered.stderr.strip()}"
    return True, ""
