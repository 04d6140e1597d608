"""Two runs compared, the gate's answer and its exit status, accepted baselines."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sample_run import BROKEN, GOOD, LOST, perplexity, planned, records, run_info, sample, write_run

from harness.cli import main
from harness.compare.baselines import accept, accepted_times, load_baselines
from harness.compare.cli import run_gate
from harness.compare.declared import declared
from harness.compare.gate import GoodRun, last_whole
from harness.compare.gate import gate as judged
from harness.compare.runs import CellComparison, compare_runs
from harness.errors import ConfigError, FailureClass
from harness.history.store import History
from harness.models import load_models
from harness.paths import MODELS
from harness.results import OutcomeRecord, PerplexityRecord, Record, SampleRecord, Status, load_run
from harness.results.records import encode
from harness.results.store import RECORDS, RunData
from harness.results.summary import summarise
from harness.target import Target
from harness.verdicts import Judgement

REGRESSED, OK, IMPROVED = Judgement.REGRESSED, Judgement.OK, Judgement.IMPROVED
INCONCLUSIVE, INVALID = Judgement.INCONCLUSIVE, Judgement.INVALID
PASSED = OutcomeRecord(GOOD, Status.PASSED, phone="s24")


def sessions(speed: float, count: int = 8, seed: int = 0, **changes: object) -> list[Record]:
    """Sessions of three iterations with 0.5% noise; TTFT and prefill go with the speed."""
    rng = random.Random(seed)
    made: list[Record] = []
    for session in range(count):
        for _ in range(3):
            factor = speed * (1 + rng.gauss(0, 0.005))
            values: dict[str, object] = {
                "decode_tok_s": 20 * factor,
                "prefill_tok_s": 300 * factor,
                "ttft_ms": 40 / factor,
                "raw": {"turns": [{"tokens": [1, 2, 3]}]},
            }
            made.append(sample(GOOD, session, **(values | changes)))
    return made


def run(folder: Path, *made: Record, name: str = "20260102-030405-abcd", target: Target = Target.SIM) -> Path:
    place = folder / name
    place.mkdir(parents=True)
    info = replace(run_info(target), id=name)
    every = [info, planned(GOOD, 75), *made]
    (place / RECORDS).write_bytes(b"".join(encode(record, name) for record in every))
    return place


def compared(
    tmp_path: Path, base: Sequence[Record], candidate: Sequence[Record], target: Target = Target.SIM
) -> CellComparison:
    (cell,) = compare_runs(_load(tmp_path / "a", base, target), _load(tmp_path / "b", candidate, target)).cells
    return cell


def _load(folder: Path, made: Sequence[Record], target: Target) -> RunData:
    return load_run(run(folder, *made, target=target))


# Two runs


@pytest.mark.parametrize(("speed", "expected"), [(1.0, OK), (0.9, REGRESSED), (1.1, IMPROVED), (0.98, OK)], ids=str)
def test_speeds_of_paired_sessions(tmp_path: Path, speed: float, expected: Judgement) -> None:
    cell = compared(tmp_path, [*sessions(1.0), PASSED], [*sessions(speed, seed=1), PASSED])
    assert {one.metric: one.judgement for one in cell.speeds} == dict.fromkeys(
        ("ttft_ms", "prefill_tok_s", "decode_tok_s"), expected
    )
    assert cell.judgement is expected
    decode = cell.speeds[2]
    assert decode.change == pytest.approx(speed - 1, abs=0.01)
    assert decode.lower is not None
    assert decode.upper is not None
    assert decode.lower < speed - 1 + 0.005
    assert decode.pairs == 8


def test_two_sessions_are_too_few_to_judge(tmp_path: Path) -> None:
    cell = compared(tmp_path, [*sessions(1.0, 2), PASSED], [*sessions(0.5, 2), PASSED])
    assert {one.judgement for one in cell.speeds} == {INCONCLUSIVE}
    assert "--ab" in cell.speeds[0].reason


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"phone": "s25"}, "phone differs"),
        ({"generated_tokens": 60}, "token counts differ"),
        ({"settings": {"temperature": 1}}, "settings differs"),
        ({"prompt": "Another one"}, "prompt differs"),
        ({"raw": {"vitals": {"after": {"throttled": True}}}}, "throttled"),
    ],
)
def test_what_does_not_compare_is_invalid(tmp_path: Path, changes: dict[str, object], word: str) -> None:
    cell = compared(tmp_path, [*sessions(1.0), PASSED], [*sessions(0.5, **changes), PASSED])
    assert {one.judgement for one in cell.speeds} == {INVALID}
    assert word in cell.speeds[0].reason


def test_the_simulators_speed_on_another_host_is_invalid(tmp_path: Path) -> None:
    a, b = load_run(run(tmp_path / "a", *sessions(1.0), PASSED)), load_run(run(tmp_path / "b", *sessions(1.0), PASSED))
    moved = replace(b, run=replace(b.run, host="bench-2"))
    assert {one.judgement for one in compare_runs(a, moved).cells[0].speeds} == {INVALID}
    phones = [replace(data, run=replace(data.run, target=Target.ANDROID)) for data in (a, moved)]
    assert {one.judgement for one in compare_runs(*phones).cells[0].speeds} == {OK}


def test_a_median_hides_one_slow_iteration(tmp_path: Path) -> None:
    slow = [replace(one, decode_tok_s=1.0) if i % 3 == 0 else one for i, one in enumerate(sessions(1.0, seed=1))]  # type: ignore[type-var]
    cell = compared(tmp_path, [*sessions(1.0), PASSED], [*slow, PASSED])
    assert cell.speeds[2].judgement is OK


def test_outcomes(tmp_path: Path) -> None:
    failed = OutcomeRecord(GOOD, Status.FAILED, FailureClass.PRODUCT, "wrong text")
    lost = OutcomeRecord(GOOD, Status.ERROR, FailureClass.INFRA, "adb")
    cases = [
        (PASSED, failed, REGRESSED),
        (failed, PASSED, IMPROVED),
        (failed, failed, INCONCLUSIVE),
        (PASSED, lost, INVALID),
    ]
    for number, (before, after, expected) in enumerate(cases):
        assert compared(tmp_path / str(number), [before], [after]).outcome is expected


def scored(nll: float, blocks: int = 10) -> PerplexityRecord:
    made = perplexity(GOOD, "PHONE", "kv", nll)
    return replace(made, blocks=tuple((32, nll / blocks + 0.01 * number) for number in range(blocks)))


def test_perplexity_by_blocks(tmp_path: Path) -> None:
    cell = compared(tmp_path, [scored(5000.0), PASSED], [scored(5000.0 + 320 * 0.05), PASSED])
    assert cell.perplexity["kv"].judgement is REGRESSED
    assert cell.perplexity["kv"].ratio == pytest.approx(1.0513, abs=1e-3)
    assert cell.judgement is REGRESSED
    assert compared(tmp_path / "x", [scored(5000.0), PASSED], [scored(5000.0), PASSED]).judgement is OK


def test_text_is_compared_by_tokens(tmp_path: Path) -> None:
    other = [
        replace(one, raw={"turns": [{"tokens": [1, 9, 3]}]}) for one in sessions(1.0) if isinstance(one, SampleRecord)
    ]
    cell = compared(tmp_path, [*sessions(1.0), PASSED], [*other, PASSED])
    assert cell.text is not None
    assert (cell.text.equal, cell.text.place) == (False, 1)
    assert cell.judgement is OK


def test_a_run_against_itself_is_ok(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    found = compare_runs(load_run(folder), load_run(folder))
    assert not found.with_judgement(REGRESSED)
    assert found.toolchain == {}


def test_one_noisy_cell_among_many_is_not_called_regressed(tmp_path: Path) -> None:
    """Alone it is; among 100 comparisons its p-value is what chance brings."""
    from harness.compare.runs import SpeedComparison, controlled

    def cell(number: int, p_like: tuple[float, float, float]) -> CellComparison:
        change, lower, upper = p_like
        word = REGRESSED if change < -0.03 and upper < 0 else OK
        speed = SpeedComparison("decode_tok_s", word, word, change, lower, upper, 8, 0.5)
        return CellComparison(str(number), "PASSED", "PASSED", OK, (speed,))

    noisy = cell(0, (-0.04, -0.075, -0.005))
    cells = [noisy, *(cell(n, (0.001 * (n % 5), -0.03, 0.03)) for n in range(1, 100))]
    kept = controlled(cells)[0].speeds[0]
    assert (kept.alone, kept.judgement) == (REGRESSED, INCONCLUSIVE)
    assert "among 100" in kept.reason
    sure = cell(0, (-0.10, -0.11, -0.09))
    assert controlled([sure, *cells[1:]])[0].speeds[0].judgement is REGRESSED


# The command


def test_the_compare_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "220")
    a, b = run(tmp_path / "a", *sessions(1.0), PASSED), run(tmp_path / "b", *sessions(0.8, seed=1), PASSED)
    assert main(["compare", str(a), str(b)]) == 1
    shown = capsys.readouterr().out
    assert "REGRESSED" in shown
    assert "simulator" in shown
    assert main(["compare", str(a), str(a), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["OK"] == 1
    assert main(["compare", str(a), str(tmp_path / "none")]) == 2


def gate(folder: Path, tmp_path: Path, **changes: object) -> object:
    return run_gate(folder, history=str(tmp_path / "h.sqlite"), folder=tmp_path / "baselines", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (PASSED, 0),
        (OutcomeRecord(GOOD, Status.FAILED, FailureClass.PRODUCT, "wrong"), 1),
        (OutcomeRecord(GOOD, Status.FAILED, FailureClass.PERF, "slow"), 1),
        (OutcomeRecord(GOOD, Status.ERROR, FailureClass.BUILD, "no"), 1),
        (OutcomeRecord(GOOD, Status.ERROR, FailureClass.CONFIG, "no"), 2),
        (OutcomeRecord(GOOD, Status.ERROR, FailureClass.INFRA, "adb"), 3),
        (OutcomeRecord(GOOD, Status.ERROR, FailureClass.NOT_JUDGED, "no witness"), 1),
        (OutcomeRecord(GOOD, Status.ERROR, FailureClass.INCONCLUSIVE, "grey"), 1),
        (OutcomeRecord(GOOD, Status.ERROR, FailureClass.INVALID, "two clocks"), 1),
        (OutcomeRecord(GOOD, Status.SKIPPED, FailureClass.UNSUPPORTED, "V69"), 0),
    ],
    ids=lambda value: getattr(value, "failure_class", None) or str(value),
)
def test_the_gates_status_is_the_designs(tmp_path: Path, outcome: OutcomeRecord, status: int) -> None:
    found = gate(run(tmp_path / "r", outcome), tmp_path)
    assert found.status == status  # type: ignore[attr-defined]


def test_an_interrupted_run_does_not_pass(tmp_path: Path) -> None:
    assert gate(run(tmp_path / "r"), tmp_path).status == 3  # type: ignore[attr-defined]


def test_the_gate_names_first_things_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "r", made=[*records(), OutcomeRecord(GOOD, Status.ERROR, FailureClass.BUILD, "op")])
    arguments = ["gate", str(folder), "--history", str(tmp_path / "h.sqlite"), "--baselines", str(tmp_path / "b")]
    assert main(arguments) == 1
    shown = capsys.readouterr().out
    places = [shown.index(cell) for cell in (BROKEN, GOOD, LOST)]
    assert places == sorted(places)
    assert "gate: FAIL (exit status 1)" in shown
    assert "evidence/broken.log" in shown
    assert main([*arguments, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["cell"] == BROKEN


def test_the_gate_says_where_a_cell_was_last_good(tmp_path: Path) -> None:
    early = replace(run_info(), id="20260101-000000-0000", started="2026-01-01T00:00:00.000+00:00")
    good = tmp_path / "r" / early.id
    good.mkdir(parents=True)
    lines = [encode(record, early.id, "2026-01-01T00:00:00.000+00:00") for record in (early, planned(GOOD, 75), PASSED)]
    (good / RECORDS).write_bytes(b"".join(lines))
    with History(str(tmp_path / "h.sqlite")) as history:
        history.import_run(good)
    failed = OutcomeRecord(GOOD, Status.ERROR, FailureClass.BUILD, "could not create op")
    found = gate(run(tmp_path / "r", failed), tmp_path)
    assert "20260101-000000-0000 (QNN 2.4.0, ExecuTorch 1.5.1)" in found.findings[0].last_good  # type: ignore[attr-defined]


def test_the_gate_with_a_base_blocks_on_a_slowdown(tmp_path: Path) -> None:
    base = run(tmp_path / "a", *sessions(1.0), PASSED)
    slow = run(tmp_path / "b", *sessions(0.8, seed=1), PASSED, name="20260103-000000-0001")
    found = gate(slow, tmp_path, base=base)
    assert found.status == 1  # type: ignore[attr-defined]
    assert "decode_tok_s REGRESSED: 20.0 → 16.0" in "\n".join(f.what for f in found.findings)  # type: ignore[attr-defined]
    assert gate(base, tmp_path, base=base).status == 0  # type: ignore[attr-defined]


def test_the_gate_takes_the_runs_own_base_side(tmp_path: Path) -> None:
    candidate = run(tmp_path / "b", *sessions(0.8, seed=1), PASSED)
    run(candidate, *sessions(1.0), PASSED, name="base")
    found = gate(candidate, tmp_path)
    assert found.status == 1  # type: ignore[attr-defined]


OTHER = GOOD.replace("kv", "hybrid") if "kv" in GOOD else f"{GOOD}-2"


def pair(*cells: Record, name: str, folder: Path) -> Path:
    """A run of GOOD and OTHER, ended as told; a cell without an outcome is planned and was not run."""
    return run(folder, planned(OTHER, 75), *cells, name=name)


ENDINGS: dict[str, tuple[Record, ...]] = {
    "passed": (OutcomeRecord(OTHER, Status.PASSED),),
    "failed": (OutcomeRecord(OTHER, Status.FAILED, FailureClass.PRODUCT, "wrong"),),
    "lost": (OutcomeRecord(OTHER, Status.ERROR, FailureClass.INFRA, "adb"),),
    "skipped": (OutcomeRecord(OTHER, Status.SKIPPED, FailureClass.UNSUPPORTED, "V69"),),
    "not run": (),
}


@pytest.mark.parametrize("before", ENDINGS)
@pytest.mark.parametrize("after", [*ENDINGS, "not planned"])
def test_compare_and_gate_agree_on_what_vanished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: str, after: str
) -> None:
    base = pair(PASSED, *ENDINGS[before], name="20260101-000000-0001", folder=tmp_path)
    new = (
        run(tmp_path, PASSED, name="20260102-000000-0001")
        if after == "not planned"
        else pair(PASSED, *ENDINGS[after], name="20260102-000000-0001", folder=tmp_path)
    )
    vanished = before in ("passed", "failed", "lost") and after in ("skipped", "not run", "not planned")
    (cell,) = [one for one in compare_runs(load_run(base), load_run(new)).cells if one.cell == OTHER]
    assert cell.vanished is vanished
    found = gate(new, tmp_path, base=base)
    said = [one for one in found.findings if "vanished" in one.what]  # type: ignore[attr-defined]
    assert bool(said) is vanished
    compare_status = main(["compare", str(base), str(new), "--json"])
    assert json.loads(capsys.readouterr().out)["vanished"] == ([OTHER] if vanished else [])
    if vanished:
        assert (compare_status, found.status, said[0].status) == (1, 1, 1)  # type: ignore[attr-defined]
        assert OTHER in said[0].what
        assert "--allow-missing" in said[0].remedy
        assert cell.judgement is INVALID
        allowed = gate(new, tmp_path, base=base, allow_missing=True)
        assert [one.status for one in allowed.findings if "vanished" in one.what] == [0]  # type: ignore[attr-defined]
        assert main(["compare", str(base), str(new), "--allow-missing"]) == 0


def test_all_vanished_cells_are_named_however_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{GOOD}-{number:03d}" for number in range(60)]
    more: list[Record] = [planned(name, 75) for name in names]
    base = run(tmp_path, PASSED, *more, *(OutcomeRecord(name, Status.PASSED) for name in names), name="base-1")
    new = run(tmp_path, PASSED, name="new-1")
    where = ["--history", str(tmp_path / "h.sqlite"), "--baselines", str(tmp_path / "b")]
    assert main(["gate", str(new), "--base", str(base), *where]) == 1
    shown = "".join(capsys.readouterr().out.split())
    assert "FAIL" in shown
    assert "60of61cell(s)ofthebasebase-1vanished" in shown
    assert all(name in shown for name in names)
    assert main(["gate", str(new), "--base", str(base), "--allow-missing", *where]) == 0
    assert "PASS" in capsys.readouterr().out


def test_cells_of_the_accepted_baseline_have_to_be_in_the_run(tmp_path: Path) -> None:
    both = pair(PASSED, *ENDINGS["passed"], name="20260101-000000-0001", folder=tmp_path)
    place = tmp_path / "baselines"
    accept(both, "two cells", "Ada", place, datetime(2026, 1, 2, tzinfo=UTC))
    one = run(tmp_path, PASSED, name="20260103-000000-0001")
    found = gate(one, tmp_path)
    assert found.status == 1  # type: ignore[attr-defined]
    (said,) = [finding.what for finding in found.findings]  # type: ignore[attr-defined]
    assert said.startswith("1 of 2 cell(s) of the accepted baseline 20260102-000000-20260101")
    assert said.endswith(f"vanished: {OTHER}")
    assert gate(one, tmp_path, allow_missing=True).status == 0  # type: ignore[attr-defined]
    # What another baseline says of one cell does not take the other cell's place; another target's says nothing.
    accept(one, "this one anew", "Ada", place, datetime(2026, 1, 4, tzinfo=UTC))
    (said,) = [finding.what for finding in gate(one, tmp_path).findings]  # type: ignore[attr-defined]
    assert said.startswith("1 of 1 cell(s) of the accepted baseline 20260102-")
    phone = run(tmp_path / "phone", PASSED, name="20260105-000000-0001", target=Target.ANDROID)
    assert gate(phone, tmp_path).status == 0  # type: ignore[attr-defined]


def dated(folder: Path, day: int, *made: Record, target: Target = Target.SIM) -> Path:
    name, time = f"202601{day:02d}-000000-{day:04x}", f"2026-01-{day:02d}T00:00:00.000+00:00"
    place = folder / name
    place.mkdir(parents=True)
    info = replace(run_info(target), id=name, started=time)
    (place / RECORDS).write_bytes(b"".join(encode(record, name, time) for record in (info, planned(GOOD, 75), *made)))
    return place


def test_cells_of_the_last_good_run_have_to_be_in_the_run(tmp_path: Path) -> None:
    other = planned(OTHER, 75)
    good = dated(tmp_path, 1, other, PASSED, *ENDINGS["passed"])
    bad = dated(tmp_path, 2, PASSED, planned(LOST, 75), OutcomeRecord(LOST, Status.ERROR, FailureClass.INFRA, "adb"))
    later = dated(tmp_path, 9, PASSED, planned(LOST, 75), OutcomeRecord(LOST, Status.PASSED))
    phone = dated(tmp_path, 3, PASSED, planned(BROKEN, 75), OutcomeRecord(BROKEN, Status.PASSED), target=Target.ANDROID)
    with History(str(tmp_path / "h.sqlite")) as history:
        list(history.import_runs([good, bad, later, phone]))
    found = gate(dated(tmp_path, 4, PASSED), tmp_path)
    assert found.status == 1  # type: ignore[attr-defined]
    assert [finding.what for finding in found.findings] == [  # type: ignore[attr-defined]
        f"1 of 2 cell(s) of the history's last good run {good.name} vanished: {OTHER}"
    ]
    interrupted = gate(dated(tmp_path, 5, other, PASSED), tmp_path)
    assert interrupted.status == 1  # type: ignore[attr-defined]
    assert f"vanished: {OTHER} (NOT RUN)" in "".join(one.what for one in interrupted.findings)  # type: ignore[attr-defined]
    assert gate(dated(tmp_path, 6, other, PASSED, *ENDINGS["passed"]), tmp_path).status == 0  # type: ignore[attr-defined]
    # What began to be how it shall be begins the history anew.
    accept(dated(tmp_path, 7, PASSED), "one cell from now on", "Ada", tmp_path / "baselines")
    assert gate(dated(tmp_path, 8, PASSED), tmp_path).status == 0  # type: ignore[attr-defined]


def test_a_run_that_lost_cells_is_no_measure_for_the_next() -> None:
    full, less, more = GoodRun("1", ("a", "b")), GoodRun("2", ("a",)), GoodRun("3", ("b", "c", "a"))
    assert last_whole([]) is None
    assert last_whole([full, less]) == full
    assert last_whole([less, full]) == full
    assert last_whole([full, less, more, less]) == more
    assert last_whole([full, GoodRun("4", ("b", "a"))]) == GoodRun("4", ("b", "a"))


def test_what_is_wrong_comes_before_what_nobody_can_say_and_that_before_the_rack(tmp_path: Path) -> None:
    kinds = [
        FailureClass.PRODUCT, FailureClass.CRASH, FailureClass.BUILD, FailureClass.PERF, FailureClass.INVALID,
        FailureClass.INCONCLUSIVE, FailureClass.NOT_JUDGED, FailureClass.CONFIG, FailureClass.INFRA,
    ]  # fmt: skip
    made: list[Record] = [PASSED]
    for number, kind in enumerate(reversed(kinds)):
        name = f"tiny_llama-kv-SM8650-r{number}"
        made += [planned(name, 75), OutcomeRecord(name, Status.ERROR, kind, "why")]
    found = judged(summarise(load_run(run(tmp_path, *made))))
    assert [finding.what for finding in found.findings] == [f"{kind}: why" for kind in kinds]
    assert found.status == 1


def nights(tmp_path: Path, speeds: Sequence[float], start: int = 1) -> list[Path]:
    found = []
    for number, speed in enumerate(speeds, start=start):
        name = f"202601{number:02d}-000000-{number:04x}"
        time = f"2026-01-{number:02d}T00:00:00.000+00:00"
        info = replace(run_info(), id=name, started=time)
        folder = tmp_path / "nights" / name
        folder.mkdir(parents=True)
        made = [info, planned(GOOD, 75), *sessions(speed, 2, seed=number), scored(5000.0), PASSED]
        (folder / RECORDS).write_bytes(b"".join(encode(record, name, time) for record in made))
        found.append(folder)
    return found


def test_the_gate_holds_a_night_against_history(tmp_path: Path) -> None:
    folders = nights(tmp_path, [1.0] * 12 + [0.85, 1.0])
    with History(str(tmp_path / "h.sqlite")) as history:
        list(history.import_runs(folders[:12]))
    slow = gate(folders[12], tmp_path)
    assert slow.status == 1  # type: ignore[attr-defined]
    assert "after 12 runs" in slow.findings[0].what  # type: ignore[attr-defined]
    with History(str(tmp_path / "h.sqlite")) as history:
        history.forget(folders[12].name)
    assert gate(folders[13], tmp_path).status == 0  # type: ignore[attr-defined]


def test_an_accepted_change_begins_a_new_history(tmp_path: Path) -> None:
    folders = nights(tmp_path, [1.0] * 12 + [0.85, 0.85])
    with History(str(tmp_path / "h.sqlite")) as history:
        list(history.import_runs(folders))
    assert gate(folders[13], tmp_path).status == 1  # type: ignore[attr-defined]
    accept(folders[12], "the new runtime checks more", "Ada", tmp_path / "baselines")
    assert gate(folders[13], tmp_path).status == 0  # type: ignore[attr-defined]


def test_the_gate_holds_perplexity_against_the_baseline(tmp_path: Path) -> None:
    accept(nights(tmp_path, [1.0])[0], "first", "Ada", tmp_path / "baselines")
    worse = run(tmp_path / "w", scored(5100.0), PASSED)
    found = gate(worse, tmp_path)
    assert found.status == 1  # type: ignore[attr-defined]
    assert "accepted was" in found.findings[0].what  # type: ignore[attr-defined]


# Baselines


def test_a_baseline_says_who_when_and_why_and_is_never_overwritten(tmp_path: Path) -> None:
    folder, place = write_run(tmp_path / "r"), tmp_path / "baselines"
    moment = datetime(2026, 1, 3, 4, 5, 6, tzinfo=UTC)
    first = accept(folder, "first good run", "Ada", place, moment)
    before = first.path.read_bytes()
    second = accept(folder, "again", "Grace", place, moment)
    assert first.path != second.path
    assert first.path.read_bytes() == before
    loaded = load_baselines(place)
    assert [(one.baseline.who, one.baseline.why) for one in loaded] == [("Ada", "first good run"), ("Grace", "again")]
    assert loaded[0].baseline.accepted == "2026-01-03T04:05:06+00:00"
    assert set(loaded[0].baseline.cells) == {GOOD}
    assert accepted_times(place) == {(GOOD, "sim"): run_info().started}


def test_a_baseline_needs_a_reason_and_a_cell_that_passed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r")
    with pytest.raises(ConfigError, match="needs a reason"):
        accept(folder, "  ", "Ada", tmp_path / "b")
    with pytest.raises(ConfigError, match="no cell of the run passed"):
        accept(run(tmp_path / "x"), "why not", "Ada", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_broken_baseline_is_named(tmp_path: Path) -> None:
    place = tmp_path / "b"
    place.mkdir()
    (place / "x.json").write_text('{"schema": 1, "run": 3}')
    with pytest.raises(ConfigError, match=r"x\.json: "):
        load_baselines(place)


def test_the_baseline_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder = write_run(tmp_path / "r")
    where = ["--baselines", str(tmp_path / "b")]
    assert main(["baseline", "accept", str(folder), "--why", "release 1", "--who", "Ada", *where]) == 0
    assert "1 cell(s)" in capsys.readouterr().out
    assert main(["baseline", "list", *where]) == 0
    assert "release 1" in capsys.readouterr().out
    assert main(["baseline", "list", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)[0]["who"] == "Ada"


@pytest.mark.parametrize(
    ("target", "speed", "context", "status"),
    [
        (Target.ANDROID, 36.0, 1024, 1),
        (Target.ANDROID, 38.0, 1024, 0),
        (Target.ANDROID, 36.0, 512, 0),  # stated for another context
        (Target.SIM, 0.1, 1024, 0),  # the simulator's speed is held against nothing
    ],
)
def test_a_speed_below_what_the_models_file_states_blocks(
    tmp_path: Path, target: Target, speed: float, context: int, status: int
) -> None:
    summary = summarise(load_run(run(tmp_path, sample(GOOD, 0, decode_tok_s=speed), PASSED, target=target)))
    (cell,) = summary.cells
    lengths = replace(cell.plan.lengths, max_seq_len=context)
    plan = replace(cell.plan, model="llama3_2_1b_instruct", mode="kv", soc="SM8650", recipe="upstream", lengths=lengths)
    summary = replace(summary, cells=(replace(cell, plan=plan),))
    stated = declared(summary, load_models(MODELS))
    answer = judged(summary, stated=stated)
    assert answer.status == status
    said = [finding.what for finding in answer.findings]
    assert said == (["decode_tok_s 36, declared at least 37"] if status else [])
