"""A run in the formats of others: each is read by a reader or a schema that is not ours."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from big_run import write_big_run
from sample_run import BROKEN, GOOD, LOST, OLD, UNRUN, run_info, wide_records, write_run

from harness.cli import main
from harness.errors import FailureClass
from harness.export.junit import render_junit
from harness.export.prometheus import render_prometheus
from harness.export.pytorch import FAILURE, BenchmarkRecord, pytorch_records, render_pytorch
from harness.export.step_summary import LIMIT, append, gate_words, render_summary
from harness.results import Status, load_run
from harness.results.page import Answer
from harness.results.report import render_html
from harness.results.summary import RunSummary, summarise

SCHEMA = Path(__file__).parent / "schemas" / "junit.xsd"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> RunSummary:
    """Every ending."""
    return summarise(load_run(write_run(tmp_path_factory.mktemp("mixed"))))


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> RunSummary:
    """500 cells."""
    return summarise(load_run(write_big_run(tmp_path_factory.mktemp("big"))))


def _hostile(summary: RunSummary) -> RunSummary:
    bad = "a\x00b\x1b[31m\ud800\ufffe <&\"'> ]]>\nsecond"
    cells = tuple(replace(cell, reason=bad, remedy=bad, evidence=bad) for cell in summary.cells)
    return replace(summary, cells=cells, run=replace(summary.run, host=bad, toolchain={bad: bad}))


@pytest.mark.parametrize("change", [lambda s: s, _hostile, lambda s: replace(s, cells=())])
def test_junit_is_what_the_schema_allows(mixed: RunSummary, change: object, tmp_path: Path) -> None:
    xmlschema = pytest.importorskip("xmlschema")
    path = tmp_path / "junit.xml"
    path.write_text(render_junit(change(mixed)), encoding="utf-8")  # type: ignore[operator]
    xmlschema.XMLSchema(str(SCHEMA)).validate(str(path))


def test_the_schema_can_refuse(mixed: RunSummary) -> None:
    xmlschema = pytest.importorskip("xmlschema")
    schema = xmlschema.XMLSchema(str(SCHEMA))
    made = render_junit(mixed)
    assert schema.is_valid(made)
    for good, bad in (('classname="', 'class="'), ("failure", "broken"), ('tests="5"', 'tests="five"')):
        assert not schema.is_valid(made.replace(good, bad)), bad


def test_junit_says_whose_fault_it_was(mixed: RunSummary, tmp_path: Path) -> None:
    junitparser = pytest.importorskip("junitparser")
    path = tmp_path / "junit.xml"
    path.write_text(render_junit(mixed))
    (suite,) = junitparser.JUnitXml.fromfile(str(path))
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (5, 1, 2, 1)
    found = {case.name: case for case in suite}
    kinds = {name: type(case.result[0]).__name__ if case.result else "" for name, case in found.items()}
    assert kinds == {GOOD: "", BROKEN: "Failure", LOST: "Error", OLD: "Skipped", UNRUN: "Error"}
    assert found[LOST].result[0].type == "INFRA"
    assert "use kv mode" in found[OLD].result[0].text
    assert "final | line" in found[BROKEN].result[0].text
    assert "decode: 3.80 tok/s" in found[GOOD].system_out
    assert suite.hostname == "bench-1"


def test_a_build_failure_is_an_error_in_junit(mixed: RunSummary) -> None:
    cell = replace(mixed.cells[2], failure_class=FailureClass.BUILD)
    made = render_junit(replace(mixed, cells=(cell,)))
    assert '<error type="BUILD"' in made
    assert "<failure" not in made


UNDECIDED = (FailureClass.NOT_JUDGED, FailureClass.INCONCLUSIVE, FailureClass.INVALID)


@pytest.mark.parametrize("kind", UNDECIDED)
def test_what_nobody_can_say_is_an_error_everywhere_and_never_good(mixed: RunSummary, kind: FailureClass) -> None:
    cell = replace(mixed.cells[0], status=Status.ERROR.value, failure_class=kind, reason="two clocks", checks=())
    counts = dict.fromkeys(mixed.counts, 0) | {Status.ERROR.value: 1}
    summary = replace(mixed, cells=(cell,), counts=counts, headline="ERROR")
    junit = render_junit(summary)
    assert f'<error type="{kind}"' in junit
    assert "<failure" not in junit
    shown = render_summary(summary)
    assert f"ERROR {kind}" in shown or (kind in shown and "ERROR" in shown)
    assert "PASSED" not in shown.replace("0 PASSED", "")
    names = {record.metric.name: record for record in pytorch_records(summary)}
    assert names[FAILURE].metric.extra_info["failure_class"] == kind
    assert names[FAILURE].metric.extra_info["failure_type"] == "DEVICE_JOB"
    text = render_prometheus(summary)
    assert f'status="ERROR",failure_class="{kind}"' in text
    # A speed that contradicts the host's clock is no measurement.
    assert ("token_per_sec" in names) is (kind is not FailureClass.INVALID)
    assert ("htpfarm_cell_decode_tokens_per_second{" in text) is (kind is not FailureClass.INVALID)


def test_the_step_summary_of_500_cells_is_whole_in_its_verdict_and_under_the_limit(big: RunSummary) -> None:
    made = render_summary(big)
    assert len(made.encode()) < LIMIT
    assert made.startswith("# FAILED: 500 cells: 20 failed (PRODUCT 20)")
    assert "Cut to fit" not in made
    for cell in big.with_status("FAILED", "ERROR", "NOT RUN"):
        assert f"**{cell.id}**" in made


@pytest.mark.parametrize("limit", [6_000, 20_000, 60_000])
def test_a_small_limit_cuts_cells_and_not_the_verdict(big: RunSummary, limit: int) -> None:
    verdict = "**REGRESSED**: 3 cells of 500 are slower"
    made = render_summary(big, limit, verdict)
    assert len(made.encode()) <= limit
    assert made.startswith(f"# {big.verdict}")
    assert verdict in made
    assert "All of it is in `report.html`" in made
    rows = [line for line in made.splitlines() if line.startswith("|")]
    heads: dict[int, int] = Counter(len(re.findall(r"(?<!\\)\|", row)) for row in rows)
    assert len(heads) <= 2  # the matrix's and the numbers' columns: no row is cut within


def test_long_reasons_of_foreign_text_do_not_crowd_out_the_others(big: RunSummary) -> None:
    cells = tuple(replace(cell, reason="é<|" * 20_000) for cell in big.cells)
    made = render_summary(replace(big, cells=cells))
    assert len(made.encode()) < LIMIT
    assert all(f"**{cell.id}**" in made for cell in big.with_status("FAILED", "ERROR"))
    assert "<|" not in made.replace("&lt;", "")


def test_the_summary_shares_the_file_with_what_is_in_it(mixed: RunSummary, big: RunSummary, tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    append(path, mixed)
    append(path, mixed)
    assert path.read_text().count("# FAILED: 5 cells") == 2
    path.write_text("x" * (LIMIT - 30_000))
    append(path, big)
    assert path.stat().st_size <= LIMIT
    assert "# FAILED: 500 cells" in path.read_text()


def test_pytorch_records_pass_the_schema_and_have_raw_values(mixed: RunSummary) -> None:
    found = [BenchmarkRecord.model_validate(one) for one in json.loads(render_pytorch(mixed))]
    assert found == pytorch_records(mixed)
    by_name = {(one.benchmark.extra_info["cell"], one.metric.name): one for one in found}
    assert by_name[GOOD, "token_per_sec"].metric.benchmark_values == [3.71, 3.9]
    assert by_name[GOOD, "median_ttft_ms"].metric.benchmark_values == [410.0, 410.0]
    assert by_name[GOOD, "model_load_time(ms)"].metric.benchmark_values == [1234.5, 1234.5]
    failed = by_name[BROKEN, FAILURE].metric
    assert (failed.benchmark_values, failed.extra_info["failure_type"]) == ([0.0], "DEVICE_JOB")
    assert by_name[GOOD, "token_per_sec"].model.backend == "qnn-sim"
    assert by_name[GOOD, "token_per_sec"].dependencies["executorch"].version == "1.5.1"
    assert not [one for one in found if one.benchmark.extra_info["cell"] in (OLD, UNRUN)]
    for one in found:
        assert all(math.isfinite(value) for value in one.metric.benchmark_values)


def test_a_failed_build_is_a_git_job(mixed: RunSummary) -> None:
    cell = replace(mixed.cells[2], failure_class=FailureClass.BUILD)
    (record,) = pytorch_records(replace(mixed, cells=(cell,)))
    assert record.metric.extra_info["failure_type"] == "GIT_JOB"


def test_pytorch_records_refuse_what_the_table_has_no_place_for() -> None:
    good = json.loads(render_pytorch(summarise_wide()))[0]
    for change in (
        {"metric": good["metric"] | {"benchmark_values": []}},
        {"metric": good["metric"] | {"extra_info": {"a": 1}}},
        {"runners": []},
        {"surprise": 1},
    ):
        with pytest.raises(ValueError):
            BenchmarkRecord.model_validate(good | change)


def summarise_wide() -> RunSummary:
    """A run's summary without a folder."""
    from harness.results.records import Entry
    from harness.results.store import run_data

    return summarise(run_data([Entry(record) for record in wide_records()], "memory"))


def test_prometheus_reads_it(mixed: RunSummary) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    families = {family.name: family for family in parser.text_string_to_metric_families(render_prometheus(mixed))}
    every = [sample for family in families.values() for sample in family.samples]
    samples = {(one.name, one.labels.get("cell"), one.labels.get("graph")): one.value for one in every}
    assert samples["htpfarm_cell_decode_tokens_per_second", GOOD, None] == pytest.approx(3.805)
    assert samples["htpfarm_cell_ttft_seconds", GOOD, None] == pytest.approx(0.41)
    assert samples["htpfarm_cell_word_perplexity", BROKEN, "kv"] == math.inf
    counts = {s.labels["status"]: s.value for s in families["htpfarm_cells"].samples}
    assert counts == {"FAILED": 1, "ERROR": 1, "NOT RUN": 1, "PASSED": 1, "SKIPPED": 1}
    assert all(sample.labels["target"] == "sim" for sample in every)
    hostile = render_prometheus(_hostile(mixed))
    assert len(list(parser.text_string_to_metric_families(hostile))) == len(families)


def test_the_verb_exports_all_and_appends_where_github_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "reports")
    step = tmp_path / "step.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    names = {"--junit": "j.xml", "--pytorch": "p.json", "--prometheus": "m.prom"}
    options = [word for option, name in names.items() for word in (option, str(tmp_path / "out" / name))]
    assert main(["report", str(folder), *options]) == 1
    said = capsys.readouterr().out
    for path in (*(tmp_path / "out" / name for name in names.values()), step, folder / "report.html"):
        assert path.stat().st_size > 100
        assert str(path) in said
    assert run_info().id in step.read_text()
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    assert main(["report", str(folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["headline"] == "FAILED"


def test_the_gates_answer_comes_first(mixed: RunSummary) -> None:
    blocking = tuple((f"cell-{number}", "decode 5% slower | *really* <b>", "measure again") for number in range(25))
    answer = Answer(False, "run r1", blocking)
    made = render_summary(mixed, verdict=gate_words(answer))
    assert made.index("**Gate: FAIL** against run r1") < made.index("Run 2026") < made.index("## Matrix")
    assert "1. **cell-0** decode 5% slower \\| \\*really\\* &lt;b&gt; *What to do:* measure again" in made
    assert "5 more are in the gate's output." in made
    assert gate_words(Answer(True, "baselines")).startswith("**Gate: PASS**")
    page = render_html(mixed, {}, answer)
    assert page.index("<b>Gate: ✗ FAIL</b> against run r1") < page.index('id="h-matrix"')
    assert "decode 5% slower | *really* &lt;b&gt;" in page
    assert "<b>Gate:" not in render_html(mixed)
