"""A run's side of an engine: which hosts there are, tasks on them, files there and back."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock

from harness.engine.connection import Connection, Member
from harness.engine.facts import PHONE, HostReport, InOrder, check_hosts, own_identity
from harness.engine.files import (
    Bundle,
    merge_into,
    pieces,
    put_in_place,
    read_piece,
    write_piece,
)
from harness.engine.host import files_at, give_piece, missing, new_token, report, take_piece, took_all
from harness.errors import InfraError
from harness.paths import cache_root

LOOK_S = 1.0
"""How often it is looked whether a host is still there, in seconds."""
SILENT_TIMES = 3
"""So often in a row the scheduler may not answer before what runs is given up."""
REPORT_LIMIT_S, PIECE_LIMIT_S, HASH_LIMIT_S, RESULT_LIMIT_S = 60.0, 120.0, 600.0, 60.0
ASK_LIMIT_S = 15.0
TRY_LIMIT_S = 12 * 3600.0
"""For one try of a cell, the wait for its phone included."""


class Engine:
    """A driver's view of an engine's hosts; it connects when it is first asked."""

    def __init__(self, address: str, tls: Path | None = None, known: Sequence[HostReport] = ()) -> None:
        """
        Args:
            address: of the engine.
            tls: folder with the certificates; None: as the environment says.
            known: hosts that have been checked.
        """
        self._named, self._tls = address, tls
        self._known = {one.address: one for one in known}
        self._connection: Connection | None = None
        self._lock = threading.Lock()

    @property
    def connection(self) -> Connection:
        """The way to it. Raises as `Connection`."""
        with self._lock:
            if self._connection is None:
                self._connection = Connection(self._named, self._tls)
            return self._connection

    @property
    def address(self) -> str:
        """With its scheme."""
        return self.connection.address

    def close(self) -> None:
        """Ends the connection, if there is one."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def reports(self) -> tuple[HostReport, ...]:
        """All hosts by their own account, by name; unchecked.

        Raises:
            ConfigError, InfraError: as `Connection`.
        """
        found = []
        for address in sorted(self.connection.members()):
            if (one := self._report(address)) is not None:
                found.append(one)
        return tuple(sorted(found, key=lambda one: (one.host, one.address)))

    def _report(self, address: str) -> HostReport | None:
        said = self.connection.ask(address, report, limit_s=REPORT_LIMIT_S)
        return replace(HostReport.from_data(said), address=address) if said is not None else None

    def admit(self) -> tuple[HostReport, ...]:
        """All hosts, checked against this one.

        Raises:
            ConfigError: one is not like this one, or two offer one phone.
            InfraError: there is none that offers a phone.
        """
        found = self.reports()
        check_hosts(own_identity(), found, self.address)
        if not any(one.phones for one in found):
            raise InfraError(
                "no host of the engine offers a phone",
                where=self.address,
                remedy="on a rack host: `htpfarm engine join ADDRESS --rack devices.yaml`; see `htpfarm engine ls`",
            )
        self._known = {one.address: one for one in found}
        return found

    def members(self) -> dict[str, Member]:
        """As `Connection.members`."""
        return self.connection.members()

    def name_of(self, address: str) -> str:
        """What people call a host."""
        return self._known[address].host if address in self._known else address

    def trusted(self, address: str) -> bool:
        """Whether a host was checked; one that has come since is checked now.

        Raises:
            ConfigError: it is not like this one.
            InfraError: it does not answer.
        """
        if address in self._known:
            return True
        one = self._report(address)
        if one is None:
            return False
        check_hosts(own_identity(), [one], self.address)
        self._known[address] = one
        return True

    def phones_now(self) -> dict[str, tuple[str, str]]:
        """Phone → its host's address, and why the phone is of no use at the moment (empty: it is)."""
        return phones_of(self.members())

    def follow(
        self,
        address: str,
        function: Callable[[Any], dict[str, Any]],
        order: Any,
        resources: Mapping[str, float],
        deliver: Callable[[dict[str, Any]], None],
        limit_s: float = TRY_LIMIT_S,
        stop: threading.Event | None = None,
    ) -> dict[str, Any]:
        """Has a host do a task; hands on its messages, in order and each once, as they come.

        Args:
            address: of the host.
            function: the task, which returns a dict with all its `messages`.
            order: what it is given; its `token` names it.
            resources: what it takes there.
            deliver: called in this thread.
            limit_s: how long it may take, waiting included.
            stop: gives it up when set.

        Returns:
            What the task returned.

        Raises:
            InfraError: the host or the engine is lost, or the time is over.
        """
        connection, token = self.connection, str(order.token)
        inbox: queue.Queue[dict[str, Any]] = queue.Queue()
        coming = InOrder()

        def hand_on(message: dict[str, Any]) -> None:
            for each in coming.take(message["n"], message):
                deliver(each)

        connection.listen(token, inbox.put)
        future = connection.submit(function, order, worker=address, resources=resources, key=token)
        try:
            deadline, look, silent = time.monotonic() + limit_s, time.monotonic() + LOOK_S, 0
            while not future.done():
                with contextlib.suppress(queue.Empty):
                    hand_on(inbox.get(timeout=0.2))
                    while True:
                        hand_on(inbox.get_nowait())
                now = time.monotonic()
                if now > deadline:
                    raise InfraError(f"no end within {limit_s:.0f} s", where=self.name_of(address))
                if stop is not None and stop.is_set():
                    raise InfraError("given up: the run ends", where=self.name_of(address))
                if now < look:
                    continue
                look = now + LOOK_S
                try:
                    there, silent = address in self.members(), 0
                except InfraError:
                    there, silent = True, silent + 1
                    if silent == SILENT_TIMES:
                        raise
                if not there:
                    raise self.lost(address)
            try:
                result: dict[str, Any] = future.result(timeout=RESULT_LIMIT_S)
            except Exception as error:
                raise self.lost(address, error) from error
            while not inbox.empty():
                hand_on(inbox.get_nowait())
            for message in result["messages"]:
                hand_on(message)
            return result
        finally:
            connection.unlisten(token)
            with contextlib.suppress(Exception):
                future.cancel()

    def lost(self, address: str, error: Exception | None = None) -> InfraError:
        """The error for a host that is gone."""
        return InfraError(
            f"the host {self.name_of(address)} was lost ({address})",
            where=self._named,
            remedy="see whether that computer, its network and its `htpfarm engine join` are up",
            evidence=f"{type(error).__name__}: {error}"[:500] if error else "",
        )

    def send(self, address: str, one: Bundle, say: Callable[[str], None]) -> str:
        """Brings a bundle to a host unless it is there; returns where it is.

        Raises:
            InfraError: it could not be brought.
        """
        ask = self.connection.ask
        lock = cache_root() / "locks" / f"engine-{quote(address, safe='')}-{quote(one.place, safe='')}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        # The run's other processes may need it there, too.
        with FileLock(lock, timeout=HASH_LIMIT_S + PIECE_LIMIT_S * max(1, len(pieces(one.files)))):
            if found := ask(address, missing, one.place, one.files, dict(one.sources), limit_s=HASH_LIMIT_S):
                return str(found)
            token = new_token()
            whole = sum(file.bytes for file in one.files)
            say(f"sending {one.place} to {self.name_of(address)}: {whole / 1e6:.1f} MB")
            for file, offset, length in pieces(one.files):
                data = read_piece(Path(one.sources[file.path]), offset, length)
                ask(address, take_piece, one.place, token, file.path, offset, data, limit_s=PIECE_LIMIT_S)
            return str(ask(address, took_all, one.place, token, one.files, limit_s=HASH_LIMIT_S))

    def fetch(self, address: str, place: str, target: Path, *, merge: bool = False) -> int:
        """Brings a folder below a host's cache here; returns its bytes.

        Args:
            address: of the host.
            place: the folder.
            target: where to; made in one step, unless `merge`.
            merge: add the files to a folder that may have others.

        Raises:
            InfraError: it could not be brought.
        """
        ask = self.connection.ask
        files = ask(address, files_at, place, limit_s=HASH_LIMIT_S)
        if not files:
            return 0
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.{new_token()}")
        for file, offset, length in pieces(files):
            data = ask(address, give_piece, place, file.path, offset, length, limit_s=PIECE_LIMIT_S)
            write_piece(scratch / file.path, offset, data)
        (merge_into if merge else put_in_place)(scratch, target, files)
        return sum(file.bytes for file in files)


def phones_of(members: Mapping[str, Member]) -> dict[str, tuple[str, str]]:
    """Phone → its host's address, and why it is of no use at the moment. Pure."""
    found = {}
    for address, member in sorted(members.items()):
        trouble = member.state.get("trouble", {})
        for resource in member.resources:
            if resource.startswith(PHONE):
                name = resource.removeprefix(PHONE)
                found[name] = (address, str(trouble.get(name, "")))
    return found
