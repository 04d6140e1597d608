"""benchmarks/planted_faults.py: what its faults change is there, and it tells a fault from a sound run."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.build.cache import Artifact
from harness.paths import REPOSITORY
from harness.toolchain.environment import find_toolchain

FOLDER = REPOSITORY / "benchmarks"


@pytest.fixture(scope="module")
def faults() -> Iterator[Any]:
    """The catalog of faults, with all that a runner imports loaded."""
    sys.path.insert(0, str(FOLDER))
    try:
        importlib.import_module("harness.runtime.cli")
        importlib.import_module("harness.runtime.serve")
        yield importlib.import_module("faults.catalog")
    finally:
        sys.path.remove(str(FOLDER))


def attribute(place: str) -> Any:
    """`harness.runtime.session.Session.feed` → what is there now."""
    parts = place.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for name in parts[end:]:
            found = getattr(found, name)
        return found
    raise AssertionError(f"no module of {place}")


def plant(faults: Any, names: list[str], settings: dict[str, str]) -> None:
    """Plants faults one after the other and takes each out again: what it changed is back."""
    for name in names:
        patch = faults.Patch(settings)
        try:
            faults.FAULTS[name].plant(patch)
            assert patch.places or patch.before_main, f"{name} plants nothing"
            planted = {place: attribute(place) for place in patch.places}
        finally:
            patch.undo()
        assert all(attribute(place) is not now for place, now in planted.items()), f"{name} changes nothing"


def test_every_fault_of_the_runner_and_of_the_phone_can_be_planted(faults: Any, tmp_path: Path) -> None:
    names = [name for name, fault in faults.FAULTS.items() if fault.kind != "build"]
    assert len(names) >= 48
    settings = {"HTPFARM_FAULT_GOOD": str(tmp_path)}
    plant(faults, names, settings)


@pytest.mark.slow
def test_every_fault_of_the_build_can_be_planted() -> None:
    """In a process that finds what a build worker finds."""
    environment = find_toolchain().environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(FOLDER), str(REPOSITORY), environment["PYTHONPATH"]])
    command = [sys.executable, "-m", "faults.build_worker", "--check"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("planted in") >= 20


def test_a_fault_whose_place_is_gone_cannot_be_planted(faults: Any) -> None:
    patch = faults.Patch()
    module = importlib.import_module("faults.fault")
    with pytest.raises(module.PlantError, match=r"no harness.runtime.session.Session.nothing"):
        patch.around("harness.runtime.session", "Session.nothing")
    with pytest.raises(module.PlantError, match="no module"):
        patch.around("harness.runtime.nothing", "x")


def test_a_function_is_replaced_where_it_was_imported_by_name_too(faults: Any) -> None:
    patch = faults.Patch()
    try:

        @patch.around("harness.runtime.score", "score_rows")
        def score_rows(*_arguments: Any) -> Any:
            return None

        for user in ("harness.runtime.score", "harness.evaluate.stock_scorer"):
            assert attribute(f"{user}.score_rows")() is None
    finally:
        patch.undo()


def words(**said: Any) -> Any:
    """What a runner said to one request for scores and one command."""
    tap = importlib.import_module("faults.tap")
    found = tap.Words()
    scores = said.get("scores", [-1.0, -2.0])
    found.said = {
        "s": [{"ok": True, "windows": [{"logprobs": scores, "steps": said.get("steps", 2)}]}],
        "c": [{"output_path": said.get("text", "a b"), "x_stats_path": [{"tokens": said.get("tokens", [1, 2])}]}],
    }
    found.ops = {"s": ("score", "kv"), "c": ("command", "")}
    return found


@pytest.mark.parametrize(
    ("said", "what", "matters"),
    [
        ({}, "nothing", False),
        ({"text": "a c"}, "text 1/2", True),
        ({"tokens": [1, 3]}, "tokens 1/2", True),
        ({"steps": 3}, "steps 1/2", True),
        ({"scores": [-1.0, -2.02]}, "perplexity +1.01%, a score 0.02 nats", True),
        ({"scores": [-1.0, -2.008]}, "perplexity +0.40%, a score 0.008 nats", False),
        ({"scores": [-1.1, -1.9]}, "a score 0.1 nats", False),
        ({"scores": [-1.0, float("nan")]}, "perplexity +nan%, a score nan nats", True),
    ],
)
def test_what_a_fault_changes_is_measured_against_a_sound_runners_words(
    faults: Any, said: dict[str, Any], what: str, matters: bool
) -> None:
    tap = importlib.import_module("faults.tap")
    found = tap.effect(words(**said), words())
    assert found.words() == what
    assert found.matters is matters


def test_a_runner_that_says_nothing_has_failed(faults: Any) -> None:
    tap = importlib.import_module("faults.tap")
    assert tap.effect(tap.Words(), words()).words() == "failed 1/1"
    assert tap.effect(tap.Words(), words()).matters


def row(**changes: Any) -> Any:
    """A row of the table: a fault that was caught."""
    report = importlib.import_module("faults.report")
    base = {
        **{"fault": "f", "what": "x", "kind": "runner", "place": "tiny_llama kv"},
        **{
            "outcome": "FAILED",
            "failure_class": "PRODUCT",
            "reason": "r",
            "checks": {"text": "FAILED", "rms": "PASSED"},
        },
        **{"changes": "text 1/2", "matters": True, "strikes": 3},
    }
    return report.Row(**(base | changes))


@pytest.mark.parametrize(
    ("changes", "word", "wrong"),
    [
        ({}, "caught", False),
        ({"outcome": "PASSED"}, "GOT THROUGH", True),
        ({"outcome": "PASSED", "matters": False, "changes": "nothing"}, "nothing changed", False),
        ({"outcome": "PASSED", "matters": False, "strikes": 0}, "never struck", False),
        ({"matters": False, "changes": "nothing"}, "caught, though nothing changed", False),
        ({"matters": False, "changes": "perplexity +0.30%"}, "caught, small as it is", False),
        ({"outcome": "PASSED", "matters": False, "changes": "perplexity +0.30%"}, "passes, small as it is", False),
        ({"outcome": "PASSED", "exempt": "it is another model"}, "passes (it is another model)", False),
        ({"problem": "INFRA: no phone"}, "PROBLEM", True),
        ({"fault": "none", "outcome": "PASSED"}, "passed", False),
        ({"fault": "none"}, "FAILED (PRODUCT)", True),
    ],
)
def test_a_fault_that_matters_and_passes_fails_the_benchmark(
    faults: Any, changes: dict[str, Any], word: str, wrong: bool
) -> None:
    assert row(**changes).word == word
    assert row(**changes).wrong is wrong


def test_the_table_shows_what_gets_through_first(faults: Any) -> None:
    report = importlib.import_module("faults.report")
    text = report.markdown([row(), row(fault="g", outcome="PASSED", checks={"text": "PASSED"})], "x")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert lines[0].startswith("| `g` | x | tiny_llama kv | text 1/2 | GOT THROUGH |")
    assert lines[1].endswith("| caught: PRODUCT | · | ✗ |")


@pytest.mark.slow
def test_a_fault_planted_in_a_cell_is_seen(tmp_path: Path, tiny_artifacts: dict[str, Artifact]) -> None:
    command = [sys.executable, str(FOLDER / "planted_faults.py"), "--modes", "lookahead", "--only", "second_best_token"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "rows.json")], capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sound, planted = json.loads((tmp_path / "rows.json").read_text())
    assert (sound["fault"], sound["word"]) == ("none", "passed")
    assert (planted["fault"], planted["word"]) == ("second_best_token", "caught")
    assert "tokens" in planted["changes"]
    assert "FAILED" in planted["checks"].values()
