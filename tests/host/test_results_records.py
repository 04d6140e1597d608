from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_models import make_model
from sample_run import GOOD, perplexity, planned, records, run_info, sample, write_run

from harness.errors import FailureClass
from harness.gates import Verdict
from harness.matrix import Cell
from harness.models import Lengths, Mode
from harness.results import OutcomeRecord, RawRecord, Record, Status, plan_entry
from harness.results.records import KINDS, decode, encode
from harness.soc import SOCS


@pytest.mark.parametrize("record", records(), ids=lambda record: record.kind)
def test_round_trip(record: Record) -> None:
    line = encode(record, "20260102-030405-abcd", "2026-01-02T03:04:06.000+00:00")
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    entry = decode(line.decode())
    assert entry.record == record
    assert type(entry.record) is type(record)
    assert (entry.time, entry.run) == ("2026-01-02T03:04:06.000+00:00", "20260102-030405-abcd")


def test_every_kind_is_in_the_sample_run() -> None:
    # Comparisons are of runs with --ab; see test_ab.py.
    assert {record.kind for record in records()} == set(KINDS) - {"comparison"}


def test_no_field_hides_the_envelope() -> None:
    for kind in KINDS.values():
        assert not {field.name for field in dataclasses.fields(kind)} & {"record", "schema", "time", "run"}


def test_enums_come_back_as_enums() -> None:
    record = OutcomeRecord(GOOD, Status.ERROR, FailureClass.INFRA)
    back = decode(encode(record, "r").decode()).record
    assert isinstance(back, OutcomeRecord)
    assert back.status is Status.ERROR
    assert back.failure_class is FailureClass.INFRA


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])), number=st.floats(allow_nan=False))
def test_any_text_and_number_comes_back(text: str, number: float) -> None:
    record = sample(GOOD, text=text, prompt=text, ttft_ms=number)
    line = encode(record, "r")
    assert line.isascii()
    assert b"\n" not in line[:-1]
    assert decode(line.decode()).record == record


def test_half_a_surrogate_pair_does_not_break_the_file() -> None:
    back = decode(encode(sample(GOOD, text="a\ud800b"), "r").decode()).record
    assert back == sample(GOOD, text="a\\ud800b")


def test_nan_is_strict_json_and_comes_back() -> None:
    line = encode(sample(GOOD, ttft_ms=math.nan, raw={"x": math.inf}), "r").decode()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(line, parse_constant=refuse)["raw"] == {"x": "Infinity"}
    back = decode(line).record
    assert math.isnan(back.ttft_ms)  # type: ignore[attr-defined]


def test_perplexity_is_lm_evals() -> None:
    record = perplexity(GOOD, "FP", "full", 5100.0)
    assert record.word_ppl == pytest.approx(math.exp(5100 / 1000))
    assert record.token_ppl == pytest.approx(math.exp(5100 / 2032))
    assert json.loads(encode(record, "r"))["word_ppl"] == record.word_ppl
    assert math.isnan(dataclasses.replace(record, words=0).word_ppl)
    assert dataclasses.replace(record, nll_sum=1e9).word_ppl == math.inf


def test_a_newer_schema_is_kept_raw() -> None:
    line = encode(sample(GOOD), "r").decode().replace('"schema": 1', '"schema": 2')
    record = decode(line, 7).record
    assert record == RawRecord("kind 'sample' has schema 2, known is 1", line, 7)


def test_a_field_of_a_later_version_is_ignored_and_a_missing_one_has_its_default() -> None:
    data = json.loads(encode(sample(GOOD), "r"))
    data["joules"] = 3.5
    del data["attempt"]
    assert decode(json.dumps(data)).record == sample(GOOD)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"record": "power", "schema": 1}', "kind 'power' is unknown"),
        ('{"record": ["sample"], "schema": 1}', "is unknown"),
        ('{"record": "check", "schema": 1, "cell": "a", "passed": true}', "kind 'check': name: Field required"),
        ('{"record": "check", "schema": 1, "cell": "a", "name": "n", "passed": "?"}', "kind 'check': passed: "),
    ],
)
def test_what_is_not_understood_is_kept_raw(line: str, problem: str) -> None:
    record = decode(line).record
    assert isinstance(record, RawRecord)
    assert problem in record.problem
    assert record.text == line


def test_a_raw_record_is_not_written() -> None:
    with pytest.raises(TypeError, match="RawRecord"):
        encode(RawRecord("p", "t", 1), "r")


def test_plan_entry_of_a_cell(tmp_path: Path) -> None:
    model = make_model(tmp_path, "tiny")
    cell = Cell(model, Mode.HYBRID, SOCS["SM8450"], Lengths(256, 64), phone="s22")
    entry = plan_entry(cell, Verdict(run=False, gate="g", reason="because", remedy="do this", source="here"))
    assert entry.cell == "tiny-hybrid-SM8450@s22"
    assert (entry.model, entry.mode, entry.soc, entry.arch) == ("tiny", "hybrid", "SM8450", 69)
    assert (entry.recipe, entry.phone, entry.lengths) == ("upstream", "s22", Lengths(256, 64))
    assert (entry.verdict, entry.gate, entry.reason, entry.remedy) == ("skip", "g", "because", "do this")
    assert plan_entry(cell, Verdict(run=True)).verdict == "run"
    assert decode(encode(entry, "r").decode()).record == entry


def test_pandas_reads_the_file_in_one_line(tmp_path: Path) -> None:
    path = write_run(tmp_path) / "records.jsonl"
    frame = pd.read_json(path, lines=True)
    assert len(frame) == len(records())
    assert list(frame["record"])[:2] == ["run", "plan"]
    assert set(frame["schema"]) == {1}
    assert set(frame["run"]) == {run_info().id}
    decode_rate = frame[frame.record == "sample"].groupby("cell").decode_tok_s.median()
    assert decode_rate[GOOD] == pytest.approx(3.805)
    phone = frame[(frame.record == "perplexity") & (frame.ground == "PHONE") & (frame.cell == GOOD)]
    assert phone.set_index("graph").word_ppl.astype(float)["kv"] == pytest.approx(math.exp(5.121))
    assert planned(GOOD, 75).cell in set(frame[frame.record == "plan"].cell)
