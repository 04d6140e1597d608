"""Running a phone's commands on a stream: raw, over a terminal, and with the shell protocol of version 2."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from harness.rack.connection import Service, Stream, StreamClosedError
from harness.rack.fdio import Descriptor
from harness.rack.namespace import Launch, View
from harness.rack.protocol import ShellDecoder, ShellId, encode_shell

_PIPE_BYTES = 1024 * 1024
Send = Callable[[bytes], Awaitable[None]]


@asynccontextmanager
async def _spawned(
    view: View, launch: Launch, stdin: int, stdout: int, stderr: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Starts the program on descriptors that are closed here once it has them."""
    try:
        process = await asyncio.create_subprocess_exec(
            *launch.argv, stdin=stdin, stdout=stdout, stderr=stderr, env=launch.env, cwd="/", start_new_session=True
        )
    finally:
        for fd in {stdin, stdout, stderr}:
            os.close(fd)
    view.started(process.pid)
    try:
        yield process
    finally:
        # Whoever still runs after its host has gone keeps running, as on a phone; it is collected when it ends.
        _collect_later(view, process)


_collectors: set[asyncio.Task[None]] = set()


def _collect_later(view: View, process: asyncio.subprocess.Process) -> None:
    async def collect() -> None:
        await process.wait()
        view.finished(process.pid)

    task = asyncio.create_task(collect())
    _collectors.add(task)
    task.add_done_callback(_collectors.discard)


def _pipe() -> tuple[int, int]:
    read, write = os.pipe()
    with contextlib.suppress(OSError):  # over the user's limit: the usual 64 KiB then
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return read, write


async def _copy(source: Descriptor, send: Send) -> None:
    while data := await source.read():
        await send(data)


async def _until_closed(work: Awaitable[int | None], watch: Awaitable[None]) -> int | None:
    """Runs `work`; ends it with StreamClosedError when `watch` (reading from the host) sees the host close the stream
    first.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(watch)
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            watching.result()
            raise StreamClosedError
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _feed(stream: Stream, target: Descriptor) -> None:
    """Hands what the host sends to the program, to the end of the stream."""
    while data := await stream.read():
        with contextlib.suppress(OSError):  # it has stopped reading: drop the rest
            await target.write(data)


def raw(view: View, launch: Launch, *, merge_stderr: bool = True) -> Service:
    """stdout (and stderr with it, unless told to drop it) to the host, the host's bytes to stdin; no exit status."""

    async def serve(stream: Stream) -> None:
        stdin_read, stdin_write = _pipe()
        stdout_read, stdout_write = _pipe()
        stderr_write = os.dup(stdout_write) if merge_stderr else os.open(os.devnull, os.O_WRONLY)
        stdin, stdout = Descriptor(stdin_write), Descriptor(stdout_read)
        try:
            async with _spawned(view, launch, stdin_read, stdout_write, stderr_write):
                await _until_closed(_copy_all([(stdout, stream.write)]), _feed(stream, stdin))
        finally:
            stdin.close()
            stdout.close()

    return serve


async def _copy_all(pairs: list[tuple[Descriptor, Send]]) -> int | None:
    host_gone = False
    try:
        async with asyncio.TaskGroup() as group:
            for source, send in pairs:
                group.create_task(_copy(source, send))
    except* StreamClosedError:
        host_gone = True
    if host_gone:
        raise StreamClosedError
    return None


def shell_v2(view: View, launch: Launch) -> Service:
    """Separate stdout and stderr, stdin that can be closed, and the exit status, each in packets."""

    async def serve(stream: Stream) -> None:
        stdin_read, stdin_write = _pipe()
        stdout_read, stdout_write = _pipe()
        stderr_read, stderr_write = _pipe()
        stdin, stdout, stderr = Descriptor(stdin_write), Descriptor(stdout_read), Descriptor(stderr_read)

        async def host() -> None:
            decoder = ShellDecoder()
            while data := await stream.read():
                for kind, piece in decoder.feed(data):
                    if kind == ShellId.STDIN:
                        with contextlib.suppress(OSError):
                            await stdin.write(piece)
                    elif kind == ShellId.CLOSE_STDIN:
                        stdin.close()

        try:
            async with _spawned(view, launch, stdin_read, stdout_write, stderr_write) as process:

                async def output() -> int:
                    await _copy_all(
                        [(stdout, _packets(stream, ShellId.STDOUT)), (stderr, _packets(stream, ShellId.STDERR))]
                    )
                    return await process.wait()

                status = await _until_closed(output(), host())
            await stream.write(encode_shell(ShellId.EXIT, bytes([_exit_byte(status)])))
        finally:
            for descriptor in (stdin, stdout, stderr):
                descriptor.close()

    return serve


def _packets(stream: Stream, kind: ShellId) -> Send:
    async def send(data: bytes) -> None:
        await stream.write(encode_shell(kind, data))

    return send


def _exit_byte(status: int | None) -> int:
    """A shell's convention: 128 + N for a program that signal N ended."""
    if status is None:
        return 255
    return (128 - status if status < 0 else status) & 0xFF


def terminal(view: View, launch: Launch, *, packets: bool) -> Service:
    """On a pseudo-terminal, with or without the shell protocol. When the host goes, the terminal hangs up."""

    async def serve(stream: Stream) -> None:
        master, slave = os.openpty()
        pty = Descriptor(master)
        send = _packets(stream, ShellId.STDOUT) if packets else stream.write

        async def host() -> None:
            decoder = ShellDecoder()
            while data := await stream.read():
                for kind, piece in decoder.feed(data) if packets else [(int(ShellId.STDIN), data)]:
                    if kind == ShellId.STDIN:
                        with contextlib.suppress(OSError):
                            await pty.write(piece)
                    elif kind == ShellId.WINDOW_SIZE:
                        _resize(pty.fd, piece)

        try:
            async with _spawned(view, launch, slave, os.dup(slave), os.dup(slave)) as process:

                async def output() -> int:
                    await _copy(pty, send)
                    return await process.wait()

                status = await _until_closed(output(), host())
            if packets:
                await stream.write(encode_shell(ShellId.EXIT, bytes([_exit_byte(status)])))
        finally:
            pty.close()

    return serve


def _resize(fd: int, text: bytes) -> None:
    """`ROWSxCOLS,XPIXELSxYPIXELS`, as the host writes it; anything else is ignored."""
    try:
        cells, _, pixels = text.rstrip(b"\0").partition(b",")
        rows, columns = (int(n) for n in cells.split(b"x"))
        width, height = (int(n) for n in pixels.split(b"x"))
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, width, height))
    except (ValueError, struct.error, OSError):
        pass
