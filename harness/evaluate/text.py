"""Is the phone's text right? Every token it chose is held against QDQ's logits after the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.runtime.reference import Difference, QdqReference, difference

Witness = Callable[[Sequence[int]], npt.NDArray[np.float64]]
"""Token ids → the logits [V] after them, by another graph of the phone's `.pte`."""


@dataclass(frozen=True)
class TextReport:
    """One reply of a phone against QDQ.

    Attributes:
        compared: tokens compared.
        near_ties: tokens that differ where QDQ's logits of both are nearly equal: within six times the noise.
        vouched: tokens that differ by more, but which the witness chose as well, or nearly.
        mismatches: tokens that differ otherwise: the phone is wrong.
    """

    compared: int
    near_ties: tuple[Difference, ...]
    vouched: tuple[Difference, ...]
    mismatches: tuple[Difference, ...]


LEAST_TIE_STEPS = 2.0
"""The last step of each of two quantised logits."""
NOISE_MULTIPLE = 6.0
"""A near tie spans so many times the noise of a logit (`sqnr.candidate_noise`): the difference of two has √2 of it, so
that is 4.2 standard deviations of what noise does to a gap. Errors of quantised activations have long tails."""


def check_text(
    reference: QdqReference,
    prompt: Sequence[int],
    tokens: Sequence[int],
    logits_scale: float,
    noise: float,
    witness: Witness | None = None,
) -> TextReport:
    """Compares a greedy reply with QDQ, token by token, in one pass of the QDQ graph.

    The prefix of each position is the phone's own text, so one wrong choice does not hide behind another.

    Args:
        reference: the QDQ module.
        prompt: what was fed, BOS included.
        tokens: the reply; with the prompt at most one more than the context.
        logits_scale: one step of the quantised logits.
        noise: RMS by which the phone's logits of likely tokens differ from QDQ's, in nats, on the held-out text.
        witness: asked where the phone and QDQ part by more than a near tie. For lookahead, which promises kv's tokens
            and not QDQ's: a single logit may be further from QDQ's than any multiple of the RMS, and then the other
            graph of the `.pte` says so.
    """
    tie_steps = max(LEAST_TIE_STEPS, NOISE_MULTIPLE * noise / logits_scale)
    rows = reference.run([*prompt, *tokens[:-1]]).logits[len(prompt) - 1 :]
    differences = []
    for index, (row, got) in enumerate(zip(rows, tokens, strict=True)):
        best = int(row.argmax())
        if got != best:
            differences.append(difference(index, got, best, row / logits_scale, tie_steps))
    ties = tuple(d for d in differences if d.near_tie)
    far = [d for d in differences if not d.near_tie]

    def borne_out(found: Difference) -> bool:
        if witness is None:
            return False
        row = witness([*prompt, *tokens[: found.index]])
        best = int(row.argmax())
        return found.got == best or difference(0, found.got, best, row / logits_scale, tie_steps).near_tie

    vouched = tuple(d for d in far if borne_out(d))
    return TextReport(len(tokens), ties, vouched, tuple(d for d in far if d not in vouched))


def describe(difference: Difference) -> str:
    """A mismatch in words."""
    return (
        f"token {difference.index}: the phone chose {difference.got}, QDQ {difference.expected}, "
        f"{difference.token_gap:.1f} quantisation steps apart in QDQ's logits"
    )
