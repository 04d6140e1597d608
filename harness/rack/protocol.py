"""The ADB wire format, device side: frames, banner and shell packets. Pure functions, no I/O.

Written from adb's own descriptions (`protocol.txt`, `shell_protocol.h` in Android's adb sources): a message is six
little-endian 32-bit words (command, arg0, arg1, payload length, checksum, command ^ 0xffffffff) and a payload; a shell
packet is one byte of id, a 32-bit length and its data.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from harness.errors import InfraError

VERSION = 0x01000001
"""From this version on, neither side fills in or checks the checksum of a payload."""
VERSION_WITH_CHECKSUM = 0x01000000
MAX_PAYLOAD = 1024 * 1024
MAX_PAYLOAD_OLDEST = 4096
"""The smallest `maxdata` a host may announce: what the oldest adb hard-coded."""
HEADER_SIZE = 24
_HEADER = struct.Struct("<6I")
_SHELL_HEADER = struct.Struct("<BI")


class ProtocolError(InfraError):
    """The other side broke the ADB protocol; the only cure is to close the connection, since its state is shared."""


class Command(IntEnum):
    """The words that open a message."""

    SYNC = 0x434E5953
    CNXN = 0x4E584E43
    AUTH = 0x48545541
    OPEN = 0x4E45504F
    OKAY = 0x59414B4F
    CLSE = 0x45534C43
    WRTE = 0x45545257
    STLS = 0x534C5453


@dataclass(frozen=True, slots=True)
class Header:
    """One message's header. `length` is that of the payload, in bytes."""

    command: Command
    arg0: int
    arg1: int
    length: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Frame:
    """One message."""

    command: Command
    arg0: int
    arg1: int
    payload: bytes = b""


def checksum(payload: bytes) -> int:
    """What old versions call crc32: the sum of the bytes, modulo 2**32."""
    return sum(payload) & 0xFFFFFFFF


def encode_header(frame: Frame, *, with_checksum: bool = False) -> bytes:
    """The 24 bytes that precede `frame.payload`. Raises ProtocolError if the payload is over 1 MiB."""
    if len(frame.payload) > MAX_PAYLOAD:
        raise ProtocolError(f"a payload of {len(frame.payload)} bytes is over the limit of {MAX_PAYLOAD}")
    total = checksum(frame.payload) if with_checksum else 0
    return _HEADER.pack(frame.command, frame.arg0, frame.arg1, len(frame.payload), total, frame.command ^ 0xFFFFFFFF)


def encode(frame: Frame, *, with_checksum: bool = False) -> bytes:
    """The whole message as bytes."""
    return encode_header(frame, with_checksum=with_checksum) + frame.payload


def decode_header(data: bytes, *, max_payload: int = MAX_PAYLOAD) -> Header:
    """Reads exactly 24 bytes. Raises ProtocolError for a wrong size, magic, command or a payload over `max_payload`."""
    if len(data) != HEADER_SIZE:
        raise ProtocolError(f"a header has {HEADER_SIZE} bytes, not {len(data)}")
    word, arg0, arg1, length, total, magic = _HEADER.unpack(data)
    if word ^ 0xFFFFFFFF != magic:
        raise ProtocolError(f"bad magic {magic:#010x} for command {word:#010x}")
    try:
        command = Command(word)
    except ValueError:
        raise ProtocolError(f"unknown command {word:#010x}") from None
    if length > max_payload:
        raise ProtocolError(f"{command.name} announces {length} bytes, the limit is {max_payload}")
    return Header(command, arg0, arg1, length, total)


def decode_payload(header: Header, payload: bytes, *, with_checksum: bool = False) -> Frame:
    """Joins a header and its payload. Raises ProtocolError if the length or (where asked) the checksum disagree."""
    if len(payload) != header.length:
        raise ProtocolError(f"{header.command.name} announced {header.length} bytes, {len(payload)} came")
    if with_checksum and checksum(payload) != header.checksum:
        raise ProtocolError(f"{header.command.name}: the checksum does not match the payload")
    return Frame(header.command, header.arg0, header.arg1, payload)


def encode_banner(properties: Mapping[str, str], features: Sequence[str]) -> bytes:
    """The identity a device sends in CNXN: `device::key=value;...;features=a,b`.

    Separators inside a value would change its meaning for the host, so they become underscores.
    """
    clean = {key: "".join("_" if c in ";=:,\0" else c for c in value) for key, value in properties.items()}
    fields = [f"{key}={value}" for key, value in clean.items()] + ["features=" + ",".join(features)]
    return ("device::" + ";".join(fields)).encode()


def parse_features(banner: bytes) -> frozenset[str]:
    """The features in a host's or device's banner; empty where it names none."""
    text = banner.rstrip(b"\0").decode("utf-8", "replace")
    for field in text.partition("::")[2].split(";"):
        key, _, value = field.partition("=")
        if key == "features":
            return frozenset(item for item in value.split(",") if item)
    return frozenset()


class ShellId(IntEnum):
    """Kinds of packet in the shell protocol, version 2."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    EXIT = 3
    CLOSE_STDIN = 4
    WINDOW_SIZE = 5


def encode_shell(kind: ShellId, data: bytes) -> bytes:
    """One shell packet."""
    return _SHELL_HEADER.pack(kind, len(data)) + data


class ShellDecoder:
    """Splits a byte stream into pieces of shell packets.

    A packet may announce up to 4 GiB; its data is handed on as it arrives, so nothing is buffered but an unfinished
    header and the (short) text of a window size.
    """

    _KEEP_WHOLE = 64

    def __init__(self) -> None:
        self._head = b""
        self._kind = -1
        self._left = 0
        self._text = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yields (id, data) for each piece. CLOSE_STDIN and WINDOW_SIZE come once, at their end; STDIN as bytes arrive.

        Unknown ids are yielded too, for the caller to ignore: that is how the protocol leaves room for new ones.
        """
        view = memoryview(data)
        while view:
            if self._kind < 0:
                take = _SHELL_HEADER.size - len(self._head)
                self._head += bytes(view[:take])
                view = view[take:]
                if len(self._head) < _SHELL_HEADER.size:
                    return
                self._kind, self._left = _SHELL_HEADER.unpack(self._head)
                self._head, self._text = b"", b""
            piece, view = bytes(view[: self._left]), view[self._left :]
            self._left -= len(piece)
            if self._kind == ShellId.STDIN:
                if piece:
                    yield self._kind, piece
            elif len(self._text) < self._KEEP_WHOLE:
                self._text += piece[: self._KEEP_WHOLE - len(self._text)]
            if self._left == 0:
                kind, self._kind = self._kind, -1
                if kind != ShellId.STDIN:
                    yield kind, self._text
