"""One host's connection to a virtual phone: the handshake, and streams with flow control.

From adb's `protocol.txt`: after OPEN is answered with OKAY, each side may have one WRTE outstanding per stream, and
sends the next when an OKAY has come. A message that breaks the format closes the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from harness.rack.protocol import (
    HEADER_SIZE,
    MAX_PAYLOAD,
    MAX_PAYLOAD_OLDEST,
    VERSION,
    VERSION_WITH_CHECKSUM,
    Command,
    Frame,
    ProtocolError,
    decode_header,
    decode_payload,
    encode_header,
    parse_features,
)

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 30.0
MAX_STREAMS = 1024
_JOIN_BELOW = 64 * 1024
"""Payloads up to this size go out in one write with their header; copying larger ones would cost more than it saves."""
READ_LIMIT = 2 * (MAX_PAYLOAD + HEADER_SIZE)


class StreamClosedError(Exception):
    """The host closed the stream, or the connection ended, while a service was still writing."""


class ServiceRefusedError(Exception):
    """The phone has no such service, or what it names does not answer: the host gets CLSE instead of OKAY."""


Service = Callable[["Stream"], Awaitable[None]]
"""Runs one opened stream until it is done; the connection closes the stream afterwards."""
Opener = Callable[[str], Awaitable[Service]]
"""Finds the service for a destination such as `shell,v2,raw:ls`. Raises ServiceRefusedError."""


class Stream:
    """One stream, as seen by the service that serves it."""

    def __init__(self, connection: Connection, local_id: int, remote_id: int) -> None:
        self._connection = connection
        self.local_id = local_id
        self.remote_id = remote_id
        self._arrived = asyncio.Event()
        self._inbox: bytes | None = None
        self._owes_okay = False
        self._may_write = asyncio.Event()
        self._may_write.set()
        self.closed = False

    async def read(self) -> bytes:
        """The payload of the next WRTE; b"" when the host has closed the stream.

        The previous payload is acknowledged here, that is, once its consumer has dealt with it: that is the
        back-pressure.
        """
        if self._owes_okay:
            self._owes_okay = False
            await self._connection.send(Frame(Command.OKAY, self.local_id, self.remote_id))
        while self._inbox is None and not self.closed:
            self._arrived.clear()
            await self._arrived.wait()
        data, self._inbox = self._inbox, None
        if data is None:
            return b""
        self._owes_okay = True
        return data

    async def write(self, data: bytes) -> None:
        """Sends `data` in as many WRTE as it takes. Raises StreamClosedError if the host is gone."""
        for start in range(0, len(data), self._connection.max_payload):
            await self._turn_to_write()
            self._may_write.clear()
            piece = data[start : start + self._connection.max_payload]
            await self._connection.send(Frame(Command.WRTE, self.local_id, self.remote_id, piece))

    async def flush(self) -> None:
        """Waits until the host has taken the last WRTE."""
        await self._turn_to_write()

    async def _turn_to_write(self) -> None:
        await self._may_write.wait()
        if self.closed:
            raise StreamClosedError

    def deliver(self, payload: bytes) -> None:
        """A WRTE has come. Raises ProtocolError if the one before has not been acknowledged yet."""
        if self._inbox is not None or self._owes_okay:
            raise ProtocolError(f"stream {self.local_id}: a second WRTE before the first was acknowledged")
        if payload:
            self._inbox = payload
        else:
            # Nothing to consume, yet the host waits for its OKAY.
            self._inbox = None
            self._connection.send_soon(Frame(Command.OKAY, self.local_id, self.remote_id))
        self._arrived.set()

    def acknowledge(self) -> None:
        """An OKAY has come."""
        self._may_write.set()

    def end(self) -> None:
        """The host has closed it, or the connection is gone: readers see the end, writers StreamClosedError."""
        self.closed = True
        self._arrived.set()
        self._may_write.set()


class Connection:
    """Serves one TCP connection of an adb server until either side ends it."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        banner: bytes,
        opener: Opener,
        pace: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """
        Args:
            banner: what the phone says of itself.
            opener: finds services.
            pace: awaited with the size of each message that comes or goes; makes a link slow.
        """
        self._reader = reader
        self._writer = writer
        self._banner = banner
        self._opener = opener
        self._pace = pace
        self._streams: dict[int, Stream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_id = 1
        self._checksums = False
        self.max_payload = MAX_PAYLOAD_OLDEST
        self.host_features: frozenset[str] = frozenset()

    async def serve(self) -> None:
        """Runs the connection to its end. Never raises for what the other side does."""
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await self._handshake()
            while True:
                await self._dispatch(await self._receive())
        except ProtocolError as error:
            log.warning("closing a connection: %s", error)
        except (TimeoutError, asyncio.IncompleteReadError, OSError) as error:
            log.info("connection ended: %r", error)
        finally:
            await self.close()

    async def close(self) -> None:
        """Drops the connection and ends its streams."""
        self._writer.close()
        for stream in self._streams.values():
            stream.end()
        self._streams.clear()
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def send(self, frame: Frame) -> None:
        """Sends one frame whole; waits while the socket's buffer is full."""
        if self._pace:
            await self._pace(HEADER_SIZE + len(frame.payload))
        self.send_soon(frame)
        try:
            await self._writer.drain()
        except OSError:
            raise StreamClosedError from None

    def send_soon(self, frame: Frame) -> None:
        """Queues one frame without waiting."""
        if self._writer.is_closing():
            return
        header = encode_header(frame, with_checksum=self._checksums)
        if len(frame.payload) <= _JOIN_BELOW:
            self._writer.write(header + frame.payload)
        else:
            self._writer.write(header)
            self._writer.write(frame.payload)

    def send_raw(self, data: bytes) -> None:
        """Queues bytes that are no message: the host will not like them."""
        if not self._writer.is_closing():
            self._writer.write(data)

    async def _receive(self) -> Frame:
        header = decode_header(await self._reader.readexactly(HEADER_SIZE))
        if self._pace:
            await self._pace(HEADER_SIZE + header.length)
        payload = await self._reader.readexactly(header.length) if header.length else b""
        return decode_payload(header, payload, with_checksum=self._checksums)

    async def _handshake(self) -> None:
        frame = await self._receive()
        while frame.command is not Command.CNXN:  # "Any messages received before a CONNECT message MUST be ignored."
            frame = await self._receive()
        version, max_payload = frame.arg0, frame.arg1
        if version < VERSION_WITH_CHECKSUM or max_payload < MAX_PAYLOAD_OLDEST:
            raise ProtocolError(f"CNXN with version {version:#010x} and maxdata {max_payload}")
        self.max_payload = min(max_payload, MAX_PAYLOAD)
        self.host_features = parse_features(frame.payload)
        # Our own CNXN goes out with a checksum if the host may want one.
        self._checksums = version < VERSION
        await self.send(Frame(Command.CNXN, min(version, VERSION), MAX_PAYLOAD, self._banner))

    async def _dispatch(self, frame: Frame) -> None:
        match frame.command:
            case Command.OPEN:
                self._open(frame)
            case Command.WRTE:
                if stream := self._find(frame):
                    stream.deliver(frame.payload)
            case Command.OKAY:
                if stream := self._find(frame):
                    stream.acknowledge()
            case Command.CLSE:
                if stream := self._find(frame):
                    stream.end()
            case Command.CNXN | Command.STLS:
                raise ProtocolError(f"{frame.command.name} on an open connection")
            case Command.AUTH | Command.SYNC:
                pass  # no authentication was asked for; SYNC is obsolete and internal

    def _find(self, frame: Frame) -> Stream | None:
        stream = self._streams.get(frame.arg1)
        # A failed OPEN is closed with arg0 = 0; anything else must name both ends.
        return stream if stream and frame.arg0 in (stream.remote_id, 0) else None

    def _open(self, frame: Frame) -> None:
        if frame.arg0 == 0:
            raise ProtocolError("OPEN with a local id of zero")
        if len(self._streams) >= MAX_STREAMS:
            self.send_soon(Frame(Command.CLSE, 0, frame.arg0))
            return
        stream = Stream(self, self._next_id, frame.arg0)
        self._next_id = self._next_id % 0xFFFFFFFF + 1
        self._streams[stream.local_id] = stream
        destination = frame.payload.rstrip(b"\0").decode("utf-8", "surrogateescape")
        task = asyncio.create_task(self._run(stream, destination))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, stream: Stream, destination: str) -> None:
        try:
            try:
                service = await self._opener(destination)
            except ServiceRefusedError as error:
                log.info("refused %r: %s", destination[:200], error)
                stream.local_id, refused = 0, stream.local_id
                self._streams.pop(refused, None)
                return
            await self.send(Frame(Command.OKAY, stream.local_id, stream.remote_id))
            await service(stream)
            await stream.flush()
        except StreamClosedError:
            pass
        except Exception:
            log.exception("service %r failed", destination[:200])
        finally:
            stream.end()
            self._streams.pop(stream.local_id, None)
            with contextlib.suppress(StreamClosedError):
                self.send_soon(Frame(Command.CLSE, stream.local_id, stream.remote_id))
