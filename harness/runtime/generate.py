"""One turn: prefill, then decode until a stop token or the sequence's end."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.errors import ProductError
from harness.runtime.sampling import Choose
from harness.runtime.session import Session
from harness.runtime.stats import Stats, now_ms

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Generation:
    """What a turn produced.

    Attributes:
        prompt: token ids of the prompt.
        tokens: ids generated; the first comes from prefill, a stop token is included.
        stopped: whether a stop token ended it.
        prompt_logits, decode_logits: raw logits [n,V] when asked for, else None: one row a prompt token, one a decode
            step.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    stopped: bool
    prompt_logits: Array | None = None
    decode_logits: Array | None = None


def clamp_seq_len(seq_len: int, context_len: int) -> int:
    """The sequence length in force: within (0, context], as the runner clamps it."""
    return context_len if seq_len <= 0 or seq_len > context_len else seq_len


def check_prompt(n_past: int, n_prompt: int, seq_len: int) -> None:
    """Refuses a prompt that cannot run.

    Raises:
        ProductError: empty, or no room for one token after it.
    """
    if n_prompt < 1:
        raise ProductError("Expected at least 1 prompt token", where="prompt", remedy="give a prompt that is not empty")
    if n_past + n_prompt >= seq_len:
        raise ProductError(
            f"sequence length exceeded - please increase the seq_len value: {n_prompt} prompt tokens after {n_past} "
            f"leave no room in {seq_len}",
            where="prompt",
            remedy="shorten the prompt, raise --seq_len, or compile with a longer --max_seq_len",
        )


def generate(
    session: Session,
    prompt: Sequence[int],
    *,
    seq_len: int,
    choose: Choose,
    stop: Collection[int] = (),
    emit: Callable[[int, int], None] = lambda _previous, _token: None,
    stats: Stats | None = None,
    keep_logits: bool = False,
) -> Generation:
    """Runs one turn after what is in the session.

    Args:
        session: its tokens so far stay; the turn is added, but for the last token, which no step has taken yet.
        prompt: token ids.
        seq_len: prompt and output together, all turns; clamped to the context.
        choose: logits row → token.
        stop: tokens that end the turn, the first token included (upstream looks at it only from the second on).
        emit: called with each token and the one before it (itself for the first).
        stats: filled in; `inference_start_ms` is the caller's, as tokenising counts.
        keep_logits: return all logits.

    Raises:
        ProductError: the prompt cannot run, or the backend fails.
    """
    stats = stats or Stats(inference_start_ms=now_ms())
    seq_len = clamp_seq_len(seq_len, session.info.context_len)
    check_prompt(session.n_past, len(prompt), seq_len)
    prompt_rows: list[Array] = []
    decode_rows: list[Array] = []
    stats.prompt_tokens = len(prompt)
    row = session.feed(prompt, on_rows=(lambda rows: prompt_rows.append(rows.copy())) if keep_logits else None)
    token = _timed(choose, row, stats)
    stats.first_token_ms = stats.prompt_eval_end_ms = now_ms()
    tokens = [token]
    emit(token, token)
    while token not in stop and session.n_past < seq_len - 1:
        row = session.step(token)
        if keep_logits:
            decode_rows.append(row[None])
        previous, token = token, _timed(choose, row, stats)
        tokens.append(token)
        emit(previous, token)
    stats.inference_end_ms = now_ms()
    stats.generated_tokens = len(tokens) - 1
    return Generation(
        prompt=tuple(prompt),
        tokens=tuple(tokens),
        stopped=token in stop,
        prompt_logits=np.concatenate(prompt_rows) if keep_logits else None,
        decode_logits=np.concatenate(decode_rows) if decode_rows else None,
    )


def _timed(choose: Choose, row: Array, stats: Stats) -> int:
    start = time.perf_counter()
    token = choose(row)
    stats.sampling_ms += (time.perf_counter() - start) * 1000
    return token
