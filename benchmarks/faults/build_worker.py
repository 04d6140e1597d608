"""A build worker with a fault: `python -m faults.build_worker JOB.json`, with `HTPFARM_FAULT` and `HTPFARM_TAP`."""

from __future__ import annotations

import os
from pathlib import Path

import harness.build.worker
from faults.catalog import FAULTS
from faults.fault import Patch


class _Noted(Patch):
    """Leaves a file where the fault struck: the worker's process ends without a word."""

    def strike(self) -> None:
        super().strike()
        (self.folder / "struck").touch()


def main() -> None:
    """Plants, then builds."""
    patch = _Noted(folder=Path(os.environ["HTPFARM_TAP"]))
    FAULTS[os.environ["HTPFARM_FAULT"]].plant(patch)
    harness.build.worker.main()


if __name__ == "__main__":
    main()
