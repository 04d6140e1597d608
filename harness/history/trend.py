"""How each metric of each cell went: its values run by run, the latest against those before. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.history.query import RunValue, SessionValue, run_values
from harness.verdicts import RULES, Bound, Judgement, Rules, judge_against_history
from harness.verdicts.metrics import JUDGED, better

BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Trend:
    """One metric of one cell on one target.

    Attributes:
        cell, metric, target: of what; `sim` speeds never meet a phone's.
        values: a value a run, oldest first.
        judgement: of the latest against those before it since the last accepted change; None of a metric that no
            verdict is given on, or without values before.
        bound: what the history lets expect; None of a short one.
        p: the p-value of a slowdown.
        changes: times after which the level changed, where change points were looked for.
    """

    cell: str
    metric: str
    target: str
    values: tuple[RunValue, ...]
    judgement: Judgement | None = None
    bound: Bound | None = None
    p: float = 1.0
    changes: tuple[str, ...] = ()

    @property
    def latest(self) -> RunValue:
        """The newest value."""
        return self.values[-1]

    @property
    def spark(self) -> str:
        """The last 30 values as bars."""
        return sparkline([value.value for value in self.values[-30:]])


def trends(
    values: Sequence[SessionValue], accepted: Mapping[tuple[str, str], str] | None = None, rules: Rules = RULES
) -> list[Trend]:
    """The trend of each cell, metric and target in the values.

    Args:
        values: of sessions.
        accepted: (cell, target) → when its last change was accepted, ISO UTC: what is older is no part of its history.
        rules: levels.
    """
    found = []
    for target in sorted({value.target for value in values}):
        of_target = [value for value in values if value.target == target]
        for (cell, metric), by_run in run_values(of_target).items():
            found.append(_trend(cell, metric, target, by_run, (accepted or {}).get((cell, target), ""), rules))
    return sorted(found, key=lambda trend: (trend.cell, trend.metric, trend.target))


def sparkline(values: Sequence[float]) -> str:
    """Values as bars between the least and the most; those that are not finite as a blank."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    step = (high - low) / (len(BARS) - 1)
    return "".join(
        " " if not math.isfinite(value) else BARS[3] if step == 0 else BARS[round((value - low) / step)]
        for value in values
    )


def _trend(cell: str, metric: str, target: str, values: Sequence[RunValue], accepted: str, rules: Rules) -> Trend:
    way = better(metric)
    *before, latest = values
    history = [value.value for value in before if value.time >= accepted and value.value > 0]
    if metric.partition("@")[0] not in JUDGED or way is None or not history or latest.value <= 0:
        return Trend(cell, metric, target, tuple(values))
    judged, bound, p = judge_against_history(latest.value, history, way, rules)
    return Trend(cell, metric, target, tuple(values), judged, bound, p)
