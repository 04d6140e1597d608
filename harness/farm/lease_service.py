"""What a lease is to the rest of the harness: an interface that a network service can stand behind.

`HostLeases` is the one that exists: the locks of this host (`harness/farm/lease.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from harness.farm import lease as host
from harness.farm.lease import Holder, Owner


class HeldLease(Protocol):
    """Sole use of one phone until `release` or the holder's death."""

    @property
    def serial(self) -> str:
        """The phone."""

    @property
    def held(self) -> bool:
        """Whether it has not been released."""

    def release(self) -> None:
        """Frees the phone; a second time does nothing."""

    def __enter__(self) -> HeldLease: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LeaseService(Protocol):
    """Gives each phone to one holder at a time, and takes it back when the holder dies."""

    def acquire_any(
        self,
        serials: Sequence[str],
        owner: Owner,
        *,
        wait_s: float = 0.0,
        progress: Callable[[tuple[Holder, ...]], None] | None = None,
    ) -> HeldLease:
        """The first of several phones, in the order of preference, that is free. Raises InfraError: none in time."""

    def holders(self) -> tuple[Holder, ...]:
        """The phones leased at this moment, by serial."""

    def break_lease(self, serial: str) -> tuple[int, ...]:
        """Takes a phone from its holder; the numbers of the processes that were ended for it."""


@dataclass(frozen=True)
class HostLeases:
    """The leases of this host; `folder` is where they lie, `lease.default_lease_dir()` if None."""

    folder: Path | None = None

    def acquire_any(
        self,
        serials: Sequence[str],
        owner: Owner,
        *,
        wait_s: float = 0.0,
        progress: Callable[[tuple[Holder, ...]], None] | None = None,
    ) -> HeldLease:
        """See LeaseService."""
        return host.acquire_any(serials, owner, wait_s=wait_s, lease_dir=self.folder, progress=progress)

    def holders(self) -> tuple[Holder, ...]:
        """See LeaseService."""
        return host.holders(self.folder)

    def break_lease(self, serial: str) -> tuple[int, ...]:
        """See LeaseService."""
        return host.break_lease(serial, lease_dir=self.folder)
