"""Waiting in tests: for what happens, never for a time. A busy machine makes a test late, not wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

HANG_S = 600.0
"""Ends a test that waits for what never comes. No test is right or wrong by it."""
NEVER_S = 100_000.0
"""How long a thing lasts that the test itself ends, or that must not end while the test looks."""

Answer = TypeVar("Answer")


def until(ask: Callable[[], Answer], what: str = "it") -> Answer:
    """The first answer that counts as true; `what` was waited for is what the failure says."""
    deadline = time.monotonic() + HANG_S
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"{what} never came"
        time.sleep(0.05)
    return answer


def within_some_limit(tried: Callable[[float], Answer]) -> Answer:
    """The first true answer of what is tried with ever longer time limits; the last answer, if none is.

    For what never ends and whose time limit is looked at, yet must have begun: how soon depends on the machine.
    """
    for limit_s in (1.0, 4.0, 16.0, 64.0, HANG_S):
        if answer := tried(limit_s):
            break
    return answer
