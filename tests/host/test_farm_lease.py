from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from events import HANG_S

from harness.errors import InfraError
from harness.farm.lease import Owner, acquire, acquire_any, holders
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


def me(run: str = "run-b") -> Owner:
    return Owner.this_process(run)


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
