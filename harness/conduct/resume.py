"""Going on with an interrupted run in its own folder: what is done, and whether the rest is the same run. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.errors import ConfigError
from harness.results.records import PlanEntry
from harness.results.store import RunData

if TYPE_CHECKING:
    from pathlib import Path

_NAMED = 3


@dataclass(frozen=True)
class Resumed:
    """What an interrupted run had come to.

    Attributes:
        done: ids of the cells with an outcome, however they ended: they are not run again.
        attempts: cell id → tries of it that have left records; the next is counted on from there.
    """

    done: frozenset[str] = frozenset()
    attempts: Mapping[str, int] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        """For another process of the run: all of them leave out the same cells, whatever ends meanwhile."""
        return {"done": sorted(self.done), "attempts": dict(self.attempts)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Resumed:
        """Of `to_data`."""
        return cls(frozenset(data["done"]), dict(data["attempts"]))


def resumed(data: RunData) -> Resumed:
    """What a run's records say is done."""
    attempts: dict[str, int] = {}
    for cell, samples in data.samples.items():
        attempts[cell] = max(sample.attempt for sample in samples)
    for cell, curve in data.ttfts.items():
        attempts[cell] = max(attempts.get(cell, 0), *(record.attempt for record in curve))
    for cell, deploys in data.deploys.items():  # an attempt that measured nothing has left files all the same
        attempts[cell] = max(attempts.get(cell, 0), len(deploys))
    return Resumed(frozenset(data.outcomes), attempts)


def check_same(
    data: RunData, planned: Sequence[PlanEntry], toolchain: Mapping[str, str], target: str, folder: Path
) -> None:
    """Refuses to mix two things in one run.

    Args:
        data: the interrupted run.
        planned: what would be planned now.
        toolchain: today's fingerprint.
        target: today's.
        folder: the run's, for the message.

    Raises:
        ConfigError: the plan, the toolchain or the target is another; names what differs.
    """
    where = f"--resume {folder}"
    before = {entry.cell: entry for entry in data.plan}
    now = {entry.cell: entry for entry in planned}
    parts = (
        ("not planned then", now.keys() - before.keys()),
        ("no longer planned", before.keys() - now.keys()),
        ("planned otherwise", {cell for cell in now.keys() & before.keys() if now[cell] != before[cell]}),
    )
    if problems := [f"{_some(cells)} {what}" for what, cells in parts if cells]:
        raise ConfigError(
            f"this is not the run's plan: {'; '.join(problems)}",
            where=where,
            remedy="give the options, rack and models of that run (report.html names its command), or start a new run",
        )
    old = data.run.toolchain
    changed = sorted(name for name in {*old, *toolchain} if old.get(name) != toolchain.get(name))
    if changed or target != data.run.target.value:
        what = "; ".join(f"{name}: {old.get(name, 'none')} then, {toolchain.get(name, 'none')} now" for name in changed)
        raise ConfigError(
            f"the toolchain is not the run's: {what or f'target {data.run.target.value} then, {target} now'}",
            where=where,
            remedy="start a new run: one run's cells must have been made by one toolchain",
        )


def _some(cells: Collection[str]) -> str:
    named = ", ".join(sorted(cells)[:_NAMED])
    return named if len(cells) <= _NAMED else f"{named} and {len(cells) - _NAMED} more"
