"""What follows a failure, by its class: the table of failure classes as a pure function."""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import FailureClass

INFRA_TRIES = 3
"""One try and at most two more on another phone."""
CRASH_TRIES = 2
"""One more on another phone; a second crash is the product's."""


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


def verdict_class(failures: Sequence[FailureClass]) -> FailureClass:
    """The class of a cell that failed so: two crashes on different phones are the product's fault."""
    crashed = failures.count(FailureClass.CRASH) >= CRASH_TRIES
    return FailureClass.PRODUCT if failures[-1] is FailureClass.CRASH and crashed else failures[-1]
