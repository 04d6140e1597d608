"""What four phones gain over one, and what the harness costs a cell: runners sleep, so that only it is measured.

    python benchmarks/farm_speedup.py [--cells 24] [--seconds 5]

Virtual phones behind a real adb server; each cell goes through lease, sweep, health, deploy, session, fetch and
record, as real ones do. Overhead is what a cell takes on one phone beyond the runner's sleep. The exit status is 1 if
the speed-up is under 3.8 or the overhead over 0.5 s.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from sleeping_cells import Farm, Plan

from harness.rack import manage
from harness.results.store import load_run

PHONES = {f"p{i}": "galaxy_s24" for i in range(4)}


def main() -> int:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    plans = {f"c{i:03}-kv-SM8650": Plan(arguments.seconds) for i in range(arguments.cells)}
    took = {}
    with tempfile.TemporaryDirectory(prefix="htpfarm-speedup-") as name:
        folder = Path(name)
        try:
            for count in (4, 1):
                farm = Farm(folder / f"run{count}", PHONES, folder / "rack")
                farm.up()
                warm = Farm(folder / f"warm{count}", PHONES, folder / "rack")
                warm.run({f"w{i}-kv-SM8650": Plan(0.1) for i in range(4)})
                start = time.monotonic()
                farm.run(plans, only=[f"p{i}" for i in range(count)])
                took[count] = time.monotonic() - start
                outcomes = load_records(farm.folder)
                assert sorted(outcomes) == sorted(plans), outcomes
                assert set(outcomes.values()) == {"PASSED"}, outcomes
        finally:
            manage.down(folder / "rack")
    speedup = took[1] / took[4]
    overhead = took[1] / arguments.cells - arguments.seconds
    good = speedup >= 3.8 and overhead <= 0.5
    print(f"{arguments.cells} cells of {arguments.seconds:g} s: {took[1]:.1f} s on one phone, {took[4]:.1f} s on four")
    print(f"speed-up {speedup:.2f}, overhead a cell {overhead:.3f} s: {'good' if good else 'MISSED'}")
    return 0 if good else 1


def load_records(folder: Path) -> dict[str, str]:
    """Cell → status."""
    return {cell: str(outcome.status) for cell, outcome in load_run(folder).outcomes.items()}


if __name__ == "__main__":
    sys.exit(main())
