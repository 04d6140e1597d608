"""The device side of adb's file sync protocol, as a program: requests on stdin, answers on stdout.

It runs inside the phone's own view of the file system, so that a path means to `adb push` what it means to `adb shell`,
and so that slow disks never hold up the rack. Layouts are those of adb's `file_sync_protocol.h`; what happens to modes
and times is what adbd does: the owner's permission bits are copied to group and others, and both times become the
sender's.

Only the standard library is imported, and little of it: every `adb push` and `adb pull` starts this program once.
With `--root DIR` absolute paths are taken below DIR (for hosts where a phone can have no view of its own).
"""

# pathlib would cost a third of the start-up time
# ruff: noqa: PTH103, PTH108, PTH116, PTH120, PTH123, PTH208, PTH211

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from typing import BinaryIO

DATA_MAX = 64 * 1024
PATH_MAX = 1024
_REQUEST = struct.Struct("<4sI")
_STAT_V1 = struct.Struct("<4s3I")
_STAT_V2 = struct.Struct("<4sI2Q4IQ3q")
_DENT_V1 = struct.Struct("<4s4I")
_DENT_V2 = struct.Struct("<4sI2Q4IQ3qI")
_SEND_V2 = struct.Struct("<4s2I")
_RECV_V2 = struct.Struct("<4sI")
_U32 = 0xFFFFFFFF


class SyncEndError(Exception):
    """The request stream is over, or broken beyond repair."""


class SyncFailError(Exception):
    """This request failed; the text goes to the host as FAIL."""


class SyncService:
    """Answers sync requests until QUIT, the end of input, or a broken request."""

    def __init__(self, source: BinaryIO, sink: BinaryIO, root: str = "") -> None:
        self._source = source
        self._sink = sink
        self._root = root
        self._seconds = 0
        self._in_data = False

    def serve(self) -> None:
        """Runs to the end of the session. Writes FAIL before it gives up on a request that makes no sense."""
        try:
            while True:
                ident, size = _REQUEST.unpack(self._exactly(_REQUEST.size))
                if ident == b"QUIT":
                    return
                if size > PATH_MAX:
                    raise SyncFailError("path too long")
                self._one(ident, self._exactly(size))
                self._sink.flush()
        except SyncFailError as error:
            self._fail(str(error))
        except (SyncEndError, BrokenPipeError):
            pass

    def _one(self, ident: bytes, argument: bytes) -> None:
        match ident:
            case b"STAT":
                self._stat_v1(argument)
            case b"STA2":
                self._stat_v2(ident, argument, follow=True)
            case b"LST2":
                self._stat_v2(ident, argument, follow=False)
            case b"LIST":
                self._list_v1(argument)
            case b"LIS2":
                self._list_v2(argument)
            case b"SEND":
                path, comma, mode = argument.rpartition(b",")
                if not comma or not mode.isdigit():
                    raise SyncFailError("missing , in ID_SEND_V1")
                self._send(path, int(mode))
            case b"SND2":
                again, mode_bits, flags = _SEND_V2.unpack(self._exactly(_SEND_V2.size))
                if again != ident or flags:
                    raise SyncFailError(f"unsupported ID_SEND_V2 flags {flags:#x}")
                self._send(argument, mode_bits)
            case b"RECV":
                self._receive(argument)
            case b"RCV2":
                again, flags = _RECV_V2.unpack(self._exactly(_RECV_V2.size))
                if again != ident or flags:
                    raise SyncFailError(f"unsupported ID_RECV_V2 flags {flags:#x}")
                self._receive(argument)
            case _:
                raise SyncFailError(f"unknown command {ident!r}")

    def _exactly(self, size: int) -> bytes:
        data = self._source.read(size)
        if len(data) != size:
            raise SyncEndError
        return data

    def _fail(self, reason: str) -> None:
        text = reason.encode("utf-8", "replace")
        self._sink.write(_REQUEST.pack(b"FAIL", len(text)) + text)
        self._sink.flush()

    def _place(self, path: bytes) -> str:
        text = os.fsdecode(path)
        if "\0" in text:
            raise SyncFailError("path with a NUL")
        if not self._root:
            return text if text.startswith("/") else "/" + text
        # normpath of an absolute path cannot climb above its root.
        return self._root + os.path.normpath("/" + text.lstrip("/"))

    def _stat_v1(self, path: bytes) -> None:
        try:
            info = os.lstat(self._place(path))
        except OSError:
            self._sink.write(_STAT_V1.pack(b"STAT", 0, 0, 0))
            return
        self._sink.write(_STAT_V1.pack(b"STAT", info.st_mode, info.st_size & _U32, int(info.st_mtime) & _U32))

    def _stat_v2(self, ident: bytes, path: bytes, *, follow: bool) -> None:
        place = self._place(path)
        try:
            info = os.stat(place) if follow else os.lstat(place)
        except OSError as error:
            self._sink.write(_STAT_V2.pack(ident, error.errno or errno.EIO, *([0] * 10)))
            return
        self._sink.write(_STAT_V2.pack(ident, 0, *_fields(info)))

    def _list_v1(self, path: bytes) -> None:
        for name, info in self._entries(path):
            if info is not None:
                self._sink.write(
                    _DENT_V1.pack(b"DENT", info.st_mode, info.st_size & _U32, int(info.st_mtime) & _U32, len(name))
                    + name
                )
        self._sink.write(_DENT_V1.pack(b"DONE", 0, 0, 0, 0))

    def _list_v2(self, path: bytes) -> None:
        for name, info in self._entries(path):
            if info is None:
                self._sink.write(_DENT_V2.pack(b"DNT2", errno.ENOENT, *([0] * 10), len(name)) + name)
            else:
                self._sink.write(_DENT_V2.pack(b"DNT2", 0, *_fields(info), len(name)) + name)
        self._sink.write(_DENT_V2.pack(b"DONE", 0, *([0] * 10), 0))

    def _entries(self, path: bytes) -> list[tuple[bytes, os.stat_result | None]]:
        place = self._place(path)
        try:
            names = [".", "..", *sorted(os.listdir(place))]
        except OSError:
            return []
        found: list[tuple[bytes, os.stat_result | None]] = []
        for name in names:
            try:
                info: os.stat_result | None = os.lstat(f"{place}/{name}")
            except OSError:
                info = None
            found.append((os.fsencode(name), info))
        return found

    def _receive(self, path: bytes) -> None:
        """A file that cannot be opened or read is a FAIL on its own; the session goes on, as with adbd."""
        try:
            with open(self._place(path), "rb", buffering=0) as file:
                while block := file.read(DATA_MAX):
                    self._sink.write(_REQUEST.pack(b"DATA", len(block)))
                    self._sink.write(block)
        except BrokenPipeError:
            raise
        except OSError as error:
            self._fail(f"open failed: {os.strerror(error.errno or errno.EIO)}")
            return
        self._sink.write(_REQUEST.pack(b"DONE", 0))

    def _send(self, path: bytes, mode: int) -> None:
        """Takes DATA until DONE. After an error, the rest is read and thrown away, so that the host gets to see the
        FAIL.
        """
        self._in_data = True
        try:
            place = self._place(path)
            seconds = self._take_link(place) if stat.S_ISLNK(mode) else self._take_file(place, mode)
        except SyncFailError as error:
            self._fail(str(error))
            while self._in_data:
                self._data()
            return
        try:
            os.utime(place, (seconds, seconds), follow_symlinks=False)
        except OSError as error:
            self._fail(f"utime failed: {os.strerror(error.errno or errno.EIO)}")
            return
        self._sink.write(_REQUEST.pack(b"OKAY", 0))

    def _data(self) -> bytes | None:
        """The next DATA, or None at DONE, whose argument (the time, seconds since 1970) is then in `self._seconds`."""
        ident, size = _REQUEST.unpack(self._exactly(_REQUEST.size))
        if ident == b"DONE":
            self._seconds = size
            self._in_data = False
            return None
        if ident != b"DATA" or size > DATA_MAX:
            self._fail("invalid data message" if ident != b"DATA" else "oversize data message")
            raise SyncEndError
        return self._exactly(size)

    def _take_file(self, place: str, mode: int) -> int:
        bits = mode & 0o777
        bits |= (bits >> 3) & 0o070
        bits |= (bits >> 3) & 0o007
        try:
            _unlink(place)
            try:
                fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, bits)
            except FileNotFoundError:
                _make_parents(place)
                fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, bits)
        except OSError as error:
            raise SyncFailError(f"couldn't create file: {os.strerror(error.errno or errno.EIO)}") from None
        try:
            os.fchmod(fd, bits)
            with open(fd, "wb", buffering=0) as file:
                while (block := self._data()) is not None:
                    view = memoryview(block)
                    while view:
                        view = view[file.write(view) :]
        except OSError as error:
            raise SyncFailError(f"write failed: {os.strerror(error.errno or errno.EIO)}") from None
        return self._seconds

    def _take_link(self, place: str) -> int:
        target = b""
        while (block := self._data()) is not None:
            target += block
        try:
            _unlink(place)
            try:
                os.symlink(target.rstrip(b"\0"), os.fsencode(place))
            except FileNotFoundError:
                _make_parents(place)
                os.symlink(target.rstrip(b"\0"), os.fsencode(place))
        except OSError as error:
            raise SyncFailError(f"symlink failed: {os.strerror(error.errno or errno.EIO)}") from None
        return self._seconds


def _fields(info: os.stat_result) -> tuple[int, ...]:
    return (
        info.st_dev,
        info.st_ino,
        info.st_mode,
        info.st_nlink & _U32,
        info.st_uid,
        info.st_gid,
        info.st_size,
        int(info.st_atime),
        int(info.st_mtime),
        int(info.st_ctime),
    )


def _unlink(place: str) -> None:
    """Removes an old file or link of that name, so that a program that still runs from it keeps its own."""
    try:
        info = os.lstat(place)
    except OSError:
        return
    if stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
        os.unlink(place)


def _make_parents(place: str) -> None:
    os.makedirs(os.path.dirname(place), mode=0o775, exist_ok=True)


def main(arguments: list[str]) -> None:
    """Serves one session on stdin and stdout."""
    root = arguments[1] if arguments[:1] == ["--root"] else ""
    with open(0, "rb", buffering=1024 * 1024) as source, open(1, "wb", buffering=1024 * 1024) as sink:
        SyncService(source, sink, root).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
