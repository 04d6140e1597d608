"""A build worker with a fault: `python -m faults.build_worker JOB.json`, with `HTPFARM_FAULT` and `HTPFARM_TAP`.

`--check` plants every fault of the build in turn, builds nothing, and fails where one cannot be planted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import harness.build.worker
from faults.catalog import FAULTS
from faults.fault import Patch, PlantError


class _Noted(Patch):
    """Leaves a file where the fault struck: the worker's process ends without a word."""

    def strike(self) -> None:
        super().strike()
        (self.folder / "struck").touch()


def check() -> int:
    """Plants each fault and takes it out again; returns how many could not be."""
    failed = 0
    for name, fault in FAULTS.items():
        if fault.kind != "build":
            continue
        patch = Patch()
        try:
            fault.plant(patch)
            done = bool(patch.places)
        except PlantError as error:
            done = False
            print(f"{name}: {error}")
        patch.undo()
        print(f"{name}: {'planted in ' + ', '.join(patch.places) if done else 'NOT PLANTED'}")
        failed += not done
    return failed


def main() -> None:
    """Plants, then builds."""
    if sys.argv[1] == "--check":
        sys.exit(check())
    patch = _Noted(folder=Path(os.environ["HTPFARM_TAP"]))
    FAULTS[os.environ["HTPFARM_FAULT"]].plant(patch)
    harness.build.worker.main()


if __name__ == "__main__":
    main()
