"""Health, heat, recovery and selection: decisions without phones, then virtual phones behind a real adb server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import farm_rack
import psutil
import pytest
from events import HANG_S, NEVER_S, until
from farm_rack import link_to
from lease_support import own_processes

from harness.cli import main
from harness.conduct.farm_loop import FarmLoop
from harness.errors import CrashError, EnvError, FailureClass, HarnessError, InfraError, UnsupportedError
from harness.farm.connect import PhoneLink
from harness.farm.evidence import collect
from harness.farm.health import TOO_MANY, WINDOW, HealthBook, HealthState
from harness.farm.journal import journal
from harness.farm.lease import Owner, acquire, break_lease, holders
from harness.farm.lease_service import HostLeases
from harness.farm.prepare import HtpError, NotFitError, Nurse, prepare
from harness.farm.rescue import Patience
from harness.farm.select import ANY_PHONE, Standing, Wish, demand, meeting, select
from harness.farm.vitals import Vitals, ailments, parse_vitals, read_vitals, throttled
from harness.inventory import Limits, Phone, load_inventory
from harness.paths import REPOSITORY
from harness.rack import manage
from harness.rack.fault_cli import arm, clear
from harness.rack.faults import FaultKind, FaultSpec, read_faults
from harness.rack.manage import RackState
from harness.schedule.jobs import Job, Slot
from harness.soc import PHONE_KINDS, SOCS

LIMITS = Limits(cool_limit_s=HANG_S)
PATIENCE = Patience(settle_s=30.0, boot_s=HANG_S)
INFRA, CRASH = FailureClass.INFRA, FailureClass.CRASH

# As a Pixel prints it: cached values first, then the HAL's.
THERMAL = """IsStatusOverride: false
Thermal Status: 2
Cached temperatures:
\tTemperature{mValue=31.0, mType=3, mName=VIRTUAL-SKIN, mStatus=0}
Current temperatures from HAL:
\tTemperature{mValue=71.2, mType=0, mName=BIG, mStatus=0}
\tTemperature{mValue=43.5, mType=3, mName=VIRTUAL-SKIN, mStatus=2}
\tTemperature{mValue=38.25, mType=9, mName=nsphvx-0, mStatus=0}
"""


def said(thermal: str = THERMAL, booted: str = "1", level: int = 80) -> str:
    mark = "--htpfarm--\n"
    df = "Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/fuse 100 50 2097152 5% /data\n"
    battery = f"  level: {level}\n  temperature: 301\n"
    return mark.join([f"{booted}\ntrue\nabc-1\n", battery, thermal, df, "policy0 walt 1804800\npolicy4 walt\n"])


def test_vitals_are_read_as_android_prints_them() -> None:
    vitals = parse_vitals(said())
    assert vitals == Vitals(
        boot_id="abc-1",
        booted=True,
        unlocked=True,
        battery_percent=80,
        celsius=43.5,  # skin; not the CPU's 71
        zones={"BIG": 71.2, "VIRTUAL-SKIN": 43.5, "nsphvx-0": 38.25},
        thermal_status=2,
        storage_mb=2048,
        clocks={"policy0": ("walt", 1804800), "policy4": ("walt", 0)},
    )
    mute = parse_vitals("--htpfarm--".join(["\n"] * 5))
    assert (mute.booted, mute.unlocked, mute.celsius, mute.battery_percent) == (False, None, None, None)
    assert not ailments(replace(mute, booted=True), LIMITS)  # what a phone does not say is no ailment


@pytest.mark.parametrize(
    ("celsius", "cooling", "hot"), [(44.0, False, False), (46.0, False, True), (44.0, True, True), (39.0, True, False)]
)
def test_cooling_has_hysteresis(celsius: float, cooling: bool, hot: bool) -> None:
    found = ailments(Vitals(celsius=celsius), Limits(), cooling=cooling)
    assert [a.kind for a in found] == ["heat"] * hot


def test_ailments_and_throttling_follow_the_phones_limits() -> None:
    kinds = [a.kind for a in ailments(Vitals(booted=False, battery_percent=5, storage_mb=3, unlocked=False), Limits())]
    assert kinds == ["infra", "env", "env", "env"]
    assert throttled(Vitals(thermal_status=2), Limits())
    assert not throttled(Vitals(thermal_status=2), Limits(thermal_status=3))
    assert ailments(Vitals(thermal_status=3, celsius=30.0), Limits())[0].text.endswith("is 3 (severe)")


def test_states_change_with_a_cause_on_an_append_only_log(tmp_path: Path) -> None:
    book = HealthBook(tmp_path, run_id="run-1")
    assert book.state("R3") is HealthState.UNKNOWN
    assert book.set_state("R3", HealthState.GOOD, "checked")
    assert not book.set_state("R3", HealthState.GOOD, "again")
    assert book.attempted("R3", INFRA) is HealthState.UNKNOWN
    assert book.attempted("R3", None) is HealthState.UNKNOWN
    book.set_state("R3", HealthState.BAD, "gone")
    assert not book.set_state("R3", HealthState.GOOD, "a run would like it")
    assert book.clear("R3") is HealthState.BAD
    book.maintain("R3", "new screen")
    other = HealthBook(tmp_path)
    assert (other.state("R3"), other.cause("R3")) == (HealthState.MAINTENANCE, "new screen")
    log = [(e.event, str(e.state), e.cause) for e in other.events("R3")]
    assert log[:4] == [
        ("change", "GOOD", "checked"),
        ("attempt", "GOOD", "INFRA"),
        ("change", "UNKNOWN", "an attempt failed: INFRA"),
        ("attempt", "UNKNOWN", ""),
    ]
    assert all("run-1" in e.by for e in other.events("R3"))
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text() + '{"half')
    book.clear("R3")
    assert book.state("R3") is HealthState.UNKNOWN
    assert len(book.events("R3")) == len(log) + 1


def test_a_phone_that_keeps_failing_is_put_aside_until_cleared(tmp_path: Path) -> None:
    book = HealthBook(tmp_path)
    for number in range(40):  # every second attempt passes: not the phone's fault
        book.attempted("even", INFRA if number % 2 else None)
    assert book.state("even").usable
    for _ in range(40):  # what the product does wrong is not the phone's fault
        book.attempted("product", FailureClass.PRODUCT)
    assert book.state("product").usable
    book.attempted("odd", None)
    states = [book.attempted("odd", CRASH if n % 2 else INFRA) for n in range(TOO_MANY)]
    assert states == [HealthState.UNKNOWN] * (TOO_MANY - 1) + [HealthState.BAD]
    assert f"last {WINDOW}" in book.cause("odd")
    book.clear("odd")
    assert book.attempted("odd", INFRA) is HealthState.UNKNOWN


def test_a_phone_is_not_put_aside_for_failures_that_the_others_have_too(tmp_path: Path) -> None:
    hub = HealthBook(tmp_path / "hub")
    for number in range(3 * WINDOW):  # a hub drops out: every phone fails nine times in ten
        for serial in ("a", "b", "c"):
            hub.attempted(serial, None if number % 10 == 5 else INFRA)
    assert [hub.state(serial).usable for serial in ("a", "b", "c")] == [True] * 3
    half = HealthBook(tmp_path / "half")
    for number in range(4 * WINDOW):  # the others fail every second time, this one always: it takes longer, but is seen
        half.attempted("odd", CRASH)
        for serial in ("a", "b", "c"):
            half.attempted(serial, INFRA if number % 2 else None)
        if number == WINDOW - 1:
            assert half.state("odd").usable
    assert half.state("odd") is HealthState.BAD
    assert re.search(r"^\d+ of its last \d+ attempts failed, and \d+ of \d+ of other phones$", half.cause("odd"))
    assert half.state("a").usable


SHELF = (
    Standing(Phone("a", "A", None, SOCS["SM8650"], labels=("rack1", "12gb")), holder="bob's run"),
    Standing(Phone("b", "B", None, SOCS["SM8650"], priority=1)),
    Standing(Phone("c", "C", None, SOCS["SM8550"], capabilities=("power-meter",))),
    Standing(Phone("d", "D", None, SOCS["SM8650"], labels=("12gb",)), health=HealthState.BAD, cause="no answer"),
    Standing(Phone("e", "E", None, None), unreachable="adb says offline"),
    Standing(Phone("f", "F", None, SOCS["SM8650"], priority=5), cooling=True),
    Standing(Phone("g", "G", None, SOCS["SM8650"], priority=2)),
)


def test_selection_tells_busy_now_from_never_for_each_phone() -> None:
    found = select(Wish(soc="SM8650"), SHELF)
    assert [phone.name for phone in found.free] == ["g", "b"]
    assert found.busy["a"] == "busy: leased to bob's run"
    assert found.busy["d"].startswith("BAD: no answer; `htpfarm devices clear d`")
    assert found.busy["f"] == "busy: cooling down"
    assert found.never == {
        "c": "it has SM8550, not SM8650",
        "e": "it has no HTP, or has not said which, not SM8650",
    }
    assert [p.name for p in select(Wish(arch=73), SHELF).free] == ["c"]
    with pytest.raises(InfraError, match="free now") as busy:
        demand(Wish(soc="SM8650", labels=frozenset({"12gb"})), SHELF)
    assert "a: not now: busy: leased to bob's run" in busy.value.evidence
    assert "b: never: it lacks the label 12gb" in busy.value.evidence
    with pytest.raises(UnsupportedError, match=r"can ever meet.*capability lidar") as never:
        demand(Wish(arch=75, capabilities=frozenset({"lidar"})), SHELF)
    assert len(never.value.evidence.splitlines()) == len(SHELF)


def test_a_run_gets_the_phones_that_can_meet_its_wish_and_waits_for_those_that_are_busy() -> None:
    assert [p.name for p in meeting(ANY_PHONE, SHELF)] == list("abcdefg")
    assert [p.name for p in meeting(Wish(arch=75), SHELF)] == ["a", "b", "d", "f", "g"]
    assert [p.name for p in meeting(Wish(phones=frozenset("bc")), SHELF)] == ["b", "c"]
    with pytest.raises(UnsupportedError, match="called b") as caught:
        meeting(Wish(arch=73, phones=frozenset("b")), SHELF)
    assert "c: never: it is not b" in caught.value.evidence
    with pytest.raises(InfraError):
        meeting(Wish(arch=75, labels=frozenset({"12gb"})), SHELF)


def test_inventory_gives_racks_and_phones_their_limits(tmp_path: Path) -> None:
    path = tmp_path / "devices.yaml"
    path.write_text(
        "version: 1\nracks:\n  - name: east\n    adb: {host: 10.0.0.2, port: 6037}\n    labels: [cold]\n"
        "    limits: {hot_above_c: 50, cool_below_c: 42}\nphones:\n"
        "  - {name: a, serial: R1, rack: east, labels: [big], priority: 3, limits: {hot_above_c: 44}}\n"
        "  - {name: b, serial: R1, adb: {port: 5038}, capabilities: [meter], power_cycle: [uhubctl, -p, '3']}\n"
        "  - {name: c, virtual: galaxy_s24, rack: east}\n"
    )
    a, b, c = load_inventory(path).phones
    assert (a.adb, a.labels, a.priority) == (("10.0.0.2", 6037), ("big", "cold"), 3)
    assert (a.limits.hot_above_c, a.limits.cool_below_c) == (44.0, 42.0)
    assert (b.adb, b.capabilities, b.power_cycle) == (("127.0.0.1", 5038), ("meter",), ("uhubctl", "-p", "3"))
    assert (c.adb, c.limits.hot_above_c) == (None, 50.0)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{name: a, serial: R1, rack: est}", r"phones\[0\].rack.*did you mean east"),
        ("{name: a, serial: R1, rack: east, limits: {hot_above_c: 30}}", r"cool_below_c \(40\) is over hot_above_c"),
        ("{name: a, serial: R1, faults: [{kind: hot}]}", "only a virtual phone"),
        ("{name: a, virtual: galaxy_s24, adb: {port: 1}}", "brings its own adb server"),
        ("{name: a, serial: R1, limits: {battery_percent: 200}}", r"limits.battery_percent"),
        ("{name: a, serial: R1, labels: ['a b']}", r"labels\[0\]"),
    ],
)
def test_inventory_refuses(tmp_path: Path, line: str, words: str) -> None:
    from harness.errors import ConfigError

    path = tmp_path / "devices.yaml"
    path.write_text(f"version: 1\nracks:\n  - name: east\nphones:\n  - {line}\n")
    with pytest.raises(ConfigError, match=words):
        load_inventory(path)


# --- virtual phones


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rack")


@pytest.fixture(scope="module")
def rack(folder: Path) -> Iterator[RackState]:
    with farm_rack.running_rack(folder, {"s24": "galaxy_s24"}) as state:
        yield state


@pytest.fixture
def link(rack: RackState, folder: Path) -> Iterator[PhoneLink]:
    yield link_to(rack, "s24")
    manage.mend(folder)
    clear("s24", state_dir=folder)


def phone(**changes: object) -> Phone:
    return replace(Phone("s24", None, PHONE_KINDS["galaxy_s24"], SOCS["SM8650"], limits=LIMITS), **changes)  # type: ignore[arg-type]


def nurse(tmp_path: Path, folder: Path, **changes: object) -> Nurse:
    made = Nurse(
        HealthBook(tmp_path / "health"), mend_server=lambda: manage.mend(folder), patience=PATIENCE, poll_s=0.2
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def ends(name: str, folder: Path, cue: str) -> Callable[[str, str], None]:
    """A nurse's `say` that ends a phone's faults when it hears a word."""

    def say(_name: str, what: str) -> None:
        if cue in what:
            with suppress(InfraError):  # without its adb server a rack is none
                clear(name, state_dir=folder)

    return say


def answers(link: PhoneLink) -> bool:
    try:
        return link.state() == "device"
    except InfraError:  # no adb server
        return False


def test_a_phone_is_looked_at_before_it_is_used(link: PhoneLink, folder: Path, tmp_path: Path) -> None:
    deep: list[str] = []
    care = nurse(tmp_path, folder, deep_check=lambda phone, _: deep.append(phone.name) is None)
    for _ in range(2):
        vitals, _left = prepare(care, phone(), link)
    assert vitals.booted
    assert 20 < (vitals.celsius or 0) < 40
    assert care.book.state(link.serial) is HealthState.GOOD
    assert deep == ["s24"]  # a GOOD phone is not asked to prove its HTP again


def test_a_deep_check_that_fails_keeps_the_phone_unknown(link: PhoneLink, folder: Path, tmp_path: Path) -> None:
    def no_htp(_phone: Phone, _link: PhoneLink) -> None:
        raise InfraError("the HTP does not answer")

    care = nurse(tmp_path, folder, deep_check=no_htp)
    with pytest.raises(InfraError, match="HTP does not answer"):
        prepare(care, phone(), link)
    assert care.book.state(link.serial) is HealthState.UNKNOWN


@pytest.mark.parametrize(
    ("error", "raised", "state"),
    [
        (HtpError("it gives this instead of that"), InfraError, HealthState.BAD),
        (CrashError("the phone rebooted"), InfraError, HealthState.UNKNOWN),
        (EnvError("storage full"), EnvError, HealthState.UNKNOWN),
    ],
)
def test_only_a_wrong_htp_makes_a_phone_bad(
    link: PhoneLink, folder: Path, tmp_path: Path, error: HarnessError, raised: type[HarnessError], state: HealthState
) -> None:
    def check(_phone: Phone, _link: PhoneLink) -> None:
        raise error

    care = nurse(tmp_path, folder, deep_check=check)
    with pytest.raises(raised, match=error.what):
        prepare(care, phone(), link)
    assert care.book.state(link.serial) is state
    assert (error.what in care.book.cause(link.serial)) is (state is HealthState.BAD)


def test_a_phone_that_was_brought_back_proves_its_htp_again(link: PhoneLink, folder: Path, tmp_path: Path) -> None:
    deep: list[str] = []
    care = nurse(
        tmp_path,
        folder,
        deep_check=lambda phone, _: deep.append(phone.name) is None,
        say=ends("s24", folder, "does not answer"),
    )
    care.book.set_state(link.serial, HealthState.GOOD, "seen")
    arm("s24", FaultSpec(FaultKind.OFFLINE, seconds=NEVER_S), state_dir=folder)
    until(lambda: link.state() != "device")
    prepare(care, phone(), link)
    assert deep == ["s24"]


def test_a_hot_phone_cools_before_it_is_used_or_is_passed_over(link: PhoneLink, folder: Path, tmp_path: Path) -> None:
    care = nurse(tmp_path, folder, say=ends("s24", folder, "waiting"))
    arm("s24", FaultSpec(FaultKind.HOT, seconds=NEVER_S), state_dir=folder)
    until(lambda: (read_vitals(link).celsius or 0) > 90)
    with pytest.raises(NotFitError, match=r"too hot: 95\.0 degrees"):
        prepare(care, phone(), link, wait=False)
    assert care.book.cooling(link.serial)
    assert care.book.just_hot(link.serial)
    vitals, _ = prepare(care, phone(), link)
    assert (vitals.celsius or 99) < 40
    assert not care.book.cooling(link.serial)
    arm("s24", FaultSpec(FaultKind.BATTERY, seconds=NEVER_S), state_dir=folder)
    until(lambda: read_vitals(link).battery_percent == 3)
    with pytest.raises(EnvError, match=r"battery at 3%.*within 0.5 s"):
        prepare(replace(care, say=lambda *_: None), phone(limits=Limits(cool_limit_s=0.5)), link)
    assert care.book.state(link.serial) is HealthState.GOOD  # an empty battery is no ailment of the phone's


@pytest.mark.parametrize("kind", [FaultKind.OFFLINE, FaultKind.GARBAGE, FaultKind.ADB_DOWN])
def test_the_ladder_brings_a_phone_back(link: PhoneLink, folder: Path, tmp_path: Path, kind: FaultKind) -> None:
    care = nurse(tmp_path, folder, say=ends("s24", folder, "does not answer"))
    before = len(read_faults(folder))
    arm("s24", FaultSpec(kind, seconds=NEVER_S), state_dir=folder)
    until(lambda: read_faults(folder)[before:])
    if kind is not FaultKind.GARBAGE:  # which adb may have got over already
        until(lambda: not answers(link))
    vitals, _ = prepare(care, phone(), link)
    assert vitals.booted
    assert care.book.state(link.serial) is HealthState.GOOD


def test_a_phone_whose_shell_hangs_is_rebooted_three_times_and_then_bad(
    link: PhoneLink, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness.farm.recover
    import harness.farm.vitals

    monkeypatch.setattr(harness.farm.recover, "SWEEP_SECONDS", 1.0)
    monkeypatch.setattr(harness.farm.vitals, "VITALS_SECONDS", 1.0)
    quick = Patience(settle_s=1.0, boot_s=3.0)
    care = nurse(tmp_path, folder, patience=quick)
    arm("s24", FaultSpec(FaultKind.HANG_SHELL, rate=1.0, count=None), state_dir=folder)
    marker = tmp_path / "power"
    cycled = phone(power_cycle=("touch", str(marker)))
    with pytest.raises(InfraError, match="does not come back") as caught:
        prepare(care, cycled, link)
    assert marker.exists()
    steps = [line.partition(":")[0] for line in caught.value.evidence.splitlines()]
    assert steps == [
        "adb server", "adb reconnect", "transport reset", "reboot 1", "reboot 2", "reboot 3", "power cycle"
    ]  # fmt: skip
    assert care.book.state(link.serial) is HealthState.BAD
    clear("s24", state_dir=folder)
    with pytest.raises(InfraError, match=r"the phone is BAD.*nothing helped"):
        prepare(care, phone(), link)
    care.book.clear(link.serial)
    monkeypatch.undo()
    prepare(nurse(tmp_path, folder), phone(), link)
    assert care.book.state(link.serial) is HealthState.GOOD


def test_evidence_of_a_failure_is_a_folder(link: PhoneLink, tmp_path: Path) -> None:
    with journal() as commands:
        link.must("log -t runner it broke")
        link.shell("echo out; echo err >&2; exit 3")
    link.must("echo not kept")
    written = collect(link, tmp_path / "evidence", commands)
    assert set(written) == {p.name for p in (tmp_path / "evidence").iterdir()}
    assert {"commands.txt", "vitals.json", "logcat.txt", "dmesg.txt", "tombstones.txt", "properties.txt"} <= set(
        written
    )
    text = (tmp_path / "evidence" / "commands.txt").read_text()
    assert "$ echo out; echo err >&2; exit 3\nout\nerr\n-> status 3" in text
    assert "not kept" not in text
    assert "it broke" in (tmp_path / "evidence" / "logcat.txt").read_text()
    assert "[ro.soc.model]: [SM8650]" in (tmp_path / "evidence" / "properties.txt").read_text()


def test_evidence_of_a_phone_that_is_away_is_what_was_asked_of_it(tmp_path: Path) -> None:
    away = PhoneLink("127.0.0.1:1")
    with journal() as commands, pytest.raises(InfraError):
        away.shell("true")
    assert collect(away, tmp_path, commands) == ("commands.txt",)


# --- leases

HOLDER = """
import sys, time
from pathlib import Path
from harness.farm.lease import Owner, acquire
lease = acquire("R3", Owner.this_process("run-a", deadline=time.time() + 60), lease_dir=Path(sys.argv[1]))
print("held", flush=True)
time.sleep(3600)
"""


def test_a_lease_beats_and_can_be_broken(tmp_path: Path) -> None:
    service = HostLeases(tmp_path)
    assert service.break_lease("R3") == ()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        (holder,) = service.holders()
        assert holder.owner
        assert (holder.owner.run_id, holder.serial) == ("run-a", "R3")
        assert holder.owner.deadline
        first = holder.heartbeat
        until(lambda: holders(tmp_path)[0].heartbeat > first)
        assert break_lease("R3", lease_dir=tmp_path) == (process.pid,)
        process.wait(timeout=HANG_S)
    with service.acquire_any(["R3"], Owner.this_process("b")) as lease:
        assert lease.serial == "R3"


def test_breaking_ends_a_child_that_keeps_a_dead_holders_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "process_iter", lambda: iter(own_processes()))  # nobody else's is within reach
    held = acquire("R3", Owner.this_process("x"), lease_dir=tmp_path)
    child = subprocess.Popen(["sleep", "3600"], pass_fds=[held._descriptor])
    os.close(held._descriptor)  # as if this process had died: the child has the lock still
    held._descriptor = -1
    try:
        (tmp_path / "R3.lock").write_text("")
        assert break_lease("R3", lease_dir=tmp_path) == (child.pid,)
    finally:
        child.kill()
        child.wait()


# --- the loop


def test_the_loop_runs_all_and_gives_up_what_only_lost_phones_could_run() -> None:
    ran: list[tuple[str, str]] = []
    lost: set[str] = set()
    lock = threading.Lock()

    def run_one(job: Job, where: str) -> None:
        with lock:
            ran.append((job.id, where))
            if where == "bad":
                lost.add("bad")

    jobs = [Job(f"a{i}", "S", 1.0) for i in range(20)] + [Job(f"b{i}", "T", 1.0) for i in range(3)]
    slots = [Slot("one", "S"), Slot("two", "S"), Slot("bad", "T")]
    stranded = FarmLoop(jobs, slots, run_one, lost=lambda name: name in lost).run()
    assert sorted(job for job, _ in ran if job.startswith("a")) == sorted(f"a{i}" for i in range(20))
    assert len([job for job, where in ran if where == "bad"]) == 1
    assert len(stranded) == 2


def test_people_put_phones_aside_and_back(
    rack: RackState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HTPFARM_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "devices.yaml"
    file.write_text(
        f"version: 1\nadb: {{port: {rack.adb_port}}}\nphones:\n"
        f"  - {{name: lab, serial: '{rack.phones[0].serial}'}}\n  - {{name: gone, serial: R3CX}}\n"
    )

    def cli(*words: str) -> tuple[int, object]:
        status = main([*words, "--rack", str(file), "--json"])
        return status, json.loads(capsys.readouterr().out)

    status, rows = cli("devices")
    assert status == 3
    lab, gone = rows  # type: ignore[misc]
    assert (lab["usable"], lab["soc"], lab["health"], lab["lease"]) == (True, "SM8650", "UNKNOWN", "free")
    assert (gone["usable"], gone["soc"]) == (False, "")
    assert "not there" in gone["note"]
    assert cli("devices", "maintenance", "lab", "--why", "new screen")[1] == {
        "phone": "lab", "before": "UNKNOWN", "now": "MAINTENANCE"
    }  # fmt: skip
    assert cli("devices")[1][0]["note"] == "new screen"  # type: ignore[index]
    cli("devices", "clear", "lab")
    assert [event["state"] for event in cli("devices", "log", "lab")[1]] == ["MAINTENANCE", "UNKNOWN"]  # type: ignore[attr-defined]
    with acquire(rack.phones[0].serial, Owner.this_process("mine")):
        (held,) = cli("lease", "ls")[1]  # type: ignore[misc]
        assert held["owner"]["run_id"] == "mine"
        assert "run mine" in cli("devices")[1][0]["lease"]  # type: ignore[index]
    assert cli("lease", "break", "lab")[1] == {"phone": "lab", "ended": []}
    assert main(["devices", "clear", "lap", "--rack", str(file)]) == 2
    assert "lab" in capsys.readouterr().err
