"""The runner's own record of a generation: the `PyTorchObserver {json}` line on its stdout, and what follows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

_MARK = "PyTorchObserver "


@dataclass(frozen=True)
class Observer:
    """Counts in tokens, times in ms on the runner's clock (ExecuTorch 1.5.1, `extension/llm/runner/stats.h`).

    `generated_tokens` leaves out the first token, which prefill makes.
    """

    prompt_tokens: int
    generated_tokens: int
    model_load_start_ms: float
    model_load_end_ms: float
    inference_start_ms: float
    inference_end_ms: float
    prompt_eval_end_ms: float
    first_token_ms: float

    @property
    def load_ms(self) -> float:
        """Model load."""
        return self.model_load_end_ms - self.model_load_start_ms

    @property
    def ttft_ms(self) -> float:
        """Time to first token: load left out, tokenisation included."""
        return self.first_token_ms - self.inference_start_ms

    @property
    def prefill_tok_s(self) -> float:
        """Prompt tokens a second; nan if the clock, which counts whole ms, did not move."""
        return _rate(self.prompt_tokens, self.prompt_eval_end_ms - self.inference_start_ms)

    @property
    def decode_tok_s(self) -> float:
        """Generated tokens a second, of the second token on; nan if none or the clock did not move."""
        return _rate(self.generated_tokens, self.inference_end_ms - self.prompt_eval_end_ms)


def _rate(tokens: int, ms: float) -> float:
    return tokens * 1000.0 / ms if tokens > 0 and ms > 0 else math.nan


def parse_observers(stdout: str) -> tuple[Observer, ...]:
    """All records in a runner's output, in order; a line that is no whole record is passed over."""
    found = (_parse(line.partition(_MARK)[2]) for line in stdout.splitlines() if _MARK in line)
    return tuple(record for record in found if record)


def _parse(text: str) -> Observer | None:
    try:
        data = json.loads(text)
        return _observer(data) if isinstance(data, dict) else None
    except (ValueError, KeyError, TypeError):
        return None


def _observer(data: Mapping[str, float]) -> Observer:
    return Observer(
        prompt_tokens=int(data["prompt_tokens"]),
        generated_tokens=int(data["generated_tokens"]),
        model_load_start_ms=float(data["model_load_start_ms"]),
        model_load_end_ms=float(data["model_load_end_ms"]),
        inference_start_ms=float(data["inference_start_ms"]),
        inference_end_ms=float(data["inference_end_ms"]),
        prompt_eval_end_ms=float(data["prompt_eval_end_ms"]),
        first_token_ms=float(data["first_token_ms"]),
    )
