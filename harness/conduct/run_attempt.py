"""What an attempt does, in order."""

from __future__ import annotations

from collections.abc import Sequence

from harness.build.witness import load_lookahead
from harness.conduct.accuracy import Unseen, measure_accuracy
from harness.conduct.attempt import Attempt, not_judged_check, verdict
from harness.conduct.real import run_on_real
from harness.conduct.replies import Answered, run_prompts
from harness.conduct.speed_witness import speed_check
from harness.errors import NotJudgedError
from harness.evaluate.judge import delegation_check
from harness.evaluate.lookahead import course_check, course_of
from harness.evaluate.text import Judged, text_checks
from harness.farm.failures import Failure
from harness.model_file import Mode
from harness.results.records import CheckRecord
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
    answered = run_prompts(attempt, deployed)
    if isinstance(answered, Failure):
        return answered
    checks = [delegation_check(cell.id, read_info(attempt.artifact.pte).operators)]
    try:
        found, judged = judge_replies(attempt, answered)
        checks += found
        rows = [part for one in judged for part in one.rows]
        unseen = [] if attempt.qdq else _unseen(attempt, answered, judged)
        scores, turns = measure_accuracy(attempt, deployed, rows, unseen)
        checks += scores
        checks.append(speed_check(cell.id, [*(one.witnessed for one in answered), turns]))
    except NotJudgedError as error:
        checks.append(not_judged_check(cell.id, error))
    attempt.record_checks(checks)
    return verdict(checks)


def _unseen(attempt: Attempt, answered: Sequence[Answered], judged: Sequence[Judged]) -> list[Unseen]:
    """What of QDQ's continuations the phone's texts parted from."""
    found = []
    for one, judgement in zip(answered, judged, strict=True):
        text = attempt.witness.prompts[one.reply.fed]
        start = text.prompt + (judgement.parted or 0)
        if judgement.parted is not None and start < len(text.inputs):
            found.append(Unseen(text, start))
    return found


def judge_replies(attempt: Attempt, answered: Sequence[Answered]) -> tuple[list[CheckRecord], list[Judged]]:
    """Every check of the cell's texts, and the judgement of each.

    Raises:
        NotJudgedError: there is no witness, or it does not know the prompts.
    """
    attempt.say("comparing the text with QDQ's")
    cell, witness = attempt.cell, attempt.witness
    replies = [one.reply for one in answered]
    checks, judged, _ = text_checks(cell.id, replies, witness, attempt.tokenizer, attempt.stop, attempt.qdq)
    if cell.mode is Mode.LOOKAHEAD:
        known = load_lookahead(attempt.artifact.reference, attempt.settings)
        walked = [one.walked for one in answered if one.walked is not None]
        courses = [course_of(known, one.prompt) for one in walked]
        checks.append(course_check(cell.id, walked, attempt.settings, courses, witness.typical_spread))
    return checks, judged
