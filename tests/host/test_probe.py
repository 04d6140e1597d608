"""The gates' probe: what an answer proves, and the real compiler's answers on both sides of two gates."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from events import HANG_S
from rich.console import Console

from harness.build.probe import run, show
from harness.build.probe.job import from_dict, to_dict
from harness.build.probe.marks import Answer, Mark, Observation, mark, status
from harness.errors import BuildError, ConfigError
from harness.gates import GATES
from harness.paths import REPOSITORY
from harness.soc import SOCS, find_soc
from harness.toolchain.environment import find_toolchain
from harness.toolchain.version import parse_build_id, qnn_version

BY_NAME = {gate.name: gate for gate in GATES}
QNN = (2, 48)
YES, NO = Answer.ACCEPTED, Answer.REFUSED


def seen(
    gate: str, soc: str, answer: Answer, control: Answer | None = None, quantizer: Answer | None = None
) -> Observation:
    arch = find_soc(soc).arch
    return Observation(gate, soc, arch, answer, control, quantizer, 1, (), "words", 1.5, "/tmp/x.log")


@pytest.mark.parametrize(
    ("gate", "soc", "answer", "control", "quantizer", "expected"),
    [
        ("kv16", "SM8450", NO, YES, NO, Mark.PROVEN),
        ("kv16", "SM8550", YES, None, YES, Mark.PROVEN),
        ("kv16", "SM8550", NO, YES, YES, Mark.CONTRADICTED),
        ("kv16", "SM8450", YES, None, None, Mark.DOCUMENTED_ONLY),
        ("lpbq", "SM8350", YES, None, NO, Mark.QUANTIZER_ONLY),
        ("weight_sharing", "SM8450", YES, YES, None, Mark.DOCUMENTED_ONLY),
        ("simulator", "SM8850", NO, YES, None, Mark.PROVEN),
        ("simulator", "SM8850", YES, None, None, Mark.DOCUMENTED_ONLY),
        ("softcap16", "SM8650", Answer.WRONG, YES, None, Mark.PROVEN),
        ("softcap16", "SM8650", YES, None, None, Mark.DOCUMENTED_ONLY),
        ("softcap16", "SM8650", Answer.WRONG, Answer.WRONG, None, Mark.NOT_SHOWN),
        ("kv16", "SM8550", Answer.WRONG, YES, YES, Mark.CONTRADICTED),
        # What refuses the control too says nothing about the feature.
        ("kv16", "SM8450", NO, NO, NO, Mark.NOT_SHOWN),
        ("kv16", "SM8450", NO, Answer.CRASHED, NO, Mark.NOT_SHOWN),
        ("kv16", "SM8450", NO, None, NO, Mark.NOT_SHOWN),
        ("kv16", "SM8450", Answer.CRASHED, YES, NO, Mark.NOT_SHOWN),
        ("kv16", "SM8550", Answer.TIMED_OUT, YES, YES, Mark.NOT_SHOWN),
        ("kv16", "SM8550", Answer.FAILED, YES, YES, Mark.NOT_SHOWN),
    ],
)
def test_what_an_answer_proves(
    gate: str, soc: str, answer: Answer, control: Answer | None, quantizer: Answer | None, expected: Mark
) -> None:
    assert mark(BY_NAME[gate], seen(gate, soc, answer, control, quantizer), QNN) is expected


def test_a_version_floor_is_proven_on_the_side_that_is_here() -> None:
    gate, one = BY_NAME["hadamard"], seen("hadamard", "SM8650", YES)
    assert mark(gate, one, (2, 47)) is Mark.PROVEN
    assert mark(gate, one, (2, 46)) is Mark.DOCUMENTED_ONLY
    assert status(gate, [one], QNN) == "proven V75; documented only for QNN before 2.47 (here: 2.48)"


def test_a_gates_marks_in_one_line() -> None:
    socs = [SOCS[name] for name in run.PROBED]
    answers = [seen("lpbq", soc.name, YES, None, YES if soc.arch >= 69 else NO) for soc in socs]
    assert status(BY_NAME["lpbq"], answers, QNN) == "proven V69–V81; quantizer only V68"
    assert status(BY_NAME["kv16"], answers, QNN) == "not probed"
    shared = [seen("weight_sharing", soc.name, YES, YES) for soc in socs]
    assert status(BY_NAME["weight_sharing"], shared, QNN) == "proven V73–V81; documented only V68, V69"
    gap = [seen("kv16", name, YES) for name in ("SM8550", "SM8750")]
    gap.append(seen("kv16", "SM8650", Answer.CRASHED))
    assert status(BY_NAME["kv16"], gap, QNN) == "proven V73, V79; not shown V75"


def test_every_generation_and_every_gate_is_probed() -> None:
    assert {SOCS[name].arch for name in run.PROBED} == {soc.arch for soc in SOCS.values()}
    assert set(run.NAMES) == set(BY_NAME)


def test_an_answer_survives_its_file() -> None:
    for one in (seen("kv16", "SM8450", NO, YES, NO), seen("simulator", "SM8650", YES)):
        assert from_dict(json.loads(json.dumps(to_dict(one)))) == one


@pytest.mark.parametrize(
    ("said", "version"), [("v2.48.40.260702151143", (2, 48)), ("2.37.0", (2, 37)), ("v2.51", (2, 51))]
)
def test_the_version_in_a_build_id(said: str, version: tuple[int, int]) -> None:
    assert parse_build_id(said) == version


def test_what_is_no_build_id_is_refused() -> None:
    with pytest.raises(ConfigError, match="no QNN build id"):
        parse_build_id("unknown")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    find_toolchain()  # its view of the SDK stays where it is
    monkeypatch.setenv("HTPFARM_CACHE", str(tmp_path))
    return tmp_path


def text_of(report: dict[str, Any], width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    show.print_gates(report, console)
    return console.export_text()


def test_the_table_without_a_probe(own_cache: Path) -> None:
    report = show.gates_report(ask=False, fresh=False, console=None)
    assert report["qnn"] == "2.48"
    assert [row["gate"] for row in report["gates"]] == list(run.NAMES)
    assert {row["status"] for row in report["gates"]} == {"not probed"}
    assert (report["probes"], show.exit_status(report)) == ([], 0)
    text = text_of(report)
    assert "htpfarm gates --probe" in text
    assert all(gate.name in text and gate.needs in text for gate in GATES)


@pytest.mark.slow
def test_both_sides_of_two_gates_with_the_real_compiler(own_cache: Path) -> None:
    toolchain, gates, socs = find_toolchain(), ("lpbq", "kv16"), ("SM8350", "SM8550")
    heard: list[Observation] = []
    found = {(one.gate, one.soc): one for one in run.probe(toolchain, gates, socs, heard.append)}
    assert {(one.gate, one.soc) for one in heard} == set(found) == {(g, s) for g in gates for s in socs}
    marks = {key: mark(BY_NAME[key[0]], one, qnn_version(toolchain)) for key, one in found.items()}

    # 16-bit matmul: the compiler says no below V73, and its no is about the 16 bits: with an 8-bit cache it says yes.
    below, above = found["kv16", "SM8350"], found["kv16", "SM8550"]
    assert (below.answer, below.control, below.quantizer) == (NO, YES, NO)
    assert "incorrect Value 68, expected >= 73" in below.evidence
    assert (above.answer, above.quantizer, above.left) == (YES, YES, ())
    assert above.delegated >= 3  # transpose, cat, matmul
    assert marks["kv16", "SM8350"] is marks["kv16", "SM8550"] is Mark.PROVEN

    # LPBQ: ExecuTorch's quantizer says no below V69; the compiler does not.
    below, above = found["lpbq", "SM8350"], found["lpbq", "SM8550"]
    assert (below.quantizer, above.quantizer) == (NO, YES)
    assert (above.answer, above.left) == (YES, ())
    assert (below.answer, marks["lpbq", "SM8350"]) == (YES, Mark.QUANTIZER_ONLY)
    assert marks["lpbq", "SM8550"] is Mark.PROVEN

    # Kept: nothing is asked a second time, and the table tells it without asking.
    for one in found.values():
        assert Path(one.log).read_text(errors="replace")
    assert run.missing(toolchain, gates, socs) == ()
    again: list[Observation] = []
    assert len(run.probe(toolchain, gates, socs, again.append)) == 4
    assert again == []
    report = show.gates_report(ask=False, fresh=False, console=None)
    assert next(row for row in report["gates"] if row["gate"] == "kv16")["status"] == "proven V68, V73"
    assert "incorrect Value 68" in text_of(report)
    assert show.exit_status(report) == 0


@pytest.mark.slow
def test_capped_logits_of_16_rows_are_wrong_and_of_17_right(own_cache: Path) -> None:
    # When this fails the compiler is mended, and the gate can go.
    found = run.probe(find_toolchain(), ("softcap16",), ("SM8650",), lambda _: None)
    one = found[0]
    assert (one.answer, one.control, one.left) == (Answer.WRONG, YES, ())
    assert "of 16 are not torch's" in one.evidence
    assert "wrong" in text_of(show.gates_report(ask=False, fresh=False, console=None))


@pytest.mark.slow
def test_a_compiler_that_aborts_or_hangs_costs_one_answer(own_cache: Path) -> None:
    """The graphs that do it are the test's own: no known graph makes the compiler do either."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tests" / "host" / "probe_mishaps.py"), str(own_cache)],
        env=find_toolchain().environment(),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    events = [json.loads(line.split(" ", 1)[1]) for line in done.stdout.splitlines() if "htpfarm-event" in line]
    found = {one.gate: one for one in (from_dict(json.loads(event["detail"])) for event in events)}
    assert {name: one.answer for name, one in found.items()} == {
        "aborts": Answer.CRASHED,
        "hangs": Answer.TIMED_OUT,
        "breaks": Answer.FAILED,
        "raises": Answer.FAILED,
        "kv16": Answer.REFUSED,
    }
    assert "SIGABRT" in found["aborts"].evidence
    assert "more than 20 s" in found["hangs"].evidence
    assert "no such layer" in found["breaks"].evidence
    assert "not a refusal" in found["raises"].evidence
    assert found["kv16"].control is YES
    assert not [one.gate for one in found.values() if one.settled and one.gate != "kv16"]


def test_a_worker_that_cannot_start_is_an_error_with_its_words(own_cache: Path) -> None:
    toolchain = find_toolchain()
    broken = replace(toolchain, python_path=(own_cache / "shadow", *toolchain.python_path))
    shadow = own_cache / "shadow" / "torch"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("raise ImportError('this torch is broken')")
    with pytest.raises(BuildError, match="without an answer to 1 of 1") as caught:
        run.probe(broken, ("kv16",), ("SM8450",))
    assert "this torch is broken" in caught.value.evidence
