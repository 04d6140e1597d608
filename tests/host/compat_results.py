"""Results for the tests of the matrix."""

from __future__ import annotations

from harness.compatibility import Result
from harness.results.records import Graph, PerplexityRecord

NOW = "2026-11-24T12:00:00.000+00:00"


def scored(graph: Graph, blocks: int = 8, nll: float = 66.0, words: int = 0, context: int = 128) -> PerplexityRecord:
    """A score of the text's first blocks of 32 tokens, `nll` each; a word is of 1.8 tokens."""
    tokens = 32 * blocks
    words = words or round(tokens / 1.8)
    each = ((32, nll),) * blocks
    return PerplexityRecord(
        "tiny_llama-kv-SM8650", "PHONE", graph, tokens, words, nll * blocks, context, tokens, 1.0, each
    )


def result(run: str = "r1", day: int = 20, **changes: object) -> Result:
    values: dict[str, object] = {
        "run": run,
        "cell": "tiny_llama-kv-SM8650",
        "model": "tiny_llama",
        "mode": "kv",
        "soc": "SM8650",
        "arch": 75,
        "recipe": "upstream",
        "target": "sim",
        "phone": "s24",
        "time": f"2026-11-{day:02d}T12:00:00.000+00:00",
        "status": "PASSED",
        "ttft_ms": 88.0,
        "decode_tok_s": 12.1,
        "scores": (scored("kv"),),
        "toolchain": {"qnn": "2.48"},
    }
    return Result(**(values | changes))  # type: ignore[arg-type]


def failed(run: str = "r2", day: int = 21, **changes: object) -> Result:
    values: dict[str, object] = {
        "status": "FAILED",
        "failure_class": "PRODUCT",
        "reason": "text differs",
        "remedy": "look",
        "evidence": "line\nlast line",
    }
    return result(run, day, **(values | changes))


def build_failed(run: str = "r3", day: int = 22, **changes: object) -> Result:
    values: dict[str, object] = {
        "status": "ERROR",
        "failure_class": "BUILD",
        "phone": "",
        "reason": "could not create op: q::ConvLayer_s1.opt",
        "toolchain": {"qnn": "2.51"},
    }
    return failed(run, day, **(values | changes))
