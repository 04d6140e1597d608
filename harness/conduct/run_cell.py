"""One cell, from lease to outcome, with as many attempts as its failures' classes allow."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from harness.build.cache import Artifact
from harness.build.preflight import more_shards
from harness.conduct.attempt import Attempt, Bench
from harness.conduct.retry import again, crashed_on, undecided, verdict_class
from harness.conduct.run_attempt import run_attempt
from harness.errors import EnvError, FailureClass, HarnessError, InfraError
from harness.farm.evidence import collect
from harness.farm.failures import Failure, classify_exception
from harness.farm.health import BLAMED, HealthBook, HealthState
from harness.farm.identity import AttachedPhone
from harness.farm.journal import Command, journal
from harness.farm.lease import Owner
from harness.farm.prepare import NotFitError, prepare, refused
from harness.farm.signatures import MORE_SHARDS
from harness.matrix import Cell
from harness.results.records import OutcomeRecord, Record, Status
from harness.runtime.program import read_info

LEASE_WAIT_S = 3600.0


@dataclass(frozen=True)
class Tried:
    """One try of a cell.

    Attributes:
        failure: None if it passed.
        phone: name of the phone it ran on; None if it came to none.
        evidence: where what explains the failure is, relative to the run's folder; None: nothing is kept.
        unfit: whether the phone was too hot, empty or full, and nothing was tried.
    """

    failure: Failure | None
    phone: str | None = None
    evidence: str | None = None
    unfit: bool = False


def run_cell(
    bench: Bench,
    cell: Cell,
    artifact: Artifact,
    lease_wait_s: float = LEASE_WAIT_S,
    *,
    first: str | None = None,
    run: Callable[[Attempt], Failure | None] = run_attempt,
) -> OutcomeRecord:
    """Runs a cell on a phone that fits, trying again where the class of a failure allows it; records everything.

    Args:
        bench: what it is run with.
        cell: the cell.
        artifact: its artifact, built.
        lease_wait_s: how long to wait for a phone, in seconds.
        first: name of the phone the scheduler chose; it is asked for before the others.
        run: what an attempt does.
    """

    def once(number: int, places: Sequence[str | None], crashed: Collection[str]) -> Tried:
        return try_once(bench, cell, artifact, number, places, lease_wait_s, crashed=crashed, first=first, run=run)

    return settle(cell, once, record=bench.record, say=bench.say, before=bench.attempts_before.get(cell.id, 0))


def settle(
    cell: Cell,
    once: Callable[[int, Sequence[str | None], Collection[str]], Tried],
    *,
    record: Callable[[Record], None],
    say: Callable[[str, str], None],
    before: int = 0,
) -> OutcomeRecord:
    """Tries a cell as often as its failures' classes allow; records and returns its one outcome.

    Args:
        cell: the cell.
        once: one try: its number; the phone of each failure so far, None where it came to none; those that crashed.
        record: appends a record.
        say: progress.
        before: tries before the run was interrupted.
    """
    start = time.monotonic()
    failures: list[FailureClass] = []
    places: list[str | None] = []
    evidence_path: str | None = None
    while True:
        attempt = before + len(failures) + 1
        tried = once(attempt, places, crashed_on(failures, places))
        failure, name = tried.failure, tried.phone
        evidence_path = tried.evidence or evidence_path
        seconds = round(time.monotonic() - start, 2)
        if failure is None:
            outcome = OutcomeRecord(cell.id, Status.PASSED, seconds=seconds, attempts=attempt, phone=name)
            break
        failures.append(failure.failure_class)
        places.append(name)
        if not again(failures):
            klass = verdict_class(failures, places)
            if klass is FailureClass.CRASH:
                failure = undecided(failure, places)
            status = Status.FAILED if klass in (FailureClass.PRODUCT, FailureClass.PERF) else Status.ERROR
            evidence = (failure.reason, failure.remedy, failure.evidence)
            outcome = OutcomeRecord(cell.id, status, klass, *evidence, evidence_path, seconds, attempt, name)
            break
        say(name or "", f"{cell.id}: {failure.failure_class}: {failure.reason}; trying again")
    record(outcome)
    say(outcome.phone or "", f"{cell.id}: {outcome.status} after {outcome.seconds:.0f} s")
    return outcome


def try_once(
    bench: Bench,
    cell: Cell,
    artifact: Artifact,
    number: int,
    avoid: Sequence[str | None],
    lease_wait_s: float = LEASE_WAIT_S,
    *,
    crashed: Collection[str] = (),
    first: str | None = None,
    wait_fit: bool = True,
    run: Callable[[Attempt], Failure | None] = run_attempt,
) -> Tried:
    """One try of a cell, on a phone of the bench's. Never raises for what goes wrong.

    Args:
        number: of the attempt, from 1.
        avoid: phones that failed the cell, one entry a failure.
        crashed: phones that rebooted under it.
        wait_fit: wait for the last phone left that is too hot, empty or full.
        Others: as in `run_cell`.
    """
    evidence: str | None = None
    try:
        candidates = fitting(bench.phones, cell, avoid, first, bench.nurse.book, crashed=crashed)
        bench.say("", f"{cell.id}: waiting for a phone")
        with fit_phone(bench, candidates, lease_wait_s, wait_fit=wait_fit) as phone, journal() as commands:
            mark = bench.nurse.server_mark()
            failure = carry_out(run, Attempt(bench, cell, artifact, phone, number))
            note_attempt(bench, phone, failure, same_server=mark == bench.nurse.server_mark())
            if failure:
                failure = advised(failure, cell, artifact)
                evidence = keep_evidence(bench, cell, phone, number, commands)
    except Exception as error:
        return Tried(classify_exception(error), None, evidence, unfit=isinstance(error, NotFitError))
    return Tried(failure, phone.phone.name, evidence)


def not_built(cell: str, error: HarnessError) -> OutcomeRecord:
    """The outcome of a cell whose artifact cannot be had."""
    reason = f"{error.where}: {error.what}" if error.where else error.what
    return OutcomeRecord(cell, Status.ERROR, error.failure_class, reason, error.remedy, error.evidence)


def carry_out(run: Callable[[Attempt], Failure | None], attempt: Attempt) -> Failure | None:
    """An attempt whose every failure is a result: what it raises is classified."""
    try:
        return run(attempt)
    except Exception as error:
        return classify_exception(error)


def advised(failure: Failure, cell: Cell, artifact: Artifact) -> Failure:
    """The failure with the number of shards in its remedy, where more of them would mend it."""
    if failure.signature not in MORE_SHARDS:
        return failure
    delegate = read_info(artifact.pte).delegate
    return replace(failure, remedy=f"{failure.remedy}: {more_shards(cell.model, delegate.sizes if delegate else ())}")


def note_attempt(bench: Bench, phone: AttachedPhone, failure: Failure | None, *, same_server: bool) -> None:
    """Writes an attempt into the phone's health; what the adb server's end broke is nothing of the phone's."""
    book, serial = bench.nurse.book, phone.link.serial
    if failure is not None and failure.failure_class in BLAMED and not (same_server and phone.link.server.answers()):
        book.set_state(serial, HealthState.UNKNOWN, "the adb server ended")
        return
    book.attempted(serial, failure.failure_class if failure else None)


def keep_evidence(bench: Bench, cell: Cell, phone: AttachedPhone, number: int, commands: Sequence[Command]) -> str:
    """Writes what explains a failure to the run's folder; returns where, relative to that."""
    folder = bench.folder / "cells" / cell.id / f"{number}-evidence"
    collect(phone.link, folder, commands)
    return str(folder.relative_to(bench.folder))


@contextmanager
def fit_phone(
    bench: Bench, candidates: Sequence[AttachedPhone], lease_wait_s: float, *, wait_fit: bool = True
) -> Iterator[AttachedPhone]:
    """The first of several phones that is free and fit, leased. While one cools down, another one is taken.

    Raises:
        NotFitError: none is fit now, if not `wait_fit`.
        InfraError: none is free in time, or the one taken does not come back.
        EnvError: the last one left stays unfit.
    """
    book = bench.nurse.book
    owner = Owner.this_process(bench.run_id)
    rest = sorted(candidates, key=lambda p: book.just_hot(p.link.serial))
    while True:
        with bench.leases.acquire_any([p.link.serial for p in rest], owner, wait_s=lease_wait_s) as lease:
            phone = next(p for p in rest if p.link.serial == lease.serial)
            others = [p for p in rest if p is not phone]
            try:
                _, left = prepare(bench.nurse, phone.phone, phone.link, wait=wait_fit and not others)
            except (EnvError, InfraError) as error:
                if isinstance(error, InfraError) and phone.link.server.answers():
                    book.attempted(phone.link.serial, FailureClass.INFRA)
                if not others:
                    raise
                bench.say(phone.phone.name, f"{error.what}; another phone is asked")
                rest = others
                continue
            if left:
                bench.say(phone.phone.name, f"removed what a dead run left: {left}")
            yield phone
            return


def fitting(
    phones: Sequence[AttachedPhone],
    cell: Cell,
    avoid: Sequence[str | None],
    first: str | None = None,
    book: HealthBook | None = None,
    *,
    crashed: Collection[str] = (),
) -> list[AttachedPhone]:
    """The phones a cell may run on, those that failed it last; a cell pinned to a phone has only that one.

    Of the others, `first` comes first, then those of higher priority. Those that `book` calls BAD are left out, and so
    are those that `crashed` under the cell, busy though the others may be: only another phone tells whose fault it was.

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
    if book is not None:
        usable = [p for p in matching if book.state(p.link.serial).usable]
        if not usable:
            raise InfraError(
                f"no phone with {cell.soc.name} may be used",
                where=cell.id,
                remedy="look at them, then `htpfarm devices clear NAME`",
                evidence="\n".join(str(refused(book, p.phone, p.link.serial)) for p in matching),
            )
        matching = usable
    matching = [p for p in matching if p.phone.name not in crashed] or matching
    return sorted(matching, key=lambda p: (avoid.count(p.phone.name), p.phone.name != first, -p.phone.priority))
