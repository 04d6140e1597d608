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

    `generated_tokens` leaves out the first token, which prefill makes. `stated_…` are the rates as the record has them:
    of the same numbers, so they must agree with what these come to; None where the record leaves them out.
    """

    prompt_tokens: int
    generated_tokens: int
    model_load_start_ms: float
    model_load_end_ms: float
    inference_start_ms: float
    inference_end_ms: float
    prompt_eval_end_ms: float
    first_token_ms: float
    stated_prefill_tok_s: float | None = None
    stated_decode_tok_s: float | None = None

    @property
    def load_ms(self) -> float:
        """Model load."""
        return self.model_load_end_ms - self.model_load_start_ms

    @property
    def ttft_ms(self) -> float:
        """Time to first token: load left out, tokenisation included."""
        return self.first_token_ms - self.inference_start_ms

    @property
    def prefill_tok_s(self) -> float | None:
        """Prompt tokens a second; None, not measured, if the clock, which counts whole ms, did not move."""
        return _rate(self.prompt_tokens, self.prompt_eval_end_ms - self.inference_start_ms)

    @property
    def decode_tok_s(self) -> float | None:
        """Generated tokens a second, of the second token on; None if there are none or the clock did not move."""
        return _rate(self.generated_tokens, self.inference_end_ms - self.prompt_eval_end_ms)

    @property
    def nonsense(self) -> str:
        """What no runner can have measured, in words: a time that is no number, or runs backwards; empty if all can."""
        for name, value in vars(self).items():
            if value is not None and not math.isfinite(value):
                return f"{name} is {value:g}"
        for earlier, later in _ORDER:
            if getattr(self, later) < getattr(self, earlier):
                return f"{later} is {getattr(self, earlier) - getattr(self, later):g} ms before {earlier}"
        if self.prompt_tokens < 1 or self.generated_tokens < 0:
            return f"{self.prompt_tokens} prompt tokens, {self.generated_tokens} generated ones"
        return ""


_ORDER = (
    ("model_load_start_ms", "model_load_end_ms"),
    ("inference_start_ms", "prompt_eval_end_ms"),
    ("inference_start_ms", "first_token_ms"),
    ("prompt_eval_end_ms", "inference_end_ms"),
    ("first_token_ms", "inference_end_ms"),
)
"""Pairs of moments, the earlier one first. A model may be loaded long before: that is another clock reading."""


def _rate(tokens: int, ms: float) -> float | None:
    return tokens * 1000.0 / ms if tokens > 0 and ms > 0 else None


def parse_observers(stdout: str) -> tuple[Observer, ...]:
    """All records in a runner's output, in order; a line that is no whole record is passed over."""
    found = (_parse(line.partition(_MARK)[2]) for line in stdout.splitlines() if _MARK in line)
    return tuple(record for record in found if record)


def _parse(text: str) -> Observer | None:
    try:
        data = json.loads(text)
        return _observer(data) if isinstance(data, dict) else None
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def _count(value: float) -> int:
    """-1, which nothing can have counted, for what is no number."""
    return int(value) if math.isfinite(value) else -1


def _optional(value: float | None) -> float | None:
    return None if value is None else float(value)


def _observer(data: Mapping[str, float]) -> Observer:
    return Observer(
        prompt_tokens=_count(data["prompt_tokens"]),
        generated_tokens=_count(data["generated_tokens"]),
        model_load_start_ms=float(data["model_load_start_ms"]),
        model_load_end_ms=float(data["model_load_end_ms"]),
        inference_start_ms=float(data["inference_start_ms"]),
        inference_end_ms=float(data["inference_end_ms"]),
        prompt_eval_end_ms=float(data["prompt_eval_end_ms"]),
        first_token_ms=float(data["first_token_ms"]),
        stated_prefill_tok_s=_optional(data.get("prefill_token_per_sec")),
        stated_decode_tok_s=_optional(data.get("decode_token_per_sec")),
    )
