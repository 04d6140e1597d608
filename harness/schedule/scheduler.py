"""The scheduler: a phone is free, what shall it run?

List scheduling, longest first (Graham, 1969, "Bounds on multiprocessing timing anomalies"), with one liberty: while
much work is left, the order matters little, so a phone first takes cells whose artifact it holds, or whose earlier
measurements are its own. Once the longest waiting cell is more than CRITICAL of what each phone still has to do, the
longest goes first, whoever holds what.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

from harness.schedule.jobs import Group, Job, Slot, phones_by_group

CRITICAL = 0.25
"""Share of a phone's remaining work above which the longest cell goes first: the end of a run stays even."""
MAX_HELD = 16
"""Artifacts of a phone that are looked at, the last ones first: keeps each decision short."""


class _Queue:
    """Waiting jobs, longest first; taken ones are dropped when they come up.

    Those known from the start are sorted once, which keeps the cost of a job nearly constant; those that come later,
    when their artifact is ready, lie on a heap beside them.
    """

    def __init__(self) -> None:
        self._sorted: list[tuple[float, int, Job]] = []  # the longest last
        self._late: list[tuple[float, int, Job]] = []
        self._settled = False

    def push(self, job: Job, rank: int) -> None:
        if self._settled:
            heappush(self._late, (-job.seconds, rank, job))
        else:
            self._sorted.append((job.seconds, -rank, job))

    def peek(self, waiting: dict[str, Job]) -> Job | None:
        if not self._settled:
            self._sorted.sort(key=lambda item: item[:2])
            self._settled = True
        first, late = self._sorted, self._late
        while first and first[-1][2].id not in waiting:
            first.pop()
        while late and late[0][2].id not in waiting:
            heappop(late)
        if late and (not first or late[0][0] < -first[-1][0]):
            return late[0][2]
        return first[-1][2] if first else None


class _Class:
    """The waiting jobs of one group, by what could make a phone prefer them."""

    def __init__(self, phones: Sequence[Slot]) -> None:
        self.phones = tuple(slot.name for slot in phones)
        self.seconds = 0.0
        self.every = _Queue()
        self.nobodys = _Queue()
        self.by_artifact: dict[str, _Queue] = {}
        self.by_preferred: dict[str, _Queue] = {}

    def add(self, job: Job, rank: int) -> None:
        self.seconds += job.seconds
        self.every.push(job, rank)
        if job.prefers is None:
            self.nobodys.push(job, rank)
        else:
            self.by_preferred.setdefault(job.prefers, _Queue()).push(job, rank)
        if job.artifact:
            self.by_artifact.setdefault(job.artifact, _Queue()).push(job, rank)


class Scheduler:
    """Hands out jobs until each has been finished or dropped. Deterministic; `seed` breaks ties.

    A job is *blocked* (its artifact is not ready), *waiting*, *running*, or over.
    """

    def __init__(
        self, jobs: Sequence[Job], slots: Sequence[Slot], *, ready: Iterable[str] | None = None, seed: int = 0
    ) -> None:
        """
        Args:
            jobs: all that shall run; ids are unique.
            slots: all phones.
            ready: artifacts that are there; None for all.
            seed: of the order among jobs of the same length.
        """
        self._slots = {slot.name: slot for slot in slots}
        order = list(range(len(jobs)))
        random.Random(seed).shuffle(order)  # noqa: S311 - no secret
        self._rank = {job.id: rank for job, rank in zip(jobs, order, strict=True)}
        if len(self._rank) != len(jobs):
            raise ValueError("two jobs have the same id")
        groups = phones_by_group(dict.fromkeys(Group.of(job) for job in jobs), slots)
        self._classes = {group: _Class(phones) for group, phones in groups.items()}
        self._of_phone: dict[str, list[_Class]] = {name: [] for name in self._slots}
        for group in self._classes.values():
            for name in group.phones:
                self._of_phone[name].append(group)
        self._held: dict[str, dict[str, None]] = {s.name: dict.fromkeys(s.holds) for s in slots}
        self._unusable: set[str] = set()
        self._waiting: dict[str, Job] = {}
        self._blocked: dict[str, list[Job]] = {}
        self._running: dict[str, tuple[Job, str]] = {}
        self._returned: dict[str, Job] = {}
        self._avoid: dict[str, set[str]] = {}
        known = None if ready is None else set(ready)
        for job in jobs:
            if known is None or not job.artifact or job.artifact in known:
                self._enqueue(job)
            else:
                self._blocked.setdefault(job.artifact, []).append(job)

    @property
    def waiting(self) -> int:
        """Jobs that could start now."""
        return len(self._waiting) + len(self._returned)

    @property
    def open(self) -> int:
        """Jobs that are not over."""
        return self.waiting + len(self._running) + sum(len(jobs) for jobs in self._blocked.values())

    def running_on(self, phone: str) -> tuple[str, ...]:
        """Ids of the jobs that run on a phone."""
        return tuple(job.id for job, where in self._running.values() if where == phone)

    def homeless(self) -> tuple[Job, ...]:
        """Jobs that are not over and that no phone could ever run."""
        jobs = [*self._waiting.values(), *(job for blocked in self._blocked.values() for job in blocked)]
        return tuple(job for job in jobs if not self._class(job).phones)

    def withdraw_stranded(self, lost: Iterable[str]) -> tuple[Job, ...]:
        """Jobs that wait and that only phones could run which are lost for good: they are over."""
        gone = set(lost)
        jobs = [
            j for j in (*self._waiting.values(), *self._returned.values()) if gone.issuperset(self._class(j).phones)
        ]
        for job in jobs:
            if self._waiting.pop(job.id, None) is not None:
                self._class(job).seconds -= job.seconds
            self._returned.pop(job.id, None)
        return tuple(jobs)

    def take(self, phone: str) -> Job | None:
        """What a free phone shall run now; None if nothing that waits fits it, or it is not usable."""
        if phone in self._unusable or phone not in self._slots:
            return None
        job = self._again(phone) or self._choose(phone)
        if job is None:
            return None
        self._waiting.pop(job.id, None)
        if self._returned.pop(job.id, None) is None:
            self._class(job).seconds -= job.seconds
        self._running[job.id] = (job, phone)
        if job.artifact:
            self.note_held(phone, job.artifact)
        return job

    def order_of_phones(self, names: Iterable[str]) -> list[str]:
        """Free phones in the order in which they are to be given work."""
        return sorted(names, key=lambda name: (-self._slots[name].priority, name))

    def finish(self, job_id: str) -> None:
        """A running job is over, whatever came of it."""
        self._running.pop(job_id)
        self._avoid.pop(job_id, None)

    def give_back(self, job_id: str, *, elsewhere: bool = True) -> None:
        """A running job shall run again: before all others, and `elsewhere` if there is another phone for it."""
        job, phone = self._running.pop(job_id)
        if elsewhere:
            self._avoid.setdefault(job_id, set()).add(phone)
        self._returned[job_id] = job

    def make_ready(self, artifact: str) -> int:
        """An artifact has been built; returns how many jobs it lets wait."""
        jobs = self._blocked.pop(artifact, [])
        for job in jobs:
            self._enqueue(job)
        return len(jobs)

    def drop(self, artifact: str) -> tuple[Job, ...]:
        """An artifact cannot be built: its jobs are over."""
        return tuple(self._blocked.pop(artifact, ()))

    def set_usable(self, phone: str, usable: bool) -> None:
        """A phone cools down, is put aside or lost, or is back."""
        (self._unusable.discard if usable else self._unusable.add)(phone)

    def note_held(self, phone: str, artifact: str) -> None:
        """An artifact now lies on a phone."""
        held = self._held[phone]
        held.pop(artifact, None)
        held[artifact] = None
        while len(held) > MAX_HELD:
            held.pop(next(iter(held)))

    def _class(self, job: Job) -> _Class:
        return self._classes[Group.of(job)]

    def _enqueue(self, job: Job) -> None:
        self._waiting[job.id] = job
        self._class(job).add(job, self._rank[job.id])

    def _again(self, phone: str) -> Job | None:
        """The first job given back that this phone may run: one that failed here only if it has nowhere else to go."""
        for job in self._returned.values():
            phones = self._class(job).phones
            if phone in phones:
                avoid = self._avoid.get(job.id, set())
                if phone not in avoid or all(p in avoid or p in self._unusable for p in phones):
                    return job
        return None

    def _choose(self, phone: str) -> Job | None:
        best: _Class | None = None
        pressure = -1.0
        for group in self._of_phone[phone]:
            if group.every.peek(self._waiting) is None:
                continue
            share = group.seconds / max(1, self._usable(group))
            if share > pressure:
                best, pressure = group, share
        if best is None:
            return None
        longest = best.every.peek(self._waiting)
        assert longest is not None
        if longest.seconds > CRITICAL * pressure:
            return longest
        return self._preferred(best, phone) or longest

    def _usable(self, group: _Class) -> int:
        if not self._unusable:
            return len(group.phones)
        return sum(name not in self._unusable for name in group.phones)

    def _preferred(self, group: _Class, phone: str) -> Job | None:
        queues = [group.by_preferred.get(phone)]
        queues += [group.by_artifact.get(artifact) for artifact in reversed(self._held[phone])]
        queues.append(group.nobodys)
        return next((job for queue in queues if queue and (job := queue.peek(self._waiting))), None)
