"""How near one ground's logits are to another's, over the same tokens."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def sqnr_db(reference: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> float:
    """10 log10 (Σ reference² / Σ (reference − other)²), in float64; infinite where they are equal."""
    exact = np.asarray(reference, dtype=np.float64)
    noise = float(np.square(exact - np.asarray(other, dtype=np.float64)).sum())
    return 10 * math.log10(float(np.square(exact).sum()) / noise) if noise else math.inf


def candidate_noise(reference: npt.NDArray[np.floating], other: npt.NDArray[np.floating], best: int = 10) -> float:
    """RMS of other − reference over the `best` likeliest tokens of each row, each row's mean taken off; nats.

    It is what moves one candidate against another. A log-likelihood's noise is less than that: most tokens of a text
    are hardly in doubt. Both arrays are [n, vocab]; infinite of no rows.
    """
    if not len(reference):
        return math.inf
    top = np.argsort(reference, axis=-1)[:, -best:]
    gaps = np.take_along_axis(np.asarray(other, dtype=np.float64) - reference, top, axis=-1)
    return float(np.sqrt(np.square(gaps - gaps.mean(axis=-1, keepdims=True)).mean()))
