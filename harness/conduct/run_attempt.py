"""What an attempt does, in order."""

from __future__ import annotations

from harness.conduct.accuracy import measure_accuracy
from harness.conduct.attempt import Attempt, verdict
from harness.conduct.real import run_on_real
from harness.conduct.replies import run_prompts
from harness.evaluate.judge import delegation_check
from harness.farm.failures import Failure
from harness.runtime.program import read_info
from harness.target import Target


def run_attempt(attempt: Attempt) -> Failure | None:
    """Deploys, runs every prompt in a process of its own, measures accuracy in one that stays, and judges.

    Returns:
        None when all checks hold.

    Raises:
        HarnessError: the phone, the connection or the artifact failed.
    """
    cell, bench = attempt.cell, attempt.bench
    if bench.target is Target.ANDROID:
        return run_on_real(attempt)
    deployed = attempt.deploy(attempt.payload)
    replies = run_prompts(attempt, deployed)
    if isinstance(replies, Failure):
        return replies
    found = measure_accuracy(attempt, deployed, replies)
    operators = read_info(attempt.artifact.pte).operators
    checks = (delegation_check(cell.id, operators), *found)
    for check in checks:
        bench.record(check)
    return verdict(checks)
