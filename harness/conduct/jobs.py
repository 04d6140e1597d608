"""A run's cells and phones as the scheduler knows them, with what earlier runs teach of both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.conduct.builds import build_file
from harness.conduct.distribute import CellScheduling
from harness.errors import HarnessError
from harness.farm.health import HealthBook
from harness.results import RunData, Status, load_run
from harness.schedule.estimates import Estimates, Past
from harness.schedule.jobs import Job, Slot

if TYPE_CHECKING:
    from harness.conduct.session import Run

RUNS_READ = 5
"""Earlier runs that are looked at: their records can be long, and phones change."""


@dataclass(frozen=True)
class Earlier:
    """What earlier runs teach.

    Attributes:
        past: how long cells took, oldest first.
        phone_of: cell id → the phone that passed it last.
        held: phone → keys of the artifacts it was sent, oldest first.
    """

    past: tuple[Past, ...]
    phone_of: dict[str, str]
    held: dict[str, tuple[str, ...]]


def read_earlier(reports: Path, *, leave_out: str = "") -> Earlier:
    """Reads the last runs of a folder; what cannot be read teaches nothing.

    Args:
        reports: the folder of runs.
        leave_out: name of the run that asks.
    """
    names = (
        sorted((p.name for p in reports.glob("*/") if p.name != leave_out), reverse=True) if reports.is_dir() else []
    )
    runs: list[RunData] = []
    for name in names:
        if len(runs) == RUNS_READ:
            break
        try:
            runs.append(load_run(reports / name))
        except (HarnessError, OSError, ValueError):
            continue
    return learn(reversed(runs))


def learn(runs: Iterable[RunData]) -> Earlier:
    """Of runs that have been read, oldest first. Pure."""
    past: list[Past] = []
    phone_of: dict[str, str] = {}
    held: dict[str, dict[str, None]] = {}
    for run in runs:
        plan = {entry.cell: entry for entry in run.plan}
        for cell, outcome in run.outcomes.items():
            if outcome.status is not Status.PASSED or outcome.phone is None or cell not in plan:
                continue
            past.append(Past(cell, plan[cell].model, plan[cell].mode, outcome.seconds))
            phone_of[cell] = outcome.phone
            if cell in run.artifacts:
                held.setdefault(outcome.phone, {})[run.artifacts[cell].key] = None
    return Earlier(tuple(past), phone_of, {phone: tuple(keys) for phone, keys in held.items()})


def jobs_and_slots(run: Run, earlier: Earlier) -> tuple[dict[str, Job], list[Slot]]:
    """Cell id → job, for the cells that run on phones; and the phones."""
    estimates = Estimates(earlier.past)
    jobs: dict[str, Job] = {}
    slots: dict[str, Slot] = {}
    for planned in run.planned:
        cell = planned.cell
        for name in planned.phones:
            slots.setdefault(name, Slot(name, cell.soc.name, holds=earlier.held.get(name, ())))
        if not planned.verdict.run or run.options.compile_only:
            continue
        preferred = earlier.phone_of.get(cell.id)
        jobs[cell.id] = Job(
            cell.id,
            cell.soc.name,
            estimates.seconds(cell.id, cell.model.name, cell.mode),
            run.artifacts[cell.id].key,
            planned.phones[0] if len(planned.phones) == 1 else None,
            prefers=preferred if preferred in planned.phones else None,
        )
    return jobs, list(slots.values())


def cell_scheduling(run: Run, *, workers: int) -> CellScheduling:
    """The scheduler of a run under pytest-xdist."""
    jobs, slots = jobs_and_slots(run, read_earlier(run.options.reports, leave_out=run.folder.name))

    def built(key: str) -> bool:
        return run.options.pte is not None or build_file(run.folder, key).exists()

    if run.watch is not None:
        usable, lost = run.watch.usable, run.watch.lost
        return CellScheduling(jobs, slots, run.folder, workers=workers, ready=built, usable=usable, lost=lost)
    serials: dict[str, str] = {}
    book = HealthBook(run_id=run.folder.name)

    def not_hot(name: str) -> bool:
        """Not cooling, while others may run its cells. What nobody else can run is tried there, and says why not."""
        if not serials:
            serials.update({phone.phone.name: phone.link.serial for phone in run.attached()})
        return name not in serials or not book.just_hot(serials[name])

    return CellScheduling(jobs, slots, run.folder, workers=workers, ready=built, usable=not_hot)
