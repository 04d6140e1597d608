"""The records' JSON schema, and a run as a pandas table."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from sample_run import GOOD, records, run_info, wide_records, write_run

from harness.errors import ConfigError
from harness.results import OutcomeRecord, Status, read_frame
from harness.results.records import KINDS, ComparisonRecord, PerplexityRecord, Record, encode
from harness.results.schema import SCHEMA, schema, schema_text
from harness.results.store import RECORDS


def test_the_file_is_up_to_date() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), "run: python -m harness.schemas"


def test_every_kind_and_every_field_is_described() -> None:
    made = schema()
    assert {one["$ref"].rpartition("/")[2] for one in made["oneOf"]} == set(KINDS)
    for name in KINDS:
        kind = made["$defs"][name]
        assert kind["description"]
        missing = [key for key, value in kind["properties"].items() if not ({"description", "const"} & set(value))]
        assert not missing, f"{name}: {missing}"


def more() -> list[Record]:
    return [
        ComparisonRecord(GOOD, "r-base", "s24", "ttft_ms", "OK", 0.01, None, math.inf, 5, 0.3, 40.0, 40.4),
        PerplexityRecord(GOOD, "PHONE", "kv", 64, 40, math.nan, 128, 64, 1.0, ((32, 1.0), (32, math.inf))),
        OutcomeRecord(GOOD, Status.PASSED, phone="s24"),
    ]


@pytest.mark.parametrize("made", [records(), wide_records(), more()], ids=["records", "wide", "more"])
def test_what_is_written_fits(made: list[Record]) -> None:
    validator = Draft202012Validator(schema())
    for record in made:
        line = json.loads(encode(record, run_info().id))
        assert not list(validator.iter_errors(line)), line


@pytest.mark.parametrize(
    "change", [{"schema": 2}, {"record": "power"}, {"ttft_ms": "fast"}, {"target": "moon"}, {"session": None}]
)
def test_what_is_no_record_does_not_fit(change: dict[str, object]) -> None:
    (sample,) = [record for record in records() if record.kind == "sample"][:1]
    line = json.loads(encode(sample, run_info().id)) | change
    assert list(Draft202012Validator(schema()).iter_errors(line))


def test_pandas_reads_a_run_in_one_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    frame = read_frame(folder)
    assert list(frame["decode_tok_s"]) == [3.71, 3.9, 2.5]
    assert str(frame["time"].dt.tz) == "UTC"
    assert frame.groupby("cell")["decode_tok_s"].median()[GOOD] == pytest.approx(3.805)
    assert set(read_frame(folder, "outcome")["status"]) == {"PASSED", "FAILED", "ERROR"}
    assert set(read_frame(folder, "all")["record"]) >= {"run", "plan", "sample"}
    assert len(read_frame(folder, "comparison")) == 0
    assert "judgement" in read_frame(folder, "comparison").columns
    assert math.inf in set(read_frame(folder, "perplexity")["token_ppl"])


def test_text_stays_text(tmp_path: Path) -> None:
    made = [record for record in records() if record.kind in ("run", "plan")]
    folder = write_run(tmp_path, made=made)
    from sample_run import sample

    with (folder / RECORDS).open("ab") as file:
        file.write(encode(sample(GOOD, text="2026-01-02", prompt="007"), folder.name))
    frame = read_frame(folder)
    assert (frame["text"][0], frame["prompt"][0]) == ("2026-01-02", "007")


def test_a_frame_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no records"):
        read_frame(tmp_path)
    with pytest.raises(ConfigError, match="'power'"):
        read_frame(write_run(tmp_path / "r"), "power")
