"""Two runs of two users at once on one rack: both end, and no phone has two holders at a moment.

    python benchmarks/two_users.py [--cells 24] [--seconds 0.5] [--one-user]

Two processes, each as a run of its own, with records of its own, share four virtual phones, and the folder of leases
and health that an administrator made for their group (docs/rack.md, Several users). Run by root, each has a user number
of its own, and the rack is root's; else both are this user's, which the output says. The runners themselves look out
for each other. The exit status is 1 if a cell has no outcome, a phone was used twice at once, or a user could not see
by `htpfarm lease ls` what the other holds: each holds a phone until the other has seen it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from other_users import ANN, BOB, User, environment, make_home, make_shared, said, started, why_not
from sleeping_cells import Farm, Plan, attempt_lines

from harness.farm.lease import Owner, acquire_any
from harness.rack import manage
from harness.results.store import load_run

PHONES = {f"p{i}": "galaxy_s24" for i in range(4)}
USERS = (ANN, BOB)
LIMIT_S = 1200.0


def farm_of(folder: Path, user: str) -> Farm:
    """A user's run on the shared rack."""
    return Farm(folder / user / "run", PHONES, folder / "rack", timeout_s=LIMIT_S, leases=folder / "shared")


def run_as(folder: Path, user: str, cells: dict[str, Plan]) -> None:
    """A user's run; then it holds one more phone until the other user has seen a lease of its."""
    farm = farm_of(folder, user)
    farm.run(cells)
    serials = [phone.link.serial for phone in farm.attached()]
    deadline = time.monotonic() + LIMIT_S
    with acquire_any(serials, Owner.this_process(f"{user}-waits"), wait_s=LIMIT_S, lease_dir=farm.shared / "leases"):
        while not seen_file(folder, user).exists():
            if time.monotonic() > deadline:
                raise TimeoutError("nobody saw that a phone is held")
            time.sleep(0.1)


def seen_file(folder: Path, user: str) -> Path:
    """There once the other has seen a lease of the user's."""
    return folder / f"{user}.seen"


def plans(user: str, count: int, seconds: float) -> dict[str, Plan]:
    """The user's cells."""
    return {f"{user}{i:03}-kv-SM8650": Plan(seconds) for i in range(count)}


def overlaps(folder: Path) -> list[str]:
    """Attempts of both users that share a phone at a moment."""
    spans = []
    for user in ("ann", "bob"):
        begun: dict[object, float] = {}
        for line in attempt_lines(folder / user / "run"):
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


def seen_by(user: User, folder: Path, *, two: bool) -> set[str]:
    """Whose leases `htpfarm lease ls` shows a user."""
    argv = [sys.executable, "-m", "harness.cli", "lease", "ls", "--json"]
    shared = {"HTPFARM_SHARED": str(folder / "shared")}
    if two:
        done = said(user, argv, folder / user.name, **shared)
    else:
        environ = {**environment(user, folder / user.name), **shared}
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{user.name}: htpfarm lease ls ended with {done.returncode}: {done.stderr}")
    return {holder["owner"]["user"] for holder in json.loads(done.stdout)}


def watch(runs: list[subprocess.Popen[bytes]], folder: Path, *, two: bool) -> list[str]:
    """Waits for both runs; what a user did not see of the other's leases meanwhile."""
    missing = dict(zip(USERS, reversed(USERS), strict=True))
    deadline = time.monotonic() + LIMIT_S
    with ThreadPoolExecutor() as pool:
        while any(run.poll() is None for run in runs):
            lists = pool.map(lambda user: seen_by(user, folder, two=two), tuple(missing))
            for user, names in zip(tuple(missing), lists, strict=True):
                if missing[user].name in names:
                    seen_file(folder, missing.pop(user).name).touch()
            if time.monotonic() > deadline:
                raise TimeoutError(f"the runs took over {LIMIT_S:g} s")
            time.sleep(0.2)
    return [f"`htpfarm lease ls` never showed {user.name} a lease of {other.name}'s" for user, other in missing.items()]


def main() -> int:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=0.5, help="that a cell sleeps")
    parser.add_argument("--one-user", action="store_true", help="both of one user number, even as root")
    parser.add_argument("--user", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.user:
        run_as(arguments.folder, arguments.user, plans(arguments.user, arguments.cells, arguments.seconds))
        return 0
    reason = "as asked" if arguments.one_user else why_not()
    two = not reason
    with tempfile.TemporaryDirectory(prefix="htpfarm-two-users-") as name:
        folder = Path(name)
        if two:
            folder.chmod(0o755)
            make_shared(folder)
        else:
            (folder / "shared").mkdir()
        runs: list[subprocess.Popen[bytes]] = []
        # The farm's own folder is the run's; the rack is of whoever runs this.
        farm_of(folder, "nobody").up()
        start = time.monotonic()
        try:
            for user in USERS:
                argv = [sys.executable, str(Path(__file__).resolve()), "--folder", name]
                argv += ["--cells", str(arguments.cells), "--seconds", str(arguments.seconds), "--user", user.name]
                if two:
                    runs.append(started(user, argv, make_home(user, folder), folder / f"{user.name}.log"))
                else:
                    (folder / user.name).mkdir()
                    log, environ = (folder / f"{user.name}.log").open("ab"), environment(user, folder / user.name)
                    runs.append(subprocess.Popen(argv, env=environ, stdout=log, stderr=log))
            problems = watch(runs, folder, two=two)
            seconds = time.monotonic() - start
            statuses = [run.returncode for run in runs]
        finally:
            for run in runs:
                run.kill()
                run.wait()
            manage.down(folder / "rack")
        problems += overlaps(folder)
        problems += [
            (folder / f"{u.name}.log").read_text() for u, run in zip(USERS, runs, strict=True) if run.returncode
        ]
        owners = {user.name: (folder / user.name / "run" / "records.jsonl").stat().st_uid for user in USERS}
        if two and owners != {user.name: user.uid for user in USERS}:
            problems.append(f"the records are of users {owners}")
        for phone in PHONES:
            doubles = folder / "rack" / "phones" / phone / "data/local/tmp/doubles"
            problems += doubles.read_text().splitlines() if doubles.exists() else []
        used: dict[str, set[str]] = {}
        for user in owners:
            outcomes = load_run(folder / user / "run").outcomes
            problems += [f"{c}: no outcome" for c in plans(user, arguments.cells, 0.0) if c not in outcomes]
            problems += [f"{c}: {o.status} {o.reason}" for c, o in outcomes.items() if o.status != "PASSED"]
            used[user] = {str(outcome.phone) for outcome in outcomes.values()}
    if any(statuses):
        problems.append(f"the runs ended with {statuses}")
    if two:
        print(f"two users: {', '.join(f'{u.name} is uid {u.uid}' for u in USERS)}, the rack uid {os.geteuid()}'s")
    else:
        print(f"ONE user number, {os.geteuid()}, for both: {reason}")
    print(f"2 × {arguments.cells} cells in {seconds:.1f} s on {len(PHONES)} phones")
    print(f"phones used by ann {sorted(used['ann'])}, by bob {sorted(used['bob'])}")
    print("\n".join(problems) or "both ended, each saw the other's leases, no phone was shared at a moment")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
