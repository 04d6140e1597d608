"""Two runs of two users at once on one rack: both end, and no phone has two holders at a moment.

    python benchmarks/two_users.py [--cells 24]

Two processes, each as a run of its own, with records of its own, share four virtual phones and the folder of leases (as
two users share /run/lock/htpfarm, see docs/rack.md). The runners themselves look out for each other. The exit status is
1 if a cell has no outcome, or a phone was used twice at once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from sleeping_cells import Farm, Plan, attempt_lines

from harness.rack import manage
from harness.results.store import load_run

PHONES = {f"p{i}": "galaxy_s24" for i in range(4)}


def farm_of(folder: Path, user: str) -> Farm:
    """A user's run on the shared rack."""
    return Farm(folder / user, PHONES, folder / "rack", leases=folder / "shared")


def plans(user: str, count: int) -> dict[str, Plan]:
    """The user's cells."""
    return {f"{user}{i:03}-kv-SM8650": Plan(0.5) for i in range(count)}


def overlaps(folder: Path) -> list[str]:
    """Attempts of both users that share a phone at a moment."""
    spans = []
    for user in ("ann", "bob"):
        begun: dict[object, float] = {}
        for line in attempt_lines(folder / user):
            key = (line["cell"], line["number"])
            if line["event"] == "start":
                begun[key] = float(str(line["time"]))
            elif line["event"] == "end":
                spans.append((str(line["phone"]), begun[key], float(str(line["time"])), f"{user}'s {line['cell']}"))
    spans.sort()
    found = []
    for before, after in pairwise(spans):
        if before[0] == after[0] and after[1] < before[2]:
            found.append(f"{before[0]}: {before[3]} and {after[3]}")
    return found


def main() -> int:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--user", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.user:
        farm_of(arguments.folder, arguments.user).run(plans(arguments.user, arguments.cells))
        return 0
    with tempfile.TemporaryDirectory(prefix="htpfarm-two-users-") as name:
        folder = Path(name)
        farm_of(folder, "ann").up()
        start = time.monotonic()
        try:
            argv = [sys.executable, __file__, "--folder", name, "--cells", str(arguments.cells), "--user"]
            runs = [subprocess.Popen([*argv, user]) for user in ("ann", "bob")]
            statuses = [run.wait(timeout=1200) for run in runs]
        finally:
            manage.down(folder / "rack")
        problems = overlaps(folder)
        for phone in PHONES:
            doubles = folder / "rack" / "phones" / phone / "data/local/tmp/doubles"
            problems += doubles.read_text().splitlines() if doubles.exists() else []
        used: dict[str, set[str]] = {}
        for user in ("ann", "bob"):
            outcomes = load_run(folder / user).outcomes
            problems += [f"{c}: no outcome" for c in plans(user, arguments.cells) if c not in outcomes]
            problems += [f"{c}: {o.status} {o.reason}" for c, o in outcomes.items() if o.status != "PASSED"]
            used[user] = {str(outcome.phone) for outcome in outcomes.values()}
    if any(statuses):
        problems.append(f"the runs ended with {statuses}")
    print(f"2 × {arguments.cells} cells in {time.monotonic() - start:.1f} s on {len(PHONES)} phones")
    print(f"phones used by ann {sorted(used['ann'])}, by bob {sorted(used['bob'])}")
    print("\n".join(problems) or "both ended, no phone was shared at a moment")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
