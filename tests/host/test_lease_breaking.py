"""Taking a phone from its holder, and where leases lie: nobody is ended who only looks like the holder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from lease_support import dead, locked, me, own_processes, owner_of, python, refuse, sleeper

from harness.errors import ConfigError, InfraError
from harness.farm import lease as module
from harness.farm.lease import SHARED_VARIABLE, acquire, break_lease, default_lease_dir, holders, shared_folder


@pytest.fixture(autouse=True)
def nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this computer's processes only the test's own are looked at: a broken `break_lease` would end them all."""
    monkeypatch.setattr(psutil, "process_iter", lambda: iter(own_processes()))


def test_a_free_phone_has_nobody_to_end(tmp_path: Path) -> None:
    assert break_lease("R3", lease_dir=tmp_path) == ()
    assert not (tmp_path / "R3.lock").exists()
    acquire("R3", me(), lease_dir=tmp_path).release()
    with sleeper() as process:
        (tmp_path / "R3.lock").write_text(json.dumps(asdict(owner_of(process.pid))))
        assert break_lease("R3", lease_dir=tmp_path) == ()  # it says so, but holds no lock
        assert process.poll() is None


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"process_start": 1.0}], ids=["another host", "reused"])
def test_breaking_ends_nobody_who_only_has_the_number_of_the_owner(tmp_path: Path, changes: dict[str, object]) -> None:
    shelf, link = tmp_path / "shelf", tmp_path / "link"
    shelf.mkdir()
    link.symlink_to(shelf)
    with sleeper() as innocent, contextlib.ExitStack() as stack:
        with locked(shelf / "R3.lock", owner_of(innocent.pid, **changes)) as descriptor:
            keeper = stack.enter_context(sleeper(pass_fds=[descriptor]))
        assert break_lease("R3", lease_dir=link) == (keeper.pid,)
        assert innocent.poll() is None


def test_breaking_ends_the_owner_and_whoever_keeps_its_lock(tmp_path: Path) -> None:
    with sleeper() as owner, contextlib.ExitStack() as stack:
        with locked(tmp_path / "R3.lock", owner_of(owner.pid)) as descriptor:
            keepers = [stack.enter_context(sleeper(pass_fds=[descriptor])) for _ in range(2)]
        ended = break_lease("R3", lease_dir=tmp_path)
        assert ended[0] == owner.pid
        assert sorted(ended[1:]) == sorted(keeper.pid for keeper in keepers)
        assert all(process.poll() is not None for process in (owner, *keepers))


def test_whoever_waits_for_the_phone_is_left_to_wait(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with locked(tmp_path / "R3.lock") as descriptor:
            holder = stack.enter_context(sleeper(pass_fds=[descriptor]))
        (tmp_path / "R3.lock").write_text(json.dumps(asdict(owner_of(holder.pid))))
        with (tmp_path / "R3.lock").open() as file:
            waiter = stack.enter_context(sleeper(stdin=file))
        assert break_lease("R3", lease_dir=tmp_path) == (holder.pid,)
        assert waiter.poll() is None


def test_a_holder_is_asked_to_end_before_it_is_made_to(tmp_path: Path) -> None:
    script = f"trap 'echo bye > {tmp_path}/last; exit' TERM; echo ready; while :; do sleep 0.05; done"
    tidy = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)
    try:
        assert tidy.stdout
        assert tidy.stdout.readline() == b"ready\n"
        with locked(tmp_path / "R3.lock", owner_of(tidy.pid)), pytest.raises(InfraError, match="still held"):
            break_lease("R3", lease_dir=tmp_path, patience_s=60.0)  # this process has the lock itself
        assert (tmp_path / "last").read_text() == "bye\n"
    finally:
        tidy.kill()
        tidy.wait()


def test_a_holder_that_does_not_end_by_itself_is_killed_after_five_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience: list[float] = []
    ends: list[object] = []
    wait = psutil.Process.wait

    def impatient(self: psutil.Process, timeout: float) -> object:
        patience.append(timeout)
        ends.append(wait(self, 0.05 if len(patience) == 1 else 30))
        return ends[-1]

    monkeypatch.setattr(psutil.Process, "wait", impatient)
    deaf = subprocess.Popen(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], stdout=subprocess.PIPE)
    try:
        assert deaf.stdout
        assert deaf.stdout.readline() == b"ready\n"
        with locked(tmp_path / "R3.lock", owner_of(deaf.pid)), pytest.raises(InfraError, match="still held"):
            break_lease("R3", lease_dir=tmp_path)  # this process has the lock itself
        assert patience == [5.0, 5.0]
        assert ends == [-signal.SIGKILL]
    finally:
        deaf.kill()
        deaf.wait()


OWN = """
import sys
from pathlib import Path
import psutil
sys.path[:0] = [sys.argv[2]]
from lease_support import locked, own_processes
psutil.process_iter = lambda: iter(own_processes())
from harness.errors import InfraError
from harness.farm.lease import break_lease
with locked(Path(sys.argv[1]) / "R3.lock"):
    try:
        break_lease("R3", lease_dir=Path(sys.argv[1]), patience_s=0.1)
    except InfraError as error:
        print(error)
"""


def test_breaking_does_not_end_who_breaks_and_says_who_to_ask(tmp_path: Path) -> None:
    assert python(OWN, tmp_path, Path(__file__).parent).splitlines() == [
        f"R3: {tmp_path / 'R3.lock'}: the lease is still held",
        "  what to do: ask its holder, or an administrator",
        "  evidence:",
        "    R3: held by a process that has not said who it is",
    ]


@pytest.mark.parametrize("error", [psutil.AccessDenied(), psutil.NoSuchProcess(1)])
def test_who_may_not_be_ended_or_has_just_ended_is_not_among_the_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: psutil.Error
) -> None:
    monkeypatch.setattr(psutil.Process, "terminate", refuse(error))
    with (
        sleeper() as process,
        locked(tmp_path / "R3.lock", owner_of(process.pid)),
        pytest.raises(InfraError, match="still held"),
    ):
        break_lease("R3", lease_dir=tmp_path)
    with sleeper() as process:
        with locked(tmp_path / "R4.lock", dead()) as descriptor:
            keeper = contextlib.ExitStack()
            keeper.enter_context(sleeper(pass_fds=[descriptor]))
        with keeper, pytest.raises(InfraError, match="still held") as caught:
            break_lease("R4", lease_dir=tmp_path)
        assert "a child that outlives" in caught.value.evidence


def test_a_process_that_ends_while_all_are_looked_at_hides_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sleeper() as ended:
        gone = psutil.Process(ended.pid)
    monkeypatch.setattr(psutil, "process_iter", lambda: iter([gone, *own_processes()]))
    with contextlib.ExitStack() as stack:
        with locked(tmp_path / "R3.lock") as descriptor:
            keeper = stack.enter_context(sleeper(pass_fds=[descriptor]))
        assert break_lease("R3", lease_dir=tmp_path) == (keeper.pid,)


# --- where leases lie


def test_an_administrators_folder_is_looked_for_in_run_and_in_var(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SHARED_VARIABLE, raising=False)
    monkeypatch.delenv("HTPFARM_CACHE", raising=False)
    monkeypatch.setattr(os, "access", lambda *_: True)
    run, var = Path("/run/lock/htpfarm"), Path("/var/lock/htpfarm")
    for there, found in (({run, var}, run), ({run}, run), ({var}, var), (set(), None)):
        monkeypatch.setattr(Path, "is_dir", lambda self, there=there: self in there)
        assert shared_folder() == found


def test_the_first_shared_folder_that_this_user_may_write_to_is_all_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SHARED_VARIABLE, raising=False)
    monkeypatch.delenv("HTPFARM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    missing, file, closed, first, second = (tmp_path / name for name in ("missing", "file", "closed", "a", "b"))
    file.touch()
    for folder in (closed, first, second):
        folder.mkdir()
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed and may(path, mode))  # as root may all
    monkeypatch.setattr(module, "SHARED", (missing, file, closed, first, second))
    assert shared_folder() == first
    assert default_lease_dir() == first / "leases"
    with acquire("R3", me()):
        assert [holder.serial for holder in holders()] == ["R3"]
        assert (first / "leases" / "R3.lock").exists()
        with pytest.raises(InfraError, match="no phone is free"):
            acquire("R3", me())
    assert break_lease("R3") == ()
    monkeypatch.setattr(module, "SHARED", (missing, file, closed))
    assert shared_folder() is None
    assert default_lease_dir() == tmp_path / "home" / "htpfarm" / "leases"
    monkeypatch.setattr(module, "SHARED", (first,))
    monkeypatch.setenv("HTPFARM_CACHE", str(tmp_path / "cache"))
    assert shared_folder() is None  # a cache of its own
    assert default_lease_dir() == tmp_path / "cache" / "leases"
    for named, good in ((second, True), (missing, False), (file, False), (closed, False)):
        monkeypatch.setenv(SHARED_VARIABLE, str(named))
        if good:
            assert shared_folder() == named
            continue
        with pytest.raises(ConfigError, match="no folder that this user may write to") as caught:
            shared_folder()
        assert caught.value.where == f"HTPFARM_SHARED={named}"
        assert "docs/rack.md" in caught.value.remedy
