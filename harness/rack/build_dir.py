"""`htpfarm rack build-dir DIR`: what ExecuTorch's own llama.py needs on this host to drive a virtual phone.

Which files it pushes, by which names, and how it calls `adb`: `SimpleADB` in ExecuTorch 1.5.1's
`backends/qualcomm/export_utils.py`. Nothing of it is changed. It is given

    DIR/build/            --build_folder: the runner, which is our launcher, and libqnn_executorch_backend.so
    DIR/sdk/              QNN_SDK_ROOT: this toolchain's libraries for the host, linked; those for a phone
    DIR/bin/adb           the adb of the rack's server: a client of another version would try to end that server
    DIR/run/gpt2/         DIR/run is the working directory; the folder stands in for the hub's gpt2
    DIR/MODEL/            a model under the names llama.py wants; its .pte files in DIR/MODEL/SOC/
    DIR/llama.sh          an example: the variables and a command line (written by `cli.cmd_build_dir`)

A virtual phone loads none of the libraries that it is sent: its runner brings the simulator along. So each library for
a phone is a text that says so.

Why gpt2: tasks_eval's `EagerEvalWrapper` (`examples/models/llama/evaluate/eager_eval.py`, line 35) begins with
lm-eval's `HFLM(pretrained="gpt2")` and then puts its own model and tokenizer in place of those. Offline, upstream ends
at that first call ("We couldn't connect to 'https://huggingface.co'"). transformers prefers a folder of that name in
the working directory; ours is a model of no layers and one word, made here. prompt_eval and sqnr_eval do without it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.adb_program import adb_path
from harness.build.reference import QDQ_FILE
from harness.errors import ConfigError
from harness.files import write_atomically
from harness.model_file import Mode
from harness.rack.image import LAUNCHER
from harness.rack.record import RackState
from harness.soc import SOCS

if TYPE_CHECKING:
    from harness.build.cache import Artifact
    from harness.models import ModelSpec
    from harness.toolchain.environment import Toolchain

LLAMA = "examples/qualcomm/oss_scripts/llama"
PHONE_FOLDER = "aarch64-android"
PROMPT_EVAL, TASKS_EVAL, SQNR_EVAL = "prompt_eval", "tasks_eval", "sqnr_eval"
"""What `--eval_methods` takes."""


@dataclass(frozen=True)
class BuildDir:
    """A folder that `write_build_dir` wrote; absolute. Its parts are described at the top of this module."""

    folder: Path

    @property
    def build(self) -> Path:
        """For `--build_folder`."""
        return self.folder / "build"

    @property
    def sdk(self) -> Path:
        """For `QNN_SDK_ROOT`."""
        return self.folder / "sdk"

    @property
    def bin(self) -> Path:
        """Goes first on `PATH`."""
        return self.folder / "bin"

    @property
    def run(self) -> Path:
        """The working directory."""
        return self.folder / "run"


@dataclass(frozen=True)
class ModelFiles:
    """A model as llama.py takes it; absolute paths.

    Attributes:
        spec: the model.
        checkpoint: Meta's names, float32, a file torch loads.
        params: `params.json`.
        tokenizer: SentencePiece model; `tokenizer_bin` is the same in llama2.c's format, for the runner.
        programs: folder for `--pre_gen_pte`, by SoC.
    """

    spec: ModelSpec
    checkpoint: Path
    params: Path
    tokenizer: Path
    tokenizer_bin: Path
    programs: Mapping[str, Path]


def write_build_dir(folder: Path, toolchain: Toolchain) -> BuildDir:
    """Writes all but the models; what is there is brought up to date.

    Raises:
        ConfigError: the folder cannot be written, or there is no adb.
    """
    made = BuildDir(folder.absolute())
    try:
        _write(made.build / LLAMA / "qnn_llama_runner", LAUNCHER, mode=0o755)
        _placeholder(made.build / "backends/qualcomm/libqnn_executorch_backend.so")
        _link_sdk(made.sdk, toolchain.qnn.root)
        for name in ("libQnnHtp.so", "libQnnHtpPrepare.so", "libQnnSystem.so"):
            _placeholder(made.sdk / "lib" / PHONE_FOLDER / name)
        for arch in sorted({soc.arch for soc in SOCS.values()}):
            _placeholder(made.sdk / "lib" / PHONE_FOLDER / f"libQnnHtpV{arch}Stub.so")
            _placeholder(made.sdk / "lib" / f"hexagon-v{arch}" / "unsigned" / f"libQnnHtpV{arch}Skel.so")
        _link(made.bin / "adb", Path(adb_path()))
        _write_gpt2(made.run / "gpt2")
    except OSError as error:
        raise ConfigError(f"it cannot be written: {error.strerror}", where=str(error.filename or folder)) from error
    return made


def exports(made: BuildDir, toolchain: Toolchain, state: RackState) -> dict[str, str]:
    """The variables llama.py needs: the toolchain's, and those that make `adb` talk to the rack's server.

    Those whose names end in PATH go in front of what is there. `adb` heeds ADB_SERVER_SOCKET first, but with
    `--host` (`adb -H`) only the port.
    """
    view = replace(toolchain, qnn=replace(toolchain.qnn, root=made.sdk))
    return {
        **view.exports(),
        "PATH": str(made.bin),
        "ANDROID_ADB_SERVER_PORT": str(state.adb_port),
        "ADB_SERVER_SOCKET": f"tcp:{state.adb_host}:{state.adb_port}",
    }


def environment(variables: Mapping[str, str], base: Mapping[str, str] | None = None) -> dict[str, str]:
    """`base` (default: this process's environment) with `exports()` in force."""
    result = dict(os.environ if base is None else base)
    for key, value in variables.items():
        inherited = result.get(key) if key.endswith("PATH") else None
        result[key] = f"{value}{os.pathsep}{inherited}" if inherited else value
    return result


def write_model(made: BuildDir, spec: ModelSpec, artifacts: Mapping[tuple[str, Mode], Artifact]) -> ModelFiles:
    """Writes a model's files under the names llama.py wants.

    Args:
        spec: a model with a SentencePiece tokenizer and its `.bin` beside it (llama.py fetches others from the hub).
        artifacts: SoC and mode → artifact for the simulator. Its `.pte` and its QDQ module, which sqnr_eval compares
            with where there is one, are linked, not copied.

    Raises:
        ConfigError: the tokenizer is of another kind, or a file cannot be written.
    """
    import torch

    from harness.build.checkpoint import load_state_dict

    tokenizer = spec.tokenizer.path
    if tokenizer is None or not tokenizer.with_suffix(".bin").is_file():
        raise ConfigError(
            "llama.py takes the tokenizer of this model from the hub alone", where=str(spec.file), remedy="tiny_llama"
        )
    folder = made.folder / spec.name
    try:
        _write(folder / "params.json", json.dumps(spec.params.model_args(), indent=2))
        torch.save(load_state_dict(spec), folder / "checkpoint.pth")
        _link(folder / "tokenizer.model", tokenizer)
        _link(folder / "tokenizer.bin", tokenizer.with_suffix(".bin"))
        for (soc, mode), artifact in artifacts.items():
            _link(folder / soc / program_name(spec, mode), artifact.pte)
            if (qdq := artifact.reference / QDQ_FILE).is_file():
                _link(folder / soc / QDQ_FILE, qdq)
    except OSError as error:
        raise ConfigError(f"it cannot be written: {error.strerror}", where=str(error.filename or folder)) from error
    return ModelFiles(
        spec,
        folder / "checkpoint.pth",
        folder / "params.json",
        folder / "tokenizer.model",
        folder / "tokenizer.bin",
        {soc: folder / soc for soc, _ in artifacts},
    )


def program_name(spec: ModelSpec, mode: Mode) -> str:
    """The name that llama.py looks for in `--pre_gen_pte` (`export_llama`)."""
    prefix = f"{spec.decoder}_" if spec.decoder == "stories260k" else ""
    return f"{prefix}{mode}_llama_qnn.pte"


def command(
    made: BuildDir,
    toolchain: Toolchain,
    model: ModelFiles,
    *,
    serial: str,
    soc: str,
    mode: Mode,
    methods: Sequence[str],
    prompt: str,
    more: Sequence[str] = (),
) -> list[str]:
    """llama.py's command line against one phone; greedy, since its own default is a temperature of 0.8.

    Args:
        methods: PROMPT_EVAL, TASKS_EVAL, SQNR_EVAL. tasks_eval also wants `--eval_tasks`: names of lm-eval's tasks, or
            paths of YAMLs.
        prompt: required whatever the methods.
        more: further arguments; they come last, so that they override.
    """
    lengths = model.spec.lengths
    lookahead = {"--ngram": lengths.ngram, "--window": lengths.window, "--gcap": lengths.gcap}
    return [
        *(sys.executable, str(toolchain.executorch / LLAMA / "llama.py")),
        *("--build_folder", str(made.build), "--device", serial, "--soc_model", soc),
        *("--pre_gen_pte", str(model.programs[soc]), "--decoder_model", model.spec.decoder),
        *("--model_mode", str(mode), "--max_seq_len", str(lengths.max_seq_len)),
        *("--prefill_ar_len", str(lengths.prefill_ar_len)),
        *(word for pair in lookahead.items() for word in map(str, pair) if mode is Mode.LOOKAHEAD),
        *("--checkpoint", str(model.checkpoint), "--params", str(model.params)),
        *("--tokenizer_model", str(model.tokenizer), "--tokenizer_bin", str(model.tokenizer_bin)),
        *("--temperature", "0", "--prompt", prompt, "--eval_methods", *methods, *more),
    ]


def _write(path: Path, text: str, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text, mode=mode, sync=False)


def _placeholder(path: Path) -> None:
    _write(
        path,
        f"This is not {path.name} but htpfarm's placeholder for it: ExecuTorch's scripts send a phone a file of this\n"
        "name, and a virtual phone does not load it. A real phone needs the QNN SDK's library, or the one that\n"
        "ExecuTorch's backends/qualcomm/scripts/build.sh makes.\n",
    )


def _link(path: Path, target: Path) -> None:
    target = target.resolve()
    if path.is_symlink() and path.readlink() == target:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _link_sdk(view: Path, root: Path) -> None:
    """Everything of `root` but what a phone would be sent. `root` may be such a view itself, even this one."""
    for entry in sorted(root.iterdir()):
        if entry.name != "lib":
            _link(view / entry.name, entry)
    for entry in sorted((root / "lib").iterdir()):
        if entry.name != PHONE_FOLDER and not entry.name.startswith("hexagon-"):
            _link(view / "lib" / entry.name, entry)


def _write_gpt2(folder: Path) -> None:
    """A model that transformers loads as gpt2: no layers, one word, all zeros."""
    from safetensors.numpy import save_file

    word, width = "<|endoftext|>", 8
    config = {"n_layer": 0, "n_head": 1, "n_embd": width, "n_positions": width, "vocab_size": 1}
    token = {"id": 0, "content": word, "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"), None)
    files: Mapping[str, Mapping[str, object]] = {
        "config.json": {"model_type": "gpt2", **config, "bos_token_id": 0, "eos_token_id": 0, "dtype": "float32"},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": word, "unk_token": word},
        "tokenizer.json": {
            **{"version": "1.0", **parts, "added_tokens": [{**token, **flags}]},
            "model": {"type": "WordLevel", "vocab": {word: 0}, "unk_token": word},
        },
    }
    for name, content in files.items():
        _write(folder / name, json.dumps(content, indent=2))
    shapes = {"wte.weight": (1, width), "wpe.weight": (width, width), "ln_f.weight": (width,), "ln_f.bias": (width,)}
    tensors = {f"transformer.{name}": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
