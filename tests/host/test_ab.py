"""A against B: what a side is, ABBA sessions over a real adb with a scripted runner, and whole runs (slow)."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import venv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from farm_rack import running_rack
from sample_run import run_info
from test_plugin import RACK, _rack_down, device, finished

from harness.build.cache import Artifact
from harness.build.given import export
from harness.compare.runs import SpeedComparison, compare_runs
from harness.conduct.ab import measure_pairs, verdict
from harness.conduct.attempt import Attempt, Bench
from harness.conduct.sides import launcher, read_side
from harness.errors import ConfigError, FailureClass
from harness.evaluate.choice import EvalChoice
from harness.evaluate.host import Host
from harness.farm.deploy import deploy
from harness.farm.failures import Failure
from harness.farm.health import HealthBook
from harness.farm.identity import AttachedPhone, survey
from harness.farm.payload import PayloadFile
from harness.farm.prepare import Nurse
from harness.inventory import load_inventory
from harness.matrix import cells
from harness.model_file import Mode
from harness.models import load_models
from harness.paths import MODELS, REPOSITORY, cache_root
from harness.results import DeployRecord, Record, SampleRecord, load_run
from harness.results.records import ComparisonRecord, encode
from harness.soc import find_soc
from harness.target import Target
from harness.toolchain.describe import toolchain_at
from harness.toolchain.environment import find_toolchain, fingerprint
from harness.verdicts import Judgement, PerplexityComparison

REGRESSED, OK, INVALID = Judgement.REGRESSED, Judgement.OK, Judgement.INVALID

# As our runner reports; its clock goes by the percentage, with a jitter of a few milliseconds.
RUNNER = """#!/bin/sh
jitter=$(( $$ % 5 ))
prefill=$(( 2000 * {percent} / 100 + jitter )); decode=$(( 9000 * {percent} / 100 + jitter ))
end=$(( 1000 + prefill + decode ))
echo text > outputs.txt; echo 1.0 > inference_speed.txt
rows='"rows": {{"ids": [[3], [4]], "logprobs": [[-0.1], [-0.1]]}}, "row_choices": []'
turn='{{"prompt_tokens": [1, 2], "tokens": [3, 4], "decode_steps": {tokens}, "accepted": 0, '"$rows"'}}'
echo "{{\\"peak_rss_kib\\": 1024, \\"turns\\": [$turn]}}" > stats.json
echo "PyTorchObserver {{\\"prompt_tokens\\":10,\\"generated_tokens\\":{tokens},\\"model_load_start_ms\\":1,\
\\"model_load_end_ms\\":900,\\"inference_start_ms\\":1000,\\"inference_end_ms\\":$end,\
\\"prompt_eval_end_ms\\":$((1000 + prefill)),\\"first_token_ms\\":$((1000 + prefill)),\
\\"model_execution_start_ms\\":0,\\"model_execution_end_ms\\":0,\\"SCALING_FACTOR_UNITS_PER_SECOND\\":1000}}"
"""


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttachedPhone]:
    """A virtual phone behind a real adb server."""
    folder = tmp_path_factory.mktemp("rack")
    (folder / "rack.yaml").write_text(RACK)
    with running_rack(folder / "state", {"one": "galaxy_s24"}) as state:
        found = survey(load_inventory(folder / "rack.yaml"), state)
        yield found.attached[0]


def attempt(
    phone: AttachedPhone, artifact: Artifact, folder: Path, side: str, runner: str
) -> tuple[Attempt, list[Record]]:
    (cell,) = cells([load_models(MODELS)["tiny_llama"]], [Mode.KV], [find_soc("SM8650")])
    kept: list[Record] = []
    bench = Bench(
        run_id=f"test-{side}",
        folder=folder / side,
        phones=(phone,),
        record=kept.append,
        say=lambda name, what: None,
        target=Target.SIM,
        evaluation=EvalChoice(),
        host=Host(),
        nurse=Nurse(HealthBook()),
        side=side,
        launcher=runner,
    )
    return Attempt(bench, cell, artifact, phone, 1), kept


def measured(
    phone: AttachedPhone, artifact: Artifact, folder: Path, base: str, candidate: str
) -> tuple[tuple[SpeedComparison, ...] | Failure, list[Record], list[Record]]:
    a, b = (
        attempt(phone, artifact, folder, "base", base),
        attempt(phone, artifact, folder, "candidate", candidate),
    )
    return measure_pairs((a[0], b[0]), new_tokens=16), a[1], b[1]


def test_equal_sides_take_five_pairs_and_are_ok(
    phone: AttachedPhone, scripted_artifact: Artifact, tmp_path: Path
) -> None:
    same = RUNNER.format(percent=100, tokens=16)
    found, a, b = measured(phone, scripted_artifact, tmp_path, same, same)
    assert not isinstance(found, Failure)
    assert {speed.alone for speed in found} == {OK}
    for records in (a, b):
        samples = [record for record in records if isinstance(record, SampleRecord)]
        assert [sample.pair for sample in samples] == [0, 1, 2, 3, 4]
        assert len({sample.session for sample in samples}) == 5
    assert verdict(found, {}) is None


def test_what_a_pair_pushed_is_on_record_for_each_side(
    phone: AttachedPhone, scripted_artifact: Artifact, tmp_path: Path
) -> None:
    base, candidate = (RUNNER.format(percent=percent, tokens=16) for percent in (101, 102))
    _, a, b = measured(phone, scripted_artifact, tmp_path, base, candidate)
    for records in (a, b):
        (deployed,) = (record for record in records if isinstance(record, DeployRecord))
        assert deployed.phone == "one"
        assert "qnn_llama_runner" in deployed.pushed  # each side's own: no earlier test pushed these two
        assert set(deployed.pushed) | set(deployed.reused) == {"qnn_llama_runner", "model.pte", "tokenizer.model"}
        assert deployed.bytes > 0


def test_a_slower_candidate_is_measured_again_and_regressed(
    phone: AttachedPhone, scripted_artifact: Artifact, tmp_path: Path
) -> None:
    base, slow = RUNNER.format(percent=100, tokens=16), RUNNER.format(percent=110, tokens=16)
    found, a, _ = measured(phone, scripted_artifact, tmp_path, base, slow)
    assert not isinstance(found, Failure)
    assert {speed.alone for speed in found} == {REGRESSED}
    assert {speed.pairs for speed in found} == {8}
    assert [type(record) for record in a] == [DeployRecord, *[SampleRecord] * 8]
    decode = found[2]
    assert decode.change == pytest.approx(1 / 1.1 - 1, abs=0.005)
    failure = verdict(found, {})
    assert failure is not None
    assert failure.failure_class is FailureClass.PERF
    assert "decode_tok_s -9" in failure.reason


def test_a_faster_candidate_is_improved(phone: AttachedPhone, scripted_artifact: Artifact, tmp_path: Path) -> None:
    base, fast = RUNNER.format(percent=100, tokens=16), RUNNER.format(percent=80, tokens=16)
    found, _, _ = measured(phone, scripted_artifact, tmp_path, base, fast)
    assert not isinstance(found, Failure)
    assert {speed.alone for speed in found} == {Judgement.IMPROVED}


def test_other_token_counts_are_invalid(phone: AttachedPhone, scripted_artifact: Artifact, tmp_path: Path) -> None:
    base, fewer = RUNNER.format(percent=100, tokens=16), RUNNER.format(percent=150, tokens=12)
    found, a, _ = measured(phone, scripted_artifact, tmp_path, base, fewer)
    assert not isinstance(found, Failure)
    assert {speed.alone for speed in found} == {INVALID}
    assert "token counts differ" in found[0].reason
    assert len([record for record in a if isinstance(record, SampleRecord)]) == 5  # more of them would not help


def test_a_runner_that_fails_ends_it(phone: AttachedPhone, scripted_artifact: Artifact, tmp_path: Path) -> None:
    found, _, _ = measured(
        phone, scripted_artifact, tmp_path, RUNNER.format(percent=100, tokens=16), "#!/bin/sh\nexit 3\n"
    )
    assert isinstance(found, Failure)
    assert found.failure_class is FailureClass.PRODUCT


def test_worse_perplexity_is_the_products() -> None:
    worse = {"kv": PerplexityComparison(REGRESSED, 1.05, 1.03, 1.07, 8, 256)}
    failure = verdict((), worse)
    assert failure is not None
    assert failure.failure_class is FailureClass.PRODUCT
    assert "+5.00%" in failure.reason


def test_a_comparison_is_a_record() -> None:
    from harness.results.records import decode

    made = ComparisonRecord("c", "r-base", "s24", "ttft_ms", "OK", 0.01, -0.01, 0.02, 5, 0.3, 40.0, 40.4)
    assert decode(encode(made, run_info().id).decode()).record == made


# Sides


def test_the_environment_of_this_interpreter_describes_itself() -> None:
    toolchain, known = toolchain_at(Path(sys.prefix))
    here = find_toolchain()
    assert known == fingerprint(here)
    assert toolchain.executorch == here.executorch
    assert toolchain.qnn == here.qnn
    assert toolchain.python == Path(sys.prefix) / "bin" / "python"


def test_what_is_no_side_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        read_side("base", tmp_path / "none")
    with pytest.raises(ConfigError, match=r"neither a Python environment .* nor a folder of \.pte"):
        read_side("base", tmp_path)


def test_an_environment_that_lacks_packages_is_named(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    with pytest.raises(ConfigError, match="the environment"):
        read_side("candidate", tmp_path / "bare")


def test_a_folder_of_pte_is_a_side_of_this_toolchain(tmp_path: Path) -> None:
    (tmp_path / "x.pte").write_text("program")
    side = read_side("base", tmp_path)
    assert (side.pte, side.launcher) == (tmp_path, None)
    assert side.fingerprint == fingerprint(find_toolchain())


def test_a_launcher_keeps_what_the_phone_says_of_itself(phone: AttachedPhone, tmp_path: Path) -> None:
    """On the phone: the side's interpreter and environment, the phone's own SoC."""
    toolchain = replace(find_toolchain(), python=Path("/usr/bin/env"))
    text = launcher(toolchain).replace(' -m harness.runtime "$@"', "")
    (tmp_path / "show").write_text(text)
    report = deploy(phone.link, [PayloadFile(tmp_path / "show", "show", executable=True)])
    said = phone.link.must([report.store["show"]]).stdout
    assert "HTPFARM_PHONE_SOC=SM8650" in said
    assert f"QNN_SDK_ROOT={toolchain.qnn.root}" in said


# Whole runs


@pytest.fixture(scope="module")
def given(tiny_artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pte")
    (cell,) = cells([load_models(MODELS)["tiny_llama"]], [Mode.KV], [find_soc("SM8650")])
    export([(cell, tiny_artifacts["kv"])], folder)
    return folder


def slowed_environment(folder: Path, factor: float) -> Path:
    """An environment with this one's packages and a copy of ExecuTorch whose bindings are slower."""
    path = REPOSITORY / "benchmarks" / "ab_rack.py"
    spec = importlib.util.spec_from_file_location("ab_rack", path)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    bench.make_slow(bench.copied_environment(folder), factor)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("HTPFARM_NIGHTLY"), reason="takes minutes: HTPFARM_NIGHTLY=1 runs it")
def test_two_equal_folders_are_not_flagged(given: Path, tmp_path: Path) -> None:
    cache, reports, rack = tmp_path / "cache", tmp_path / "reports", tmp_path / "rack.yaml"
    rack.write_text(RACK)
    arguments = ["--rack", str(rack), "--modes", "kv", "--reports", str(reports), "--ab-tokens", "8"]
    try:
        status, output = finished(device(*arguments, "--ab", str(given), str(given), cache=cache))
    finally:
        _rack_down(cache)
    assert status == 0, output
    assert "gate: PASS" in output
    (folder,) = reports.glob("2*")
    found = compare_runs(load_run(folder / "base"), load_run(folder))
    assert not found.with_judgement(REGRESSED)
    (cell,) = found.cells
    assert cell.text is not None
    assert cell.text.equal
    assert cell.perplexity["kv"].ratio == 1.0
    assert json.loads((folder / "comparison.json").read_text())["gate"]["status"] == 0
    assert (reports / "history.sqlite").is_file()
    html = (folder / "report.html").read_text()
    assert html.index("Gate: ✓ PASS") < html.index('id="h-against"') < html.index('id="h-matrix"')
    assert "5 pairs, in the order taken" in html or "8 pairs, in the order taken" in html
    for side in (folder / "base", folder):
        (deploys,) = load_run(side).deploys.values()
        assert len(deploys) == 2  # for the side's checks, and for the pairs


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("HTPFARM_NIGHTLY"), reason="takes ten minutes: HTPFARM_NIGHTLY=1 runs it")
def test_a_candidate_whose_runner_is_slower_on_purpose_is_caught(
    tiny_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    """Two environments of one fingerprint: the artifacts are the cache's, the runner is each one's own."""
    assert tiny_artifacts
    reports, rack = tmp_path / "reports", tmp_path / "rack.yaml"
    rack.write_text(RACK)
    slow = slowed_environment(tmp_path / "slow", 1.6)
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("artifacts", "references"):
        (cache / name).symlink_to(cache_root() / name)
    arguments = ["--rack", str(rack), "--modes", "kv", "--reports", str(reports), "--ab-tokens", "8"]
    try:
        status, output = finished(device(*arguments, "--ab", sys.prefix, str(slow), cache=cache))
    finally:
        _rack_down(cache)
    assert status == 1, output
    assert "decode_tok_s REGRESSED" in output
    (folder,) = reports.glob("2*")
    (outcome,) = load_run(folder).outcomes.values()
    assert outcome.failure_class is FailureClass.PERF
    (base,) = load_run(folder / "base").outcomes.values()
    assert base.failure_class is None
