"""Lookahead's course: an honest runner's is the replay's, and no other runner's is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from runtime_fixtures import ToyHtp, toy_info
from toy_witness import SPREAD, SURE, Floats, LoopQdq, ToyQdq, toy_witness

from harness.build import testify
from harness.build.witness import Guess, LookaheadWitness
from harness.errors import NotJudgedError
from harness.evaluate.lookahead import LEAST_EXPECTED, Walked, counted_check, course_check, course_of, replay
from harness.evaluate.rules import RULES, CellRules
from harness.runtime.generate import generate
from harness.runtime.lookahead import Lookahead, Settings
from harness.runtime.sampling import greedy
from harness.runtime.session import Session

TREE = Settings(3, 2, 2)
CONTEXT, NEW = 64, 24
PROMPT = (0, 1, 2)
TIE = RULES.tie * SPREAD
QDQ = LoopQdq()


def tree_of(logits: Callable[[Sequence[int]], Floats]) -> Callable[..., Floats]:
    """QDQ over a tree of guesses: a row's logits are those of the text that it sees, in the order of its positions."""

    def tree(tokens: Sequence[int], sees: np.ndarray, positions: Sequence[int]) -> Floats:
        rows = []
        for row in range(len(tokens)):
            seen = sorted(np.flatnonzero(sees[row]), key=lambda column: positions[column])
            assert [positions[column] for column in seen] == list(range(len(seen)))
            rows.append(logits([tokens[column] for column in seen])[-1])
        return np.stack(rows)

    return tree


def expected(prompt: Sequence[int] = PROMPT, qdq: Callable[[Sequence[int]], Floats] = QDQ) -> LookaheadWitness:
    """What lookahead does on QDQ's logits."""
    text = toy_witness(qdq, prompts=[prompt], new=NEW).prompts[tuple(prompt)]
    return testify.testify_lookahead(tree_of(qdq), TREE, text, NEW, CONTEXT)


class Runner:
    """A runner of lookahead that may go wrong.

    Args:
        logits: what it computes with.
        verifies: whether it ever takes a guess.
        wrong: number of the step → row whose choice is the second-likeliest token.
    """

    def __init__(
        self,
        logits: Callable[[Sequence[int]], Floats] = QDQ,
        prompt: Sequence[int] = PROMPT,
        verifies: bool = True,
        wrong: dict[int, int] | None = None,
    ) -> None:
        lookahead = Lookahead(TREE)
        tokens = [int(logits(prompt)[-1].argmax())]
        lookahead.begin([*prompt, *tokens])
        choices, accepted = [], 0
        while len(tokens) < NEW:
            draft = lookahead.draft(tokens[-1])
            step = []
            for row in range(len(draft)):
                path = [draft[place] for place in TREE.path(row)]
                values = logits([*prompt, *tokens[:-1], *path])[-1]
                second = (wrong or {}).get(len(choices)) == row
                step.append(int(np.argsort(-values, kind="stable")[int(second)]))
            found = lookahead.verify(tokens[-1], step.__getitem__, step.__getitem__)
            new = found.tokens[: NEW - len(tokens)] if verifies else found.tokens[:1]
            tokens, accepted = [*tokens, *new], accepted + len(new) - 1
            choices.append(tuple(step))
        seq_len = len(prompt) + NEW
        limit = CONTEXT - TREE.ar_len
        self.walked = Walked(tuple(prompt), tuple(tokens), len(choices), accepted, tuple(choices), seq_len, limit)


RIGHT = Runner().walked
KNOWN = expected()


def check(walked: Walked, known: LookaheadWitness = KNOWN, rules: CellRules = RULES, typical: float = SPREAD) -> str:
    """The verdict of one reply, and what is said of it."""
    found = course_check("cell", [walked], TREE, [known], typical, rules)
    assert (found.name, found.cell, found.bound) == ("lookahead_course", "cell", 0.0)
    return f"{found.verdict}: {found.text}"


def test_an_honest_runner_passes_and_its_guesses_are_compared() -> None:
    said = check(RIGHT)
    assert said.startswith("PASSED")
    assert RIGHT.accepted >= LEAST_EXPECTED
    assert (KNOWN.steps, KNOWN.accepted) == (RIGHT.steps, RIGHT.accepted)
    compared = RIGHT.steps * TREE.window
    assert f"{RIGHT.steps} steps accepted {RIGHT.accepted} tokens" in said
    assert f"(on QDQ's: {KNOWN.steps} and {KNOWN.accepted}); {compared} guesses held against QDQ, 0 of them" in said
    both = course_check("c", [RIGHT, RIGHT], TREE, [KNOWN, KNOWN], SPREAD)
    assert f"{2 * RIGHT.steps} steps accepted {2 * RIGHT.accepted} tokens" in both.text
    assert f"{2 * KNOWN.steps} and {2 * KNOWN.accepted}" in both.text
    assert f"{2 * compared} guesses" in both.text


def test_the_replay_is_what_the_runtime_does() -> None:
    """The runtime's own loop over a session, of a toy that computes attention."""
    for prompt, seq_len, context in (([1, 2, 3], 40, 48), ([5, 6], 48, 48), ([4] * 9, 20, 48), ([3, 1], 30, 30)):
        session = Session(ToyHtp(toy_info(context, 4, decode_ar=TREE.ar_len)))
        found = generate(session, prompt, seq_len=seq_len, choose=greedy, keep_rows=True, lookahead=Lookahead(TREE))
        limit = context - TREE.ar_len
        walked = Walked(
            tuple(prompt), found.tokens, found.decode_steps, found.accepted, found.row_choices, seq_len, limit
        )
        course = replay(walked, TREE).course
        assert course is not None
        assert (course.tokens, course.steps, course.accepted) == (found.tokens, found.decode_steps, found.accepted)
        assert course.full is (len(found.tokens) < seq_len - len(prompt))


def test_the_replay_knows_each_steps_draft() -> None:
    again = replay(RIGHT, TREE)
    assert len(again.drafts) == RIGHT.steps
    assert again.drafts[0][0] == 1
    assert [draft[0] for _, draft in again.drafts] == [RIGHT.tokens[done - 1] for done, _ in again.drafts]
    assert replay(RIGHT, TREE) == again  # from a fresh branch each time
    assert replay(replace(RIGHT, seed=1), TREE).drafts != again.drafts


@pytest.mark.parametrize("steps", [0, 1, RIGHT.steps - 1])
def test_a_runner_that_stops_early_fails(steps: int) -> None:
    short = replace(RIGHT, row_choices=RIGHT.row_choices[:steps], steps=steps, tokens=RIGHT.tokens[:3])
    assert check(short).startswith(f"FAILED: reply 0: it stopped after {steps} steps, where lookahead goes on")
    assert replay(short, TREE).course is None
    assert len(replay(short, TREE).drafts) == steps


def test_a_runner_without_a_token_fails() -> None:
    nothing = replace(RIGHT, tokens=(), row_choices=(), steps=0, accepted=0)
    assert check(nothing).startswith("FAILED: reply 0: it stopped after 0 steps")
    assert replay(nothing, TREE).drafts == ()


def test_rows_that_are_left_out_fail() -> None:
    first = RIGHT.row_choices[0]
    less = replace(RIGHT, row_choices=(first[: TREE.levels * TREE.window - 1], *RIGHT.row_choices[1:]))
    assert check(less).startswith("FAILED: reply 0: it stopped")
    more = replace(RIGHT, row_choices=tuple((*step, *([0] * (TREE.ar_len - len(step)))) for step in RIGHT.row_choices))
    assert check(more).startswith("PASSED")  # rows that were not drafted say nothing


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": RIGHT.steps - 1}, f"steps: {RIGHT.steps - 1}, lookahead on the same choices gives {RIGHT.steps}"),
        ({"steps": RIGHT.steps + 1}, f"it counts {RIGHT.steps + 1} steps and took {RIGHT.steps}"),
        ({"accepted": RIGHT.accepted + 1}, f"accepted tokens: {RIGHT.accepted + 1}, lookahead on the same choices"),
        ({"accepted": RIGHT.accepted - 1}, f"gives {RIGHT.accepted}"),
        ({"tokens": RIGHT.tokens[:-1]}, f"tokens: {NEW - 1} of them, lookahead on the same choices gives {NEW} of"),
        ({"tokens": (*RIGHT.tokens[:-1], 99)}, f"tokens: {NEW} of them, lookahead on the same choices gives {NEW}"),
        ({"row_choices": (*RIGHT.row_choices, (0,) * 8)}, f"it counts {RIGHT.steps} steps and took {RIGHT.steps + 1}"),
    ],
)
def test_counts_and_tokens_are_the_replays(changes: dict[str, object], said: str) -> None:
    found = check(replace(RIGHT, **changes))  # type: ignore[arg-type]
    assert found.startswith("FAILED")
    assert said in found


def test_a_runner_that_never_takes_a_guess_fails() -> None:
    lazy = Runner(verifies=False).walked
    assert lazy.tokens == RIGHT.tokens
    assert (lazy.steps, lazy.accepted) == (NEW - 1, 0)
    found = check(lazy)
    assert found.startswith("FAILED")
    assert "steps: 23, lookahead on the same choices gives" in found


def wrong_guess() -> Runner:
    """In its third step the first guessing row takes the second-likeliest token."""
    return Runner(wrong={2: TREE.guessing_rows[0]})


def test_a_guess_that_is_wrong_at_a_sure_place_fails_though_the_text_is_right() -> None:
    runner = wrong_guess().walked
    assert runner.tokens == RIGHT.tokens
    found = check(runner)
    done, draft = replay(runner, TREE).drafts[2]
    row = TREE.guessing_rows[0]
    right = (draft[row] + 1) % 13
    assert found.startswith(f"FAILED: reply 0: after {done} tokens row {row} guesses {right + 1}, QDQ {right}, by")
    assert f"by {SURE:.3f} nats" in found


@pytest.mark.parametrize("share", [0.0, 0.99, 1.0, 1.01])
def test_a_guess_that_is_wrong_at_a_near_tie_passes_and_is_counted(share: float) -> None:
    runner = wrong_guess().walked
    for rules in (RULES, CellRules(tie=2.0)):
        tie = rules.tie * SPREAD
        near = replace(KNOWN, guesses={at: Guess(g.choice, share * tie) for at, g in KNOWN.guesses.items()})
        found = check(runner, near, rules)
        assert found.startswith("PASSED" if share <= 1 else "FAILED")
        if share <= 1:
            assert found.endswith(", 1 of them near ties")
            twice = course_check("c", [runner, runner], TREE, [near, near], SPREAD, rules)
            assert twice.text.endswith(", 2 of them near ties")
        assert check(runner, near, rules, typical=2 * SPREAD).startswith("PASSED")


def test_only_the_first_wrong_guess_of_a_reply_is_named() -> None:
    sure = {at: Guess(g.choice + 100, 9.0) for at, g in KNOWN.guesses.items()}
    found = course_check("c", [RIGHT, RIGHT], TREE, [replace(KNOWN, guesses=sure)] * 2, SPREAD)
    assert found.value == 2.0
    assert found.text.count("guesses") == 2
    assert "; reply 1: after 1 tokens" in found.text


def test_guesses_of_which_the_witness_says_nothing_are_not_compared() -> None:
    none = replace(KNOWN, guesses={})
    assert check(RIGHT, none).startswith("NOT_JUDGED")
    some = replace(KNOWN, guesses=dict(list(KNOWN.guesses.items())[:1]))
    assert "); 1 guesses held against QDQ" in check(RIGHT, some)
    last = {at: g for at, g in KNOWN.guesses.items() if len(at[1]) == len(TREE.path(TREE.guessing_rows[-1]))}
    assert f"); {RIGHT.steps} guesses held against QDQ" in check(RIGHT, replace(KNOWN, guesses=last))
    assert course_check("c", [], TREE, [], SPREAD).verdict == "NOT_JUDGED"
    lazy = Runner(verifies=False).walked
    assert check(lazy, none).startswith("FAILED")


def test_each_reply_is_held_to_its_own_witness() -> None:
    with pytest.raises(ValueError, match="zip"):
        course_check("c", [RIGHT], TREE, [], SPREAD)
    other = Runner(prompt=(3, 4, 5, 6)).walked
    both = [KNOWN, expected((3, 4, 5, 6))]
    assert course_check("c", [RIGHT, other], TREE, both, SPREAD).passed
    bad = course_check("c", [RIGHT, replace(other, steps=other.steps + 1)], TREE, both, SPREAD)
    assert bad.text.startswith("reply 1: ")


def test_a_prompt_that_lookaheads_witness_does_not_know_is_not_judged() -> None:
    assert course_of({PROMPT: KNOWN}, PROMPT) is KNOWN
    with pytest.raises(NotJudgedError, match="does not know a prompt of 2 tokens"):
        course_of({PROMPT: KNOWN}, (0, 1))


@examples(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(2, 39), min_size=2, max_size=6))
def test_an_honest_runner_of_any_model_passes(seed: int, prompt: list[int]) -> None:
    qdq = ToyQdq(seed=seed)
    runner = Runner(qdq, prompt)
    assert check(runner.walked, expected(prompt, qdq)).startswith("PASSED")


# A runner that counts and says no more.


@pytest.mark.parametrize(
    ("accepted", "expects", "verdict"),
    [
        (10, 20, "PASSED"),
        (9, 20, "FAILED"),
        (9, 19, "FAILED"),
        (0, LEAST_EXPECTED, "FAILED"),
        (0, LEAST_EXPECTED - 1, "PASSED"),
        (4, LEAST_EXPECTED, "PASSED"),
        (40, 20, "PASSED"),
    ],
)
def test_far_fewer_accepted_tokens_than_qdqs_logits_let_accept_fail(accepted: int, expects: int, verdict: str) -> None:
    assert LEAST_EXPECTED == 8
    found = counted_check("cell", [(50, accepted)], [replace(KNOWN, accepted=expects)])
    assert (found.verdict, found.name, found.cell) == (verdict, "lookahead_course", "cell")
    assert (found.value, found.bound) == (accepted, expects / 2)
    assert found.text == f"{accepted} of 50 tokens accepted; on QDQ's logits {expects}"


def test_counts_are_of_all_replies() -> None:
    found = counted_check("c", [(20, 9), (30, 0)], [replace(KNOWN, accepted=9), replace(KNOWN, accepted=9)])
    assert found.passed
    assert found.text == "9 of 50 tokens accepted; on QDQ's logits 18"
    for counts, known in (([(20, 9)], []), ([(20, 9)], [KNOWN, KNOWN]), ([], [KNOWN]), ([], [])):
        assert counted_check("c", counts, known).verdict == "NOT_JUDGED"
