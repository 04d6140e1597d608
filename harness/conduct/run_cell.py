"""One cell, from lease to outcome, with as many attempts as its failures' classes allow."""

from __future__ import annotations

import time
from collections.abc import Sequence

from harness.build.cache import Artifact
from harness.conduct.attempt import Attempt, Bench
from harness.conduct.retry import again, verdict_class
from harness.conduct.run_attempt import run_attempt
from harness.errors import FailureClass, InfraError
from harness.farm.failures import classify_exception
from harness.farm.identity import AttachedPhone
from harness.farm.lease import Owner, acquire_any
from harness.matrix import Cell
from harness.results.records import OutcomeRecord, Status

LEASE_WAIT_S = 3600.0


def run_cell(
    bench: Bench, cell: Cell, artifact: Artifact, lease_wait_s: float = LEASE_WAIT_S, *, first: str | None = None
) -> OutcomeRecord:
    """Runs a cell on a phone that fits, trying again where the class of a failure allows it; records everything.

    Args:
        bench: what it is run with.
        cell: the cell.
        artifact: its artifact, built.
        lease_wait_s: how long to wait for a phone, in seconds.
        first: name of the phone the scheduler chose; it is asked for before the others.
    """
    start = time.monotonic()
    failures: list[FailureClass] = []
    avoid: list[str] = []
    while True:
        attempt = len(failures) + 1
        phone: AttachedPhone | None = None
        try:
            candidates = fitting(bench.phones, cell, avoid, first)
            owner = Owner.this_process(bench.run_id)
            bench.say("", f"{cell.id}: waiting for a phone")
            with acquire_any([p.link.serial for p in candidates], owner, wait_s=lease_wait_s) as lease:
                phone = next(p for p in candidates if p.link.serial == lease.serial)
                failure = run_attempt(Attempt(bench, cell, artifact, phone, attempt))
        except Exception as error:
            failure = classify_exception(error)
        name = phone.phone.name if phone else None
        seconds = round(time.monotonic() - start, 2)
        if failure is None:
            outcome = OutcomeRecord(cell.id, Status.PASSED, seconds=seconds, attempts=attempt, phone=name)
            break
        failures.append(failure.failure_class)
        if name:
            avoid.append(name)
        if not again(failures):
            klass = verdict_class(failures)
            status = Status.FAILED if klass in (FailureClass.PRODUCT, FailureClass.PERF) else Status.ERROR
            evidence = (failure.reason, failure.remedy, failure.evidence)
            outcome = OutcomeRecord(cell.id, status, klass, *evidence, None, seconds, attempt, name)
            break
        bench.say(name or "", f"{cell.id}: {failure.failure_class}: {failure.reason}; trying again")
    bench.record(outcome)
    bench.say(outcome.phone or "", f"{cell.id}: {outcome.status} after {outcome.seconds:.0f} s")
    return outcome


def fitting(
    phones: Sequence[AttachedPhone], cell: Cell, avoid: Sequence[str], first: str | None = None
) -> list[AttachedPhone]:
    """The phones a cell may run on, those that failed it last; a cell pinned to a phone has only that one.

    Of the others, `first` comes first.

    Raises:
        InfraError: none.
    """
    matching = [p for p in phones if p.identity.soc == cell.soc and (cell.phone is None or p.phone.name == cell.phone)]
    if not matching:
        raise InfraError(
            f"no phone with {cell.soc.name} answers",
            where=cell.id,
            remedy="see `htpfarm devices` for what each phone says",
        )
    return sorted(matching, key=lambda p: (avoid.count(p.phone.name), p.phone.name != first))
