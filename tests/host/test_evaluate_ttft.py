"""Which prompt lengths are timed, and when timing stops."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.evaluate.ttft import measure_ttft, prompt_lengths


@pytest.mark.parametrize(
    ("ar_len", "limit", "lengths"),
    [
        (32, 127, (1, 32, 33, 64, 65, 96, 97, 127)),
        (32, 64, (1, 32, 33, 64)),
        (64, 33, (1, 33)),
        (1, 20, (1, 2, 4, 8, 16)),
        (2, 4, (1, 2, 3, 4)),
    ],
)
def test_the_ends_of_every_block(ar_len: int, limit: int, lengths: tuple[int, ...]) -> None:
    assert prompt_lengths(ar_len, limit) == lengths


class Clock:
    """A runner that takes a second for a block, and the time it takes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.prompts: list[list[int]] = []
        graphs = {"kv_forward": 1, "prefill_forward": 4}
        self.ready = SimpleNamespace(context=13, ar_len=graphs)

    def generate(self, prompt: list[int], **_: Any) -> SimpleNamespace:
        self.prompts.append(prompt)
        seconds = -(-len(prompt) // 4)
        self.now += seconds
        return SimpleNamespace(ttft_ms=1000.0 * seconds, tokens=(40 + len(prompt),))


def test_rounds_go_through_all_lengths_until_the_budget_is_spent() -> None:
    clock = Clock()
    found = list(measure_ttft(clock, [7, 8, 9], rounds=2, budget_s=100, clock=lambda: clock.now))  # type: ignore[arg-type]
    lengths = [1, 4, 5, 8, 9, 12]
    assert [(length, number) for length, number, *_ in found] == [(n, r) for r in (0, 1) for n in lengths]
    assert [ms for _, _, ms, _ in found][:6] == [1000, 1000, 2000, 2000, 3000, 3000]
    assert [token for *_, token in found] == [40 + n for n in lengths] * 2
    assert clock.prompts[2] == [7, 8, 9, 7, 8]


def test_a_slow_phone_is_timed_twice_at_least() -> None:
    clock = Clock()
    found = list(measure_ttft(clock, [1], budget_s=0.5, clock=lambda: clock.now))  # type: ignore[arg-type]
    assert [length for length, *_ in found] == [1, 4]
