"""Runs build workers: groups what shares a first half, one subprocess a group, with limits, logs and progress."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock

from harness.build.cache import Artifact
from harness.build.calibration import MODELS_OWN, CalibrationChoice
from harness.build.events import Event, parse
from harness.build.job import BuildJob, Output
from harness.build.preflight import CONTEXT_LIMIT, available_mb, estimate, more_shards
from harness.build.process import end_group, worker_process
from harness.build.reference import FILE as REFERENCE
from harness.build.room import Room
from harness.build.witness import FILE as WITNESS
from harness.errors import BuildError, ConfigError, EnvError
from harness.farm.signatures import MORE_SHARDS, find_signature
from harness.matrix import Cell
from harness.models import ModelSpec
from harness.paths import cache_root
from harness.runtime.program import read_info
from harness.schedule.compiles import Build
from harness.target import Target
from harness.toolchain.environment import Toolchain

DISK_NEEDED_BYTES = 2 << 30


@dataclass(frozen=True)
class Limits:
    """What a build worker may take.

    Attributes:
        seconds: wall-clock time of one worker.
        memory_mb: resident memory of the worker and its children together.
    """

    seconds: float = 4 * 3600
    memory_mb: float = 0.9 * psutil.virtual_memory().total / (1 << 20)


@dataclass(frozen=True)
class Request:
    """A cell's artifact, wanted for a target; located with the same calibration."""

    cell: Cell
    target: Target
    artifact: Artifact
    calibration: CalibrationChoice = MODELS_OWN


@dataclass(frozen=True)
class Result:
    """How a request ended.

    Attributes:
        request: it.
        reused: whether the cache had it.
        seconds: how long it took, the half that others share included.
        error: None when the artifact is in the cache.
        peak_mb: the most memory that its worker and the worker's children took together until then; 0 when reused.
    """

    request: Request
    reused: bool
    seconds: float
    error: BuildError | None
    peak_mb: float = 0.0


@dataclass
class _Seen:
    """What the watcher of a worker saw: why it ended it, and the most memory so far, MB."""

    killed: str = ""
    peak_mb: float = 0.0


Progress = Callable[[str, Event], None]
"""Called with the group's name and a worker's event."""


def groups(requests: Sequence[Request]) -> list[list[Request]]:
    """Requests that share their first half: one model, recipe and lengths, whatever the modes and SoCs."""
    found: dict[tuple[object, ...], list[Request]] = {}
    for request in requests:
        cell = request.cell
        key = (cell.model.name, cell.recipe, cell.lengths, request.artifact.reference)
        found.setdefault(key, []).append(request)
    return list(found.values())


def known_and_missing(requests: Sequence[Request]) -> tuple[list[Result], list[Request]]:
    """The results of artifacts that the cache has, and a request for each other artifact."""
    distinct = {request.artifact.key: request for request in requests}.values()
    known = [request for request in distinct if request.artifact.ready]
    return [Result(request, True, 0.0, None) for request in known], [one for one in distinct if one not in known]


class Builder:
    """Builds what is missing from the cache.

    Args:
        toolchain: gives workers their environment.
        logs: folder for the workers' logs and job files.
        limits: of each worker.
        jobs: workers at once, and outputs lowered at once in each.
    """

    def __init__(self, toolchain: Toolchain, logs: Path, limits: Limits | None = None, jobs: int | None = None) -> None:
        self._toolchain, self._logs = toolchain, logs
        self._limits = limits or Limits()
        self._jobs = jobs or max(1, os.cpu_count() or 1)
        # Phones and other workers want the cores too; OpenMP threads that outnumber them wait for each other.
        self._threads = max(1, (os.cpu_count() or 1) // self._jobs)
        self._stop = threading.Event()

    def build(self, requests: Sequence[Request], progress: Progress | None = None) -> Iterator[Result]:
        """Yields a result for each distinct artifact as it becomes ready; groups run side by side.

        Raises:
            EnvError: too little disk is left.
        """
        reused, distinct = known_and_missing(requests)
        yield from reused
        if not distinct:
            return
        check_disk(cache_root())
        results: list[Result] = []
        changed = threading.Condition()

        def report(result: Result) -> None:
            with changed:
                results.append(result)
                changed.notify()

        cut = list(groups(distinct))
        room = Room(available_mb(), self._jobs)
        # A thread a group, most of which wait for room: a small one may pass a large one by.
        with ThreadPoolExecutor(len(cut)) as pool:
            for group in cut:
                pool.submit(self._build_in, room, group, report, progress)
            try:
                for _ in distinct:
                    with changed:
                        while not results:
                            changed.wait(1)
                        result = results.pop(0)
                    yield result
            finally:
                # Also when the consumer stops early: workers end within a second.
                self.stop()

    def stop(self) -> None:
        """Ends the workers that run; what they had not finished fails."""
        self._stop.set()

    def _build_in(
        self, room: Room, group: list[Request], report: Callable[[Result], None], progress: Progress | None
    ) -> None:
        need = estimate(group[0].cell.model, {request.cell.mode for request in group})
        build = Build(group[0].artifact.key, need.memory_mb, (need.hours or 0.0) * 3600)
        with room.taken(build, self._stop):
            self._build_group(group, report, progress)

    def _build_group(self, group: list[Request], report: Callable[[Result], None], progress: Progress | None) -> None:
        left = {request.artifact.key: request for request in group}
        start, seen = time.monotonic(), _Seen()

        def settle(key: str, error: BuildError | None, reused: bool = False) -> None:
            if request := left.pop(key, None):
                report(Result(request, reused, round(time.monotonic() - start, 2), error, round(seen.peak_mb)))

        first = group[0]
        name = f"{first.cell.model.name} ({', '.join(sorted({str(r.cell.mode) for r in group}))})"
        lock = cache_root() / "locks" / f"{first.artifact.reference.name}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, timeout=self._limits.seconds):
                _discard_unwitnessed(first.artifact.reference)
                # Another builder may have made some while we waited.
                for request in [request for request in group if request.artifact.ready]:
                    settle(request.artifact.key, None, reused=True)
                if left:
                    self._run_worker(name, list(left.values()), settle, progress, seen)
        except BuildError as error:
            for key in list(left):
                settle(key, error)
        except Exception as error:
            # A thread's exception has no one to go to: it becomes the group's result.
            for key in list(left):
                settle(key, BuildError(f"the build stopped: {error!r}", where=name))

    def _run_worker(
        self,
        name: str,
        requests: list[Request],
        settle: Callable[[str, BuildError | None], None],
        progress: Progress | None,
        seen: _Seen,
    ) -> None:
        first = requests[0]
        outputs = tuple(
            Output(r.cell.mode, r.cell.soc.name, r.target, r.artifact.key, r.artifact.folder, r.artifact.fingerprint)
            for r in requests
        )
        job = BuildJob(
            Path(first.cell.model.file),
            first.cell.lengths,
            first.calibration,
            outputs,
            first.artifact.reference,
            parallel=self._jobs + 1,
            threads=self._threads,
            failures=cache_root() / "failures",
        )
        self._logs.mkdir(parents=True, exist_ok=True)
        stem = f"{first.cell.model.name}-{'-'.join(sorted({str(o.mode) for o in outputs}))}-{outputs[0].key}"
        job_file, log = self._logs / f"{stem}.json", self._logs / f"{stem}.log"
        job_file.write_text(job.to_json(), encoding="utf-8")
        model, artifacts = first.cell.model, {r.artifact.key: r.artifact for r in requests}
        names = {r.artifact.key: f"{r.cell.model.name}-{r.cell.mode}-{r.cell.soc.name}" for r in requests}
        with worker_process(self._toolchain, "harness.build.worker", job_file) as process:
            watcher = threading.Thread(target=self._watch, args=(process, seen), daemon=True)
            watcher.start()
            with log.open("a", encoding="utf-8") as stream:
                for line in process.stdout or ():
                    event = parse(line)
                    if event is None:
                        stream.write(line)
                        continue
                    stream.write(f"== {event.kind} {names.get(event.name, event.name)} {event.seconds:.1f} s\n")
                    stream.flush()
                    if progress:
                        detail = _contexts(artifacts[event.name]) if event.kind == "done" else ""
                        progress(name, Event(event.kind, names.get(event.name, event.name), event.seconds, detail))
                    if event.kind == "done":
                        settle(event.name, None)
                    elif event.kind == "failed":
                        settle(event.name, lowering_error(names.get(event.name, event.name), event.detail, model))
            status = process.wait()
        for request in requests:
            if not request.artifact.ready:
                why = seen.killed or f"the build worker ended with exit status {status}"
                settle(
                    request.artifact.key,
                    BuildError(why, where=name, remedy=f"read {log}", evidence=_tail(log)),
                )

    def _watch(self, process: subprocess.Popen[str], seen: _Seen) -> None:
        """Ends a worker that takes too long or too much, or whose consumer has gone."""
        deadline = time.monotonic() + self._limits.seconds
        while process.poll() is None:
            reason = ""
            asked = time.monotonic()
            used = _tree_mb(process.pid)
            took = time.monotonic() - asked
            seen.peak_mb = max(seen.peak_mb, used)
            if self._stop.is_set():
                reason = "the build was interrupted"
            elif time.monotonic() > deadline:
                reason = f"the build worker took more than {self._limits.seconds:.0f} s"
            elif used > self._limits.memory_mb:
                reason = f"the build worker took {used:.0f} MB, over its limit of {self._limits.memory_mb:.0f} MB"
            if reason:
                seen.killed = reason
                end_group(process)
                return
            # Asking the kernel for the share of a large process takes a while: no more than a tenth of the time.
            self._stop.wait(max(0.5, 10 * took))


def _discard_unwitnessed(reference: Path) -> None:
    """Removes a reference that has lost its witness: the worker makes both, and neither where a reference is."""
    if (reference / REFERENCE).is_file() and not (reference / WITNESS).is_file():
        shutil.rmtree(reference)


def _tree_mb(pid: int) -> float:
    """Memory of a process and its children in MB: proportional share, since forked children share pages."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += member.memory_full_info().pss
    return total / (1 << 20)


def lowering_error(name: str, log: str, model: ModelSpec) -> BuildError:
    """Why an output could not be lowered, from its log; with the number of shards where more of them would mend it."""
    path = Path(log)
    if not path.is_file():
        return BuildError(f"lowering failed: {log}", where=name, remedy="was the machine out of memory?")
    if found := find_signature(path.read_text(encoding="utf-8", errors="replace")):
        known, line = found
        remedy = more_shards(model) if known.name in MORE_SHARDS else known.remedy
        what = f"lowering failed: {known.meaning} (see {known.source})"
        return BuildError(what, where=name, remedy=f"{remedy}; read {path}", evidence=line)
    return BuildError("lowering failed", where=name, remedy=f"read {path}", evidence=_tail(path))


def _contexts(artifact: Artifact) -> str:
    """The real sizes of an artifact's contexts, in words."""
    delegate = read_info(artifact.pte).delegate
    if delegate is None:
        return ""
    sizes = ", ".join(f"{size / 1e6:.1f}" for size in delegate.sizes)
    return f"contexts of {sizes} MB, of the {CONTEXT_LIMIT / 1e6:.0f} MB that a DSP maps"


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def check_disk(folder: Path, needed: int = DISK_NEEDED_BYTES) -> None:
    """Refuses to build onto a nearly full disk.

    Raises:
        EnvError: less than `needed` bytes are free.
        ConfigError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the cache folder cannot be made: {error.strerror}",
            where=str(folder),
            remedy="set HTPFARM_CACHE to a folder on a disk with room",
        ) from error
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EnvError(
            f"{free / (1 << 30):.1f} GB are free, a build needs {needed / (1 << 30):.1f} GB",
            where=str(folder),
            remedy="free some space, or set HTPFARM_CACHE to a folder on a larger disk",
        )
