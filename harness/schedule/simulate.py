"""A whole run in simulated time: what `Scheduler` decides when cells take as long as they are said to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from harness.schedule.jobs import Job, Slot
from harness.schedule.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a job ran and when, in seconds from the start of the run."""

    job: str
    phone: str
    start: float
    end: float


@dataclass(frozen=True)
class Simulated:
    """A played run: placements in the order of their starts, and when the last one ended."""

    placements: tuple[Placement, ...]

    @property
    def makespan(self) -> float:
        """Seconds from the start of the run to the end of its last job; 0 for none."""
        return max((p.end for p in self.placements), default=0.0)


def simulate(
    jobs: Sequence[Job],
    slots: Sequence[Slot],
    *,
    seconds: Mapping[str, float] | None = None,
    ready_at: Mapping[str, float] | None = None,
    cooling: Callable[[Job, str], float] | None = None,
    seed: int = 0,
) -> Simulated:
    """Plays a run.

    Args:
        jobs: all jobs.
        slots: all phones.
        seconds: job id → how long it really takes; as estimated if None.
        ready_at: artifact → when its build ends; those left out are there from the start.
        cooling: seconds a phone (its name) must cool after a job.
        seed: the scheduler's.
    """
    late = ready_at or {}
    keys = {job.artifact for job in jobs}
    scheduler = Scheduler(jobs, slots, ready=keys - late.keys(), seed=seed)
    placements: list[Placement] = []
    # Events are (time, number, phone that is free again or None, artifact that is ready).
    events: list[tuple[float, int, str | None, str]] = []
    number = 0
    for artifact, at in sorted(late.items()):
        heappush(events, (at, number := number + 1, None, artifact))
    idle: dict[str, None] = {}
    for name in scheduler.order_of_phones(slot.name for slot in slots):
        heappush(events, (0.0, number := number + 1, name, ""))
    while events:
        now, _, phone, artifact = heappop(events)
        if phone is None:
            scheduler.make_ready(artifact)
            woken = list(idle)
            idle.clear()
        else:
            woken = [phone]
        for name in woken:
            job = scheduler.take(name)
            if job is None:
                idle[name] = None
                continue
            end = now + (job.seconds if seconds is None else seconds[job.id])
            placements.append(Placement(job.id, name, now, end))
            scheduler.finish(job.id)
            heappush(events, (end + (cooling(job, name) if cooling else 0.0), number := number + 1, name, ""))
    return Simulated(tuple(placements))
