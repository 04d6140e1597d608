"""models/*.yaml and models/<name>/model.yaml → `ModelSpec`: what a model is, and how it is built, run and judged."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.config import Document, Problem, read_document
from harness.errors import ConfigError
from harness.model_file import Bounds, Lengths, Mode, ModelFile, Needs, Params
from harness.recipes import UPSTREAM, Recipe, recipe_problems
from harness.soc import suggestion

__all__ = [
    "UPSTREAM",
    "Bounds",
    "Calibration",
    "Checkpoint",
    "Evaluation",
    "Lengths",
    "Mode",
    "ModelSpec",
    "Needs",
    "Params",
    "Recipe",
    "Tokenizer",
    "load_model",
    "load_models",
    "select",
]


@dataclass(frozen=True)
class Checkpoint:
    """Where the weights come from.

    Attributes:
        format: `meta` (a file torch loads) or `gguf_package`.
        path: the file, absolute; for `meta`.
        package: the module to import; for `gguf_package`.
        extra: the extra of htpfarm that installs it.
    """

    format: Literal["meta", "gguf_package"]
    path: Path | None
    package: str | None
    extra: str | None

    @property
    def installed(self) -> bool:
        """Whether the weights are there: always for `meta`, whose file was checked on loading."""
        return self.package is None or importlib.util.find_spec(self.package) is not None


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer's kind and its file, absolute; no file when it comes with the checkpoint's package."""

    kind: Literal["sentencepiece", "huggingface"]
    path: Path | None


@dataclass(frozen=True)
class Evaluation:
    """The held-out text file (absolute), and how many of its tokens to use: in all, and with the kv graph."""

    text: Path
    tokens: int
    kv_tokens: int


@dataclass(frozen=True)
class Calibration:
    """The calibration text file (absolute) and the number of samples to take."""

    text: Path
    samples: int


@dataclass(frozen=True)
class ModelSpec:
    """A model as the stages use it: one YAML file, checked, with absolute paths. Attributes as in `ModelFile`.

    Attributes:
        file: the YAML file it was read from, absolute.
    """

    file: Path
    name: str
    title: str
    decoder: str
    repo_id: str | None
    license: str
    params: Params
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    instruct: bool
    system_prompt: str | None
    recipe: Recipe
    needs: Needs
    modes: tuple[Mode, ...]
    lengths: Lengths
    shards: int
    eval: Evaluation
    calibration: Calibration | None
    prompts: tuple[str, ...]
    max_new_tokens: int
    bounds: Bounds

    @property
    def folder(self) -> Path:
        """The folder that relative paths in the file start from."""
        return self.file.parent

    @property
    def kv_bits(self) -> int:
        """Width of the KV cache in bits under the model's recipe."""
        return self.recipe.kv_bits or self.needs.kv_bits

    @property
    def lpbq(self) -> bool:
        """Whether the model's recipe quantises weights by blocks (LPBQ)."""
        return self.recipe.asks_lpbq(self.needs.lpbq)


def load_models(folder: Path) -> dict[str, ModelSpec]:
    """All models under `folder` (`<name>.yaml` and `<name>/model.yaml`) by name, sorted.

    Raises:
        ConfigError: no model there, a file that does not fit, a name that is not the file's, a file that is missing.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    for path in sorted(folder.glob("*/model.yaml")):
        if twin := files.get(path.parent.name):
            raise ConfigError(
                f"the model is there twice, also as {twin}", where=str(path), remedy="keep one of the two"
            )
        files[path.parent.name] = path
    if not files:
        raise ConfigError("no models here", where=str(folder), remedy="expected NAME.yaml or NAME/model.yaml")
    return {name: load_model(files[name]) for name in sorted(files)}


def load_model(path: Path) -> ModelSpec:
    """One model file; errors as in `load_models`."""
    document = read_document(path, ModelFile)
    path = path.absolute()
    if problems := _problems(document, path):
        raise document.refuse(problems)
    file = document.value
    same = {
        key: getattr(file, key)
        for key in (
            *("name", "title", "decoder", "repo_id", "license", "params", "instruct", "system_prompt", "recipe"),
            *("needs", "modes", "shards", "prompts", "max_new_tokens", "bounds"),
        )
    }
    return ModelSpec(
        file=path,
        checkpoint=Checkpoint(
            file.checkpoint.format,
            _resolve(path, file.checkpoint.path) if file.checkpoint.path else None,
            file.checkpoint.package,
            file.checkpoint.extra,
        ),
        tokenizer=Tokenizer(file.tokenizer.kind, _resolve(path, file.tokenizer.path) if file.tokenizer.path else None),
        lengths=file.lengths.value(),
        eval=Evaluation(_resolve(path, file.eval.text), file.eval.tokens, file.eval.kv_tokens or file.eval.tokens),
        calibration=Calibration(_resolve(path, file.calibration.text), file.calibration.samples)
        if file.calibration
        else None,
        **same,
    )


def select(models: Mapping[str, ModelSpec], names: Sequence[str] | None) -> tuple[ModelSpec, ...]:
    """The models of these names, sorted by name, each once; all of them for None or `all`.

    Raises:
        ConfigError: a model of that name is not known.
    """
    if names is None or "all" in names:
        return tuple(models[name] for name in sorted(models))
    for name in names:
        if name not in models:
            raise ConfigError(f"unknown model {name!r}", remedy=suggestion(name, models))
    if not names:
        raise ConfigError("no model selected", remedy=f"known: {', '.join(sorted(models))}")
    return tuple(models[name] for name in sorted(set(names)))


def _resolve(path: Path, relative: str) -> Path:
    return path.parent / Path(relative).expanduser()


def _problems(document: Document[ModelFile], path: Path) -> list[Problem]:
    file = document.value
    problems = recipe_problems(file.recipe, file.params)
    expected = path.parent.name if path.name == "model.yaml" else path.stem
    if file.name != expected:
        problems.append(Problem(("name",), f"is {file.name!r}, but the file's place says {expected!r}"))
    referenced: Iterable[tuple[tuple[str, str], str | None]] = (
        (("checkpoint", "path"), file.checkpoint.path),
        (("tokenizer", "path"), file.tokenizer.path),
        (("eval", "text"), file.eval.text),
        (("calibration", "text"), file.calibration.text if file.calibration else None),
    )
    for place, relative in referenced:
        if relative is not None and not _resolve(path, relative).is_file():
            problems.append(Problem(place, f"no such file: {_resolve(path, relative)}"))
    if file.checkpoint.format == "meta" and file.tokenizer.path is None:
        problems.append(Problem(("tokenizer",), "the key path is missing: a meta checkpoint brings no tokenizer"))
    if file.max_new_tokens >= file.lengths.max_seq_len:
        limit = file.lengths.max_seq_len
        problems.append(Problem(("max_new_tokens",), f"must be less than lengths.max_seq_len, which is {limit}"))
    if Mode.LOOKAHEAD in file.modes and (problem := file.lengths.value().problem(Mode.LOOKAHEAD)):
        problems.append(Problem(("lengths",), problem))
    if file.shards > file.params.n_layers:
        problems.append(Problem(("shards",), f"is more than the {file.params.n_layers} layers there are"))
    repeated = sorted({mode.value for mode in file.modes if file.modes.count(mode) > 1})
    if repeated:
        problems.append(Problem(("modes",), f"{', '.join(repeated)} is there twice"))
    return problems
