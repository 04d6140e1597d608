"""ExecuTorch's log lines and its way to die, for programs that read the runner's standard error.

Format: `et_pal_emit_log_message` of `runtime/platform/default/posix.cpp`; `ET_CHECK_MSG` of
`runtime/platform/assert.h`.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from typing import NoReturn

MAX_MESSAGE = 255
"""Bytes of a message that ExecuTorch's logger keeps."""


class EtCheckError(Exception):
    """A failed ET_CHECK: the runner logs it and aborts (SIGABRT, status 134).

    Args:
        place: source file, line and function it stands in upstream.
        condition: what did not hold, as upstream writes it.
        message: what ET_CHECK_MSG adds; empty for a plain ET_CHECK.
    """

    def __init__(self, place: tuple[str, int, str], condition: str, message: str = "") -> None:
        super().__init__(message or condition)
        self.place = place
        self.condition = condition
        self.message = message


class EtLog:
    """Writes lines as ET_LOG does: level, time since start, source file and line, message."""

    def __init__(self) -> None:
        self._start = time.monotonic_ns()

    def info(self, file: str, line: int, message: str) -> None:
        """Level Info."""
        self._emit("I", file, line, message)

    def error(self, file: str, line: int, message: str) -> None:
        """Level Error."""
        self._emit("E", file, line, message)

    def abort(self, failure: EtCheckError) -> NoReturn:
        """Logs at level Fatal and ends the process with SIGABRT, leaving no core file."""
        file, line, function = failure.place
        detail = f" ({failure.condition}): {failure.message}" if failure.message else f": {failure.condition}"
        self._emit("F", file, line, f"In function {function}(), assert failed{detail}")
        sys.stdout.flush()
        sys.stderr.flush()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.abort()

    def _emit(self, level: str, file: str, line: int, message: str) -> None:
        seconds, micros = divmod((time.monotonic_ns() - self._start) // 1000, 1_000_000)
        kept = message.encode("utf-8", errors="replace")[:MAX_MESSAGE].decode("utf-8", errors="ignore")
        stamp = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{micros:06d}"
        print(f"{level} {stamp} executorch:{file}:{line}] {kept}", file=sys.stderr, flush=True)
