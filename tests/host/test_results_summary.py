from __future__ import annotations

import dataclasses
import io
import itertools
import math
from pathlib import Path

import pytest
from sample_run import (
    BROKEN,
    EVIL,
    GOOD,
    LOST,
    OLD,
    UNRUN,
    perplexity,
    planned,
    run_info,
    sample,
    wide_cell,
    wide_records,
    write_run,
)

from harness.errors import FailureClass
from harness.results import CheckRecord, OutcomeRecord, PlanEntry, Record, RecordWriter, Status, load_run
from harness.results.accuracy import against_before
from harness.results.page import charts, matrix
from harness.results.summary import (
    NOT_RUN,
    RunSummary,
    accepted_per_step,
    exit_status,
    median_of_sessions,
    steps_saved,
    summarise,
)
from harness.results.table import print_table, table_text
from harness.results.text import change, count, duration, number, size, visible
from harness.results.text import perplexity as show_perplexity
from harness.target import Target


@pytest.fixture
def summary(tmp_path: Path) -> RunSummary:
    return summarise(load_run(write_run(tmp_path)))


def _summarise(folder: Path, *records: Record) -> RunSummary:
    writer = RecordWriter(folder)
    for record in (run_info(), *records):
        writer.append(record)
    return summarise(load_run(folder))


def test_each_ending(summary: RunSummary) -> None:
    assert {cell.id: (cell.status, cell.failure_class) for cell in summary.cells} == {
        GOOD: ("PASSED", None),
        BROKEN: ("FAILED", FailureClass.PRODUCT),
        LOST: ("ERROR", FailureClass.INFRA),
        OLD: ("SKIPPED", FailureClass.UNSUPPORTED),
        UNRUN: (NOT_RUN, None),
    }
    assert summary.counts == {"FAILED": 1, "ERROR": 1, "NOT RUN": 1, "PASSED": 1, "SKIPPED": 1}
    assert summary.verdict == (
        "FAILED: 5 cells: 1 failed (PRODUCT 1), 1 error (INFRA 1), 1 not run, 1 passed, 1 skipped"
    )
    old = summary.cells[3]
    assert old.reason.startswith("SM8450 is V69")
    assert old.remedy.startswith("use kv mode")


def test_numbers_of_a_cell(summary: RunSummary) -> None:
    good = summary.cells[0]
    assert good.decode_tok_s == pytest.approx((3.71 + 3.9) / 2)
    assert good.ttft_ms == 410.0
    assert good.peak_mb == 812.0
    assert good.sessions == 2
    assert [(record.ground, record.graph) for record in good.perplexities] == [
        ("FP", "full"),
        ("QDQ", "full"),
        ("PHONE", "kv"),
        ("PHONE", "prefill"),
    ]
    assert good.phones == ("s24",)
    assert summary.cells[2].phones == ("oneplus",)
    assert summary.cells[2].decode_tok_s is None


def test_a_session_counts_once() -> None:
    samples = [sample(GOOD, 0, ttft_ms=value) for value in (1.0, 2.0, 2.0, 2.0, 9.0)]
    samples += [sample(GOOD, 1, ttft_ms=10.0), sample(GOOD, 2, ttft_ms=20.0)]
    assert median_of_sessions(samples, lambda one: one.ttft_ms) == 10.0
    # The same number of session on another phone is another session.
    samples.append(sample(GOOD, 2, ttft_ms=40.0, serial="other"))
    assert median_of_sessions(samples, lambda one: one.ttft_ms) == 15.0


def test_what_was_not_measured_counts_for_nothing() -> None:
    samples = [sample(GOOD, 0, ttft_ms=None), sample(GOOD, 1, ttft_ms=4.0)]
    assert median_of_sessions(samples, lambda one: one.ttft_ms) == 4.0
    assert median_of_sessions(samples[:1], lambda one: one.ttft_ms) is None
    assert median_of_sessions([], lambda one: one.ttft_ms) is None


def test_only_the_last_attempt_is_measured(tmp_path: Path) -> None:
    summary = _summarise(
        tmp_path,
        planned(GOOD, 75),
        sample(GOOD, 0, decode_tok_s=1.0, phone="lost"),
        sample(GOOD, 0, decode_tok_s=5.0, attempt=2),
        OutcomeRecord(GOOD, Status.PASSED, attempts=2),
    )
    assert summary.cells[0].decode_tok_s == 5.0
    assert summary.cells[0].phones == ("s24",)
    assert len(summary.cells[0].samples) == 1


def test_the_last_check_and_perplexity_count(tmp_path: Path) -> None:
    summary = _summarise(
        tmp_path,
        planned(GOOD, 75),
        perplexity(GOOD, "QDQ", "kv", 9.0),
        perplexity(GOOD, "FP", "full", 8.0),
        perplexity(GOOD, "QDQ", "kv", 7.0),
        CheckRecord(GOOD, "a", False),
        CheckRecord(GOOD, "b", True),
        CheckRecord(GOOD, "a", True),
    )
    cell = summary.cells[0]
    assert [record.nll_sum for record in cell.perplexities] == [8.0, 7.0]
    assert [(check.name, check.passed) for check in cell.checks] == [("a", True), ("b", True)]


@pytest.mark.parametrize(
    ("endings", "headline", "status"),
    [
        ([], "NOTHING RAN", 0),
        ([(Status.PASSED, None)], "PASSED", 0),
        ([(Status.PASSED, None), (Status.SKIPPED, FailureClass.UNSUPPORTED)], "PASSED", 0),
        ([(Status.SKIPPED, FailureClass.UNSUPPORTED)], "NOTHING RAN", 0),
        ([(Status.PASSED, None), None], "INCOMPLETE", 3),
        ([(Status.ERROR, FailureClass.INFRA), (Status.ERROR, FailureClass.ENV)], "ERROR", 3),
        ([(Status.ERROR, FailureClass.CONFIG), (Status.ERROR, FailureClass.INFRA)], "ERROR", 2),
        ([(Status.ERROR, FailureClass.BUILD), (Status.ERROR, FailureClass.CONFIG)], "ERROR", 1),
        ([(Status.ERROR, None)], "ERROR", 1),
        ([(Status.ERROR, FailureClass.NOT_JUDGED), (Status.PASSED, None)], "ERROR", 1),
        ([(Status.ERROR, FailureClass.INCONCLUSIVE), (Status.ERROR, FailureClass.INFRA)], "ERROR", 1),
        ([(Status.ERROR, FailureClass.INVALID), (Status.ERROR, FailureClass.CONFIG)], "ERROR", 1),
        ([(Status.FAILED, FailureClass.PERF), (Status.ERROR, FailureClass.INFRA), None], "FAILED", 1),
        ([(Status.FAILED, FailureClass.PRODUCT), (Status.PASSED, None)], "FAILED", 1),
    ],
)
def test_headline_and_exit_status(
    tmp_path: Path, endings: list[tuple[Status, FailureClass | None] | None], headline: str, status: int
) -> None:
    plan: list[PlanEntry] = [planned(f"m{index}-kv-SM8650", 75) for index in range(len(endings))]
    outcomes = [
        OutcomeRecord(entry.cell, *ending) for entry, ending in zip(plan, endings, strict=True) if ending is not None
    ]
    summary = _summarise(tmp_path, *plan, *outcomes)
    assert summary.headline == headline
    assert exit_status(summary) == status


def test_notes(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    RecordWriter(folder).append(sample("stray-kv-SM8650"))
    RecordWriter(folder).append(run_info())
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"record": "power", "schema": 1}\n')
    resumed, raw, stray = summarise(load_run(folder)).notes
    assert "resumed 1 time" in resumed
    assert "line 30: kind 'power' is unknown" in raw
    assert "stray-kv-SM8650" in stray


def test_matrix(summary: RunSummary) -> None:
    table = matrix(summary)
    assert [(column.soc, column.pinned, column.phones) for column in table.columns] == [
        ("SM8450", None, ()),
        ("SM8550", None, ("s23",)),
        ("SM8650", "oneplus", ("oneplus",)),
        ("SM8650", "s24", ("s24",)),
        ("SM8750", None, ()),
    ]
    assert [(row.label, [cell and cell.id for cell in row.cells]) for row in table.rows] == [
        ("tiny_llama · hybrid", [OLD, None, None, GOOD, None]),
        ("tiny_llama · kv", [None, BROKEN, LOST, None, None]),
        ("smollm2_135m · hybrid · kv8", [None, None, None, None, UNRUN]),
    ]


def test_charts(summary: RunSummary) -> None:
    decode = charts(summary)[0]
    assert [(bar.cell.id, round(bar.percent, 1)) for bar in decode.bars] == [(GOOD, 100.0), (BROKEN, 65.7)]


def test_a_perplexity_is_compared_with_the_ground_before_it(summary: RunSummary) -> None:
    good, broken = summary.cells[0], summary.cells[1]
    fp, qdq, kv, _ = good.perplexities
    found = [against_before(record, good) for record in (qdq, kv)]
    assert [other and (other.other.ground, other.word) for other in found] == [("FP", "+2.02 %"), ("QDQ", "+0.10 %")]
    assert against_before(fp, good) is None
    assert against_before(broken.perplexities[0], broken) is None
    assert against_before(dataclasses.replace(kv, words=7), good) is None


def test_lookahead_by_sample_and_cell(tmp_path: Path) -> None:
    cell = "tiny_llama-lookahead-SM8650"
    steps = [sample(cell, session, decode_steps=n, accepted_tokens=63 - n) for session, n in enumerate((20, 30, 63))]
    assert [steps_saved(one) for one in steps] == [43, 33, 0]
    assert [accepted_per_step(one) for one in steps] == [pytest.approx(43 / 20), pytest.approx(1.1), 0.0]
    summary = _summarise(
        tmp_path,
        planned(cell, 75),
        planned(GOOD, 75),
        sample(cell, 0, decode_steps=1, accepted_tokens=62),
        *(dataclasses.replace(one, attempt=2) for one in steps),
        sample(GOOD, decode_steps=63),
    )
    ahead, good = summary.cells
    assert (ahead.decode_steps, ahead.steps_saved, ahead.accepted_per_step) == (30, 33, pytest.approx(1.1))
    assert (good.decode_steps, good.steps_saved, good.accepted_per_step) == (63, 0, None)
    assert summary.has_lookahead


@pytest.mark.parametrize(
    ("steps", "accepted", "saved", "per_step"),
    [(None, None, None, None), (None, 5, None, None), (0, 0, 63, None), (63, None, 0, None), (64, 0, -1, 0.0)],
)
def test_lookahead_that_was_not_recorded_or_did_no_step(
    steps: int | None, accepted: int | None, saved: int | None, per_step: float | None
) -> None:
    one = sample(GOOD, decode_steps=steps, accepted_tokens=accepted)
    assert (steps_saved(one), accepted_per_step(one)) == (saved, per_step)


def test_no_column_for_lookahead_without_a_cell_of_it(summary: RunSummary) -> None:
    assert not summary.has_lookahead
    assert "Lookahead" not in table_text(summary)


def test_a_number_that_is_none_orders_nothing_and_draws_nothing(tmp_path: Path) -> None:
    summary = _summarise(
        tmp_path,
        planned(GOOD, 75),
        *(sample(GOOD, session, ttft_ms=ms) for session, ms in enumerate((1.0, math.nan, 5.0))),
        *(sample(GOOD, session, ttft_ms=3.0, decode_tok_s=math.inf) for session in (3, 4)),
    )
    assert summary.cells[0].ttft_ms == 3.0
    assert "decode, tok/s" in [chart.title for chart in charts(summary)]
    broken = _summarise(tmp_path / "b", planned(GOOD, 75), sample(GOOD, decode_tok_s=math.inf, ttft_ms=math.nan))
    assert broken.cells[0].decode_tok_s == math.inf
    assert broken.cells[0].ttft_ms is None
    assert [chart.title for chart in charts(broken)] == ["prefill, tok/s"]


def test_the_wide_table_fits(tmp_path: Path) -> None:
    text = table_text(summarise(load_run(write_run(tmp_path, made=wide_records()))))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in text
    ahead = lines[lines.index("Lookahead: medians over sessions of a generation") :]
    name = wide_cell("lookahead", "s24")
    assert next(line.split() for line in ahead if name in line) == [name, "1.57", "24.5", "38.5"]
    evals = lines[next(index for index, line in enumerate(lines) if line.startswith("lm-eval tasks")) :]
    assert [line.split() for line in evals if wide_cell("hybrid", "s25") in line] == [
        [wide_cell("hybrid", "s25"), "wikitext_local", "word_perplexity", "52.90", "53.90", "53.90", "53.90"]
    ]
    assert sum("hellaswag_local acc_norm" in " ".join(line.split()) for line in evals) == 12
    assert "TTFT against prompt length of 12 cell(s) is drawn in the report" in text


def test_table_fits_and_says_everything(summary: RunSummary) -> None:
    text = table_text(summary)
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "\x1b" not in text
    assert "sim: simulator, no phone" in text
    assert "sim speed is not a phone's speed" in text
    assert "…" not in text
    for piece in ("PASSED", "FAILED", "PRODUCT", "ERROR", "INFRA", "SKIPPED", "NOT RUN", "3.80", "167.5 kv"):
        assert piece in text
    assert "perplexity on the phone [kv] is out of bounds | inf" in text
    assert "what to do: use kv mode (--modes kv), which has one graph and shares nothing" in text
    assert "evidence: evidence/broken.log" in text
    assert text.rstrip().splitlines()[-1] == summary.verdict


def test_only_the_simulators_table_says_sim(tmp_path: Path) -> None:
    text = table_text(summarise(load_run(write_run(tmp_path, Target.ANDROID))))
    assert "sim" not in text
    assert "(android)" in text


def test_table_holds_great_numbers_and_long_names(tmp_path: Path) -> None:
    cell = "a_model_with_quite_a_long_name-lookahead-SXR2230P-block_wise@the_third_phone_of_the_rack"
    summary = _summarise(
        tmp_path,
        planned(cell, 75),
        sample(cell, ttft_ms=123456.0, load_ms=1e7, peak_rss_mb=123456.0, phone="the_third_phone_of_the_rack"),
        *(perplexity(cell, "PHONE", graph, 20000.0) for graph in ("kv", "prefill")),
        OutcomeRecord(cell, Status.FAILED, FailureClass.UNSUPPORTED, "word " * 60, "x" * 300, "\x1b]0;title\x07"),
    )
    text = table_text(summary)
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "\x1b" not in text
    assert "\x07" not in text


def test_print_table_is_plain_for_a_file(summary: RunSummary) -> None:
    file = io.StringIO()
    print_table(summary, file)
    assert file.getvalue() == table_text(summary)


def test_foreign_text_moves_no_cursor() -> None:
    assert visible(EVIL).isprintable() is False  # the newline stays
    assert not set(visible(EVIL)) & {"\x1b", "\u202e", "\r"}
    assert visible("a\tb\nc\r\nd\re\x9b\ud800\uffff") == "a\tb\nc\nd␍e\ufffd\\ud800\ufffd"


def test_how_numbers_are_shown() -> None:
    shown = [number(value) for value in (None, 0, 0.0001, 0.1234, 1.234, 12.34, 123.4, 12345.6, 1.2e7, math.inf)]
    assert shown == ["-", "0.000", "1.00e-04", "0.123", "1.23", "12.3", "123", "12346", "1.20e+07", "inf"]
    assert [show_perplexity(value) for value in (1.5, 12.345, 123.45, 1234.5, 1e9)] == [
        "1.50",
        "12.35",
        "123.5",
        "1234",
        "1.00e+09",
    ]
    assert [size(count) for count in (0, 999, 1000, 7_654_321, 12**10)] == [
        "0 B",
        "999 B",
        "1.00 kB",
        "7.65 MB",
        "61.9 GB",
    ]
    assert [duration(value) for value in (0.5, 59.9, 95.65, 7384)] == ["0.500 s", "59.9 s", "1 min 36 s", "2 h 03 min"]
    assert [count(value) for value in (None, 24, 24.0, 23.5, 0)] == ["-", "24", "24", "23.5", "0"]
    assert [change(new, old) for new, old in itertools.product((1.1, math.inf), (1.0, 0.0))] == [
        "+10.00 %",
        "-",
        "-",
        "-",
    ]
