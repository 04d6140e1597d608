"""The known tiny model on UNKNOWN phones: its text, by the real compiler and simulator, and what a lack of it means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.build.cache import Artifact
from harness.build.reference import QDQ_FILE, load_reference
from harness.conduct.attempt import Attempt, Bench
from harness.conduct.deep_check import KNOWN_MODEL, DeepCheck, judge
from harness.conduct.rack_use import start_rack
from harness.conduct.replies import run_prompt
from harness.conduct.run_cell import run_cell
from harness.errors import FailureClass, InfraError
from harness.evaluate.choice import EvalChoice
from harness.evaluate.host import Host
from harness.evaluate.host_scorer import HostScorer
from harness.evaluate.known_text import LEAST_TOKENS, KnownText, known_text, sure_run
from harness.farm.connect import AdbServer
from harness.farm.failures import Failure
from harness.farm.health import HealthBook, HealthState
from harness.farm.identity import AttachedPhone, identify
from harness.farm.lease_service import HostLeases
from harness.farm.prepare import Nurse, prepare
from harness.inventory import Phone
from harness.matrix import cells
from harness.model_file import Mode
from harness.models import load_models
from harness.paths import MODELS
from harness.rack import manage
from harness.rack.image import RUNNER
from harness.rack.manage import RackState
from harness.results.records import Record, Status
from harness.soc import PHONE_KINDS, SOCS
from harness.target import Target
from harness.text.templates import find_template, format_prompt
from harness.text.tokenizer import load_tokenizer
from harness.toolchain.environment import find_toolchain, fingerprint

KINDS = {"odd": "galaxy_s24", "sound": "oneplus_12"}  # both SM8650


def test_a_sure_run_is_the_first_of_the_longest_that_chooses_its_targets_by_more_than_the_margin() -> None:
    sure, close = [0.0, 2.0, 0.0], [0.0, 2.0, 1.9]
    assert sure_run(np.array([sure, sure, close, sure, sure]), [1, 1, 1, 1, 1], 0.3) == (0, 2)
    assert sure_run(np.array([close, sure, sure, sure]), [1, 1, 1, 2], 0.3) == (1, 2)  # the last chose another token
    assert sure_run(np.array([close, close]), [1, 1], 0.3) == (0, 0)


@pytest.mark.parametrize(
    ("said", "good"),
    [
        ('Then said he, "Go in and tell', True),
        ("in and tell\n", True),
        ('Then said he, "Go', False),
        ('Then said he, "Go in and tell them', False),
        ("", False),
    ],
)
def test_an_output_ends_with_the_known_text_or_says_what_it_gave(said: str, good: bool) -> None:
    failure = judge(said, KnownText('Then said he, "Go', 9, 3, " in and tell"))
    assert (failure is None) is good
    if failure is not None:
        assert failure.failure_class is FailureClass.PRODUCT
        assert "instead of 'in and tell'" in failure.reason


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RackState]:
    folder = tmp_path_factory.mktemp("rack")
    try:
        yield start_rack([(name, PHONE_KINDS[kind]) for name, kind in KINDS.items()], find_toolchain(), folder)
    finally:
        manage.down(folder)


@pytest.fixture
def phones(rack: RackState) -> Iterator[tuple[AttachedPhone, ...]]:
    """Both, `odd` first; whatever a test plants as a phone's runner is taken away again."""
    runners = {Path(p.root) / RUNNER.lstrip("/"): p for p in rack.phones}
    before = {path: path.read_text() for path in runners}
    server = AdbServer(rack.adb_host, rack.adb_port)
    found = []
    for running in rack.phones:
        spec = Phone(running.name, None, PHONE_KINDS[running.kind], SOCS["SM8650"], priority=running.name == "odd")
        link = server.link(running.serial)
        found.append(AttachedPhone(spec, link, identify(link)))
    yield tuple(found)
    for path, text in before.items():
        path.write_text(text)


def plant(rack: RackState, make: Callable[[str], str]) -> None:
    """Replaces the runner of `odd`; `make` gets the path of the real one, which is kept beside it."""
    (root,) = (Path(p.root) for p in rack.phones if p.name == "odd")
    runner = root / RUNNER.lstrip("/")
    real = runner.with_name("real-runner")
    if not real.exists():
        real.write_bytes(runner.read_bytes())
        real.chmod(0o755)
    runner.write_text(make(f"{RUNNER.rpartition('/')[0]}/{real.name}"))


def bench(tmp_path: Path, phones: tuple[AttachedPhone, ...], said: list[str], own: list[object] | None = None) -> Bench:
    def say(name: str, what: str) -> None:
        said.append(f"{name}: {what}")

    known, proofs = fingerprint(find_toolchain()), tmp_path / "proofs"
    check = DeepCheck("test", tmp_path, Target.SIM, phones, known, own or [], say, proofs)  # type: ignore[arg-type]
    kept: list[Record] = []
    return Bench(
        run_id="test",
        folder=tmp_path,
        phones=phones,
        record=kept.append,
        say=say,
        target=Target.SIM,
        evaluation=EvalChoice(),
        host=Host(),
        nurse=Nurse(HealthBook(tmp_path / "health"), say, deep_check=check),
        leases=HostLeases(tmp_path / "leases"),
    )


@pytest.mark.slow
def test_the_known_text_is_what_qdq_writes_and_is_remembered(
    tiny_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    folder, model = tiny_artifacts["hybrid"].reference, load_models(MODELS)[KNOWN_MODEL]
    known = known_text(model, folder, kept=tmp_path / "kept.json")
    tokenizer = load_tokenizer(folder / load_reference(folder).tokenizer, as_runner=True)
    fed = tokenizer.encode(format_prompt(find_template("llama2"), known.prompt, ""), bos=True)
    assert len(fed) == known.prompt_tokens
    written = HostScorer(folder / QDQ_FILE).generate(fed, known.tokens, ())
    pieces = [tokenizer.piece(b, t) for b, t in zip([fed[-1], *written[:-1]], written, strict=True)]
    assert b"".join(pieces).decode() == known.text
    assert known.tokens >= LEAST_TOKENS
    # Read back without QDQ: there is none in this folder.
    assert known_text(model, tmp_path, kept=tmp_path / "kept.json") == known


@pytest.mark.slow
def test_an_unknown_phone_becomes_good_when_the_tiny_model_gives_its_text(
    phones: tuple[AttachedPhone, ...], tiny_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    said: list[str] = []
    nurse, phone = bench(tmp_path, phones, said).nurse, phones[1]
    for _ in range(2):
        prepare(nurse, phone.phone, phone.link)
        assert nurse.book.state(phone.link.serial) is HealthState.GOOD
    assert len([line for line in said if f"{KNOWN_MODEL} gave its text" in line]) == 1
    nurse.book.attempted(phone.link.serial, FailureClass.INFRA)
    prepare(nurse, phone.phone, phone.link)
    assert len([line for line in said if f"{KNOWN_MODEL} gave its text" in line]) == 2
    kept = (tmp_path / "deep-checks" / phone.phone.name / "outputs.txt").read_text()
    model = load_models(MODELS)[KNOWN_MODEL]
    assert judge(kept, known_text(model, tiny_artifacts["hybrid"].reference)) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runner", "cause"),
    [
        ('#!/bin/sh\n{real} "$@" || exit\ntr a-y b-z < outputs.txt > wrong; mv wrong outputs.txt\n', "instead of"),
        ('#!/bin/sh\necho "qnn_open failed, 0x80000406" >&2\nexit 1\n', "no skel library that fits"),
        ("#!/bin/sh\nexit 0\n", "no PyTorchObserver record"),
    ],
    ids=["wrong text", "libraries do not load", "no text"],
)
def test_a_phone_whose_htp_does_not_work_is_bad_and_the_cell_runs_on_another(
    rack: RackState,
    phones: tuple[AttachedPhone, ...],
    tiny_artifacts: dict[str, Artifact],
    tmp_path: Path,
    runner: str,
    cause: str,
) -> None:
    plant(rack, lambda real: runner.replace("{real}", real))
    said: list[str] = []
    model = replace(load_models(MODELS)[KNOWN_MODEL], max_new_tokens=4)
    (cell,) = cells([model], [Mode.HYBRID], [SOCS["SM8650"]])
    made = bench(tmp_path, phones, said)
    prepare(made.nurse, phones[1].phone, phones[1].link)  # else the runner could be to blame

    def attempt(one: Attempt) -> Failure | None:
        taken = run_prompt(one, one.deploy(one.payload), model.prompts[0], 0)
        return taken if isinstance(taken, Failure) else None

    outcome = run_cell(made, cell, tiny_artifacts["hybrid"], 60.0, first="odd", run=attempt)
    assert (outcome.status, outcome.phone, outcome.attempts) == (Status.PASSED, "sound", 1), said
    book = made.nurse.book
    odd, sound = (p.link.serial for p in phones)
    assert (book.state(odd), book.state(sound)) == (HealthState.BAD, HealthState.GOOD)
    assert book.cause(odd).startswith("deep check: ")
    assert cause in book.cause(odd)
    assert any(line.startswith("odd: ") and cause in line for line in said)
    with pytest.raises(InfraError, match="htpfarm devices clear odd"):
        prepare(made.nurse, phones[0].phone, phones[0].link)


@pytest.mark.slow
def test_no_phone_is_blamed_for_a_runner_that_has_worked_nowhere(
    rack: RackState, phones: tuple[AttachedPhone, ...], tiny_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    plant(rack, lambda _real: '#!/bin/sh\necho "qnn_open failed, 0x80000406" >&2\nexit 1\n')
    said: list[str] = []
    nurse, (odd, sound) = bench(tmp_path, phones, said).nurse, phones
    prepare(nurse, odd.phone, odd.link)
    assert nurse.book.state(odd.link.serial) is HealthState.UNKNOWN
    assert any("no skel library that fits" in line and "none is blamed" in line for line in said)
    prepare(nurse, sound.phone, sound.link)
    with pytest.raises(InfraError, match="failed its deep check"):  # now it is known to work elsewhere
        prepare(nurse, odd.phone, odd.link)
    assert nurse.book.state(odd.link.serial) is HealthState.BAD


def test_without_an_artifact_the_check_is_left_out_and_says_why(
    phones: tuple[AttachedPhone, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    nurse, phone = bench(tmp_path, phones, said).nurse, phones[0]
    monkeypatch.setenv("HTPFARM_CACHE", str(tmp_path / "empty"))
    prepare(nurse, phone.phone, phone.link)
    assert said == [
        "odd: deep check left out: no tiny_llama for SM8650 (sim) is in the cache; "
        "`htpfarm compile --models tiny_llama` makes one"
    ]
    assert nurse.book.state(phone.link.serial) is HealthState.GOOD


@pytest.mark.slow
def test_what_the_run_itself_has_made_will_do(
    phones: tuple[AttachedPhone, ...],
    tiny_artifacts: dict[str, Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    (cell,) = cells([load_models(MODELS)[KNOWN_MODEL]], [Mode.KV], [SOCS["SM8650"]])
    nurse = bench(tmp_path, phones, said, [(cell, tiny_artifacts["kv"])]).nurse
    monkeypatch.setenv("HTPFARM_CACHE", str(tmp_path / "empty"))
    prepare(nurse, phones[0].phone, phones[0].link)
    assert ["gave its text" in line for line in said] == [True]
