"""Whether a phone may be used: a state a phone, changed with a cause, in a log that is only ever appended to.

States are LAVA's (`lava_scheduler_app/models.py`, Device.health): GOOD; UNKNOWN after a failure that may be the
phone's, until it has been looked at; BAD when nothing brought it back, or it keeps failing, until a person clears it;
MAINTENANCE when a person says so.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote, unquote

from harness.errors import FailureClass
from harness.farm.lease import shared_folder
from harness.paths import cache_root
from harness.shared_files import make_shared_folder, open_shared

WINDOW, TOO_MANY = 10, 9
"""A phone is put aside when TOO_MANY of its last WINDOW attempts failed in ways that can be the phone's fault..."""
CHANCE = 1e-4
"""...unless that could happen, at least as often as this, to any phone that fails as often as the others just did."""
COOL_RECHECK_S = 10.0
TAIL_BYTES = 32 * 1024
BLAMED = frozenset({FailureClass.INFRA, FailureClass.CRASH})
_SUFFIX = ".jsonl"


class HealthState(StrEnum):
    """What a phone may be used for: GOOD anything, UNKNOWN a health check, the others nothing."""

    GOOD = "GOOD"
    UNKNOWN = "UNKNOWN"
    BAD = "BAD"
    MAINTENANCE = "MAINTENANCE"

    @property
    def usable(self) -> bool:
        """Whether a run may lease it, and check it if need be."""
        return self in (HealthState.GOOD, HealthState.UNKNOWN)


@dataclass(frozen=True)
class HealthEvent:
    """One line of a phone's log.

    Attributes:
        time: seconds since the epoch.
        event: `change` of state; `attempt` that passed or failed; `cooling` began (or ended: an empty cause).
        state: the state from then on.
        cause: why; for an attempt, the class of its failure, or empty.
        by: user, process and run.
    """

    time: float
    event: str
    state: HealthState
    cause: str
    by: str


class HealthBook:
    """The health of all phones of this user's racks, in one folder: a log a phone, shared by all processes."""

    def __init__(self, folder: Path | None = None, *, run_id: str = "") -> None:
        """
        Args:
            folder: where the logs lie; if None, beside the leases of all users, else in the user's cache.
            run_id: of the run that writes.
        """
        self.folder = folder or (shared_folder() or cache_root()) / "health"
        self._by = f"{_user()} ({os.getpid()})" + (f" {run_id}" if run_id else "")

    def events(self, serial: str) -> tuple[HealthEvent, ...]:
        """The end of a phone's log, oldest first: what decisions need, however long it has become."""
        try:
            with self._path(serial).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                lines = file.read().decode("utf-8", errors="replace").splitlines()
        except OSError:
            return ()
        found = []
        for line in lines:
            try:
                data = json.loads(line)
                found.append(HealthEvent(**{**data, "state": HealthState(data["state"])}))
            except (ValueError, TypeError, KeyError):
                continue  # cut short by a kill
        return tuple(found)

    def state(self, serial: str) -> HealthState:
        """The state now; UNKNOWN for a phone never seen."""
        events = self.events(serial)
        return events[-1].state if events else HealthState.UNKNOWN

    def cause(self, serial: str) -> str:
        """Why it is in its state."""
        changes = [event for event in self.events(serial) if event.event == "change"]
        return changes[-1].cause if changes else ""

    def serials(self) -> tuple[str, ...]:
        """Every phone with a log."""
        return tuple(sorted(unquote(p.name.removesuffix(_SUFFIX)) for p in self.folder.glob(f"*{_SUFFIX}")))

    def set_state(self, serial: str, state: HealthState, cause: str) -> bool:
        """Changes a state; returns whether it is another than before. Only `clear` leads from BAD and MAINTENANCE."""
        before = self.state(serial)
        if before is state or not before.usable:
            return False
        self._append(serial, "change", state, cause)
        return True

    def clear(self, serial: str, cause: str = "cleared by hand") -> HealthState:
        """A person has looked at it: UNKNOWN, so that the next run checks it. Returns the state before."""
        before = self.state(serial)
        self._append(serial, "change", HealthState.UNKNOWN, cause)
        return before

    def maintain(self, serial: str, cause: str) -> None:
        """A person takes it away."""
        self._append(serial, "change", HealthState.MAINTENANCE, cause)

    def attempted(self, serial: str, failure: FailureClass | None) -> HealthState:
        """Notes how an attempt on the phone went; returns the state that follows.

        A failure that may be the phone's makes it UNKNOWN; too many of them, BAD.
        """
        state = self.state(serial)
        self._append(serial, "attempt", state, str(failure or ""))
        if failure in BLAMED:
            logs = [self.events(other) for other in self.serials() if other != serial]
            beside = [event for events in logs if events and events[-1].state.usable for event in events]
            if cause := keeps_failing(self.events(serial), beside):
                self.set_state(serial, HealthState.BAD, cause)
            else:
                self.set_state(serial, HealthState.UNKNOWN, f"an attempt failed: {failure}")
        return self.state(serial)

    def note_cooling(self, serial: str, text: str) -> None:
        """It is too hot (`text`), or has cooled down (empty)."""
        if text or self.cooling(serial):
            self._append(serial, "cooling", self.state(serial), text)

    def cooling(self, serial: str) -> bool:
        """Whether it was too hot when last measured, and so must get below the lower limit."""
        events = [event for event in self.events(serial) if event.event == "cooling"]
        return bool(events and events[-1].cause)

    def just_hot(self, serial: str, now: float | None = None) -> bool:
        """Whether it was too hot a moment ago: not worth asking again yet."""
        events = [event for event in self.events(serial) if event.event == "cooling"]
        return bool(events and events[-1].cause) and (now or time.time()) - events[-1].time < COOL_RECHECK_S

    def _append(self, serial: str, event: str, state: HealthState, cause: str) -> None:
        make_shared_folder(self.folder)
        line = json.dumps(asdict(HealthEvent(round(time.time(), 3), event, state, cause, self._by))) + "\n"
        fd = open_shared(self._path(serial), os.O_RDWR | os.O_APPEND)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                line = "\n" + line  # a writer was killed in the middle of its line
            os.write(fd, line.encode())
        finally:
            os.close(fd)

    def _path(self, serial: str) -> Path:
        return self.folder / f"{quote(serial, safe='')}{_SUFFIX}"


def keeps_failing(events: Sequence[HealthEvent], others: Sequence[HealthEvent] = ()) -> str:
    """Why a phone is to be put aside, by its attempts since a person last cleared it; empty if it is not. Pure.

    Where others fail as well, as when a hub or an adb server is at fault, a phone is not put aside for it: its failures
    must be more than chance makes of the others' rate (binomial tail, the rate by Laplace's rule of succession). Where
    they fail often, that takes up to twice as many attempts to see.

    Args:
        events: of the phone.
        others: of the phones that may be used beside it.
    """
    start = max((i for i, e in enumerate(events) if e.event == "change" and e.cause.startswith("cleared")), default=-1)
    attempts = [event for event in events[start + 1 :] if event.event == "attempt"]
    for window, many in ((WINDOW, TOO_MANY), (2 * WINDOW, 2 * TOO_MANY)):
        own = attempts[-window:]
        failed = _failed(own)
        if failed < many:
            continue
        beside = [event for event in others if event.event == "attempt" and event.time > own[0].time]
        rate = (_failed(beside) + 1) / (len(beside) + 2)
        if not beside or _at_least(failed, len(own), rate) < CHANCE:
            said = f"{failed} of its last {len(own)} attempts failed"
            return said + (f", and {_failed(beside)} of {len(beside)} of other phones" if beside else "")
    return ""


def _failed(attempts: Sequence[HealthEvent]) -> int:
    return sum(event.cause in BLAMED for event in attempts)


def _at_least(count: int, tries: int, rate: float) -> float:
    """The probability of at least so many failures."""
    return sum(math.comb(tries, k) * rate**k * (1 - rate) ** (tries - k) for k in range(count, tries + 1))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
