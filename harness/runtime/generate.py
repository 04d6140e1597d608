"""One turn: prefill, then decode (a token a step, or lookahead) until a stop token or the sequence's end."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from harness.errors import ProductError
from harness.runtime.lookahead import Lookahead, fitting
from harness.runtime.sampling import Choose, greedy
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
        decode_steps: executions of the decode graph.
        accepted: tokens beyond the first of a step, in lookahead; 0 otherwise.
        prompt_logits, decode_logits: raw logits [n,V] when asked for, else None: one row a prompt token, one a decode
            step.
        chosen_from: raw logits [n,V] that each of `tokens` was chosen from, when asked for, else None.
        row_choices: in lookahead, for each step the likeliest token of each of its AR rows.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    stopped: bool
    decode_steps: int = 0
    accepted: int = 0
    prompt_logits: Array | None = None
    decode_logits: Array | None = None
    chosen_from: Array | None = None
    row_choices: tuple[tuple[int, ...], ...] = ()


def clamp_seq_len(seq_len: int, context_len: int) -> int:
    """The sequence length in force: within (0, context], as the runner clamps it."""
    return context_len if seq_len <= 0 or seq_len > context_len else seq_len


def check_prompt(session: Session, n_prompt: int, seq_len: int) -> None:
    """Refuses a prompt that cannot run after what is in the session.

    Raises:
        ProductError: empty, no room for one token after it, or too long for the decode graph's cache.
    """
    n_past = session.n_past
    if n_prompt < 1:
        raise ProductError("Expected at least 1 prompt token", where="prompt", remedy="give a prompt that is not empty")
    if n_past + n_prompt >= seq_len:
        raise ProductError(
            f"sequence length exceeded - please increase the seq_len value: {n_prompt} prompt tokens after {n_past} "
            f"leave no room in {seq_len}",
            where="prompt",
            remedy="shorten the prompt, raise --seq_len, or compile with a longer --max_seq_len",
        )
    if n_past + n_prompt > session.limit:
        raise ProductError(
            f"{n_prompt} prompt tokens after {n_past} do not fit the cache of {session.limit} tokens: the context of "
            f"{session.info.context_len} less the {session.kv_graph.ar_len} tokens of a decode step",
            where="prompt",
            remedy="shorten the prompt, or compile with a longer --max_seq_len or smaller lookahead settings",
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
    keep_rows: bool = False,
    lookahead: Lookahead | None = None,
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
        keep_logits: return all logits; not with `lookahead`, whose rows are guesses.
        keep_rows: return the logits that each token was chosen from.
        lookahead: decode so; the .pte must have been compiled with its settings. Generation ends where the next step
            would not fit the cache, as upstream's does.

    Raises:
        ProductError: the prompt cannot run, or the backend fails.
    """
    stats = stats or Stats(inference_start_ms=now_ms())
    seq_len = clamp_seq_len(seq_len, session.info.context_len)
    check_prompt(session, len(prompt), seq_len)
    prompt_rows: list[Array] = []
    stats.prompt_tokens = len(prompt)
    row = session.feed(prompt, on_rows=(lambda rows: prompt_rows.append(rows.copy())) if keep_logits else None)
    token = _timed(choose, row, stats)
    stats.first_token_ms = stats.prompt_eval_end_ms = now_ms()
    decoding = _Decoding(session, seq_len, choose, frozenset(stop), emit, stats, keep_rows)
    decoding.take(token, token, row)
    if lookahead:
        lookahead.begin([*prompt, token])
        while decoding.goes_on:
            decoding.lookahead_step(lookahead)
    else:
        while decoding.goes_on:
            decoding.step(keep_logits)
    stats.inference_end_ms = now_ms()
    stats.generated_tokens = len(decoding.tokens) - 1
    return Generation(
        prompt=tuple(prompt),
        tokens=tuple(decoding.tokens),
        stopped=decoding.tokens[-1] in stop,
        decode_steps=decoding.steps,
        accepted=decoding.accepted,
        prompt_logits=np.concatenate(prompt_rows) if keep_logits else None,
        decode_logits=np.concatenate(decoding.rows) if decoding.rows else None,
        chosen_from=np.stack(decoding.chosen_from) if decoding.chosen_from else None,
        row_choices=tuple(decoding.row_choices),
    )


@dataclass
class _Decoding:
    """The tokens of a turn so far; the last one has been through no step yet."""

    session: Session
    seq_len: int
    choose: Choose
    stop: frozenset[int]
    emit: Callable[[int, int], None]
    stats: Stats
    keep_rows: bool = False
    tokens: list[int] = field(default_factory=list)
    rows: list[Array] = field(default_factory=list)
    chosen_from: list[Array] = field(default_factory=list)
    row_choices: list[tuple[int, ...]] = field(default_factory=list)
    steps: int = 0
    accepted: int = 0
    full: bool = False

    @property
    def goes_on(self) -> bool:
        """Whether another token is wanted and there is room for it."""
        return not self.full and self.tokens[-1] not in self.stop and self.session.n_past < self.seq_len - 1

    def take(self, previous: int, token: int, row: Array) -> None:
        """Adds a token that was chosen from a row of logits."""
        self.tokens.append(token)
        if self.keep_rows:
            self.chosen_from.append(row.copy())
        self.emit(previous, token)

    def step(self, keep_logits: bool) -> None:
        """One token through the decode graph, one more out of it."""
        previous = self.tokens[-1]
        row = self.session.step(previous)
        self.steps += 1
        if keep_logits:
            self.rows.append(row[None])
        self.take(previous, _timed(self.choose, row, self.stats), row)

    def lookahead_step(self, lookahead: Lookahead) -> None:
        """One step of guesses: a token, and those that an n-gram guessed right."""
        session, settings, current = self.session, lookahead.settings, self.tokens[-1]
        output = session.branch(lookahead.draft(current), settings.offsets, settings.attention_map)
        logits = output.logits
        found = lookahead.verify(
            current,
            choose=lambda row: _timed(self.choose, logits[row], self.stats),
            guess=lambda row: greedy(logits[row]),
            stop=self.stop,
        )
        # Past the sequence's or the cache's end nothing is kept; what was found there ends the turn.
        fits, taken = fitting(len(found.tokens), session.n_past, self.seq_len, session.limit)
        self.steps += 1
        self.accepted += fits - 1
        if self.keep_rows:
            self.row_choices.append(tuple(int(token) for token in logits.argmax(axis=-1)))
        chosen = zip((current, *found.tokens), found.tokens[:fits], found.rows, strict=False)
        for previous, token, number in chosen:
            self.take(previous, token, logits[number])
        session.accept(output, [current, *found.tokens][:taken], found.rows[:taken])
        self.full = taken < fits


def _timed(choose: Choose, row: Array, stats: Stats) -> int:
    start = time.perf_counter()
    token = choose(row)
    stats.sampling_ms += (time.perf_counter() - start) * 1000
    return token
