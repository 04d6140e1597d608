"""`--pte DIR`: artifacts the user gives instead of the cache, checked to fit their cells before anything runs.

    DIR/<model>-<mode>-<SoC>.pte             the program
    DIR/<model>-reference/                   reference.json, the tokenizer, the witness; of small models decode_qdq.pt2

`htpfarm compile --out DIR` writes such a folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.build.cache import Artifact
from harness.build.reference import FILE
from harness.errors import ConfigError, HarnessError
from harness.matrix import Cell
from harness.model_file import Mode
from harness.runtime.lookahead import Settings
from harness.runtime.program import ProgramInfo, read_info
from harness.target import Target


def given_artifacts(
    folder: Path, cells: Iterable[Cell], target: Target, fingerprint: dict[str, str]
) -> dict[str, Artifact]:
    """Cell id → the given artifact.

    Raises:
        ConfigError: a file is missing, is no static llama, or was built for something else than its cell; all such
            are named at once.
    """
    found: dict[str, Artifact] = {}
    problems: list[str] = []
    for cell in cells:
        stem = f"{cell.model.name}-{cell.mode}-{cell.soc.name}"
        path, reference = folder / f"{stem}.pte", folder / f"{cell.model.name}-reference"
        missing = [str(p) for p in (path, reference / FILE) if not p.is_file()]
        try:
            wrong = [f"{p}: not there" for p in missing] or misfits(cell, read_info(path), target)
        except HarnessError as error:
            wrong = [f"{path}: {error.what}"]
        problems += [problem for problem in wrong if problem not in problems]
        found[cell.id] = Artifact("given", path, reference, fingerprint)
    if problems:
        raise ConfigError(
            "the given .pte files do not fit the cells",
            where=f"--pte {folder}",
            remedy="write such a folder with `htpfarm compile --out DIR`, or narrow --models, --modes and --socs",
            evidence="\n".join(problems),
        )
    return found


def misfits(cell: Cell, info: ProgramInfo, target: Target) -> list[str]:
    """What a `.pte` says of itself that does not fit a cell. Pure."""
    expected: list[tuple[str, object, object]] = [
        ("mode", str(cell.mode), str(info.mode)),
        ("context", cell.lengths.max_seq_len, info.context_len),
        ("layers", cell.model.params.n_layers, info.n_layers),
        ("KV heads", cell.model.params.n_kv_heads, info.n_kv_heads),
        ("vocabulary", cell.model.params.vocab_size, info.vocab),
        ("KV cache", f"uint{cell.model.kv_bits}", info.kv_dtype),
    ]
    if info.prefill is not None:
        expected.append(("prefill AR", cell.lengths.prefill_ar_len, info.prefill.ar_len))
    if cell.mode is Mode.LOOKAHEAD:
        settings = Settings(cell.lengths.ngram, cell.lengths.window, cell.lengths.gcap)
        expected.append(("lookahead step", settings.ar_len, info.kv.ar_len))
        if info.lookahead is not None:
            expected.append(("lookahead", str(settings), str(info.lookahead)))
    if info.delegate is not None:
        expected += [
            ("HTP architecture", cell.soc.arch, info.delegate.htp_arch),
            (
                "shared buffers (needed on a phone, refused by the simulator)",
                target is Target.ANDROID,
                info.delegate.shared_buffer,
            ),
        ]
    else:
        expected.append(("QNN delegate", True, False))
    return [
        f"{info.path}: {what} is {has}, the cell {cell.id} needs {want}" for what, want, has in expected if want != has
    ]


def export(artifacts: Sequence[tuple[Cell, Artifact]], folder: Path) -> list[Path]:
    """Copies artifacts from the cache into a folder that `--pte` takes; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for cell, artifact in artifacts:
        target = folder / f"{cell.model.name}-{cell.mode}-{cell.soc.name}.pte"
        shutil.copy2(artifact.pte, target)
        shutil.copytree(artifact.reference, folder / f"{cell.model.name}-reference", dirs_exist_ok=True)
        written.append(target)
    return written
