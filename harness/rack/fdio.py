"""Reading and writing file descriptors from asyncio, a piece at a time and with back-pressure, through public
interfaces only.
"""

from __future__ import annotations

import asyncio
import os

PIECE = 256 * 1024
"""Bytes asked for at once; a pipe gives at most what it holds."""


async def _ready(fd: int, *, write: bool) -> None:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not done.done():
            done.set_result(None)

    (loop.add_writer if write else loop.add_reader)(fd, wake)
    try:
        await done
    finally:
        (loop.remove_writer if write else loop.remove_reader)(fd)


async def read_some(fd: int, size: int = PIECE) -> bytes:
    """Up to `size` bytes from a non-blocking descriptor; b"" at its end (a terminal ends with its other side)."""
    while True:
        try:
            return os.read(fd, size)
        except BlockingIOError:
            await _ready(fd, write=False)
        except OSError:
            return b""


async def write_all(fd: int, data: bytes) -> None:
    """Writes all of `data` to a non-blocking descriptor. Raises OSError (a broken pipe) when nobody reads any more."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            await _ready(fd, write=True)


class Descriptor:
    """One non-blocking descriptor that is closed once, however often it is asked."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd

    def close(self) -> None:
        """Closes it; harmless when it is closed already."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    async def read(self) -> bytes:
        """See `read_some`; b"" once closed."""
        return await read_some(self.fd) if self.fd >= 0 else b""

    async def write(self, data: bytes) -> None:
        """See `write_all`; data for a closed descriptor is dropped, as the reader has gone."""
        if self.fd >= 0:
            await write_all(self.fd, data)
