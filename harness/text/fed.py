"""The tokens that a runner feeds for a prompt: chat template, system text and BOS included."""

from __future__ import annotations

from harness.models import ModelSpec
from harness.text.decoders import VERSIONS
from harness.text.templates import find_template, format_prompt
from harness.text.tokenizer import Tokenizer


def formatted(model: ModelSpec, prompt: str) -> str:
    """The turn's text, as the runner formats it and echoes it to outputs.txt."""
    return format_prompt(find_template(VERSIONS[model.decoder]), prompt, model.system_prompt or "")


def fed_tokens(model: ModelSpec, tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Token ids of a first turn.

    Args:
        tokenizer: the model's, as the runner has it (`load_tokenizer(…, as_runner=True)`).
    """
    return tokenizer.encode(formatted(model, prompt), bos=True)
