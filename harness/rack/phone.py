"""One virtual phone: a listening port, a view of its own, and the connections of its hosts; boots, reboots and shuts
down.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Coroutine
from pathlib import Path

from harness.errors import ConfigError, InfraError
from harness.rack.connection import READ_LIMIT, Connection, Service
from harness.rack.faults import FaultSpec
from harness.rack.image import CONTROL, PhoneSpec, append_log, complete_boot, prepare_boot
from harness.rack.injector import Injector
from harness.rack.namespace import View
from harness.rack.protocol import encode_banner
from harness.rack.services import FEATURES, open_service

log = logging.getLogger(__name__)
SETTLE_SHARE = 0.1
"""How much of the boot delay passes between adb's coming back and `sys.boot_completed`, as on a phone."""


class VirtualPhone:
    """Lives from `power_on` to `power_off`. All methods run on the rack's one event loop."""

    def __init__(self, spec: PhoneSpec, root: Path, view: View, *, boot_delay: float) -> None:
        self.spec = spec
        self.root = root
        self.view = view
        self._boot_delay = boot_delay
        self._reservation: socket.socket | None = None
        self._listener: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._rebooting = False
        self._back = asyncio.Event()
        self._control = -1
        self.faults = Injector(self)
        self.port = 0
        self.boot_id = ""

    async def power_on(self, wanted_port: int = 0) -> None:
        """Takes a port (`wanted_port` if it is free) and boots. Raises InfraError where the view or the port cannot be
        had.
        """
        self._reservation = _reserve(wanted_port)
        self.port = self._reservation.getsockname()[1]
        self._control = os.open(self.root / CONTROL, os.O_RDWR | os.O_NONBLOCK)
        asyncio.get_running_loop().add_reader(self._control, self._on_control)
        await self._boot()
        complete_boot(self.root)

    async def power_off(self) -> None:
        """Ends the connections and every process of the phone."""
        self.faults.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._go_down()
        if self._control >= 0:
            asyncio.get_running_loop().remove_reader(self._control)
            os.close(self._control)
        if self._reservation:
            self._reservation.close()

    def reboot(self) -> None:
        """Starts a reboot and returns at once; one that is under way is enough."""
        if not self._rebooting:
            self._rebooting = True
            self._background(self._reboot())

    async def drop_connections(self) -> None:
        """Ends the hosts' connections, as a pulled cable does; the phone's processes live on."""
        await asyncio.gather(*(connection.close() for connection in list(self._connections)))

    def send_garbage(self, data: bytes) -> None:
        """Puts bytes that mean nothing on the hosts' connections."""
        for connection in self._connections:
            connection.send_raw(data)

    async def run(self, command: str) -> int:
        """Runs a command on the phone, without any host; its exit status."""
        launch = self.view.shell(command)
        null = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(
            *launch.argv, stdin=null, stdout=null, stderr=null, env=launch.env, cwd="/", start_new_session=True
        )
        return await process.wait()

    async def _go_away(self, seconds: float) -> None:
        """Is not there for a while, as with a pulled cable: no connections, no new ones; its processes live on."""
        if self._listener is None:
            return
        self._listener.close()
        self._listener = None
        await self.drop_connections()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._back.wait()
        if self._listener is None and not self._rebooting:
            await self._listen()

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, sock=_listening(self.port), limit=READ_LIMIT)

    async def _reboot(self) -> None:
        log.info("%s: reboots", self.spec.name)
        try:
            await self._go_down()
            await asyncio.sleep(self._boot_delay)
            await self._boot()
            await asyncio.sleep(self._boot_delay * SETTLE_SHARE)
            complete_boot(self.root)
        except (InfraError, OSError):
            log.exception("%s: did not come back", self.spec.name)
        finally:
            self._rebooting = False

    async def _boot(self) -> None:
        self.boot_id = prepare_boot(self.root, self.spec)
        await self.view.start()
        self._background(self._watch(self.boot_id))
        await self._listen()
        log.info("%s: up on port %d, boot %s", self.spec.name, self.port, self.boot_id)

    async def _go_down(self) -> None:
        if self._listener:
            self._listener.close()
            self._listener = None
        await self.view.stop()
        await self.drop_connections()

    async def _watch(self, boot_id: str) -> None:
        """A phone whose process 1 dies has crashed: it boots again."""
        await self.view.ended()
        if not self._rebooting and self.boot_id == boot_id:
            append_log(self.root, "F", "kernel", "process 1 died")
            self.reboot()

    def _background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_control(self) -> None:
        """Lines that the phone's own programs, or `tell`, write to its control pipe; unknown ones are ignored."""
        with contextlib.suppress(BlockingIOError):
            for line in os.read(self._control, 4096).decode(errors="replace").splitlines():
                match line.split(maxsplit=1):
                    case ["reboot"]:
                        self.reboot()
                    case ["drop"]:
                        self._background(self.drop_connections())
                    case ["back"]:
                        self._back.set()
                    case ["away", seconds] if seconds.replace(".", "", 1).isdigit():
                        self._back.clear()
                        self._background(self._go_away(float(seconds)))
                    case ["fault", "clear"]:
                        self.faults.clear()
                    case ["fault", text]:
                        self._arm(text)
                    case _:
                        log.warning("%s: told %r, which means nothing", self.spec.name, line[:80])

    def _arm(self, text: str) -> None:
        try:
            self.faults.arm(FaultSpec.from_json(text))
        except ConfigError as error:
            log.warning("%s: %s", self.spec.name, error)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await self.faults.refuse(reader, writer):
            return
        connection = Connection(reader, writer, banner=self._banner(), opener=self._open, pace=self.faults.pace)
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)

    def _banner(self) -> bytes:
        return encode_banner(
            {
                "ro.product.name": self.spec.device,
                "ro.product.model": self.spec.model,
                "ro.product.device": self.spec.device,
            },
            FEATURES,
        )

    async def _open(self, destination: str) -> Service:
        return self.faults.wrap(destination, await open_service(destination, self.view, self.reboot))


def tell(root: Path, line: str) -> None:
    """Tells the running phone whose tree is at `root` to `reboot`, `drop` its connections, be `away SECONDS` at
    most or `back`, or have a `fault` (a `FaultSpec` as JSON, or `clear`).

    Raises InfraError if it does not run.
    """
    try:
        control = os.open(root / CONTROL, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        raise InfraError("the virtual phone is not running", where=str(root), evidence=str(error)) from None
    try:
        os.write(control, line.encode() + b"\n")
    finally:
        os.close(control)


def _bound(port: int) -> socket.socket:
    # With the protocol named, asyncio turns off the delay of small writes, which would cost 40 ms an answer.
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        one.bind(("127.0.0.1", port))
    except OSError:
        one.close()
        raise
    return one


def _reserve(wanted: int) -> socket.socket:
    """Binds a port for the phone's whole life, so that it keeps its serial while it is down and refuses connections.

    The wanted one is tried by listening on it for a moment: binding alone would succeed beside a stranger's
    reservation.
    """
    if wanted:
        try:
            trial = _bound(wanted)
            with trial:
                trial.listen(1)
            return _bound(wanted)
        except OSError:
            log.warning("port %d is taken; using another", wanted)
    while True:
        one = _bound(0)
        if not 5554 <= int(one.getsockname()[1]) <= 5585:  # adb takes whatever answers there for an emulator
            return one


def _listening(port: int) -> socket.socket:
    one = _bound(port)
    one.listen(16)
    one.setblocking(False)
    return one
