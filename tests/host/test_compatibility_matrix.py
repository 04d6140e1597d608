"""What a cell of the matrix says, result by result: what counts, what goes before what, and since when."""

from __future__ import annotations

from dataclasses import replace

import pytest
from compat_results import NOW, build_failed, failed, result

from harness.compatibility import Result, State, compatibility
from harness.compatibility.matrix import Change, Column, Entry, Row, age_days, entry, state_of
from harness.errors import FailureClass
from harness.results.records import Status

SILENT = {FailureClass.INFRA, FailureClass.ENV, FailureClass.CONFIG}
UNDECIDED = {FailureClass.NOT_JUDGED, FailureClass.INCONCLUSIVE, FailureClass.INVALID}
GATE = {"status": "SKIPPED", "failure_class": "UNSUPPORTED", "gate": "weight_sharing", "reason": "V69", "phone": ""}
COMPILED = {"reason": "compiled; not run (--compile-only)", "phone": ""}


def runs_of(*found: Result | None) -> list[str]:
    return [one.run for one in found if one]


# One result


def test_states_in_words() -> None:
    assert [state.value for state in State] == ["runs", "fails", "undecided", "unsupported", "not tried"]


@pytest.mark.parametrize("failure", list(FailureClass))
def test_what_each_class_of_failure_says(failure: FailureClass) -> None:
    expected = State.UNSUPPORTED if failure is FailureClass.UNSUPPORTED else State.FAILS
    if failure in SILENT:
        expected = State.NOT_TRIED
    if failure in UNDECIDED:
        expected = State.UNDECIDED
    for status in (Status.FAILED, Status.ERROR):
        assert state_of(failed(status=status.value, failure_class=failure.value)) is expected
    # Skipped or never run: only a gate says something.
    unsupported = failure is FailureClass.UNSUPPORTED
    for word in ("SKIPPED", "NOT RUN"):
        told = state_of(failed(status=word, failure_class=failure.value))
        assert told is (State.UNSUPPORTED if unsupported else State.NOT_TRIED)


def test_a_pass_runs_unless_it_was_only_compiled() -> None:
    assert state_of(result()) is State.RUNS
    assert state_of(result(reason="with a remark")) is State.RUNS
    assert state_of(result(reason="compiled; not run")) is State.NOT_TRIED
    assert state_of(result(reason="it was compiled; not run")) is State.RUNS
    assert state_of(failed(reason="compiled; not run")) is State.FAILS
    for status in ("SKIPPED", "NOT RUN"):
        assert state_of(result(status=status)) is State.NOT_TRIED
    # A failure without a class is a failure.
    assert state_of(failed(failure_class="")) is State.FAILS


# Ages


def test_days_between_two_times() -> None:
    assert age_days("2026-11-23T12:00:00+00:00", NOW) == 1.0
    assert age_days("2026-11-24T06:00:00+00:00", NOW) == 0.25
    assert age_days("2026-11-25T12:00:00+00:00", NOW) == -1.0
    assert age_days("2026-11-24T13:00:00+01:00", NOW) == 0.0
    assert age_days("", NOW) is None
    assert age_days("yesterday", NOW) is None
    assert age_days("2026-11-24T12:00:00", NOW) is None  # without a time zone there is no telling


# One cell


def test_nothing_at_all() -> None:
    assert entry([], NOW) == Entry(State.NOT_TRIED, None, None, (), (), None, (), "")


def test_a_cell_that_runs() -> None:
    first, last = result("r1", 10), result("r2", 22)
    assert entry([last, first], NOW) == Entry(State.RUNS, last, 2.0, ("s24",), (), last, (), "")


def test_a_cell_that_fails() -> None:
    good, bad = result("r1", 10), failed("r2", 22)
    assert entry([bad, good], NOW) == Entry(State.FAILS, bad, 2.0, ("s24",), ("s24",), good, (), "")


def test_a_cell_that_a_gate_stops_and_that_ran_before() -> None:
    good, gate = result("r1", 10), result("r2", 22, **GATE, toolchain={"qnn": "9"})
    # What changed is said of failures alone.
    assert entry([good, gate], NOW) == Entry(State.UNSUPPORTED, gate, 2.0, (), (), good, (), "")
    assert entry([gate, result("r3", 23)], NOW).state is State.RUNS
    # A gate is of all phones, also where the cell is pinned to one.
    pinned = result("r2", 22, **(GATE | {"phone": "s24"}))
    assert entry([result("r1", 10, phone="oneplus12"), pinned], NOW) == Entry(
        State.UNSUPPORTED, pinned, 2.0, (), (), result("r1", 10, phone="oneplus12"), (), ""
    )


def test_a_cell_of_which_nothing_is_known_says_what_was_tried_last() -> None:
    lost = {"status": "ERROR", "failure_class": "INFRA", "reason": "adb push timed out"}
    left_out = {"status": "SKIPPED", "reason": "not selected"}
    assert entry([result("r2", 21, **lost), result("r1", 20, **left_out)], NOW) == Entry(
        State.NOT_TRIED, note="INFRA: adb push timed out"
    )
    assert entry([result("r1", 20, **lost), result("r2", 21, **left_out)], NOW).note == "not selected"
    early, late = result("r1", 9, **COMPILED), result("r2", 10, **COMPILED)
    silent = result("r3", 11, **lost)
    assert entry([late, silent, early], NOW) == Entry(State.NOT_TRIED, last_good=late, note="INFRA: adb push timed out")


@pytest.mark.parametrize("failure", sorted(SILENT))
def test_what_a_rack_did_wrong_is_passed_over(failure: FailureClass) -> None:
    silent = result("r9", 23, status="ERROR", failure_class=failure.value, reason="lost")
    assert entry([result(), silent], NOW) == entry([result()], NOW)
    assert entry([failed(), silent], NOW) == entry([failed()], NOW)


def test_of_equal_times_the_later_run_counts_and_then_the_later_cell() -> None:
    assert entry([failed("r2", 20), result("r1", 20)], NOW).state is State.FAILS
    assert entry([failed("r1", 20), result("r2", 20)], NOW).state is State.RUNS
    a, b = failed("r1", 20, cell="a", phone="s24"), failed("r1", 20, cell="b", phone="s25")
    for order in ([a, b], [b, a]):
        found = entry(order, NOW)
        assert found.result == b
        assert found.failing == ("s24", "s25")
    # Time goes before the run's name.
    assert entry([failed("r9", 20), result("r1", 21)], NOW).state is State.RUNS


def test_each_phone_by_its_latest_and_the_cell_by_the_latest_failure() -> None:
    found = entry(
        [
            failed("r1", 10, phone="a"),
            failed("r2", 11, phone="b"),
            result("r3", 12, phone="c"),
            result("r4", 13, phone="d"),
            failed("r5", 14, phone="a"),
            result("r6", 15, phone="d"),
        ],
        NOW,
    )
    assert (found.state, found.phones, found.failing) == (State.FAILS, ("b", "a", "c", "d"), ("b", "a"))
    assert runs_of(found.result, found.last_good) == ["r5", "r4"]  # r6 passed after it failed
    assert found.age_days == 10.0


def test_of_phones_that_all_run_the_latest_is_shown() -> None:
    found = entry([result("r1", 10, phone="a"), result("r2", 11, phone="b"), result("r3", 12, phone="a")], NOW)
    assert (found.state, found.phones, found.failing) == (State.RUNS, ("b", "a"), ())
    assert runs_of(found.result, found.last_good) == ["r3", "r3"]


def test_a_build_that_failed_ends_what_phones_did_and_a_phone_ends_that() -> None:
    before = [result("r1", 10, phone="a"), failed("r2", 11, phone="b")]
    found = entry([*before, build_failed("r3", 12)], NOW)
    assert (found.state, found.phones, found.failing) == (State.FAILS, (), ())
    assert runs_of(found.result) == ["r3"]
    found = entry([*before, build_failed("r3", 12), result("r4", 13, phone="a")], NOW)
    assert (found.state, found.phones) == (State.RUNS, ("a",))
    assert runs_of(found.result) == ["r4"]


def test_a_build_that_failed_for_a_pinned_cell_names_no_phone() -> None:
    found = entry([result("r1", 10), build_failed("r2", 11, phone="s24")], NOW)
    assert (found.state, found.phones, found.failing) == (State.FAILS, (), ())


def test_a_result_that_came_to_no_phone_is_of_all_of_them() -> None:
    before = result("r1", 10, phone="a")
    found = entry([before, failed("r2", 11, phone="")], NOW)
    assert (found.state, found.phones, found.failing, found.last_good) == (State.FAILS, (), (), before)
    assert entry([failed("r2", 11, phone=""), result("r3", 12, phone="b")], NOW).phones == ("b",)
    found = entry([failed("r1", 10, phone="a"), result("r2", 11, phone="")], NOW)
    assert (found.state, found.phones) == (State.RUNS, ())


@pytest.mark.parametrize("failure", sorted(UNDECIDED))
def test_an_undecided_phone_goes_before_one_that_runs_and_after_one_that_fails(failure: FailureClass) -> None:
    own, good = result("r0", 5, phone="a"), result("r1", 10, phone="b")
    undecided = failed("r2", 9, phone="a", failure_class=failure.value, toolchain={"qnn": "9"})
    found = entry([own, undecided, good], NOW)
    assert (found.state, found.result, found.phones, found.failing) == (State.UNDECIDED, undecided, ("a", "b"), ())
    assert (found.last_good, found.changed) == (own, ())
    worse = failed("r3", 8, phone="c")
    found = entry([own, undecided, good, worse], NOW)
    assert (found.state, found.result, found.failing) == (State.FAILS, worse, ("c",))


# The last good


def test_the_last_good_of_a_phone_that_fails_is_its_own() -> None:
    own, other, bad = result("r1", 10, phone="a"), result("r2", 15, phone="b"), failed("r3", 20, phone="a")
    assert entry([own, other, bad], NOW).last_good == own
    assert entry([other, bad], NOW).last_good == other  # it has none of its own
    later = result("r4", 21, phone="b")
    assert entry([own, bad, later], NOW).last_good == own
    assert entry([bad, later], NOW).last_good == later  # nobody had one before it
    assert entry([other, bad, later], NOW).last_good == other
    assert entry([bad], NOW).last_good is None


def test_a_pass_at_the_time_of_the_failure_is_before_it() -> None:
    same = result("r1", 20, phone="b")
    assert entry([result("r0", 10, phone="c"), same, failed("r2", 20, phone="a")], NOW).last_good == same


def test_the_last_good_of_a_build_is_what_compiled_whatever_the_phone() -> None:
    ran, compiled = result("r1", 10, phone="s24"), result("r2", 12, **COMPILED)
    other = result("r3", 11, phone="b")
    for phone in ("", "s24"):
        assert entry([ran, other, compiled, build_failed("r4", 13, phone=phone)], NOW).last_good == compiled
        assert entry([ran, other, build_failed("r4", 13, phone=phone)], NOW).last_good == other
    # On a phone a compile is no good.
    assert entry([ran, compiled, failed("r4", 13)], NOW).last_good == ran
    assert entry([compiled, failed("r4", 13)], NOW).last_good is None
    assert entry([result("r0", 9), compiled, result("r4", 13, **GATE)], NOW).last_good == result("r0", 9)


def test_a_cell_that_was_compiled_after_it_ran_still_runs() -> None:
    ran, compiled = result("r1", 10), result("r2", 12, **COMPILED)
    found = entry([ran, compiled], NOW)
    assert (found.state, found.result, found.last_good) == (State.RUNS, ran, ran)


def test_what_changed_is_sorted_and_names_what_is_absent() -> None:
    good = result("r1", 10, toolchain={"qnn": "2.48", "torch": "2", "gone": "1"})
    bad = failed("r2", 20, toolchain={"qnn": "2.51", "torch": "2", "executorch": "1.5"})
    assert entry([good, bad], NOW).changed == (
        Change("executorch", good="", now="1.5"),
        Change("gone", good="1", now=""),
        Change("qnn", good="2.48", now="2.51"),
    )
    assert entry([bad], NOW).changed == ()
    assert entry([replace(bad, run="r0", time=good.time), replace(good, time=bad.time)], NOW).changed == ()


# The whole


def test_rows_and_columns_in_order_and_a_cell_for_each_pair() -> None:
    results = [
        result(model="b", mode="kv"),
        result(model="a", mode="kv", recipe="upstream"),
        result(model="a", mode="kv", recipe="16a4w", soc="SM8750", arch=79),
        result(model="a", mode="hybrid", soc="SM8450", arch=69),
        result(model="a", mode="hybrid", soc="SA1", arch=75, target="sim"),
        failed(model="a", mode="hybrid", soc="SA1", arch=75, target="android"),
    ]
    matrix = compatibility(results, NOW)
    assert matrix.rows == (
        Row("a", "hybrid", "upstream"),
        Row("a", "kv", "16a4w"),
        Row("a", "kv", "upstream"),
        Row("b", "kv", "upstream"),
    )
    assert [row.label for row in matrix.rows] == ["a · hybrid", "a · kv · 16a4w", "a · kv", "b · kv"]
    assert matrix.columns == (
        Column(69, "SM8450", "sim"),
        Column(75, "SA1", "android"),
        Column(75, "SA1", "sim"),
        Column(75, "SM8650", "sim"),
        Column(79, "SM8750", "sim"),
    )
    assert matrix.made == NOW
    assert matrix.counts == {
        State.RUNS: 5,
        State.FAILS: 1,
        State.UNDECIDED: 0,
        State.UNSUPPORTED: 0,
        State.NOT_TRIED: 14,
    }
    assert matrix.entries[matrix.rows[3], matrix.columns[0]] == Entry(State.NOT_TRIED)
    fails = matrix.with_state(State.FAILS)
    assert [(row.label, column.target, cell.state) for row, column, cell in fails] == [
        ("a · hybrid", "android", State.FAILS)
    ]
    assert [(row.label, column.soc) for row, column, _ in matrix.with_state(State.RUNS)] == [
        ("a · hybrid", "SM8450"),
        ("a · hybrid", "SA1"),
        ("a · kv · 16a4w", "SM8750"),
        ("a · kv", "SM8650"),
        ("b · kv", "SM8650"),
    ]


def test_runs_are_counted_once_and_what_nobody_ran_is_no_run() -> None:
    gate = result("", 1, **GATE, time="", soc="SM8450", arch=69)
    found = compatibility([result("r1"), result("r1", mode="hybrid"), result("r2", 21), gate], NOW)
    assert found.runs == 2
    assert compatibility([gate], NOW).runs == 0
    assert compatibility([], NOW) == type(found)((), (), {}, 0, NOW)


def test_results_of_one_row_and_column_are_judged_together() -> None:
    matrix = compatibility([result("r1", 20, cell="x@a", phone="a"), failed("r2", 21, cell="x@b", phone="b")], NOW)
    ((_, cell),) = matrix.entries.items()
    assert (cell.state, cell.phones, cell.age_days) == (State.FAILS, ("b", "a"), 3.0)
