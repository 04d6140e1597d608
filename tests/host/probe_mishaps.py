"""Probes graphs that abort, hang and break beside a real one: `probe_mishaps.py FOLDER`. Prints the worker's events.

A program of its own, since the toolchain's environment must be there before the process starts. Its clock stands
until all others have their answers and leaps past the limit then: the graph that hangs is over its time however slow
the others are.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import torch

from harness.build.probe import graphs, worker
from harness.build.probe.graphs import Graph
from harness.build.probe.job import ProbeJob
from harness.build.probe.marks import Observation
from harness.target import Target


class Mishap(Graph):
    """Does it where the lowering first looks at a graph: in the child."""

    do: Callable[[], object]
    modules, inputs, refused, loads = MappingProxyType({}), MappingProxyType({}), frozenset(), False  # type: ignore[assignment]

    @property
    def target(self) -> Target:
        type(self).do()
        return Target.SIM

    @target.setter
    def target(self, _value: Target) -> None: ...


def mishap(what: Callable[[], object]) -> Callable[[], Graph]:
    kind = type("OneMishap", (Mishap,), {"do": staticmethod(what)})
    return lambda: object.__new__(kind)


def raises() -> None:
    raise RuntimeError("not a refusal")


def no_layer() -> Graph:
    raise KeyError("no such layer")


LIMIT_S = 20.0
OTHERS = {"aborts", "breaks", "raises", "kv16"}


class LeapingClock:
    """Hears the answers, too."""

    def __init__(self) -> None:
        self.left = set(OTHERS)

    def now(self) -> float:
        return 0.0 if self.left else LIMIT_S + 1

    def say(self, seen: Observation) -> None:
        self.left.discard(seen.gate)
        worker.say_probed(seen)


def main() -> None:
    torch.set_num_threads(1)
    control = graphs.GRAPHS["kv16"][1]
    worker.GRAPHS = MappingProxyType(
        {
            "kv16": graphs.GRAPHS["kv16"],
            "aborts": (mishap(os.abort), control),
            "hangs": (mishap(signal.pause), control),
            "breaks": (no_layer, control),
            "raises": (mishap(raises), control),
        }
    )
    tasks = tuple((name, "SM8450") for name in ("aborts", "hangs", "breaks", "raises", "kv16"))
    clock = LeapingClock()
    worker.Prober(ProbeJob(tasks, Path(sys.argv[1]), LIMIT_S, parallel=2), clock=clock.now, say=clock.say).run()


if __name__ == "__main__":
    main()
