"""A runner that stays: loads the model once, then answers requests on standard input until `quit` or its end.

Frames as in `harness.frames`. The runner speaks first:

    {"op": "ready", "protocol": 1, "mode", "context", "ar_len": {graph: AR}, "vocab", "soc", "bos", "eos", "load_ms",
     "peak_rss_kib"}

`bos` and `eos` are the tokenizer's (null where it names none), `soc` is null for a .pte without a QNN delegate. Each
request has an `op` and an `id`, which its one answer repeats:

- `score`: `graph` ("kv" or "prefill"), `windows` [{"input": [ids], "target": [ids]}] → `windows` [{"logprobs" in nats,
  "greedy", "steps", "seconds"}]; see `harness.runtime.score`. Each window starts from an empty cache. Logits are not
  sent. Ask for few windows at a time to show progress.
- `walk`: `legs` [{"keep", "graph", "input": [ids], "target": [ids]}] → `legs` [{"logprobs" in nats, "top": {"ids",
  "logprobs"}, "steps", "seconds"}]; see `harness.runtime.score`. A walk starts from an empty cache, each of its legs
  after the first `keep` tokens of what was fed before. `top` has the 32 likeliest tokens after each input.
- `logits`: `graph`, `tokens` [ids] and, if need be, `last` → `logits` after each token, or each of the `last` ones,
  from an empty cache: little-endian uint16 (or float32) [tokens, vocab] in base64, with their `dtype`, `scale` and
  `zero_point`. A frame has to hold them.
- `generate`: `tokens` (prompt ids, BOS included), `max_new` and, if need be, `stop` [], `temperature` 0.0, `seed` 0,
  `fresh` true → `tokens` (a stop token included), `stopped`, `ttft_ms` (from the request being read to the first token;
  tokenising is the host's), `decode_ms`, `prefill_steps`, `decode_steps`, `accepted` (tokens that lookahead saved steps
  for), `peak_rss_kib`. Fewer than `max_new` tokens come where the context ends. `fresh` false continues the
  conversation as a further turn of the command line does: the last token of the turn before is not fed.
- `quit`: an empty answer, and the end with status 0, as at the end of the input.

A request that fails is answered {"ok": false, "class": "CONFIG" (the request's fault) or "PRODUCT", "what", "where",
"remedy"}, all others have "ok": true. A conversation outlives a request that is refused, but not one that scores or
fails on the way. What is no frame at all ends the runner with status 2.
"""

from __future__ import annotations

import base64
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.errors import ConfigError, FailureClass, HarnessError, ProductError
from harness.frames import MAX_FRAME, PROTOCOL, FrameError, Message, encode_frame, take_frame
from harness.runtime.generate import Generation, generate
from harness.runtime.lookahead import Lookahead, Settings
from harness.runtime.program import ProgramInfo
from harness.runtime.sampling import sampler
from harness.runtime.score import (
    check_legs,
    check_windows,
    logits,
    parse_legs,
    parse_request,
    result_json,
    score,
    token_ids,
    walk,
    walk_json,
)
from harness.runtime.session import Session, plan_blocks
from harness.runtime.stats import peak_rss_kib
from harness.text.tokenizer import Tokenizer

_READ = 1 << 20
_FIELDS = {
    "score": {"graph", "windows"},
    "walk": {"legs"},
    "logits": {"graph", "tokens", "last"},
    "generate": {"tokens", "max_new", "stop", "temperature", "seed", "fresh"},
    "quit": set[str](),
}


@dataclass
class Channel:
    """The two descriptors frames go through; `pending` is what has been read beyond the last one."""

    source: int
    sink: int
    pending: bytearray = field(default_factory=bytearray)

    def receive(self) -> Message | None:
        """The next request; None at the end of the input.

        Raises:
            ConfigError: no frame, or the input ended within one.
        """
        try:
            while (message := take_frame(self.pending)) is None:
                data = os.read(self.source, _READ)
                if not data and self.pending:
                    raise FrameError(f"the input ended {len(self.pending)} bytes into a frame")
                if not data:
                    return None
                self.pending += data
        except FrameError as error:
            raise ConfigError(str(error), where="standard input", remedy="see harness.runtime.serve") from None
        return message

    def send(self, message: Mapping[str, Any]) -> None:
        """Writes one frame. Raises FrameError before anything is written, OSError when nobody reads any more."""
        data = memoryview(encode_frame(message))
        while data:
            data = data[os.write(self.sink, data) :]


def claim_stdio() -> Channel:
    """Takes standard input and output for the protocol, before anything that prints is loaded.

    QNN and torch write to descriptor 1: from now on that is standard error's. Descriptor 0 is empty.
    """
    sys.stdout.flush()
    channel = Channel(os.dup(0), os.dup(1))
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return channel


def ready(info: ProgramInfo, tokenizer: Tokenizer, load_ms: float) -> Message:
    """The first frame."""
    return {
        "op": "ready",
        "protocol": PROTOCOL,
        "mode": str(info.mode),
        "context": info.context_len,
        "ar_len": {name: graph.ar_len for name, graph in info.graphs.items()},
        "vocab": info.vocab,
        "soc": info.delegate.soc if info.delegate else None,
        "bos": tokenizer.bos,
        "eos": tokenizer.eos,
        "load_ms": load_ms,
        "peak_rss_kib": peak_rss_kib(),
    }


def serve(channel: Channel, session: Session, first: Message, settings: Settings | None = None) -> None:
    """Answers requests until `quit`, the end of the input, or nobody reads the answers.

    Args:
        channel: from `claim_stdio`.
        session: of the loaded program.
        first: from `ready`.
        settings: decode with lookahead.

    Raises:
        ConfigError: the input holds something that is no frame.
    """
    server = _Server(session, settings)
    message: Message | None = None
    try:
        channel.send(first)
        while (message := channel.receive()) is not None and message.get("op") != "quit":
            _send_answer(channel, message.get("id"), server.answer(message))
        if message is not None:
            channel.send({"id": message.get("id"), "ok": True})
    except OSError as error:
        print(f"the host has gone: {error.strerror}", file=sys.stderr)


def _send_answer(channel: Channel, number: object, answer: Message) -> None:
    try:
        channel.send({"id": number, **answer})
    except FrameError as error:
        # Too many windows, or a logit that is no number.
        channel.send(
            {"id": number, **_refusal(ProductError(str(error), where="answer", remedy="ask for less at once"))}
        )


def _refusal(error: HarnessError) -> Message:
    name = FailureClass.CONFIG if error.failure_class is FailureClass.CONFIG else FailureClass.PRODUCT
    return {"ok": False, "class": str(name), "what": error.what, "where": error.where, "remedy": error.remedy}


@dataclass
class _Server:
    """What lasts from request to request.

    Attributes:
        talking: whether the session holds a conversation that may be continued.
        lookahead: pool and branch of the conversation; made anew with each one, so that it repeats.
    """

    session: Session
    settings: Settings | None
    talking: bool = False
    lookahead: Lookahead | None = None

    def answer(self, request: Message) -> Message:
        """Never raises for what a request or the backend does."""
        try:
            match request.get("op"):
                case "score":
                    _check_fields(request, "score")
                    return self._score(request)
                case "walk":
                    _check_fields(request, "walk")
                    return self._walk(request)
                case "logits":
                    _check_fields(request, "logits")
                    return self._logits(request)
                case "generate":
                    _check_fields(request, "generate")
                    return self._generate(request)
            raise ConfigError(
                f"no such request: {request.get('op')!r}", where="op", remedy=f"one of {', '.join(_FIELDS)}"
            )
        except HarnessError as error:
            return _refusal(error)
        except Exception as error:
            traceback.print_exc()
            self._forget()
            return _refusal(ProductError(f"{type(error).__name__}: {error}", where=str(request.get("op"))))

    def _score(self, request: Message) -> Message:
        parsed = parse_request(request, "score")
        check_windows(self.session.info, parsed.windows, parsed.graph)
        self._forget()
        try:
            results = score(self.session, parsed.windows, parsed.graph)
        except HarnessError:
            self._forget()
            raise
        return {"ok": True, "windows": result_json(results, parsed.graph)["windows"]}

    def _walk(self, request: Message) -> Message:
        legs = parse_legs(request.get("legs"))
        check_legs(self.session.info, legs)
        self._forget()
        try:
            return {"ok": True, "legs": walk_json(walk(self.session, legs))}
        finally:
            self._forget()

    def _logits(self, request: Message) -> Message:
        info = self.session.info
        tokens = {"input": request.get("tokens"), "target": request.get("tokens")}
        parsed = parse_request({"graph": request.get("graph"), "windows": [tokens]}, "logits")
        check_windows(info, parsed.windows, parsed.graph)
        count = request.get("last", len(parsed.windows[0].inputs))
        if type(count) is not int or not 1 <= count <= len(parsed.windows[0].inputs):
            raise ConfigError(f"last is {count!r}; a whole number from 1 to the tokens' number is wanted", where="last")
        if count * info.vocab * 4 > MAX_FRAME // 2:
            raise ConfigError(
                f"logits of {count} tokens over a vocabulary of {info.vocab} do not fit a message",
                where="tokens",
                remedy="ask for fewer tokens, or for scores",
            )
        self._forget()
        try:
            raw = logits(self.session, parsed.windows[0].inputs, parsed.graph, count)
        finally:
            self._forget()
        return {
            "ok": True,
            "logits": base64.b64encode(raw.tobytes()).decode(),
            "dtype": str(raw.dtype),
            "scale": info.logits_scale,
            "zero_point": info.logits_zero_point,
        }

    def _generate(self, request: Message) -> Message:
        started = time.perf_counter()
        turn = _parse_turn(request, self.session.info)
        past = 0 if turn.fresh else self.session.n_past
        if not turn.fresh and not self.talking:
            raise ConfigError("there is no conversation to continue", where="fresh", remedy="begin one: fresh true")
        if past + len(turn.prompt) > self.session.limit:
            raise ConfigError(
                f"{len(turn.prompt)} prompt tokens after {past} leave no room: the cache holds {self.session.limit}",
                where="tokens",
                remedy="shorten the prompt, or compile with a longer --max_seq_len",
            )
        if turn.fresh:
            self._forget()
            self.lookahead = Lookahead(self.settings, turn.seed) if self.settings else None
        first = 0.0

        def emit(_previous: int, _token: int) -> None:
            nonlocal first
            first = first or time.perf_counter()

        try:
            result = self._run(turn, emit)
        except HarnessError:
            self._forget()
            raise
        ended = time.perf_counter()
        self.talking = True
        ar_len, context = self.session.prefill_graph.ar_len, self.session.info.context_len
        return {
            "ok": True,
            "tokens": list(result.tokens),
            "stopped": result.stopped,
            "ttft_ms": (first - started) * 1000,
            "decode_ms": (ended - first) * 1000,
            "prefill_steps": sum(1 for _ in plan_blocks(past, past + len(turn.prompt), ar_len, context)),
            "decode_steps": result.decode_steps,
            "accepted": result.accepted,
            "peak_rss_kib": peak_rss_kib(),
        }

    def _run(self, turn: _Turn, emit: Callable[[int, int], None]) -> Generation:
        """The one call to generation."""
        info = self.session.info
        return generate(
            self.session,
            turn.prompt,
            seq_len=min(self.session.n_past + len(turn.prompt) + turn.max_new, info.context_len),
            choose=sampler(turn.temperature, info.logits_scale, info.logits_zero_point, turn.seed),
            stop=turn.stop,
            emit=emit,
            lookahead=self.lookahead,
        )

    def _forget(self) -> None:
        self.session.rewind(0)
        self.talking = False


@dataclass(frozen=True)
class _Turn:
    """A `generate` request, checked."""

    prompt: tuple[int, ...]
    max_new: int
    stop: frozenset[int]
    temperature: float
    seed: int
    fresh: bool


def _check_fields(request: Message, op: str) -> None:
    if unknown := sorted(set(request) - _FIELDS[op] - {"op", "id"}):
        raise ConfigError(
            f"{op} knows no {', '.join(unknown)}", where="request", remedy=f"it takes {', '.join(sorted(_FIELDS[op]))}"
        )


def _parse_turn(request: Message, info: ProgramInfo) -> _Turn:
    try:
        prompt = token_ids(request["tokens"])
        stop = token_ids(request.get("stop", []))
    except (KeyError, TypeError) as error:
        raise ConfigError(f"no prompt: {type(error).__name__}: {error}", where="tokens") from None
    if not prompt:
        raise ConfigError("an empty prompt", where="tokens", remedy="give at least one token")
    if bad := [token for token in prompt if not 0 <= token < info.vocab]:
        raise ConfigError(f"token {bad[0]} is outside the vocabulary of {info.vocab}", where="tokens")
    temperature, fresh = request.get("temperature", 0.0), request.get("fresh", True)
    max_new, seed = request.get("max_new"), request.get("seed", 0)
    if isinstance(max_new, bool) or not isinstance(max_new, int) or max_new < 1:
        raise ConfigError(f"{max_new!r} tokens to generate", where="max_new", remedy="ask for at least one")
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 <= temperature < 1e6:
        raise ConfigError(f"{temperature!r} is no temperature", where="temperature", remedy="give a number from 0 up")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"{seed!r} is no seed", where="seed", remedy="give a whole number from 0 up")
    if not isinstance(fresh, bool):
        raise ConfigError(f"{fresh!r} is neither true nor false", where="fresh")
    return _Turn(prompt, max_new, frozenset(stop), float(temperature), seed, fresh)
