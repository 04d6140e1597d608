"""What a host may open on a virtual phone: destination strings to services."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from harness.rack import shell
from harness.rack.connection import Service, ServiceRefusedError, Stream
from harness.rack.namespace import View

FEATURES = ("shell_v2", "stat_v2", "ls_v2", "sendrecv_v2", "fixed_push_mkdir", "fixed_push_symlink_timestamp")
"""Claimed in the banner: only what is there. sendrecv_v2 without any compression, one WRTE at a time."""
CONNECT_SECONDS = 30.0
_PIECE = 256 * 1024


async def open_service(destination: str, view: View, reboot: Callable[[], None]) -> Service:
    """Finds the service for `destination`. Raises ServiceRefusedError for what this phone does not have."""
    if not view.running:
        raise ServiceRefusedError("the phone is going down")
    name, _, argument = destination.partition(":")
    match name.split(","):
        case ["shell", *options]:
            return _shell(view, options, argument)
        case ["exec"]:
            return shell.raw(view, view.shell(argument))
        case ["sync"]:
            return shell.raw(view, view.sync(), merge_stderr=False)
        case ["reboot"]:
            return _reboot(reboot)
        case ["tcp"]:
            return await _tcp(argument)
        case ["localabstract"]:
            return await _abstract(argument)
        case ["root"]:
            return _say(b"adbd cannot run as root in production builds\n")
        case ["unroot"]:
            return _say(b"adbd not running as root\n")
    raise ServiceRefusedError(f"no service {name[:40]!r}")


def _shell(view: View, options: list[str], command: str) -> Service:
    """`shell[,v2][,pty|raw][,TERM=type]:command`; without a word on it, a terminal exactly when there is no command."""
    kind = next((o.removeprefix("TERM=") for o in options if o.startswith("TERM=")), "dumb")
    on_terminal = "pty" in options or ("raw" not in options and not command)
    if on_terminal:
        return shell.terminal(view, view.shell(command, terminal=kind), packets="v2" in options)
    launch = view.shell(command)
    return shell.shell_v2(view, launch) if "v2" in options else shell.raw(view, launch)


def _say(text: bytes) -> Service:
    async def serve(stream: Stream) -> None:
        await stream.write(text)

    return serve


def _reboot(reboot: Callable[[], None]) -> Service:
    async def serve(stream: Stream) -> None:
        reboot()
        await stream.read()  # the connection drops first

    return serve


async def _tcp(argument: str) -> Service:
    """`tcp:PORT`, on the phone itself; a phone's other hosts are not for us to reach."""
    port, _, host = argument.partition(":")
    if not port.isdigit() or not 0 < int(port) < 65536 or host not in ("", "localhost", "127.0.0.1"):
        raise ServiceRefusedError(f"not a port of this phone: {argument[:60]!r}")
    return await _joined(socket.AF_INET, ("127.0.0.1", int(port)))


async def _abstract(name: str) -> Service:
    if not name or len(name.encode("utf-8", "surrogateescape")) > 106:
        raise ServiceRefusedError("not a name for an abstract socket")
    return await _joined(socket.AF_UNIX, b"\0" + name.encode("utf-8", "surrogateescape"))


async def _joined(family: int, address: bytes | tuple[str, int]) -> Service:
    """Connects first, so that the host learns of a refusal, then copies both ways."""
    loop = asyncio.get_running_loop()
    peer = socket.socket(family, socket.SOCK_STREAM)
    peer.setblocking(False)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await loop.sock_connect(peer, address)
    except BaseException as error:
        peer.close()
        if isinstance(error, OSError):  # TimeoutError is one
            raise ServiceRefusedError(f"nobody answers: {error}") from None
        raise

    async def serve(stream: Stream) -> None:
        async def to_peer() -> None:
            while data := await stream.read():
                await loop.sock_sendall(peer, data)

        async def to_host() -> None:
            while data := await loop.sock_recv(peer, _PIECE):
                await stream.write(data)

        # A stream has no half-close: when either side ends, so does the whole, as in adbd.
        tasks = [asyncio.create_task(to_peer()), asyncio.create_task(to_host())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                with contextlib.suppress(OSError):
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            peer.close()

    return serve
