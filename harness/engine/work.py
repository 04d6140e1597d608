"""The tasks of hosts: one try of a cell on a phone, and one group of builds. What happens is sent as it happens."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.build.builder import Builder, Request
from harness.build.cache import Artifact, locate
from harness.build.calibration import CalibrationChoice
from harness.build.events import Event
from harness.conduct.attempt import Bench
from harness.conduct.deep_check import DeepCheck
from harness.conduct.run_cell import LEASE_WAIT_S, Tried, try_once
from harness.engine.facts import cell_data, cell_from_data
from harness.engine.host import here, scratch_root
from harness.errors import BuildError, HarnessError, InfraError
from harness.evaluate.choice import EvalChoice
from harness.farm.failures import classify_exception
from harness.farm.health import HealthBook
from harness.farm.prepare import Nurse
from harness.paths import cache_root
from harness.rack.manage import mend, status
from harness.results.records import Record, encode
from harness.target import Target
from harness.toolchain.environment import find_toolchain, fingerprint

CANCEL_POLL_S = 1.0
ATTEMPT = "harness.conduct.run_attempt:run_attempt"


@dataclass(frozen=True)
class TryOrder:
    """One try of a cell on one phone.

    Attributes:
        token: names it: its messages' topic, its task, its scratch folder.
        run_id: the run's.
        cell: as `cell_data`.
        target: what its artifact was built for.
        artifact: its key; `pte` and `reference` on this host.
        evaluation: what to evaluate beyond the model's own.
        phone: name of the phone.
        number: of the attempt, from 1.
        wait_fit: wait for the phone if it is too hot, empty or full.
        attempt: `module:function` that an attempt is; another one than the harness's own in benchmarks of the engine.
    """

    token: str
    run_id: str
    cell: dict[str, Any]
    target: str
    artifact: dict[str, str]
    evaluation: EvalChoice
    phone: str
    number: int
    wait_fit: bool
    attempt: str = ATTEMPT


@dataclass(frozen=True)
class BuildOrder:
    """One group of builds that share their first half.

    Attributes:
        token: names it.
        cells: as `cell_data`, with `key`, the artifact's.
        target: what for.
        calibration: with what.
    """

    token: str
    cells: tuple[dict[str, Any], ...]
    target: str
    calibration: CalibrationChoice


@dataclass
class Sender:
    """Sends messages to the driver in the order in which they are said, and keeps them for the result.

    A message that is lost on the way is in the result; the driver takes each number once.
    """

    topic: str
    log_event: Callable[[str, Any], None]
    wanted: Callable[[], bool]
    sent: list[dict[str, Any]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends one.

        Raises:
            InfraError: nobody waits for it any more: the driver has ended, or given this try up.
        """
        if not self.wanted():
            raise InfraError("nobody waits for this any more: its driver has ended or given it up")
        with self._lock:
            numbered = {"n": len(self.sent), **message}
            self.sent.append(numbered)
            self.log_event(self.topic, numbered)


def sender(token: str) -> Sender:
    """The sender of the task that runs in this thread."""
    from distributed import get_worker

    worker = get_worker()

    def wanted() -> bool:
        task = worker.state.tasks.get(token)
        return task is not None and task.state in ("executing", "long-running")

    return Sender(token, worker.log_event, wanted)


def try_here(order: TryOrder) -> dict[str, Any]:
    """The task of a rack host: a try of a cell, as `Tried` with `messages`. Raises nothing."""
    out = sender(order.token)
    try:
        tried = _try(order, out)
    except Exception as error:
        tried = Tried(classify_exception(error), None)
    return {"tried": tried, "messages": out.sent}


def _try(order: TryOrder, out: Sender) -> Tried:
    one = here()
    cell = cell_from_data(order.cell)
    if (phone := one.phones.get(order.phone)) is None:
        why = one.refused.get(order.phone, "it is not offered")
        raise InfraError(f"{order.phone} cannot be used: {why}", where=one.name)
    folder = scratch_root() / order.token
    folder.mkdir(parents=True, exist_ok=True)

    def record(record: Record) -> None:
        out.send({"record": encode(record, order.run_id).decode("ascii")})

    def say(name: str, what: str) -> None:
        out.send({"phone": name, "say": what})

    known = fingerprint(find_toolchain())
    nurse = Nurse(
        HealthBook(run_id=order.run_id),
        say,
        mend,
        deep_check=DeepCheck(order.run_id, folder, Target(order.target), (phone,), known, (), say),
        server_mark=lambda: (state := status()) and state.adb_pid,
    )
    bench = Bench(
        run_id=order.run_id,
        folder=folder,
        phones=(phone,),
        record=record,
        say=say,
        target=Target(order.target),
        evaluation=order.evaluation,
        host=one.judge(),
        nurse=nurse,
    )
    made = order.artifact
    artifact = Artifact(made["key"], Path(made["pte"]), Path(made["reference"]), known)
    module, _, name = order.attempt.partition(":")
    return try_once(
        bench,
        cell,
        artifact,
        order.number,
        (),
        LEASE_WAIT_S,
        first=order.phone,
        wait_fit=order.wait_fit,
        run=getattr(importlib.import_module(module), name),
    )


def build_here(order: BuildOrder) -> dict[str, Any]:
    """The task of a compile host: builds what its cache lacks. Each result is sent, too, as soon as it is there."""
    out = sender(order.token)
    try:
        for message in _build(order, out):
            out.send(message)
    except HarnessError as error:
        return {"error": error.to_data(), "messages": out.sent}
    except Exception as error:
        stopped = BuildError(f"the build stopped: {error!r}", where=here().name)
        return {"error": stopped.to_data(), "messages": out.sent}
    return {"error": None, "messages": out.sent}


def _build(order: BuildOrder, out: Sender) -> Iterator[dict[str, Any]]:
    requests = [_request(order, data) for data in order.cells]
    builder = Builder(find_toolchain(), cache_root() / "engine" / "build-logs")

    def progress(name: str, event: Event) -> None:
        with contextlib.suppress(InfraError):  # the watcher below ends the build
            out.send({"progress": [name, event.kind, event.name, event.seconds, event.detail]})

    over = threading.Event()

    def watch() -> None:
        while not over.wait(CANCEL_POLL_S):
            if not out.wanted():
                builder.stop()
                return

    threading.Thread(target=watch, name="htpfarm-build-wanted", daemon=True).start()
    try:
        for result in builder.build(requests, progress):
            yield {
                "built": result.request.artifact.key,
                "folder": result.request.artifact.folder.name,
                "reference": result.request.artifact.reference.name,
                "reused": result.reused,
                "seconds": result.seconds,
                "peak_mb": result.peak_mb,
                "error": result.error.to_data() if result.error else None,
            }
    finally:
        over.set()


def _request(order: BuildOrder, data: Mapping[str, Any]) -> Request:
    """What the driver wants built, located here.

    Raises:
        BuildError: here it would be another artifact; names what differs.
    """
    cell = cell_from_data(data)
    target = Target(order.target)
    known = fingerprint(find_toolchain())
    artifact = locate(cell.model, cell.mode, cell.soc, target, cell.lengths, known, order.calibration)
    if artifact.key != data["key"]:
        theirs: Mapping[str, str] = data["fingerprint"]
        names = sorted({*theirs, *artifact.fingerprint})
        other = [name for name in names if theirs.get(name) != artifact.fingerprint.get(name)]
        raise BuildError(
            f"this host would make another artifact: {', '.join(other)} differ from the driver's",
            where=f"{here().name}: {cell.id}",
            remedy="give it the same weights, models and calibration data as the driver",
        )
    return Request(cell, target, artifact, order.calibration)


def order_of(request: Request) -> dict[str, Any]:
    """A request as an item of `BuildOrder.cells`."""
    artifact = request.artifact
    return {**cell_data(request.cell), "key": artifact.key, "fingerprint": artifact.fingerprint}
