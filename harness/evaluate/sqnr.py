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
