"""Builds on compile hosts: a group of builds goes to the host with most memory left, what comes of it comes here."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from harness.build.builder import Builder, Limits, Progress, Request, Result, check_disk, groups, known_and_missing
from harness.build.events import Event
from harness.build.preflight import estimate
from harness.build.reference import FILE
from harness.conduct.retry import INFRA_TRIES
from harness.engine.driver import Engine
from harness.engine.facts import MEMORY, place
from harness.engine.host import new_token
from harness.engine.work import BuildOrder, build_here, order_of
from harness.errors import BuildError, HarnessError, InfraError, error_from_data
from harness.paths import cache_root

POLL_S = 1.0


class EngineBuilder:
    """As `Builder`, on an engine's compile hosts; where there is none, or none is left, on this computer.

    What this computer's cache has is not built. What a host makes is brought here: cells' phones get it from here.
    """

    def __init__(self, engine: Engine, local: Builder, say: Callable[[str], None]) -> None:
        """
        Args:
            engine: whose hosts.
            local: builds here.
            say: progress.
        """
        self._engine, self._local, self._say = engine, local, say
        self._used: dict[str, float] = {}
        self._changed = threading.Condition()
        self._alone = threading.Lock()
        self._stop = threading.Event()

    def stop(self) -> None:
        """Gives up what is being built; what had not finished fails."""
        self._stop.set()
        self._local.stop()

    def build(self, requests: Sequence[Request], progress: Progress | None = None) -> Iterator[Result]:
        """As `Builder.build`.

        Raises:
            EnvError: too little disk is left here.
        """
        reused, distinct = known_and_missing(requests)
        yield from reused
        if not distinct:
            return
        check_disk(cache_root())
        results: queue.Queue[Result] = queue.Queue()
        cut = groups(distinct)
        with ThreadPoolExecutor(len(cut)) as pool:
            for group in cut:
                pool.submit(self._group, group, results.put, progress or (lambda _name, _event: None))
            try:
                for _ in distinct:
                    yield results.get(timeout=2 * Limits.seconds)
            finally:
                self.stop()

    def _group(self, group: Sequence[Request], report: Callable[[Result], None], progress: Progress) -> None:
        """Reports each request's result, whatever happens."""
        left = {request.artifact.key: request for request in group}
        began = time.monotonic()

        def settle(key: str, error: BuildError | None, **more: Any) -> None:
            if request := left.pop(key, None):
                seconds = more.get("seconds", round(time.monotonic() - began, 2))
                report(Result(request, more.get("reused", False), seconds, error, more.get("peak_mb", 0.0)))

        try:
            self._build(group, left, settle, progress)
        except HarnessError as error:
            stopped = BuildError(error.what, where=error.where, remedy=error.remedy, evidence=error.evidence)
            for key in list(left):
                settle(key, stopped)
        except Exception as error:
            # A thread's exception has no one to go to: it becomes the group's result.
            for key in list(left):
                settle(key, BuildError(f"the build stopped: {error!r}", where=group[0].cell.id))

    def _build(
        self,
        group: Sequence[Request],
        left: Mapping[str, Request],
        settle: Callable[..., None],
        progress: Progress,
    ) -> None:
        need = estimate(group[0].cell.model, {request.cell.mode for request in group}).memory_mb
        losses = 0
        while left:
            address = self._take(need, group[0].cell.id)
            if address is None:
                self._say("no compile host is there: compiling on this computer")
                with self._alone:  # its room for several builds is one call's
                    for result in self._local.build(list(left.values()), progress):
                        more = {"seconds": result.seconds, "reused": result.reused, "peak_mb": result.peak_mb}
                        settle(result.request.artifact.key, result.error, **more)
                return
            try:
                self._on_host(address, need, left, settle, progress)
            except InfraError as error:
                losses += 1
                if losses == INFRA_TRIES or self._stop.is_set():
                    raise
                self._say(f"{error.what}; what it had not made is made elsewhere")
            finally:
                with self._changed:
                    self._used[address] -= need
                    self._changed.notify_all()

    def _take(self, need: float, what: str) -> str | None:
        """Waits for a compile host with so much memory left, and takes it; None: there is no compile host.

        Raises:
            BuildError: none will ever have so much.
            InfraError: none had in time.
        """
        deadline = time.monotonic() + Limits.seconds
        while True:
            members = self._engine.members()
            whole = {
                address: member.resources[MEMORY]
                for address, member in members.items()
                if member.resources.get(MEMORY) and self._engine.trusted(address)
            }
            if not whole:
                return None
            if max(whole.values()) < need:
                most = max(whole, key=lambda address: whole[address])
                raise BuildError(
                    f"compiling takes about {need:.0f} MB, and the largest compile host, {self._engine.name_of(most)}, "
                    f"offers {whole[most]:.0f} MB",
                    where=what,
                    remedy="join one with more (--memory-mb), or leave the compile hosts out: this computer tries then",
                )
            with self._changed:
                free = {address: size - self._used.get(address, 0.0) for address, size in whole.items()}
                if (address := place(need, free)) is not None:
                    self._used[address] = self._used.get(address, 0.0) + need
                    return address
                self._changed.wait(POLL_S)
            if self._stop.is_set() or time.monotonic() > deadline:
                raise InfraError("no compile host had memory left in time, or the run ended", where=what)

    def _on_host(
        self,
        address: str,
        need: float,
        left: Mapping[str, Request],
        settle: Callable[..., None],
        progress: Progress,
    ) -> None:
        """Builds on a host what is left. Raises InfraError if it is lost."""
        engine, host = self._engine, self._engine.name_of(address)
        first = next(iter(left.values()))
        self._say(f"{first.cell.model.name}: compiling on {host}")

        def deliver(message: Mapping[str, Any]) -> None:
            if "progress" in message:
                name, *event = message["progress"]
                progress(f"{host}: {name}", Event(*event))
                return
            key = message["built"]
            if message["error"] is not None:
                settle(key, _build_error(message["error"], host))
                return
            artifact = left[key].artifact
            size = 0
            if not all(path.is_file() for path in (artifact.reference / FILE, *artifact.witness)):
                # One that came with another mode lacks lookahead's witness.
                place, known = f"references/{message['reference']}", artifact.reference.is_dir()
                size += engine.fetch(address, place, artifact.reference, merge=known)
            if not artifact.pte.is_file():
                size += engine.fetch(address, f"artifacts/{message['folder']}", artifact.folder)
            if not artifact.ready:
                raise InfraError(f"{host} has no {message['folder']} although it says so", where=address)
            if size:
                self._say(f"{message['folder']} came from {host}: {size / 1e6:.1f} MB")
            more = {"reused": message["reused"], "seconds": message["seconds"], "peak_mb": message["peak_mb"]}
            settle(key, None, **more)

        order = BuildOrder(
            new_token(),
            tuple(order_of(request) for request in left.values()),
            first.target.value,
            first.calibration,
        )
        # The scheduler counts the memory, too: other runs' builds are on the same hosts.
        result = engine.follow(address, build_here, order, {MEMORY: need}, deliver, Limits.seconds, self._stop)
        if left:
            said = result["error"]
            error = _build_error(said, host) if said else BuildError("the host ended without a result", where=host)
            for key in list(left):
                settle(key, error)


def _build_error(data: Mapping[str, str], host: str) -> BuildError:
    """What a host says went wrong, with its name: logs that it mentions are there."""
    error = error_from_data(data)
    return BuildError(
        error.what,
        where=f"{host}: {error.where}" if error.where else host,
        remedy=error.remedy,
        evidence=error.evidence,
    )
