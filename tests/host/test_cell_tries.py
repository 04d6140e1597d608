"""One try of a cell on near phones: which one is asked, whom a failure is blamed on, what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from near_phone import attached, listening, near_phone

from harness.build.cache import Artifact
from harness.conduct import run_attempt as one_attempt
from harness.conduct import run_cell as module
from harness.conduct.attempt import Attempt, Bench
from harness.conduct.run_cell import (
    Tried,
    fit_phone,
    keep_evidence,
    run_cell,
    try_once,
)
from harness.conduct.speed_witness import Witnessed, speed_check
from harness.errors import EnvError, FailureClass, InfraError, ProductError
from harness.evaluate.choice import EvalChoice
from harness.evaluate.host import Host
from harness.evaluate.judge import Verdict, make_check
from harness.farm.connect import AdbServer
from harness.farm.failures import Failure
from harness.farm.health import HealthBook, HealthState
from harness.farm.identity import AttachedPhone
from harness.farm.journal import journal
from harness.farm.lease import Owner, acquire, holders
from harness.farm.lease_service import HeldLease, HostLeases
from harness.farm.moments import Claim
from harness.farm.prepare import Nurse
from harness.farm.rescue import Patience
from harness.farm.workspace import RUN
from harness.inventory import Limits
from harness.matrix import Cell, cells
from harness.model_file import Mode
from harness.models import load_models
from harness.paths import MODELS
from harness.results.records import CheckRecord, DeployRecord, Record, Status
from harness.soc import SOCS
from harness.target import Target

INFRA, CRASH, PRODUCT, ENV = FailureClass.INFRA, FailureClass.CRASH, FailureClass.PRODUCT, FailureClass.ENV
BROKEN = Failure(PRODUCT, "the text is another one", "compare it", "log")


@pytest.fixture(scope="module")
def cell() -> Cell:
    (made,) = cells([load_models(MODELS)["tiny_llama"]], [Mode.KV], [SOCS["SM8650"]])
    return made


def artifact(folder: Path) -> Artifact:
    return Artifact("none", folder / "none.pte", folder, {})


@dataclass
class Rack:
    """Near phones of one SoC on one bench, and what was said, recorded and asked of the leases."""

    bench: Bench
    phones: tuple[AttachedPhone, ...]
    said: list[tuple[str, str]]
    recorded: list[Record]
    leases: AskedLeases

    @property
    def book(self) -> HealthBook:
        return self.bench.nurse.book

    def attempts(self, name: str) -> list[str]:
        """How attempts on a phone went, by its log."""
        return [event.cause for event in self.book.events(f"serial-{name}") if event.event == "attempt"]


@dataclass(frozen=True)
class AskedLeases(HostLeases):
    """This host's leases, and what was asked of them: serials in order, owner, seconds to wait."""

    asked: list[tuple[list[str], Owner, float]] = field(default_factory=list)

    def acquire_any(self, serials: Sequence[str], owner: Owner, *, wait_s: float = 0.0, **more: object) -> HeldLease:  # type: ignore[override]
        self.asked.append((list(serials), owner, wait_s))
        return super().acquire_any(serials, owner, wait_s=wait_s)


@contextmanager
def rack(folder: Path, *phone_names: str, limits: Limits | None = None, **changes: object):  # type: ignore[no-untyped-def]
    with listening() as server:
        phones = tuple(
            attached(
                near_phone(folder / name, f"serial-{name}", server), name, limits=limits or Limits(cool_limit_s=0.0)
            )
            for name in phone_names
        )
        said, recorded, leases = list[tuple[str, str]](), list[Record](), AskedLeases(folder / "leases")
        nurse = Nurse(HealthBook(folder / "health"), patience=Patience(settle_s=0.0, boot_s=0.0), poll_s=0.01)
        bench = Bench(
            "run-1",
            folder / "run",
            phones,
            recorded.append,
            lambda name, what: said.append((name, what)),
            Target.SIM,
            EvalChoice(),
            Host(),
            replace(nurse, **changes),  # type: ignore[arg-type]
            leases,
        )
        yield Rack(bench, phones, said, recorded, leases)


def on(taken: list[str], *results: Failure | Exception | None) -> Callable[[Attempt], Failure | None]:
    """An attempt that notes its phone and ends as told."""
    left = list(results)

    def attempt(one: Attempt) -> Failure | None:
        taken.append(one.phone.phone.name)
        result = left.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    return attempt


def tried(rack: Rack, cell: Cell, *results: Failure | Exception | None, **more: object) -> tuple[Tried, list[str]]:
    taken: list[str] = []
    values = {"avoid": (), "number": 1} | more
    return try_once(rack.bench, cell, artifact(rack.bench.folder), run=on(taken, *results), **values), taken  # type: ignore[arg-type]


def heat(phone: AttachedPhone, celsius: float) -> None:
    (phone.link.root / "tenths").write_text(f"{celsius * 10:.0f}\n")  # type: ignore[attr-defined]


def test_a_try_runs_on_a_phone_that_is_leased_for_the_run_and_free_afterwards(tmp_path: Path, cell: Cell) -> None:
    with rack(tmp_path, "a") as there:
        seen: list[object] = []

        def attempt(one: Attempt) -> None:
            (held,) = holders(tmp_path / "leases")
            seen.extend([held.serial, held.owner and held.owner.run_id, one.number, one.cell, one.artifact, one.bench])

        made = artifact(tmp_path)
        found = try_once(there.bench, cell, made, 7, (), run=attempt)
        assert found == Tried(None, "a", None, False)
        assert seen == ["serial-a", "run-1", 7, cell, made, there.bench]
        assert holders(tmp_path / "leases") == ()
        assert there.leases.asked[0][2] == 3600.0  # it waits an hour for a phone
        assert there.attempts("a") == [""]
        assert there.book.state("serial-a") is HealthState.GOOD
        assert there.said == [("", f"{cell.id}: waiting for a phone")]
        assert not (tmp_path / "run").exists()  # no evidence of what went well


def test_a_failed_try_keeps_evidence_and_says_where(tmp_path: Path, cell: Cell) -> None:
    with rack(tmp_path, "a") as there:

        def attempt(one: Attempt) -> Failure:
            one.phone.link.shell("echo heard")
            return BROKEN

        found = try_once(there.bench, cell, artifact(tmp_path), 2, (), run=attempt)
        place = f"cells/{cell.id}/2-evidence"
        assert found == Tried(BROKEN, "a", place, False)
        assert (tmp_path / "run" / place / "vitals.json").exists()
        assert "$ echo heard\nheard\n" in (tmp_path / "run" / place / "commands.txt").read_text()
        assert there.attempts("a") == ["PRODUCT"]


def test_a_try_that_fails_of_too_big_a_context_says_how_many_shards_mend_it(
    tmp_path: Path, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "read_info", lambda _: SimpleNamespace(delegate=None))
    with rack(tmp_path, "a") as there:
        found, _ = tried(there, cell, Failure(ENV, "too big", "use more shards", "log", "dsp-memory"))
    assert found.failure
    assert found.failure.remedy.startswith("use more shards: set shards: 2 in model.yaml")


def test_what_a_try_raises_is_its_failure(tmp_path: Path, cell: Cell) -> None:
    with rack(tmp_path, "a") as there:
        found, taken = tried(there, cell, ProductError("wrong", where="here", remedy="look", evidence="log"))
        assert found.failure == Failure(PRODUCT, "here: wrong", "look", "log")
        assert (found.phone, taken) == ("a", ["a"])
        assert found.evidence
        odd, _ = tried(there, cell, ZeroDivisionError("oops"))
        assert odd.failure == Failure(PRODUCT, "ZeroDivisionError: oops")


def test_a_try_that_came_to_no_phone_names_none(tmp_path: Path, cell: Cell) -> None:
    with rack(tmp_path, "a") as there:
        with acquire("serial-a", Owner.this_process("other"), lease_dir=tmp_path / "leases"):
            found, taken = tried(there, cell, None, lease_wait_s=0.0)
        assert found.failure
        assert (found.failure.failure_class, found.phone, found.evidence, found.unfit) == (INFRA, None, None, False)
        assert found.failure.reason == "serial-a: no phone is free"
        assert taken == []
        assert there.attempts("a") == []


def test_who_was_meant_who_failed_and_who_crashed_decide_who_is_asked(tmp_path: Path, cell: Cell) -> None:
    with rack(tmp_path, "a", "b") as there:
        assert tried(there, cell, None)[1] == ["a"]
        assert tried(there, cell, None, first="b")[1] == ["b"]
        assert tried(there, cell, None, avoid=("a",))[1] == ["b"]
        there.leases.asked.clear()
        tried(there, cell, None, crashed={"a"})
        assert [serials for serials, _, _ in there.leases.asked] == [["serial-b"]]
        there.book.maintain("serial-a", "new screen")
        assert tried(there, cell, None, first="a")[1] == ["b"]


INFRA_FAILURE = Failure(INFRA, "lost")


@pytest.mark.parametrize("failure", [INFRA_FAILURE, Failure(CRASH, "it rebooted")])
def test_a_phone_is_blamed_while_its_adb_server_lives(tmp_path: Path, cell: Cell, failure: Failure) -> None:
    with rack(tmp_path, "a") as there:
        tried(there, cell, failure)
        assert there.attempts("a") == [failure.failure_class]
        assert there.book.cause("serial-a") == f"an attempt failed: {failure.failure_class}"
        assert there.book.state("serial-a") is HealthState.UNKNOWN


@pytest.mark.parametrize("failure", [INFRA_FAILURE, Failure(CRASH, "it rebooted")])
def test_a_phone_is_not_blamed_for_an_adb_server_that_was_started_again(
    tmp_path: Path, cell: Cell, failure: Failure
) -> None:
    marks = iter(range(9))
    with rack(tmp_path, "a", server_mark=lambda: next(marks)) as there:
        tried(there, cell, failure)
        assert there.attempts("a") == []
        assert there.book.state("serial-a") is HealthState.UNKNOWN
        assert there.book.cause("serial-a") == "the adb server ended"


def test_a_phone_is_not_blamed_for_an_adb_server_that_does_not_answer(tmp_path: Path, cell: Cell) -> None:
    with rack(tmp_path, "a") as there:
        gone = replace(there.phones[0], link=replace(there.phones[0].link, server=AdbServer("127.0.0.1", 1)))
        there.bench = replace(there.bench, phones=(gone,))
        tried(there, cell, INFRA_FAILURE)
        assert there.attempts("a") == []
        assert there.book.cause("serial-a") == "the adb server ended"
        for failure in (BROKEN, None):  # what the server has no part in
            tried(there, cell, failure)
        assert there.attempts("a") == ["PRODUCT", ""]
        assert there.book.state("serial-a") is HealthState.GOOD


def test_a_hot_phone_is_passed_over_for_another_one_and_not_blamed(tmp_path: Path, cell: Cell) -> None:
    with rack(tmp_path, "a", "b") as there:
        heat(there.phones[0], 95)
        found, taken = tried(there, cell, None)
        assert (found, taken) == (Tried(None, "b"), ["b"])
        assert [serials for serials, _, _ in there.leases.asked] == [["serial-a", "serial-b"], ["serial-b"]]
        assert there.said[1] == ("a", "too hot: 95.0 degrees, the limit is 45; another phone is asked")
        assert there.attempts("a") == []
        assert there.book.just_hot("serial-a")
        there.leases.asked.clear()
        tried(there, cell, None)
        assert there.leases.asked[0][0] == ["serial-b", "serial-a"]  # it is not worth asking again yet


def test_the_last_phone_left_is_waited_for_unless_told_otherwise(tmp_path: Path, cell: Cell) -> None:
    with rack(tmp_path, "a", "b") as there:
        for phone in there.phones:
            heat(phone, 95)
        found, _ = tried(there, cell, None)
        assert found.failure
        assert (found.failure.failure_class, found.unfit) == (ENV, False)
        assert "nothing changed that within 0 s" in found.failure.reason
        found, _ = tried(there, cell, None, wait_fit=False)
        assert found.failure
        assert (found.failure.failure_class, found.unfit) == (ENV, True)
        assert "nothing changed" not in found.failure.reason
        heat(there.phones[0], 30)
        assert tried(there, cell, None, wait_fit=False)[1] == ["a"]


def test_a_phone_is_waited_for_unless_told_otherwise(tmp_path: Path) -> None:
    with rack(tmp_path, "a") as there:
        heat(there.phones[0], 95)
        with pytest.raises(EnvError, match="nothing changed that"), fit_phone(there.bench, there.phones, 0.0):
            pass
        heat(there.phones[0], 30)
        with fit_phone(there.bench, there.phones, 0.0) as phone:
            assert phone is there.phones[0]


def silent(phone: AttachedPhone) -> None:
    """It answers nothing any more."""

    def gone(line: str) -> None:
        raise InfraError("it is mute", where=phone.link.serial)

    phone.link.before.append(gone)  # type: ignore[attr-defined]


def test_a_phone_that_does_not_answer_is_blamed_and_another_one_is_asked(tmp_path: Path, cell: Cell) -> None:
    with rack(tmp_path, "a", "b") as there:
        silent(there.phones[0])
        assert tried(there, cell, None) == (Tried(None, "b"), ["b"])
        assert there.attempts("a") == ["INFRA"]
        assert there.book.state("serial-a") is HealthState.BAD
        silent(there.phones[1])
        found, taken = tried(there, cell, None)
        assert found.failure
        assert (found.failure.failure_class, found.phone, taken) == (INFRA, None, [])
        assert there.attempts("b") == ["", "INFRA"]


def test_a_phone_whose_adb_server_does_not_answer_is_not_blamed(tmp_path: Path, cell: Cell) -> None:
    with rack(tmp_path, "a") as there:
        silent(there.phones[0])
        gone = replace(there.phones[0], link=replace(there.phones[0].link, server=AdbServer("127.0.0.1", 1)))
        there.bench = replace(there.bench, phones=(gone,))
        found, _ = tried(there, cell, None)
        assert found.failure
        assert "adb server does not answer" in found.failure.reason
        assert there.attempts("a") == []


def test_what_a_dead_run_left_is_removed_and_told(tmp_path: Path, cell: Cell) -> None:
    with rack(tmp_path, "a") as there:
        left = there.phones[0].link.place(f"{RUN}/old-1")
        left.mkdir(parents=True)
        tried(there, cell, None)
        assert not left.exists()
        ((name, what),) = there.said[1:]
        assert (name, what.startswith("removed what a dead run left: ")) == ("a", True)
        assert str(left) in what


def test_evidence_is_all_that_was_asked_of_the_phone(tmp_path: Path, cell: Cell) -> None:
    with rack(tmp_path, "a") as there:
        with journal() as commands:
            there.phones[0].link.shell("echo heard")
        place = keep_evidence(there.bench, cell, there.phones[0], 3, commands)
        assert place == f"cells/{cell.id}/3-evidence"
        assert "$ echo heard\nheard\n-> status 0" in (tmp_path / "run" / place / "commands.txt").read_text()


def test_a_cell_is_tried_with_all_that_it_was_given(tmp_path: Path, cell: Cell) -> None:
    with rack(tmp_path, "a", "b") as there:
        bench = replace(there.bench, attempts_before={cell.id: 3, "other": 9})
        taken: list[str] = []
        numbers: list[int] = []
        ends = on(taken, INFRA_FAILURE, Failure(CRASH, "it rebooted"), None)

        def attempt(one: Attempt) -> Failure | None:
            numbers.append(one.number)
            return ends(one)

        outcome = run_cell(bench, cell, artifact(tmp_path), 5.0, first="b", run=attempt)
        assert (taken, numbers) == (["b", "a", "b"], [4, 5, 6])  # a crashed last, and is not asked again
        assert (outcome.status, outcome.attempts, outcome.phone) == (Status.PASSED, 6, "b")
        assert there.recorded == [outcome]
        assert {wait for _, _, wait in there.leases.asked} == {5.0}
        assert there.leases.asked[-1][0] == ["serial-b"]
        there.leases.asked.clear()
        outcome = run_cell(there.bench, cell, artifact(tmp_path), run=on([], None))
        assert (outcome.attempts, there.leases.asked[0][2]) == (1, 3600.0)


OPERATORS = pytest.mark.parametrize("operators", [(), ("aten::layer_norm.out",)])
LEFT = "whole_on_htp: left to the CPU: aten::layer_norm.out"


def attempted(
    folder: Path, cell: Cell, artifact: Artifact, patch: pytest.MonkeyPatch, operators: tuple[str, ...]
) -> tuple[Failure | None, list[CheckRecord]]:
    """What an attempt comes to with a program of these operators, and its checks; there is no prompt."""
    patch.setattr(one_attempt, "run_prompts", lambda *_: [])
    patch.setattr(one_attempt, "read_info", lambda _: SimpleNamespace(operators=operators))
    with rack(folder, "a") as there:
        failure = one_attempt.run_attempt(Attempt(there.bench, cell, artifact, there.phones[0], 3))
    deployed, *checks = there.recorded
    assert isinstance(deployed, DeployRecord)
    found = [check for check in checks if isinstance(check, CheckRecord)]
    assert found == checks
    assert {check.attempt for check in found} == {3}
    return failure, found


@OPERATORS
def test_a_program_that_leaves_work_to_the_cpu_fails_though_all_else_passes(
    tmp_path: Path, cell: Cell, scripted_artifact: Artifact, monkeypatch: pytest.MonkeyPatch, operators: tuple[str, ...]
) -> None:
    text, score = (make_check(cell.id, name, Verdict.PASSED, "as QDQ", 0.0, 0.02) for name in ("text", "ppl"))
    turns = Witnessed((Claim("TTFT", "of turn 0", 500.0, 501.0, 2.0),))
    monkeypatch.setattr(one_attempt, "judge_replies", lambda *_: ([text], []))
    monkeypatch.setattr(one_attempt, "measure_accuracy", lambda *_: ([score], turns))
    failure, (whole, *others) = attempted(tmp_path, cell, scripted_artifact, monkeypatch, operators)
    expected = "FAILED" if operators else "PASSED"
    assert (whole.name, whole.passed, whole.verdict) == ("whole_on_htp", not operators, expected)
    assert others == [replace(one, attempt=3) for one in (text, score, speed_check(cell.id, [turns]))]
    assert {one.verdict for one in others} == {"PASSED"}
    assert failure == (Failure(PRODUCT, LEFT) if operators else None)


@OPERATORS
def test_without_a_witness_nothing_passes_and_work_that_is_left_to_the_cpu_is_still_the_products_fault(
    tmp_path: Path, cell: Cell, scripted_artifact: Artifact, monkeypatch: pytest.MonkeyPatch, operators: tuple[str, ...]
) -> None:
    failure, checks = attempted(tmp_path, cell, scripted_artifact, monkeypatch, operators)
    assert [(check.name, check.verdict) for check in checks] == [
        ("whole_on_htp", "FAILED" if operators else "PASSED"),
        ("witness", "NOT_JUDGED"),
    ]
    assert failure is not None
    if operators:
        assert failure == Failure(PRODUCT, LEFT)
    else:
        assert failure.failure_class is FailureClass.NOT_JUDGED
        assert "the artifact has no witness" in failure.reason
