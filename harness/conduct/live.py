"""What each phone does now, as lines that any process of a run appends and its first process shows."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path


class LiveLog:
    """Appends `time phone what` lines to `live.log` in a run's folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "live.log"

    def say(self, phone: str, what: str) -> None:
        """Adds a line; safe from any process and thread."""
        line = f"{time.strftime('%H:%M:%S')} {phone or '-':<10} {' '.join(what.split())}\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


class Follower:
    """A thread that hands each new line of a live log to `show`."""

    def __init__(self, log: LiveLog, show: Callable[[str], None]) -> None:
        self._path, self._show = log.path, show
        self._offset = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="htpfarm-live", daemon=True)

    def start(self) -> None:
        """Starts following."""
        self._thread.start()

    def stop(self) -> None:
        """Shows what is left and ends."""
        self._stop.set()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        while not self._stop.wait(0.3):
            self._drain()
        self._drain()

    def _drain(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.decode("utf-8", errors="replace").splitlines():
            self._show(line)
