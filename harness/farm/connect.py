"""Phones through adb: commands with exit status and separate output, files, and whether a phone is there.

Commands and queries go through adbutils' connection to the adb server; files go through the adb binary that adbutils
finds or carries. Two things of adbutils 2.12 are not used, on purpose: `shell2`, whose time limit starts anew with
every byte a command prints, and `sync.push`, which has no time limit at all.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import adbutils

from harness.adb_program import adb_path
from harness.errors import InfraError
from harness.farm.journal import note
from harness.farm.shell import MAX_OUTPUT, AdbFailure, AdbTimeout, ShellStream, decoded

QUERY_SECONDS = 10.0
COMMAND_SECONDS = float(os.environ.get("HTPFARM_COMMAND_SECONDS", "60"))
"""Limit of a command that says no other; campaigns and impatient racks lower it."""
LOST_AFTER_SECONDS = 30
"""After so long without a sign of the adb server's computer a command's connection is lost, however long it may run."""
MAX_COMMAND = 0xFFFF - 64  # the adb server's requests carry their length in four hexadecimal digits
_SLOWEST_BYTES_PER_SECOND = 2_000_000  # USB 2 with a poor cable; decides how long a push may take

_STATE_REMEDY = {
    "": "plug it in, check the cable and `adb devices`",
    "offline": "reconnect it, or reboot it",
    "unauthorized": "unlock it and allow USB debugging for this computer",
    "authorizing": "unlock it and allow USB debugging for this computer",
    "recovery": "reboot it into Android",
    "sideload": "reboot it into Android",
    "bootloader": "reboot it into Android",
    "no permissions": "give this user access to the USB device (udev rules)",
}


@dataclass(frozen=True)
class ShellResult:
    """What a command on a phone came to.

    Attributes:
        exit_status: 0 to 255; 128 + N for a program that signal N ended.
        stdout: decoded as UTF-8, with replacement; likewise stderr. Each is cut at MAX_OUTPUT bytes.
        seconds: on the host's clock, connection included.
    """

    exit_status: int
    stdout: str
    stderr: str
    seconds: float


@dataclass(frozen=True)
class AdbServer:
    """The adb server phones hang on. Never started and never ended by this class."""

    host: str = "127.0.0.1"
    port: int = 5037

    def client(self) -> adbutils.AdbClient:
        """adbutils' client of this server.

        Raises:
            InfraError: nobody listens there. Checked first, because adbutils would start a server on the default port.
        """
        try:
            with socket.create_connection((self.host, self.port), timeout=QUERY_SECONDS):
                pass
        except OSError as error:
            raise InfraError(
                f"no adb server answers: {error}", where=f"{self.host}:{self.port}", remedy="run `adb start-server`"
            ) from None
        return adbutils.AdbClient(host=self.host, port=self.port, socket_timeout=QUERY_SECONDS)

    def answers(self) -> bool:
        """Whether somebody listens there."""
        try:
            with socket.create_connection((self.host, self.port), timeout=QUERY_SECONDS):
                return True
        except OSError:
            return False

    def states(self) -> dict[str, str]:
        """Serial → `device`, `offline`, `unauthorized`, …; sorted by serial.

        Raises:
            InfraError: the server cannot be asked.
        """
        try:
            found = {info.serial: info.state for info in self.client().list()}
        except (adbutils.AdbError, OSError, ValueError) as error:
            raise InfraError(
                f"the adb server does not list phones: {error}", where=f"{self.host}:{self.port}"
            ) from error
        return dict(sorted(found.items()))

    def link(self, serial: str) -> PhoneLink:
        """The phone of that serial; not asked whether it is there."""
        return PhoneLink(serial, self)


@dataclass(frozen=True)
class PhoneLink:
    """One phone. Holds no connection: each call opens its own."""

    serial: str
    server: AdbServer = field(default_factory=AdbServer)

    def state(self) -> str:
        """`device`, `offline`, `unauthorized`, …; empty if adb does not know it. Raises InfraError."""
        return self.server.states().get(self.serial, "")

    def wait_ready(self, timeout_s: float) -> None:
        """Returns when adb calls the phone `device`.

        Raises:
            InfraError: it has not after `timeout_s` seconds.
        """
        deadline = time.monotonic() + timeout_s
        while (state := self.state()) != "device":
            if time.monotonic() >= deadline:
                raise InfraError(
                    f"adb says {state or 'that it is not there'}",
                    where=self.serial,
                    remedy=_STATE_REMEDY.get(state, ""),
                )
            time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))

    def shell(
        self,
        command: Sequence[str] | str,
        *,
        timeout_s: float = COMMAND_SECONDS,
        env: Mapping[str, str] | None = None,
        watch: Callable[[bytearray], None] | None = None,
    ) -> ShellResult:
        """Runs a command on the phone, with stdin at its end.

        Args:
            command: an argument vector, which is quoted, or a line for the phone's `sh` whose data the caller quoted.
            timeout_s: for the whole, in seconds.
            env: variables the command gets in addition.
            watch: called with all of stderr so far whenever something has arrived.

        Raises:
            AdbTimeout: it did not end in time; what it printed is in the error. It may still run on the phone.
            AdbLost: the connection ended first.
            AdbFailure: it could not be started.
        """
        line = command_line(command, env)
        started = time.monotonic()
        deadline = started + timeout_s
        try:
            with self.open_shell(line, timeout_s=timeout_s) as stream:
                stream.close_stdin(deadline)
                status = stream.wait(deadline, watch)
                result = ShellResult(status, decoded(stream.stdout), decoded(stream.stderr), time.monotonic() - started)
        except AdbFailure as error:
            note(self.serial, line, error.what, time.monotonic() - started, error.stdout, error.stderr)
            raise
        note(self.serial, line, f"status {status}", result.seconds, result.stdout, result.stderr)
        return result

    def open_shell(self, line: str, *, timeout_s: float = QUERY_SECONDS, limit: int = MAX_OUTPUT) -> ShellStream:
        """Starts a command on the phone and leaves its stdin open. The caller closes the stream.

        Args:
            line: for the phone's `sh`; data in it quoted.
            timeout_s: for starting it, in seconds; QUERY_SECONDS at most.
            limit: see `ShellStream`.

        Raises:
            AdbFailure: it could not be started.
        """
        if len(line.encode()) > MAX_COMMAND:
            raise AdbFailure(f"a command of more than {MAX_COMMAND} bytes", serial=self.serial, command=line)
        asked = time.monotonic()
        client = self.server.client()
        try:
            connection = client.device(self.serial).open_transport(timeout=min(QUERY_SECONDS, timeout_s))
        except (adbutils.AdbError, OSError) as error:
            self._fail_to_start(line, error)
        _notice_loss(connection.conn)
        try:
            request = f"shell,v2,raw:{line}".encode()
            connection.conn.sendall(f"{len(request):04x}".encode() + request)
            connection.check_okay()
        except (adbutils.AdbError, OSError) as error:
            connection.close()
            self._fail_to_start(line, error)
        return ShellStream(connection, self.serial, line, asked=asked, limit=limit)

    def must(
        self,
        command: Sequence[str] | str,
        *,
        timeout_s: float = COMMAND_SECONDS,
        env: Mapping[str, str] | None = None,
    ) -> ShellResult:
        """As `shell`, for a command that has to succeed.

        Raises:
            AdbFailure: its exit status is not 0; else as `shell`.
        """
        result = self.shell(command, timeout_s=timeout_s, env=env)
        if result.exit_status != 0:
            raise AdbFailure(
                "a command failed on the phone",
                serial=self.serial,
                command=command_line(command, env),
                exit_status=result.exit_status,
                stdout=result.stdout,
                stderr=result.stderr,
            )
        return result

    def push(self, local: Path, remote: str, *, timeout_s: float | None = None) -> None:
        """Sends one file; `remote` is the file, not a folder. Parent folders are made.

        Raises:
            AdbTimeout, AdbFailure: it did not arrive whole.
        """
        limit = COMMAND_SECONDS + local.stat().st_size / _SLOWEST_BYTES_PER_SECOND if timeout_s is None else timeout_s
        self._adb(["push", str(local), remote], limit)

    def pull(self, remote: str, local: Path, *, timeout_s: float = 300.0) -> None:
        """Fetches one file.

        Raises:
            AdbTimeout, AdbFailure: it is not there or did not arrive whole.
        """
        self._adb(["pull", remote, str(local)], timeout_s)

    def _fail_to_start(self, line: str, error: Exception) -> NoReturn:
        try:
            state = self.state()
        except InfraError:
            state = "unknown"
        raise AdbFailure(
            f"the phone takes no command: {error} (adb's state: {state or 'not there'})",
            serial=self.serial,
            command=line,
            remedy=_STATE_REMEDY.get(state, ""),
        ) from error

    def _adb(self, arguments: list[str], timeout_s: float) -> None:
        self.server.client()  # nobody there: say so; the adb program would start a server
        argv = [adb_path(), "-H", self.server.host, "-P", str(self.server.port), "-s", self.serial, *arguments]
        env = {key: value for key, value in os.environ.items() if not key.startswith(("ADB_", "ANDROID_"))}
        line = shlex.join(["adb", *arguments])
        started = time.monotonic()
        try:
            done = subprocess.run(argv, capture_output=True, timeout=timeout_s, env=env, check=False)
        except subprocess.TimeoutExpired as error:
            note(self.serial, line, f"over its limit of {timeout_s:g} s", time.monotonic() - started)
            raise AdbTimeout(
                f"adb did not end within {timeout_s:g} s",
                serial=self.serial,
                command=line,
                stdout=decoded(error.stdout or b""),
                stderr=decoded(error.stderr or b""),
            ) from None
        except OSError as error:
            raise AdbFailure(f"adb does not start: {error}", serial=self.serial, command=line) from error
        said = decoded(done.stdout), decoded(done.stderr)
        note(self.serial, line, f"status {done.returncode}", time.monotonic() - started, *said)
        if done.returncode != 0:
            raise AdbFailure(
                f"adb {arguments[0]} failed",
                serial=self.serial,
                command=line,
                exit_status=done.returncode,
                stdout=said[0],
                stderr=said[1],
            )


def _notice_loss(connection: socket.socket) -> None:
    """Lets the kernel end a connection whose other computer is gone: nothing else tells that from a long command."""
    probes = 3
    every = max(1, LOST_AFTER_SECONDS // (probes + 1))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, every)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_AFTER_SECONDS * 1000)


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def command_line(command: Sequence[str] | str, env: Mapping[str, str] | None = None) -> str:
    """The line for a phone's `sh`: `export`s of `env`, then the command, quoted unless it is a line already.

    Raises:
        ValueError: a name in `env` is no shell variable's.
    """
    line = command if isinstance(command, str) else shlex.join(command)
    for name, value in sorted((env or {}).items(), reverse=True):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name a variable")
        line = f"export {name}={shlex.quote(value)}; {line}"
    return line
