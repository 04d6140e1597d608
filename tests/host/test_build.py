"""The build: keys, groups, given files, limits, and that cutting upstream's lowering in two changes nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from events import HANG_S

from harness.build.builder import Builder, Limits, Request, check_disk, groups
from harness.build.cache import Artifact, locate
from harness.build.calibration import CalibrationChoice
from harness.build.events import Event, emit, parse
from harness.build.given import given_artifacts, misfits
from harness.build.job import BuildJob, Output
from harness.build.witness import load_lookahead, load_witness
from harness.cli import main
from harness.conduct.run_cell import advised
from harness.errors import ConfigError, EnvError, FailureClass
from harness.farm.failures import Failure
from harness.matrix import Cell, cells
from harness.model_file import Lengths, Mode, Recipe
from harness.models import ModelSpec, load_models
from harness.paths import MODELS, REPOSITORY
from harness.runtime.lookahead import Settings
from harness.runtime.program import read_info
from harness.soc import find_soc
from harness.target import Target
from harness.toolchain.environment import find_toolchain, fingerprint

FINGERPRINT = {"executorch": "1.5.1"}
SOC = find_soc("SM8650")


@pytest.fixture(scope="module")
def tiny() -> ModelSpec:
    return load_models(MODELS)["tiny_llama"]


def request(model: ModelSpec, mode: Mode, soc: str = "SM8650") -> Request:
    (cell,) = cells([model], [mode], [find_soc(soc)])
    return Request(cell, Target.SIM, locate(model, mode, cell.soc, Target.SIM, cell.lengths, FINGERPRINT))


def test_the_key_changes_with_everything_that_could_change_the_bytes(tiny: ModelSpec, tmp_path: Path) -> None:
    lengths = tiny.lengths
    text = tmp_path / "calibration.txt"
    text.write_text("other words")
    places = [
        locate(tiny, Mode.HYBRID, SOC, Target.SIM, lengths, FINGERPRINT),
        locate(tiny, Mode.KV, SOC, Target.SIM, lengths, FINGERPRINT),
        locate(tiny, Mode.HYBRID, find_soc("SM8550"), Target.SIM, lengths, FINGERPRINT),
        locate(tiny, Mode.HYBRID, SOC, Target.ANDROID, lengths, FINGERPRINT),
        locate(tiny, Mode.HYBRID, SOC, Target.SIM, Lengths(64, 32), FINGERPRINT),
        locate(tiny, Mode.HYBRID, SOC, Target.SIM, Lengths(128, 16), FINGERPRINT),
        locate(tiny, Mode.HYBRID, SOC, Target.SIM, lengths, {"executorch": "1.5.2"}),
        locate(
            replace(tiny, recipe=Recipe(name="w8", weights="16a8w")), Mode.HYBRID, SOC, Target.SIM, lengths, FINGERPRINT
        ),
        locate(
            replace(tiny, calibration=replace(tiny.calibration, text=text)),
            Mode.HYBRID,
            SOC,
            Target.SIM,
            lengths,
            FINGERPRINT,
        ),
        locate(replace(tiny, shards=2), Mode.HYBRID, SOC, Target.SIM, lengths, FINGERPRINT),
        locate(tiny, Mode.LOOKAHEAD, SOC, Target.SIM, lengths, FINGERPRINT),
        locate(tiny, Mode.LOOKAHEAD, SOC, Target.SIM, replace(lengths, gcap=5), FINGERPRINT),
        locate(tiny, Mode.HYBRID, SOC, Target.SIM, lengths, FINGERPRINT, CalibrationChoice(samples=text)),
        locate(replace(tiny, calibration=None), Mode.HYBRID, SOC, Target.SIM, lengths, FINGERPRINT),
    ]
    assert len({place.key for place in places}) == len(places)
    assert places[0] == locate(tiny, Mode.HYBRID, SOC, Target.SIM, lengths, FINGERPRINT)


def test_a_kv_artifact_does_not_depend_on_the_prefill_length(tiny: ModelSpec) -> None:
    one, other = (locate(tiny, Mode.KV, SOC, Target.SIM, Lengths(128, ar), FINGERPRINT) for ar in (16, 32))
    assert one == other


def test_one_reference_serves_all_socs_and_modes(tiny: ModelSpec) -> None:
    found = {
        request(tiny, mode, soc).artifact.reference for mode in (Mode.KV, Mode.HYBRID) for soc in ("SM8550", "SM8750")
    }
    assert len(found) == 1


def test_a_reference_is_of_the_prompts_and_texts_that_it_speaks_of(tiny: ModelSpec) -> None:
    """What a phone is judged by changes with them, and what is compiled does not."""
    models = [
        tiny,
        replace(tiny, prompts=(*tiny.prompts, "And it came to pass")),
        replace(tiny, prompts=tiny.prompts[::-1]),
        replace(tiny, max_new_tokens=tiny.max_new_tokens + 1),
        replace(tiny, system_prompt="Be brief."),
        replace(tiny, eval=replace(tiny.eval, tokens=tiny.eval.tokens + 1)),
    ]
    artifacts = [request(model, Mode.HYBRID).artifact for model in models]
    assert len({artifact.reference for artifact in artifacts}) == len(models)
    assert len({artifact.key for artifact in artifacts}) == 1


@pytest.mark.parametrize("mode", list(Mode))
def test_an_artifact_is_ready_with_all_that_it_is_judged_by(
    tiny: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    monkeypatch.setenv("HTPFARM_CACHE", str(tmp_path))
    artifact = request(tiny, mode).artifact
    names = ["reference.json", "witness.npz", *(["lookahead-3-4-4.json"] if mode is Mode.LOOKAHEAD else [])]
    files = [artifact.pte, *(artifact.reference / name for name in names)]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert artifact.ready
    for file in files:
        file.unlink()
        assert not artifact.ready, file
        file.touch()


def test_kv_and_hybrid_share_a_worker_and_models_do_not(tiny: ModelSpec) -> None:
    other = replace(tiny, name="other")
    requests = [request(m, mode, soc) for m in (tiny, other) for mode in (Mode.KV, Mode.HYBRID) for soc in ("SM8550",)]
    found = groups(requests)
    assert [{r.cell.model.name for r in group} for group in found] == [{"tiny_llama"}, {"other"}]
    assert [len(group) for group in found] == [2, 2]


def test_a_job_survives_its_file(tmp_path: Path) -> None:
    output = Output(Mode.KV, "SM8650", Target.SIM, "k", tmp_path / "a", {"weights": "1"})
    choice = CalibrationChoice(("task",), 3, 2, tmp_path / "s.json", (tmp_path / "tasks",))
    job = BuildJob(tmp_path / "m.yaml", Lengths(), choice, (output,), tmp_path / "r", 2, 1, tmp_path / "f")
    assert BuildJob.from_json(job.to_json()) == job


def test_events_are_found_among_other_output(capsys: pytest.CaptureFixture[str]) -> None:
    event = Event("done", "k", 1.5, "x")
    emit(event)
    assert parse(capsys.readouterr().out.strip()) == event
    assert parse("[INFO] something else") is None
    assert parse("htpfarm-event {broken") is None


def test_a_full_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="are free") as caught:
        check_disk(tmp_path, needed=1 << 60)
    assert "HTPFARM_CACHE" in caught.value.remedy


@pytest.mark.slow
def test_a_worker_over_its_time_is_ended_and_says_so(
    tiny: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTPFARM_CACHE", str(tmp_path / "cache"))
    wanted = [request(tiny, Mode.KV)]
    builder = Builder(find_toolchain(), tmp_path / "logs", Limits(seconds=1))
    (result,) = builder.build(wanted)
    assert result.error is not None
    assert "more than 1 s" in result.error.what
    assert not wanted[0].artifact.ready
    assert not [p for p in psutil.Process().children(recursive=True) if _is_worker(p)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "harness.build.worker" in process.cmdline()
    except psutil.Error:  # gone, or dead and not yet waited for
        return False


@pytest.mark.slow
def test_a_worker_over_its_memory_is_ended_and_says_so(
    tiny: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTPFARM_CACHE", str(tmp_path / "cache"))
    builder = Builder(find_toolchain(), tmp_path / "logs", Limits(memory_mb=150))
    (result,) = builder.build([request(tiny, Mode.KV)])
    assert result.error is not None
    assert "limit of 150 MB" in result.error.what


@pytest.mark.slow
def test_a_broken_checkpoint_fails_every_cell_of_the_group_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTPFARM_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "models" / "tiny_llama"
    shutil.copytree(MODELS / "tiny_llama", folder)
    (folder / "model.safetensors").write_bytes(b"not tensors at all")
    broken = load_models(tmp_path / "models")["tiny_llama"]
    requests = [request(broken, mode) for mode in (Mode.KV, Mode.HYBRID)]
    results = list(Builder(find_toolchain(), tmp_path / "logs").build(requests))
    assert len(results) == 2
    for result in results:
        assert result.error is not None
        assert "no checkpoint" in result.error.evidence


@pytest.mark.slow
def test_a_pte_is_checked_against_its_cell(tiny_artifacts: dict[str, Artifact], tiny: ModelSpec) -> None:
    info = read_info(tiny_artifacts["hybrid"].pte)
    (good,) = cells([tiny], [Mode.HYBRID], [SOC])
    assert misfits(good, info, Target.SIM) == []
    assert info.delegate is not None
    assert 0.9 < sum(info.delegate.sizes) / info.path.stat().st_size < 1

    # A phone on which it does not fit is answered with the real size.
    too_big = Failure(FailureClass.PRODUCT, "too big", "raise num_sharding", signature="context-too-big")
    remedy = advised(too_big, good, tiny_artifacts["hybrid"]).remedy
    assert "set shards: 2 in model.yaml (now 1; its largest context has" in remedy
    other = replace(too_big, signature="asserted")
    assert advised(other, good, tiny_artifacts["hybrid"]) == other

    def wrong(cell: Cell, target: Target = Target.SIM) -> str:
        return "\n".join(misfits(cell, info, target))

    assert "mode is hybrid" in wrong(replace(good, mode=Mode.KV))
    assert "HTP architecture is 75" in wrong(replace(good, soc=find_soc("SM8550")))
    assert "context is 128" in wrong(replace(good, lengths=Lengths(256, 32)))
    assert "prefill AR is 32" in wrong(replace(good, lengths=Lengths(128, 64)))
    assert "shared buffers" in wrong(good, Target.ANDROID)


@pytest.mark.slow
def test_given_files_are_all_checked_at_once(
    tiny_artifacts: dict[str, Artifact], tiny: ModelSpec, tmp_path: Path
) -> None:
    wanted = cells([tiny], [Mode.KV, Mode.HYBRID], [SOC])
    shutil.copytree(tiny_artifacts["kv"].reference, tmp_path / "tiny_llama-reference")
    shutil.copy(tiny_artifacts["kv"].pte, tmp_path / "tiny_llama-kv-SM8650.pte")
    (tmp_path / "tiny_llama-hybrid-SM8650.pte").write_bytes(b"ET12 no program")
    with pytest.raises(ConfigError) as caught:
        given_artifacts(tmp_path, wanted, Target.SIM, FINGERPRINT)
    assert "hybrid-SM8650.pte" in caught.value.evidence
    assert "kv-SM8650.pte" not in caught.value.evidence
    shutil.copy(tiny_artifacts["hybrid"].pte, tmp_path / "tiny_llama-hybrid-SM8650.pte")
    found = given_artifacts(tmp_path, wanted, Target.SIM, FINGERPRINT)
    assert {a.pte.name for a in found.values()} == {"tiny_llama-kv-SM8650.pte", "tiny_llama-hybrid-SM8650.pte"}


@pytest.mark.slow
def test_what_is_compiled_for_others_carries_the_witness(
    tiny_artifacts: dict[str, Artifact], tiny: ModelSpec, tmp_path: Path
) -> None:
    places = ["--rack", str(REPOSITORY / "devices.yaml"), "--models", "tiny_llama", "--socs", "SM8650"]
    assert main(["compile", *places, "--modes", "kv,lookahead", "--out", str(tmp_path)]) == 0
    wanted = cells([tiny], [Mode.KV, Mode.LOOKAHEAD], [SOC])
    found = given_artifacts(tmp_path, wanted, Target.SIM, FINGERPRINT)
    (reference,) = {artifact.reference for artifact in found.values()}
    assert reference == tmp_path / "tiny_llama-reference"
    prompts = set(load_witness(tiny_artifacts["kv"].reference).prompts)
    assert set(load_witness(reference).prompts) == prompts
    assert set(load_lookahead(reference, Settings(3, 4, 4))) == prompts
    assert len(prompts) == len(tiny.prompts)


@pytest.mark.slow
def test_a_witness_that_was_lost_is_made_again(
    tiny_artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cell,) = cells([load_models(MODELS)["tiny_llama"]], [Mode.KV], [SOC])
    monkeypatch.setenv("HTPFARM_CACHE", str(tmp_path))
    toolchain = find_toolchain()
    place = locate(cell.model, Mode.KV, SOC, Target.SIM, cell.lengths, fingerprint(toolchain))
    kept = tiny_artifacts["kv"]
    shutil.copytree(kept.folder, place.folder)
    shutil.copytree(kept.reference, place.reference, ignore=shutil.ignore_patterns("witness.npz"))
    assert not place.ready
    (result,) = Builder(toolchain, tmp_path / "logs").build([Request(cell, Target.SIM, place)])
    assert result.error is None
    assert place.ready
    made, before = load_witness(place.reference), load_witness(kept.reference)
    assert set(made.prompts) == set(before.prompts)
    assert [text.inputs for text in made.held_out] == [text.inputs for text in before.held_out]
    assert made.typical_spread == pytest.approx(before.typical_spread, rel=0.01)


LOGITS = """
import json, sys
from pathlib import Path
from harness.runtime.engine import Engine
from harness.runtime.program import read_info
from harness.runtime.session import Session
session = Session(Engine(read_info(Path(sys.argv[1]))))
rows = []
session.feed(list(range(1, 20)), on_rows=lambda new: rows.extend(new.tolist()))
rows.append(session.step(33).tolist())
print("LOGITS " + json.dumps(rows))
"""


def logits(pte: Path) -> object:
    done = subprocess.run(
        [sys.executable, "-c", LOGITS, str(pte)],
        env=find_toolchain().environment(),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("LOGITS ")]
    assert lines, done.stderr[-2000:]
    return json.loads(lines[0].removeprefix("LOGITS "))


@pytest.mark.slow
def test_cutting_the_lowering_in_two_makes_what_upstream_makes(tmp_path: Path) -> None:
    """Bytes do not compare: the compiler's output differs by some 1,400 bytes from one run to the next."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tests" / "host" / "upstream_lowering.py"), str(tmp_path)],
        env=find_toolchain().environment(),
        capture_output=True,
        text=True,
        timeout=2 * HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = tmp_path / "ours.pte", tmp_path / "upstream.pte"
    assert ours.stat().st_size == theirs.stat().st_size
    one, other = read_info(ours), read_info(theirs)
    assert replace(one, path=other.path) == other
    assert logits(ours) == logits(theirs)
