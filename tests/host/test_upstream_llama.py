"""ExecuTorch's own llama.py, as installed, drives virtual phones: what it says is what our own runner says there."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import math
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harness.build.cache import Artifact
from harness.errors import ConfigError
from harness.farm.connect import AdbServer
from harness.farm.deploy import deploy
from harness.farm.payload import PayloadFile, sim_payload
from harness.farm.session import SessionSpec, run_session
from harness.model_file import Mode
from harness.models import load_models
from harness.paths import MODELS
from harness.rack import build_dir, manage
from harness.rack.build_dir import PROMPT_EVAL, SQNR_EVAL, TASKS_EVAL, BuildDir, ModelFiles
from harness.rack.cli import cmd_build_dir
from harness.rack.image import LAUNCHER
from harness.rack.record import RackPhone, RackState
from harness.runtime.cores import CORE_LOCKS, make_core_locks
from harness.runtime.score import request_json
from harness.soc import PHONE_KINDS
from harness.text.tokenizer import load_tokenizer
from harness.text.windows import Window, rolling_windows
from harness.toolchain.environment import Toolchain, find_toolchain

SOC = "SM8650"
PROMPT = 'David said to "Jonathan",'  # upstream quotes it for the phone's shell
WINDOWS = 2
SEQ_LEN = {Mode.KV: 0, Mode.HYBRID: 40, Mode.LOOKAHEAD: 40}  # kv: as the text asks
TASK = """\
task: local_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
"""


@dataclass(frozen=True)
class Stage:
    """A rack with a phone for each mode, and what llama.py needs."""

    toolchain: Toolchain
    state: RackState
    made: BuildDir
    files: ModelFiles
    artifacts: dict[str, Artifact]
    text: str
    windows: tuple[Window, ...]
    folder: Path

    @property
    def seq_len(self) -> int:
        """For kv: so long that the text makes WINDOWS windows of one token less."""
        return len(self.windows[0].inputs) + 1

    def phone(self, mode: Mode) -> RackPhone:
        return next(phone for phone in self.state.phones if phone.name == mode)

    def length(self, mode: Mode) -> int:
        return SEQ_LEN[mode] or self.seq_len


def heldout() -> tuple[str, tuple[Window, ...]]:
    """The start of the held-out text, whose tokens make WINDOWS windows exactly: lm-eval widens one that is short."""
    model = load_models(MODELS)["tiny_llama"]
    assert model.tokenizer.path is not None
    tokenizer = load_tokenizer(model.tokenizer.path)
    text = model.eval.text.read_text(encoding="utf-8")[:150]
    while len(tokens := tokenizer.encode(text, bos=False)) % WINDOWS:
        text = text[:-1]
    return text, rolling_windows(tokens, tokenizer.bos, len(tokens) // WINDOWS)


@pytest.fixture(scope="module")
def stage(tiny_artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("upstream")
    toolchain = find_toolchain()
    locks = make_core_locks()
    text, windows = heldout()
    model = load_models(MODELS)["tiny_llama"]
    made = build_dir.write_build_dir(folder / "made", toolchain)
    # Without the QDQ module: it has the context's length, which would have to be the text's as well.
    alone = {(SOC, Mode(mode)): replace(made_of, reference=folder) for mode, made_of in tiny_artifacts.items()}
    files = build_dir.write_model(made, model, alone)
    try:
        state = manage.up(
            [(str(mode), PHONE_KINDS["galaxy_s24"]) for mode in Mode],
            state_dir=folder / "rack",
            runner_env={**toolchain.environment({}), CORE_LOCKS: str(locks)},
            expose=[locks],
        )
        yield Stage(toolchain, state, made, files, tiny_artifacts, text, windows, folder)
    finally:
        manage.down(folder / "rack")


def start_upstream(stage: Stage, mode: Mode, methods: tuple[str, ...], *more: str) -> subprocess.Popen[bytes]:
    """llama.py, with environment variables alone; what it says goes to `<mode>.log` (stderr) and `<mode>.out`."""
    phone = {"serial": stage.phone(mode).serial, "soc": SOC, "mode": mode}
    argv = build_dir.command(stage.made, stage.toolchain, stage.files, **phone, methods=methods, prompt=PROMPT)
    variables = build_dir.exports(stage.made, stage.toolchain, stage.state)
    return start(stage, mode, [*argv, *more], build_dir.environment(variables))


def start_script(stage: Stage, mode: Mode, *more: str) -> subprocess.Popen[bytes]:
    """The same by the script that `htpfarm rack build-dir` writes; it is hybrid's."""
    assert mode is Mode.HYBRID
    report = cmd_build_dir(stage.folder / "by-verb", state_dir=stage.folder / "rack")
    own = ("--device", stage.phone(mode).serial, "--prompt", PROMPT)
    return start(stage, mode, [report["script"], *own, *more], dict(os.environ))


def start(stage: Stage, mode: Mode, argv: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    own = ("--max_seq_len", str(stage.length(mode)), "--artifact", str(stage.folder / f"artifact-{mode}"))
    with (stage.folder / f"{mode}.log").open("wb") as log, (stage.folder / f"{mode}.out").open("wb") as out:
        return subprocess.Popen(
            [*argv, *own],
            cwd=stage.made.run,
            env=environment | {"HF_DATASETS_CACHE": str(stage.folder / "datasets")},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=log,
        )


@pytest.fixture(scope="module")
def said(stage: Stage) -> dict[Mode, str]:
    """What upstream logs in each mode; all three at once, each on its phone."""
    data, task = stage.folder / "text.jsonl", stage.folder / "task.yaml"
    data.write_text(json.dumps({"text": stage.text}) + "\n")
    task.write_text(TASK.format(data=data))
    every = (PROMPT_EVAL, SQNR_EVAL, TASKS_EVAL)
    running = {
        Mode.KV: start_upstream(stage, Mode.KV, every, "--eval_tasks", str(task)),
        Mode.HYBRID: start_script(stage, Mode.HYBRID, "--eval_methods", PROMPT_EVAL),
        Mode.LOOKAHEAD: start_upstream(stage, Mode.LOOKAHEAD, (PROMPT_EVAL,)),
    }
    try:
        for mode, process in running.items():
            log = stage.folder / f"{mode}.log"
            assert process.wait(timeout=600) == 0, log.read_text(errors="replace")[-4000:]
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return {mode: (stage.folder / f"{mode}.log").read_text(errors="replace") for mode in running}


@pytest.fixture(scope="module")
def ours(stage: Stage, said: dict[Mode, str]) -> dict[Mode, dict[str, Path]]:
    """What our own runner writes on the same phones: `outputs.txt`; in kv mode also the scores of the text."""
    return {mode: run_ours(stage, mode) for mode in Mode}


def run_ours(stage: Stage, mode: Mode) -> dict[str, Path]:
    link = AdbServer(stage.state.adb_host, stage.state.adb_port).link(stage.phone(mode).serial)
    payload = sim_payload(stage.artifacts[mode].pte, stage.files.tokenizer_bin, folder=stage.folder)
    lengths = stage.files.spec.lengths
    request = stage.folder / "request.json"
    request.write_text(json.dumps(request_json(stage.windows, "kv")))
    scoring = ("--x_score_path", request.name, "--x_score_output", "scores.json") if mode is Mode.KV else ()
    spec = SessionSpec(
        "ours",
        1,
        payload.runner,
        (
            *("--model_path", payload.model, "--tokenizer_path", payload.tokenizer, "--prompt", PROMPT),
            *("--seq_len", str(stage.length(mode)), "--eval_mode", str(list(Mode).index(mode))),
            *("--ngram", str(lengths.ngram), "--window", str(lengths.window), "--gcap", str(lengths.gcap), *scoring),
        ),
        outputs=("outputs.txt", "scores.json"),
        inputs=(PayloadFile(request, request.name),),
    )
    result = run_session(link, deploy(link, payload.files), spec, stage.folder / f"ours-{mode}")
    assert result.exit_status == 0, result.stderr
    return dict(result.files)


def reply(log: str) -> str:
    """The text that prompt_eval logs."""
    found = re.search(r"Device Inference Results\[0\]:\n(.*?)\n(?:\[INFO |\[WARNING |\Z)", log, re.DOTALL)
    assert found, log[-4000:]
    return found[1]


def test_what_is_run_is_what_was_installed() -> None:
    """The files of ExecuTorch's that take part have the hashes of its wheel."""
    parts = (
        "examples/qualcomm/oss_scripts/llama/",
        "examples/models/llama/evaluate/",
        "backends/qualcomm/export_utils",
    )
    files = [
        file
        for file in importlib.metadata.files("executorch") or ()
        if file.suffix == ".py" and str(file).startswith(tuple(f"executorch/{part}" for part in parts))
    ]
    assert len(files) > 20
    for file in files:
        assert file.hash is not None
        digest = hashlib.new(file.hash.mode, Path(str(file.locate())).read_bytes()).digest()
        assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value, file


def test_nothing_in_the_folder_is_qualcomms_but_links(tmp_path: Path) -> None:
    toolchain = find_toolchain()
    made = build_dir.write_build_dir(tmp_path / "dir", toolchain)
    for file in (path for path in made.folder.rglob("*") if path.is_file() and not path.is_symlink()):
        if file.suffix == ".so":
            text = file.read_text()
            assert text.startswith(f"This is not {file.name} but htpfarm's placeholder for it")
    assert (made.build / "examples/qualcomm/oss_scripts/llama/qnn_llama_runner").read_text() == LAUNCHER
    host = made.sdk / "lib/x86_64-linux-clang"
    assert host.is_symlink()
    assert (host / "libQnnHtp.so").samefile(toolchain.qnn.root / "lib/x86_64-linux-clang/libQnnHtp.so")


def test_writing_again_from_a_shell_that_exports_the_view_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolchain = find_toolchain()
    made = build_dir.write_build_dir(tmp_path / "dir", toolchain)
    before = {path: path.readlink() for path in made.folder.rglob("*") if path.is_symlink()}
    monkeypatch.setenv("QNN_SDK_ROOT", str(made.sdk))
    find_toolchain.cache_clear()
    try:
        inner = find_toolchain()
    finally:
        monkeypatch.undo()
        find_toolchain.cache_clear()
    assert inner.qnn.source == toolchain.qnn.source  # so that the same artifacts are found
    build_dir.write_build_dir(tmp_path / "dir", inner)
    assert {path: path.readlink() for path in made.folder.rglob("*") if path.is_symlink()} == before


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dir").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot be written"):
        build_dir.write_build_dir(tmp_path / "dir", find_toolchain())
    with pytest.raises(ConfigError, match="no folder is given"):
        cmd_build_dir(None)


def test_variables_that_end_in_path_go_in_front() -> None:
    merged = build_dir.environment({"PATH": "/ours", "QNN_SDK_ROOT": "/view"}, {"PATH": "/bin", "QNN_SDK_ROOT": "/old"})
    assert merged == {"PATH": "/ours:/bin", "QNN_SDK_ROOT": "/view"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(Mode))
def test_prompt_eval_gives_our_runners_text(
    said: dict[Mode, str], ours: dict[Mode, dict[str, Path]], mode: Mode
) -> None:
    text = ours[mode]["outputs.txt"].read_text()
    assert text.startswith(PROMPT)
    assert len(text) > len(PROMPT) + 20
    assert reply(said[mode]) == text


@pytest.mark.slow
def test_tasks_eval_gives_our_word_perplexity(
    stage: Stage, said: dict[Mode, str], ours: dict[Mode, dict[str, Path]]
) -> None:
    scores = json.loads(ours[Mode.KV]["scores.json"].read_text())["windows"]
    assert [len(window["logprobs"]) for window in scores] == [stage.seq_len - 1] * WINDOWS
    total = math.fsum(value for window in scores for value in window["logprobs"])
    words = len(re.split(r"\s+", stage.text))  # lm-eval's rule
    found = re.search(r"local_text: \{.*'word_perplexity,none': (?:np\.float64\()?([\d.e+-]+)", said[Mode.KV])
    assert found, said[Mode.KV][-4000:]
    assert float(found[1]) == pytest.approx(math.exp(-total / words), rel=5e-5)


@pytest.mark.slow
def test_sqnr_eval_compares_the_phone_with_the_float_model(said: dict[Mode, str]) -> None:
    found = re.search(r"SQNR Eval Score between FP32 nn.Module and QNN: (\S+)", said[Mode.KV])
    assert found, said[Mode.KV][-4000:]
    # 4-bit weights: seen were 24.9 dB. Logits of another prompt, or in another order, have about 0.
    assert 15 < float(found[1]) < 40
