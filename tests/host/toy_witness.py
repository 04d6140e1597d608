"""A QDQ over a toy vocabulary, its witness, and phones that are it with something added: all numbers, no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from harness.build.testify import greedy_continuation
from harness.build.witness import Witness, WitnessText
from harness.runtime.sampling import log_softmax
from harness.runtime.score import TOP, TopRows, likeliest
from harness.text.windows import Window

VOCAB = 40
SPREAD = 0.1
"""Nats that random rounding moves a row by, of the toy witness."""
SURE = 3.0
"""Nats between QDQ's first and second choice, where nothing else is said."""

Floats = npt.NDArray[np.float64]
Logits = Callable[[Sequence[int]], Floats]


class ToyQdq:
    """Logits [n,V] after each token: random, a function of all the text before; tokens 0 and 1 are never likely.

    Args:
        gaps: number of tokens so far → nats between the first and the second choice after them.
        seed: another model.
    """

    def __init__(self, gaps: Mapping[int, float] | None = None, seed: int = 0) -> None:
        self.gaps, self.seed, self.calls = dict(gaps or {}), seed, 0

    def __call__(self, tokens: Sequence[int]) -> Floats:
        self.calls += 1
        rows, text = [], self.seed
        for count, token in enumerate(tokens, 1):
            text = (text * 1_000_003 + token + 1) % (1 << 61)
            rows.append(self._row(text, count))
        return np.stack(rows)

    def _row(self, text: int, count: int) -> Floats:
        values = np.random.Generator(np.random.SFC64(text)).normal(0, 1, VOCAB)
        values[:2] = -9
        second, first = np.argsort(values, kind="stable")[-2:]
        values[first] = values[second] + self.gaps.get(count, SURE)
        return values


class LoopQdq:
    """Is sure that each token is followed by the next one of 13: n-grams come again, so that lookahead finds them."""

    def __call__(self, tokens: Sequence[int]) -> Floats:
        rows = np.zeros((len(tokens), 13))
        for row, token in zip(rows, tokens, strict=True):
            row[(token + 1) % 13], row[(token + 2) % 13] = 2 * SURE, SURE
        return rows


def top_of(logits: Floats) -> TopRows:
    """What a runner reports of logits [n,V]."""
    values = log_softmax(logits)
    ids = likeliest(values, min(TOP, values.shape[1]))
    return TopRows(ids, np.take_along_axis(values, ids, axis=1))


def witness_text(
    qdq: Logits, inputs: Sequence[int], targets: Sequence[int], prompt: int = 0, spread: float = SPREAD
) -> WitnessText:
    """What QDQ says of a text, each row with the same spread."""
    values = log_softmax(qdq(inputs))
    top = top_of(values)
    each = values[np.arange(len(inputs)), list(targets)]
    spreads = np.full(len(inputs), spread)
    return WitnessText(prompt, tuple(inputs), tuple(targets), top.ids, top.logprobs, each, spreads, spreads)


def random_window(count: int, seed: int = 0) -> Window:
    """A window of a held-out text."""
    tokens = np.random.default_rng(seed).integers(0, VOCAB, count + 1).tolist()
    return Window(tuple(tokens[:-1]), tuple(tokens[1:]))


def toy_witness(
    qdq: Logits, windows: Sequence[Window] = (), prompts: Sequence[Sequence[int]] = (), new: int = 12
) -> Witness:
    """The witness of held-out windows and of prompts with QDQ's greedy continuation."""
    held_out = tuple(witness_text(qdq, window.inputs, window.targets) for window in windows)
    found = {}
    for prompt in prompts:
        text = [*prompt, *greedy_continuation(qdq, prompt, new)]
        found[tuple(prompt)] = witness_text(qdq, text[:-1], text[1:], len(prompt))
    return Witness(held_out, found)
