"""What a runner says to requests of all kinds, whatever a cell asks: what a fault changes that a cell does not see.

Run beside the phone, straight on this computer: prompts by the command line, held-out text by both graphs, and prompts
that end around the ends of blocks and of the context.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faults.cells import SOC, runner_environment
from faults.tap import Words, read_words
from harness.build.cache import Artifact
from harness.build.reference import load_reference
from harness.conduct.attempt import EVAL_MODES
from harness.frames import encode_frame
from harness.matrix import Cell
from harness.model_file import Mode
from harness.text.decoders import VERSIONS
from harness.toolchain.environment import find_toolchain

_LIMIT_S = 900.0
_NEW = 8


def battery(
    cell: Cell,
    artifact: Artifact,
    fault: str,
    settings: Mapping[str, str],
    memory: Path | None,
    *,
    stock: bool = False,
    sound: bool = True,
) -> Words:
    """What the runner says, with a fault planted or none (an empty name); `stock`: only what the stock one can say.

    `sound`: the artifact is a sound one, and stays it.
    """
    with tempfile.TemporaryDirectory(prefix="htpfarm-battery-") as name:
        folder = Path(name)
        heard = folder / "heard"
        heard.mkdir()
        reference = load_reference(artifact.reference)
        model, tokenizer = folder / "model.pte", folder / reference.tokenizer
        shutil.copy(artifact.pte, model)
        for file in artifact.reference.glob("tokenizer*"):
            shutil.copy(file, folder / file.name)
        environment = find_toolchain().environment() | dict(settings)
        environment["PYTHONPATH"] = os.pathsep.join(
            [runner_environment()["PYTHONPATH"], environment.get("PYTHONPATH", "")]
        )
        environment |= {"HTPFARM_FAULT": fault, "HTPFARM_TAP": str(heard), "HTPFARM_PHONE_SOC": SOC.name}
        if memory is not None:
            environment["HTPFARM_MEMORY"] = str(memory)
            if sound:
                environment["HTPFARM_MEMORY_SOUND"] = f"{cell.model.name} {cell.mode}"
        base = ["--model_path", model.name, "--tokenizer_path", tokenizer.name]
        base += ["--decoder_model_version", VERSIONS[cell.model.decoder], "--eval_mode", str(EVAL_MODES[cell.mode])]
        if cell.mode is Mode.LOOKAHEAD:
            lengths = cell.lengths
            base += ["--ngram", str(lengths.ngram), "--window", str(lengths.window), "--gcap", str(lengths.gcap)]
        for number, prompt in enumerate(cell.model.prompts[:1]):
            files = ["--output_path", f"out{number}", "--performance_output_path", f"speed{number}"]
            turn = [*base, *files, "--x_stats_path", f"stats{number}", "--seq_len", str(cell.lengths.max_seq_len)]
            _run([*turn, "--temperature", "0", "--prompt", prompt], b"", folder, environment)
        if not stock:
            _run([*base, "--x_serve"], b"".join(map(encode_frame, requests(cell, reference))), folder, environment)
        return read_words(heard)


def requests(cell: Cell, reference: Any) -> list[dict[str, Any]]:
    """What is asked of the runner that stays."""
    window = reference.held_out.windows[0]
    ar_len, context = cell.lengths.prefill_ar_len, cell.lengths.max_seq_len
    room = context - (1 if cell.mode is not Mode.LOOKAHEAD else cell.lengths.lookahead_ar_len)
    asked: list[dict[str, Any]] = []
    graphs = {Mode.KV: ("kv",), Mode.HYBRID: ("prefill", "kv"), Mode.LOOKAHEAD: ("prefill",)}[cell.mode]
    count = 32 if cell.model.params.vocab_size and cell.model.name.endswith("_twin") else len(window.inputs)
    for graph in graphs:
        size = len(window.inputs) if graph == "prefill" else count
        cut = {"input": list(window.inputs[:size]), "target": list(window.targets[:size])}
        asked += [{"op": "score", "graph": graph, "windows": [cut]}] * 2
        asked.append({"op": "logits", "graph": graph, "tokens": list(window.inputs[:48]), "last": 4})
    lengths = sorted({ar_len - 1, ar_len, ar_len + 1, 2 * ar_len, 2 * ar_len + 1, room - 20, room - 2})
    for length in (n for n in lengths if 1 < n < min(room, len(window.inputs))):
        asked.append({"op": "generate", "tokens": list(window.inputs[:length]), "max_new": _NEW})
    asked.append({"op": "generate", "tokens": list(window.inputs[:5]), "max_new": context, "stop": []})
    asked.append({"op": "generate", "tokens": list(window.inputs[:9]), "max_new": _NEW})
    asked.append({"op": "generate", "tokens": list(window.inputs[9:13]), "max_new": _NEW, "fresh": False})
    asked.append({"op": "generate", "tokens": list(window.inputs[:9]), "max_new": _NEW, "temperature": 0.9, "seed": 3})
    asked.append({"op": "quit"})
    return [{"id": number, **one} for number, one in enumerate(asked)]


def _run(flags: list[str], said: bytes, folder: Path, environment: Mapping[str, str]) -> None:
    """One process; how it ends shows in what it said."""
    command = [str(find_toolchain().python), "-m", "faults.launch", *flags]
    subprocess.run(command, input=said, cwd=folder, env=environment, capture_output=True, timeout=_LIMIT_S, check=False)
