"""A command that runs on a phone, with its streams: the host's side of adb's shell protocol, version 2.

Packets are one byte of kind, four bytes of length (little-endian) and the data (platform/packages/modules/adb,
shell_protocol.h).
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from types import TracebackType

import adbutils

from harness.errors import InfraError

MAX_OUTPUT = 32 * 1024 * 1024
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)
_HEADER = 5
_PIECE = 64 * 1024


class AdbFailure(InfraError):  # noqa: N818 - what Mobly's AdbError is; "AdbError" is adbutils' own
    """An adb call that did not do what it should, with all that is known of it.

    Attributes:
        serial: the phone.
        command: what was asked for.
        exit_status: of the command or of the adb program; None if it did not end.
        stdout: what it said until then.
        stderr: likewise.
    """

    def __init__(
        self,
        what: str,
        *,
        serial: str,
        command: str,
        exit_status: int | None = None,
        stdout: str = "",
        stderr: str = "",
        remedy: str = "",
    ) -> None:
        self.serial = serial
        self.command = command
        self.exit_status = exit_status
        self.stdout = stdout
        self.stderr = stderr
        status = "" if exit_status is None else f"exit status {exit_status}"
        said = "\n".join(part for part in (status, stderr[-2000:].strip(), stdout[-2000:].strip()) if part)
        super().__init__(what, where=f"{serial}: {_shortened(command)}", remedy=remedy, evidence=said)


class AdbTimeout(AdbFailure):
    """It took longer than its limit. The command may still run on the phone."""


class AdbLost(AdbFailure):
    """The connection ended before the command did: cable, reboot, or adb server."""


class ShellStream:
    """A running command. The one who opened it closes it; that ends its stdin, but not the command.

    Args:
        connection: to the adb server, with the shell service opened on it.
        serial: the phone, for errors.
        command: the line that runs, for errors.
        asked: when it was asked for (`time.monotonic`): reaching the phone counts.
        limit: bytes of stdout and of stderr that are kept at most while nobody takes them; what follows is dropped.

    Attributes:
        stdout: what it has printed and nobody has taken yet; whoever takes some deletes it. Likewise `stderr`.
        exit_status: 0 to 255 once it has ended, else None; 128 + N for a program that signal N ended.
    """

    def __init__(
        self,
        connection: adbutils.AdbConnection,
        serial: str,
        command: str,
        *,
        asked: float,
        limit: int = MAX_OUTPUT,
    ) -> None:
        self._connection = connection
        self._socket: socket.socket = connection.conn
        self._serial = serial
        self._command = command
        self._limit = limit
        self._asked = asked
        self._pending = bytearray()
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.exit_status: int | None = None

    def __enter__(self) -> ShellStream:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; harmless when it has ended."""
        self._connection.close()

    def send(self, data: bytes, deadline: float) -> None:
        """Writes to the command's stdin; what it prints meanwhile is taken in, so neither side can block the other.

        Returns early when the command ends first: see `exit_status`.

        Raises:
            AdbTimeout: not done at `deadline` (`time.monotonic`).
            AdbLost: the connection ended.
        """
        for start in range(0, len(data), _PIECE):
            self._send_packet(_STDIN, data[start : start + _PIECE], deadline)

    def close_stdin(self, deadline: float) -> None:
        """Lets the command see the end of its input; errors as in `send`."""
        self._send_packet(_CLOSE_STDIN, b"", deadline)

    def read(self, deadline: float) -> None:
        """Waits until something arrives and takes it in; errors as in `send`."""
        self._socket.settimeout(self._left(deadline))
        try:
            piece = self._socket.recv(_PIECE)
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno is None:  # ours; the kernel's has a number
                raise self._timeout() from None
            raise self._lost(str(error)) from None
        if not piece:
            raise self._lost("it ended without an exit status")
        self._pending += piece
        self._unpack()

    def wait(self, deadline: float, watch: Callable[[bytearray], None] | None = None) -> int:
        """Takes in all output up to the command's end, and returns its status; errors as in `send`.

        Args:
            deadline: see `send`.
            watch: called with `stderr` whenever something has arrived.
        """
        while self.exit_status is None:
            self.read(deadline)
            if watch is not None:
                watch(self.stderr)
        return self.exit_status

    def _send_packet(self, kind: int, data: bytes, deadline: float) -> None:
        packet = memoryview(bytes([kind]) + len(data).to_bytes(4, "little") + data)
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLOUT)
        while packet and self.exit_status is None:
            events = dict(poll.poll(self._left(deadline) * 1000)).get(self._socket.fileno(), 0)
            if events & ~select.POLLOUT:  # to be read, or at its end
                self.read(deadline)
            elif events:
                self._socket.settimeout(self._left(deadline))
                try:
                    packet = packet[self._socket.send(packet) :]
                except OSError:
                    self.wait(deadline)  # it takes no more: what has come says why

    def _unpack(self) -> None:
        sinks = {_STDOUT: self.stdout, _STDERR: self.stderr}
        while len(self._pending) >= _HEADER:
            size = int.from_bytes(self._pending[1:_HEADER], "little")
            if len(self._pending) < _HEADER + size:
                return
            kind, payload = self._pending[0], bytes(self._pending[_HEADER : _HEADER + size])
            del self._pending[: _HEADER + size]
            if kind == _EXIT:
                self.exit_status = payload[0] if payload else 255
            elif (sink := sinks.get(kind)) is not None:
                sink += payload[: max(0, self._limit - len(sink))]

    def _left(self, deadline: float) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._timeout()
        return left

    def _timeout(self) -> AdbTimeout:
        return AdbTimeout(
            f"the command did not end within {time.monotonic() - self._asked:.3g} s",
            serial=self._serial,
            command=self._command,
            stdout=decoded(self.stdout),
            stderr=decoded(self.stderr),
        )

    def _lost(self, why: str) -> AdbLost:
        return AdbLost(
            f"the phone's connection was lost ({why})",
            serial=self._serial,
            command=self._command,
            stdout=decoded(self.stdout),
            stderr=decoded(self.stderr),
            remedy="see whether the phone rebooted, and check its cable",
        )


def decoded(data: bytes | bytearray) -> str:
    """Output as text: UTF-8, with replacement."""
    return bytes(data).decode("utf-8", errors="replace")


def _shortened(command: str, limit: int = 300) -> str:
    return command if len(command) <= limit else f"{command[:limit]}…"
