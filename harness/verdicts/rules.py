"""The words a judgement is given in, and the numbers it is made by."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Judgement(StrEnum):
    """What a comparison comes to. Only REGRESSED blocks."""

    REGRESSED = "REGRESSED"
    OK = "OK"
    IMPROVED = "IMPROVED"
    INCONCLUSIVE = "INCONCLUSIVE"
    INVALID = "INVALID"


class Better(StrEnum):
    """Which way a metric gets better: a rate upwards, a latency downwards."""

    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True)
class Rules:
    """How speeds are judged. The defaults come from `benchmarks/verdict_rates.py`.

    Attributes:
        margin: ε: a change below it does not matter, as a fraction.
        alpha: one-sided level of the bound that REGRESSED and IMPROVED need: a cell without a change is called
            REGRESSED at most this often, whatever its noise.
        ok_alpha: one-sided level of the bound that OK needs.
        first, more: ABBA pairs measured at first, and those added unless the first come to OK or IMPROVED.
        q: false discovery rate over all comparisons of a run.
        pool_from: from how many comparisons on each one's variance borrows from the others', see `discovery`.
        history_level: one-sided level of the prediction bound against history.
        history_least: sessions that a history needs.
    """

    margin: float = 0.03
    alpha: float = 0.01
    ok_alpha: float = 0.05
    first: int = 5
    more: int = 3
    q: float = 0.015
    pool_from: int = 20
    history_level: float = 0.995
    history_least: int = 10


RULES = Rules()
