"""The tokenizer file that the runner gets: the model's own, or the one its checkpoint's package carries."""

from __future__ import annotations

from pathlib import Path

from harness.build.checkpoint import checkpoint_file
from harness.models import ModelSpec


def tokenizer_file(spec: ModelSpec, scratch: Path) -> Path:
    """Path of the tokenizer; one that a GGUF file carries is written to `scratch` as `tokenizer.json`."""
    if spec.tokenizer.path is not None:
        return spec.tokenizer.path
    from transformers import AutoTokenizer

    gguf = checkpoint_file(spec)
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(str(scratch))
    return scratch / "tokenizer.json"
