"""Starts the probe's worker where an answer is missing, and keeps the answers by toolchain. No torch here."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from harness.build.events import parse
from harness.build.probe.job import ProbeJob, from_dict, to_dict
from harness.build.probe.marks import Observation
from harness.build.process import end_group, worker_process
from harness.errors import BuildError, EnvError
from harness.files import write_atomically
from harness.gates import GATES
from harness.paths import cache_root
from harness.toolchain.environment import Toolchain, fingerprint_id

PROBED = ("SM8350", "SM8450", "SM8550", "SM8650", "SM8750", "SM8850")
"""A chipset of each HTP generation that ExecuTorch knows."""
NAMES = tuple(gate.name for gate in GATES)
GRAPH_SECONDS = 600.0
"""Ends a compiler that hangs; alone a graph takes a few seconds, beside busy cores many times that."""
WORKER_SECONDS = 3600.0
_FILE = "answers.json"
# What a probe asks, and how.
_SOURCES = ("graphs.py", "worker.py")

Heard = Callable[[Observation], None]
"""Called with each new answer as it comes."""


def probe_folder(toolchain: Toolchain) -> Path:
    """Where the answers of a toolchain are kept: `answers.json` and a log a graph."""
    return cache_root() / "probes" / f"{fingerprint_id(toolchain)}-{_source_hash()}"


@cache
def _source_hash() -> str:
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()[:8]


def known(toolchain: Toolchain) -> tuple[Observation, ...]:
    """The answers that are kept, by gate in the table's order and architecture; none where nothing was probed."""
    path = probe_folder(toolchain) / _FILE
    if not path.is_file():
        return ()
    return _sorted(from_dict(raw) for raw in json.loads(path.read_text(encoding="utf-8")))


def missing(toolchain: Toolchain, gates: Sequence[str], socs: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Gate and chipset of every answer that is not there, or that settles nothing."""
    settled = {(seen.gate, seen.soc) for seen in known(toolchain) if seen.settled}
    # By chipset, then gate: graphs are quantised once, when they are first wanted.
    return tuple((gate, soc) for soc in socs for gate in gates if (gate, soc) not in settled)


def probe(
    toolchain: Toolchain,
    gates: Sequence[str] = NAMES,
    socs: Sequence[str] = PROBED,
    heard: Heard | None = None,
    *,
    parallel: int | None = None,
    graph_seconds: float = GRAPH_SECONDS,
) -> tuple[Observation, ...]:
    """Asks what is not known yet, and returns every kept answer to these gates on these chipsets.

    Args:
        gates: names of gates.
        socs: names of chipsets.
        parallel: graphs lowered at once; default: the cores, at most 4.
        graph_seconds: the most that one graph may take.

    Raises:
        BuildError: the worker ended before it had said all; what it did say is kept.
        EnvError: another probe of these libraries runs and does not end.
    """
    folder = probe_folder(toolchain)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        tasks = missing(toolchain, gates, socs)
        if tasks:
            job = ProbeJob(tasks, folder, graph_seconds, parallel or min(4, os.cpu_count() or 1))
            answers = {(seen.gate, seen.soc): seen for seen in known(toolchain)}
            for seen in _ask(toolchain, job):
                answers[seen.gate, seen.soc] = seen
                write_atomically(folder / _FILE, json.dumps([to_dict(each) for each in answers.values()], indent=1))
                if heard:
                    heard(seen)
            if left := [task for task in tasks if task not in answers]:
                log = folder / "worker.log"
                raise BuildError(
                    f"the probe's worker ended without an answer to {len(left)} of {len(tasks)} probes",
                    where=", ".join(f"{gate} on {soc}" for gate, soc in left[:3]),
                    remedy=f"read {log}; `htpfarm doctor` says whether the libraries load",
                    evidence="\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]),
                )
    return tuple(seen for seen in known(toolchain) if seen.gate in gates and seen.soc in socs)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One probe of a toolchain at a time."""
    try:
        with FileLock(f"{folder}.lock", timeout=WORKER_SECONDS):
            yield
    except Timeout as error:
        raise EnvError("another probe of these libraries does not end", where=f"{folder}.lock") from error


def forget(toolchain: Toolchain) -> None:
    """Drops the kept answers: the next probe asks everything again."""
    (probe_folder(toolchain) / _FILE).unlink(missing_ok=True)


def _ask(toolchain: Toolchain, job: ProbeJob) -> Iterator[Observation]:
    """Runs a worker in a process group of its own, under a time limit, and yields what it says."""
    file, log = job.folder / "job.json", job.folder / "worker.log"
    file.write_text(job.to_json(), encoding="utf-8")
    with worker_process(toolchain, "harness.build.probe.worker", file) as process:
        limit = threading.Timer(WORKER_SECONDS, end_group, [process])
        limit.daemon = True
        limit.start()
        try:
            with log.open("w", encoding="utf-8") as stream:
                for line in process.stdout or ():
                    event = parse(line)
                    if event is None:
                        stream.write(line)
                    elif event.kind == "probed":
                        yield from_dict(json.loads(event.detail))
        finally:
            limit.cancel()


def _sorted(seen: Iterable[Observation]) -> tuple[Observation, ...]:
    order = {gate.name: index for index, gate in enumerate(GATES)}
    return tuple(sorted(seen, key=lambda each: (order.get(each.gate, len(order)), each.arch, each.soc)))
