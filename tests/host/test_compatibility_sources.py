"""Where the matrix's results come from: runs' folders, a history, the gates; and which of several counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compat_results import result
from sample_models import make_model
from sample_run import planned, run_info, sample

from harness.compatibility import Result
from harness.compatibility.result import COMPILED, RunFolders, folder_results, run_results
from harness.compatibility.sources import FromHistory, Gates, Joined
from harness.errors import ConfigError, FailureClass
from harness.history.store import History
from harness.results import DeployRecord, OutcomeRecord, PerplexityRecord, Record, Status
from harness.results.records import Graph, Ground, encode
from harness.results.store import RECORDS, read_entries, run_data
from harness.results.summary import summarise
from harness.soc import SOCS
from harness.target import Target

KV, HYBRID = "tiny_llama-kv-SM8650", "tiny_llama-hybrid-SM8650"
DAY = "2026-01-02T00:00"


def at(second: int) -> str:
    return f"{DAY}:{second:02d}.000+00:00"


def write(reports: Path, made: Sequence[Record], name: str = "r1", target: Target = Target.SIM) -> Path:
    """A run's folder whose records were written a second after each other."""
    info = replace(run_info(target), id=name, toolchain={"qnn": f"of {name}"})
    folder = reports / name
    folder.mkdir(parents=True)
    lines = [encode(record, name, at(place)) for place, record in enumerate([info, *made])]
    (folder / RECORDS).write_bytes(b"".join(lines))
    return folder


def scored(cell: str, graph: Graph, tokens: int, ppl: float, ground: Ground = "PHONE") -> PerplexityRecord:
    """A score over a hundred words with this word perplexity."""
    return PerplexityRecord(cell, ground, graph, tokens, 100, 100 * math.log(ppl), 1, 16, 1.0)


def only(folder: Path, cell: str = KV) -> Result:
    (found,) = (one for one in folder_results(folder) if one.cell == cell)
    return found


# A run's folder


def test_every_part_of_a_failed_cell(tmp_path: Path) -> None:
    plan = replace(planned(KV, 75), recipe="kv8", gate="g")
    outcome = OutcomeRecord(
        KV, Status.FAILED, FailureClass.PRODUCT, "wrong text", "read it", "its tail", "evidence/x.log", phone="s24"
    )
    measured = sample(KV, ttft_ms=99.0, prefill_tok_s=320.0, decode_tok_s=12.0)
    assert folder_results(write(tmp_path, [plan, measured, scored(KV, "kv", 500, 20.0), outcome])) == [
        Result(
            run="r1",
            cell=KV,
            model="tiny_llama",
            mode="kv",
            soc="SM8650",
            arch=75,
            recipe="kv8",
            target="sim",
            phone="s24",
            time=at(4),
            status="FAILED",
            failure_class="PRODUCT",
            gate="g",
            reason="wrong text",
            remedy="read it",
            evidence="its tail",
            evidence_path="evidence/x.log",
            ttft_ms=99.0,
            prefill_tok_s=320.0,
            decode_tok_s=12.0,
            scores=(scored(KV, "kv", 500, 20.0),),
            toolchain={"qnn": "of r1"},
        )
    ]


def test_a_cell_that_came_to_nothing(tmp_path: Path) -> None:
    found = only(write(tmp_path, [planned(KV, 75)], target=Target.ANDROID))
    assert (found.status, found.failure_class, found.phone, found.target) == ("NOT RUN", "", "", "android")
    assert (found.evidence_path, found.ttft_ms, found.scores) == ("", None, ())
    assert found.time == at(1)  # the run's last record


def test_a_cell_is_as_old_as_its_outcome_and_without_one_as_its_run(tmp_path: Path) -> None:
    passed = OutcomeRecord(KV, Status.PASSED, phone="s24")
    made = [planned(KV, 75), planned(HYBRID, 75), passed, sample(HYBRID), passed, sample(HYBRID, 1)]
    folder = write(tmp_path, made)
    assert (only(folder).time, only(folder, HYBRID).time) == (at(5), at(6))  # of two outcomes the last
    entries = read_entries(folder / RECORDS)
    summary = summarise(run_data(entries, "here"))
    assert run_results(summary, entries) == folder_results(folder)
    assert {found.time for found in run_results(summary)} == {at(6)}


def test_a_cells_phone_is_the_last_it_ran_on_or_is_pinned_to(tmp_path: Path) -> None:
    pinned = f"{KV}@s24"
    assert only(write(tmp_path / "a", [planned(pinned, 75)]), pinned).phone == "s24"
    moved = [sample(KV, phone="a"), sample(KV, 1, phone="b")]
    assert only(write(tmp_path / "b", [planned(KV, 75), *moved])).phone == "b"
    deployed = DeployRecord(pinned, "c", (), (), 0, 1.0)
    assert only(write(tmp_path / "c", [planned(pinned, 75), deployed]), pinned).phone == "c"


def test_the_scores_are_the_phones_last_of_each_graph(tmp_path: Path) -> None:
    # What the host says of the model is no score of the phone's.
    host = [scored(KV, "full", 9000, 5.0, "FP"), scored(KV, "full", 9000, 6.0, "QDQ")]
    first, kv, prefill = scored(KV, "kv", 500, 19.0), scored(KV, "kv", 500, 20.0), scored(KV, "prefill", 501, 30.0)
    done = OutcomeRecord(KV, Status.PASSED, phone="s24")
    folder = write(tmp_path, [planned(KV, 75), *host, first, prefill, kv, done])
    assert only(folder).scores == (kv, prefill)
    with History(f"sqlite:///{tmp_path / 'history.sqlite'}") as history:
        history.import_run(folder)
        (stored,) = FromHistory(history).results()
    assert stored.scores == (kv, prefill)


# Folders of runs


def test_folders_that_are_named_must_be_readable_and_others_are_passed_over(tmp_path: Path) -> None:
    good = write(tmp_path, [planned(KV, 75)], "r2")
    also = write(tmp_path, [planned(KV, 75)], "r1")
    (tmp_path / "r0" / RECORDS).mkdir(parents=True)  # not even a file
    (tmp_path / "r3").mkdir()
    (tmp_path / "r3" / RECORDS).write_text("nonsense\n")
    (tmp_path / "no-run").mkdir()
    below = RunFolders.below(tmp_path)
    assert below.folders == tuple(tmp_path / name for name in ("r0", "r1", "r2", "r3"))
    assert not below.strict
    assert [one.run for one in below.results()] == ["r1", "r2"]
    assert [one.run for one in RunFolders((good, also)).results()] == ["r2", "r1"]
    with pytest.raises(ConfigError, match="no record says how the run was started") as caught:
        list(RunFolders((tmp_path / "r3",)).results())
    assert caught.value.where == str(tmp_path / "r3" / RECORDS)
    with pytest.raises(ConfigError):
        list(RunFolders((good, tmp_path / "no-run")).results())
    with pytest.raises((ConfigError, OSError)):
        list(RunFolders((tmp_path / "r0",)).results())


# Several sources


class Fixed(list[Result]):
    def results(self) -> list[Result]:
        return self


def test_of_a_run_and_cell_the_latest_counts_and_of_equal_ones_the_first_source() -> None:
    old, new = result("r1", 10, ttft_ms=1.0), result("r1", 11, ttft_ms=2.0)
    same = replace(new, ttft_ms=3.0)
    other_run, other_cell = result("r2", 9), result("r1", 9, cell="other")
    gate = [result("", 1, time="", reason="first"), result("", 1, time="", reason="second")]

    def joined(*sources: list[Result]) -> list[Result]:
        return list(Joined(tuple(Fixed(one) for one in sources)).results())

    assert joined([old], [new]) == joined([new], [old]) == [new]
    assert joined([new], [same]) == [new]
    assert joined([same], [new]) == [same]
    assert joined([other_run, old], [other_cell, new]) == [other_run, new, other_cell]
    # What is known without a run is never the same as something else.
    assert joined([gate[0]], [gate[1], old]) == [*gate, old]
    assert joined() == []


# The history


@pytest.fixture
def three_runs(tmp_path: Path) -> str:
    """A cell that ran on two phones and then failed for the rack's sake, and one on a real phone."""
    lost = OutcomeRecord(KV, Status.ERROR, FailureClass.INFRA, "lost", "look", "tail", "evidence/lost.log")
    bad = OutcomeRecord(KV, Status.FAILED, FailureClass.PRODUCT, "bad", "look", "tail", "evidence/bad.log", phone="b")

    def ran(phone: str, decode: float, ppl: float, outcome: OutcomeRecord, target: Target = Target.SIM) -> list[Record]:
        speeds = {"ttft_ms": 10 * decode, "prefill_tok_s": 2 * decode, "decode_tok_s": decode}
        return [planned(KV, 75), sample(KV, phone=phone, target=target, **speeds), scored(KV, "kv", 500, ppl), outcome]

    def ok(phone: str) -> OutcomeRecord:
        return OutcomeRecord(KV, Status.PASSED, phone=phone)

    folders = [
        write(tmp_path, ran("a", 1.0, 11.0, ok("a")), "r1"),
        write(tmp_path, ran("b", 2.0, 12.0, ok("b")), "r2"),
        write(tmp_path, ran("b", 3.0, 13.0, bad), "r3"),
        write(tmp_path, ran("a", 4.0, 14.0, lost), "r4"),
        write(tmp_path, ran("a", 5.0, 15.0, ok("a"), Target.ANDROID), "r5", Target.ANDROID),
    ]
    url = f"sqlite:///{tmp_path / 'history.sqlite'}"
    with History(url) as history:
        for folder in folders:
            history.import_run(folder)
    return url


def test_numbers_are_those_of_the_latest_telling_result_of_each_phone(three_runs: str) -> None:
    with History(three_runs) as history:
        found = {one.run: one for one in FromHistory(history).results()}
        assert list(FromHistory(history, "sim").results()) == [found[run] for run in ("r1", "r2", "r3", "r4")]
        assert list(FromHistory(history, "android").results()) == [found["r5"]]
    assert {run: (one.ttft_ms, one.prefill_tok_s, one.decode_tok_s) for run, one in found.items()} == {
        "r1": (10.0, 2.0, 1.0),
        "r2": (None, None, None),
        "r3": (30.0, 6.0, 3.0),
        "r4": (None, None, None),
        "r5": (50.0, 10.0, 5.0),
    }
    assert {run: one.scores for run, one in found.items()} == {
        "r1": (scored(KV, "kv", 500, 11.0),),
        "r2": (),
        "r3": (scored(KV, "kv", 500, 13.0),),
        "r4": (),
        "r5": (scored(KV, "kv", 500, 15.0),),
    }


def test_each_cell_of_a_phone_has_its_numbers(tmp_path: Path) -> None:
    made: list[Record] = []
    for cell, decode in ((KV, 1.0), (HYBRID, 2.0)):
        made += [planned(cell, 75), sample(cell, decode_tok_s=decode), OutcomeRecord(cell, Status.PASSED, phone="s24")]
    with History(f"sqlite:///{tmp_path / 'history.sqlite'}") as history:
        history.import_run(write(tmp_path, made))
        found = {one.cell: one for one in FromHistory(history).results()}
    assert {cell: one.decode_tok_s for cell, one in found.items()} == {KV: 1.0, HYBRID: 2.0}


def test_every_part_of_a_stored_result(three_runs: str) -> None:
    with History(three_runs) as history:
        found = {one.run: one for one in FromHistory(history).results()}
    assert found["r3"] == Result(
        run="r3",
        cell=KV,
        model="tiny_llama",
        mode="kv",
        soc="SM8650",
        arch=75,
        recipe="upstream",
        target="sim",
        phone="b",
        time=found["r3"].time,
        status="FAILED",
        failure_class="PRODUCT",
        gate="",
        reason="bad",
        remedy="look",
        evidence="tail",
        evidence_path="evidence/bad.log",
        ttft_ms=30.0,
        prefill_tok_s=6.0,
        decode_tok_s=3.0,
        scores=(scored(KV, "kv", 500, 13.0),),
        toolchain={"qnn": "of r3"},
    )
    assert found["r3"].time == at(4)
    assert (found["r1"].failure_class, found["r1"].evidence_path, found["r1"].phone) == ("", "", "a")
    assert (found["r5"].target, found["r5"].toolchain) == ("android", {"qnn": "of r5"})


def test_a_stored_result_without_a_phone_and_with_a_gate(tmp_path: Path) -> None:
    plan = planned("tiny_llama-hybrid-SM8450-kv8", 69, skip=True)
    folder = write(tmp_path, [plan])
    with History(f"sqlite:///{tmp_path / 'history.sqlite'}") as history:
        history.import_run(folder)
        (stored,) = FromHistory(history).results()
    assert [stored] == folder_results(folder)
    assert (stored.phone, stored.gate, stored.recipe, stored.arch) == ("", "weight_sharing", "kv8", 69)
    assert stored.reason.startswith("SM8450 is V69")
    assert (stored.status, stored.failure_class) == ("SKIPPED", "UNSUPPORTED")


# The gates


def test_what_the_gates_say_without_a_run(tmp_path: Path) -> None:
    model = make_model(tmp_path, modes=["kv", "hybrid"], recipe={"name": "kv8", "kv_bits": 8})
    found = list(Gates([model], [SOCS["SM8450"]], Target.ANDROID).results())
    bare: dict[str, Any] = {"model": "tiny", "soc": "SM8450", "arch": 69, "recipe": "kv8", "target": "android"}
    assert found == [
        Result(
            run="",
            cell="tiny-hybrid-SM8450-kv8",
            mode="hybrid",
            phone="",
            time="",
            status="SKIPPED",
            failure_class="UNSUPPORTED",
            gate="weight_sharing",
            reason="SM8450 is V69; weight sharing between prefill and decode needs V73",
            remedy="use kv mode (--modes kv), which has one graph and shares nothing",
            **bare,
        ),
        Result(run="", cell="tiny-kv-SM8450-kv8", mode="kv", phone="", time="", status="NOT RUN", **bare),
    ]


def test_of_several_gates_the_first_is_named_and_versions_count_where_they_are_known(tmp_path: Path) -> None:
    needs = {"kv_bits": 16, "masked_softmax": True}
    model = make_model(tmp_path, modes=["kv"], needs=needs)
    old, new = [SOCS["SM8450"]], [SOCS["SM8650"]]

    def gate(socs: Sequence[Any], target: Target, qnn: tuple[int, int] | None = None) -> str:
        (found,) = Gates([model], socs, target, qnn).results()
        return found.gate

    assert gate(old, Target.ANDROID, (2, 34)) == "kv16"
    assert gate(new, Target.ANDROID, (2, 34)) == "masked_softmax"
    assert gate(new, Target.ANDROID, (2, 35)) == ""
    assert gate(new, Target.ANDROID) == ""
    assert gate(new, Target.SIM, (2, 34)) == "masked_softmax"
    assert gate(new, Target.SIM) == ""


def test_what_a_run_that_only_compiled_says() -> None:
    assert COMPILED == "compiled; not run"
