"""What follows a failure, by its class: the table of failure classes as a pure function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness.errors import FailureClass
from harness.farm.failures import Failure

INFRA_TRIES = 3
"""One try and at most two more on another phone."""
CRASH_TRIES = 2
"""One more on another phone; a second crash there is the product's."""


def again(failures: Sequence[FailureClass]) -> bool:
    """Whether a cell whose attempts failed so, in order, gets another attempt.

    A product failure is never retried. INFRA is tried again twice at most, CRASH once, ENV (too hot, storage full)
    as often as INFRA: the measurement was void.
    """
    last = failures[-1]
    if last is FailureClass.CRASH:
        return failures.count(FailureClass.CRASH) < CRASH_TRIES
    if last in (FailureClass.INFRA, FailureClass.ENV):
        return len(failures) < INFRA_TRIES
    return False


def crashed_on(failures: Sequence[FailureClass], places: Sequence[str | None]) -> frozenset[str]:
    """The phones that rebooted under a cell.

    Args:
        failures: the classes of its attempts, in order.
        places: the name of each one's phone; None where it came to none.
    """
    both = zip(failures, places, strict=True)
    return frozenset(place for failure, place in both if failure is FailureClass.CRASH and place)


def verdict_class(failures: Sequence[FailureClass], places: Sequence[str | None]) -> FailureClass:
    """The class of a cell that failed so: crashes of different phones are the product's fault.

    Crashes of one phone alone do not tell the product from the phone, and stay crashes. Arguments as in `crashed_on`.
    """
    if failures[-1] is FailureClass.CRASH and len(crashed_on(failures, places)) >= CRASH_TRIES:
        return FailureClass.PRODUCT
    return failures[-1]


def undecided(failure: Failure, places: Sequence[str | None]) -> Failure:
    """A last crash after which nobody knows whose fault it is, saying so and what would tell; `places` as above."""
    phone = next((place for place in reversed(places) if place), "it")
    return replace(
        failure,
        reason=f"{failure.reason}, each time on the same phone: the product or {phone} is at fault",
        remedy=f"run the cell on another phone of its SoC (--phones, or add one to the rack): if that reboots too, "
        f"it is the product; if not, {phone}" + (f"; {failure.remedy}" if failure.remedy else ""),
    )
