"""What a session's result or an exception means: the failure class, the reason, the remedy. Pure."""

from __future__ import annotations

import errno
import signal
import subprocess
from dataclasses import dataclass

from harness.errors import FailureClass, HarnessError, ProductError
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
    evidence = last_lines(f"{result.stdout}\n{result.stderr}")
    if result.boot_id_after != result.boot_id_before:
        return rebooted(evidence)
    if (reason := _reason(result)) is None:
        return None
    if result.killed:
        return Failure(
            FailureClass.ENV,
            "Android's low-memory killer ended the runner",
            "close what else runs on the phone, reboot it, or use one with more memory",
            result.killed,
            "low-memory-killer",
        )
    return explain(reason, f"{result.stderr}\n{result.stdout}", evidence)


def rebooted(evidence: str) -> Failure:
    """The phone's boot id changed while a runner ran."""
    return Failure(
        FailureClass.CRASH,
        "the phone rebooted during the session",
        "see the phone's /sys/fs/pstore and `adb logcat -L` for why",
        evidence,
    )


def explain(reason: str, said: str, evidence: str) -> Failure:
    """Why a runner ended that should not have: a known failure if `said`, its output, shows one, else PRODUCT.

    Args:
        reason: how it ended, in one clause.
        said: where to look for known failures.
        evidence: what to show if there is none.
    """
    if match := find_signature(said):
        known, line = match
        return Failure(
            known.failure_class, f"{known.meaning} ({reason}; see {known.source})", known.remedy, line, known.name
        )
    return Failure(FailureClass.PRODUCT, reason, "", evidence)


def error_of(failure: Failure, where: str) -> HarnessError:
    """The failure as an exception of its class, for callers that have no result to return."""
    kinds = HarnessError.__subclasses__()
    kind = next((kind for kind in kinds if kind.failure_class is failure.failure_class), ProductError)
    return kind(failure.reason, where=where, remedy=failure.remedy, evidence=failure.evidence)


def ended_with(status: int | None) -> str:
    """A runner's exit status in words, with what a shell's convention makes of it."""
    return f"the runner ended with {_status(status)}"


def last_lines(said: str) -> str:
    """The end of an output, for evidence."""
    return "\n".join(said.splitlines()[-EVIDENCE_LINES:])


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
        return ended_with(result.exit_status)
    if result.observer is None:
        return "the runner exited with 0 but printed no PyTorchObserver record"
    if nonsense := result.observer.nonsense:
        return f"the runner's PyTorchObserver record is no measurement: {nonsense}"
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
