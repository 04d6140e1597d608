"""A runner that stays on one phone: many requests to one process, through adb's shell with its stdin.

What the messages are stands in `harness.runtime.serve`. A runner that dies, hangs or is lost ends the resident, and is
judged as a session of one process is (`failures`); a request that the runner refuses does not.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.errors import ConfigError, FailureClass, HarnessError, InfraError, ProductError
from harness.farm.connect import PhoneLink
from harness.farm.deploy import DeployReport
from harness.farm.failures import ended_with, error_of, explain, last_lines, rebooted
from harness.farm.finite import refuse_not_finite
from harness.farm.identity import boot_id
from harness.farm.moments import ROUND_TRIPS, Claim, round_trips
from harness.farm.payload import Payload
from harness.farm.recover import end_session
from harness.farm.session import (
    RETURN_SECONDS,
    SessionSpec,
    boot_id_when_back,
    prepare_folder,
    session_command,
    session_folder,
)
from harness.farm.shell import AdbLost, AdbTimeout, ShellStream, decoded
from harness.frames import MAX_FRAME, PROTOCOL, FrameError, Message, encode_frame, take_frame

QUIT_SECONDS = 60.0
"""How long the runner may take to end when told to."""
KEPT_STDERR = 8 * 1024 * 1024
"""Bytes of the runner's stderr that are kept: the last ones."""


@dataclass(frozen=True)
class Ready:
    """What the runner says of itself and of the .pte.

    Attributes:
        mode: kv, hybrid or lookahead.
        context: tokens of prompt and output together.
        ar_len: graph's name → tokens one execution takes.
        vocab: token ids are below this.
        soc: chipset the .pte is for; None if it does not say.
        bos, eos: the tokenizer's; None where it names none.
        load_ms: loading of the model.
        peak_rss_kib: the runner's highest resident size after that.
    """

    mode: str
    context: int
    ar_len: Mapping[str, int]
    vocab: int
    soc: str | None
    bos: int | None
    eos: int | None
    load_ms: float
    peak_rss_kib: int


@dataclass(frozen=True)
class Reply:
    """What came of one `generate`. Times in ms on the runner's clock, finer than one.

    Attributes:
        tokens: ids, a stop token included.
        stopped: whether a stop token ended it.
        ttft_ms: from the request being read to the first token; tokenising is not in it, as it is the host's.
        decode_ms: from the first token to the last.
        prefill_steps, decode_steps: executions of the graphs.
        accepted: tokens beyond the first of a step, in lookahead; 0 otherwise.
        peak_rss_kib: the runner's highest resident size so far.
        host_ms: from the request being sent to its answer, on this host's clock.
    """

    tokens: tuple[int, ...]
    stopped: bool
    ttft_ms: float
    decode_ms: float
    prefill_steps: int
    decode_steps: int
    accepted: int
    peak_rss_kib: int
    host_ms: float = 0.0


def resident_spec(
    payload: Payload,
    *,
    run_id: str,
    number: int,
    decoder_version: str,
    eval_mode: int,
    flags: Sequence[str] = (),
    timeout_s: float = 600.0,
) -> SessionSpec:
    """The session of a runner that stays.

    Args:
        payload: what is deployed.
        run_id, number: as in SessionSpec.
        decoder_version: qnn_llama_runner's `--decoder_model_version`.
        eval_mode: its `--eval_mode`: 0 kv, 1 hybrid, 2 lookahead.
        flags: further ones, as `--ngram`.
        timeout_s: until the model is loaded.
    """
    base = ("--x_serve", "--model_path", payload.model, "--tokenizer_path", payload.tokenizer)
    mode = ("--decoder_model_version", decoder_version, "--eval_mode", str(eval_mode))
    return SessionSpec(run_id, number, payload.runner, (*base, *mode, *flags), timeout_s=timeout_s)


class Resident:
    """The runner, from `with` to its end; then nothing of it is left on the phone, whatever happened.

    Args:
        link: the phone; leased by the caller.
        deployed: the files it holds; see `deploy`.
        spec: from `resident_spec`.
        return_s: how long to wait for a phone that is lost meanwhile.

    Attributes:
        ready: what the runner says of itself.
        requests: number of requests answered so far.
        claims: what the runner said that its turns took, and what this host saw.
        command: the line that runs on the phone.

    Raises (from `with`, from each request, and at the end, where the runner has to exit with 0):
        CrashError: the phone rebooted.
        InfraError: the phone does not answer or does not come back, or its connection was lost without a reboot.
        HarnessError: the runner ended or hung, of the class that its output tells; else ProductError.
    """

    ready: Ready

    def __init__(
        self, link: PhoneLink, deployed: DeployReport, spec: SessionSpec, *, return_s: float = RETURN_SECONDS
    ) -> None:
        self.command = session_command(spec)
        self.requests = 0
        self._timed: list[tuple[str, Reply]] = []
        self._trips: tuple[float, ...] = ()
        self._link = link
        self._deployed = deployed
        self._spec = spec
        self._return_s = return_s
        self._boot = ""
        self._stream: ShellStream | None = None
        self._stderr = bytearray()
        self._said_before = 0  # bytes of _stderr that are older than the present request
        self._failure: HarnessError | None = None
        self._gone = False  # the session's folder and processes

    @property
    def stderr(self) -> str:
        """What the runner has said on stderr, QNN's noise on stdout included; its last KEPT_STDERR bytes."""
        return decoded(self._stderr)

    @property
    def claims(self) -> tuple[Claim, ...]:
        """See above: a turn's time to first token and the rest of it together, as one answer says both."""
        adb = max(self._trips, default=0.0)
        return tuple(
            Claim("answer", place, reply.ttft_ms + reply.decode_ms, reply.host_ms, adb) for place, reply in self._timed
        )

    @property
    def alive(self) -> bool:
        """Whether it takes requests."""
        return self._stream is not None and self._failure is None

    def write_stderr(self, path: Path) -> None:
        """Keeps `stderr` as evidence; folders are made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._stderr)

    def __enter__(self) -> Resident:
        self._boot = boot_id(self._link)
        try:
            prepare_folder(self._link, self._deployed, self._spec)
            self._stream = self._link.open_shell(self.command, limit=MAX_FRAME + 65536)
            self.ready = _parse_ready(self._exchange(None, self._spec.timeout_s), self._place)
            self._trips = round_trips(self._link)
        except BaseException:
            self._abandon()
            raise
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is not None or not self.alive:
            self._abandon()
            return
        try:
            self._quit()
        except BaseException:
            self._abandon()
            raise
        self._close()
        end_session(self._link, session_folder(self._spec))

    def request(self, op: str, *, timeout_s: float, **fields: Any) -> Message:
        """One request and its answer, without `id` and `ok`.

        Args:
            op: see `harness.runtime.serve`.
            timeout_s: for the answer, in seconds; a runner that takes longer is ended.
            fields: the request's.

        Raises:
            ConfigError, ProductError: the runner refuses the request, or failed at it and goes on (`alive`).
            ProductError: a number of the answer is NaN or infinite.
            HarnessError: the runner is over; see the class. Further requests raise the same error.
        """
        if self._failure is not None:
            raise self._failure
        if self._stream is None:
            raise ConfigError("the resident is not running", where=self._place, remedy="use it within `with`")
        number = self.requests + 1
        answer = self._exchange({"op": op, "id": number, **fields}, timeout_s)
        self.requests = number
        if answer.get("id") != number:
            raise self._over(f"the runner answered request {answer.get('id')!r} instead of {number}")
        if answer.get("ok") is not True:
            raise self._refused(answer)
        refuse_not_finite(answer, f"{self._place}: {op}")
        return {key: value for key, value in answer.items() if key not in ("id", "ok")}

    def generate(
        self,
        tokens: Sequence[int],
        *,
        max_new: int,
        timeout_s: float,
        stop: Collection[int] = (),
        temperature: float = 0.0,
        seed: int = 0,
        fresh: bool = True,
    ) -> Reply:
        """One turn. `fresh` False continues the conversation; other arguments and errors as in `request`.

        Args:
            tokens: the prompt's ids, BOS included.
            max_new: tokens to generate at most; fewer come where the context ends.
            timeout_s: see `request`.
            stop: tokens that end the turn.
            temperature: 0 for greedy.
            seed: of the sampling.
            fresh: from an empty cache.
        """
        started = time.monotonic()
        answer = self.request(
            "generate",
            timeout_s=timeout_s,
            tokens=list(tokens),
            max_new=max_new,
            stop=sorted(stop),
            temperature=temperature,
            seed=seed,
            fresh=fresh,
        )
        reply = replace(_parse_reply(answer, self._place), host_ms=(time.monotonic() - started) * 1000)
        self._timed.append((f"of a prompt of {len(tokens)}", reply))
        if len(self._timed) % ROUND_TRIPS == 0:  # whatever keeps adb busy now may not have when the runner started
            self._trips += round_trips(self._link, 1)
        return reply

    @property
    def _place(self) -> str:
        return f"{self._link.serial}: {self._spec.runner}"

    def _exchange(self, message: Message | None, timeout_s: float) -> Message:
        """Sends a message if there is one, and waits for the next one of the runner's."""
        stream = self._stream
        assert stream is not None
        started = time.monotonic()
        self._said_before = len(self._stderr)
        data = b"" if message is None else encode_frame(message)
        try:
            stream.send(data, started + timeout_s)
            while (answer := take_frame(stream.stdout)) is None:
                if stream.exit_status is not None:
                    raise self._over(ended_with(stream.exit_status))
                stream.read(started + timeout_s)
        except AdbTimeout:
            seconds = time.monotonic() - started
            raise self._over(f"the runner had not answered after {seconds:.3g} s and was ended") from None
        except AdbLost as lost:
            raise self._over("the runner's connection was lost", lost) from None
        except FrameError as error:
            raise self._over(f"the runner breaks the protocol: {error}") from None
        self._take_stderr()
        return answer

    def _quit(self) -> None:
        stream = self._stream
        assert stream is not None
        self._exchange({"op": "quit", "id": self.requests + 1}, QUIT_SECONDS)
        try:
            status = stream.wait(time.monotonic() + QUIT_SECONDS)
        except AdbTimeout:
            raise self._over(f"the runner did not end within {QUIT_SECONDS:g} s when told to") from None
        except AdbLost as lost:
            raise self._over("the runner's connection was lost", lost) from None
        self._take_stderr()
        if status != 0:
            raise self._over(ended_with(status))

    def _over(self, reason: str, lost: AdbLost | None = None) -> HarnessError:
        """Ends the session after a failure, and says what it was."""
        self._take_stderr()
        self._close()
        said, all_said = decoded(self._stderr[self._said_before :]), self.stderr
        failure: HarnessError
        try:
            after = boot_id_when_back(self._link, self._return_s)
        except InfraError as error:
            failure = error
        else:
            if after != self._boot:
                failure = error_of(rebooted(last_lines(all_said)), self._place)
            elif lost is not None:
                failure = lost
            else:
                failure = error_of(explain(reason, said, last_lines(all_said)), self._place)
        self._failure = failure
        self._abandon()
        return failure

    def _refused(self, answer: Message) -> HarnessError:
        kind = ConfigError if answer.get("class") == FailureClass.CONFIG else ProductError
        what, where, remedy = (str(answer.get(key, "")) for key in ("what", "where", "remedy"))
        return kind(what or "the runner refuses without a word", where=f"{self._place}: {where}", remedy=remedy)

    def _take_stderr(self) -> None:
        if self._stream is None:
            return
        self._stderr += self._stream.stderr
        self._stream.stderr.clear()
        if (surplus := len(self._stderr) - KEPT_STDERR) > 0:
            del self._stderr[:surplus]
            self._said_before = max(0, self._said_before - surplus)

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _abandon(self) -> None:
        """Ends what is left, for a caller that has an error already: that one counts, and the next holder sweeps."""
        self._take_stderr()
        self._close()
        if not self._gone:
            with contextlib.suppress(InfraError):
                end_session(self._link, session_folder(self._spec))
                self._gone = True


def _parse_ready(said: Message, place: str) -> Ready:
    if said.get("op") != "ready" or said.get("protocol") != PROTOCOL:
        raise ProductError(
            f"the runner's first word is {str(said)[:200]}, not ready with protocol {PROTOCOL}",
            where=place,
            remedy="deploy the runner of this version of the harness",
        )
    refuse_not_finite(said, place)
    try:
        return Ready(
            mode=str(said["mode"]),
            context=int(said["context"]),
            ar_len={str(name): int(ar_len) for name, ar_len in said["ar_len"].items()},
            vocab=int(said["vocab"]),
            soc=None if said["soc"] is None else str(said["soc"]),
            bos=None if said["bos"] is None else int(said["bos"]),
            eos=None if said["eos"] is None else int(said["eos"]),
            load_ms=float(said["load_ms"]),
            peak_rss_kib=int(said["peak_rss_kib"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _ill_formed(error, place) from None


def _parse_reply(answer: Message, place: str) -> Reply:
    try:
        return Reply(
            tokens=tuple(int(token) for token in answer["tokens"]),
            stopped=bool(answer["stopped"]),
            ttft_ms=float(answer["ttft_ms"]),
            decode_ms=float(answer["decode_ms"]),
            prefill_steps=int(answer["prefill_steps"]),
            decode_steps=int(answer["decode_steps"]),
            accepted=int(answer["accepted"]),
            peak_rss_kib=int(answer["peak_rss_kib"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _ill_formed(error, place) from None


def _ill_formed(error: Exception, place: str) -> ProductError:
    return ProductError(f"the runner's answer has another form: {type(error).__name__}: {error}", where=place)
