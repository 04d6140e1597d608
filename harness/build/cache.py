"""The artifact cache: content-addressed folders under the user's cache, written once, never changed.

    artifacts/<model>-<mode>-<SoC>-<target>-<key>/   model.pte, manifest.json, build.log
    references/<model>-<key>/                        reference.json, the tokenizer, decode_qdq.pt2
    failures/<key>-<time>-<pid>.log                  logs of lowerings that failed
    locks/                                           one lock a group of artifacts that share their first half

The key is a hash of everything that could change the bytes: weights, architecture, recipe, mode, lengths, SoC,
target, calibration text, toolchain, and the source of the modules that build.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.build.calibration import MODELS_OWN, CalibrationChoice, fingerprint
from harness.build.checkpoint import checkpoint_files
from harness.build.reference import FILE
from harness.build.witness import FILE as WITNESS_FILE
from harness.build.witness import lookahead_file
from harness.model_file import Lengths, Mode
from harness.models import ModelSpec
from harness.paths import cache_root
from harness.runtime.lookahead import Settings
from harness.soc import Soc
from harness.target import Target

# Modules whose source changes what a build makes.
_SOURCES = (
    *("calibration.py", "checkpoint.py", "config_check.py", "families.py", "hadamard.py", "lpbq.py", "materials.py"),
    *("pieces.py", "recipe.py", "reference.py", "score.py", "spinquant.py", "stored.py", "task_tokens.py"),
    *("upstream.py", "worker.py", "../recipes.py"),
)
# And those that change what is kept to judge it by.
_WITNESS_SOURCES = (
    *("dither.py", "testify.py", "witness.py"),
    *("../runtime/context_graph.py", "../runtime/lookahead.py", "../text/fed.py", "../text/templates.py"),
)


@dataclass(frozen=True)
class Artifact:
    """A `.pte` in the cache (or given by the user), and the folder of its reference.

    Attributes:
        key: its content key; `given` for one of the user's.
        pte: the program.
        reference: folder with `reference.json` and the tokenizer.
        fingerprint: everything that could change it.
        witness: files of the reference that say what QDQ says.
    """

    key: str
    pte: Path
    reference: Path
    fingerprint: dict[str, str]
    witness: tuple[Path, ...] = ()

    @property
    def folder(self) -> Path:
        """In the cache: holds `model.pte`, `manifest.json` and `build.log`."""
        return self.pte.parent

    @property
    def ready(self) -> bool:
        """Whether the artifact, its reference and its witness are in the cache."""
        return all(path.is_file() for path in (self.pte, self.reference / FILE, *self.witness))

    def manifest(self) -> dict[str, object]:
        """What is known of how it was made; empty where there is no manifest."""
        path = self.folder / "manifest.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def locate(
    spec: ModelSpec,
    mode: Mode,
    soc: Soc,
    target: Target,
    lengths: Lengths,
    toolchain: dict[str, str],
    calibration: CalibrationChoice = MODELS_OWN,
) -> Artifact:
    """Where the artifact of a cell is, or will be.

    Args:
        toolchain: `harness.toolchain.environment.fingerprint`.
        calibration: what the user asked to calibrate with.

    Raises:
        ConfigError: a file of the calibration's is not there.
    """
    shared = {
        **{f"toolchain.{key}": value for key, value in toolchain.items()},
        "builder": _source_hash(_SOURCES),
        "model": spec.name,
        "decoder": spec.decoder,
        "params": json.dumps(spec.params.model_args(), sort_keys=True),
        "weights": " ".join(_file_hash(path) for path in checkpoint_files(spec)),
        "recipe": spec.recipe.model_dump_json(),
        "shards": str(spec.shards),
        "calibration": fingerprint(spec, calibration),
        "max_seq_len": str(lengths.max_seq_len),
    }
    scored = {
        "evaluation": f"{_file_hash(spec.eval.text)}:{spec.eval.tokens}",
        "prompts": json.dumps([spec.system_prompt, spec.max_new_tokens, *spec.prompts]),
        "witness": _source_hash(_WITNESS_SOURCES),
    }
    own = {"mode": str(mode), "soc": soc.name, "target": str(target)}
    if mode is not Mode.KV:
        own["prefill_ar_len"] = str(lengths.prefill_ar_len)
    if mode is Mode.LOOKAHEAD:
        own["lookahead"] = f"ngram {lengths.ngram}, window {lengths.window}, gcap {lengths.gcap}"
    everything = {**shared, **own}
    key = _hash(everything)
    root = cache_root()
    reference = root / "references" / f"{spec.name}-{_hash({**shared, **scored})}"
    witness = [reference / WITNESS_FILE]
    if mode is Mode.LOOKAHEAD:
        witness.append(lookahead_file(reference, Settings(lengths.ngram, lengths.window, lengths.gcap)))
    return Artifact(
        key,
        root / "artifacts" / f"{spec.name}-{mode}-{soc.name}-{target}-{key}" / "model.pte",
        reference,
        everything,
        tuple(witness),
    )


@dataclass(frozen=True)
class Entry:
    """One artifact of the cache, as `htpfarm cache` shows it."""

    name: str
    megabytes: float
    made: str
    folder: str


def list_artifacts() -> list[Entry]:
    """Everything in the artifact cache, by name."""
    entries = []
    for folder in sorted((cache_root() / "artifacts").glob("*-*")):
        pte, manifest = folder / "model.pte", folder / "manifest.json"
        if pte.is_file() and manifest.is_file():
            made = str(json.loads(manifest.read_text(encoding="utf-8")).get("made", ""))
            entries.append(Entry(folder.name, round(pte.stat().st_size / 1e6, 2), made, str(folder)))
    return entries


def _hash(value: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _source_hash(names: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()


def _file_hash(path: Path) -> str:
    stat = path.stat()
    return _hash_once(str(path), stat.st_size, stat.st_mtime_ns)


@cache
def _hash_once(path: str, _size: int, _mtime_ns: int) -> str:
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
