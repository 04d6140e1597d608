"""Where a model's weights are on this computer: the files a build reads, or what to download and where to put it.

Looked at in this order: the path in the model's file; the package that carries them; the model's folder under
`harness.paths.weights_root`; for Hugging Face's format the hub's local cache of `repo_id`. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ConfigError
from harness.model_file import CheckpointFormat
from harness.models import ModelSpec
from harness.paths import weights_root

_WANTED: dict[CheckpointFormat, str] = {
    "huggingface": "config.json, tokenizer.json, and *.safetensors (or pytorch_model*.bin) with their index",
    "meta": "consolidated.*.pth, params.json, and tokenizer.json or tokenizer.model",
    "llama2c": "one .pt file, and tokenizer.model",
    "gguf": "one .gguf file",
}
_PATTERNS: dict[CheckpointFormat, tuple[str, ...]] = {
    # Of several kinds in one folder the first counts: repositories carry the same weights twice.
    "huggingface": ("*.safetensors", "pytorch_model*.bin"),
    "meta": ("consolidated.*.pth",),
    "llama2c": ("*.pt",),
    "gguf": ("*.gguf",),
}
_BESIDE = ("config.json", "params.json", "model.safetensors.index.json", "pytorch_model.bin.index.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer.bin")
# Parts of what some repositories hold beside the model: Meta's own format, adapters, optimizer states.
_NOT_MODEL = ("consolidated", "adapter_model", "optimizer", "training_args")


@dataclass(frozen=True)
class Weights:
    """The files of a checkpoint, absolute.

    Attributes:
        folder: that they lie in.
        files: that hold tensors, sorted by name.
        beside: descriptions that belong to them: configuration, parameters, index.
        tokenizer: the tokenizer that lies with them; None where there is none, or where a GGUF file carries it.
    """

    folder: Path
    files: tuple[Path, ...]
    beside: tuple[Path, ...] = ()
    tokenizer: Path | None = None

    def named(self, name: str) -> Path | None:
        """The description of that name, if it is there."""
        return next((path for path in self.beside if path.name == name), None)


def find_weights(spec: ModelSpec) -> Weights:
    """The files that hold a model's weights.

    Raises:
        ConfigError: they are not here; says what to download and where to put it.
    """
    checkpoint = spec.checkpoint
    if checkpoint.format == "gguf_package":
        return _packaged(spec)
    if checkpoint.path is not None and checkpoint.path.is_file():
        return Weights(checkpoint.path.parent, (checkpoint.path,))
    places = [checkpoint.path] if checkpoint.path else [weights_root() / spec.name, *_cached(spec)]
    for place in places:
        if found := _in_folder(place, checkpoint.format):
            return found
    raise ConfigError(
        f"the weights of {spec.name} are not on this computer",
        where=str(spec.file),
        remedy=_remedy(spec),
        evidence="looked in " + ", ".join(map(str, places)),
    )


def have_weights(spec: ModelSpec) -> bool:
    """Whether a model's weights are on this computer."""
    try:
        find_weights(spec)
    except ConfigError:
        return False
    return True


def _in_folder(folder: Path, kind: CheckpointFormat) -> Weights | None:
    left_out = _NOT_MODEL if kind == "huggingface" else ()
    for pattern in _PATTERNS[kind]:
        if files := tuple(path for path in sorted(folder.glob(pattern)) if not path.name.startswith(left_out)):
            beside = tuple(folder / name for name in _BESIDE if (folder / name).is_file())
            tokenizer = next((folder / name for name in _TOKENIZERS if (folder / name).is_file()), None)
            return Weights(folder, files, beside, tokenizer)
    return None


def _cached(spec: ModelSpec) -> list[Path]:
    """The hub's local copy of the repository, where there is one."""
    if spec.checkpoint.format != "huggingface" or spec.repo_id is None:
        return []
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(spec.repo_id, "config.json")
    return [Path(config).parent] if isinstance(config, str) else []


def _remedy(spec: ModelSpec) -> str:
    checkpoint = spec.checkpoint
    folder = checkpoint.path or weights_root() / spec.name
    source = checkpoint.source or f"https://huggingface.co/{spec.repo_id}"
    wanted = _WANTED[checkpoint.format]
    text = f"download from {source} and put into {folder}: {wanted}"
    if checkpoint.format == "huggingface" and spec.repo_id and checkpoint.path is None:
        text += f" (or let the hub's cache have it: hf download {spec.repo_id})"
    return f"{text}; or name another folder in the model's file: checkpoint: path"


def _packaged(spec: ModelSpec) -> Weights:
    package = spec.checkpoint.package or ""
    found = importlib.util.find_spec(package)
    extra = f"[{spec.checkpoint.extra}]" if spec.checkpoint.extra else ""
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"the weights of {spec.name} come with the Python package {package}, which is not installed",
            where=str(spec.file),
            remedy=f"pip install 'htpfarm{extra}'" if extra else f"pip install {package.replace('_', '-')}",
        )
    files = sorted(Path(next(iter(found.submodule_search_locations))).glob("*.gguf"))
    if len(files) != 1:
        raise ConfigError(
            f"the package {package} holds {len(files)} GGUF files, expected one",
            where=str(spec.file),
            remedy="install the version that the extra pins",
        )
    return Weights(files[0].parent, (files[0],))
