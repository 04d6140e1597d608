from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from sample_run import GOOD, perplexity, planned, run_info, wide_cell, wide_records, write_run

from harness.results import Record, TaskRecord, load_run
from harness.results.accuracy import against_before, against_kv, columns, link, tasks, where, with_tasks
from harness.results.records import Graph, Ground
from harness.results.report import render_html, render_markdown
from harness.results.summary import CellSummary, RunSummary, summarise
from harness.results.table import table_text


def _summary(folder: Path, *records: Record) -> RunSummary:
    return summarise(load_run(write_run(folder, made=[run_info(), planned(GOOD, 75), *records])))


def _task(ground: Ground, graph: Graph, **metrics: float) -> TaskRecord:
    return TaskRecord(GOOD, ground, graph, "cloze", metrics, 8, 8, 0, 1234, 32, 4.5, f"tasks/{ground} {graph}.json")


def _cell(folder: Path, *records: Record) -> CellSummary:
    return _summary(folder, *records).cells[0]


def _changes(cell: CellSummary) -> list[tuple[str, str]]:
    found = []
    for record in cell.perplexities:
        for other in (against_before(record, cell), against_kv(record, cell)):
            found.append((where(other.other), other.token) if other else ("", ""))
    return found


def test_each_graph_of_the_phone_against_qdq_and_against_each_other(tmp_path: Path) -> None:
    cell = _cell(
        tmp_path,
        *(
            perplexity(GOOD, ground, graph, nll)
            for ground, graph, nll in (
                ("PHONE", "prefill", 5123.0),
                ("PHONE", "kv", 5121.0),
                ("QDQ", "full", 5120.0),
                ("FP", "full", 5100.0),
            )
        ),
    )
    nats = 100 / 2032
    assert _changes(cell) == [
        *(("", ""), ("", "")),
        *(("FP", f"{20 * nats + 0.0049:+.2f} %"), ("", "")),
        *(("QDQ", f"{nats:+.2f} %"), ("", "")),
        *(("QDQ", f"{3 * nats:+.2f} %"), ("phone kv", f"{2 * nats:+.2f} %")),
    ]
    prefill = against_before(cell.perplexities[3], cell)
    assert prefill is not None
    assert prefill.word == "+0.30 %"


def test_the_same_graph_of_the_ground_before_comes_first(tmp_path: Path) -> None:
    cell = _cell(
        tmp_path,
        perplexity(GOOD, "QDQ", "full", 100.0),
        perplexity(GOOD, "QDQ", "kv", 200.0),
        perplexity(GOOD, "PHONE", "kv", 200.0),
        perplexity(GOOD, "PHONE", "prefill", 100.0),
    )
    found = [against_before(record, cell) for record in cell.on("PHONE")]
    assert [other and (where(other.other), other.word) for other in found] == [
        ("QDQ kv", "+0.00 %"),
        ("QDQ", "+0.00 %"),
    ]


def test_without_qdq_the_phone_is_held_against_fp_and_without_both_against_nothing(tmp_path: Path) -> None:
    cell = _cell(tmp_path / "a", perplexity(GOOD, "FP", "full", 100.0), perplexity(GOOD, "PHONE", "kv", 100.0))
    found = against_before(cell.on("PHONE")[0], cell)
    assert found is not None
    assert found.other.ground == "FP"
    alone = _cell(tmp_path / "b", perplexity(GOOD, "PHONE", "kv", 100.0))
    assert against_before(alone.perplexities[0], alone) is None


def test_another_text_does_not_compare(tmp_path: Path) -> None:
    qdq = perplexity(GOOD, "QDQ", "full", 100.0)
    for index, other in enumerate((replace(qdq, words=7), replace(qdq, tokens=7))):
        cell = _cell(tmp_path / str(index), qdq, replace(other, ground="PHONE", graph="kv"))
        assert against_before(cell.on("PHONE")[0], cell) is None


def test_a_broken_model_has_no_change(tmp_path: Path) -> None:
    summary = _summary(
        tmp_path,
        perplexity(GOOD, "QDQ", "full", 100.0),
        perplexity(GOOD, "PHONE", "kv", math.inf),
        perplexity(GOOD, "PHONE", "prefill", math.nan),
    )
    cell = summary.cells[0]
    for record in cell.on("PHONE"):
        found = against_before(record, cell)
        assert found is not None
        assert (found.word, found.token) == ("-", "-")
    assert f"| {GOOD} | 1.05 | inf (-) | nan (-) | - | 2032 |" in render_markdown(summary)
    assert "inf" in render_html(summary)


def test_columns_are_the_grounds_and_graphs_there_are(tmp_path: Path) -> None:
    wide = summarise(load_run(write_run(tmp_path, made=wide_records())))
    assert [column.head for column in columns(wide.cells[0].perplexities)] == ["FP", "QDQ", "phone kv", "phone prefill"]
    kv = next(cell for cell in wide.cells if cell.id == wide_cell("kv", "s24"))
    assert [column.head for column in columns(kv.perplexities)] == ["FP", "QDQ", "phone kv"]
    assert [column.against for column in columns(kv.perplexities)] == [None, "FP", "QDQ"]
    assert [column.against for column in columns(kv.on("FP") + kv.on("PHONE"))] == [None, "FP"]
    assert columns(kv.on("PHONE"))[0].against is None
    assert columns([]) == ()


def test_a_change_stands_only_under_the_ground_that_it_is_against(tmp_path: Path) -> None:
    other = "tiny_llama-kv-SM8650"
    both = [perplexity(GOOD, "FP", "full", 90.0), perplexity(GOOD, "QDQ", "full", 100.0)]
    fp = replace(both[0], cell=other)
    phone = [perplexity(cell, "PHONE", "kv", 110.0) for cell in (GOOD, other)]
    markdown = render_markdown(_summary(tmp_path, planned(other, 75), *both, fp, *phone))
    assert "| cell | FP | QDQ vs FP | phone kv vs QDQ | prefill vs kv |" in markdown
    assert f"| {GOOD} | 1.05 | 1.05 (+0.49 %) | 1.06 (+0.49 %) | - |" in markdown
    assert f"| {other} | 1.05 | - | 1.06 | - |" in markdown
    assert "a word 1.12, a token 1.06, context 127, 2032 tokens, +2.02 % (a token's +0.99 %) vs FP" in markdown


def test_tasks_by_metric_and_ground(tmp_path: Path) -> None:
    cell = _cell(
        tmp_path,
        _task("PHONE", "prefill", acc=0.25),
        _task("FP", "full", acc=0.5, acc_stderr=0.1, word_perplexity=50.0),
        _task("QDQ", "full", acc=0.25, acc_stderr=0.2, word_perplexity=55.0),
        _task("PHONE", "kv", acc=0.5, acc_stderr=0.1, word_perplexity=math.inf),
        _task("PHONE", "prefill", acc=0.75, odd_stderr=1.0),
    )
    (task,) = tasks(cell)
    assert task.name == "cloze"
    assert task.settings == "8 documents, limit 8, 0-shot, seed 1234"
    assert [metric.name for metric in task.metrics] == ["acc", "word_perplexity", "odd_stderr"]
    acc, ppl, _ = task.metrics
    heads = columns(task.records)
    assert [[(v.shown, v.stderr, v.change) for v in acc.at(column)] for column in heads] == [
        [("0.500", 0.1, "")],
        [("0.250", 0.2, "-0.250")],
        [("0.500", 0.1, "+0.250")],
        [("0.750", None, "+0.500")],
    ]
    assert [[(v.shown, v.change) for v in ppl.at(column)] for column in heads] == [
        [("50.00", "")],
        [("55.00", "+10.00 %")],
        [("inf", "-")],
        [],
    ]


def test_the_error_of_a_filtered_metric_is_its_error(tmp_path: Path) -> None:
    cell = _cell(tmp_path, _task("FP", "full", **{"acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.6}))
    (task,) = tasks(cell)
    assert [(metric.name, metric.values[0].stderr) for metric in task.metrics] == [
        ("acc,none", 0.1),
        ("acc_norm,none", None),
    ]
    assert task.main is task.metrics[1]


def test_no_change_over_other_documents_or_settings(tmp_path: Path) -> None:
    cell = _cell(tmp_path, _task("FP", "full", acc=0.5), replace(_task("QDQ", "full", acc=0.75), samples=4))
    (task,) = tasks(cell)
    assert task.metrics[0].values[1].change == ""
    assert task.settings == (
        "FP: 8 documents, limit 8, 0-shot, seed 1234; QDQ: 4 documents, limit 8, 0-shot, seed 1234"
    )


def test_the_last_record_of_a_task_counts(tmp_path: Path) -> None:
    cell = _cell(
        tmp_path,
        _task("PHONE", "kv", acc=0.1),
        replace(_task("PHONE", "kv", acc=0.2), task="other"),
        _task("PHONE", "kv", acc=0.3),
    )
    assert [(task.name, task.metrics[0].values[0].value) for task in tasks(cell)] == [("cloze", 0.3), ("other", 0.2)]


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("tasks/a b#1?.json", "tasks/a%20b%231%3F.json"),
        ("cells/m-kv-SM8650@s24/c.json", "cells/m-kv-SM8650%40s24/c.json"),
        ("javascript:alert(1)", "javascript%3Aalert%281%29"),
        ('x" onclick="y', "x%22%20onclick%3D%22y"),
        ("", ""),
        (".", ""),
        ("/etc/passwd", ""),
        ("//host/x", ""),
        ("../other/x.json", ""),
        ("a/../../x", ""),
        ("\\\\host\\x", ""),
        ("a\x00b", ""),
        ("a\ud800", ""),
    ],
)
def test_links_stay_in_the_runs_folder(path: str, url: str) -> None:
    assert link(path) == url


def test_the_page_and_the_markdown_link_to_lm_evals_json(tmp_path: Path) -> None:
    evil = "<img src=x> | `a` [b](c)"
    summary = _summary(
        tmp_path,
        _task("FP", "full", acc=0.5, acc_stderr=0.1),
        replace(_task("QDQ", "full", acc=0.5), path="../../secret"),
        replace(_task("PHONE", "kv", **{evil: math.nan}), task=evil, path="javascript:alert(1)"),
    )
    html, markdown = render_html(summary), render_markdown(summary)
    assert '<a href="tasks/FP%20full.json">FP</a>' in html
    assert "[FP](tasks/FP%20full.json), QDQ: ../../secret |" in markdown
    assert "../../secret" not in " ".join(re.findall(r'href="[^"]*"', html))
    assert 'href="javascript:' not in html
    assert "(javascript:" not in markdown
    assert "<img" not in html
    assert "<img" not in markdown
    assert "0.500 ± 0.100" in html
    rows = [line for line in markdown.splitlines() if line.startswith(f"| {GOOD} | ") and "documents" in line]
    assert len(rows) == 2
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8}


def test_a_task_without_metrics_is_named(tmp_path: Path) -> None:
    summary = _summary(tmp_path, _task("FP", "full"))
    assert "no metric" in render_html(summary)
    assert with_tasks(summary)[0][1][0].main is None
    assert table_text(summary)


def test_a_run_without_any_says_nothing_of_them(tmp_path: Path) -> None:
    summary = _summary(tmp_path)
    for text in (render_html(summary), render_markdown(summary), table_text(summary)):
        assert "lm-eval" not in text
        assert "prefill vs kv" not in text
        assert "ookahead" not in text.replace(".lookahead", "")


def test_the_wide_run_shows_all_of_it(tmp_path: Path) -> None:
    summary = summarise(load_run(write_run(tmp_path, made=wide_records())))
    markdown = render_markdown(summary)
    hybrid, kv = wide_cell("hybrid", "s24"), wide_cell("kv", "s24")
    assert f"| {hybrid} | 6.85 | 7.00 (+2.14 %) | 7.00 (-0.01 %) | 7.01 (+0.16 %) | +0.17 % |" in markdown
    assert f"| {kv} | 6.85 | 7.00 (+2.14 %) | 7.00 (-0.01 %) | - | - |" in markdown
    assert (
        f"| {hybrid} | hellaswag_local (40 documents, limit 40, 0-shot, seed 1234) | acc | 0.520 ± 0.079 " in markdown
    )
    html = " ".join(re.sub(r"<[^>]+>", " ", render_html(summary)).split())
    assert "prefill vs kv" in html
    assert f"{hybrid} 6.85 7.00 +2.14 % 7.00 -0.01 % 7.01 +0.16 % +0.17 %" in html
    assert f"{kv} 6.85 7.00 +2.14 % 7.00 -0.01 % - -" in html
    assert "+0.35 %, +0.17 % vs phone kv" in html
