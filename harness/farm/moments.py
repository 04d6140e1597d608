"""When a runner's output reached this host: what its own word on times is held against.

The stock runner and ours log the same lines on standard error, each as it happens (ExecuTorch,
examples/qualcomm/oss_scripts/llama/runner: prompt_processor.cpp, runner.cpp). Standard output is no witness: the stock
runner's goes through a buffer that is written at its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.farm.connect import PhoneLink

BEGINS = b"Prompt Processor: total"
FIRST_TOKEN = b"RSS after prompt prefill"
ENDS = b"RSS after finishing text generation"
_LINES = (BEGINS, FIRST_TOKEN, ENDS)
ROUND_TRIPS = 4
"""Commands that do nothing, before a session and after it."""


@dataclass(frozen=True)
class Moments:
    """Milliseconds from the command being sent to the arrival of a line; None of one that did not come, or came twice.

    Attributes:
        begins: the prompt's tokens are about to be fed.
        first_token: the first token is there.
        ends: the last one is.
    """

    begins: float | None = None
    first_token: float | None = None
    ends: float | None = None


@dataclass(frozen=True)
class Claim:
    """A duration as the runner has it, and as this host's clock saw it.

    Attributes:
        what: `load`, `TTFT`, `decode`, `process` or, of a runner that stays, `answer`.
        place: which one, in words: `of session 0`.
        claimed_ms: the runner's word.
        host_ms: this host's.
        adb_ms: the slowest round trip of a command that does nothing, about that time.
        at_most: the host saw more than this duration, so it is only known to have been no longer.
    """

    what: str
    place: str
    claimed_ms: float
    host_ms: float
    adb_ms: float
    at_most: bool = False


@dataclass
class Arrivals:
    """Looks through what a command prints, as it comes in.

    Attributes:
        clock: seconds.
        started: when the command was sent.
    """

    clock: Callable[[], float] = time.monotonic
    started: float = -1.0
    _looked: int = 0
    _found: dict[bytes, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def see(self, stderr: bytearray) -> None:
        """To be called whenever something has come; `stderr` is all that has."""
        now = (self.clock() - self.started) * 1000
        end = stderr.rfind(b"\n") + 1
        for line in bytes(stderr[self._looked : end]).splitlines():
            for words in _LINES:
                if words in line:
                    self._found.setdefault(words, []).append(now)
        self._looked = max(self._looked, end)

    @property
    def moments(self) -> Moments:
        """Of a command that generated once."""
        return Moments(*(found[0] if len(found := self._found.get(words, [])) == 1 else None for words in _LINES))


def round_trips(link: PhoneLink, count: int = ROUND_TRIPS) -> tuple[float, ...]:
    """Milliseconds that each of `count` commands takes that does nothing: what adb, and whoever else keeps the two
    computers busy, may add to a line's way here.

    Raises:
        InfraError: the phone does not answer.
    """
    return tuple(link.shell(":").seconds * 1000 for _ in range(count))
