"""What a build worker says while it works: one JSON line an event, read by the builder."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

MARK = "htpfarm-event "


@dataclass(frozen=True)
class Event:
    """A step of a build.

    Attributes:
        kind: `stage` (a step ended), `begin` (a step began), `done` (an output is in the cache) or `failed`.
        name: the step, or the output's key.
        seconds: how long it took.
        detail: free text: of a failure, where its log is.
    """

    kind: str
    name: str
    seconds: float = 0.0
    detail: str = ""


def emit(event: Event) -> None:
    """Prints an event for the builder."""
    sys.stdout.write(MARK + json.dumps(asdict(event)) + "\n")
    sys.stdout.flush()


def parse(line: str) -> Event | None:
    """The event of a line of a worker's output; None for any other line."""
    if not line.startswith(MARK):
        return None
    try:
        return Event(**json.loads(line.removeprefix(MARK)))
    except (json.JSONDecodeError, TypeError):
        return None


@contextlib.contextmanager
def stage(name: str, times: dict[str, float]) -> Iterator[None]:
    """Times a step into `times` and says when it begins and ends."""
    emit(Event("begin", name))
    start = time.monotonic()
    yield
    times[name] = round(time.monotonic() - start, 3)
    emit(Event("stage", name, times[name]))
