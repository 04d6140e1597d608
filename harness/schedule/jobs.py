"""What a scheduler knows of cells and phones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Job:
    """One cell to run.

    Attributes:
        id: the cell's.
        soc: chipset the phone must have.
        seconds: how long it is expected to take on a phone.
        artifact: key of what must be built first; empty if nothing.
        phone: the only phone it may run on; None for any with the chipset.
        needs: labels and capabilities the phone must have.
        prefers: the phone whose measurements it will be compared with; None if there are none.
    """

    id: str
    soc: str
    seconds: float
    artifact: str = ""
    phone: str | None = None
    needs: frozenset[str] = frozenset()
    prefers: str | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """One phone to run cells on.

    Attributes:
        name: as in devices.yaml.
        soc: its chipset.
        priority: of two free phones the one with the higher is given work first.
        offers: its labels and capabilities.
        holds: keys of the artifacts that lie on it.
    """

    name: str
    soc: str
    priority: int = 0
    offers: frozenset[str] = frozenset()
    holds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Jobs that ask the same of a phone: a class of work."""

    soc: str
    phone: str | None
    needs: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, job: Job) -> Group:
        """The job's."""
        return cls(job.soc, job.phone, job.needs)


def phones_by_group(groups: Iterable[Group], slots: Iterable[Slot]) -> Mapping[Group, tuple[Slot, ...]]:
    """The phones that each class of work can run on, in the order given; empty where there is none."""
    by_soc: dict[str, list[Slot]] = {}
    by_name: dict[str, Slot] = {}
    for slot in slots:
        by_soc.setdefault(slot.soc, []).append(slot)
        by_name[slot.name] = slot
    found = {}
    for group in groups:
        pinned = by_name.get(group.phone) if group.phone is not None else None
        candidates = by_soc.get(group.soc, []) if group.phone is None else [pinned] if pinned else []
        found[group] = tuple(s for s in candidates if s.soc == group.soc and group.needs <= s.offers)
    return found


def lower_bound(jobs: Iterable[Job], slots: Iterable[Slot], seconds: Mapping[str, float] | None = None) -> float:
    """Seconds that no schedule of these jobs can beat: the longest job, or a class's work over its phones.

    Args:
        jobs: all jobs.
        slots: all phones.
        seconds: job id → how long it takes; the jobs' own estimates if None.
    """
    work: dict[Group, float] = {}
    longest = 0.0
    for job in jobs:
        took = job.seconds if seconds is None else seconds[job.id]
        longest = max(longest, took)
        work[Group.of(job)] = work.get(Group.of(job), 0.0) + took
    phones = phones_by_group(work, slots)
    return max([longest, *(total / len(phones[group]) for group, total in work.items() if phones[group])])
