"""Greedy works on raw logits; a temperature on dequantised ones."""

from __future__ import annotations

import numpy as np
import pytest

from harness.runtime.sampling import greedy, log_softmax, sampler, softmax


def test_greedy_takes_the_first_of_equals() -> None:
    assert greedy(np.array([3, 65535, 7, 65535], np.uint16)) == 1


def test_temperature_zero_is_greedy() -> None:
    assert sampler(0.0, 0.1, 5, seed=1) is greedy


def test_frequencies_follow_the_dequantised_distribution() -> None:
    raw = np.array([110, 100, 90, 0], np.uint16)
    choose = sampler(2.0, 0.1, 50, seed=7, top_p=1.0)
    counts = np.bincount([choose(raw) for _ in range(20_000)], minlength=4) / 20_000
    expected = softmax((raw.astype(float) - 50) * 0.1 / 2.0)
    np.testing.assert_allclose(counts, expected, atol=0.015)


def test_the_encoding_matters() -> None:
    # Undequantised, a gap of 10 steps at temperature 1 would all but exclude the second token.
    raw = np.array([110, 100], np.uint16)
    choose = sampler(1.0, 0.01, 0, seed=3, top_p=1.0)
    assert 0.4 < np.mean([choose(raw) for _ in range(2000)]) < 0.55


def test_top_p_cuts_the_tail() -> None:
    raw = np.log(np.array([0.5, 0.3, 0.15, 0.05])).astype(np.float32)
    choose = sampler(1.0, 1.0, 0, seed=0, top_p=0.75)
    assert {choose(raw) for _ in range(500)} == {0, 1}


def test_a_seed_repeats() -> None:
    raw = np.arange(50, dtype=np.uint16)
    first, second, other = (sampler(1.0, 0.05, 0, seed=seed) for seed in (4, 4, 5))
    draws = [[choose(raw) for _ in range(30)] for choose in (first, second, other)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_no_such_temperature(temperature: float) -> None:
    with pytest.raises(ValueError):
        sampler(temperature, 1.0, 0, 0)


def test_log_softmax_of_large_logits() -> None:
    np.testing.assert_allclose(log_softmax(np.array([1000.0, 1000.0])), np.log([0.5, 0.5]))
