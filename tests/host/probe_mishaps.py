"""Probes graphs that abort, hang and break beside a real one: `probe_mishaps.py FOLDER`. Prints the worker's events.

A program of its own, since the toolchain's environment must be there before the process starts.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import torch

from harness.build.probe import graphs, worker
from harness.build.probe.graphs import Graph
from harness.build.probe.job import ProbeJob
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


def main() -> None:
    torch.set_num_threads(1)
    control = graphs.GRAPHS["kv16"][1]
    worker.GRAPHS = MappingProxyType(
        {
            "kv16": graphs.GRAPHS["kv16"],
            "aborts": (mishap(os.abort), control),
            "hangs": (mishap(lambda: time.sleep(1000)), control),
            "breaks": (no_layer, control),
            "raises": (mishap(raises), control),
        }
    )
    tasks = tuple((name, "SM8450") for name in ("aborts", "hangs", "breaks", "raises", "kv16"))
    worker.Prober(ProbeJob(tasks, Path(sys.argv[1]), seconds=20.0, parallel=2)).run()


if __name__ == "__main__":
    main()
