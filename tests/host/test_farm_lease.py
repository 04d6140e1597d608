from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
from events import HANG_S
from lease_support import Clock, dead, locked, me, python, refuse

from harness.errors import InfraError
from harness.farm import lease as module
from harness.farm.lease import (
    Holder,
    Owner,
    acquire,
    acquire_any,
    holders,
)
from harness.paths import REPOSITORY

# Takes a lease, forks a child that outlives it, starts a program that outlives it, and says that it is ready.
HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from harness.farm.lease import Owner, acquire
lease = acquire("phone/1", Owner.this_process("run-a"), lease_dir=Path(sys.argv[1]))
program = subprocess.Popen(["sleep", "3600"], close_fds=False)
child = os.fork()
if child == 0:
    time.sleep(3600)
    os._exit(0)
print(program.pid, child, flush=True)
time.sleep(3600)
"""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def test_one_at_a_time_and_again_after_release(tmp_path: Path) -> None:
    lease = acquire("R3", me(), lease_dir=tmp_path)
    with pytest.raises(InfraError, match="no phone is free") as caught:
        acquire("R3", me("other"), lease_dir=tmp_path)
    assert "run-b" in caught.value.evidence
    lease.release()
    lease.release()
    with acquire("R3", me("other"), lease_dir=tmp_path) as again:
        assert again.owner.run_id == "other"
        assert [(h.serial, h.owner and h.owner.run_id) for h in holders(tmp_path)] == [("R3", "other")]
    assert holders(tmp_path) == ()


def test_phones_are_tried_in_order(tmp_path: Path) -> None:
    phones = ["127.0.0.1:5555", "R3", "a/b"]
    taken = [acquire_any(phones, me(), lease_dir=tmp_path).serial for _ in phones]
    assert taken == phones
    assert sorted(h.serial for h in holders(tmp_path)) == sorted(phones)


def test_a_waiter_hears_who_holds_the_phone_and_gets_it(tmp_path: Path) -> None:
    lease = acquire("R3", me("first"), lease_dir=tmp_path)
    heard: list[str] = []

    def progress(found: tuple) -> None:
        heard.extend(str(holder.owner) for holder in found)
        threading.Timer(0.1, lease.release).start()

    with acquire("R3", me("second"), wait_s=HANG_S, lease_dir=tmp_path, progress=progress) as got:
        assert got.owner.run_id == "second"
    assert "first" in heard[0]


def test_waiting_ends(tmp_path: Path) -> None:
    with acquire("R3", me(), lease_dir=tmp_path), pytest.raises(InfraError, match=r"after 0\.3 s"):
        acquire("R3", me(), wait_s=0.3, lease_dir=tmp_path)


def test_kill_9_frees_the_phone_though_children_live(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as process:
        assert process.stdout
        children = [int(pid) for pid in process.stdout.readline().split()]
        try:
            with pytest.raises(InfraError) as caught:
                acquire("phone/1", me(), lease_dir=tmp_path)
            assert f"process {process.pid}" in caught.value.evidence
            assert [h.serial for h in holders(tmp_path)] == ["phone/1"]
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=HANG_S)
            assert holders(tmp_path) == ()
            # A child that has not run since its fork has not yet dropped its copy of the lock.
            with acquire("phone/1", me(), wait_s=HANG_S, lease_dir=tmp_path):
                for pid in children:
                    os.kill(pid, 0)  # they do live: the lease is not free because they ended
        finally:
            for pid in children:
                os.kill(pid, signal.SIGKILL)


def test_an_unreadable_owner_does_not_stop_anyone(tmp_path: Path) -> None:
    (tmp_path / "R3.lock").write_text('{"half')
    assert holders(tmp_path) == ()
    with acquire("R3", me(), lease_dir=tmp_path):
        assert len(holders(tmp_path)) == 1


def test_a_later_process_of_the_same_number_is_not_the_owner() -> None:
    now = me()
    assert now.alive()
    assert not Owner(now.user, now.host, now.pid, now.process_start - 1000, "x", since=time.time()).alive()


def test_a_process_that_started_two_seconds_off_is_another_one() -> None:
    now = me()
    for off, same in ((0.0, True), (1.5, True), (-1.5, True), (2.0, False), (-2.0, False), (1000.0, False)):
        assert replace(now, process_start=now.process_start + off).alive() is same, off
    assert not dead().alive()


def test_an_owner_says_who_and_for_how_long(clock: Clock) -> None:
    owner = Owner("ann", "shelf", 7, 1.0, "run-a", since=clock.now - 90)
    assert str(owner) == "ann's run run-a (process 7 on shelf) for 90 s"
    assert str(replace(owner, since=clock.now + 5)).endswith("for 0 s")  # clocks are set back at times


def test_this_process_is_its_user_host_number_and_start(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Owner.this_process("run-a", deadline=5.0)
    start = psutil.Process().create_time()
    assert made == Owner(getpass.getuser(), socket.gethostname(), os.getpid(), start, "run-a", 0.0, 5.0)
    assert Owner.this_process("run-a").deadline is None
    for error in (KeyError("uid not found"), OSError("no name")):
        monkeypatch.setattr(getpass, "getuser", lambda error=error: (_ for _ in ()).throw(error))
        assert Owner.this_process("run-a").user == str(os.getuid())


# --- waiting


def test_a_waiter_tries_every_fifth_of_a_second_and_once_more_at_the_end(tmp_path: Path, clock: Clock) -> None:
    with locked(tmp_path / "R3.lock"), pytest.raises(InfraError, match=r"no phone is free after 0\.5 s"):
        acquire("R3", me(), wait_s=0.5, lease_dir=tmp_path)
    assert clock.slept == pytest.approx([0.2, 0.2, 0.1])


def test_who_does_not_wait_tries_once(tmp_path: Path, clock: Clock) -> None:
    heard: list[object] = []
    with locked(tmp_path / "R3.lock", me("first")), pytest.raises(InfraError) as caught:
        acquire_any(["R3"], me(), lease_dir=tmp_path, progress=heard.append)
    assert (clock.slept, heard) == ([], [])
    with locked(tmp_path / "R3.lock"), pytest.raises(InfraError):
        acquire("R3", me(), lease_dir=tmp_path)
    assert clock.slept == []
    assert (caught.value.what, caught.value.where) == ("no phone is free", "R3")
    assert "its lease ends with it" in caught.value.remedy


def test_a_waiter_hears_at_once_and_then_every_five_seconds(tmp_path: Path, clock: Clock) -> None:
    heard: list[tuple[float, tuple[Holder, ...]]] = []
    holder = me("first")
    with locked(tmp_path / "R3.lock", holder), locked(tmp_path / "R4.lock"), pytest.raises(InfraError) as caught:
        acquire_any(
            ["R4", "R3"],
            me(),
            wait_s=12.0,
            lease_dir=tmp_path,
            progress=lambda found: heard.append((clock.now - 1000.0, found)),
        )
    assert [at for at, _ in heard] == pytest.approx([0.0, 5.0, 10.0], abs=0.21)
    assert {found for _, found in heard} == {(Holder("R4", None, 0.0), Holder("R3", holder, 0.0))}
    assert caught.value.where == "R4, R3"
    assert caught.value.evidence.splitlines() == ["R4: held by a process that has not said who it is", f"R3: {holder}"]


def test_a_phone_that_becomes_free_is_taken_at_the_next_look(tmp_path: Path, clock: Clock) -> None:
    lock = contextlib.ExitStack()
    lock.enter_context(locked(tmp_path / "R3.lock"))
    sleep = clock.sleep

    def freed(seconds: float) -> None:
        sleep(seconds)
        if clock.now > 1000.5:
            lock.close()

    clock.sleep = freed  # type: ignore[method-assign]
    with acquire("R3", me(), wait_s=60.0, lease_dir=tmp_path) as lease:
        assert lease.owner.since == clock.now == pytest.approx(1000.6)


def test_no_phones_are_none_to_lease(tmp_path: Path) -> None:
    with pytest.raises(InfraError, match="there is no phone to lease"):
        acquire_any([], me(), lease_dir=tmp_path / "none")
    assert not (tmp_path / "none").exists()


# --- what the file says


def test_holders_are_living_processes_of_this_host_and_all_of_others(tmp_path: Path) -> None:
    said = {
        "R3": json.dumps(asdict(me("mine"))),
        "a%2Fb": json.dumps(asdict(replace(dead(), host="elsewhere"))),
        "dead": json.dumps(asdict(dead())),
        "later": json.dumps(asdict(replace(me(), process_start=1.0))),
        "empty": "",
        "list": "[]",
        "other": '{"user": "ann"}',
    }
    for name, text in said.items():
        (tmp_path / f"{name}.lock").write_text(text)
    away = [f"p{number}" for number in range(9)]
    said |= {name: json.dumps(asdict(replace(dead(), host="elsewhere"))) for name in away}
    for name in away:
        (tmp_path / f"{name}.lock").write_text(said[name])
    os.utime(tmp_path / "R3.lock", (50.0, 60.0))
    (tmp_path / "folder.lock").mkdir()
    (tmp_path / "R9.txt").write_text(said["R3"])
    found = holders(tmp_path)
    assert [(holder.serial, holder.owner and holder.owner.run_id) for holder in found] == [
        ("R3", "mine"),
        ("a/b", "run-x"),
        *((name, "run-x") for name in away),
    ]
    assert found[0].heartbeat == 60.0


def test_the_refused_are_told_of_a_child_that_outlives_its_parent(tmp_path: Path) -> None:
    gone = dead()
    away = replace(gone, host="elsewhere")
    with locked(tmp_path / "a.lock", gone), locked(tmp_path / "b.lock", away), pytest.raises(InfraError) as caught:
        acquire_any(["a", "b"], me(), lease_dir=tmp_path)
    child, far = caught.value.evidence.splitlines()
    assert child.startswith("a: a child that outlives ann's run run-x")
    assert far.startswith("b: ann's run run-x")


def test_a_lease_replaces_all_that_its_file_said_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "R3.lock").write_text("x" * 5000)
    with acquire("R3", me(), lease_dir=tmp_path) as lease:
        assert lease.held
        assert lease.path == tmp_path / "R3.lock"
        assert Owner(**json.loads((tmp_path / "R3.lock").read_text())) == lease.owner
    assert not lease.held
    assert (tmp_path / "R3.lock").read_text() == ""


def test_who_reads_while_a_phone_changes_hands_sees_nothing_or_the_new_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write, seen = tmp_path / "R3.lock", os.pwrite, []
    path.write_text("x" * 5000)

    def watched(descriptor: int, data: bytes, offset: int) -> int:
        seen.append(path.read_text())
        done = write(descriptor, data, offset)
        seen.append(json.loads(path.read_text())["run_id"])
        return done

    monkeypatch.setattr(os, "pwrite", watched)
    acquire("R3", me("new"), lease_dir=tmp_path).release()
    assert seen == ["", "new"]


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_what_cannot_be_leased_is_told_and_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with acquire("R3", me(), lease_dir=tmp_path):
        before = descriptors()
        with pytest.raises(InfraError, match="no phone is free"):
            acquire("R3", me(), lease_dir=tmp_path)
        assert descriptors() == before
    before = descriptors()
    with monkeypatch.context() as patch:  # a network's file system without locks
        patch.setattr(fcntl, "flock", refuse(OSError("No locks available")))
        with pytest.raises(InfraError, match="cannot hold leases: No locks available") as caught:
            acquire("R3", me(), lease_dir=tmp_path)
    assert caught.value.where == str(tmp_path / "R3.lock")
    assert descriptors() == before
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse(OSError("No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            acquire("R3", me(), lease_dir=tmp_path)
    assert descriptors() == before
    with monkeypatch.context() as patch:
        patch.setattr(module, "open_shared", refuse(PermissionError("R3.lock")))
        with pytest.raises(InfraError, match="may not write another user's leases") as caught:
            acquire("R3", me(), lease_dir=tmp_path)
    assert (caught.value.where, caught.value.evidence) == (str(tmp_path / "R3.lock"), "R3.lock")
    assert "docs/rack.md" in caught.value.remedy
    acquire("R3", me(), lease_dir=tmp_path).release()


def test_a_program_that_was_started_without_stdin_holds_its_lease_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "R3.lock").touch()
    kept = os.dup(0)
    os.close(0)
    try:
        lease = acquire("R3", me(), lease_dir=tmp_path)
        assert lease._descriptor == 0
        assert lease.held
        lease.release()
        assert not lease.held
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(0)
    finally:
        os.dup2(kept, 0)
        os.close(kept)


# --- the heart


def hearts() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "htpfarm-leases"]


def beats(path: Path) -> bool:
    """Whether somebody touches a file that was last touched long ago."""
    os.utime(path, (1.0, 1.0))
    deadline = time.monotonic() + 30
    while path.stat().st_mtime == 1.0:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_one_thread_beats_for_all_leases_and_another_one_for_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    for _ in range(2):
        for thread in hearts():
            thread.join(timeout=30)
        with acquire("R3", me(), lease_dir=tmp_path), acquire("R4", me(), lease_dir=tmp_path):
            assert beats(tmp_path / "R3.lock")
            assert beats(tmp_path / "R4.lock")
            (thread,) = hearts()
            assert thread.daemon  # it does not keep a process alive
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_a_lease_beats_every_two_seconds_until_it_is_released(tmp_path: Path, clock: Clock) -> None:
    lease = acquire("R3", me(), lease_dir=tmp_path)
    sleep = clock.sleep

    def until_the_third(seconds: float) -> None:
        sleep(seconds)
        if clock.slept and len(clock.slept) == 3:
            lease.release()
        assert len(clock.slept) <= 3

    clock.sleep = until_the_third  # type: ignore[method-assign]
    module._beat()
    assert clock.slept == [2.0] * 3


FORKED = """
import os, sys, threading, time
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
from lease_support import me
from test_farm_lease import acquire, beats
os.close(0)  # the lease takes the first number that is free
lease = acquire("R3", me(), lease_dir=Path(sys.argv[1]))
child = os.fork()
if child == 0:
    with acquire("R4", me("child"), lease_dir=Path(sys.argv[1])):
        print(lease.held, beats(Path(sys.argv[1]) / "R4.lock"), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(lease.held, beats(Path(sys.argv[1]) / "R3.lock"), flush=True)
"""


def test_a_forked_child_holds_nothing_of_its_parents_and_beats_for_its_own(tmp_path: Path) -> None:
    assert python(FORKED, tmp_path, Path(__file__).parent) == "False True\nTrue True\n"
