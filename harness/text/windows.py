"""Cuts a text's tokens into scoring windows: the same ones for the float model, QDQ and the phone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """`inputs[i]` is fed, `targets[i]` is what should follow it. Both are token ids and equally long."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]


def rolling_windows(tokens: Sequence[int], prefix: int, context: int) -> tuple[Window, ...]:
    """Disjoint windows in which every token is predicted exactly once, with at most `context` inputs each.

    The algorithm is lm-eval's `get_rolling_token_windows` with `context_len=1`, so that perplexities compare: the
    first window begins with `prefix` (BOS), each later one with the last token of the one before. One difference:
    lm-eval widens a last, shorter window to the left; here it stays short. Where the number of tokens is a multiple
    of the context the two are the same.

    Args:
        tokens: the text, without BOS.
        prefix: the token fed before the first.
        context: inputs of a window at most; at least 1.
    """
    if context < 1:
        raise ValueError("a window needs a context of at least one token")
    fed = [prefix, *tokens[:-1]]
    return tuple(
        Window(tuple(fed[start : start + context]), tuple(tokens[start : start + context]))
        for start in range(0, len(tokens), context)
    )
