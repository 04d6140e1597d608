"""A real rack and the stock adb, for tests of virtual phones."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from events import HANG_S

from harness.rack import manage
from harness.rack.protocol import (
    HEADER_SIZE,
    MAX_PAYLOAD,
    VERSION,
    Command,
    Frame,
    decode_header,
    decode_payload,
    encode,
)
from harness.rack.record import RackPhone, RackState
from harness.soc import PHONE_KINDS

KINDS = ("galaxy_s23", "galaxy_s24", "galaxy_s25", "oneplus_12")
BOOT_DELAY = 0.5


def phones(count: int) -> list[tuple[str, manage.Kind]]:
    return [(f"phone{i}", PHONE_KINDS[KINDS[i]]) for i in range(count)]


def commands_naming(text: str) -> list[str]:
    """Command lines of processes on this host that contain `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if text in line and entry.name != str(os.getpid()):
                    found.append(line)
    return found


@contextmanager
def running_rack(folder: Path, count: int, *, plain: bool | None = None) -> Iterator[RackState]:
    """A rack that is always ended, by the ids in its own record."""
    try:
        yield manage.up(phones(count), state_dir=folder, boot_delay=BOOT_DELAY, plain=plain)
    finally:
        manage.down(folder)


@dataclass(frozen=True)
class Adb:
    """The stock adb against one phone of a rack."""

    state: RackState
    phone: RackPhone

    def argv(self, *arguments: str) -> list[str]:
        return manage.adb_argv(self.state, *arguments, serial=self.phone.serial)

    def run(self, *arguments: str, stdin: bytes = b"", timeout: float = HANG_S) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(self.argv(*arguments), input=stdin, capture_output=True, timeout=timeout, check=False)

    def out(self, *arguments: str) -> str:
        """Output of a command that must succeed, without the last line end."""
        done = self.run(*arguments)
        assert done.returncode == 0, done
        return done.stdout.decode().rstrip("\n")

    def shell(self, command: str) -> str:
        return self.out("shell", command)


class Wire:
    """A host that speaks the protocol by hand, to say what adb never would."""

    def __init__(self, phone: RackPhone, *, connect: bool = True, version: int = VERSION) -> None:
        host, _, port = phone.serial.partition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=HANG_S)
        self.version = version
        self.banner = b""
        if connect:
            self.send(Command.CNXN, version, MAX_PAYLOAD, b"host::features=shell_v2")
            self.banner = self.receive().payload

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, command: Command, arg0: int, arg1: int, payload: bytes = b"") -> None:
        self.socket.sendall(encode(Frame(command, arg0, arg1, payload), with_checksum=self.version < VERSION))

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def receive(self) -> Frame:
        header = decode_header(self.exactly(HEADER_SIZE))
        return decode_payload(header, self.exactly(header.length), with_checksum=self.version < VERSION)

    def is_closed(self) -> bool:
        """Whether the phone ends the connection (within the socket's time limit)."""
        try:
            while True:
                self.receive()
        except (EOFError, ConnectionResetError):
            return True
        except TimeoutError:
            return False

    def reset(self) -> None:
        """Ends the connection the rude way."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
