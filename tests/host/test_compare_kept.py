"""What outlives a run: accepted baselines, bounds of models' files, the history that it goes into, an A/B's answer."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ab_run import SAME, SLOW, write_ab_run
from sample_run import GOOD, artifact, perplexity, planned, run_info, sample, write_run

from harness.compare.baselines import (
    FOLDER,
    SCHEMA,
    Accepted,
    Baseline,
    accept,
    accepted_times,
    latest_for,
    load_baselines,
)
from harness.compare.declared import declared
from harness.compare.keep import judge_ab, keep
from harness.errors import ConfigError, FailureClass
from harness.history.query import list_runs
from harness.history.store import HISTORY, History
from harness.model_file import DecodeSpeed, Published
from harness.models import ModelSpec, load_models
from harness.paths import MODELS, REPOSITORY
from harness.results import OutcomeRecord, Record, Status
from harness.results.summary import CellSummary, RunSummary
from harness.target import Target
from harness.verdicts import Better, Declared

MOMENT = datetime(2026, 1, 3, 4, 5, 6, 789, tzinfo=UTC)
OTHER = "tiny_llama-kv-SM8550"


def finished(folder: Path, *more: Record, name: str = "20260102-030405-abcd", target: Target = Target.SIM) -> Path:
    """A run whose cell passed with speeds and scores, and another that failed."""
    info = replace(run_info(target), id=name)
    made: list[Record] = [
        info,
        planned(GOOD, 75),
        planned(OTHER, 73),
        sample(GOOD, 0, decode_tok_s=4.0),
        sample(GOOD, 1, decode_tok_s=5.0, load_ms=None),
        perplexity(GOOD, "QDQ", "full", 2032 * 1.5),
        perplexity(GOOD, "PHONE", "kv", 2032 * 2.0),
        OutcomeRecord(GOOD, Status.PASSED, phone="s24"),
        OutcomeRecord(OTHER, Status.FAILED, FailureClass.PRODUCT, "wrong"),
        *more,
    ]
    return write_run(folder, made=made)


def accepted(folder: Path, moment: datetime = MOMENT, **changes: Any) -> Accepted:
    return accept(finished(folder / "run", **changes), "good", "Ada", folder / "kept", moment)


# Baselines


def test_a_baseline_holds_the_cells_that_passed_with_all_their_numbers(tmp_path: Path) -> None:
    made = accept(finished(tmp_path / "run"), "  first good run ", "Ada", tmp_path / "deep" / "kept", MOMENT)
    assert json.loads(made.path.read_text()) == {
        "schema": 1,
        "run": "20260102-030405-abcd",
        "started": run_info().started,
        "target": "sim",
        "toolchain": run_info().toolchain,
        "accepted": "2026-01-03T04:05:06+00:00",
        "who": "Ada",
        "why": "first good run",
        "cells": {
            GOOD: {
                "status": "PASSED",
                "metrics": {
                    "load_ms": 1234.5,
                    "ttft_ms": 410.0,
                    "prefill_tok_s": 12.2,
                    "decode_tok_s": 4.5,
                    "peak_rss_mb": 812.0,
                },
                "perplexity": {
                    "QDQ/full/2032": pytest.approx(math.exp(1.5)),
                    "PHONE/kv/2032": pytest.approx(math.exp(2.0)),
                },
            }
        },
    }
    assert made.path == tmp_path / "deep" / "kept" / "20260103-040506-20260102-030405-abcd-00.json"
    text = made.path.read_text()
    assert text.startswith('{\n  "schema": 1,\n')
    assert text.endswith("}\n")
    assert load_baselines(made.path.parent) == [made]


def test_a_metric_that_was_not_measured_is_not_in_the_baseline(tmp_path: Path) -> None:
    records = [
        run_info(), planned(GOOD, 75), sample(GOOD, peak_rss_mb=None, ttft_ms=None, decode_tok_s=0.0),
        OutcomeRecord(GOOD, Status.PASSED),
    ]  # fmt: skip
    made = accept(write_run(tmp_path / "run", made=records), "good", "Ada", tmp_path / "kept")
    assert made.baseline.cells[GOOD].metrics == {"load_ms": 1234.5, "prefill_tok_s": 12.2, "decode_tok_s": 0.0}


def test_a_run_accepted_again_in_the_same_second_gets_the_next_number(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    paths = [accept(run, "good", "Ada", tmp_path / "kept", MOMENT).path.name for _ in range(3)]
    assert paths == [f"20260103-040506-20260102-030405-abcd-0{number}.json" for number in range(3)]


def test_a_runs_id_is_safe_in_a_files_name(tmp_path: Path) -> None:
    records = [replace(run_info(), id="../a b/ü.1_2-3"), planned(GOOD, 75), OutcomeRecord(GOOD, Status.PASSED)]
    run = write_run(tmp_path / "run", made=records)
    made = accept(run, "good", "Ada", tmp_path / "kept", MOMENT)
    assert made.path.name == "20260103-040506-.._a_b__.1_2-3-00.json"
    assert made.baseline.run == "../a b/ü.1_2-3"


def test_who_accepts_is_gits_author_or_the_user_and_the_time_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(tmp_path / "run")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Grace")
    monkeypatch.setenv("LOGNAME", "the-user")
    before = datetime.now(UTC).isoformat(timespec="seconds")
    made = accept(run, "good", folder=tmp_path / "kept").baseline
    assert made.who == "Grace"
    assert before <= made.accepted <= datetime.now(UTC).isoformat(timespec="seconds")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "")
    assert accept(run, "good", folder=tmp_path / "kept").baseline.who == "the-user"
    assert accept(run, "good", "Ada", tmp_path / "kept").baseline.who == "Ada"


@pytest.mark.parametrize("why", ["", " \n"])
def test_a_reason_is_asked_before_anything_is_read(tmp_path: Path, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        accept(tmp_path / "no such run", why, "Ada", tmp_path / "kept")
    assert (caught.value.what, caught.value.where) == ("a baseline needs a reason", "--why")


def test_a_run_in_which_nothing_passed_is_not_accepted(tmp_path: Path) -> None:
    failed = OutcomeRecord(GOOD, Status.FAILED, FailureClass.PRODUCT, "wrong")
    run = write_run(tmp_path / "run", made=[run_info(), planned(GOOD, 75), failed])
    with pytest.raises(ConfigError) as caught:
        accept(run, "good", "Ada", tmp_path / "kept")
    assert (caught.value.what, caught.value.where) == ("no cell of the run passed", str(run))
    assert not (tmp_path / "kept").exists()


def test_baselines_come_in_the_order_accepted_and_of_one_second_by_name(tmp_path: Path) -> None:
    later = accepted(tmp_path, datetime(2026, 5, 1, tzinfo=UTC))
    again = accept(tmp_path / "run" / "20260102-030405-abcd", "again", "Ada", tmp_path / "kept", MOMENT)
    first = accept(tmp_path / "run" / "20260102-030405-abcd", "first", "Ada", tmp_path / "kept", MOMENT)
    # A file's name says nothing of when it was accepted; what does is in it.
    early = tmp_path / "kept" / "zzz.json"
    early.write_text(first.path.read_text().replace("2026-01-03T", "2025-01-03T"))
    found = load_baselines(tmp_path / "kept")
    assert [one.path for one in found] == [early, again.path, first.path, later.path]
    assert load_baselines(tmp_path / "nowhere") == []
    (tmp_path / "kept" / "notes.txt").write_text("not a baseline")
    assert len(load_baselines(tmp_path / "kept")) == 4


def test_files_of_one_second_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    made = accepted(tmp_path)
    text = made.path.read_text()
    for name in ("b.json", "a.json"):
        (made.path.parent / name).write_text(text)
    assert [one.path.name for one in load_baselines(made.path.parent)] == [made.path.name, "a.json", "b.json"]


@pytest.mark.parametrize(
    ("change", "place", "what"),
    [
        ({"cells": {GOOD: {"status": 3}}}, f"cells.{GOOD}.status", "no baseline: Input should be a valid string"),
        ({"run": 3, "remark": "x"}, "run", "no baseline: Input should be a valid string"),
        ({"remark": "x"}, "remark", "no baseline: Extra inputs are not permitted"),
        ({"cells": {GOOD: {"status": "PASSED", "x": 1}}}, f"cells.{GOOD}.x", "no baseline: Extra inputs are not"),
    ],
)
def test_a_broken_baseline_is_named_with_the_place(
    tmp_path: Path, change: dict[str, Any], place: str, what: str
) -> None:
    path = accepted(tmp_path).path
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError) as caught:
        load_baselines(path.parent)
    assert caught.value.where == f"{path}: {place}"
    assert caught.value.what.startswith(what)


def test_of_broken_baselines_the_first_by_name_is_told(tmp_path: Path) -> None:
    for number in reversed(range(12)):
        (tmp_path / f"{number:02d}.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        load_baselines(tmp_path)
    assert caught.value.where == f"{tmp_path / '00.json'}: run"


@pytest.mark.parametrize("schema", [0, 2])
def test_a_baseline_of_another_schema_is_refused(tmp_path: Path, schema: int) -> None:
    path = accepted(tmp_path).path
    path.write_text(path.read_text().replace('"schema": 1', f'"schema": {schema}'))
    with pytest.raises(ConfigError) as caught:
        load_baselines(path.parent)
    assert caught.value.what == f"schema {schema} is not known, 1 is"
    assert caught.value.where == str(path)
    assert SCHEMA == 1


def test_a_baseline_cannot_be_changed_once_read(tmp_path: Path) -> None:
    made = accepted(tmp_path).baseline
    for thing, name in ((made, "why"), (made.cells[GOOD], "status")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(thing, name, "other")


def test_a_baseline_is_made_again_of_its_fields(tmp_path: Path) -> None:
    made = accepted(tmp_path).baseline
    assert Baseline(**made.model_dump()) == made
    assert Baseline(**made.model_dump(by_alias=True)) == made


def test_the_latest_baseline_of_a_cell_on_its_target_counts(tmp_path: Path) -> None:
    passed = OutcomeRecord(OTHER, Status.PASSED)
    sim = accepted(tmp_path / "1")
    both = accepted(tmp_path / "2")
    wide = accept(finished(tmp_path / "3", passed), "two", "Ada", tmp_path / "kept", MOMENT)
    phone = accepted(tmp_path / "4", target=Target.ANDROID)
    every = [wide, sim, both, phone]
    assert latest_for(every, GOOD, "sim") is both
    assert latest_for(every, OTHER, "sim") is wide
    assert latest_for(every, GOOD, "android") is phone
    assert latest_for(every, OTHER, "android") is None
    assert latest_for([], GOOD, "sim") is None


def test_a_cells_history_begins_with_the_run_that_was_accepted_last(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    for number, (target, started) in enumerate((("sim", "2026-01-01"), ("sim", "2026-02-01"), ("android", "2025"))):
        made = accept(finished(tmp_path / f"{number}", target=Target(target)), "good", "Ada", kept, MOMENT)
        made.path.write_text(made.path.read_text().replace(run_info().started, started))
    assert accepted_times(kept) == {(GOOD, "sim"): "2026-02-01", (GOOD, "android"): "2025"}


def test_baselines_are_kept_in_the_repository() -> None:
    assert FOLDER == REPOSITORY / "reports" / "baselines"


# What a model's file states


@pytest.fixture(scope="module")
def model() -> ModelSpec:
    speeds = DecodeSpeed.model_validate({"SM8650": 37, "SM8750": 45})
    plain = load_models(MODELS)["tiny_llama"]
    return replace(plain, published=Published(decode_tok_s=speeds, pte_bytes=7_000_000))


def on_phone(*, soc: str = "SM8650", speed: float | None = 40.0, size: int | None = 6_000_000, status: str = "PASSED",
             **plan: Any) -> CellSummary:  # fmt: skip
    entry = replace(planned(f"tiny_llama-kv-{soc}", 75), **{k: v for k, v in plan.items() if k != "context"})
    entry = replace(entry, lengths=replace(entry.lengths, max_seq_len=plan.get("context", 1024)))
    made = replace(artifact(entry.cell), bytes=size) if size is not None else None
    return CellSummary(entry, status, decode_tok_s=speed, artifact=made)


def stated(model: ModelSpec, *cells: CellSummary, target: Target = Target.ANDROID) -> dict[str, Sequence[Declared]]:
    return dict(declared(RunSummary(run_info(target), (), cells, {}, "", ""), {"tiny_llama": model}))


def test_speed_and_size_are_held_against_the_models_file(model: ModelSpec) -> None:
    good, slow, large = on_phone(), on_phone(soc="SM8750"), on_phone(size=7_000_001)
    assert stated(model, good, slow) == {
        "tiny_llama-kv-SM8650": (
            Declared("decode_tok_s", 37.0, Better.HIGHER, 40.0, True),
            Declared("pte_bytes", 7e6, Better.LOWER, 6e6, True),
        ),
        "tiny_llama-kv-SM8750": (
            Declared("decode_tok_s", 45.0, Better.HIGHER, 40.0, False),
            Declared("pte_bytes", 7e6, Better.LOWER, 6e6, True),
        ),
    }
    assert [one.passed for one in stated(model, large)["tiny_llama-kv-SM8650"]] == [True, False]
    assert type(stated(model, good)["tiny_llama-kv-SM8650"][1].bound) is float


def test_what_was_not_measured_or_not_stated_is_held_against_nothing(model: ModelSpec) -> None:
    (size,) = stated(model, on_phone(speed=None))["tiny_llama-kv-SM8650"]
    assert size.metric == "pte_bytes"
    (speed,) = stated(model, on_phone(size=None))["tiny_llama-kv-SM8650"]
    assert speed.metric == "decode_tok_s"
    (only,) = stated(model, on_phone(soc="SM8550"))["tiny_llama-kv-SM8550"]
    assert only.metric == "pte_bytes"
    no_speed = replace(model, published=Published(pte_bytes=7_000_000))
    assert [one.metric for one in stated(no_speed, on_phone())["tiny_llama-kv-SM8650"]] == ["pte_bytes"]
    assert stated(replace(model, published=Published(wikitext_ppl=18)), on_phone()) == {}
    assert stated(model, on_phone(speed=None, size=None)) == {}
    assert stated(replace(model, published=None), on_phone()) == {}
    assert stated(model, on_phone(model="unknown")) == {}


@pytest.mark.parametrize(
    "other",
    [
        {"mode": "hybrid"},
        {"recipe": "kv8"},
        {"context": 1023},
        {"context": 1025},
        {"context": 512},
        {"status": "FAILED"},
    ],
)
def test_figures_hold_only_for_what_they_were_stated_for(model: ModelSpec, other: dict[str, Any]) -> None:
    assert stated(model, on_phone(**other)) == {}
    assert len(stated(model, on_phone(), replace(on_phone(**other), plan=on_phone(soc="X", **other).plan))) == 1


def test_the_simulators_speed_is_held_against_nothing(model: ModelSpec) -> None:
    assert stated(model, on_phone(), target=Target.SIM) == {}


# The end of a run


def test_a_run_goes_into_the_history_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HTPFARM_HISTORY", raising=False)
    url = str(tmp_path / HISTORY)
    folder = write_ab_run(tmp_path)
    assert keep(folder) == ""
    with History(url) as history:
        assert [one.run for one in list_runs(history)] == sorted([folder.name, f"{folder.name}-base"])
    plain = finished(tmp_path, name="20260109-000000-0000")
    assert keep(plain) == ""
    assert keep(tmp_path / "nothing here") == ""
    with History(url) as history:
        assert len(list_runs(history)) == 3


def test_a_history_that_cannot_be_had_is_told_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "h.sqlite").write_text("this is no database, and nobody wants to see it overwritten" * 20)
    monkeypatch.setenv("HTPFARM_HISTORY", str(tmp_path / "h.sqlite"))
    said = keep(finished(tmp_path / "run"))
    assert said.startswith("not taken into the history: ")
    assert len(said) > len("not taken into the history: ")


def test_a_run_of_a_against_b_is_judged_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HTPFARM_HISTORY", raising=False)
    folder = write_ab_run(tmp_path, cells=((SLOW, 10.0), (SAME, 0.0)))
    judged = judge_ab(folder)
    assert judged is not None
    found, words = judged
    assert (tmp_path / HISTORY).is_file()  # its history is the one beside it
    assert found.status == 1
    assert any("decode_tok_s REGRESSED" in one.what for one in found.findings)
    written = json.loads((folder / "comparison.json").read_text())
    assert written["gate"]["status"] == 1
    assert [one["cell"] for one in written["comparison"]["cells"]] == sorted([SLOW, SAME])
    assert written["comparison"]["base"] == f"{folder.name}-base"
    # What is shown is the comparison, then the answer: 120 wide, and nothing but text.
    assert words.index("simulator") < words.index("gate: FAIL")
    assert "\x1b" not in words
    assert max(len(line) for line in words.splitlines()) == 120


def test_a_run_by_itself_is_judged_as_none_of_a_against_b(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    assert judge_ab(folder) is None
    assert not (folder / "comparison.json").exists()
