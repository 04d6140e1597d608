"""A model's texts as tokens, and their log-likelihood under any function that gives logits (float model, QDQ)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.build.calibration import MODELS_OWN, CalibrationChoice, calibration_sequences
from harness.build.materials import tokenizer_file
from harness.models import ModelSpec
from harness.text.fed import fed_tokens
from harness.text.heldout import HeldOut, held_out
from harness.text.tokenizer import load_tokenizer
from harness.text.windows import Window

WITNESSED, WITNESSED_WINDOWS = 2, 8
"""So many times the held-out text that a cell scores at first, and so many windows of the context at least: what is
grey is decided by the rest."""

Logits = Callable[[list[int]], torch.Tensor]
"""Token ids → logits [len, vocab] float32, row i predicting token i + 1."""


@dataclass(frozen=True)
class PreparedText:
    """A model's texts as tokens.

    Attributes:
        tokenizer_file: the tokenizer, as the runner takes it.
        calibration: sequences of at most the context's length.
        held_out: the held-out text, cut up.
        witnessed: the windows that the witness speaks of: the held-out text and as much again, where it has that.
        prompts: the tokens that a runner feeds for each of the model's prompts, template and BOS included.
    """

    tokenizer_file: Path
    calibration: list[list[int]]
    held_out: HeldOut
    witnessed: tuple[Window, ...]
    prompts: tuple[tuple[int, ...], ...]

    def score(self, logits: Logits) -> tuple[float, ...]:
        """Log-likelihood of each target of the held-out text under `logits`, in nats."""
        return tuple(round(value, 6) for window in self.held_out.windows for value in log_likelihoods(logits, window))


def prepare_text(
    spec: ModelSpec, context: int, scratch: Path, calibration: CalibrationChoice = MODELS_OWN
) -> PreparedText:
    """Tokenises a model's held-out text, and what it is calibrated with."""
    path = tokenizer_file(spec, scratch)
    tokenizer = load_tokenizer(path)
    words = spec.eval.text.read_text(encoding="utf-8")
    text = held_out(tokenizer, words, spec.eval.tokens, context)
    more = held_out(tokenizer, words, max(WITNESSED * spec.eval.tokens, WITNESSED_WINDOWS * context), context)
    prompts = tuple(tuple(fed_tokens(spec, load_tokenizer(path, as_runner=True), prompt)) for prompt in spec.prompts)
    calibrate = calibration_sequences(spec, tokenizer, calibration, context, path)
    return PreparedText(path, calibrate, text, more.windows, prompts)


def log_likelihoods(logits: Logits, window: Window) -> list[float]:
    """ln p(target) of each target of one window, in float64."""
    scores = torch.log_softmax(logits(list(window.inputs)).double(), dim=-1)
    values: list[float] = scores.gather(1, torch.tensor(window.targets).unsqueeze(1))[:, 0].tolist()
    return values
