"""What to do first on a phone one has just leased: end what a holder left behind that died."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.farm.connect import COMMAND_SECONDS, PhoneLink
from harness.farm.lease import Lease, Owner, acquire
from harness.farm.workspace import end_session_command, sweep_command

SWEEP_SECONDS = 2 * COMMAND_SECONDS


@dataclass(frozen=True)
class SweepReport:
    """What was left over: process numbers on the phone that were killed, and paths that were removed."""

    killed: tuple[int, ...]
    removed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.killed or self.removed)


def sweep(link: PhoneLink) -> SweepReport:
    """Ends all sessions on a phone. Only for the holder of its lease: any session there is a dead holder's.

    Kills only processes that a session recorded, by number, start time and boot, or that work in a session's folder.

    Raises:
        AdbFailure: the phone does not answer, or a folder cannot be removed.
    """
    return _report(link.must(sweep_command(), timeout_s=SWEEP_SECONDS).stdout)


def end_session(link: PhoneLink, folder: str) -> SweepReport:
    """Ends one session and removes its folder.

    Raises:
        AdbFailure: the phone does not answer, or the folder cannot be removed.
    """
    return _report(link.must(end_session_command(folder), timeout_s=SWEEP_SECONDS).stdout)


@contextmanager
def leased(
    link: PhoneLink, owner: Owner, *, wait_s: float = 0.0, lease_dir: Path | None = None
) -> Iterator[tuple[Lease, SweepReport]]:
    """Sole use of a phone, swept of what a dead holder left; see `lease.acquire`.

    Raises:
        InfraError: it did not become free in time, or does not answer.
    """
    with acquire(link.serial, owner, wait_s=wait_s, lease_dir=lease_dir) as lease:
        yield lease, sweep(link)


def _report(text: str) -> SweepReport:
    killed, removed = [], []
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "killed" and rest.isdigit():
            killed.append(int(rest))
        elif word == "removed":
            removed.append(rest)
    return SweepReport(tuple(dict.fromkeys(killed)), tuple(removed))
