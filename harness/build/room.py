"""Lets builds start side by side while this machine's memory lasts; `schedule.compiles` decides which."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from harness.schedule.compiles import Build, next_builds

POLL_S = 1.0


class Room:
    """Memory and workers for builds. One instance for all threads of a builder."""

    def __init__(self, budget_mb: float, workers: int) -> None:
        """
        Args:
            budget_mb: memory for all builds together, in MB.
            workers: builds at once at most.
        """
        self._budget, self._workers = budget_mb, workers
        self._pending: list[Build] = []
        self._running: list[Build] = []
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, build: Build, stop: threading.Event) -> Iterator[None]:
        """Waits until the build may start, and keeps its memory inside the block.

        Returns early when `stop` is set: the block is entered all the same, for the builder to end in order.
        """
        with self._changed:
            self._pending.append(build)
            while not stop.is_set() and build not in self._startable():
                self._changed.wait(POLL_S)
            self._pending.remove(build)
            self._running.append(build)
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._running.remove(build)
                self._changed.notify_all()

    def _startable(self) -> tuple[Build, ...]:
        return next_builds(self._pending, self._running, budget_mb=self._budget, workers=self._workers)
