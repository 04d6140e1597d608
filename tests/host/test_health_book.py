"""When a phone is put aside, to the attempt and the chance; what a health book keeps, whatever lies in its log."""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.errors import FailureClass
from harness.farm.health import HealthBook, HealthEvent, HealthState, keeps_failing
from harness.farm.lease import SHARED_VARIABLE

INFRA, CRASH, PRODUCT, ENV = FailureClass.INFRA, FailureClass.CRASH, FailureClass.PRODUCT, FailureClass.ENV


def events(attempts: str, *, start: float = 100.0) -> list[HealthEvent]:
    """A log, one event a second: `f` and `c` failed by INFRA and CRASH, `p` by the product, `.` passed; `C` a person
    cleared it, `x` its state changed for another reason.
    """
    kinds = {
        "f": ("attempt", "INFRA"),
        "c": ("attempt", "CRASH"),
        "p": ("attempt", "PRODUCT"),
        ".": ("attempt", ""),
        "C": ("change", "cleared by hand"),
        "x": ("change", "INFRA"),
    }
    return [
        HealthEvent(start + number, kinds[letter][0], HealthState.UNKNOWN, kinds[letter][1], "me")
        for number, letter in enumerate(attempts)
    ]


@pytest.mark.parametrize(
    ("attempts", "why"),
    [
        ("", ""),
        ("f" * 8, ""),
        ("f" * 9, "9 of its last 9 attempts failed"),
        ("c" * 9, "9 of its last 9 attempts failed"),
        ("fc" * 5, "10 of its last 10 attempts failed"),
        ("p" * 40, ""),
        ("f" * 8 + "p", ""),
        (".fffffffff", "9 of its last 10 attempts failed"),
        ("ffffffff.f", "9 of its last 10 attempts failed"),  # ten count, not nine
        ("fffffffff..", ""),  # and not eleven
        ("ffffffff..", ""),
        ("ffffffffff..ffffffff", "18 of its last 20 attempts failed"),  # too few of the last ten, enough of twenty
        (".........." + "ffffffffff..ffffffff", "18 of its last 20 attempts failed"),
        ("fffffffff...ffffffff", ""),
        ("fffff" + "fffffffff...ffffffff", ""),  # older ones do not count
        ("ffCfffffff", ""),
        ("ffffffffCf", ""),
        ("fCffCfffffffff", "9 of its last 9 attempts failed"),  # since the last time
        ("fffffffxff", "9 of its last 9 attempts failed"),  # only a person's clearing counts
        ("xfffffffff", "9 of its last 9 attempts failed"),
        ("fffffffffffC", ""),
    ],
)
def test_nine_failures_of_ten_attempts_or_eighteen_of_twenty_put_a_phone_aside(attempts: str, why: str) -> None:
    assert keeps_failing(events(attempts)) == why


@pytest.mark.parametrize(
    ("own", "failed", "count", "aside"),
    [
        # Ten of ten, the others' rate by Laplace's rule: 0.39^10 is 0.8e-4, 0.40^10 is 1.05e-4.
        ("f" * 10, 38, 98, True),
        ("f" * 10, 39, 98, False),
        ("f" * 10, 0, 1, True),  # a third
        ("f" * 10, 1, 1, False),  # two thirds
        ("f" * 10, 0, 3, True),  # a fifth
        ("f" * 10, 1, 3, False),  # two fifths
        # Nine of ten: that all ten fail is a part of the chance, and decides here.
        ("." + "f" * 9, 285, 998, True),
        ("." + "f" * 9, 287, 998, False),
        # Twenty of twenty tell from others that fail more often.
        ("f" * 20, 618, 998, True),
        ("f" * 20, 640, 998, False),
    ],
)
def test_it_is_not_put_aside_for_what_chance_makes_of_the_others_rate_once_in_ten_thousand(
    own: str, failed: int, count: int, aside: bool
) -> None:
    others = events("c" * failed + "." * (count - failed), start=1000.0)
    why = keeps_failing(events(own), others)
    assert why.endswith(f"attempts failed, and {failed} of {count} of other phones") is aside
    assert bool(why) is aside


def test_of_the_others_only_attempts_after_its_own_first_one_count() -> None:
    own = events("f" * 9)
    at_once = events("f" * 50, start=100.0)[:1] * 50
    before = events("f" * 50, start=0.0)
    assert keeps_failing(own, [*before, *at_once]) == "9 of its last 9 attempts failed"
    after = events("." + "x" * 50, start=100.5)  # beside its own; what is no attempt has no weight
    assert keeps_failing(own, [*before, *after]) == "9 of its last 9 attempts failed, and 0 of 1 of other phones"
    assert keeps_failing(own, events("." + "f" * 50, start=100.5)) == ""


@pytest.mark.parametrize(
    ("state", "usable"),
    [
        (HealthState.GOOD, True),
        (HealthState.UNKNOWN, True),
        (HealthState.BAD, False),
        (HealthState.MAINTENANCE, False),
    ],
)
def test_only_a_person_leads_a_phone_out_of_bad_and_maintenance(
    tmp_path: Path, state: HealthState, usable: bool
) -> None:
    book = HealthBook(tmp_path)
    if state is HealthState.MAINTENANCE:
        book.maintain("R3", "new screen")
    else:
        assert book.set_state("R3", state, "so") is (state is not HealthState.UNKNOWN)
    assert book.state("R3") is state
    assert state.usable is usable
    assert book.set_state("R3", HealthState.GOOD, "a run would like it") is (state is HealthState.UNKNOWN)
    assert book.clear("R3") is (HealthState.GOOD if state is HealthState.UNKNOWN else state)
    assert (book.state("R3"), book.cause("R3")) == (HealthState.UNKNOWN, "cleared by hand")
    book.clear("R3", "cleared: a new cable")
    assert book.cause("R3") == "cleared: a new cable"


@pytest.mark.parametrize(
    ("failure", "state", "cause"),
    [
        (None, HealthState.GOOD, "seen"),
        (PRODUCT, HealthState.GOOD, "seen"),
        (ENV, HealthState.GOOD, "seen"),
        (FailureClass.PERF, HealthState.GOOD, "seen"),
        (INFRA, HealthState.UNKNOWN, "an attempt failed: INFRA"),
        (CRASH, HealthState.UNKNOWN, "an attempt failed: CRASH"),
    ],
)
def test_only_what_may_be_the_phones_fault_makes_it_unknown(
    tmp_path: Path, failure: FailureClass | None, state: HealthState, cause: str
) -> None:
    book = HealthBook(tmp_path)
    book.set_state("R3", HealthState.GOOD, "seen")
    assert book.attempted("R3", failure) is state
    assert (book.state("R3"), book.cause("R3")) == (state, cause)
    (attempt,) = (event for event in book.events("R3") if event.event == "attempt")
    assert (attempt.cause, attempt.state) == (failure.value if failure else "", HealthState.GOOD)


def test_of_other_phones_those_that_may_not_be_used_do_not_tell_what_is_usual(tmp_path: Path) -> None:
    for aside in (True, False):
        book = HealthBook(tmp_path / str(aside))
        for _ in range(8):
            book.attempted("R3", INFRA)
        for _ in range(5):
            book.attempted("other", INFRA)
        if aside:
            book.maintain("other", "all that it did says nothing")
        assert book.attempted("R3", INFRA) is (HealthState.BAD if aside else HealthState.UNKNOWN)
    assert HealthBook(tmp_path / "True").cause("R3") == "9 of its last 9 attempts failed"


def test_a_phones_own_log_is_not_another_phones(tmp_path: Path) -> None:
    book = HealthBook(tmp_path)
    states = [book.attempted("a/b:1", INFRA) for _ in range(9)]
    assert states == [HealthState.UNKNOWN] * 8 + [HealthState.BAD]
    assert book.cause("a/b:1") == "9 of its last 9 attempts failed"


def line(**changes: object) -> str:
    said = {"time": 1000.0, "event": "cooling", "state": "GOOD", "cause": "95 degrees", "by": "me"}
    return json.dumps(said | changes)


def test_a_phone_is_just_hot_for_ten_seconds_unless_it_has_cooled(tmp_path: Path) -> None:
    book, log = HealthBook(tmp_path), tmp_path / "R3.jsonl"
    assert not book.just_hot("R3")
    log.write_text(line() + "\n")
    assert [book.just_hot("R3", now) for now in (1000.0, 1009.9, 1010.0, 1010.1)] == [True, True, False, False]
    assert book.cooling("R3")
    log.write_text(line(time=time.time() + 3600) + "\n")
    assert book.just_hot("R3")  # now, unless told otherwise
    log.write_text(line(time=900.0) + "\n" + line() + "\n")
    assert book.just_hot("R3", 1005.0)  # since the last time
    log.write_text(line() + "\n")
    assert not book.just_hot("R3")  # that was in 1970
    log.write_text(line() + "\n" + line(cause="") + "\n" + line(event="attempt", cause="INFRA") + "\n")
    assert not book.just_hot("R3", 1001.0)
    assert not book.cooling("R3")
    log.write_text(line(cause="") + "\n" + line() + "\n" + line(event="attempt", cause="") + "\n")
    assert book.just_hot("R3", 1001.0)
    assert book.cooling("R3")


def test_that_a_phone_has_cooled_is_noted_once_and_changes_no_state(tmp_path: Path) -> None:
    book = HealthBook(tmp_path)
    book.set_state("R3", HealthState.GOOD, "seen")
    book.note_cooling("R3", "")
    assert [event.event for event in book.events("R3")] == ["change"]
    for text in ("hot", "hotter", "", ""):
        book.note_cooling("R3", text)
    cooling = [event for event in book.events("R3") if event.event == "cooling"]
    assert [(event.cause, event.state) for event in cooling] == [
        (cause, HealthState.GOOD) for cause in ("hot", "hotter", "")
    ]
    assert (book.state("R3"), book.cause("R3")) == (HealthState.GOOD, "seen")


@pytest.mark.parametrize(
    "damage",
    [b'{"half', b"7", b"[]", b"{}", line(state="FINE").encode(), line(more=1).encode(), b'{"state": "GOOD"}', b"\xff"],
)
def test_a_line_that_is_no_event_is_passed_over(tmp_path: Path, damage: bytes) -> None:
    whole = [line(cause=cause).encode() for cause in ("first", "last")]
    (tmp_path / "R3.jsonl").write_bytes(whole[0] + b"\n" + damage + b"\n" + whole[1] + b"\n")
    found = HealthBook(tmp_path).events("R3")
    assert [event.cause for event in found] == ["first", "last"]
    assert found[0] == HealthEvent(1000.0, "cooling", HealthState.GOOD, "first", "me")


def test_of_a_long_log_its_last_32_kib_are_read(tmp_path: Path) -> None:
    pad = 127 - len(line(cause="000"))
    lines = [line(cause=f"{number:03}", by="me" + "x" * pad) for number in range(300)]
    log = tmp_path / "R3.jsonl"
    log.write_text("".join(f"{one}\n" for one in lines))
    assert log.stat().st_size == 300 * 128
    assert [event.cause for event in HealthBook(tmp_path).events("R3")] == [f"{n:03}" for n in range(300 - 256, 300)]
    log.write_text("".join(f"{one}\n" for one in lines[:256]) + "\n")  # one byte more
    assert len(HealthBook(tmp_path).events("R3")) == 255
    log.write_text("".join(f"{one}\n" for one in lines[:7]))
    assert len(HealthBook(tmp_path).events("R3")) == 7


def test_a_line_that_a_killed_writer_left_half_takes_no_other_with_it(tmp_path: Path) -> None:
    book, log = HealthBook(tmp_path), tmp_path / "R3.jsonl"
    log.write_text('{"half')
    book.set_state("R3", HealthState.GOOD, "seen")
    assert log.read_text().startswith('{"half\n{')
    book.maintain("R3", "aside")
    assert [event.cause for event in book.events("R3")] == ["seen", "aside"]
    assert len(log.read_text().splitlines()) == 3
    assert log.read_text().endswith("}\n")


def test_a_line_is_begun_behind_what_another_writer_left_while_this_one_waited_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, log, lock = HealthBook(tmp_path), tmp_path / "R3.jsonl", fcntl.flock

    def waited(descriptor: int, operation: int) -> None:
        lock(descriptor, operation)
        assert operation == fcntl.LOCK_EX
        with log.open("a") as other:
            other.write('{"half')

    monkeypatch.setattr(fcntl, "flock", waited)
    before = len(list(Path("/proc/self/fd").iterdir()))
    book.maintain("R3", "aside")
    assert log.read_text().startswith('{"half\n{')
    assert book.cause("R3") == "aside"
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_phone_with_an_empty_log_tells_nothing_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "new.jsonl").touch()
    book = HealthBook(tmp_path)
    assert [book.attempted("R3", INFRA) for _ in range(9)][-1] is HealthState.BAD
    assert book.state("new") is HealthState.UNKNOWN


def test_a_line_says_when_and_who(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1234.56789)
    HealthBook(tmp_path, run_id="run-1").maintain("R3", "why")
    HealthBook(tmp_path).maintain("R3", "why")
    by = f"{getpass.getuser()} ({os.getpid()})"
    assert [(event.time, event.by) for event in HealthBook(tmp_path).events("R3")] == [
        (1234.568, f"{by} run-1"),
        (1234.568, by),
    ]


@pytest.mark.parametrize("error", [KeyError("uid not found"), OSError("no name")])
def test_a_user_without_a_name_is_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def nobody() -> str:
        raise error

    monkeypatch.setattr(getpass, "getuser", nobody)
    book = HealthBook(tmp_path)
    book.maintain("R3", "why")
    assert book.events("R3")[0].by == f"{os.getuid()} ({os.getpid()})"


def test_phones_with_a_log_are_named_in_order_by_their_serials(tmp_path: Path) -> None:
    book = HealthBook(tmp_path / "health")
    assert book.serials() == ()
    assert (book.events("R3"), book.state("R3"), book.cause("R3")) == ((), HealthState.UNKNOWN, "")
    serials: Sequence[str] = ("z", "127.0.0.1:5555", "a/b", "a")
    for serial in serials:
        book.maintain(serial, f"of {serial}")
    (tmp_path / "health" / "note.txt").write_text("no log")
    assert book.serials() == tuple(sorted(serials))
    assert [book.cause(serial) for serial in serials] == [f"of {serial}" for serial in serials]


def test_the_book_lies_where_leases_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert HealthBook(tmp_path).folder == tmp_path
    monkeypatch.delenv(SHARED_VARIABLE, raising=False)
    monkeypatch.setenv("HTPFARM_CACHE", str(tmp_path / "cache"))
    assert HealthBook().folder == tmp_path / "cache" / "health"
    monkeypatch.setenv(SHARED_VARIABLE, str(tmp_path))
    assert HealthBook().folder == tmp_path / "health"
