"""Time to first token against prompt length: prefill takes a prompt in blocks of AR, so time goes up in steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from harness.farm.resident import Ready, Resident
from harness.results.records import Graph
from harness.runtime.program import KV_GRAPH, PREFILL_GRAPH

ROUNDS = 2
BUDGET_S = 20.0
"""No further length is begun after this: the simulator takes seconds a step where a phone takes milliseconds."""
STEP_LIMIT_S = 30.0
ANSWER_LIMIT_S = 60.0
_KV_LENGTHS = (1, 2, 4, 8, 16)


def prompt_lengths(ar_len: int, limit: int) -> tuple[int, ...]:
    """The lengths worth measuring, at most `limit`: the first and the last of each block; few where each token is one.

    Args:
        ar_len: tokens that one execution of the prompt's graph takes.
        limit: tokens that a prompt may have.
    """
    if ar_len == 1:
        return tuple(length for length in _KV_LENGTHS if length <= limit)
    blocks = range(1, -(-limit // ar_len) + 1)
    return tuple(
        sorted({min(length, limit) for block in blocks for length in ((block - 1) * ar_len + 1, block * ar_len)})
    )


def prompt_graph(ready: Ready) -> tuple[Graph, int]:
    """Which graph takes prompts, and its AR."""
    if PREFILL_GRAPH in ready.ar_len:
        return "prefill", ready.ar_len[PREFILL_GRAPH]
    return "kv", ready.ar_len[KV_GRAPH]


def measure_ttft(
    resident: Resident,
    text: Sequence[int],
    *,
    rounds: int = ROUNDS,
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[int, int, float, int]]:
    """Yields (prompt length in tokens, round from 0, TTFT in ms, the first token), round by round, each from an empty
    cache.

    Args:
        resident: the runner.
        text: token ids that prompts are made of; repeated if it is short.
        rounds: how often each length is measured.
        budget_s: see BUDGET_S; the first round's first two lengths are measured whatever they take.
        clock: seconds.

    Raises:
        HarnessError: as `Resident.generate`.
    """
    ready = resident.ready
    _, ar_len = prompt_graph(ready)
    lengths = prompt_lengths(ar_len, ready.context - ready.ar_len[KV_GRAPH])
    start = clock()
    for number in range(rounds):
        for place, length in enumerate(lengths):
            if clock() - start > budget_s and (number, place) > (0, 1):
                return
            prompt = [text[i % len(text)] for i in range(length)]
            limit = ANSWER_LIMIT_S + STEP_LIMIT_S * -(-length // ar_len)
            reply = resident.generate(prompt, max_new=1, timeout_s=limit)
            yield length, number, reply.ttft_ms, reply.tokens[0]
