"""Did lookahead go the way it must? The algorithm is run again on what the runner says each row chose. Pure.

Which n-grams are guessed, verified and taken follows from the rows' choices alone, so tokens, steps and accepted tokens
must be those of the replay, exactly. The choices of the rows that make the text are judged with the text; those that
make guesses are held against QDQ's of the same path, where the witness has it: they must be the same, or nearly as
likely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.build.witness import LookaheadWitness
from harness.errors import NotJudgedError
from harness.evaluate.judge import Verdict, make_check
from harness.evaluate.rules import RULES, CellRules
from harness.results.records import CheckRecord
from harness.runtime.lookahead import Course, Lookahead, Settings, run_lookahead

LEAST_EXPECTED = 8
"""Accepted tokens below which their number says nothing."""


@dataclass(frozen=True)
class Walked:
    """What a runner says of one lookahead reply.

    Attributes:
        prompt: fed tokens.
        tokens: generated.
        steps, accepted: its counts.
        row_choices: of each step, the likeliest token of each row.
        seq_len: prompt and output together, as it was told.
        limit: tokens that the decode graph's cache holds.
        seed: of the branch's first tokens.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    steps: int
    accepted: int
    row_choices: tuple[tuple[int, ...], ...]
    seq_len: int
    limit: int
    seed: int = 0


@dataclass(frozen=True)
class Replay:
    """The algorithm on the runner's choices.

    Attributes:
        course: what it comes to; None where it wants more steps than the runner took.
        drafts: of each step: tokens generated before it, and its draft.
    """

    course: Course | None
    drafts: tuple[tuple[int, tuple[int, ...]], ...]


class _NoMoreStepsError(Exception):
    """The runner stopped where the algorithm goes on."""


def replay(walked: Walked, settings: Settings) -> Replay:
    """Runs the algorithm on what the rows chose."""
    emitted = list(walked.tokens[:1])
    drafts: list[tuple[int, tuple[int, ...]]] = []

    def step(draft: Sequence[int]) -> Sequence[int]:
        if len(drafts) == len(walked.row_choices) or len(walked.row_choices[len(drafts)]) < len(draft):
            raise _NoMoreStepsError
        drafts.append((len(emitted), tuple(draft)))
        return walked.row_choices[len(drafts) - 1]

    course = None
    if emitted:
        try:
            state = Lookahead(settings, walked.seed)
            course = run_lookahead(state, walked.prompt, emitted, step, seq_len=walked.seq_len, limit=walked.limit)
        except _NoMoreStepsError:
            course = None
    return Replay(course, tuple(drafts))


def course_check(
    cell: str,
    replies: Sequence[Walked],
    settings: Settings,
    known: Sequence[LookaheadWitness],
    typical: float,
    rules: CellRules = RULES,
) -> CheckRecord:
    """Tokens, steps, accepted tokens and guesses of all replies.

    Args:
        cell: its id.
        replies: one a prompt.
        settings: N, W, G.
        known: of each reply, what lookahead does on QDQ's logits.
        typical: the model's typical spread, nats.
        rules: the bounds.
    """
    faults: list[str] = []
    compared = ties = 0
    for number, (walked, qdq) in enumerate(zip(replies, known, strict=True)):
        again = replay(walked, settings)
        faults += [f"reply {number}: {fault}" for fault in _differences(walked, again)]
        wrong, near, seen = _guesses(walked, again, settings, qdq, rules.tie * typical)
        faults += [f"reply {number}: {fault}" for fault in wrong[:1]]
        compared, ties = compared + seen, ties + near
    steps, accepted = sum(one.steps for one in replies), sum(one.accepted for one in replies)
    text = f"{steps} steps accepted {accepted} tokens, as the algorithm does on the same choices (on QDQ's: "
    text += (
        f"{sum(one.steps for one in known)} and {sum(one.accepted for one in known)}); {compared} guesses held against "
    )
    text += f"QDQ, {ties} of them near ties"
    verdict = Verdict.FAILED if faults else Verdict.PASSED if compared else Verdict.NOT_JUDGED
    return make_check(cell, "lookahead_course", verdict, "; ".join(faults) or text, float(len(faults)), 0.0)


def _differences(walked: Walked, again: Replay) -> list[str]:
    course = again.course
    if course is None:
        return [f"it stopped after {walked.steps} steps, where lookahead goes on"]
    said = (("tokens", walked.tokens, course.tokens), ("steps", walked.steps, course.steps))
    found = [
        f"{name}: {_short(theirs)}, lookahead on the same choices gives {_short(ours)}"
        for name, theirs, ours in (*said, ("accepted tokens", walked.accepted, course.accepted))
        if theirs != ours
    ]
    if len(walked.row_choices) != walked.steps:
        found.append(f"it counts {walked.steps} steps and took {len(walked.row_choices)}")
    return found


def _short(value: object) -> str:
    return f"{len(value)} of them" if isinstance(value, tuple) else str(value)


def _guesses(
    walked: Walked, again: Replay, settings: Settings, qdq: LookaheadWitness, near: float
) -> tuple[list[str], int, int]:
    """What is wrong of the guesses, near ties, and guesses compared."""
    wrong: list[str] = []
    ties = seen = 0
    for (done, draft), choices in zip(again.drafts, walked.row_choices, strict=False):
        for row in settings.guessing_rows:
            path = tuple(draft[place] for place in settings.path(row))
            guess = qdq.guesses.get((done, path))
            if guess is None:
                continue
            seen += 1
            if choices[row] == guess.choice:
                continue
            if guess.gap <= near:
                ties += 1
            else:
                said = f"after {done} tokens row {row} guesses {choices[row]}, QDQ {guess.choice}"
                wrong.append(f"{said}, by {guess.gap:.3f} nats")
    return wrong, ties, seen


def course_of(known: Mapping[tuple[int, ...], LookaheadWitness], prompt: tuple[int, ...]) -> LookaheadWitness:
    """What lookahead does on QDQ's logits after a prompt's fed tokens.

    Raises:
        NotJudgedError: the witness has none: the artifact was built with other prompts.
    """
    if prompt not in known:
        raise NotJudgedError(
            f"lookahead's witness does not know a prompt of {len(prompt)} tokens",
            where="witness",
            remedy="compile again: the model's prompts have changed since",
        )
    return known[prompt]


def counted_check(cell: str, counts: Sequence[tuple[int, int]], known: Sequence[LookaheadWitness]) -> CheckRecord:
    """Of a runner that says how many tokens it accepted and no more: as many as may be expected.

    Its branch starts with other random tokens than the witness's, so its steps are not the same; but one that accepts
    less than half of what QDQ's logits let accept, where that is eight tokens or more, guesses or verifies wrong.

    Args:
        cell: its id.
        counts: of each reply, tokens generated after the first and tokens accepted.
        known: of each reply, what lookahead does on QDQ's logits.
    """
    accepted, expected = sum(count for _, count in counts), sum(one.accepted for one in known)
    text = f"{accepted} of {sum(new for new, _ in counts)} tokens accepted; on QDQ's logits {expected}"
    if len(counts) != len(known) or not known:
        return make_check(cell, "lookahead_course", Verdict.NOT_JUDGED, "the runner does not say what it accepted")
    verdict = Verdict.FAILED if expected >= LEAST_EXPECTED and 2 * accepted < expected else Verdict.PASSED
    return make_check(cell, "lookahead_course", verdict, text, float(accepted), expected / 2)
