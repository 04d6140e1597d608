"""Choosing a token from one row of logits.

qnn_llama_runner divides *undequantised* integer logits by the temperature, so that its temperature depends on a
quantisation scale; here they are dequantised first, and a temperature means what it means elsewhere. Greedy is the
same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Row = npt.NDArray[np.generic]
Choose = Callable[[Row], int]

TOP_P = 0.9
"""`kTopp` of ExecuTorch's runners."""


def dequantise(raw: Row, scale: float, zero_point: int) -> npt.NDArray[np.float64]:
    """Logits as float64: (raw − zero point) × scale. Any shape."""
    return (raw.astype(np.float64) - zero_point) * scale


def greedy(raw: Row) -> int:
    """The index of the largest raw logit [V], the lowest one of equals (as upstream's sampler)."""
    return int(np.argmax(raw))


def sampler(temperature: float, scale: float, zero_point: int, seed: int, top_p: float = TOP_P) -> Choose:
    """Greedy for temperature 0, else nucleus sampling of the dequantised logits / temperature.

    Args:
        temperature: at least 0.
        scale, zero_point: encoding of the raw logits.
        seed: of the random numbers; each sampler draws its own sequence.
        top_p: the smallest set of tokens whose probabilities sum to more than this is sampled from.
    """
    if temperature < 0 or not np.isfinite(temperature):
        raise ValueError(f"temperature {temperature} is not a number from 0 up")
    if temperature == 0:
        return greedy
    generator = np.random.default_rng(seed)

    def choose(raw: Row) -> int:
        probabilities = softmax(dequantise(raw, scale, zero_point) / temperature)
        order = np.argsort(-probabilities, kind="stable")
        cumulative = np.cumsum(probabilities[order])
        count = min(int(np.searchsorted(cumulative, top_p, side="right")) + 1, len(order))
        coin = generator.random() * cumulative[count - 1]
        return int(order[min(int(np.searchsorted(cumulative[:count], coin, side="right")), count - 1)])

    return choose


def softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Probabilities over the last dimension."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Log-probabilities over the last dimension."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
