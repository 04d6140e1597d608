"""`--resume`: what counts as done, what is refused, and a killed run that is gone on with on a real rack."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from events import HANG_S, until
from sample_run import BROKEN, GOOD, LOST, UNRUN, planned, sample, write_run

from harness.build.cache import Artifact
from harness.build.given import export
from harness.conduct.resume import Resumed, check_same, resumed
from harness.errors import ConfigError
from harness.matrix import cells
from harness.model_file import Mode
from harness.models import load_models
from harness.paths import MODELS, REPOSITORY
from harness.results import DeployRecord, RecordWriter, RunData, TtftRecord, load_run
from harness.soc import find_soc
from harness.target import Target


@pytest.fixture
def run(tmp_path: Path) -> RunData:
    """Three cells with an outcome, one that a gate skips, and one that has been tried twice."""
    folder = write_run(tmp_path)
    writer = RecordWriter(folder)
    writer.append(sample(UNRUN, attempt=1))
    for _ in range(2):
        writer.append(DeployRecord(UNRUN, "s25", (), (), 0, 0.1))
    return load_run(folder)


def test_every_outcome_is_done_and_tries_are_counted_on(run: RunData) -> None:
    found = resumed(run)
    assert found.done == {GOOD, BROKEN, LOST}
    assert UNRUN not in found.done
    assert (found.attempts[UNRUN], found.attempts[GOOD]) == (2, 1)
    assert Resumed.from_data(json.loads(json.dumps(found.to_data()))) == found


def test_nothing_is_done_before_a_run_is_interrupted() -> None:
    assert Resumed() == Resumed(frozenset(), {})
    assert Resumed(frozenset("cab")).to_data() == {"done": ["a", "b", "c"], "attempts": {}}


def ttft(attempt: int) -> TtftRecord:
    return TtftRecord(UNRUN, "s25", "127.0.0.1:5601", Target.SIM, "kv", 1, 8, 8, 90.0, attempt=attempt)


@pytest.mark.parametrize(
    ("samples", "ttfts", "deploys", "tries"),
    [
        ([2, 1], [], 0, 2),  # the highest, whichever was written last
        ([1, 2], [], 0, 2),
        ([], [3, 1], 0, 3),
        ([], [1, 3], 0, 3),
        ([2], [1], 0, 2),  # the first try of TTFT came to nothing
        ([1], [2], 0, 2),
        ([3], [2], 1, 3),
        ([], [], 1, 1),
        ([1], [1], 2, 2),  # the second left nothing but its files
    ],
)
def test_the_tries_of_a_cell_are_the_most_that_any_kind_of_record_shows(
    run: RunData, samples: list[int], ttfts: list[int], deploys: int, tries: int
) -> None:
    records = {
        "samples": tuple(sample(UNRUN, attempt=attempt) for attempt in samples),
        "ttfts": tuple(ttft(attempt) for attempt in ttfts),
        "deploys": (DeployRecord(UNRUN, "s25", (), (), 0, 0.1),) * deploys,
    }
    found = resumed(replace(run, **{kind: {UNRUN: made} if made else {} for kind, made in records.items()}))
    assert found.attempts == {UNRUN: tries}


def _check(run: RunData, **changes: object) -> None:
    values: dict[str, object] = {"planned": run.plan, "toolchain": run.run.toolchain, "target": "sim"} | changes
    check_same(run, folder=Path("reports/r"), **values)  # type: ignore[arg-type]


def test_the_same_run_goes_on(run: RunData) -> None:
    _check(run)
    _check(run, planned=tuple(reversed(run.plan)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: {"planned": run.plan[1:]}, f"{GOOD} no longer planned"),
        (lambda run: {"planned": (*run.plan, planned("x-kv-SM8650", 75))}, "x-kv-SM8650 not planned then"),
        (lambda run: {"planned": (*run.plan[:-1], replace(run.plan[-1], recipe="other"))}, "planned otherwise"),
        (lambda run: {"toolchain": run.run.toolchain | {"qnn": "2.51"}}, "qnn: 2.4.0 then, 2.51 now"),
        (lambda run: {"target": "android"}, "target sim then, android now"),
    ],
)
def test_another_run_is_refused(run: RunData, change: object, words: str) -> None:
    with pytest.raises(ConfigError, match="--resume reports/r") as caught:
        _check(run, **change(run))  # type: ignore[operator]
    assert words in str(caught.value)


def test_all_that_differs_is_named_and_of_many_cells_three(run: RunData) -> None:
    new = [planned(f"x{i}-kv-SM8650", 75) for i in range(4)]
    for count, words in ((3, "x0-kv-SM8650, x1-kv-SM8650, x2-kv-SM8650 not planned then"),
                         (4, "x0-kv-SM8650, x1-kv-SM8650, x2-kv-SM8650 and 1 more not planned then")):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            _check(run, planned=(*run.plan, *reversed(new[:count])))
        assert caught.value.what == f"this is not the run's plan: {words}"
    other = replace(run.plan[-1], recipe="other")
    with pytest.raises(ConfigError) as caught:
        _check(run, planned=(*run.plan[1:-1], other, new[0]), target="android", toolchain={})
    assert caught.value.what == (
        f"this is not the run's plan: {new[0].cell} not planned then; {GOOD} no longer planned; "
        f"{other.cell} planned otherwise"
    )
    assert "report.html names its command" in caught.value.remedy


def test_each_part_of_the_toolchain_that_differs_is_named(run: RunData) -> None:
    known = dict(run.run.toolchain)
    now = {name: value for name, value in known.items() if name != "executorch"} | {"qnn": "2.51", "a-new": "1"}
    with pytest.raises(ConfigError) as caught:
        _check(run, toolchain=now, target="android")
    assert caught.value.what == (
        "the toolchain is not the run's: a-new: none then, 1 now; "
        f"executorch: {known['executorch']} then, none now; qnn: {known['qnn']} then, 2.51 now"
    )
    assert caught.value.where == "--resume reports/r"
    assert "start a new run" in caught.value.remedy


RACK = "version: 1\nphones:\n  - {name: one, virtual: galaxy_s24}\n  - {name: two, virtual: galaxy_s24}\n"


def _start(*arguments: str, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-m", "device", "-p", "no:cacheprovider", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "HTPFARM_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("HTPFARM_NIGHTLY"), reason="takes minutes: HTPFARM_NIGHTLY=1 runs it")
def test_a_killed_run_is_gone_on_with(tiny_artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    cache, reports, rack, pte = (tmp_path / name for name in ("cache", "reports", "rack.yaml", "pte"))
    rack.write_text(RACK)
    (cell,) = cells([load_models(MODELS)["tiny_llama"]], [Mode.HYBRID], [find_soc("SM8650")])
    export([(cell, tiny_artifacts["hybrid"])], pte)
    first_cell, second_cell = f"{cell.id}@one", f"{cell.id}@two"
    arguments = ["--rack", str(rack), "--modes", "hybrid", "--pte", str(pte), "--eval-tokens", "32"]
    try:
        killed = _start(*arguments, "--reports", str(reports), cache=cache)

        def said_so() -> bool:
            assert killed.poll() is None, killed.stdout.read() if killed.stdout else ""
            return f"{second_cell}: prompt 1/" in "".join(p.read_text() for p in reports.glob("*/live.log"))

        until(said_so)
        killed.send_signal(signal.SIGKILL)
        killed.wait(timeout=HANG_S)
        (folder,) = reports.iterdir()
        before, records = load_run(folder), (folder / "records.jsonl").read_bytes()
        assert set(before.outcomes) == {first_cell}

        refused = _start("--resume", str(folder), "--any-phone", cache=cache)
        said, _ = refused.communicate(timeout=HANG_S)
        assert refused.returncode == 2, said
        assert "this is not the run's plan" in said

        again = _start("--resume", str(folder), "-n", "1", cache=cache)
        said, _ = again.communicate(timeout=HANG_S)
        assert again.returncode == 0, said
        assert [path for path in reports.iterdir() if path.is_dir()] == [folder]
        assert (folder / "records.jsonl").read_bytes().startswith(records)
        after = load_run(folder)
        assert {cell: outcome.status for cell, outcome in after.outcomes.items()} == {
            first_cell: "PASSED",
            second_cell: "PASSED",
        }
        assert after.samples[first_cell] == before.samples[first_cell]
        assert {one.attempt for one in after.samples[second_cell]} - {1} == {2}
        assert (len(after.resumed), after.plan) == (1, before.plan)

        nothing = _start("--resume", str(folder), cache=cache)
        said, _ = nothing.communicate(timeout=HANG_S)
        assert nothing.returncode == 0, said
        assert load_run(folder).samples == after.samples
    finally:
        subprocess.run(
            [sys.executable, "-m", "harness.cli", "rack", "down"],
            cwd=REPOSITORY,
            env={**os.environ, "HTPFARM_CACHE": str(cache)},
            timeout=HANG_S,
            check=True,
        )
