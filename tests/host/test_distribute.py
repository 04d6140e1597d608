"""Our scheduler under the real pytest-xdist: phones are names, and cells wait for each other as a test wants it.

What came after what is the order of the lines in one log, which all processes append to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from events import HANG_S
from sample_run import write_run

from harness.conduct.jobs import learn
from harness.paths import REPOSITORY
from harness.results import Status, load_run

CONFTEST = """
import json, os, time
from pathlib import Path
import pytest
from harness.conduct.distribute import CellScheduling, assigned_phone, one_at_a_time
from harness.schedule.jobs import Job, Slot

HERE = Path(__file__).parent
SETUP = json.loads((HERE / "setup.json").read_text())

def pytest_xdist_make_scheduler(config, log):
    jobs = {name: Job(name, "S", seconds, artifact) for name, seconds, artifact in SETUP["cells"]}
    slots = [Slot(name, "S") for name in SETUP["phones"]]
    def ready(key):
        return not key or (HERE / "built").exists()
    def usable(phone):
        return not (HERE / f"{phone}.hot").exists()
    def lost(phone):
        return (HERE / f"{phone}.lost").exists()
    return CellScheduling(jobs, slots, HERE, workers=SETUP["workers"], ready=ready, usable=usable, lost=lost)

@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    if not hasattr(session.config, "workerinput"):
        return None
    one_at_a_time(session, next(p for p in session.config.pluginmanager.get_plugins()
                                if type(p).__name__ == "WorkerInteractor"))
    return True

@pytest.fixture(scope="session")
def once():
    line({"once": os.getpid()})
    yield
    line({"closed": os.getpid()})

def ended():
    log = HERE / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return {json.loads(line).get("ended") for line in lines if line.endswith("\\n")}

def line(what):
    with (HERE / "log.jsonl").open("a") as log:
        log.write(json.dumps(what) + "\\n")

@pytest.fixture
def run_cell(request, once):
    def run(name, seconds):
        phone = assigned_phone(HERE, name)
        line({"cell": name, "phone": phone, "pid": os.getpid()})
        if name in SETUP["crash"] and not (HERE / "crashed").exists():
            (HERE / "crashed").touch()
            os._exit(9)
        if name == SETUP.get("heats"):
            (HERE / f"{phone}.hot").touch()
        if name == SETUP.get("loses"):
            (HERE / f"{phone}.lost").touch()
        time.sleep(seconds)
        while not ended().issuperset(SETUP["after"].get(name, [])):
            time.sleep(0.02)
        line({"ended": name})
        if ended().issuperset(SETUP["builders"]):
            (HERE / "built").touch()
    return run
"""
TESTS = """
import json
from pathlib import Path
import pytest
SETUP = json.loads((Path(__file__).parent / "setup.json").read_text())
CELLS = {name: seconds for name, seconds, _ in SETUP["cells"]}

@pytest.mark.parametrize("name", CELLS)
def test_cell(name, run_cell):
    run_cell(name, CELLS[name])

def test_without_a_phone():
    pass
"""


@dataclass(frozen=True)
class Ran:
    status: int
    output: str
    lines: list[dict]

    @property
    def cells(self) -> list[dict]:
        return [line for line in self.lines if "cell" in line]

    def began(self, cell: str) -> int:
        """Where in the log."""
        return next(number for number, line in enumerate(self.lines) if line.get("cell") == cell)

    def ended(self, cell: str) -> int:
        """Where in the log."""
        return self.lines.index({"ended": cell})


def xdist(folder: Path, cells: list[tuple[str, float, str]], phones: list[str], workers: int, **more: object) -> Ran:
    """Runs cells (name, seconds, artifact) and a test that needs no phone.

    Args:
        after: cell → cells that have ended before it ends.
        builders: cells with whose last end every artifact is built.
        crash: cells whose worker dies.
        heats: a cell whose phone is too hot from then on; `loses`: is lost.
    """
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(TESTS)
    setup = {"cells": cells, "phones": phones, "workers": workers, "after": {}, "builders": [], "crash": [], **more}
    (folder / "setup.json").write_text(json.dumps(setup))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "xdist.plugin"),
            *("-q", "-n", str(workers), "--rootdir", str(folder), "-c", os.devnull, str(folder / "test_it.py")),
        ],
        cwd=folder,
        # Starts cost less without whatever plugins are installed.
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    log = folder / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return Ran(done.returncode, done.stdout + done.stderr, lines)


def test_each_cell_runs_once_and_each_phone_one_cell_at_a_time(tmp_path: Path) -> None:
    cells = [(f"c{i}", 0.05 * (i % 3), "") for i in range(12)]
    ran = xdist(tmp_path, cells, ["a", "b"], workers=3)
    assert "13 passed" in ran.output, ran.output
    assert ran.status == 0, ran.output
    assert sorted(line["cell"] for line in ran.cells) == sorted(name for name, *_ in cells)
    by_phone = defaultdict(list)
    for line in ran.cells:
        by_phone[line["phone"]].append((ran.began(line["cell"]), ran.ended(line["cell"])))
    assert set(by_phone) == {"a", "b"}
    for spans in by_phone.values():
        assert all(before[1] < after[0] for before, after in pairwise(sorted(spans)))


def test_no_cell_waits_behind_a_long_one(tmp_path: Path) -> None:
    """xdist's own schedulers would have committed one to the worker with the long cell."""
    others = [f"c{i}" for i in range(8)]
    cells = [("long", 0.2, ""), *((name, 0.1, "") for name in others)]
    ran = xdist(tmp_path, cells, ["a", "b"], workers=2, after={"long": others})
    assert ran.status == 0, ran.output
    phones = {line["cell"]: line["phone"] for line in ran.cells}
    assert sorted(phones) == sorted([*others, "long"])
    assert {phones[name] for name in others} == {"a", "b"} - {phones["long"]}


def test_workers_end_well_when_told_to(tmp_path: Path) -> None:
    """Also one that never had a cell."""
    ran = xdist(tmp_path, [("c0", 0.05, ""), ("c1", 0.05, "")], ["a"], workers=3)
    assert ran.status == 0, ran.output
    assert "INTERNALERROR" not in ran.output


def test_a_session_fixture_lives_as_long_as_its_worker(tmp_path: Path) -> None:
    ran = xdist(tmp_path, [(f"c{i}", 0.05, "") for i in range(6)], ["a", "b"], workers=2)
    opened = [line["once"] for line in ran.lines if "once" in line]
    assert len(opened) == len(set(opened)) == len([line for line in ran.lines if "closed" in line])
    assert set(opened) == {line["pid"] for line in ran.cells}


def test_a_dead_worker_is_replaced_and_its_phone_goes_on(tmp_path: Path) -> None:
    cells = [(f"c{i}", 0.05, "") for i in range(6)]
    ran = xdist(tmp_path, cells, ["a"], workers=1, crash=["c2"])
    assert "1 failed, 6 passed" in ran.output, ran.output
    assert "crashed while running" in ran.output
    assert {line["ended"] for line in ran.lines if "ended" in line} == {"c0", "c1", "c3", "c4", "c5"}


def test_a_hot_phones_cells_go_to_another(tmp_path: Path) -> None:
    elsewhere_after_the_first(tmp_path, heats="first")


def test_a_lost_phones_cells_go_to_another(tmp_path: Path) -> None:
    elsewhere_after_the_first(tmp_path, loses="first")


def elsewhere_after_the_first(folder: Path, **what: str) -> None:
    """Whatever befalls the first cell's phone, the other has the rest; one cell runs there beside the first."""
    rest = [f"c{i}" for i in range(6)]
    cells = [("first", 0.2, ""), *((name, 0.05, "") for name in rest)]
    ran = xdist(folder, cells, ["a", "b"], workers=2, after={name: ["first"] for name in rest}, **what)
    assert "8 passed" in ran.output, ran.output
    first = ran.cells[[line["cell"] for line in ran.cells].index("first")]
    after = [line for line in ran.cells if ran.began(line["cell"]) > ran.ended("first")]
    assert len(after) >= 5
    assert {line["phone"] for line in after} == {"a", "b"} - {first["phone"]}


def test_cells_that_no_phone_is_left_for_reach_a_worker_and_the_run_ends(tmp_path: Path) -> None:
    cells = [("first", 0.2, ""), *((f"c{i}", 0.05, "") for i in range(3))]
    ran = xdist(tmp_path, cells, ["a"], workers=1, loses="first")
    assert "5 passed" in ran.output, ran.output
    assert {line["cell"]: line["phone"] for line in ran.cells} == {"first": "a", "c0": None, "c1": None, "c2": None}


def test_cells_wait_for_their_artifact_without_holding_a_phone(tmp_path: Path) -> None:
    """It is the longest and would be the first; its artifact is there once the others have run on the one phone."""
    others = [f"c{i}" for i in range(4)]
    cells = [("late", 0.1, "key"), *((name, 0.05, "") for name in others)]
    ran = xdist(tmp_path, cells, ["a"], workers=1, builders=others)
    assert ran.status == 0, ran.output
    assert [line["cell"] for line in ran.cells][-1] == "late"
    assert sorted(line["cell"] for line in ran.cells) == sorted([*others, "late"])


def test_earlier_runs_teach_durations_phones_and_what_lies_where(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path))
    earlier = learn([run])
    passed = {c: o for c, o in run.outcomes.items() if o.status is Status.PASSED and o.phone}
    assert passed
    assert {p.cell: p.seconds for p in earlier.past} == {c: o.seconds for c, o in passed.items()}
    assert earlier.phone_of == {c: o.phone for c, o in passed.items()}
    for cell, outcome in passed.items():
        if cell in run.artifacts:
            assert run.artifacts[cell].key in earlier.held[str(outcome.phone)]
