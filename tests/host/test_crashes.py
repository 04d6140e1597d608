"""Phones that reboot under a cell: whose fault that is, as far as the phones there are can tell."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import farm_rack
import pytest
from events import HANG_S, until
from farm_rack import GOOD_RUNNER, NAPS, deploy_runner, link_to

from harness.build.cache import Artifact
from harness.conduct.attempt import Attempt, Bench
from harness.conduct.run_cell import run_cell
from harness.errors import FailureClass, InfraError
from harness.evaluate.choice import EvalChoice
from harness.evaluate.host import Host
from harness.farm.connect import PhoneLink
from harness.farm.failures import Failure, classify
from harness.farm.health import HealthBook, HealthState
from harness.farm.identity import AttachedPhone, identify
from harness.farm.lease import Owner, acquire
from harness.farm.lease_service import HostLeases
from harness.farm.prepare import Nurse
from harness.farm.rescue import Patience
from harness.farm.session import run_session
from harness.farm.vitals import read_vitals
from harness.inventory import Phone
from harness.matrix import cells
from harness.model_file import Mode
from harness.models import load_models
from harness.paths import MODELS
from harness.rack.fault_cli import arm, clear
from harness.rack.faults import FaultKind, FaultSpec
from harness.rack.manage import RackState
from harness.results.records import Record, Status
from harness.soc import PHONE_KINDS, SOCS
from harness.target import Target

KINDS = {"one": "galaxy_s24", "two": "oneplus_12"}  # both SM8650


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rack")


@pytest.fixture(scope="module")
def rack(folder: Path) -> Iterator[RackState]:
    with farm_rack.running_rack(folder, KINDS) as state:
        yield state


@pytest.fixture
def phones(rack: RackState, folder: Path) -> Iterator[tuple[AttachedPhone, ...]]:
    found = []
    for running in rack.phones:
        link = link_to(rack, running.name)
        spec = Phone(running.name, None, PHONE_KINDS[running.kind], SOCS["SM8650"])
        found.append(AttachedPhone(spec, link, identify(link)))
    yield tuple(found)
    for name in KINDS:
        clear(name, state_dir=folder)


NEVER_ENDS = f"#!/bin/sh\nexec sleep 3600{NAPS}\n"


def reboots(folder: Path, *names: str) -> None:
    """From now on these phones reboot under every runner: theirs never ends by itself, see `carried_out`."""
    for name in names:
        arm(name, FaultSpec(FaultKind.REBOOT, rate=1.0, count=None, match="exec "), state_dir=folder)


def carried_out(
    tmp_path: Path,
    phones: Sequence[AttachedPhone],
    rebooting: Collection[str],
    *,
    pinned: str | None = None,
    say: Callable[[str, str], None] = lambda _name, _what: None,
) -> tuple[object, list[str], Bench]:
    """A cell by real sessions of a scripted runner: its outcome, the phones it was on in order, its bench."""
    kept: list[Record] = []
    nurse = Nurse(HealthBook(tmp_path / "health"), patience=Patience(settle_s=30.0, boot_s=HANG_S), poll_s=0.2)
    bench = Bench(
        *("test", tmp_path, tuple(phones), kept.append, say, Target.SIM, EvalChoice(), Host()),
        nurse,
        HostLeases(tmp_path / "leases"),
    )
    (cell,) = cells([load_models(MODELS)["tiny_llama"]], [Mode.KV], [SOCS["SM8650"]])
    on: list[str] = []

    def attempt(one: Attempt) -> Failure | None:
        on.append(one.phone.phone.name)
        runner = NEVER_ENDS if one.phone.phone.name in rebooting else GOOD_RUNNER
        deployed = deploy_runner(one.phone.link, tmp_path, runner)
        spec = farm_rack.session(one.number, outputs=("outputs.txt",))
        return classify(run_session(one.phone.link, deployed, spec, tmp_path / "out"))

    artifact = Artifact("none", tmp_path / "none.pte", tmp_path, {})
    return run_cell(bench, replace(cell, phone=pinned), artifact, HANG_S, run=attempt), on, bench


def strikes(bench: Bench, phone: AttachedPhone) -> list[str]:
    return [event.cause for event in bench.nurse.book.events(phone.link.serial) if event.event == "attempt"]


@pytest.mark.parametrize(
    "choose",
    [lambda phones: (phones, "one"), lambda phones: (phones[:1], None)],
    ids=["pinned to it", "the only one of its SoC"],
)
def test_two_crashes_of_the_only_phone_decide_nothing(
    phones: tuple[AttachedPhone, ...], folder: Path, tmp_path: Path, choose: Callable
) -> None:
    reboots(folder, "one")
    there, pinned = choose(phones)
    outcome, on, bench = carried_out(tmp_path, there, {"one"}, pinned=pinned)
    assert on == ["one", "one"]
    assert (outcome.status, outcome.failure_class, outcome.attempts) == (Status.ERROR, FailureClass.CRASH, 2)
    assert "each time on the same phone: the product or one" in outcome.reason
    assert "run the cell on another phone" in outcome.remedy
    assert strikes(bench, phones[0]) == ["CRASH", "CRASH"]
    assert bench.nurse.book.state(phones[0].link.serial) is HealthState.UNKNOWN


def test_crashes_of_two_phones_are_the_products(
    phones: tuple[AttachedPhone, ...], folder: Path, tmp_path: Path
) -> None:
    reboots(folder, "one", "two")
    outcome, on, _ = carried_out(tmp_path, phones, {"one", "two"})
    assert sorted(on) == ["one", "two"]
    assert (outcome.status, outcome.failure_class) == (Status.FAILED, FailureClass.PRODUCT)


def test_after_a_crash_a_busy_phone_is_waited_for_and_tells(
    phones: tuple[AttachedPhone, ...], folder: Path, tmp_path: Path
) -> None:
    reboots(folder, "one")
    lease = acquire(phones[1].link.serial, Owner.this_process("other"), lease_dir=tmp_path / "leases")
    again = threading.Event()

    def say(_name: str, what: str) -> None:
        if "trying again" in what:
            again.set()

    def back(link: PhoneLink) -> bool:
        with suppress(InfraError):
            return read_vitals(link).booted
        return False

    def release() -> None:
        assert again.wait(HANG_S)
        until(lambda: back(phones[0].link))  # "one" is back and free, and no phone to wait for
        lease.release()

    holder = threading.Thread(target=release)
    holder.start()
    outcome, on, bench = carried_out(tmp_path, phones, {"one"}, say=say)
    holder.join()
    assert on == ["one", "two"]
    assert (outcome.status, outcome.phone) == (Status.PASSED, "two")
    assert strikes(bench, phones[0]) == ["CRASH"]
