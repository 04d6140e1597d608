"""Which artifact is built next: the one most work waits for, as long as the memory lasts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.schedule.jobs import Job


@dataclass(frozen=True, slots=True)
class Build:
    """An artifact to build: its key, the memory it will take at most in MB, and how long it will take in seconds."""

    artifact: str
    memory_mb: float
    seconds: float = 0.0


def by_waiting_work(builds: Sequence[Build], jobs: Iterable[Job]) -> tuple[Build, ...]:
    """Builds in the order of the phone time that each lets start for a second of compiling; ties as given.

    What unlocks the most work for the least compiling goes first, so that phones are fed early (Smith, 1956: weighted
    shortest processing time).
    """
    waiting: dict[str, float] = {}
    for job in jobs:
        waiting[job.artifact] = waiting.get(job.artifact, 0.0) + job.seconds
    return tuple(sorted(builds, key=lambda b: -waiting.get(b.artifact, 0.0) / max(b.seconds, 1.0)))


def next_builds(
    pending: Sequence[Build], running: Iterable[Build], *, budget_mb: float, workers: int
) -> tuple[Build, ...]:
    """The builds to start now.

    In the order given; one that does not fit is passed over by smaller ones only while others run: when nothing runs
    it starts alone, since waiting longer would not make room.

    Args:
        pending: in the order wanted.
        running: those under way.
        budget_mb: memory for all builds together, in MB.
        workers: builds at once at most.
    """
    under_way = list(running)
    used = sum(build.memory_mb for build in under_way)
    free = workers - len(under_way)
    started: list[Build] = []
    for build in pending:
        if free <= 0:
            break
        alone = not under_way and not started
        if alone or used + build.memory_mb <= budget_mb:
            started.append(build)
            used += build.memory_mb
            free -= 1
    return tuple(started)
