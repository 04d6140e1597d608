"""A night in a lab, in minutes: cells on virtual phones while everything that can go wrong does, at seeded moments.

    python benchmarks/fault_campaign.py [--cells 400] [--faults 310] [--kills 5] [--seed 0] [--keep DIR] [--json]

Eight virtual phones behind a real adb server; runners sleep instead of computing, and some of them fail in planned
ways. This process arms the phones with faults of all kinds and kills the harness (a process of its own) with -9, which
is then started again on the same folder. Two phones are bad for good: one hangs whatever it is told to run, one reboots
in the middle of each run. At the end the campaign, which knows the truth from the rack's own log of faults, judges:

    complete     every cell has exactly one outcome
    classes      each outcome is the planned one, or is explained by faults that struck its attempts
    sole use     no phone ran two runners at once, no two attempts on a phone overlap
    records      every deployment that happened is on record, and every line of the records can be read
    health       the good phones are GOOD after a last look, the two bad ones BAD
    in time      no cell and no run of the harness took longer than its limit

The exit status is 1 if any of these fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Before the harness is imported: commands that hang are given up after this many seconds.
os.environ.setdefault("HTPFARM_COMMAND_SECONDS", "20")

from sleeping_cells import Farm, Plan, attempt_lines

from harness.errors import HarnessError
from harness.farm.prepare import prepare
from harness.farm.rescue import Patience
from harness.inventory import Limits
from harness.rack import manage
from harness.rack.fault_cli import arm, clear
from harness.rack.faults import FaultKind, FaultSpec, Struck, read_faults
from harness.results.records import DeployRecord, OutcomeRecord, RawRecord, Status
from harness.results.store import read_entries

GOOD = {"s23a": "galaxy_s23", "s23b": "galaxy_s23", "s24a": "galaxy_s24", "s24b": "oneplus_12"} | {
    "s25a": "galaxy_s25", "s25b": "galaxy_s25"
}  # fmt: skip
BAD = {"hangs": "galaxy_s24", "reboots": "galaxy_s24"}
SOCS = ("SM8550", "SM8650", "SM8750")
RUNNER_LIMIT_S = 15.0
CELL_LIMIT_S = 900.0
CAMPAIGN_LIMIT_S = 3600.0
# What a planned failure must be called, and as what it must end.
PLANNED = {
    "good": (Status.PASSED, None),
    "abort": (Status.FAILED, "PRODUCT"),
    "silent": (Status.FAILED, "PRODUCT"),
    "empty": (Status.FAILED, "PRODUCT"),
    "hang": (Status.FAILED, "PRODUCT"),
    "skel": (Status.ERROR, "CONFIG"),
}
CONNECTION = {
    FaultKind.HANG_SHELL, FaultKind.CUT_PUSH, FaultKind.CUT_PULL, FaultKind.CORRUPT_PULL, FaultKind.OFFLINE,
    FaultKind.UNAUTHORIZED, FaultKind.GARBAGE, FaultKind.SLOW, FaultKind.REBOOT, FaultKind.ADB_DOWN,
}  # fmt: skip
EXPLAINS = {
    "INFRA": CONNECTION,
    "CRASH": {FaultKind.REBOOT},
    "ENV": {FaultKind.KILL_RUNNER, FaultKind.HOT, FaultKind.BATTERY, FaultKind.STORAGE},
}
# How often each is armed, in parts: the adb server's end hits all phones at once.
WEIGHTS = dict.fromkeys(FaultKind, 4) | {FaultKind.ADB_DOWN: 1}
SPREAD_S = 25.0
"""A fault's effects may show this long after it struck: a state lasts 3 s, a reboot 1 s, a command's limit 20 s."""


def farm_in(folder: Path) -> Farm:
    """The campaign's farm."""
    return Farm(
        folder / "run",
        GOOD | BAD,
        folder / "rack",
        timeout_s=RUNNER_LIMIT_S,
        patience=Patience(settle_s=4.0, boot_s=20.0),
        limits=Limits(cool_limit_s=60.0),
        leases=folder,
    )


def plans(count: int, seed: int) -> dict[str, Plan]:
    """Cells by id; one in eight fails in a planned way."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    found = {}
    for number in range(count):
        behaviour = rng.choice(list(PLANNED)[1:]) if rng.random() < 1 / 8 else "good"
        soc = rng.choices(SOCS, (2, 2, 2))[0]
        found[f"c{number:04}-kv-{soc}"] = Plan(round(rng.uniform(0.3, 0.9), 2), behaviour)
    return found


def child(folder: Path, count: int, seed: int) -> int:
    """The harness: runs what has no outcome yet."""
    farm_in(folder).run(plans(count, seed))
    return 0


@dataclass
class Campaign:
    """What this process does and knows."""

    folder: Path
    cells: int
    faults: int
    kills: int
    seed: int
    armed: list[FaultKind] = field(default_factory=list)
    killed: list[float] = field(default_factory=list)
    runs: list[float] = field(default_factory=list)

    def run(self) -> dict[str, object]:
        """Starts the rack, lets the harness run to its end through faults and kills, and judges."""
        farm, began = farm_in(self.folder), time.monotonic()
        farm.folder.mkdir(parents=True, exist_ok=True)
        rng = random.Random(self.seed)  # noqa: S311 - no secret
        schedule = self._schedule(rng)
        # Kills in the middle of the work, evenly spread.
        moments = [int(self.cells * (i + 1) / (self.kills + 1)) for i in range(self.kills)]
        farm.up(boot_delay=1.0)
        try:
            for phone, kind in (("hangs", FaultKind.HANG_SHELL), ("reboots", FaultKind.REBOOT)):
                arm(phone, FaultSpec(kind, rate=1.0, count=None, match="exec "), state_dir=farm.rack)
            process = self._start()
            started = time.monotonic()
            while process.poll() is None:
                done, attempts = self._progress(farm.folder)
                if moments and done >= moments[0]:
                    moments.pop(0)
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    self.killed.append(time.time())
                    self.runs.append(time.monotonic() - started)
                    process, started = self._start(), time.monotonic()
                # In step with the attempts, so that the faults meet work whatever the computer's speed.
                while schedule and len(self.armed) < attempts * self.faults / (0.9 * self.cells):
                    self._arm(farm, *schedule.pop(0), rng)
                if time.monotonic() - began > CAMPAIGN_LIMIT_S:
                    process.kill()
                    raise TimeoutError(f"the campaign took over {CAMPAIGN_LIMIT_S:g} s")
                time.sleep(0.1)
            self.runs.append(time.monotonic() - started)
            health = self._last_look(farm)
        finally:
            manage.down(farm.rack)
        return self._judge(farm, health, process.returncode, time.monotonic() - began)

    def _start(self) -> subprocess.Popen[bytes]:
        log = (self.folder / "harness.log").open("ab")
        argv = [sys.executable, __file__, "--child", str(self.folder), "--cells", str(self.cells)]
        return subprocess.Popen([*argv, "--seed", str(self.seed)], stdout=log, stderr=log)

    def _schedule(self, rng: random.Random) -> list[tuple[FaultKind, str]]:
        total = sum(WEIGHTS.values())
        kinds = [kind for kind in FaultKind for _ in range(round(1.1 * self.faults * WEIGHTS[kind] / total) + 1)]
        rng.shuffle(kinds)
        phones = list(GOOD)
        return [(kind, phones[i % len(phones)]) for i, kind in enumerate(kinds)]

    def _arm(self, farm: Farm, kind: FaultKind, phone: str, rng: random.Random) -> None:
        match = ""
        rate = None
        if kind is FaultKind.HANG_SHELL:
            match = rng.choice(["exec ", ""])
        if kind in (FaultKind.KILL_RUNNER, FaultKind.REBOOT):
            rate, match = 1.0, "exec "  # in the middle of a run
        spec = FaultSpec(kind, rate=rate, match=match, seconds=3.0, seed=self.seed)
        with contextlib.suppress(HarnessError):
            arm(phone, spec, state_dir=farm.rack)
            self.armed.append(kind)

    @staticmethod
    def _progress(folder: Path) -> tuple[int, int]:
        path = folder / "records.jsonl"
        done = path.read_bytes().count(b'"record":"outcome"') if path.exists() else 0
        done = done or (path.read_bytes().count(b'"record": "outcome"') if path.exists() else 0)
        return done, sum(line["event"] == "start" for line in attempt_lines(folder))

    def _last_look(self, farm: Farm) -> dict[str, str]:
        """Ends all random faults, looks at each phone that may be used, and reads the states."""
        manage.mend(farm.rack)
        for phone in GOOD:
            with contextlib.suppress(HarnessError):
                clear(phone, state_dir=farm.rack)
        time.sleep(3.0)
        nurse = farm.nurse()
        found = {}
        for phone in farm.attached():
            if nurse.book.state(phone.link.serial).usable:
                with contextlib.suppress(HarnessError):
                    prepare(nurse, phone.phone, phone.link)
            found[phone.phone.name] = str(nurse.book.state(phone.link.serial))
        return found

    def _judge(self, farm: Farm, health: dict[str, str], status: int, seconds: float) -> dict[str, object]:
        wanted = plans(self.cells, self.seed)
        entries = read_entries(farm.folder / "records.jsonl")
        outcomes: dict[str, list[OutcomeRecord]] = defaultdict(list)
        for entry in entries:
            if isinstance(entry.record, OutcomeRecord):
                outcomes[entry.record.cell].append(entry.record)
        struck = read_faults(farm.rack)
        attempts = spans(attempt_lines(farm.folder), self.killed)
        problems: dict[str, list[str]] = {
            "complete": complete(wanted, outcomes),
            "classes": classes(wanted, outcomes, attempts, struck),
            "sole use": sole_use(attempts, self._doubles(farm)),
            "records": records_kept(entries, farm.folder),
            "health": [f"{n}: {s}" for n, s in health.items() if s != ("BAD" if n in BAD else "GOOD")],
            "in time": [f"{o[0].cell}: {o[0].seconds:.0f} s" for o in outcomes.values() if o[0].seconds > CELL_LIMIT_S],
        }
        if status != 0:
            problems["complete"].append(f"the harness ended with {status}: see {self.folder / 'harness.log'}")
        random_faults = [s for s in struck if s.phone in GOOD]
        kinds = Counter(str(s.kind) for s in random_faults)
        if len(random_faults) < self.faults or set(kinds) != set(map(str, FaultKind)):
            problems["complete"].append(f"only {len(random_faults)} faults of {len(kinds)} kinds struck")
        ended = Counter(f"{o[0].status} {o[0].failure_class or ''}".strip() for o in outcomes.values())
        return {
            "good": not any(problems.values()),
            "problems": {name: found for name, found in problems.items() if found},
            "cells": len(wanted),
            "attempts": len(attempts),
            "faults": dict(sorted(kinds.items())),
            "faults_total": len(random_faults),
            "faults_of_bad_phones": len(struck) - len(random_faults),
            "kills": len(self.killed),
            "outcomes": dict(sorted(ended.items())),
            "health": health,
            "longest_cell_s": max((o[0].seconds for o in outcomes.values()), default=0.0),
            "seconds": round(seconds, 1),
            "seed": self.seed,
        }

    @staticmethod
    def _doubles(farm: Farm) -> list[str]:
        found = []
        for name in farm.phones:
            path = farm.rack / "phones" / name / "data/local/tmp/doubles"
            found += [f"{name}: {line}" for line in (path.read_text().splitlines() if path.exists() else [])]
        return found


@dataclass(frozen=True)
class Span:
    """One attempt: its cell and phone, when it began and ended (seconds since the epoch), its class ("" if it passed,
    "killed" if the harness was), the harness's process, and when its runner ran.
    """

    cell: str
    phone: str
    start: float
    end: float
    result: str
    pid: int
    session: tuple[float, float] | None = None


def spans(lines: Sequence[dict[str, object]], killed: Sequence[float]) -> list[Span]:
    """Attempts from their lines; one that has no end ended when its harness was killed."""
    found, open_, sessions = [], {}, {}
    for line in lines:
        key = (line["pid"], line["cell"], line["number"], line["phone"])
        when = float(str(line["time"]))
        if line["event"] == "start":
            open_[key] = when
        elif line["event"] == "session":
            begin = float(str(line["from"]))
            sessions[key] = (begin, begin + float(str(line["seconds"])))
        elif line["event"] == "end":
            result = str(line["class"] or "")
            found.append(
                Span(str(key[1]), str(key[3]), open_.pop(key), when, result, int(str(key[0])), sessions.get(key))
            )
    for key, start in open_.items():
        end = min((moment for moment in killed if moment >= start), default=start)
        found.append(Span(str(key[1]), str(key[3]), start, end, "killed", int(str(key[0]))))
    return sorted(found, key=lambda span: span.start)


def complete(wanted: dict[str, Plan], outcomes: dict[str, list[OutcomeRecord]]) -> list[str]:
    """Cells that do not have exactly one outcome."""
    found = [f"{cell}: {len(outcomes.get(cell, []))} outcomes" for cell in wanted if len(outcomes.get(cell, [])) != 1]
    return found + [f"{cell}: not planned" for cell in outcomes if cell not in wanted]


def classes(
    wanted: dict[str, Plan],
    outcomes: dict[str, list[OutcomeRecord]],
    attempts: Sequence[Span],
    struck: Sequence[Struck],
) -> list[str]:
    """Attempts and outcomes that are not what the truth makes them."""
    found = []
    by_cell: dict[str, list[Span]] = defaultdict(list)
    for span in attempts:
        by_cell[span.cell].append(span)
        found += [f"{span.cell} on {span.phone}: {text}" for text in wrong(span, wanted[span.cell], struck)]
    for cell, (outcome, *_) in outcomes.items():
        planned_status, planned_class = PLANNED[wanted[cell].behaviour]
        klass = outcome.failure_class
        results = [span.result for span in by_cell[cell] if span.result != "killed"]
        crashed = {span.phone for span in by_cell[cell] if span.result == "CRASH"}
        if (outcome.status, klass) == (planned_status, planned_class):
            pass
        elif klass == "PRODUCT" and len(crashed) >= 2:
            pass  # as designed: a second crash, on another phone, is the product's
        elif outcome.status is Status.ERROR and klass in ("INFRA", "ENV", "CRASH"):
            pass  # its attempts are judged one by one
        else:
            found.append(
                f"{cell}: planned {wanted[cell].behaviour}, ended {outcome.status} {klass}; attempts {results}"
            )
        # A harness that was killed before it had recorded an outcome does not know of it.
        for pid in {span.pid for span in by_cell[cell]}:
            own = [span.result for span in by_cell[cell] if span.pid == pid]
            if {"PRODUCT", "CONFIG"} & set(own[:-1]):
                found.append(f"{cell}: tried again after a failure that is not to be: {own}")
    return found


def wrong(span: Span, plan: Plan, struck: Sequence[Struck]) -> list[str]:
    """What an attempt's result does not fit: its plan, or the faults that struck its phone."""
    if span.result == "killed":
        return []
    near = {s.kind for s in struck if span.start - SPREAD_S <= s.time <= span.end}
    here = {s.kind for s in struck if s.phone == span.phone and span.start - SPREAD_S <= s.time <= span.end}
    here |= near & {FaultKind.ADB_DOWN}
    planned = str(PLANNED[plan.behaviour][1] or "")
    found = []
    if span.result in EXPLAINS:
        if not here & EXPLAINS[span.result]:
            found.append(f"{span.result} without a fault that explains it (there were {sorted(here)})")
    elif span.result != planned:
        found.append(f"{span.result or 'passed'}, but {plan.behaviour} was planned (faults: {sorted(here)})")
    if span.session and span.result in ("", "PRODUCT", "CONFIG"):
        start, end = span.session[0] + 0.3, span.session[1] - 0.3
        hit = [s.kind for s in struck if s.phone == span.phone and start < s.time < end]
        if FaultKind.REBOOT in hit:
            found.append(f"a reboot in the middle of a run, but the attempt is {span.result or 'passed'}")
    return found


def sole_use(attempts: Sequence[Span], doubles: Sequence[str]) -> list[str]:
    """Phones that two had at once."""
    found = [f"two runners: {line}" for line in doubles]
    last: dict[str, Span] = {}
    for span in attempts:
        if (before := last.get(span.phone)) and span.start < before.end:
            found.append(f"{span.phone}: {span.cell} began {before.end - span.start:.2f} s before {before.cell} ended")
        last[span.phone] = span
    return found


def records_kept(entries: Sequence[object], folder: Path) -> list[str]:
    """Deployments that happened and are on no record, and lines that cannot be read."""
    records = [entry.record for entry in entries]  # type: ignore[attr-defined]
    found = [f"line {r.line}: {r.problem}" for r in records if isinstance(r, RawRecord)]
    kept = Counter((r.cell, r.phone) for r in records if isinstance(r, DeployRecord))
    done = Counter((str(x["cell"]), str(x["phone"])) for x in attempt_lines(folder) if x["event"] == "deployed")
    return found + [f"{key}: {done[key]} deployed, {kept[key]} on record" for key in done if done[key] > kept[key]]


def main() -> int:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=400)
    parser.add_argument("--faults", type=int, default=310)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder to run in and to leave")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments.child, arguments.cells, arguments.seed)
    with tempfile.TemporaryDirectory(prefix="htpfarm-campaign-") as name:
        folder = (arguments.keep or Path(name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        report = Campaign(folder, arguments.cells, arguments.faults, arguments.kills, arguments.seed).run()
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        for key, value in report.items():
            print(f"{key}: {value}")
    return 0 if report["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
