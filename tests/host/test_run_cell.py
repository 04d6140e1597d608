"""A cell from its phones to its outcome: which phone is asked, whom a failure is blamed on, what is recorded."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from lease_support import Clock
from near_phone import NearPhone, attached

from harness.build.cache import Artifact
from harness.conduct import run_cell as module
from harness.conduct.run_cell import (
    Tried,
    advised,
    fitting,
    not_built,
    settle,
)
from harness.errors import BuildError, EnvError, FailureClass, InfraError
from harness.farm.connect import AdbServer
from harness.farm.failures import Failure
from harness.farm.health import HealthBook, HealthState
from harness.farm.identity import AttachedPhone
from harness.matrix import Cell, cells
from harness.model_file import Mode
from harness.models import load_models
from harness.paths import MODELS
from harness.results.records import OutcomeRecord, Record, Status
from harness.soc import SOCS

INFRA, CRASH, PRODUCT, ENV = FailureClass.INFRA, FailureClass.CRASH, FailureClass.PRODUCT, FailureClass.ENV
BROKEN = Failure(PRODUCT, "the text is another one", "compare it", "log")


@pytest.fixture(scope="module")
def cell() -> Cell:
    (made,) = cells([load_models(MODELS)["tiny_llama"]], [Mode.KV], [SOCS["SM8650"]])
    return made


# --- as often as the classes allow


@dataclass
class Settled:
    """A cell whose tries end as told, each after a second and a half."""

    outcome: OutcomeRecord
    recorded: list[Record]
    said: list[tuple[str, str]]
    calls: list[tuple[int, list[str | None], set[str]]]


def settled(cell: Cell, tries: Sequence[Tried], monkeypatch: pytest.MonkeyPatch, before: int = 0) -> Settled:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    left, recorded, said, calls = list(tries), list[Record](), list[tuple[str, str]](), []

    def once(number: int, places: Sequence[str | None], crashed: Collection[str]) -> Tried:
        calls.append((number, list(places), set(crashed)))
        clock.sleep(1.503)
        return left.pop(0)

    say = lambda name, what: said.append((name, what))  # noqa: E731
    more = {"before": before} if before else {}
    outcome = settle(cell, once, record=recorded.append, say=say, **more)
    assert not left, "not all that was allowed was tried"
    return Settled(outcome, recorded, said, calls)


def test_a_cell_that_passes_says_where_and_how_long(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    found = settled(cell, [Tried(None, "s24")], monkeypatch)
    assert found.outcome == OutcomeRecord(cell.id, Status.PASSED, seconds=1.5, attempts=1, phone="s24")
    assert found.recorded == [found.outcome]
    assert found.calls == [(1, [], set())]
    assert found.said == [("s24", f"{cell.id}: PASSED after 2 s")]


def test_tries_are_counted_on_from_before_and_a_pass_leaves_no_trace_of_the_failures(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = [
        Tried(Failure(CRASH, "it rebooted"), "a", "cells/1"),
        Tried(Failure(INFRA, "no phone"), None),
        Tried(None, "b"),
    ]
    found = settled(cell, tries, monkeypatch, before=4)
    assert found.outcome == OutcomeRecord(cell.id, Status.PASSED, seconds=4.51, attempts=7, phone="b")
    assert found.calls == [(5, [], set()), (6, ["a"], {"a"}), (7, ["a", None], {"a"})]
    assert found.said == [
        ("a", f"{cell.id}: CRASH: it rebooted; trying again"),
        ("", f"{cell.id}: INFRA: no phone; trying again"),
        ("b", f"{cell.id}: PASSED after 5 s"),
    ]


@pytest.mark.parametrize("failure_class", FailureClass)
def test_only_the_products_faults_fail_a_cell_the_rest_are_errors(
    cell: Cell, monkeypatch: pytest.MonkeyPatch, failure_class: FailureClass
) -> None:
    tries = {INFRA: 3, ENV: 3, CRASH: 2}.get(failure_class, 1)
    failure = Failure(failure_class, "why", "do this", "log")
    found = settled(cell, [Tried(failure, None, "cells/x")] * tries, monkeypatch)
    failed = failure_class in (PRODUCT, FailureClass.PERF)
    assert found.outcome.status is (Status.FAILED if failed else Status.ERROR)
    assert (found.outcome.failure_class, found.outcome.attempts) == (failure_class, tries)
    assert (found.outcome.phone, found.said[-1][0]) == (None, "")


def test_a_failure_is_recorded_with_all_that_explains_it(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = [Tried(Failure(INFRA, "lost"), "a", "cells/1"), Tried(BROKEN, "b", None)]
    found = settled(cell, tries, monkeypatch)
    assert found.outcome == OutcomeRecord(
        cell.id, Status.FAILED, PRODUCT, BROKEN.reason, BROKEN.remedy, BROKEN.evidence, "cells/1", 3.01, 2, "b"
    )
    assert found.recorded == [found.outcome]
    later = settled(cell, [tries[0], Tried(BROKEN, "b", "cells/2")], monkeypatch)
    assert later.outcome.evidence_path == "cells/2"  # of the last that left any


def test_crashes_of_two_phones_fail_the_cell_and_those_of_one_say_what_would_tell(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = Failure(CRASH, "it rebooted", "see its log")
    two = settled(cell, [Tried(crash, "a"), Tried(crash, "b")], monkeypatch).outcome
    assert (two.status, two.failure_class, two.reason, two.remedy) == (
        Status.FAILED, PRODUCT, "it rebooted", "see its log"
    )  # fmt: skip
    one = settled(cell, [Tried(crash, "a"), Tried(crash, "a")], monkeypatch).outcome
    assert (one.status, one.failure_class) == (Status.ERROR, CRASH)
    assert "the product or a is at fault" in one.reason
    assert one.remedy.endswith("; see its log")


def test_what_could_not_be_built_is_an_error_of_its_class(cell: Cell) -> None:
    error = BuildError("lowering failed", where="op 7", remedy="read it", evidence="log")
    assert not_built(cell.id, error) == OutcomeRecord(
        cell.id, Status.ERROR, FailureClass.BUILD, "op 7: lowering failed", "read it", "log"
    )
    assert not_built(cell.id, EnvError("full")) == OutcomeRecord(cell.id, Status.ERROR, ENV, "full")


@pytest.mark.parametrize(
    ("signature", "sizes", "words"),
    [
        ("context-too-big", (5_000_000_000, 1_000), "its largest context has 5.00 GB"),
        ("dsp-memory", None, "a context is estimated at"),
        ("compile-memory", (), "a context is estimated at"),
    ],
)
def test_a_failure_that_more_shards_mend_says_how_many(
    cell: Cell,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signature: str,
    sizes: tuple[int, ...] | None,
    words: str,
) -> None:
    delegate = None if sizes is None else SimpleNamespace(sizes=sizes)
    asked: list[Path] = []
    monkeypatch.setattr(module, "read_info", lambda pte: asked.append(pte) or SimpleNamespace(delegate=delegate))
    model = replace(cell.model, params=cell.model.params.model_copy(update={"n_layers": 16}))
    failure = Failure(ENV, "too big", "use more shards", "log", signature)
    made = advised(failure, replace(cell, model=model), artifact(tmp_path))
    assert made == replace(failure, remedy=made.remedy)
    assert made.remedy.startswith("use more shards: set shards: 2 in model.yaml (now 1; ")
    assert words in made.remedy
    assert asked == [tmp_path / "none.pte"]


def test_other_failures_keep_their_advice(cell: Cell, tmp_path: Path) -> None:
    failure = Failure(ENV, "full", "free storage", "log", "storage-full")
    assert advised(failure, cell, artifact(tmp_path)) is failure


# --- which phone


def artifact(folder: Path) -> Artifact:
    return Artifact("none", folder / "none.pte", folder, {})


def names(phones: Sequence[AttachedPhone]) -> list[str]:
    return [phone.phone.name for phone in phones]


@pytest.fixture
def shelf(tmp_path: Path) -> tuple[AttachedPhone, ...]:
    """Four phones that nobody asks anything."""
    link = NearPhone("x", AdbServer(), root=tmp_path)
    socs = {"a": "SM8650", "b": "SM8650", "c": "SM8550", "d": "SM8650"}
    return tuple(
        attached(replace(link, serial=f"serial-{name}"), name, soc, priority=5 if name == "d" else 0)
        for name, soc in socs.items()
    )


@pytest.mark.parametrize(
    ("avoid", "first", "crashed", "order"),
    [
        ((), None, (), "dab"),  # by priority, then as the rack's file has them
        ((), "b", (), "bda"),
        (("d",), None, (), "abd"),
        (("d", "d", "a"), None, (), "bad"),
        (("d", None), "d", (), "abd"),  # a failure weighs more than who was meant
        ((), None, ("d",), "ab"),
        ((), None, ("a", "b", "d"), "dab"),  # there is no other
        (("a",), "a", ("d",), "ba"),
    ],
)
def test_a_cells_phones_are_those_of_its_soc_and_that_failed_it_least(
    shelf: tuple[AttachedPhone, ...],
    cell: Cell,
    avoid: Sequence[str | None],
    first: str | None,
    crashed: Collection[str],
    order: str,
) -> None:
    assert names(fitting(shelf, cell, avoid, first, crashed=crashed)) == list(order)


def test_a_pinned_cell_has_its_phone_alone(shelf: tuple[AttachedPhone, ...], cell: Cell) -> None:
    assert names(fitting(shelf, replace(cell, phone="b"), ("b",), "a", crashed={"b"})) == ["b"]
    for pinned, phones in ((replace(cell, phone="c"), shelf), (cell, shelf[2:3]), (cell, ())):
        with pytest.raises(InfraError, match="no phone with SM8650 answers") as caught:
            fitting(phones, pinned, ())
        assert caught.value.where == pinned.id
        assert "htpfarm devices" in caught.value.remedy


def test_phones_that_are_bad_or_taken_away_are_left_out(
    shelf: tuple[AttachedPhone, ...], cell: Cell, tmp_path: Path
) -> None:
    book = HealthBook(tmp_path)
    book.set_state("serial-d", HealthState.BAD, "no answer")
    book.set_state("serial-a", HealthState.GOOD, "seen")
    assert names(fitting(shelf, cell, (), book=book)) == ["a", "b"]
    assert names(fitting(shelf, cell, (), book=book, crashed={"a"})) == ["b"]
    assert names(fitting(shelf, cell, (), book=book, crashed={"a", "b"})) == ["a", "b"]
    for serial in ("serial-a", "serial-b"):
        book.maintain(serial, f"{serial} is at the doctor's")
    with pytest.raises(InfraError, match="no phone with SM8650 may be used") as caught:
        fitting(shelf, cell, (), book=book)
    assert caught.value.where == cell.id
    assert "clear NAME" in caught.value.remedy
    for words in ("serial-a is at the doctor's", "serial-b is at the doctor's", "the phone is BAD: no answer"):
        assert words in caught.value.evidence
    assert names(fitting(shelf, cell, ())) == ["d", "a", "b"]  # without a book nobody is left out
