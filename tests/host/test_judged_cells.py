"""A cell is judged by its witness and by nothing else: what a lack of it, damage to it or too little text comes to."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.build.cache import Artifact
from harness.build.witness import FILE, lookahead_file
from harness.conduct.attempt import Bench
from harness.conduct.rack_use import start_rack
from harness.conduct.run_cell import run_cell
from harness.errors import FailureClass
from harness.evaluate.choice import EvalChoice
from harness.evaluate.host import Host
from harness.farm.connect import AdbServer
from harness.farm.health import HealthBook
from harness.farm.identity import AttachedPhone, identify
from harness.farm.lease_service import HostLeases
from harness.farm.prepare import Nurse
from harness.inventory import Phone
from harness.matrix import cells
from harness.model_file import Mode
from harness.models import ModelSpec, load_models
from harness.paths import MODELS
from harness.rack import manage
from harness.results import RecordWriter, Status, load_run
from harness.results.records import OutcomeRecord, RunInfo, utc_now
from harness.results.store import RunData
from harness.results.summary import exit_status, summarise
from harness.runtime.lookahead import Settings
from harness.soc import PHONE_KINDS, SOCS
from harness.target import Target
from harness.toolchain.environment import find_toolchain

from sample_run import planned  # isort: skip

pytestmark = pytest.mark.slow

TEXT_CHECKS = {"text_written", "prompt_fed", "token_count", "text_as_qdq"}
SCORE_CHECKS = {
    *("phone_vs_qdq_noise", "phone_vs_qdq_gain", "phone_vs_qdq_row", "phone_vs_qdq_ppl", "prefill_vs_kv_ppl"),
    *("qdq_vs_fp_ppl", "first_tokens", "speed_vs_host_clock"),
}


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttachedPhone]:
    folder = tmp_path_factory.mktemp("rack")
    try:
        rack = start_rack([("s24", PHONE_KINDS["galaxy_s24"])], find_toolchain(), folder)
        (running,) = rack.phones
        link = AdbServer(rack.adb_host, rack.adb_port).link(running.serial)
        spec = Phone(running.name, None, PHONE_KINDS[running.kind], SOCS["SM8650"])
        yield AttachedPhone(spec, link, identify(link))
    finally:
        manage.down(folder)


def short(kv_tokens: int = 16, **changes: Any) -> ModelSpec:
    """The tiny model with one prompt of a few new tokens, and little text to score token by token."""
    model = load_models(MODELS)["tiny_llama"]
    changes = {"prompts": model.prompts[:1], "max_new_tokens": 4, **changes}
    return replace(model, eval=replace(model.eval, kv_tokens=kv_tokens), **changes)


def without_modules(artifact: Artifact, folder: Path) -> Artifact:
    """The artifact with a reference of its own that lacks the modules, as a large model's does."""
    reference = folder / "reference"
    shutil.copytree(artifact.reference, reference, ignore=shutil.ignore_patterns("*.pt2"))
    return replace(artifact, reference=reference)


def run(
    folder: Path, phone: AttachedPhone, model: ModelSpec, mode: Mode, artifact: Artifact
) -> tuple[OutcomeRecord, RunData, list[str]]:
    """The cell's outcome, the run's records, and what was said."""
    (cell,) = cells([model], [mode], [SOCS["SM8650"]])
    said: list[str] = []
    writer = RecordWriter(folder / "run")
    writer.append(RunInfo("run", utc_now(), (), "", "", {}, "", Target.SIM))
    writer.append(planned(cell.id, 75))
    bench = Bench(
        run_id="run",
        folder=folder / "run",
        phones=(phone,),
        record=writer.append,
        say=lambda _, what: said.append(what),
        target=Target.SIM,
        evaluation=EvalChoice(),
        host=Host(),
        nurse=Nurse(HealthBook(folder / "health")),
        leases=HostLeases(folder / "leases"),
    )
    outcome = run_cell(bench, cell, artifact, 60.0)
    return outcome, load_run(folder / "run"), said


def test_every_check_is_made_from_the_witness_alone(
    phone: AttachedPhone, tiny_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    """Of a model whose modules were not kept; enough text that no figure stays grey."""
    artifact = without_modules(tiny_artifacts["hybrid"], tmp_path)
    outcome, data, _ = run(tmp_path, phone, short(64), Mode.HYBRID, artifact)
    checks = {check.name: check for check in data.checks[outcome.cell]}
    assert set(checks) == {"whole_on_htp", *TEXT_CHECKS, *SCORE_CHECKS}
    assert {check.verdict for check in checks.values()} == {"PASSED"}, outcome.reason
    assert {check.attempt for check in checks.values()} == {outcome.attempts}
    assert outcome.status is Status.PASSED
    assert exit_status(summarise(data)) == 0
    (sample,) = data.samples[outcome.cell]
    assert not {"rows", "row_choices"} & set(sample.raw["turns"][0])  # judged, and not recorded
    assert summarise(data).cells[0].passed_text(sample)


def remove(reference: Path) -> None:
    (reference / FILE).unlink()


def truncate(reference: Path) -> None:
    whole = (reference / FILE).read_bytes()
    (reference / FILE).write_bytes(whole[: len(whole) // 2])


def garble(reference: Path) -> None:
    whole = bytearray((reference / FILE).read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 64] = bytes(64)
    (reference / FILE).write_bytes(whole)


class _Trap:
    """What runs a command where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.mkdir, (str(self.path),)


def pickle_in(reference: Path) -> None:
    with np.load(reference / FILE, allow_pickle=False) as data:
        arrays = dict(data)
    arrays["prompts"] = np.array([_Trap(reference / "sprung")] * len(arrays["prompts"]), dtype=object)
    np.savez_compressed(reference / FILE, **arrays)


def leave(_: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "prompts", "words"),
    [
        (remove, None, "the artifact has no witness"),
        (truncate, None, "the witness cannot be read"),
        (garble, None, "the witness cannot be read"),
        (pickle_in, None, "the witness cannot be read"),
        (leave, ("What is gravity?",), "does not know the prompt 'What is gravity?'"),
    ],
    ids=["none", "cut short", "garbled", "a pickle in it", "of other prompts"],
)
def test_without_a_witness_a_cell_is_not_judged_and_never_passes(
    phone: AttachedPhone,
    tiny_artifacts: dict[str, Artifact],
    tmp_path: Path,
    change: Callable[[Path], None],
    prompts: tuple[str, ...] | None,
    words: str,
) -> None:
    artifact = without_modules(tiny_artifacts["kv"], tmp_path)
    change(artifact.reference)
    model = short(**({"prompts": prompts} if prompts else {}))
    outcome, data, _ = run(tmp_path, phone, model, Mode.KV, artifact)
    assert (outcome.status, outcome.failure_class, outcome.attempts) == (Status.ERROR, FailureClass.NOT_JUDGED, 1)
    assert words in outcome.reason
    assert "compile again" in outcome.remedy
    assert exit_status(summarise(data)) == 1
    verdicts = {check.name: check.verdict for check in data.checks[outcome.cell]}
    assert verdicts == {"whole_on_htp": "PASSED", "witness": "NOT_JUDGED"}
    assert not (artifact.reference / "sprung").exists()
    (sample,) = data.samples[outcome.cell]
    assert not summarise(data).cells[0].passed_text(sample)


def test_without_a_witness_of_lookahead_a_lookahead_cell_is_not_judged(
    phone: AttachedPhone, tiny_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    artifact = without_modules(tiny_artifacts["lookahead"], tmp_path)
    lookahead_file(artifact.reference, Settings(3, 4, 4)).unlink()
    outcome, data, _ = run(tmp_path, phone, short(), Mode.LOOKAHEAD, artifact)
    assert (outcome.status, outcome.failure_class) == (Status.ERROR, FailureClass.NOT_JUDGED)
    assert "no witness of lookahead" in outcome.reason
    assert exit_status(summarise(data)) == 1


def test_what_stays_grey_is_measured_to_the_limit_and_then_is_inconclusive(
    phone: AttachedPhone, tiny_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    """No phone is this near to QDQ, and no difference of so few tokens is sure: only more of them could decide."""
    model = short()
    model = replace(model, bounds=model.bounds.model_copy(update={"phone_vs_qdq_ppl": 1e-6}))
    outcome, data, said = run(tmp_path, phone, model, Mode.KV, without_modules(tiny_artifacts["kv"], tmp_path))
    assert (outcome.status, outcome.failure_class) == (Status.ERROR, FailureClass.INCONCLUSIVE)
    assert exit_status(summarise(data)) == 1
    more = [what for what in said if "not decided yet" in what]
    assert [what.partition(": ")[2] for what in more] == [
        f"not decided yet: {tokens} tokens more, kv graph" for tokens in (16, 32, 64, 128, 256)
    ]
    checks = {check.name: check for check in data.checks[outcome.cell]}
    assert checks["phone_vs_qdq_ppl"].verdict == "INCONCLUSIVE"
    assert "over 512 rows" in checks["phone_vs_qdq_ppl"].text
    assert checks["phone_vs_qdq_ppl"].text in outcome.reason
    # The text itself was judged, and may be shown.
    assert all(checks[name].verdict == "PASSED" for name in TEXT_CHECKS)
    # What is recorded of the text is what was asked for.
    (scored,) = (record for record in data.perplexities[outcome.cell] if record.ground == "PHONE")
    assert scored.tokens == 16
