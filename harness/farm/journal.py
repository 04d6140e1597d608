"""What was asked of phones, and what they answered: kept while somebody wants it, for the evidence of a failure."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

KEPT_CHARS = 4000


@dataclass(frozen=True)
class Command:
    """One command: when it began (seconds since the epoch), the phone, the line, how it ended, what it printed."""

    time: float
    serial: str
    line: str
    ended: str
    seconds: float
    stdout: str = ""
    stderr: str = ""

    def text(self) -> str:
        """For a file that people read."""
        stamp = time.strftime("%H:%M:%S", time.localtime(self.time))
        said = "".join(f"{text.rstrip()}\n" for text in (self.stdout, self.stderr) if text.strip())
        return f"[{stamp} {self.serial}] $ {self.line}\n{said}-> {self.ended} after {self.seconds:.2f} s\n"


_journal: ContextVar[list[Command] | None] = ContextVar("journal", default=None)


@contextmanager
def journal() -> Iterator[list[Command]]:
    """Everything that this thread asks of phones inside the block, in order."""
    kept: list[Command] = []
    token = _journal.set(kept)
    try:
        yield kept
    finally:
        _journal.reset(token)


def note(serial: str, line: str, ended: str, seconds: float, stdout: str = "", stderr: str = "") -> None:
    """Adds a command that has ended, if anybody keeps a journal; the end of long outputs is kept."""
    kept = _journal.get()
    if kept is not None:
        began = time.time() - seconds
        kept.append(Command(began, serial, line, ended, seconds, stdout[-KEPT_CHARS:], stderr[-KEPT_CHARS:]))
