"""Faults at work on one virtual phone: wraps its services, its handshake and its link."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.rack.connection import Service, Stream, StreamClosedError
from harness.rack.faults import FaultKind, FaultPlan, FaultSpec, log_fault, struck_now
from harness.rack.image import append_log
from harness.rack.processes import alive
from harness.rack.protocol import HEADER_SIZE, Command, Frame, decode_header, encode
from harness.rack.record import read_record
from harness.rack.state import COOL, PhoneState, read_state, write_state

if TYPE_CHECKING:
    from harness.rack.phone import VirtualPhone

log = logging.getLogger(__name__)
HOT_CELSIUS, HOT_STATUS = 95.0, 4
LOW_PERCENT = 3
FULL_KIB = 1024
SLOW_BYTES_PER_SECOND = 200_000
RUN_FOLDER = "data/local/tmp/htpfarm/run"
_KILL = (
    "for f in /data/local/tmp/htpfarm/run/*/pid; do read -r pid rest < $f && kill -9 $pid && "
    "log -p I -t lowmemorykiller \"Kill 'qnn_llama_runner' ($pid), uid 2000, oom_score_adj 0 to free 2048000kB\"; done"
)
_TOKEN = 1
_MID_RUN_SECONDS = 0.25
"""How long after its opportunity a fault of the whole phone strikes: in the middle of the command, not before it."""


class Injector:
    """What one phone is armed with, and what of it is in force."""

    def __init__(self, phone: VirtualPhone) -> None:
        self._phone = phone
        self._plan = FaultPlan()
        self._tasks: set[asyncio.Task[None]] = set()
        self._strikes: set[asyncio.Task[None]] = set()  # of those, what clear() ends, too
        self._deaf_until = 0.0
        self._locked_until = 0.0
        self._slow_until = 0.0
        self._bytes = random.Random(phone.spec.name)  # noqa: S311 - which byte is hit, no secret

    def arm(self, spec: FaultSpec) -> None:
        """Takes a fault on: at its moment, or when its opportunity comes."""
        if spec.waits:
            self._plan.arm(spec, self._now())
        else:
            self._later(spec.after_s, spec, "")

    def clear(self) -> None:
        """Ends all faults: those that wait and those in force."""
        self._plan.clear()
        for strike in self._strikes:
            strike.cancel()
        self._deaf_until = self._locked_until = self._slow_until = 0.0
        self._set_state(PhoneState())

    def stop(self) -> None:
        """The phone is switched off."""
        for task in self._tasks:
            task.cancel()

    async def pace(self, size: int) -> None:
        """Makes the link take its time over `size` bytes."""
        if self._slow_until > self._now():
            await asyncio.sleep(size / SLOW_BYTES_PER_SECOND)

    async def refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Deals with a new connection while the phone is offline or unauthorized; False if it is neither."""
        if self._deaf_until > self._now():
            await self._hold(reader, lambda: self._deaf_until)
        elif self._locked_until > self._now():
            await self._ask_for_keys(reader, writer)
        else:
            return False
        writer.close()
        return True

    def wrap(self, destination: str, service: Service) -> Service:
        """The service as the armed faults leave it."""
        name, _, command = destination.partition(":")
        if name.split(",")[0] in ("shell", "exec"):
            return self._shell(command, service)
        return self._sync(service) if name == "sync" else service

    def _shell(self, command: str, service: Service) -> Service:
        hang = False
        for spec in self._plan.due("shell", command, self._now()):
            if spec.kind is FaultKind.HANG_SHELL:
                hang = True
                self._note(spec.kind, command)
            else:
                self._later(_MID_RUN_SECONDS, spec, command)
        return _hang if hang else service

    def _sync(self, service: Service) -> Service:
        async def serve(stream: Stream) -> None:
            await service(_SyncTap(stream, self._strike_transfer))

        return serve

    async def _strike_transfer(self, pulling: bool, data: bytes) -> bytes:
        """Called with the first piece of a file; returns it as it is to go on."""
        for spec in self._plan.due("pull" if pulling else "push", "", self._now()):
            self._note(spec.kind, f"{len(data)} bytes")
            if spec.kind is FaultKind.CORRUPT_PULL:
                # Past the header of the first DATA: in the file itself.
                start = data.find(b"DATA") + 8
                if 8 <= start < len(data):
                    size = int.from_bytes(data[start - 4 : start], "little")
                    place = start + self._bytes.randrange(max(1, min(size, len(data) - start)))
                    data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            else:
                # By a task of its own: this one belongs to the connection that is dropped.
                self._spawn(self._phone.drop_connections())
                raise StreamClosedError
        return data

    def _later(self, seconds: float, spec: FaultSpec, detail: str) -> None:
        async def strike() -> None:
            await asyncio.sleep(seconds)
            self._note(spec.kind, detail)
            await self._strike(spec)

        task = self._spawn(strike())
        self._strikes.add(task)
        task.add_done_callback(self._strikes.discard)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _strike(self, spec: FaultSpec) -> None:
        now = self._now()
        match spec.kind:
            case FaultKind.REBOOT:
                self._phone.reboot()
            case FaultKind.OFFLINE:
                self._deaf_until = now + spec.seconds
                await self._phone.drop_connections()
            case FaultKind.UNAUTHORIZED:
                self._locked_until = now + spec.seconds
                await self._phone.drop_connections()
            case FaultKind.SLOW:
                self._slow_until = now + spec.seconds
            case FaultKind.GARBAGE:
                self._phone.send_garbage(self._bytes.randbytes(4096))
            case FaultKind.KILL_RUNNER:
                await self._phone.run(_KILL)
            case FaultKind.ADB_DOWN:
                self._kill_adb()
            case FaultKind.HOT | FaultKind.BATTERY | FaultKind.STORAGE:
                await self._state_for(spec)

    async def _state_for(self, spec: FaultSpec) -> None:
        fields: dict[FaultKind, tuple[dict[str, object], dict[str, object]]] = {
            FaultKind.HOT: (
                {"zones": dict.fromkeys(COOL, HOT_CELSIUS), "thermal_status": HOT_STATUS},
                {"zones": COOL, "thermal_status": 0},
            ),
            FaultKind.BATTERY: (
                {"battery_level": LOW_PERCENT, "battery_status": "Discharging"},
                {"battery_level": 100, "battery_status": "Full"},
            ),
            FaultKind.STORAGE: ({"data_free_kib": FULL_KIB}, {"data_free_kib": None}),
        }
        worse, better = fields[spec.kind]
        self._set_state(replace(read_state(self._phone.root), **worse))  # type: ignore[arg-type]
        await asyncio.sleep(spec.seconds)
        self._set_state(replace(read_state(self._phone.root), **better))  # type: ignore[arg-type]

    def _set_state(self, state: PhoneState) -> None:
        write_state(self._phone.root, state)

    def _kill_adb(self) -> None:
        record = read_record(self._folder)
        if record and record.adb and alive(record.adb):
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.adb.pid, signal.SIGKILL)

    @property
    def _folder(self) -> Path:
        return self._phone.root.parents[1]

    def _note(self, kind: FaultKind, detail: str) -> None:
        log.info("%s: fault %s: %s", self._phone.spec.name, kind, detail[:120])
        log_fault(self._folder, struck_now(self._phone.spec.name, kind, detail[-200:]))
        append_log(self._phone.root, "W", "htpfarm-fault", kind)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _hold(self, reader: asyncio.StreamReader, until: Callable[[], float]) -> None:
        """Takes what comes and says nothing."""
        while (left := until() - self._now()) > 0:
            try:
                async with asyncio.timeout(min(left, 0.2)):
                    if not await reader.read(4096):
                        return
            except TimeoutError:
                continue
            except OSError:
                return

    async def _ask_for_keys(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """AUTH with a token whenever the host says something, until the lock is over (adb's `protocol.txt`)."""
        with contextlib.suppress(asyncio.IncompleteReadError, OSError, TimeoutError):
            async with asyncio.timeout(max(0.0, self._locked_until - self._now())):
                while True:
                    header = decode_header(await reader.readexactly(HEADER_SIZE))
                    await reader.readexactly(header.length)
                    if header.command is Command.AUTH and header.arg0 == 3:
                        continue  # a public key, for a person to accept on the screen: nobody does
                    writer.write(encode(Frame(Command.AUTH, _TOKEN, 0, self._bytes.randbytes(20)), with_checksum=True))
                    await writer.drain()


async def _hang(stream: Stream) -> None:
    while await stream.read():
        pass


class _SyncTap(Stream):
    """A stream of the sync service that tells pushes from pulls and lets their first piece be dealt with."""

    def __init__(self, inner: Stream, strike: Callable[[bool, bytes], Awaitable[bytes]]) -> None:
        # Everything goes through `inner`: this one has no connection of its own.
        self._inner = inner
        self._strike = strike
        self._head = b""
        self._pulling = False
        self._over = False

    async def read(self) -> bytes:
        data = await self._inner.read()
        if not self._over and not self._pulling:
            self._head += data
            if (found := self._request()) == b"SEND":
                self._over = True
                return await self._strike(False, data)
            self._pulling = found == b"RECV"
        return data

    async def write(self, data: bytes) -> None:
        if self._pulling and not self._over and b"DATA" in data:
            self._over = True
            data = await self._strike(True, data)
        await self._inner.write(data)

    async def flush(self) -> None:
        await self._inner.flush()

    def _request(self) -> bytes:
        """SEND or RECV once one was asked for; requests before it (stat, list) are passed over."""
        while len(self._head) >= 8:
            ident, size = self._head[:4], int.from_bytes(self._head[4:8], "little")
            if ident in (b"SEND", b"SND2"):
                return b"SEND"
            if ident in (b"RECV", b"RCV2"):
                return b"RECV"
            if len(self._head) < 8 + size:
                break
            self._head = self._head[8 + size :]
        return b""
