"""Two users of one rack host, by two real user numbers where this runs as root: runs, leases, health, core locks."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from events import HANG_S, NEVER_S, until

from harness.build.cache import Artifact
from harness.build.given import export
from harness.errors import ConfigError
from harness.farm.lease import SHARED_VARIABLE, shared_folder
from harness.matrix import cells
from harness.model_file import Mode
from harness.models import load_models
from harness.paths import MODELS, REPOSITORY
from harness.rack import manage
from harness.rack.manage import RACK_VARIABLE
from harness.results import Status, load_run
from harness.shared_files import make_shared_folder, open_shared
from harness.soc import PHONE_KINDS, find_soc


def load(name: str) -> ModuleType:
    """A module of the benchmarks'."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "benchmarks" / f"{name}.py")
    assert spec
    assert spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


users = load("other_users")
ANN, BOB = users.ANN, users.BOB

TAKE = """
import sys, time
from harness.errors import HarnessError
from harness.farm.health import HealthBook, HealthState
from harness.farm.lease import Owner, acquire
try:
    with acquire("R3", Owner.this_process(sys.argv[1]), wait_s=float(sys.argv[2])):
        book = HealthBook()
        print("before:", book.state("R3"), book.cause("R3"))
        book.set_state("R3", HealthState(sys.argv[3]), f"by {sys.argv[1]}")
        print("held", flush=True)
        time.sleep(float(sys.argv[4]))
except HarnessError as error:
    print(error)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other users reach, which pytest's own are not."""
    if reason := users.why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="htpfarm-users-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize(("mode", "file"), [(0o3770, 0o664), (0o1777, 0o666), (0o755, 0o644), (0o700, 0o644)])
def test_what_is_made_is_as_open_as_its_folder_whatever_the_umask(tmp_path: Path, mode: int, file: int) -> None:
    parent = tmp_path / "shared"
    parent.mkdir()
    parent.chmod(mode)
    before = os.umask(0o077)
    try:
        make_shared_folder(parent / "leases")
        os.close(open_shared(parent / "leases" / "R3.lock", os.O_RDWR))
    finally:
        os.umask(before)
    made = (parent / "leases").stat().st_mode & 0o7777
    writers = mode & 0o022
    assert made == (mode if writers else 0o700)
    assert (parent / "leases" / "R3.lock").stat().st_mode & 0o7777 == file
    assert sorted(p.name for p in parent.rglob("*")) == ["R3.lock", "leases"]


def test_a_file_that_is_there_is_opened_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "R3.lock").write_text("kept")
    make_shared_folder(tmp_path)
    descriptor = open_shared(tmp_path / "R3.lock", os.O_RDWR)
    assert os.read(descriptor, 10) == b"kept"
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


def test_a_shared_folder_that_cannot_be_used_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARED_VARIABLE, str(tmp_path))
    assert shared_folder() == tmp_path
    monkeypatch.setenv(SHARED_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="no folder that this user may write to"):
        shared_folder()


@pytest.mark.parametrize("open_to", ["the group", "all, by a private umask"])
def test_one_users_death_frees_the_phone_for_the_other(place: Path, open_to: str) -> None:
    shared = users.make_shared(place)
    if open_to != "the group":
        shared.chmod(0o1777)
        os.chown(shared, 0, 0)
    homes = {user: users.make_home(user, place) for user in (ANN, BOB)}
    more = {SHARED_VARIABLE: str(shared)}

    def take(run: str, wait_s: float, state: str, hold_s: float) -> list[str]:
        words = (run, str(wait_s), state, str(hold_s))
        private = ["sh", "-c", 'umask 077; exec "$@"', "sh"] if open_to != "the group" else []
        return [*private, sys.executable, "-c", TAKE, *words]

    log = place / "ann.log"
    ann = users.started(ANN, take("ann-run", 0, "GOOD", NEVER_S), homes[ANN], log, **more)
    try:
        until(lambda: "held" in log.read_text() or ann.poll() is not None)
        assert ann.poll() is None, log.read_text()
        assert Path(f"/proc/{ann.pid}").stat().st_uid == ANN.uid
        refused = users.said(BOB, take("bob-run", 0, "BAD", 0), homes[BOB], **more).stdout
        assert "no phone is free" in refused
        assert f"ann's run ann-run (process {ann.pid} on" in refused
        listed = users.said(BOB, [sys.executable, "-m", "harness.cli", "lease", "ls", "--json"], homes[BOB], **more)
        assert '"user": "ann"' in listed.stdout, listed.stderr
        broken = users.said(BOB, [sys.executable, "-m", "harness.cli", "lease", "break", "R3"], homes[BOB], **more)
        assert broken.returncode == 3, broken.stdout
        assert "ask its holder" in broken.stderr
        assert ann.poll() is None  # another user's process cannot be ended
        ann.kill()
        ann.wait(timeout=HANG_S)
        taken = users.said(BOB, take("bob-run", HANG_S, "UNKNOWN", 0), homes[BOB], **more)
        assert taken.stdout.splitlines() == ["before: GOOD by ann-run", "held"], taken.stderr
        after = users.said(ANN, take("ann-again", HANG_S, "GOOD", 0), homes[ANN], **more)
        assert after.stdout.splitlines()[0] == "before: UNKNOWN by bob-run", after.stderr
    finally:
        ann.kill()
        ann.wait(timeout=HANG_S)


def test_core_locks_are_one_set_for_all_users(place: Path) -> None:
    shared = users.make_shared(place)
    line = (
        "import os, sys\nfrom harness.farm.lease import shared_folder\n"
        "from harness.runtime.cores import CORE_LOCKS, bind_to_core, make_core_locks\n"
        "cores = [bind_to_core({CORE_LOCKS: str(make_core_locks(shared_folder()))})]\n"
        "os.sched_setaffinity(0, range(os.cpu_count()))\nprint(cores[0], flush=True)\nsys.stdin.read()"
    )
    found, running = [], []
    try:
        for user in (ANN, BOB):
            environ = users.environment(user, users.make_home(user, place), **{SHARED_VARIABLE: str(shared)})
            argv = users.as_user(user, [sys.executable, "-c", line])
            one = subprocess.Popen(argv, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            running.append(one)
            found.append(one.stdout.readline().strip())  # type: ignore[union-attr]
    finally:
        for one in running:
            one.kill()
            one.communicate(timeout=HANG_S)
    allowed = sorted(os.sched_getaffinity(0))
    assert found == [str(core) for core in (allowed * 2)[:2]]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--one-user"]], ids=["two user numbers", "one"])
def test_two_runs_of_two_users_share_no_phone_at_a_moment(more: list[str]) -> None:
    if not more and (reason := users.why_not()):
        pytest.skip(reason)
    argv = [sys.executable, str(REPOSITORY / "benchmarks" / "two_users.py"), "--cells", "8", "--seconds", "1.5", *more]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=3 * HANG_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no phone was shared at a moment" in done.stdout
    words = f"ONE user number, {os.geteuid()}, for both" if more else f"ann is uid {ANN.uid}, bob is uid {BOB.uid}"
    assert words in done.stdout


@pytest.mark.slow
def test_two_pytest_runs_of_two_users_on_one_virtual_rack(place: Path, tiny_artifacts: dict[str, Artifact]) -> None:
    """As docs/rack.md says it: one user (here root) has the rack, others find it by HTPFARM_RACK."""
    (cell,) = cells([load_models(MODELS)["tiny_llama"]], [Mode.KV], [find_soc("SM8650")])
    export([(cell, tiny_artifacts["kv"])], place / "pte")
    yaml = place / "rack.yaml"
    yaml.write_text("version: 1\nphones:\n  - {name: s24, virtual: galaxy_s24}\n")
    rack, shared = place / "rack", users.make_shared(place)
    up = [sys.executable, "-m", "harness.cli", "rack", "up", "--rack", str(yaml)]
    runs: dict[object, subprocess.Popen[bytes]] = {}
    most = 0
    try:
        done = subprocess.run(
            up,
            env={**os.environ, RACK_VARIABLE: str(rack)},
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        for user in (ANN, BOB):
            argv = [sys.executable, "-m", "pytest", "-m", "device", "-p", "no:cacheprovider", "--rack", str(yaml)]
            home = users.make_home(user, place)
            argv += ["--modes", "kv", "--eval-tokens", "32", "--pte", str(place / "pte")]
            argv += ["--reports", str(home / "reports")]
            more = {SHARED_VARIABLE: str(shared), RACK_VARIABLE: str(rack)}
            runs[user] = users.started(user, argv, home, place / f"{user.name}.log", **more)
        deadline = time.monotonic() + 3 * HANG_S
        while any(run.poll() is None for run in runs.values()):
            assert time.monotonic() < deadline, "the runs took too long"
            most = max(most, len(list((rack / "phones" / "s24" / "data/local/tmp/htpfarm/run").glob("*"))))
            time.sleep(0.02)
        for user, run in runs.items():
            said = (place / f"{user.name}.log").read_text()  # type: ignore[attr-defined]
            assert run.returncode == 0, said
            (folder,) = (place / user.name / "reports").glob("2*")  # type: ignore[attr-defined]
            assert folder.stat().st_uid == user.uid  # type: ignore[attr-defined]
            outcomes = load_run(folder).outcomes
            assert [(o.phone, o.status) for o in outcomes.values()] == [("s24", Status.PASSED)]
        assert most == 1  # the phone was used, by one session at a time
        assert manage.status(rack) is not None  # neither run ended the other's rack
        (log,) = (shared / "health").iterdir()
        for user in (ANN, BOB):
            assert f'"by": "{user.name} (' in log.read_text()
    finally:
        for run in runs.values():
            run.kill()
            run.wait(timeout=HANG_S)
        manage.down(rack)


def test_a_rack_of_another_user_is_used_but_neither_started_nor_ended(place: Path) -> None:
    rack, shared = place / "rack", users.make_shared(place)
    yaml = place / "rack.yaml"
    yaml.write_text("version: 1\nphones:\n  - {name: s24, virtual: galaxy_s24}\n")
    more = {SHARED_VARIABLE: str(shared), RACK_VARIABLE: str(rack)}
    home = users.make_home(ANN, place)
    rack.mkdir()

    def cli(*words: str) -> subprocess.CompletedProcess[str]:
        return users.said(ANN, [sys.executable, "-m", "harness.cli", *words, "--rack", str(yaml)], home, **more)

    refused = cli("rack", "up")
    assert refused.returncode == 3
    assert "another user's" in refused.stderr
    assert "ask its owner" in refused.stderr
    try:
        state = manage.up([("s24", PHONE_KINDS["galaxy_s24"])], state_dir=rack, runner_argv=["/bin/true"])
        listed = cli("devices", "--json")
        assert '"soc": "SM8650"' in listed.stdout, listed.stderr
        assert cli("rack", "down").returncode == 3
        assert manage.status(rack) == state
    finally:
        manage.down(rack)
