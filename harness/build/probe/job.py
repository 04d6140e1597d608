"""What the probe's worker is asked, and its answers: plain data, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.build.probe.marks import Answer, Observation


@dataclass(frozen=True)
class ProbeJob:
    """Graphs to lower.

    Attributes:
        tasks: gate and chipset of each.
        folder: receives a log a graph and, while the worker runs, its scratch files.
        seconds: the most one graph may take.
        parallel: how many are lowered at once.
    """

    tasks: tuple[tuple[str, str], ...]
    folder: Path
    seconds: float
    parallel: int

    def to_json(self) -> str:
        """The job as JSON text."""
        return json.dumps(asdict(self), default=str, indent=1)

    @staticmethod
    def from_json(text: str) -> ProbeJob:
        """The inverse of `to_json`."""
        raw = json.loads(text)
        tasks = tuple((gate, soc) for gate, soc in raw["tasks"])
        return ProbeJob(tasks, Path(raw["folder"]), raw["seconds"], raw["parallel"])


def to_dict(seen: Observation) -> dict[str, object]:
    """An observation as plain data."""
    return asdict(seen)


def from_dict(raw: dict[str, object]) -> Observation:
    """The inverse of `to_dict`."""
    values: dict[str, object] = dict(raw)
    for key in ("answer", "control", "quantizer"):
        values[key] = None if values[key] is None else Answer(str(values[key]))
    left = values["left"]
    assert isinstance(left, (list, tuple))
    values["left"] = tuple(left)
    return Observation(**values)  # type: ignore[arg-type]
