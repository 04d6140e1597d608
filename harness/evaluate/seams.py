"""Which legs a cell walks so that every graph and every seam is scored: the plan, pure.

A seam is where one thing ends and another goes on: prefill hands its cache to decode (at a block's end, one before, one
after, and deeper), the cache is rewound and goes on over what was there, the context ends. What is scored on the far
side of a seam is wrong if anything was lost at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.runtime.score import Leg
from harness.text.windows import Window

SPAN = 2
"""Decode steps after a handover that lies beyond the tokens that decode scores anyway: the first is decided by the
last column that was handed over, the second by the first column after it."""
JUNK = 3
"""Tokens of another text that are fed and forgotten again before decode goes on."""


@dataclass(frozen=True)
class Stage:
    """A leg, and what its rows are rows of.

    Attributes:
        leg: what is walked.
        window: number of the witness's held-out window; rows of it start at `leg.keep`.
        where: in words.
        counted: whether its targets belong to the graph's perplexity: each token once, in the text's order.
    """

    leg: Leg
    window: int
    where: str
    counted: bool = True


def prefill_stages(windows: Sequence[Window], first: int = 0) -> list[Stage]:
    """The prefill graph over windows of the held-out text, one after the other, from empty caches.

    Args:
        windows: to score.
        first: number of the first of them.
    """
    return [
        Stage(Leg(0, "prefill", window.inputs, window.targets), number, f"window {number} of the held-out text")
        for number, window in enumerate(windows, first)
    ]


def decode_stages(
    windows: Sequence[Window],
    first: int = 0,
    *,
    whole: Window,
    context: int,
    prefill_ar: int | None,
    decode_ar: int,
) -> list[Stage]:
    """The decode graph over windows of the held-out text; the text's first one in parts that begin behind seams.

    Args:
        windows: to score; every token of them once.
        first: number of the first of them.
        whole: the text's first window to its end: handovers may lie beyond what is scored of it.
        context: CL.
        prefill_ar: AR of the prefill graph; None in kv mode, which has none.
        decode_ar: AR of the decode graph: 1, or in lookahead the rows of a step, which then take consecutive tokens.
    """
    stages: list[Stage] = []
    for number, window in enumerate(windows, first):
        if prefill_ar is None or number:
            stages += _straight(number, window, context, decode_ar)
        else:
            stages += _handed_over(whole, len(window.inputs), context, prefill_ar, decode_ar)
    return stages


def continuation_legs(text: Window, start: int, *, prefill: bool) -> list[Leg]:
    """The decode graph over QDQ's own continuation of a prompt, from input `start` on; the last leg has the rows.

    Args:
        text: prompt and continuation.
        start: at least 1: what stands before goes through the graph that takes prompts.
        prefill: whether that is the prefill graph.
    """
    before = Leg(0, "prefill" if prefill else "kv", text.inputs[:start])
    return [before, Leg(start, "kv", text.inputs[start:], text.targets[start:])]


def handover_depths(context: int, prefill_ar: int, decode_ar: int) -> tuple[int, ...]:
    """Prompt lengths after which decode takes over: around a block's end, deeper, and near the context's end."""
    deepest = context - decode_ar
    wanted = (prefill_ar - 1, prefill_ar, prefill_ar + 1, 2 * prefill_ar + 1, deepest - 1, deepest)
    return tuple(sorted({depth for depth in wanted if 0 < depth <= deepest}))


def _straight(number: int, window: Window, context: int, decode_ar: int) -> list[Stage]:
    """From an empty cache to the end, but for a rewind half way: other tokens are fed there and forgotten.

    Where half of the window is more than the decode graph's cache holds, the rewind is to the cache's end.
    """
    size = len(window.inputs)
    half = min(size // 2, context - decode_ar)
    name = f"window {number} of the held-out text"
    if half < JUNK:
        return [Stage(_leg(window, 0, size), number, name)]
    return [
        Stage(_leg(window, 0, half), number, name),
        Stage(Leg(half, "kv", _junk(window, half, context)), number, "forgotten tokens", counted=False),
        Stage(_leg(window, half, size), number, f"{name}, after a rewind to {half}"),
    ]


def _handed_over(window: Window, count: int, context: int, prefill_ar: int, decode_ar: int) -> list[Stage]:
    """Decode from an empty cache up to the first handover, then from handover to handover."""
    size = len(window.inputs)
    depths = [depth for depth in handover_depths(context, prefill_ar, decode_ar) if depth < size]
    # In lookahead a step takes `decode_ar` tokens at once: the text's beginning is scored by itself.
    inside = [] if decode_ar > 1 else [depth for depth in depths if depth < count]
    stages = [Stage(_leg(window, 0, inside[0] if inside else count), 0, "held-out text from an empty cache")]
    for number, depth in enumerate(depths):
        if depth in inside:
            end = next((later for later in inside if later > depth), count)
        else:
            end = min(size, depth + (decode_ar if decode_ar > 1 else SPAN))
        prompt = Leg(0, "prefill", window.inputs[:depth], window.targets[:depth])
        stages.append(Stage(prompt, 0, f"a prompt of {depth}", counted=False))
        where = f"after the handover at {depth}"
        if number == 0:
            stages.append(Stage(Leg(depth, "kv", _junk(window, depth, context)), 0, "forgotten tokens", counted=False))
            where += " and a rewind to it"
        stages.append(Stage(_leg(window, depth, end), 0, where, counted=depth in inside))
    return stages


def _leg(window: Window, start: int, end: int) -> Leg:
    return Leg(start, "kv", window.inputs[start:end], window.targets[start:end])


def _junk(window: Window, place: int, context: int) -> tuple[int, ...]:
    """Tokens that the text does not have at a place; as many as the context has room for."""
    others = [token for token in dict.fromkeys(window.inputs) if token != window.inputs[place]]
    return tuple((others or list(window.inputs))[: min(JUNK, context - place)])
