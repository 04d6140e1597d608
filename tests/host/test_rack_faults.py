"""Faults on demand: each strikes a virtual phone behind a real adb server, and is on the log."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import farm_rack
import pytest
from events import HANG_S, NEVER_S, until
from farm_rack import GOOD_RUNNER, HANGING_RUNNER, NAPS, deploy_runner, link_to, processes, session
from rack_support import Adb

from harness.cli import main
from harness.errors import ConfigError, EnvError, FailureClass, InfraError
from harness.farm.connect import PhoneLink
from harness.farm.deploy import deploy, free_bytes
from harness.farm.failures import classify
from harness.farm.identity import boot_id
from harness.farm.payload import PayloadFile
from harness.farm.session import run_session
from harness.farm.shell import AdbFailure, AdbLost, AdbTimeout
from harness.inventory import load_inventory
from harness.rack import manage
from harness.rack.fault_cli import arm, clear
from harness.rack.faults import FaultKind, FaultPlan, FaultSpec, read_faults
from harness.rack.manage import RackState
from harness.rack.phone import tell


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rack")


@pytest.fixture(scope="module")
def rack(folder: Path) -> Iterator[RackState]:
    with farm_rack.running_rack(folder, {"s24": "galaxy_s24"}) as state:
        yield state


@pytest.fixture
def link(rack: RackState, folder: Path) -> Iterator[PhoneLink]:
    manage.mend(folder)
    found = link_to(rack, "s24")
    reach(rack, found)
    yield found
    clear("s24", state_dir=folder)


def reach(rack: RackState, link: PhoneLink) -> None:
    """As the farm's own ladder does: adb's own retries come only every few seconds."""

    def reached() -> bool:
        if link.state() != "device":
            adb.run("disconnect", link.serial)
            adb.run("connect", link.serial)
        return link.state() == "device"

    adb = Adb(rack, rack.phones[0])
    until(reached)
    assert adb.out("get-state") == "device"


def struck(folder: Path, kind: FaultKind, since: float) -> int:
    return sum(s.kind is kind and s.time >= since and s.phone == "s24" for s in read_faults(folder))


def test_a_shell_hangs_once_and_the_caller_gets_its_time_limit(link: PhoneLink, folder: Path) -> None:
    start = time.time()
    arm("s24", FaultSpec(FaultKind.HANG_SHELL, match="marked"), state_dir=folder)
    assert link.must("echo other").stdout == "other\n"
    with link.open_shell("echo marked") as stream:
        until(lambda: struck(folder, FaultKind.HANG_SHELL, start) == 1)
        with pytest.raises(AdbTimeout):
            stream.wait(time.monotonic() + 0.5)
        assert stream.stdout == b""
    assert link.must("echo marked").stdout == "marked\n"
    assert struck(folder, FaultKind.HANG_SHELL, start) == 1


@pytest.mark.parametrize("kind", [FaultKind.CUT_PUSH, FaultKind.CUT_PULL])
def test_a_transfer_is_cut(link: PhoneLink, rack: RackState, folder: Path, tmp_path: Path, kind: FaultKind) -> None:
    start, big, back = time.time(), tmp_path / "big", tmp_path / "back"
    big.write_bytes(bytes(range(256)) * 4096)
    if kind is FaultKind.CUT_PULL:
        link.push(big, "/data/local/tmp/big")
    arm("s24", FaultSpec(kind), state_dir=folder)
    with pytest.raises(AdbFailure):
        link.push(big, "/data/local/tmp/big") if kind is FaultKind.CUT_PUSH else link.pull("/data/local/tmp/big", back)
    reach(rack, link)
    link.push(big, "/data/local/tmp/big")
    link.pull("/data/local/tmp/big", back)
    assert back.read_bytes() == big.read_bytes()
    assert struck(folder, kind, start) == 1


def test_a_flipped_bit_is_noticed_and_pulled_again(link: PhoneLink, folder: Path, tmp_path: Path) -> None:
    start = time.time()
    deployed = deploy_runner(link, tmp_path, GOOD_RUNNER)
    arm("s24", FaultSpec(FaultKind.CORRUPT_PULL), state_dir=folder)
    result = run_session(link, deployed, session(1, "a", outputs=("outputs.txt",)), tmp_path / "out")
    assert struck(folder, FaultKind.CORRUPT_PULL, start) == 1
    assert classify(result) is None
    assert result.files["outputs.txt"].read_text() == "a\n"
    arm("s24", FaultSpec(FaultKind.CORRUPT_PULL, count=2), state_dir=folder)
    with pytest.raises(InfraError, match="damaged"):
        run_session(link, deployed, session(2, "a", outputs=("outputs.txt",)), tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "state"), [(FaultKind.OFFLINE, {"offline", "connecting", ""}), (FaultKind.UNAUTHORIZED, {"unauthorized"})]
)
def test_adb_sees_another_state_and_then_the_phone_again(
    link: PhoneLink, rack: RackState, folder: Path, kind: FaultKind, state: set[str]
) -> None:
    start = time.time()
    arm("s24", FaultSpec(kind, seconds=NEVER_S), state_dir=folder)
    until(lambda: link.state() != "device")

    def seen() -> bool:
        subprocess.run(manage.adb_argv(rack, "connect", link.serial), capture_output=True, timeout=HANG_S, check=False)
        return link.state() in state

    until(seen)
    with pytest.raises(AdbFailure):
        link.shell("true", timeout_s=1)
    clear("s24", state_dir=folder)
    reach(rack, link)
    assert struck(folder, kind, start) == 1


def test_a_reboot_in_the_middle_of_a_run_is_a_crash(
    link: PhoneLink, rack: RackState, folder: Path, tmp_path: Path
) -> None:
    before = boot_id(link)
    deployed = deploy_runner(link, tmp_path, HANGING_RUNNER)
    arm("s24", FaultSpec(FaultKind.REBOOT, rate=1.0, match="exec "), state_dir=folder)
    result = run_session(link, deployed, session(3), tmp_path / "out", return_s=HANG_S)
    assert result.boot_id_before == before != result.boot_id_after
    failure = classify(result)
    assert failure
    assert failure.failure_class is FailureClass.CRASH


def test_the_runner_is_killed_as_by_the_low_memory_killer(link: PhoneLink, folder: Path, tmp_path: Path) -> None:
    deployed = deploy_runner(link, tmp_path, f"#!/bin/sh\nexec sleep 302{NAPS}\n")

    def kill() -> None:
        until(lambda: processes(link, NAPS))
        arm("s24", FaultSpec(FaultKind.KILL_RUNNER), state_dir=folder)

    killer = threading.Thread(target=kill)
    killer.start()
    result = run_session(link, deployed, session(4), tmp_path / "out")
    killer.join()
    assert result.exit_status == 137
    assert "lowmemorykiller: Kill 'qnn_llama_runner'" in link.must("logcat -d").stdout
    assert not processes(link, NAPS)


def test_heat_battery_and_storage_come_and_go(link: PhoneLink, folder: Path, tmp_path: Path) -> None:
    kinds = (FaultKind.HOT, FaultKind.BATTERY, FaultKind.STORAGE)
    for kind in kinds:
        arm("s24", FaultSpec(kind, seconds=NEVER_S), state_dir=folder)

    def level() -> str:
        return link.must("dumpsys battery | grep level").stdout.strip()

    until(lambda: level() == "level: 3")
    assert "Thermal Status: 4" in link.must("dumpsys thermalservice").stdout
    assert free_bytes(link) == 1 << 20
    (tmp_path / "f").write_bytes(b"x")
    with pytest.raises(EnvError, match="storage full"):
        deploy(link, [PayloadFile(tmp_path / "f", "new-file")])

    def well() -> bool:
        heat = link.must("dumpsys thermalservice").stdout
        return level() == "level: 100" and "Thermal Status: 0" in heat and free_bytes(link) > 1 << 20

    clear("s24", state_dir=folder)
    until(well)
    since = time.time()
    for kind in kinds:  # they go by themselves, too
        arm("s24", FaultSpec(kind, seconds=0.1), state_dir=folder)
    until(lambda: all(struck(folder, kind, since) for kind in kinds))
    until(well)


def test_what_was_cleared_does_not_strike_later(link: PhoneLink, rack: RackState, folder: Path) -> None:
    start = time.time()
    cleared = FaultSpec(FaultKind.REBOOT, after_s=0.1)
    later = FaultSpec(FaultKind.BATTERY, after_s=0.2, seconds=0.0)
    # In one breath: nothing strikes in between.
    tell(Path(rack.phones[0].root), f"fault {cleared.to_json()}\nfault clear\nfault {later.to_json()}")
    until(lambda: struck(folder, FaultKind.BATTERY, start))
    assert not struck(folder, FaultKind.REBOOT, start)


def test_the_link_becomes_slow(link: PhoneLink, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(300_000))
    arm("s24", FaultSpec(FaultKind.SLOW, seconds=NEVER_S), state_dir=folder)
    until(lambda: struck(folder, FaultKind.SLOW, 0) == 1)
    start = time.monotonic()
    link.push(tmp_path / "f", "/data/local/tmp/f")
    assert time.monotonic() - start > 1.0  # at 200 kB a second: a lower bound, whatever else the computer does


def test_garbage_ends_the_connection_and_nothing_more(link: PhoneLink, rack: RackState, folder: Path) -> None:
    with link.open_shell("sleep 600") as stream:
        arm("s24", FaultSpec(FaultKind.GARBAGE), state_dir=folder)
        with pytest.raises(AdbLost):
            stream.wait(time.monotonic() + HANG_S)
    reach(rack, link)
    assert link.must("echo well").stdout == "well\n"


def test_the_adb_server_dies_and_is_mended_while_the_phone_lives(
    link: PhoneLink, rack: RackState, folder: Path
) -> None:
    before = boot_id(link)
    arm("s24", FaultSpec(FaultKind.ADB_DOWN), state_dir=folder)

    def listening() -> bool:
        with socket.socket() as one:
            return one.connect_ex((rack.adb_host, rack.adb_port)) == 0

    until(lambda: not listening())
    with pytest.raises(InfraError, match="no adb server answers"):
        link.state()
    assert manage.mend(folder)
    assert not manage.mend(folder)
    reach(rack, link)
    assert boot_id(link) == before
    again = manage.status(folder)
    assert again
    assert (again.adb_port, again.server_pid) == (rack.adb_port, rack.server_pid)


def test_chance_is_seeded_and_counts_have_an_end() -> None:
    def strikes(seed: int) -> list[int]:
        plan = FaultPlan()
        plan.arm(FaultSpec(FaultKind.HANG_SHELL, rate=0.2, count=None, seed=seed), now=0.0)
        return [n for n in range(1000) if plan.due("shell", "x", 1.0)]

    assert strikes(1) == strikes(1) != strikes(2)
    assert 150 < len(strikes(1)) < 250
    plan = FaultPlan()
    plan.arm(FaultSpec(FaultKind.CUT_PUSH, count=2, after_s=5.0), now=10.0)
    assert not plan.due("push", "", 14.0)
    assert not plan.due("shell", "", 16.0)
    assert [bool(plan.due("push", "", 16.0)) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("change", [{"rate": 1.5}, {"after_s": -1}, {"count": 0}])
def test_faults_that_make_no_sense_are_refused(change: dict) -> None:
    with pytest.raises(ConfigError):
        replace(FaultSpec(FaultKind.HOT), **change)
    with pytest.raises(ConfigError):
        FaultSpec.from_json('{"kind": "plague"}')


def test_faults_stand_in_devices_yaml(tmp_path: Path) -> None:
    path = tmp_path / "devices.yaml"
    path.write_text(
        "version: 1\nphones:\n  - name: a\n    virtual: galaxy_s24\n    faults:\n"
        "      - {kind: hang-shell, rate: 0.1, seed: 3}\n      - {kind: reboot, after_s: 30}\n"
    )
    (phone,) = load_inventory(path).phones
    assert phone.faults == (
        FaultSpec(FaultKind.HANG_SHELL, rate=0.1, count=None, seed=3),
        FaultSpec(FaultKind.REBOOT, after_s=30),
    )
    path.write_text(path.read_text().replace("reboot", "rebot"))
    with pytest.raises(ConfigError, match=r"devices.yaml:7.*faults\[1\].kind"):
        load_inventory(path)


def test_an_unknown_fault_or_phone_is_refused_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rack", "fault", "s24", "hang-shel"]) == 2
    assert "hang-shell" in capsys.readouterr().err
