"""A worker's process: the toolchain's Python and environment, a group of its own, ended with whoever started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from harness.toolchain.environment import Toolchain


@contextlib.contextmanager
def worker_process(toolchain: Toolchain, module: str, job_file: Path) -> Iterator[subprocess.Popen[str]]:
    """`python -m MODULE JOB_FILE`, whose output and errors are one stream; it is dead when the block ends."""
    process = subprocess.Popen(
        [str(toolchain.python), "-m", module, str(job_file)],
        env={**toolchain.environment(), "OMP_WAIT_POLICY": "passive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            end_group(process)
        process.wait()


def end_group(process: subprocess.Popen[str]) -> None:
    """Kills a worker and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
