"""What a session's result or an exception means: the failure class, the reason, the remedy. Pure."""

from __future__ import annotations

import errno
import signal
import subprocess
from dataclasses import dataclass

from harness.errors import FailureClass, HarnessError
from harness.farm.session import SessionResult
from harness.farm.signatures import find_signature

EVIDENCE_LINES = 20


@dataclass(frozen=True)
class Failure:
    """Why something failed.

    Attributes:
        failure_class: what follows; see the table in the README.
        reason: one sentence.
        remedy: what the reader can do; empty if nothing is known.
        evidence: the lines that show it.
        signature: name of the known failure, or empty.
    """

    failure_class: FailureClass
    reason: str
    remedy: str = ""
    evidence: str = ""
    signature: str = ""


def classify(result: SessionResult) -> Failure | None:
    """None if the session counts: it ended with status 0, an observer's record and all its outputs.

    The status alone proves nothing: qnn_llama_runner exits 0 when generation failed.
    """
    if result.boot_id_after != result.boot_id_before:
        return Failure(
            FailureClass.CRASH,
            "the phone rebooted during the session",
            "see the phone's /sys/fs/pstore and `adb logcat -L` for why",
            _tail(result),
        )
    if (reason := _reason(result)) is None:
        return None
    if match := find_signature(f"{result.stderr}\n{result.stdout}"):
        known, line = match
        return Failure(
            known.failure_class, f"{known.meaning} ({reason}; see {known.source})", known.remedy, line, known.name
        )
    return Failure(FailureClass.PRODUCT, reason, "", _tail(result))


def classify_exception(error: BaseException) -> Failure:
    """By type, never by text: the harness's own errors say what they are; anything unknown is the product's."""
    if isinstance(error, HarnessError):
        reason = f"{error.where}: {error.what}" if error.where else error.what
        return Failure(error.failure_class, reason, error.remedy, error.evidence)
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        return Failure(FailureClass.ENV, "this computer has too little memory", "run fewer cells side by side", text)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure(FailureClass.ENV, "this computer's storage is full", "free storage", text)
    if isinstance(error, (subprocess.TimeoutExpired, ConnectionError, TimeoutError)):
        return Failure(FailureClass.INFRA, text)
    return Failure(FailureClass.PRODUCT, text)


def _reason(result: SessionResult) -> str | None:
    """Why a session does not count, in one clause; None if it does."""
    if result.timed_out:
        return f"the runner was still running after {result.seconds:.0f} s and was ended"
    if result.exit_status != 0:
        return f"the runner ended with {_status(result.exit_status)}"
    if result.observer is None:
        return "the runner exited with 0 but printed no PyTorchObserver record"
    if result.missing:
        return f"the runner wrote no {', '.join(result.missing)}"
    return None


def _status(status: int | None) -> str:
    if status is None:
        return "no status"
    try:
        name = signal.Signals(status - 128).name
    except ValueError:
        name = ""
    notes = {
        "SIGABRT": "SIGABRT, as a failed ET_CHECK does",
        "SIGKILL": "SIGKILL, as Android's low-memory killer does",
    }
    said = notes.get(name, name)
    if status == 126:
        said = "the session's folder or program cannot be used"
    if status == 127:
        said = "the program or its interpreter was not found"
    return f"status {status} ({said})" if said else f"status {status}"


def _tail(result: SessionResult) -> str:
    lines = [*result.stdout.splitlines(), *result.stderr.splitlines()]
    return "\n".join(lines[-EVIDENCE_LINES:])
