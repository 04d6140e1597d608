"""The tokenizer file that the runner gets: the model's own, the one that lies with its weights, or a GGUF file's."""

from __future__ import annotations

from pathlib import Path

from harness.errors import ConfigError
from harness.models import ModelSpec
from harness.weights import find_weights


def tokenizer_file(spec: ModelSpec, scratch: Path) -> Path:
    """Path of the tokenizer; one that a GGUF file carries is written to `scratch` as `tokenizer.json`.

    Raises:
        ConfigError: there is none.
    """
    if spec.tokenizer.path is not None:
        return spec.tokenizer.path
    weights = find_weights(spec)
    if weights.tokenizer is not None:
        return weights.tokenizer
    if spec.checkpoint.format not in ("gguf", "gguf_package"):
        raise ConfigError(
            f"the tokenizer of {spec.name} is not there",
            where=str(weights.folder),
            remedy="put tokenizer.json (or SentencePiece's tokenizer.model) beside the weights, or name it in the "
            "model's file: tokenizer: path",
        )
    from transformers import AutoTokenizer

    gguf = weights.files[0]
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(str(scratch))
    return scratch / "tokenizer.json"
