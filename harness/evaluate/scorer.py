"""What can be asked for log-likelihoods and greedy text: the float model, QDQ, and a phone's graphs, all alike."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from harness.runtime.score import WindowScore
from harness.text.windows import Window


class Scorer(Protocol):
    """One ground (FP, QDQ or a phone) through one graph."""

    @property
    def context(self) -> int:
        """Inputs that a window may have at most."""
        ...

    @property
    def vocab(self) -> int:
        """Token ids are below this."""
        ...

    def score(self, windows: Sequence[Window]) -> list[WindowScore]:
        """Log-likelihood of each window's targets, each window from an empty context. Raises HarnessError."""
        ...

    def generate(self, prompt: Sequence[int], max_new: int, stop: Collection[int]) -> list[int]:
        """Greedy continuation of at most `max_new` tokens, ending with the first token of `stop`."""
        ...
