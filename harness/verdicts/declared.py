"""Measured values against bounds that a model's file declares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from harness.verdicts.rules import Better


@dataclass(frozen=True)
class Declared:
    """One declared bound and how it was kept.

    Attributes:
        metric: name of it, as `decode_tok_s`.
        bound: at least it of a rate, at most it of a latency.
        better: which of the two.
        value: what was measured.
        passed: whether it holds; a value that is not finite never does.
    """

    metric: str
    bound: float
    better: Better
    value: float
    passed: bool

    @property
    def words(self) -> str:
        """As `decode_tok_s 18.2, declared at least 20`."""
        which = "at least" if self.better is Better.HIGHER else "at most"
        return f"{self.metric} {self.value:g}, declared {which} {self.bound:g}"


def judge_declared(
    measured: Mapping[str, float | None], bounds: Mapping[str, float], better: Mapping[str, Better]
) -> tuple[Declared, ...]:
    """Each bound whose metric was measured, in the order declared.

    Args:
        measured: metric → value; None where it was not measured.
        bounds: metric → bound.
        better: metric → which way it gets better.
    """
    found = []
    for metric, bound in bounds.items():
        value = measured.get(metric)
        if value is not None:
            holds = value >= bound if better[metric] is Better.HIGHER else value <= bound
            found.append(Declared(metric, bound, better[metric], value, math.isfinite(value) and holds))
    return tuple(found)
