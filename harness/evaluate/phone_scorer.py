"""A phone's graphs as scorers, through a runner that stays. `stock_scorer` is the way without one."""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from harness.errors import ConfigError, ProductError
from harness.farm.resident import Resident
from harness.runtime.program import KV_GRAPH, PREFILL_GRAPH
from harness.runtime.sampling import dequantise
from harness.runtime.score import (
    GraphChoice,
    Leg,
    LegScore,
    WindowScore,
    legs_json,
    parse_scores,
    parse_walk,
    request_json,
)
from harness.text.windows import Window

STEP_LIMIT_S = 30.0
"""The simulator takes seconds a step with a large vocabulary, a phone milliseconds: a limit, not an expectation."""
ANSWER_LIMIT_S = 60.0
CHUNK_STEPS = 64
"""Steps asked for at once: enough for the way there and back not to count, few enough to show progress."""

Progress = Callable[[int, int], None]
"""Called with the windows scored so far and all of them."""


def walk(
    resident: Resident,
    legs: Sequence[Leg],
    *,
    progress: Progress | None = None,
    step_limit_s: float = STEP_LIMIT_S,
) -> list[LegScore]:
    """Walks through a text on the phone; see `harness.runtime.score.walk`.

    Args:
        resident: the runner, ready.
        legs: at least one; the first keeps nothing.
        progress: told the legs walked so far, and all.
        step_limit_s: seconds a step may take.

    Raises:
        ProductError: the answer has another form, or a number in it is not finite.
        HarnessError: as `Resident.request`.
    """
    results: list[LegScore] = []
    for chunk in _walks(legs):
        steps = sum(len(leg.inputs) for leg in chunk)
        answer = resident.request("walk", timeout_s=ANSWER_LIMIT_S + steps * step_limit_s, legs=legs_json(chunk))
        try:
            found = parse_walk(answer["legs"])
            if len(found) != len(chunk):
                raise ValueError(f"{len(found)} legs of {len(chunk)}")
        except (KeyError, TypeError, ValueError) as error:
            raise ProductError(f"the runner's scores have another form: {error}", where="walk") from None
        results += found
        if progress:
            progress(len(results), len(legs))
    return results


def _walks(legs: Sequence[Leg]) -> Iterator[list[Leg]]:
    """Runs of legs of about CHUNK_STEPS tokens; each begins with a leg that keeps nothing."""
    chunk: list[Leg] = []
    for leg in legs:
        if chunk and leg.keep == 0 and sum(len(one.inputs) for one in chunk) >= CHUNK_STEPS:
            yield chunk
            chunk = []
        chunk.append(leg)
    if chunk:
        yield chunk


class PhoneScorer:
    """One graph of a .pte on a phone; log-likelihoods come back, logits do not.

    Args:
        resident: the runner, ready.
        graph: `kv` scores token by token, `prefill` in blocks of AR, which costs about a step each.
        progress: told after each chunk of windows.
        step_limit_s: seconds a step may take.

    Raises:
        ConfigError: the .pte has no such graph, or one that cannot score (kv in lookahead mode).
    """

    def __init__(
        self,
        resident: Resident,
        graph: GraphChoice,
        *,
        progress: Progress | None = None,
        step_limit_s: float = STEP_LIMIT_S,
    ) -> None:
        self._resident = resident
        self._graph = graph
        self._progress = progress or (lambda _done, _total: None)
        self._step_limit_s = step_limit_s
        ar_len = resident.ready.ar_len.get(KV_GRAPH if graph == "kv" else PREFILL_GRAPH)
        if ar_len is None or (graph == "kv" and ar_len != 1):
            raise ConfigError(
                f"the {graph} graph of a .pte in {resident.ready.mode} mode cannot score",
                where="graph",
                remedy='score with "prefill" in hybrid and lookahead mode, with "kv" in kv and hybrid mode',
            )
        self._ar_len = ar_len

    @property
    def context(self) -> int:
        """See `Scorer`."""
        return self._resident.ready.context

    @property
    def vocab(self) -> int:
        """See `Scorer`."""
        return self._resident.ready.vocab

    def score(self, windows: Sequence[Window]) -> list[WindowScore]:
        """See `Scorer`. Raises as `Resident.request`."""
        results: list[WindowScore] = []
        for chunk, steps in self._chunks(windows):
            answer = self._resident.request(
                "score", timeout_s=ANSWER_LIMIT_S + steps * self._step_limit_s, **request_json(chunk, self._graph)
            )
            try:
                scores = parse_scores(answer["windows"])
                lengths = [len(score.logprobs) for score in scores]
                if lengths != [len(window.targets) for window in chunk]:
                    raise ValueError(f"scores of {lengths} tokens")
            except (KeyError, TypeError, ValueError) as error:
                raise ProductError(f"the runner's scores have another form: {error}", where="score") from None
            results += scores
            self._progress(len(results), len(windows))
        return results

    def logits(self, tokens: Sequence[int], last: int | None = None) -> npt.NDArray[np.float64]:
        """Logits [n, vocab] after each token, or after each of the `last` ones, from an empty cache, dequantised.

        Raises as `Resident.request`.
        """
        rows = len(tokens) if last is None else last
        limit = ANSWER_LIMIT_S + len(tokens) * self._step_limit_s
        answer = self._resident.request("logits", timeout_s=limit, graph=self._graph, tokens=list(tokens), last=rows)
        try:
            raw = np.frombuffer(base64.b64decode(answer["logits"]), dtype=answer["dtype"])
            if not np.isfinite(raw).all():
                raise ValueError("a logit that is no number")
            return dequantise(raw.reshape(rows, self.vocab), float(answer["scale"]), int(answer["zero_point"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ProductError(f"the runner's logits have another form: {error}", where="logits") from None

    def generate(self, prompt: Sequence[int], max_new: int, stop: Collection[int]) -> list[int]:
        """See `Scorer`; ends where the context does, and takes the mode's own way. Raises as `Resident.generate`."""
        limit = ANSWER_LIMIT_S + (len(prompt) + max_new) * self._step_limit_s
        return list(self._resident.generate(prompt, max_new=max_new, stop=stop, timeout_s=limit).tokens)

    def _chunks(self, windows: Sequence[Window]) -> Iterator[tuple[list[Window], int]]:
        """Runs of windows that take about CHUNK_STEPS steps together, and those steps."""
        chunk: list[Window] = []
        steps = 0
        for window in windows:
            chunk.append(window)
            steps += -(-len(window.inputs) // self._ar_len)
            if steps >= CHUNK_STEPS:
                yield chunk, steps
                chunk, steps = [], 0
        if chunk:
            yield chunk, steps
