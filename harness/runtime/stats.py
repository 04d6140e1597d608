"""What the runner measures of one turn, its `PyTorchObserver` line and its report on standard error.

Fields, their order and meaning are `Stats` and `print_report` of ExecuTorch's `extension/llm/runner/stats.h`, and
`print_performance_report` of the Qualcomm runner. Times are milliseconds since the epoch, whole ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass


def now_ms() -> int:
    """The clock all fields are read from."""
    return time.time_ns() // 1_000_000


@dataclass
class Stats:
    """One turn. Time to first token is `first_token_ms − inference_start_ms`: tokenising included, loading not.

    `generated_tokens` counts decode steps: the token that prefill gives is not among them. The three model_execution
    fields stay 0, as the Qualcomm runner leaves them.
    """

    model_load_start_ms: int = 0
    model_load_end_ms: int = 0
    inference_start_ms: int = 0
    prompt_eval_end_ms: int = 0
    first_token_ms: int = 0
    inference_end_ms: int = 0
    sampling_ms: float = 0.0
    prompt_tokens: int = 0
    generated_tokens: int = 0

    def observer_line(self) -> str:
        """`PyTorchObserver {…}`, without a newline. A rate is left out when its time is 0, as upstream does."""
        fields = []
        if (prefill := self.prompt_eval_end_ms - self.inference_start_ms) > 0:
            fields.append(f'"prefill_token_per_sec":{self.prompt_tokens / prefill * 1000:g}')
        if (decode := self.inference_end_ms - self.prompt_eval_end_ms) > 0:
            fields.append(f'"decode_token_per_sec":{self.generated_tokens / decode * 1000:g}')
        whole = {
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "model_load_start_ms": self.model_load_start_ms,
            "model_load_end_ms": self.model_load_end_ms,
            "inference_start_ms": self.inference_start_ms,
            "inference_end_ms": self.inference_end_ms,
            "model_execution_start_ms": 0,
            "model_execution_end_ms": 0,
            "prompt_eval_end_ms": self.prompt_eval_end_ms,
            "first_token_ms": self.first_token_ms,
            "aggregate_sampling_time_ms": int(self.sampling_ms),
            "aggregate_model_execution_time_ms": 0,
            "SCALING_FACTOR_UNITS_PER_SECOND": 1000,
        }
        fields += [f'"{name}":{value}' for name, value in whole.items()]
        return "PyTorchObserver {" + ",".join(fields) + "}"

    def report(self) -> Iterator[str]:
        """The lines that follow it in the log."""
        total = self.inference_end_ms - self.inference_start_ms
        prompt = self.prompt_eval_end_ms - self.inference_start_ms
        decode = self.inference_end_ms - self.prompt_eval_end_ms
        yield f"\tPrompt Tokens: {self.prompt_tokens}    Generated Tokens: {self.generated_tokens}"
        yield f"\tModel Load Time:\t\t{(self.model_load_end_ms - self.model_load_start_ms) / 1000:f} (seconds)"
        yield (
            f"\tTotal inference time:\t\t{total / 1000:f} (seconds)\t\t"
            f" Rate: \t{_rate(self.generated_tokens, total):f} (tokens/second)"
        )
        yield (
            f"\t\tPrompt evaluation:\t{prompt / 1000:f} (seconds)\t\t"
            f" Rate: \t{_rate(self.prompt_tokens, prompt):f} (tokens/second)"
        )
        yield (
            f"\t\tGenerated {self.generated_tokens} tokens:\t{decode / 1000:f} (seconds)\t\t"
            f" Rate: \t{_rate(self.generated_tokens, decode):f} (tokens/second)"
        )
        first = (self.first_token_ms - self.inference_start_ms) / 1000
        yield f"\tTime to first generated token:\t{first:f} (seconds)"
        tokens = self.prompt_tokens + self.generated_tokens
        yield f"\tSampling time over {tokens} tokens:\t{int(self.sampling_ms) / 1000:f} (seconds)"

    def inference_speed(self) -> str:
        """Contents of inference_speed.txt: generated / (prefill + decode); prompt rate when none was generated."""
        if self.generated_tokens == 0:
            return f"{_rate(self.prompt_tokens, self.prompt_eval_end_ms - self.inference_start_ms):g}"
        return f"{_rate(self.generated_tokens, self.inference_end_ms - self.inference_start_ms):g}"


def _rate(count: int, ms: int) -> float:
    return count / ms * 1000 if ms > 0 else 0.0


def peak_rss_kib() -> int:
    """The process's highest resident size so far (VmHWM), in KiB; 0 where /proc does not say."""
    return _status("VmHWM")


def rss_kib() -> int:
    """The process's resident size now (VmRSS), in KiB; 0 where /proc does not say."""
    return _status("VmRSS")


def _status(key: str) -> int:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123
            for line in status:
                if line.startswith(key + ":"):
                    return int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return 0
