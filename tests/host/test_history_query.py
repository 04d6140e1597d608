"""Questions to the history, on rows whose every part is known: which of them an answer takes, and in what order."""

from __future__ import annotations

import json
import sqlite3
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from harness.history.query import (
    CellResult,
    Choice,
    RunRow,
    RunValue,
    SessionValue,
    Standing,
    cell_results,
    evidence_paths,
    list_runs,
    medians,
    perplexities,
    run_values,
    session_values,
    standings,
)
from harness.history.schema import metadata
from harness.history.store import History
from harness.results import OutcomeRecord, PerplexityRecord, Record, Status
from harness.results.records import encode

ALL = Choice()


@pytest.fixture
def history() -> Iterator[History]:
    """An empty one, in memory."""
    with History("sqlite:///") as opened:
        yield opened


def put(history: History, table: str, *rows: dict[str, Any]) -> None:
    with history.writing() as connection:
        connection.execute(metadata.tables[table].insert(), list(rows))


def day(number: int) -> str:
    return f"2026-01-{number:02d}T12:00:00.000+00:00"


def add_run(history: History, run: str, number: int = 1, target: str = "sim") -> None:
    put(
        history,
        "runs",
        {
            "run": run,
            "started": day(number),
            "ended": day(number + 1),
            "host": f"host of {run}",
            "harness_version": "0.1",
            "target": target,
            "rack": "devices.yaml",
            "command": '["pytest", "-m"]',
            "toolchain": '{"qnn": "2.48"}',
            "folder": f"/reports/{run}",
            "headline": "PASSED",
            "imported": day(28),
        },
    )


def add_result(history: History, run: str, number: int, cell: str = "c", **changes: Any) -> CellResult:
    values: dict[str, Any] = {
        "run": run,
        "cell": cell,
        "model": "tiny",
        "mode": "kv",
        "soc": "SM8650",
        "arch": 75,
        "recipe": "kv8",
        "phone": "s24",
        "target": "sim",
        "status": "PASSED",
        "failure_class": None,
        "gate": "g",
        "reason": "because",
        "remedy": "do",
        "evidence": "tail",
        "seconds": 1.5,
        "attempts": 2,
        "pte_bytes": 7,
        "ended": day(number),
    }
    values |= changes
    put(history, "results", values)
    return CellResult(**values)


def add_session(history: History, run: str, value: float, number: int = 1, **changes: Any) -> SessionValue:
    values: dict[str, Any] = {
        "run": run,
        "cell": "c",
        "metric": "decode_tok_s",
        "session": "1/s/0",
        "value": value,
        "iterations": 3,
        "phone": "s24",
        "serial": "R5",
        "time": day(number),
    }
    target = changes.pop("target", "sim")
    values |= changes
    put(history, "sessions", values)
    return SessionValue(**values, target=target)


def add_outcome(history: History, run: str, line: int, cell: str = "c", kind: str = "outcome", **body: Any) -> None:
    row = {"run": run, "line": line, "kind": kind, "cell": cell, "time": day(1), "body": json.dumps(body)}
    put(history, "records", row)


def runs_of(found: list[Any]) -> list[str]:
    return [one.run for one in found]


# Runs


def test_runs_stand_in_the_order_started_and_say_all_there_is(history: History) -> None:
    for run, number in (("a", 3), ("c", 1), ("b", 1), ("d", 2)):
        add_run(history, run, number)
    found = list_runs(history)
    assert runs_of(found) == ["b", "c", "d", "a"]
    assert found[0] == RunRow(
        "b",
        day(1),
        day(2),
        "host of b",
        "0.1",
        "sim",
        "devices.yaml",
        ("pytest", "-m"),
        {"qnn": "2.48"},
        "/reports/b",
        "PASSED",
    )


def test_runs_by_target_id_and_time_both_ends_included(history: History) -> None:
    for number in range(1, 6):
        add_run(history, f"r{number}", number, "android" if number % 2 else "sim")
    assert runs_of(list_runs(history, Choice(target="android"))) == ["r1", "r3", "r5"]
    assert runs_of(list_runs(history, Choice(run="r4"))) == ["r4"]
    assert runs_of(list_runs(history, Choice(run="r4", target="android"))) == []
    assert runs_of(list_runs(history, Choice(since=day(2), until=day(4)))) == ["r2", "r3", "r4"]
    assert runs_of(list_runs(history, Choice(since="2026-01-02", until="2026-01-04"))) == ["r2", "r3", "r4"]
    assert runs_of(list_runs(history, Choice(until="2026-01"))) == ["r1", "r2", "r3", "r4", "r5"]
    assert runs_of(list_runs(history, Choice(until="2025"))) == []
    assert runs_of(list_runs(history, Choice(since="2026-02"))) == []


# Results


def test_results_stand_oldest_first_and_say_all_there_is(history: History) -> None:
    for run in "abc":
        add_run(history, run)
    late = add_result(history, "a", 3)
    second, first = add_result(history, "c", 1, phone=None, pte_bytes=None), add_result(history, "b", 1)
    add_session(history, "a", 5.0)
    assert cell_results(history, ALL) == [first, second, late]
    assert late.metrics == {}


def test_results_of_chosen_cells_phones_targets_runs_and_times(history: History) -> None:
    for number in range(1, 5):
        add_run(history, f"r{number}")
    add_result(history, "r1", 1, "tiny-kv", phone="a")
    add_result(history, "r2", 2, "tiny-hybrid", phone="b", target="android")
    add_result(history, "r3", 3, "big-kv", phone="a", target="android")
    add_result(history, "r4", 4, "big-kv", phone=None)

    def of(**choice: Any) -> list[str]:
        return runs_of(cell_results(history, Choice(**choice)))

    assert of(cells=("big-kv",)) == ["r3", "r4"]
    assert of(cells=("tiny-*",)) == ["r1", "r2"]
    assert of(cells=("*-kv", "tiny-hybrid")) == ["r1", "r2", "r3", "r4"]
    assert of(phone="a") == ["r1", "r3"]
    assert of(target="android") == ["r2", "r3"]
    assert of(run="r3") == ["r3"]
    assert of(since="2026-01-02", until="2026-01-03") == ["r2", "r3"]
    assert of(phone="a", target="sim") == ["r1"]
    assert of(cells=("tiny-kv",), phone="b") == []
    assert of(metrics=("nothing",)) == ["r1", "r2", "r3", "r4"]  # of no concern to results


def test_names_are_whole_or_hold_a_star_and_nothing_else_is_special(history: History) -> None:
    for number, cell in enumerate(("a_b", "axb", "a%b", "a\\b", "ab", "b_a"), start=1):
        add_run(history, f"r{number}")
        add_result(history, f"r{number}", number, cell)

    def of(*cells: str) -> list[str]:
        return [one.cell for one in cell_results(history, Choice(cells=cells))]

    assert of("a_b") == ["a_b"]
    assert of("a_*") == ["a_b"]
    assert of("a%*") == ["a%b"]
    assert of("a\\*") == ["a\\b"]
    assert of("a*b") == ["a_b", "axb", "a%b", "a\\b", "ab"]
    assert of("*a") == ["b_a"]
    assert of("a") == []
    assert of("ab", "b_*") == ["ab", "b_a"]
    assert of("ab", "axb") == ["axb", "ab"]
    assert of("a_*", "b_*") == ["a_b", "b_a"]
    assert len(of("nothing", "*")) == len(of()) == 6


def test_a_whole_name_is_that_name_capitals_and_all(history: History) -> None:
    for run, cell in (("r1", "ab"), ("r2", "AB")):
        add_run(history, run)
        add_result(history, run, 1, cell)
    assert runs_of(cell_results(history, Choice(cells=("ab",)))) == ["r1"]
    assert runs_of(cell_results(history, Choice(cells=("AB", "x*")))) == ["r2"]


def test_no_names_ask_for_all_without_a_word_from_the_database(history: History) -> None:
    add_run(history, "r1")
    one = add_result(history, "r1", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cell_results(history, Choice(cells=())) == [one]
        assert session_values(history, Choice(metrics=())) == []


# Where cells stand


@pytest.mark.parametrize(
    ("status", "failure", "says"),
    [
        ("PASSED", None, True),
        ("FAILED", None, True),
        ("ERROR", None, True),
        ("ERROR", "INFRA", True),
        ("SKIPPED", "UNSUPPORTED", True),
        ("SKIPPED", None, False),
        ("NOT RUN", None, False),
    ],
)
def test_what_says_where_a_cell_stands(history: History, status: str, failure: str | None, says: bool) -> None:
    for run in ("r1", "r2"):
        add_run(history, run)
    good = add_result(history, "r1", 1)
    last = add_result(history, "r2", 2, status=status, failure_class=failure)
    latest = last if says else good
    assert standings(history) == [Standing(latest, last if status == "PASSED" else good)]


def test_a_cell_stands_where_its_latest_result_is_a_phone_and_the_simulator_apart(history: History) -> None:
    for number in range(1, 8):
        add_run(history, f"r{number}")
    add_result(history, "r1", 1, "b")
    b = add_result(history, "r2", 3, "b", status="FAILED", failure_class="PRODUCT")
    good = add_result(history, "r3", 2, "b")
    phone = add_result(history, "r4", 1, "b", target="android", status="ERROR", failure_class="INFRA")
    add_result(history, "r5", 5, "a")
    a = add_result(history, "r6", 5, "a")  # of equal times the later run's
    add_result(history, "r7", 4, "a")
    assert standings(history) == [Standing(a, a), Standing(phone, None), Standing(b, good)]
    assert standings(history, Choice(target="sim")) == [Standing(a, a), Standing(b, good)]
    assert standings(history, Choice(cells=("b",), until="2026-01-02")) == [Standing(phone, None), Standing(good, good)]
    assert standings(history, Choice(run="r2")) == [Standing(b, None)]
    assert standings(history, Choice(phone="nobody")) == []


def test_standings_have_the_metrics_of_the_latest_and_of_the_last_good(history: History) -> None:
    for run in ("r1", "r2", "r3"):
        add_run(history, run)
    add_result(history, "r1", 1)
    add_result(history, "r2", 2)
    add_result(history, "r3", 3, status="FAILED")
    for run, value in (("r1", 1.0), ("r2", 2.0), ("r3", 3.0)):
        add_session(history, run, value)
        add_session(history, run, 10 * value, metric="ttft_ms")
    (stand,) = standings(history)
    assert stand.latest.metrics == {"decode_tok_s": 3.0, "ttft_ms": 30.0}
    assert stand.last_good is not None
    assert stand.last_good.metrics == {"decode_tok_s": 2.0, "ttft_ms": 20.0}
    (stand,) = standings(history, metrics=["ttft*"])
    assert (stand.latest.metrics, stand.last_good and stand.last_good.metrics) == ({"ttft_ms": 30.0}, {"ttft_ms": 20.0})


# Medians


def test_medians_are_over_the_sessions_of_a_run_and_cell(history: History) -> None:
    for run in ("r1", "r2"):
        add_run(history, run)
    for place, value in enumerate((1.0, 9.0, 2.0)):
        add_session(history, "r1", value, session=f"1/s/{place}")
    add_session(history, "r1", 5.0, metric="a_metric")
    add_session(history, "r1", 50.0, cell="other")
    add_session(history, "r2", 70.0)
    wanted = {("r1", "c"), ("r2", "c"), ("r2", "none")}
    found = medians(history, wanted)
    assert found == {("r1", "c"): {"a_metric": 5.0, "decode_tok_s": 2.0}, ("r2", "c"): {"decode_tok_s": 70.0}}
    assert list(found["r1", "c"]) == ["a_metric", "decode_tok_s"]
    assert medians(history, wanted, ["a_*"]) == {("r1", "c"): {"a_metric": 5.0}}
    assert medians(history, wanted, ["decode_tok_s"])["r2", "c"] == {"decode_tok_s": 70.0}
    assert medians(history, set()) == {}


def test_medians_stand_in_the_order_of_their_runs(history: History) -> None:
    runs = [f"r{number:02d}" for number in range(12)]
    for run in reversed(runs):
        add_run(history, run)
        add_session(history, run, 1.0)
    assert list(medians(history, {(run, "c") for run in runs})) == [(run, "c") for run in runs]


def test_medians_of_more_cells_than_a_statement_takes(history: History) -> None:
    add_run(history, "r1")
    cells = [f"c{number:04d}" for number in range(1002)]
    row = {"run": "r1", "metric": "m", "session": "s", "iterations": 1, "phone": "p", "serial": "r", "time": day(1)}
    put(history, "sessions", *({**row, "cell": cell, "value": float(place)} for place, cell in enumerate(cells)))
    with history.reading() as connection:  # the one of a database in memory
        opened = connection.connection.driver_connection
        assert isinstance(opened, sqlite3.Connection)
        opened.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)  # what a SQLite of before 2020 takes
    found = medians(history, {("r1", cell) for cell in cells})
    assert found == {("r1", cell): {"m": float(place)} for place, cell in enumerate(cells)}


# Evidence


def test_evidence_is_of_the_last_outcome_of_what_failed(history: History) -> None:
    for run in ("r1", "r2"):
        add_run(history, run)
    statuses = {"f": "FAILED", "e": "ERROR", "p": "PASSED", "s": "SKIPPED", "n": "FAILED", "x": "FAILED"}
    for cell, status in statuses.items():
        add_result(history, "r1", 1, cell, status=status)
    add_result(history, "r2", 2, "f", status="FAILED", target="android", phone="b")
    # Later lines count, whatever the order they were stored in.
    add_outcome(history, "r1", 9, "f", evidence_path="second.log")
    add_outcome(history, "r1", 2, "f", evidence_path="first.log")
    add_outcome(history, "r1", 3, "e", evidence_path="e.log")
    add_outcome(history, "r1", 4, "p", evidence_path="p.log")
    add_outcome(history, "r1", 5, "s", evidence_path="s.log")
    add_outcome(history, "r1", 6, "n", evidence_path="old.log")
    add_outcome(history, "r1", 7, "n", evidence_path=None)
    add_outcome(history, "r1", 11, "x", kind="sample", evidence_path="no-outcome.log")
    add_outcome(history, "r1", 10, "x")
    add_outcome(history, "r2", 1, "f", evidence_path="of-r2.log")
    assert OutcomeRecord.kind == "outcome"
    expected = {("r1", "f"): "second.log", ("r1", "e"): "e.log", ("r2", "f"): "of-r2.log"}
    assert evidence_paths(history) == expected
    assert evidence_paths(history, Choice(target="android")) == {("r2", "f"): "of-r2.log"}
    assert evidence_paths(history, Choice(phone="b")) == {("r2", "f"): "of-r2.log"}
    assert evidence_paths(history, Choice(cells=("e",))) == {("r1", "e"): "e.log"}
    assert evidence_paths(history, Choice(until="2026-01-01", run="r2")) == {}


# Perplexities


def test_perplexities_are_as_recorded_in_the_order_written(history: History) -> None:
    cells = [f"c{number:04d}" for number in range(501)]

    def record(cell: str, tokens: int) -> PerplexityRecord:
        return PerplexityRecord(cell, "PHONE", "kv", tokens, 9, 1.5, 128, 3, 0.5, ((tokens, 1.5),))

    def row(run: str, line: int, made: Record) -> dict[str, Any]:
        body = encode(made, run, day(1)).decode()
        return {"run": run, "line": line, "kind": made.kind, "cell": cells[0], "time": day(1), "body": body}

    for run in ("r1", "r2"):
        add_run(history, run)
    many = [row("r1", 10 + place, record(cell, place + 1)) | {"cell": cell} for place, cell in enumerate(cells)]
    put(history, "records", *many, row("r1", 2, record(cells[0], 7)), row("r2", 1, record(cells[0], 8)))
    put(history, "records", row("r1", 3, OutcomeRecord(cells[0], Status.PASSED)))
    found = perplexities(history, {("r1", cell) for cell in cells} | {("r1", "none")})
    assert found == {
        ("r1", cell): [*([record(cell, 7)] if place == 0 else []), record(cell, place + 1)]
        for place, cell in enumerate(cells)
    }
    assert perplexities(history, {("r2", cells[0]), ("r2", cells[1])}) == {("r2", cells[0]): [record(cells[0], 8)]}
    assert perplexities(history, set()) == {}


# Sessions


def test_sessions_stand_oldest_first_and_a_limit_takes_the_newest(history: History) -> None:
    for run in ("r1", "r2", "r3"):
        add_run(history, run, target="android" if run == "r3" else "sim")
    newest = add_session(history, "r3", 6.0, 3, target="android")
    late = add_session(history, "r1", 5.0, 2, session="a2")
    third = add_session(history, "r2", 4.0, 1, session="a0")
    second = add_session(history, "r1", 3.0, 1, session="b")
    first = add_session(history, "r1", 2.0, 1, session="a1", iterations=8)
    order = [first, second, third, late, newest]
    assert session_values(history, ALL) == order
    assert session_values(history, ALL, 0) == order
    assert session_values(history, ALL, 1) == [newest]
    assert session_values(history, ALL, 3) == [third, late, newest]
    assert session_values(history, ALL, 9) == order


def test_sessions_of_chosen_cells_metrics_phones_targets_runs_and_times(history: History) -> None:
    for number in range(1, 5):
        add_run(history, f"r{number}", target="android" if number == 4 else "sim")
    add_session(history, "r1", 1.0, 1)
    add_session(history, "r2", 2.0, 2, cell="c_d", metric="ttft_ms", phone="b")
    add_session(history, "r3", 3.0, 3, cell="cxd", metric="ttftxms")
    add_session(history, "r4", 4.0, 4, phone="b")

    def of(**choice: Any) -> list[float]:
        return [one.value for one in session_values(history, Choice(**choice))]

    assert of() == [1.0, 2.0, 3.0, 4.0]
    assert of(cells=("c",)) == [1.0, 4.0]
    assert of(cells=("c_*",)) == [2.0]
    assert of(metrics=("ttft_*",)) == [2.0]
    assert of(metrics=("decode_tok_s", "ttftxms")) == [1.0, 3.0, 4.0]
    assert of(phone="b") == [2.0, 4.0]
    assert of(target="android") == [4.0]
    assert of(target="sim") == [1.0, 2.0, 3.0]
    assert of(run="r3") == [3.0]
    assert of(since=day(2), until=day(3)) == [2.0, 3.0]
    assert of(until="2026-01-02") == [1.0, 2.0]
    assert of(phone="b", target="sim", metrics=("ttft_ms",), cells=("c_d",)) == [2.0]


def value(run: str, number: int, height: float, **changes: Any) -> SessionValue:
    parts = {"cell": "c", "metric": "m", "session": "s", "iterations": 1, "phone": "p", "serial": "r", "target": "sim"}
    return SessionValue(run=run, value=height, time=day(number), **(parts | changes))


def test_a_run_is_one_value_the_median_of_its_sessions() -> None:
    found = run_values(
        [
            value("r2", 5, 4.0),
            value("r1", 1, 1.0),
            value("r1", 3, 9.0),
            value("r1", 2, 2.0),
            value("r2", 4, 8.0),
            value("r0", 5, 7.0, target="android"),
            value("r1", 1, 5.0, metric="a"),
            value("r1", 1, 6.0, cell="a"),
        ]
    )
    assert found == {
        ("a", "m"): [RunValue("r1", day(1), 6.0, 1, "sim")],
        ("c", "a"): [RunValue("r1", day(1), 5.0, 1, "sim")],
        ("c", "m"): [
            RunValue("r1", day(3), 2.0, 3, "sim"),
            RunValue("r0", day(5), 7.0, 1, "android"),  # of equal times the run's name decides
            RunValue("r2", day(5), 6.0, 2, "sim"),
        ],
    }
    assert list(found) == [("a", "m"), ("c", "a"), ("c", "m")]
    assert run_values([]) == {}
