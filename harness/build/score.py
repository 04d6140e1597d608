"""A model's texts as tokens, and their log-likelihood under any function that gives logits (float model, QDQ)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.build.materials import tokenizer_file
from harness.build.reference import Score
from harness.errors import ConfigError
from harness.models import ModelSpec
from harness.text.tokenizer import Tokenizer, load_tokenizer
from harness.text.windows import Window, rolling_windows

Logits = Callable[[list[int]], torch.Tensor]
"""Token ids → logits [len, vocab] float32, row i predicting token i + 1."""


@dataclass(frozen=True)
class PreparedText:
    """A model's texts as tokens.

    Attributes:
        tokenizer_file: the tokenizer, as the runner takes it.
        calibration: sequences of at most the context's length.
        windows: the held-out text, cut up.
        words: whitespace-separated words that the windows' targets spell.
    """

    tokenizer_file: Path
    calibration: list[list[int]]
    windows: tuple[Window, ...]
    words: int

    def score(self, logits: Logits) -> tuple[Score, tuple[float, ...]]:
        """Log-likelihood of the whole text under `logits`, and of each target, in nats."""
        each = [value for window in self.windows for value in log_likelihoods(logits, window)]
        return Score(math.fsum(each), len(each), self.words), tuple(round(value, 6) for value in each)


def prepare_text(spec: ModelSpec, context: int, scratch: Path) -> PreparedText:
    """Tokenises a model's held-out text and calibration text."""
    path = tokenizer_file(spec, scratch)
    tokenizer = load_tokenizer(path)
    # Some models know no BOS: their first window begins with EOS, as lm-eval does it.
    prefix = tokenizer.bos if tokenizer.bos is not None else tokenizer.eos
    if prefix is None:
        raise ConfigError("the tokenizer names neither BOS nor EOS", where=str(path))
    tokens = tokenizer.encode(spec.eval.text.read_text(encoding="utf-8"), bos=False)[: spec.eval.tokens]
    calibration = tokenizer.encode(spec.calibration.text.read_text(encoding="utf-8"), bos=False)
    step = context - 1
    samples = [
        [prefix, *calibration[start : start + step]]
        for start in range(0, min(len(calibration), spec.calibration.samples * step), step)
    ]
    return PreparedText(path, samples, rolling_windows(tokens, prefix, context), count_words(tokenizer, tokens))


def count_words(tokenizer: Tokenizer, tokens: Sequence[int]) -> int:
    """Whitespace-separated words that `tokens` spell: what word perplexity divides by."""
    pieces = (tokenizer.piece(before, token) for before, token in zip([-1, *tokens[:-1]], tokens, strict=True))
    return len(b"".join(pieces).decode("utf-8", errors="replace").split())


def log_likelihoods(logits: Logits, window: Window) -> list[float]:
    """ln p(target) of each target of one window, in float64."""
    scores = torch.log_softmax(logits(list(window.inputs)).double(), dim=-1)
    values: list[float] = scores.gather(1, torch.tensor(window.targets).unsqueeze(1))[:, 0].tolist()
    return values
