"""The float model and QDQ as scorers: a whole-context graph that torch runs on the host."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from harness.errors import ConfigError
from harness.runtime.reference import QdqReference
from harness.runtime.sampling import greedy, log_softmax
from harness.runtime.score import WindowScore
from harness.text.windows import Window


class HostScorer:
    """A saved calibration graph: `decode_qdq.pt2`, or the same graph before quantisation, `decode_fp.pt2`.

    The graph takes a whole context at once, so one pass scores a window, and one pass generates a token.

    Args:
        path: the file.
        window: width of the model's sliding window; None without one.
        threads: torch's threads within a pass. On a computer whose cores are busy a second one makes a pass of a small
            graph ten times slower: each of its hundreds of operators waits for both.

    Attributes:
        module: the graph.

    Raises:
        ConfigError: no such file, or another graph.
    """

    def __init__(self, path: Path, window: int | None = None, *, threads: int = 1) -> None:
        self._path = path
        self._threads = threads
        self.module = QdqReference(path, window)

    @property
    def context(self) -> int:
        """See `Scorer`."""
        return self.module.context_len

    @property
    def vocab(self) -> int:
        """See `Scorer`."""
        return self.module.vocab

    def score(self, windows: Sequence[Window]) -> list[WindowScore]:
        """See `Scorer`; a step is one pass of the graph over the whole context.

        Raises:
            ConfigError: a window that does not fit.
        """
        for number, window in enumerate(windows):
            if len(window.inputs) != len(window.targets):
                raise ConfigError("as many inputs as targets were expected", where=f"windows[{number}]")
            self._check((*window.inputs, *window.targets), len(window.inputs), f"windows[{number}]")
        with torch_threads(self._threads):
            return [self._score(window) for window in windows]

    def _score(self, window: Window) -> WindowScore:
        start = time.perf_counter()
        logits = self.module.run(window.inputs).logits
        targets = np.asarray(window.targets)
        each = np.take_along_axis(log_softmax(logits), targets[:, None], axis=1)[:, 0]
        hits = logits.argmax(axis=1) == targets
        seconds = time.perf_counter() - start
        return WindowScore(tuple(float(x) for x in each), tuple(bool(hit) for hit in hits), 1, seconds)

    def generate(self, prompt: Sequence[int], max_new: int, stop: Collection[int]) -> list[int]:
        """See `Scorer`; ends where the context does.

        Raises:
            ConfigError: a prompt that is empty or longer than the context.
        """
        self._check(prompt, len(prompt), "prompt")
        tokens = list(prompt)
        with torch_threads(self._threads):
            for _ in range(min(max_new, self.context - len(prompt) + 1)):
                tokens.append(greedy(self.module.run(tokens).logits[-1]))
                if tokens[-1] in stop:
                    break
        return tokens[len(prompt) :]

    def _check(self, tokens: Sequence[int], length: int, where: str) -> None:
        place = f"{self._path.name}: {where}"
        if not 1 <= length <= self.context:
            raise ConfigError(f"{length} tokens, but the context takes 1 to {self.context}", where=place)
        if bad := [token for token in tokens if not 0 <= token < self.vocab]:
            raise ConfigError(f"token {bad[0]} is outside the vocabulary of {self.vocab}", where=place)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """The number is the process's: it is given back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
