"""The matrix of a real history: runs of several versions on SQLite → HTML, Markdown, JSON, CSV, by the verb itself."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sample_run import perplexity, planned, run_info, sample

from harness.cli import main
from harness.compatibility import Result
from harness.compatibility.result import folder_results
from harness.compatibility.sources import FromHistory, Joined
from harness.errors import FailureClass
from harness.history.store import History
from harness.results import OutcomeRecord, Record, Status
from harness.results.records import encode
from harness.results.store import RECORDS
from harness.target import Target
from harness.toolchain.version import qnn_words, version_words

KV, HYBRID, LOOKAHEAD, OLD = (
    "tiny_llama-kv-SM8650",
    "tiny_llama-hybrid-SM8650",
    "tiny_llama-lookahead-SM8650",
    "tiny_llama-hybrid-SM8450",
)
QNN_248, QNN_251 = "onnxruntime-qnn 2.4.0", "onnxruntime-qnn 2.7.0"
LOG = "lowering\nQnnDsp <E> could not create op: q::ConvLayer_s1.opt\nQnnDsp <E> graph prepare failed"
LOWERING = OutcomeRecord(
    HYBRID, Status.ERROR, FailureClass.BUILD, "lowering failed", "read build.log", LOG, "build-logs/x.log"
)
FIRST, COMPILED, BROKEN, PHONE = "r1-all-good", "r2-compiled", "r3-new-qnn", "r4-phone"


def write(
    reports: Path, name: str, days_ago: float, qnn: str, made: Sequence[Record], target: Target = Target.SIM
) -> Path:
    """A run's folder whose records were written so many days ago."""
    when = (datetime.now(UTC) - timedelta(days=days_ago)).isoformat(timespec="milliseconds")
    info = replace(run_info(target), id=name, started=when, toolchain={"executorch": "1.5.1", "qnn": qnn})
    folder = reports / name
    folder.mkdir(parents=True, exist_ok=True)
    plan = [replace(planned(cell, 69, skip=True) if cell == OLD else planned(cell, 75)) for cell in _cells(made)]
    (folder / RECORDS).write_bytes(b"".join(encode(record, name, when) for record in (info, *plan, *made)))
    return folder


def _cells(made: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(str(record.cell) for record in made))  # type: ignore[attr-defined]


def passed(cell: str, decode: float, target: Target = Target.SIM, **changes: Any) -> list[Record]:
    return [
        sample(cell, 0, decode_tok_s=decode - 1, ttft_ms=99.0, target=target),
        sample(cell, 1, decode_tok_s=decode + 1, ttft_ms=101.0, target=target),
        perplexity(cell, "PHONE", "kv", 3910.0),
        OutcomeRecord(cell, Status.PASSED, phone="s24", **changes),
    ]


def compiled(cell: str) -> list[Record]:
    return [OutcomeRecord(cell, Status.PASSED, reason="compiled; not run (--compile-only)")]


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """Four runs, taken into the history and then removed: what the matrix says can come from the history alone."""
    unsupported = OutcomeRecord(OLD, Status.SKIPPED, FailureClass.UNSUPPORTED)
    lost = OutcomeRecord(LOOKAHEAD, Status.ERROR, FailureClass.INFRA, "adb push timed out", "check the cable")
    folder = tmp_path / "reports"
    runs = [
        write(folder, FIRST, 9, QNN_248, [*passed(KV, 12.0), *passed(HYBRID, 15.0), unsupported]),
        write(folder, COMPILED, 5, QNN_248, [*compiled(KV), *compiled(HYBRID)]),
        write(folder, BROKEN, 2, QNN_251, [LOWERING, lost]),
        write(folder, PHONE, 1, QNN_248, passed(KV, 33.0, Target.ANDROID), Target.ANDROID),
    ]
    with History(f"sqlite:///{folder / 'history.sqlite'}") as history:
        for run in runs:
            history.import_run(run)
    for run in runs:
        (run / RECORDS).unlink()
        run.rmdir()
    return folder


def matrix(reports: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["matrix", "--reports", str(reports), *words]) == 0
    return capsys.readouterr().out


def cells_of(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(row["mode"], row["soc"], row["target"]): row for row in rows}


def test_json_says_all_there_is(reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(matrix(reports, capsys, "--json"))
    assert data["runs"] == 4
    assert data["counts"] == {"runs": 2, "fails": 1, "undecided": 0, "unsupported": 1, "not tried": 5}
    found = cells_of(data["cells"])
    broken = found["hybrid", "SM8650", "sim"]
    expected = {
        "state": "fails",
        "failure_class": "BUILD",
        "signature": "op-not-prepared",
        "reason": "lowering failed",
        "remedy": "read build.log",
        "evidence": LOG,
        "evidence_path": "build-logs/x.log",
        "run": BROKEN,
        "versions": "QNN 2.51 (onnxruntime-qnn 2.7.0), ExecuTorch 1.5.1",
        "last_good_run": COMPILED,  # for a build to compile is good
        "last_good_versions": "QNN 2.48 (onnxruntime-qnn 2.4.0), ExecuTorch 1.5.1",
        "changed": ["qnn onnxruntime-qnn 2.4.0 → onnxruntime-qnn 2.7.0"],
        "phones": [],
    }
    assert {name: broken[name] for name in expected} == expected
    assert broken["age_days"] == pytest.approx(2, abs=0.01)
    runs = found["kv", "SM8650", "sim"]
    assert (runs["state"], runs["run"], runs["phones"]) == ("runs", FIRST, ["s24"])  # not the compile after it
    assert (runs["decode_tok_s"], runs["ttft_ms"]) == (12.0, 100.0)
    assert runs["ppl"] == pytest.approx(math.exp(3910.0 / 1000))
    assert runs["age_days"] == pytest.approx(9, abs=0.01)
    phone = found["kv", "SM8650", "android"]
    assert (phone["state"], phone["decode_tok_s"], phone["run"]) == ("runs", 33.0, PHONE)
    untried = found["lookahead", "SM8650", "sim"]
    assert (untried["state"], untried["note"], untried["run"]) == ("not tried", "INFRA: adb push timed out", "")
    gate = found["hybrid", "SM8450", "sim"]
    assert (gate["state"], gate["gate"]) == ("unsupported", "weight_sharing")
    assert "needs V73" in gate["reason"]
    assert "use kv mode" in gate["remedy"]


def test_csv_says_the_same_as_json(reports: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix(reports, capsys, "--csv", str(tmp_path / "m.csv"))
    rows = cells_of(list(csv.DictReader(io.StringIO((tmp_path / "m.csv").read_text()))))
    data = cells_of(json.loads(matrix(reports, capsys, "--json"))["cells"])
    assert rows.keys() == data.keys()
    for key, cell in data.items():
        for name in (
            "state",
            "failure_class",
            "signature",
            "reason",
            "remedy",
            "run",
            "versions",
            "last_good_versions",
        ):
            assert rows[key][name] == cell[name], (key, name)
        assert rows[key]["last_good_run"] == (cell["last_good_run"] or "")
        assert rows[key]["decode_tok_s"] == ("" if cell["decode_tok_s"] is None else str(cell["decode_tok_s"]))
    assert rows["hybrid", "SM8650", "sim"]["evidence_path"] == "build-logs/x.log"


def test_markdown_names_signature_and_last_good_in_the_cell(
    reports: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix(reports, capsys, "--markdown", str(tmp_path / "m.md"))
    text = (tmp_path / "m.md").read_text()
    (row,) = (line for line in text.splitlines() if line.startswith("| tiny_llama · hybrid"))
    columns = [column.strip() for column in row.split("|")[1:-1]]
    assert columns == [
        "tiny\\_llama · hybrid" if "\\_" in columns[0] else "tiny_llama · hybrid",
        "– unsupported weight_sharing; 9 d old",
        "… not tried",
        f"✗ fails BUILD op-not-prepared, last good with QNN 2.48 in run {COMPILED}; 2 d old",
    ]
    (kv,) = (line for line in text.splitlines() if line.startswith("| tiny_llama · kv"))
    assert "✓ runs, TTFT 100 ms, 33.0 tok/s, ppl 49.90 (kv); 24 h old" in kv
    assert "✓ runs, TTFT 100 ms, 12.0 tok/s, ppl 49.90 (kv); 9 d old" in kv
    (failure,) = (line for line in text.splitlines() if line.startswith("- **tiny_llama · hybrid on SM8650 (sim)**"))
    assert "BUILD (op-not-prepared): lowering failed Run r3-new-qnn with QNN 2.51" in failure
    assert f"last good: {COMPILED} (" in failure
    assert "with QNN 2.48 (onnxruntime-qnn 2.4.0), ExecuTorch 1.5.1" in failure
    assert "*What to do:* read build.log *Evidence:* build-logs/x.log" in failure
    assert "q::ConvLayer_s1.opt" in text
    assert "weight_sharing: SM8450 is V69" in text


def test_html_names_them_too_and_says_sim_or_phone(
    reports: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix(reports, capsys, "--html", str(tmp_path / "m.html"))
    html = (tmp_path / "m.html").read_text()
    text = " ".join(re.sub(r"<[^>]+>", " ", html[html.index("<main>") :]).split())
    for piece in (
        "2 of 9 cells run",
        "SM8650 V75 phone",
        "SM8650 V75 sim",
        f"✗ fails BUILD op-not-prepared last good with QNN 2.48 in run {COMPILED} 2 d old",
        "✓ runs TTFT 100 ms 33.0 tok/s ppl 49.90 kv 24 h old · s24",
        "✓ runs TTFT 100 ms 12.0 tok/s ppl 49.90 kv 9 d old · s24",
        "run r3-new-qnn, 2 d old, with QNN 2.51 (onnxruntime-qnn 2.7.0), ExecuTorch 1.5.1",
        "changed since qnn onnxruntime-qnn 2.4.0 → onnxruntime-qnn 2.7.0",
        "could not create op: q::ConvLayer_s1.opt",
        "weight_sharing SM8450 is V69; weight sharing between prefill and decode needs V73",
        "What to do: use kv mode",
        "tiny_llama · lookahead on SM8650 (sim) INFRA: adb push timed out",
    ):
        assert piece in text, piece


def test_one_target_alone(reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(matrix(reports, capsys, "--json", "--target", "android"))
    assert (data["runs"], data["counts"]["runs"], len(data["cells"])) == (1, 1, 1)


def test_a_history_says_what_the_runs_folders_say(tmp_path: Path) -> None:
    """But for numbers of results that no matrix shows."""
    runs = [
        write(tmp_path, FIRST, 9, QNN_248, [*passed(KV, 12.0), *passed(HYBRID, 15.0)]),
        write(tmp_path, BROKEN, 2, QNN_251, [LOWERING, *passed(KV, 14.0)]),
    ]
    with History(f"sqlite:///{tmp_path / 'history.sqlite'}") as history:
        for run in runs:
            history.import_run(run)
        stored = {(one.run, one.cell): one for one in FromHistory(history).results()}
    direct = {(one.run, one.cell): one for run in runs for one in folder_results(run)}
    assert stored.keys() == direct.keys()
    assert stored[BROKEN, KV].decode_tok_s == 14.0
    assert stored[BROKEN, KV] == direct[BROKEN, KV]
    assert stored[BROKEN, HYBRID] == direct[BROKEN, HYBRID]
    assert stored[FIRST, KV].decode_tok_s is None
    bare: dict[str, Any] = {"ttft_ms": None, "prefill_tok_s": None, "decode_tok_s": None, "scores": ()}
    assert stored[FIRST, KV] == replace(direct[FIRST, KV], **bare)


def test_a_run_that_went_on_after_its_import_counts_as_it_is_now(tmp_path: Path) -> None:
    begun = [Result("r", KV, "m", "kv", "SM8650", 75, "upstream", "sim", "", "2026-01-01", "NOT RUN")]
    ended = [replace(begun[0], time="2026-01-02", status="PASSED")]

    class Fixed(list[Result]):
        def results(self) -> list[Result]:
            return self

    assert list(Joined((Fixed(begun), Fixed(ended))).results()) == ended
    assert list(Joined((Fixed(ended), Fixed(begun))).results()) == ended


def test_versions_in_words() -> None:
    assert version_words({"qnn": QNN_248, "executorch": "1.5.1", "torch": "2"}) == (
        "QNN 2.48 (onnxruntime-qnn 2.4.0), ExecuTorch 1.5.1"
    )
    sdk = {"qnn": "QNN_SDK_ROOT", "qnn_htp_sha256": "0123456789abcdef" * 4}
    assert (qnn_words(sdk), version_words(sdk)) == ("QNN QNN_SDK_ROOT 0123456789ab",) * 2
    assert qnn_words({"qnn": "onnxruntime-qnn 9.9.9"}) == "QNN onnxruntime-qnn 9.9.9"
    assert (qnn_words({}), version_words({})) == ("", "")
