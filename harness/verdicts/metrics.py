"""The metrics of speed, and which way each gets better."""

from __future__ import annotations

from harness.verdicts.rules import Better

BETTER: dict[str, Better] = {
    "load_ms": Better.LOWER,
    "ttft_ms": Better.LOWER,
    "prefill_tok_s": Better.HIGHER,
    "decode_tok_s": Better.HIGHER,
    "peak_rss_mb": Better.LOWER,
}
"""Fields of a sample; all positive."""

JUDGED = ("ttft_ms", "prefill_tok_s", "decode_tok_s")
"""Those that a verdict is given on. Load time and memory are shown: the first depends on the phone's file cache."""

UNITS = {"load_ms": "ms", "ttft_ms": "ms", "prefill_tok_s": "tok/s", "decode_tok_s": "tok/s", "peak_rss_mb": "MB"}


def better(metric: str) -> Better | None:
    """Which way a metric of the history gets better; None when it does not say (a check's value).

    `ttft_ms@64[prefill]` is a `ttft_ms`; perplexities get better downwards.
    """
    if metric.startswith(("token_ppl", "word_ppl")):
        return Better.LOWER
    return BETTER.get(metric.partition("@")[0])
