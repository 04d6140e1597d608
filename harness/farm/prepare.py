"""What happens between taking a phone's lease and using it: swept, looked at, recovered, cooled."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.errors import CrashError, EnvError, InfraError, ProductError
from harness.farm.connect import PhoneLink
from harness.farm.health import HealthBook, HealthState
from harness.farm.recover import SweepReport, sweep
from harness.farm.rescue import Patience, Rescue
from harness.farm.vitals import Ailment, Vitals, ailments, read_vitals
from harness.inventory import Phone


@dataclass(frozen=True)
class Nurse:
    """What phones are looked after with.

    Attributes:
        book: where their health is written.
        say: progress: a phone's name, and what.
        mend_server: see `Rescue`.
        patience: see `Rescue`.
        deep_check: looks whether the HTP works, where that is possible; raises HtpError if it does not, which makes the
            phone BAD; returns False where that need not be the phone, which stays UNKNOWN. Run when the phone was
            UNKNOWN, or has just been brought back.
        server_mark: something that is another one after the adb server of virtual phones was started again: what failed
            meanwhile is no phone's fault.
        poll_s: how often a phone is looked at that must cool or charge, in seconds.
    """

    book: HealthBook
    say: Callable[[str, str], None] = lambda _name, _what: None
    mend_server: Callable[[], bool] | None = None
    patience: Patience = field(default_factory=Patience)
    deep_check: Callable[[Phone, PhoneLink], bool] | None = None
    server_mark: Callable[[], object] = lambda: None
    poll_s: float = 2.0


class HtpError(ProductError):
    """What is known to run on a phone like this one does not run, or gives something else."""


class NotFitError(EnvError):
    """The phone is too hot, empty or full, and the caller did not want to wait."""


def prepare(nurse: Nurse, phone: Phone, link: PhoneLink, *, wait: bool = True) -> tuple[Vitals, SweepReport]:
    """Makes a leased phone fit for use. Only for the holder of its lease.

    Args:
        nurse: what it is looked after with.
        phone: of devices.yaml.
        link: the way to it.
        wait: wait for a phone that is too hot, empty or full, as long as its limits say; else it is refused.

    Returns:
        How it is now, and what a dead holder had left on it.

    Raises:
        InfraError: it does not come back or its HTP does not work (it is BAD now), or is BAD or in maintenance; or its
            adb server does not answer.
        NotFitError: it is too hot, empty or full, if not `wait`.
        EnvError: it still is at the end of its time.
    """
    book, serial = nurse.book, link.serial
    state = book.state(serial)
    if not state.usable:
        raise refused(book, phone, serial)
    left = _answering(nurse, phone, link, state)
    vitals = read_vitals(link)
    found = ailments(vitals, phone.limits, cooling=book.cooling(serial))
    if broken := [a for a in found if a.kind == "infra"]:
        _climb(nurse, phone, link, broken[0].text)
        vitals = read_vitals(link)
        found = ailments(vitals, phone.limits, cooling=book.cooling(serial))
    if unfit := [a for a in found if a.kind != "infra"]:
        vitals = _wait_fit(nurse, phone, link, unfit[0], wait=wait)
    book.note_cooling(serial, "")
    checked = True
    if nurse.deep_check is not None and book.state(serial) is HealthState.UNKNOWN:
        checked = _check_htp(nurse.deep_check, book, phone, link)
    if checked:
        book.set_state(serial, HealthState.GOOD, "answers, booted, fit")
    return vitals, left


def _check_htp(check: Callable[[Phone, PhoneLink], bool], book: HealthBook, phone: Phone, link: PhoneLink) -> bool:
    try:
        return check(phone, link)
    except HtpError as error:
        book.set_state(link.serial, HealthState.BAD, f"deep check: {error.what}")
        raise InfraError(
            f"the phone failed its deep check: {error.what}",
            where=f"{phone.name} ({link.serial})",
            remedy=f"look at it, then `htpfarm devices clear {phone.name}`"
            + (f"; known for this: {error.remedy}" if error.remedy else ""),
            evidence=error.evidence,
        ) from error
    except CrashError as error:  # once is chance: the phone stays UNKNOWN, with a strike
        raise InfraError(
            f"{error.what}: the deep check's", where=error.where, remedy=error.remedy, evidence=error.evidence
        ) from error


def refused(book: HealthBook, phone: Phone, serial: str) -> InfraError:
    """The error for a phone that is BAD or in maintenance."""
    return InfraError(
        f"the phone is {book.state(serial)}: {book.cause(serial) or 'no cause noted'}",
        where=f"{phone.name} ({serial})",
        remedy=f"look at it, then `htpfarm devices clear {phone.name}`",
    )


def _answering(nurse: Nurse, phone: Phone, link: PhoneLink, state: HealthState) -> SweepReport:
    """Sweeps the phone, which shows that it answers; climbs the ladder if it does not."""
    try:
        return sweep(link)
    except InfraError as error:
        nurse.say(phone.name, f"does not answer ({error.what}); state {state}")
        _climb(nurse, phone, link, error.what)
    return sweep(link)


def _climb(nurse: Nurse, phone: Phone, link: PhoneLink, why: str) -> None:
    book, serial = nurse.book, link.serial
    book.set_state(serial, HealthState.UNKNOWN, why)
    steps = Rescue(phone, link, nurse.patience, nurse.mend_server).run()
    tried = ", ".join(step.name for step in steps)
    if steps and steps[-1].helped:
        nurse.say(phone.name, f"back after: {tried}")
        return
    if not link.server.answers():  # nothing of the phone's: it is as good as before when its computer is back
        raise InfraError(
            f"the phone's adb server does not answer: {why}",
            where=f"{phone.name} ({link.serial} at {link.server.host}:{link.server.port})",
            remedy="bring back that computer, its adb server, or the tunnel to it",
            evidence="\n".join(f"{step.name}: {step.why}" for step in steps),
        )
    book.set_state(serial, HealthState.BAD, f"{why}; nothing helped: {tried}")
    raise InfraError(
        f"the phone does not come back; tried {tried}",
        where=f"{phone.name} ({serial})",
        remedy=f"look at it, then `htpfarm devices clear {phone.name}`",
        evidence="\n".join(f"{step.name}: {step.why}" for step in steps),
    )


def _wait_fit(nurse: Nurse, phone: Phone, link: PhoneLink, ailment: Ailment, *, wait: bool) -> Vitals:
    book, limits, serial = nurse.book, phone.limits, link.serial
    where = f"{phone.name} ({serial})"
    deadline = time.monotonic() + limits.cool_limit_s
    if ailment.kind == "heat":
        book.note_cooling(serial, ailment.text)
    if not wait:
        raise NotFitError(ailment.text, where=where, remedy=ailment.remedy)
    nurse.say(phone.name, f"{ailment.text}; waiting")
    while True:
        time.sleep(max(0.0, min(nurse.poll_s, deadline - time.monotonic())))
        vitals = read_vitals(link)
        left = ailments(vitals, limits, cooling=book.cooling(serial))
        if not left:
            return vitals
        if time.monotonic() >= deadline:
            text = f"{left[0].text}, and nothing changed that within {limits.cool_limit_s:g} s"
            raise EnvError(text, where=where, remedy=left[0].remedy)
