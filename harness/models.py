"""models/*.yaml and models/<name>/model.yaml → `ModelSpec`: what a model is, and how it is built, run and judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.config import Document, Problem, read_document
from harness.errors import ConfigError
from harness.model_file import Bounds, CheckpointFormat, Host, Lengths, Mode, ModelFile, Needs, Params, Published
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
    """Where the weights come from; `harness.weights` finds them.

    Attributes:
        format: how they are stored.
        path: the file or folder, absolute; None: in a package, or where weights are looked for.
        package: the module to import; for `gguf_package`.
        extra: the extra of htpfarm that installs it.
        source: where to get them; None: repo_id on the hub.
        qkv_blocks: for CodeGen: blocks that the rows of its fused q, v, k come in.
    """

    format: CheckpointFormat
    path: Path | None = None
    package: str | None = None
    extra: str | None = None
    source: str | None = None
    qkv_blocks: int | None = None


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer's kind and its file, absolute; no file when it comes with the weights."""

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
    published: Published | None = None
    host: Host | None = None

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

    @property
    def masked_softmax(self) -> bool:
        """Whether the model's recipe masks by QNN's masked softmax."""
        asked = self.recipe.masked_softmax
        return self.needs.masked_softmax if asked is None else asked

    @property
    def r3(self) -> bool:
        """Whether the model's recipe rotates queries and keys (SpinQuant's R3)."""
        asked = self.recipe.spinquant.r3
        return self.needs.r3 if asked is None else asked


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
            *("needs", "modes", "shards", "prompts", "max_new_tokens", "bounds", "published", "host"),
        )
    }
    return ModelSpec(
        file=path,
        checkpoint=Checkpoint(
            file.checkpoint.format,
            _resolve(path, file.checkpoint.path) if file.checkpoint.path else None,
            file.checkpoint.package,
            file.checkpoint.extra,
            file.checkpoint.source,
            file.checkpoint.qkv_blocks,
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

    `NAME_twin` is a model's twin, `all-twins` those of all models that have one, `family-twins` that of one model of
    each family; see `harness.twins`. They are made when they are first asked for. A name that ends with `.yaml` is
    the file of a model that is not among `models`.

    Raises:
        ConfigError: a model of that name is not known, or its file cannot be used or gives it a name that is taken.
        BuildError: a twin cannot be made.
    """
    if names is None:
        return tuple(models[name] for name in sorted(models))
    if not names:
        raise ConfigError("no model selected", remedy=f"known: {', '.join(sorted(models))}")
    found = {name: models[name] for name in models if name in names or "all" in names}
    others = [name for name in names if name not in models and name != "all" and not name.endswith(".yaml")]
    for model in [load_model(Path(name)) for name in names if name.endswith(".yaml")]:
        taken = models.get(model.name, found.get(model.name))
        if taken and taken.file != model.file:
            raise ConfigError(
                f"the name {model.name!r} is taken by {taken.file}", where=str(model.file), remedy="name it otherwise"
            )
        found[model.name] = model
    if any(name.endswith(("_twin", "-twins")) for name in others):
        from harness.twins import select_twins  # far to the right: only who asks for twins pays for them

        twins, others = select_twins(models, others)
        found.update((twin.name, twin) for twin in twins)
    for name in others:
        known = [*models, "all", "all-twins", "family-twins"]
        raise ConfigError(f"unknown model {name!r}", remedy=suggestion(name, known))
    return tuple(found[name] for name in sorted(found))


def _resolve(path: Path, relative: str) -> Path:
    return path.parent / Path(relative).expanduser()


def _problems(document: Document[ModelFile], path: Path) -> list[Problem]:
    file = document.value
    problems = recipe_problems(file.recipe, file.params)
    expected = path.parent.name if path.name == "model.yaml" else path.stem
    if file.name != expected:
        problems.append(Problem(("name",), f"is {file.name!r}, but the file's place says {expected!r}"))
    referenced: Iterable[tuple[tuple[str, str], str | None]] = (
        (("tokenizer", "path"), file.tokenizer.path),
        (("eval", "text"), file.eval.text),
        (("calibration", "text"), file.calibration.text if file.calibration else None),
    )
    for place, relative in referenced:
        if relative is not None and not _resolve(path, relative).is_file():
            problems.append(Problem(place, f"no such file: {_resolve(path, relative)}"))
    problems += _checkpoint_problems(file, path)
    if file.max_new_tokens >= file.lengths.max_seq_len:
        limit = file.lengths.max_seq_len
        problems.append(Problem(("max_new_tokens",), f"must be less than lengths.max_seq_len, which is {limit}"))
    if Mode.LOOKAHEAD in file.modes and (problem := file.lengths.value().problem(Mode.LOOKAHEAD)):
        problems.append(Problem(("lengths",), problem))
    trained = file.params.original_max_position_embeddings
    if trained is not None and file.lengths.max_seq_len > trained:
        problems.append(
            Problem(
                ("lengths",), f"beyond {trained} tokens LongRoPE has other frequencies, which upstream's graph has not"
            )
        )
    if file.shards > file.params.n_layers:
        problems.append(Problem(("shards",), f"is more than the {file.params.n_layers} layers there are"))
    repeated = sorted({mode.value for mode in file.modes if file.modes.count(mode) > 1})
    if repeated:
        problems.append(Problem(("modes",), f"{', '.join(repeated)} is there twice"))
    return problems


def _checkpoint_problems(file: ModelFile, path: Path) -> list[Problem]:
    checkpoint = file.checkpoint
    if checkpoint.path is None:
        return []
    weights, place = _resolve(path, checkpoint.path), ("checkpoint", "path")
    if not weights.exists():
        return [Problem(place, f"no such file: {weights}")]
    if checkpoint.format == "huggingface" and not weights.is_dir():
        return [Problem(place, f"must be the folder that holds config.json: {weights}")]
    if checkpoint.format in ("llama2c", "gguf") and not weights.is_file():
        return [Problem(place, f"must be a file: {weights}")]
    if checkpoint.format in ("meta", "llama2c") and weights.is_file() and file.tokenizer.path is None:
        message = f"the key path is missing: a {checkpoint.format} checkpoint brings no tokenizer"
        return [Problem(("tokenizer",), message)]
    return []
