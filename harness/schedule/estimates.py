"""How long a cell will take, from how long such cells took before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

DEFAULT_SECONDS = 60.0
KEPT = 9
"""Past durations of a cell that count, the latest ones."""


@dataclass(frozen=True)
class Past:
    """One earlier run of a cell: its id (with or without `@phone`), model and mode, seconds taken."""

    cell: str
    model: str
    mode: str
    seconds: float


class Estimates:
    """Medians: of the very cell, else of the cell on any phone, else of its model and mode, else of all."""

    def __init__(self, past: Iterable[Past] = ()) -> None:
        """
        Args:
            past: earlier runs, oldest first.
        """
        seen: dict[tuple[str, ...], list[float]] = {}
        for one in past:
            keys = ((one.cell,), (one.cell.partition("@")[0], ""), (one.model, one.mode, ""), ())
            for key in keys:
                seen.setdefault(key, []).append(one.seconds)
        self._medians: Mapping[tuple[str, ...], float] = {k: median(v[-KEPT:]) for k, v in seen.items()}

    def seconds(self, cell: str, model: str, mode: str) -> float:
        """Expected seconds of a cell on a phone."""
        for key in ((cell,), (cell.partition("@")[0], ""), (model, mode, ""), ()):
            if key in self._medians:
                return self._medians[key]
        return DEFAULT_SECONDS
