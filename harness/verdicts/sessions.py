"""Iterations → sessions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable
from typing import TypeVar

_Key = TypeVar("_Key", bound=Hashable)


def session_medians(measured: Iterable[tuple[_Key, float | None]]) -> dict[_Key, float]:
    """Each session's median over its iterations, in the order the sessions first appear.

    Args:
        measured: session and value of each iteration. None and NaN (what 0/0 gives) are no measurements.
    """
    found: dict[_Key, list[float]] = {}
    for key, value in measured:
        if value is not None and not math.isnan(value):
            found.setdefault(key, []).append(value)
    return {key: statistics.median(values) for key, values in found.items()}
