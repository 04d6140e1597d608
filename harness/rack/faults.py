"""Faults that a virtual phone can be told to have: what, when, and the log that says when each one struck. Pure, but
for the log.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from harness.errors import ConfigError


class FaultKind(StrEnum):
    """What can go wrong with a virtual phone."""

    HANG_SHELL = "hang-shell"
    CUT_PUSH = "cut-push"
    CUT_PULL = "cut-pull"
    CORRUPT_PULL = "corrupt-pull"
    OFFLINE = "offline"
    UNAUTHORIZED = "unauthorized"
    REBOOT = "reboot"
    HOT = "hot"
    BATTERY = "battery"
    STORAGE = "storage"
    KILL_RUNNER = "kill-runner"
    SLOW = "slow"
    GARBAGE = "garbage"
    ADB_DOWN = "adb-down"


MEANING = {
    FaultKind.HANG_SHELL: "a shell command is taken and nothing ever comes of it",
    FaultKind.CUT_PUSH: "the connection ends in the middle of a push",
    FaultKind.CUT_PULL: "the connection ends in the middle of a pull",
    FaultKind.CORRUPT_PULL: "one bit of what is pulled arrives wrong",
    FaultKind.OFFLINE: "the phone takes connections and answers none",
    FaultKind.UNAUTHORIZED: "the phone asks for a key and accepts none",
    FaultKind.REBOOT: "the phone reboots: its boot id changes",
    FaultKind.HOT: "every thermal zone is at 95 degrees, thermal status 4",
    FaultKind.BATTERY: "the battery is at 3 percent and discharging",
    FaultKind.STORAGE: "df shows 1 MiB free on /data",
    FaultKind.KILL_RUNNER: "Android's low-memory killer ends the runner, and logcat says so",
    FaultKind.SLOW: "the link carries 200 kB a second",
    FaultKind.GARBAGE: "random bytes in place of the ADB protocol",
    FaultKind.ADB_DOWN: "the rack's own adb server is killed",
}
Opportunity = Literal["shell", "push", "pull"]
_OPPORTUNITY: dict[FaultKind, Opportunity] = {
    FaultKind.CUT_PUSH: "push",
    FaultKind.CUT_PULL: "pull",
    FaultKind.CORRUPT_PULL: "pull",
}
LOG = "faults.jsonl"


@dataclass(frozen=True)
class FaultSpec:
    """One fault to have.

    Attributes:
        kind: what.
        rate: chance at each opportunity, 0 to 1: a push, a pull, or a shell command for all other kinds. None: at a
            moment.
        after_s: the moment, in seconds from when the phone is told; with `rate`, opportunities count only from then.
        count: how often at most; None for no limit.
        seconds: how long a state lasts (offline, unauthorized, hot, battery, storage, slow).
        match: with `rate`, only shell commands that contain this are opportunities.
        seed: of the chance.
    """

    kind: FaultKind
    rate: float | None = None
    after_s: float = 0.0
    count: int | None = 1
    seconds: float = 5.0
    match: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rate is not None and not 0.0 <= self.rate <= 1.0:
            raise ConfigError(f"a rate of {self.rate:g} is not from 0 to 1", where=f"fault {self.kind}")
        if self.after_s < 0 or self.seconds < 0 or (self.count is not None and self.count < 1):
            raise ConfigError("after_s and seconds must not be negative, count at least 1", where=f"fault {self.kind}")

    @property
    def opportunity(self) -> Opportunity:
        """At what it can strike."""
        return _OPPORTUNITY.get(self.kind, "shell")

    @property
    def waits(self) -> bool:
        """Whether it strikes at an opportunity and not at a moment: what happens to a command needs one."""
        return self.rate is not None or self.kind in (*_OPPORTUNITY, FaultKind.HANG_SHELL)

    def to_json(self) -> str:
        """On one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> FaultSpec:
        """The reverse of `to_json`.

        Raises:
            ConfigError: it is not that.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            return cls(**{**data, "kind": FaultKind(data["kind"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"not a fault: {error}", where=text[:80]) from None


class FaultPlan:
    """The faults a phone is armed with. Deterministic: the n-th opportunity of a spec always meets the same chance."""

    def __init__(self) -> None:
        self._armed: list[tuple[FaultSpec, random.Random, float]] = []
        self._left: list[int | None] = []

    def __len__(self) -> int:
        return len(self._armed)

    def arm(self, spec: FaultSpec, now: float) -> None:
        """Adds a fault that waits for an opportunity; `now` in seconds on any clock that `due` uses, too."""
        self._armed.append((spec, random.Random(f"{spec.seed}-{spec.kind}"), now + spec.after_s))  # noqa: S311
        self._left.append(spec.count)

    def clear(self) -> None:
        """Forgets all."""
        self._armed.clear()
        self._left.clear()

    def due(self, opportunity: Opportunity, text: str, now: float) -> list[FaultSpec]:
        """Those that strike at this opportunity, in the order armed.

        Args:
            opportunity: what is happening.
            text: the shell's command; empty for a push or pull.
            now: the moment.
        """
        return list(self._due(opportunity, text, now))

    def _due(self, opportunity: Opportunity, text: str, now: float) -> Iterator[FaultSpec]:
        for index, (spec, rng, since) in enumerate(self._armed):
            if spec.opportunity != opportunity or self._left[index] == 0 or now < since or spec.match not in text:
                continue
            if rng.random() < (1.0 if spec.rate is None else spec.rate):
                left = self._left[index]
                self._left[index] = None if left is None else left - 1
                yield spec


@dataclass(frozen=True)
class Struck:
    """One fault that happened: when (seconds since the epoch), on which phone, of what kind, and to what."""

    time: float
    phone: str
    kind: FaultKind
    detail: str = ""


def log_fault(folder: Path, struck: Struck) -> None:
    """Appends to the rack's log, one line in one write."""
    line = json.dumps(asdict(struck)) + "\n"
    descriptor = os.open(folder / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read_faults(folder: Path) -> tuple[Struck, ...]:
    """All faults that struck a rack, in order; none if there is no log."""
    try:
        lines = (folder / LOG).read_text().splitlines()
    except OSError:
        return ()
    found = []
    for line in lines:
        data = json.loads(line)
        found.append(Struck(**{**data, "kind": FaultKind(data["kind"])}))
    return tuple(found)


def struck_now(phone: str, kind: FaultKind, detail: str = "") -> Struck:
    """A fault that happens at this moment."""
    return Struck(time.time(), phone, kind, detail)
