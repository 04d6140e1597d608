"""The compatibility matrix: what counts, and what its outputs say."""

from __future__ import annotations

import csv
import io
import itertools
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from browser import SCHEMES, WIDTHS, browser, overflows, page, serious
from compat_results import NOW, build_failed, failed, result
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from sample_run import EVIL, wide_records, write_run

from harness.cli import main
from harness.compatibility import Result, State, compatibility
from harness.compatibility.matrix import Change, entry
from harness.compatibility.result import RunFolders, folder_results
from harness.compatibility.show import (
    CSV_COLUMNS,
    age,
    as_data,
    print_matrix,
    render_csv,
    render_html,
    render_json,
    render_markdown,
)
from harness.compatibility.sources import Gates, Joined
from harness.models import load_models
from harness.paths import MODELS
from harness.soc import SOCS
from harness.target import Target


def test_the_latest_result_of_a_phone_counts() -> None:
    assert entry([failed(day=19), result(day=20)], NOW).state is State.RUNS
    found = entry([result(day=20), failed(day=21)], NOW)
    assert (found.state, found.age_days, found.failing) == (State.FAILS, 3.0, ("s24",))
    assert found.last_good is not None
    assert found.last_good.run == "r1"


def test_a_failure_on_one_phone_is_not_hidden_by_another() -> None:
    found = entry([failed(day=18, phone="oneplus12"), result(day=20)], NOW)
    assert (found.state, found.phones, found.failing) == (State.FAILS, ("oneplus12", "s24"), ("oneplus12",))
    assert found.result is not None
    assert found.result.run == "r2"


@pytest.mark.parametrize(
    ("name", "word"), [("NOT_JUDGED", "not judged"), ("INCONCLUSIVE", "inconclusive"), ("INVALID", "invalid")]
)
def test_what_nobody_can_say_is_told_by_its_own_word_and_does_not_run(name: str, word: str) -> None:
    unsaid = replace(result(day=22), run="r9", status="ERROR", failure_class=name, reason="why not")
    found = entry([result(day=20), unsaid], NOW)
    assert (found.state, found.word, found.failing) == (State.UNDECIDED, word, ())
    assert found.last_good is not None
    assert found.last_good.run == "r1"
    assert entry([unsaid, failed(day=23)], NOW).state is State.FAILS
    assert entry([failed(day=21, phone="oneplus12"), unsaid], NOW).state is State.FAILS
    assert entry([unsaid, result(day=23)], NOW).state is State.RUNS
    matrix = compatibility([result(day=20), unsaid], NOW)
    assert (matrix.counts[State.RUNS], matrix.counts[State.UNDECIDED]) == (0, 1)
    console = Console(record=True, width=200, file=io.StringIO())
    print_matrix(matrix, console)
    html, text, shown = render_html(matrix), render_markdown(matrix), console.export_text()
    (row,) = csv.DictReader(io.StringIO(render_csv(matrix)))
    assert (row["state"], row["failure_class"]) == ("undecided", name)
    assert "0 of 1 cells run" in html
    assert f"<b>{word}</b>" in html
    assert 'data-status="error"' in html
    assert "## Undecided" in text
    assert f"? {word}, last good" in text
    for said in (text, shown):
        assert f"? {word}" in said
        assert "why not" in said
        assert "✓" not in said


def test_a_build_failure_is_of_all_phones_until_something_runs() -> None:
    found = entry([result(), build_failed()], NOW)
    assert (found.state, found.failing, found.changed) == (State.FAILS, (), (Change("qnn", "2.48", "2.51"),))
    assert entry([build_failed(day=19), result(day=20)], NOW).state is State.RUNS
    pinned = [build_failed(phone="s24"), build_failed(phone="oneplus12")]
    assert entry([*pinned, result(day=23, phone="s24")], NOW).state is State.RUNS


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "ERROR", "failure_class": "INFRA"},
        {"status": "ERROR", "failure_class": "ENV"},
        {"status": "NOT RUN"},
        {"status": "SKIPPED", "reason": "not selected (-k or a test's name)"},
        {"reason": "compiled; not run (--compile-only)"},
    ],
)
def test_what_says_nothing_leaves_the_result_before_it(changes: dict[str, str]) -> None:
    silent = result("r9", 23, **changes)
    alone = entry([silent], NOW)
    assert alone.state is State.NOT_TRIED
    assert alone.note == (f"{silent.failure_class}: " if silent.failure_class else "") + silent.reason
    for before in (result(), failed()):
        found = entry([before, silent], NOW)
        assert found.result == before


def test_a_gate_is_unsupported_with_its_reason() -> None:
    gate = {"status": "SKIPPED", "failure_class": "UNSUPPORTED", "gate": "weight_sharing", "reason": "V69", "phone": ""}
    found = entry([result(**gate)], NOW)
    assert found.state is State.UNSUPPORTED
    assert found.result is not None
    assert found.result.reason == "V69"


def test_a_compile_counts_as_the_last_good_of_a_build_failure() -> None:
    compiled = result(day=19, reason="compiled; not run (--compile-only)", phone="")
    found = entry([compiled, build_failed()], NOW)
    assert found.last_good == compiled


def test_phones_and_simulator_are_two_columns() -> None:
    matrix = compatibility([result(), failed(target="android")], NOW)
    assert [(column.soc, column.target) for column in matrix.columns] == [("SM8650", "android"), ("SM8650", "sim")]
    assert [matrix.entries[matrix.rows[0], column].state for column in matrix.columns] == [State.FAILS, State.RUNS]


_RESULTS = st.lists(
    st.builds(
        lambda make, day, run, phone, mode, soc, target: make(
            f"r{run}", day, phone=phone, mode=mode, soc=soc, target=target
        ),
        st.sampled_from([result, failed, build_failed]),
        st.integers(1, 24),
        st.integers(0, 5),
        st.sampled_from(["s24", "s25", ""]),
        st.sampled_from(["kv", "hybrid"]),
        st.sampled_from(["SM8650", "SM8750"]),
        st.sampled_from(["sim", "android"]),
    ),
    max_size=20,
    unique_by=lambda found: (found.run, found.cell, found.mode, found.soc, found.target, found.phone, found.time),
)


@settings(max_examples=60, deadline=None)
@given(_RESULTS, st.randoms(use_true_random=False))
def test_the_order_of_results_does_not_matter_and_no_cell_is_lost(results: list[Result], rng: random.Random) -> None:
    matrix = compatibility(results, NOW)
    shuffled = list(results)
    rng.shuffle(shuffled)
    again = compatibility(shuffled, NOW)
    assert (matrix.rows, matrix.columns, matrix.counts) == (again.rows, again.columns, again.counts)
    assert len(matrix.entries) == len(matrix.rows) * len(matrix.columns)
    assert sum(matrix.counts.values()) == len(matrix.entries)
    for found in results:
        row = next(row for row in matrix.rows if (row.model, row.mode) == (found.model, found.mode))
        column = next(c for c in matrix.columns if (c.soc, c.target) == (found.soc, found.target))
        assert matrix.entries[row, column].state is not State.NOT_TRIED


def test_runs_folders_give_what_their_records_say(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    found = {one.cell: one for one in folder_results(folder)}
    good = found["tiny_llama-hybrid-SM8650@s24"]
    assert (good.status, good.phone, good.ttft_ms) == ("PASSED", "s24", 410.0)
    assert [score.graph for score in good.scores] == ["kv", "prefill"]
    assert good.time > "2026-01"
    assert good.toolchain["qnn"] == "2.4.0"
    states = {
        row.label + column.soc: e.state for (row, column), e in compatibility(found.values(), NOW).entries.items()
    }
    assert states["tiny_llama · kvSM8550"] is State.FAILS
    assert states["tiny_llama · hybridSM8450"] is State.UNSUPPORTED
    assert states["tiny_llama · kvSM8650"] is State.NOT_TRIED  # its phone was lost
    assert states["smollm2_135m · hybrid · kv8SM8750"] is State.NOT_TRIED
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "records.jsonl").write_text("{}\n")
    assert len(list(RunFolders.below(tmp_path).results())) == 5


def test_of_two_sources_a_run_counts_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    one = RunFolders((folder,))
    assert len(list(Joined((one, one)).results())) == 5


def test_gates_fill_in_what_nobody_ran() -> None:
    models = [load_models(MODELS)["tiny_llama"]]
    gates = Gates(models, [SOCS["SM8450"], SOCS["SM8650"]], Target.ANDROID, (2, 48))
    matrix = compatibility([*gates.results(), result(target="android")], NOW)
    states = {(row.mode, column.soc): found.state for (row, column), found in matrix.entries.items()}
    assert states["hybrid", "SM8450"] is State.UNSUPPORTED
    assert (states["hybrid", "SM8650"], states["kv", "SM8650"]) == (State.NOT_TRIED, State.RUNS)
    assert matrix.runs == 1


def _all_states() -> list[Result]:
    gate = {
        "status": "SKIPPED",
        "failure_class": "UNSUPPORTED",
        "gate": "g",
        "reason": "V69 has none",
        "remedy": "use kv",
    }
    return [
        result(),
        failed(mode="hybrid", reason="=1+1", evidence=EVIL),
        result(mode="hybrid", day=3, recipe="upstream"),
        result(soc="SM8450", arch=69, **gate),
        build_failed(model="<script>alert(1)</script>", mode="kv"),
        result("r8", 24, mode="lookahead", status="ERROR", failure_class="INFRA", reason="lost"),
    ]


def test_json_and_csv_have_a_row_a_cell() -> None:
    matrix = compatibility(_all_states(), NOW)
    data = json.loads(render_json(matrix))
    assert data == json.loads(json.dumps(as_data(matrix)))
    assert len(data["cells"]) == len(matrix.entries)
    assert sum(data["counts"].values()) == len(data["cells"])
    rows = list(csv.DictReader(io.StringIO(render_csv(matrix))))
    assert len(rows) == len(matrix.entries)
    assert tuple(rows[0]) == CSV_COLUMNS
    bad = next(row for row in rows if row["failure_class"] == "PRODUCT")
    assert (bad["reason"], bad["last_good_run"], bad["state"]) == ("'=1+1", "r1", "fails")


def test_markdown_has_whole_tables_and_escapes() -> None:
    text = render_markdown(compatibility(_all_states(), NOW))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside
    assert "last good: r1" in text
    assert "V69 has none" in text
    for before, line in itertools.pairwise(text.splitlines()):
        if line.startswith("#"):
            assert before == ""


def test_the_terminal_says_why() -> None:
    out = io.StringIO()
    print_matrix(compatibility(_all_states(), NOW), Console(file=out, width=160))
    for piece in ("PRODUCT: =1+1", "last good: r1", "last good: none known", "V69 has none", "1 runs, 2 fails"):
        assert piece in out.getvalue()


def test_age() -> None:
    assert [age(days) for days in (None, 0.0, 0.01, 0.5, 1.9, 2.0, 400.2)] == [
        "-", "0 min", "14 min", "12 h", "46 h", "2 d", "400 d",
    ]  # fmt: skip


def test_the_verb_writes_and_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "reports", made=wide_records())
    where = ["--reports", str(tmp_path / "reports")]
    made = [tmp_path / "out" / f"m.{name}" for name in ("html", "md", "csv")]
    options = [word for pair in zip(("--html", "--markdown", "--csv"), map(str, made), strict=True) for word in pair]
    assert main(["matrix", *where, *options]) == 0
    assert capsys.readouterr().out.split() == [str(path) for path in made]
    assert all(path.stat().st_size > 500 for path in made)
    assert main(["matrix", *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["runs"] == 9
    assert main(["matrix", "--reports", str(tmp_path / "none")]) == 2
    assert "run cells first" in capsys.readouterr().err


def test_the_page_in_a_browser(tmp_path: Path) -> None:
    path = tmp_path / "matrix.html"
    path.write_text(render_html(compatibility(_all_states(), NOW)))
    with browser() as opened:
        for width, scheme in itertools.product(WIDTHS, SCHEMES):
            with page(opened, path.as_uri(), width, scheme) as found:
                assert serious(found) == []
                assert overflows(found) <= 0
        with page(opened, path.as_uri()) as found:
            assert found.get_by_text("<script>alert(1)</script>").first.is_visible()
            assert found.locator("script").count() == 1
            found.get_by_label("Find").fill("hybrid")
            assert found.locator(".matrix tbody tr:visible").count() == 1
            found.get_by_role("status").get_by_text("of 8 cells shown").wait_for()
            found.get_by_role("button", name="Show all").click()
            found.get_by_label("runs").uncheck()
            assert found.locator(".matrix td.passed:not(.dim)").count() == 0


def test_ages_differ_by_now() -> None:
    later = replace(result(), time="")
    assert entry([later], NOW).age_days is None
