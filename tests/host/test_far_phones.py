"""Phones on another computer: a rack with its adb server in a network namespace of its own, reached by host:port.

As in docs/rack.md the adb server there listens to its own computer alone, and something forwards one port to it: here a
relay, where the recipe has ssh.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import farm_rack
import pytest
from events import HANG_S, until
from farm_rack import GOOD_RUNNER, NAPS, deploy_runner, processes

import harness.farm.connect
from harness.build.cache import Artifact
from harness.conduct.attempt import Attempt, Bench
from harness.conduct.run_cell import run_cell
from harness.errors import FailureClass, InfraError
from harness.evaluate.choice import EvalChoice
from harness.evaluate.host import Host
from harness.farm.connect import AdbServer
from harness.farm.failures import Failure, classify
from harness.farm.health import HealthBook, HealthState
from harness.farm.identity import AttachedPhone, survey
from harness.farm.lease_service import HostLeases
from harness.farm.prepare import Nurse, prepare
from harness.farm.rescue import Patience
from harness.farm.session import run_session
from harness.farm.shell import AdbLost
from harness.inventory import load_inventory
from harness.matrix import cells
from harness.model_file import Mode
from harness.models import load_models
from harness.paths import MODELS, REPOSITORY
from harness.rack import manage
from harness.rack.manage import RackState
from harness.results.records import Record, Status
from harness.soc import SOCS
from harness.target import Target

PORT = 6037
LOST_AFTER_S = 4
SLOW_RUNNER = f"#!/bin/sh\nexec sleep 3003{NAPS}\n"
UP = """
import sys
from pathlib import Path
from harness.rack import manage
from harness.soc import PHONE_KINDS
manage.up([("far", PHONE_KINDS["galaxy_s24"])], state_dir=Path(sys.argv[1]), boot_delay=0.5, runner_argv=["/bin/true"])
"""
RELAY = """
import asyncio, sys
async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()
async def serve(reader, writer):
    there, back = await asyncio.open_connection("127.0.0.1", int(sys.argv[3]))
    await asyncio.gather(pump(reader, back), pump(there, writer))
    back.close(); writer.close()
async def main():
    server = await asyncio.start_server(serve, sys.argv[1], int(sys.argv[2]))
    await server.serve_forever()
asyncio.run(main())
"""


@dataclass(frozen=True)
class Far:
    """The other computer: its address, its network namespace, and its end of the cable."""

    address: str
    namespace: str
    cable: str

    def plug(self, state: str) -> None:
        """`up` or `down`."""
        _ip("-n", self.namespace, "link", "set", self.cable, state)

    @contextlib.contextmanager
    def unplugged(self) -> Iterator[None]:
        self.plug("down")
        try:
            yield
        finally:
            self.plug("up")

    def serial(self, folder: Path) -> str:
        state = manage.status(folder)
        assert state
        return state.phones[0].serial


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True, text=True, timeout=HANG_S, check=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("far")


@pytest.fixture(scope="module")
def far(folder: Path) -> Iterator[Far]:
    if shutil.which("ip") is None:
        pytest.skip("no ip (iproute2) here")
    number = os.getpid() % 4096
    here, there = (f"198.18.{number // 16}.{number % 16 * 4 + end}" for end in (1, 2))
    name, near_end, far_end = f"htpfarm-{os.getpid()}", f"hf{os.getpid()}a", f"hf{os.getpid()}b"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, timeout=HANG_S, check=False)
    if made.returncode != 0:
        pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
    relay: subprocess.Popen[bytes] | None = None
    inside, environ = ["ip", "netns", "exec", name], {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    try:
        _ip("link", "add", near_end, "type", "veth", "peer", "name", far_end, "netns", name)
        _ip("addr", "add", f"{here}/30", "dev", near_end)
        _ip("link", "set", near_end, "up")
        for words in (["addr", "add", f"{there}/30", "dev", far_end], ["link", "set", far_end, "up"]):
            _ip("-n", name, *words)
        _ip("-n", name, "link", "set", "lo", "up")
        argv = [*inside, sys.executable, "-c", UP, str(folder / "rack")]
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=HANG_S, check=False)
        assert done.returncode == 0, done.stderr
        state = manage.status(folder / "rack")
        assert state
        # Nobody listens there for this computer: the forwarded port is the only way in.
        with pytest.raises(OSError):
            socket.create_connection((there, state.adb_port), timeout=2)
        relay = subprocess.Popen([*inside, sys.executable, "-c", RELAY, there, str(PORT), str(state.adb_port)])
        until(lambda: AdbServer(there, PORT).answers())
        yield Far(there, name, far_end)
    finally:
        if relay is not None:
            relay.kill()
            relay.wait(timeout=HANG_S)
        manage.down(folder / "rack")
        subprocess.run(["ip", "link", "del", near_end], capture_output=True, timeout=HANG_S, check=False)
        _ip("netns", "del", name)


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RackState]:
    with farm_rack.running_rack(tmp_path_factory.mktemp("near"), {"near": "oneplus_12"}) as state:
        yield state


@pytest.fixture
def phones(far: Far, near: RackState, folder: Path, tmp_path: Path) -> tuple[AttachedPhone, ...]:
    """One rack of two computers, by its file."""
    file = tmp_path / "devices.yaml"
    file.write_text(
        f"version: 1\nracks:\n  - {{name: shelf2, adb: {{host: {far.address}, port: {PORT}}}}}\n"
        f"  - {{name: shelf1, adb: {{port: {near.adb_port}}}}}\nphones:\n"
        f"  - {{name: far, rack: shelf2, serial: '{far.serial(folder / 'rack')}', soc: SM8650}}\n"
        f"  - {{name: near, rack: shelf1, serial: '{near.phones[0].serial}', soc: SM8650}}\n"
    )
    found = survey(load_inventory(file))
    assert not found.refused
    assert [p.phone.name for p in found.attached] == ["far", "near"]
    return found.attached


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.farm.connect, "LOST_AFTER_SECONDS", LOST_AFTER_S)


def carried_out(
    tmp_path: Path, phones: tuple[AttachedPhone, ...], during: Callable[[Attempt], str]
) -> tuple[object, list[tuple[str, str]], Bench]:
    """A cell that is meant for `far`: its outcome, each attempt's phone and class, its bench.

    `during` says which script the runner is.
    """
    kept: list[Record] = []
    nurse = Nurse(HealthBook(tmp_path / "health"), patience=Patience(settle_s=30.0, boot_s=HANG_S), poll_s=0.2)
    say = lambda name, what: None  # noqa: E731
    bench = Bench(
        *("test", tmp_path, phones, kept.append, say, Target.SIM, EvalChoice(), Host(), nurse),
        HostLeases(tmp_path / "leases"),
    )
    (cell,) = cells([load_models(MODELS)["tiny_llama"]], [Mode.KV], [SOCS["SM8650"]])
    took: list[tuple[str, str]] = []

    def attempt(one: Attempt) -> Failure | None:
        deployed = deploy_runner(one.phone.link, tmp_path, during(one))
        spec = farm_rack.session(one.number, outputs=("outputs.txt",), timeout_s=2 * HANG_S)
        try:
            failure = classify(run_session(one.phone.link, deployed, spec, tmp_path / "out", return_s=2.0))
        except InfraError as error:
            took.append((one.phone.phone.name, str(error.failure_class)))
            raise
        took.append((one.phone.phone.name, str(failure.failure_class) if failure else "passed"))
        return failure

    artifact = Artifact("none", tmp_path / "none.pte", tmp_path, {})
    return run_cell(bench, cell, artifact, HANG_S, first="far", run=attempt), took, bench


def test_a_cell_runs_on_a_phone_of_another_computer(phones: tuple[AttachedPhone, ...], tmp_path: Path) -> None:
    outcome, took, bench = carried_out(tmp_path, phones, lambda _: GOOD_RUNNER)
    assert took == [("far", "passed")]
    assert (outcome.status, outcome.phone) == (Status.PASSED, "far")
    assert bench.nurse.book.state(phones[0].link.serial) is HealthState.GOOD


def test_a_cable_pulled_in_the_middle_of_a_run_is_infrastructure_and_another_computers_phone_takes_over(
    far: Far, phones: tuple[AttachedPhone, ...], tmp_path: Path
) -> None:
    link = phones[0].link

    def pulls(attempt: Attempt) -> str:
        if attempt.phone.phone.name == "near":
            return GOOD_RUNNER
        threading.Thread(target=pull, daemon=True).start()
        return SLOW_RUNNER

    def pull() -> None:
        until(lambda: processes(link, f"sleep 3003{NAPS}"))
        far.plug("down")

    try:
        outcome, took, bench = carried_out(tmp_path, phones, pulls)
    finally:
        far.plug("up")
    assert took == [("far", FailureClass.INFRA), ("near", "passed")]
    assert (outcome.status, outcome.phone, outcome.attempts) == (Status.PASSED, "near", 2)
    # The far phone is none the worse: when the cable is back it is swept of the runner that was lost, and good.
    assert bench.nurse.book.state(link.serial) is HealthState.UNKNOWN
    until(link.server.answers)
    assert processes(link, f"sleep 3003{NAPS}")  # nobody waited for its end
    _, left = prepare(bench.nurse, phones[0].phone, link)
    assert left.killed
    assert not processes(link, f"sleep 3003{NAPS}")
    assert bench.nurse.book.state(link.serial) is HealthState.GOOD


def test_a_command_on_a_lost_computer_is_lost_and_not_only_late(far: Far, phones: tuple[AttachedPhone, ...]) -> None:
    link = phones[0].link

    def pull() -> None:
        until(lambda: processes(link, f"sleep 3004{NAPS}"))
        far.plug("down")

    hand = threading.Thread(target=pull)
    hand.start()
    try:
        with pytest.raises(AdbLost, match="connection was lost"):
            link.shell(f"exec sleep 3004{NAPS}", timeout_s=HANG_S)
    finally:
        hand.join()
        far.plug("up")
    until(link.server.answers)
    for line in processes(link, f"sleep 3004{NAPS}"):
        link.must(["kill", line.split()[1]])


def test_a_phone_whose_computer_is_away_is_refused_with_its_address_and_does_not_become_bad(
    far: Far, phones: tuple[AttachedPhone, ...], tmp_path: Path
) -> None:
    nurse, phone = Nurse(HealthBook(tmp_path / "health"), patience=Patience(settle_s=1.0, boot_s=5.0)), phones[0]
    with far.unplugged(), pytest.raises(InfraError, match="adb server does not answer") as caught:
        prepare(nurse, phone.phone, phone.link)
    assert f"{far.address}:{PORT}" in caught.value.where
    assert nurse.book.state(phone.link.serial) is HealthState.UNKNOWN
    until(phone.link.server.answers)
    prepare(nurse, phone.phone, phone.link)
    assert nurse.book.state(phone.link.serial) is HealthState.GOOD
