"""Makes the witness: runs QDQ over the held-out text and the prompts, in the build that has it in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from harness.build.witness import COMPARED, Guess, LookaheadWitness, Witness, WitnessText
from harness.runtime.lookahead import Lookahead, Settings, run_lookahead
from harness.runtime.sampling import log_softmax
from harness.runtime.score import TOP, likeliest
from harness.text.windows import Window

REPLICAS = 4
"""Passes with random rounding: a row's spread is the RMS of so many times COMPARED deviations."""

Floats = npt.NDArray[np.float64]
Logits = Callable[[Sequence[int]], Floats]
"""Token ids → QDQ's logits [n,V] after each."""
Tree = Callable[[Sequence[int], npt.NDArray[np.bool_], Sequence[int]], Floats]
"""Token ids, which sees which [n,n], positions → QDQ's logits [n,V]."""


def testify(
    logits: Logits,
    dithered: Sequence[Logits],
    windows: Sequence[Window],
    prompts: Sequence[Sequence[int]],
    new: int,
    context: int,
) -> Witness:
    """The witness of a model.

    Args:
        logits: QDQ.
        dithered: QDQ rounding at random, a function a replica.
        windows: the held-out text's.
        prompts: fed tokens of each prompt.
        new: tokens of each continuation; fewer where the context ends.
        context: CL.
    """
    held_out = tuple(_rows(logits, dithered, 0, window.inputs, window.targets) for window in windows)
    found = {}
    for prompt in prompts:
        tokens = [*prompt, *greedy_continuation(logits, prompt, min(new, context - len(prompt)))]
        found[tuple(prompt)] = _rows(logits, dithered, len(prompt), tokens[:-1], tokens[1:])
    return Witness(held_out, found)


def greedy_continuation(logits: Logits, prompt: Sequence[int], count: int) -> tuple[int, ...]:
    """QDQ's `count` likeliest tokens one after the other, stop tokens passed over as any other.

    Each pass looks at all places at once, after a guess of what stands before them (Jacobi iteration): the first place
    where the guess was wrong is right now, and what follows is a better guess. It takes `count` passes at most.
    """
    guess = [0] * count
    known = 0
    while known < count:
        rows = logits([*prompt, *guess[: count - 1]])[len(prompt) - 1 :]
        choices = [int(token) for token in rows.argmax(axis=1)]
        wrong = [place for place in range(known, count) if choices[place] != guess[place]]
        known = wrong[0] + 1 if wrong else count
        guess = choices
    return tuple(guess)


def _rows(
    logits: Logits, dithered: Sequence[Logits], prompt: int, inputs: Sequence[int], targets: Sequence[int]
) -> WitnessText:
    plain = logits(inputs)
    values, wanted = log_softmax(plain), np.asarray(targets)[:, None]
    ids = likeliest(plain, min(TOP, plain.shape[1]))
    logprobs, target = np.take_along_axis(values, ids, axis=1), np.take_along_axis(values, wanted, axis=1)[:, 0]
    squares, target_squares = np.zeros(len(inputs)), np.zeros(len(inputs))
    for replica in dithered:
        moved = log_softmax(replica(inputs)) - values
        squares += np.square(np.take_along_axis(moved, ids[:, :COMPARED], axis=1)).mean(axis=1)
        target_squares += np.square(np.take_along_axis(moved, wanted, axis=1)[:, 0])
    spread, target_spread = np.sqrt(squares / len(dithered)), np.sqrt(target_squares / len(dithered))
    return WitnessText(prompt, tuple(inputs), tuple(targets), ids, logprobs, target, spread, target_spread)


def testify_lookahead(tree: Tree, settings: Settings, text: WitnessText, new: int, context: int) -> LookaheadWitness:
    """Lookahead on QDQ's logits after one prompt.

    Args:
        tree: QDQ over a text and a tree of guesses after it.
        settings: N, W, G.
        text: of the prompt, with QDQ's greedy continuation, which is what lookahead's text must be.
        new: tokens to generate.
        context: CL.
    """
    prompt = text.inputs[: text.prompt]
    guesses: dict[tuple[int, tuple[int, ...]], Guess] = {}
    emitted = [text.continuation[0]]

    def step(draft: Sequence[int]) -> list[int]:
        done = [*prompt, *emitted[:-1]]
        values = log_softmax(tree_logits(tree, settings, done, draft))
        for row in settings.guessing_rows:
            second, first = np.partition(values[row], -2)[-2:]
            path = tuple(draft[place] for place in settings.path(row))
            guesses[len(emitted), path] = Guess(int(values[row].argmax()), float(first - second))
        return [int(token) for token in values.argmax(axis=1)]

    taken = run_lookahead(
        Lookahead(settings),
        prompt,
        emitted,
        step,
        seq_len=min(len(prompt) + new, context),
        limit=context - settings.ar_len,
    )
    return LookaheadWitness(taken.steps, taken.accepted, guesses)


def tree_logits(tree: Tree, settings: Settings, text: Sequence[int], draft: Sequence[int]) -> Floats:
    """Logits [len(draft),V] of the rows of one lookahead step after `text`, in one pass."""
    past, rows = len(text), len(draft)
    sees = np.tril(np.ones((past + rows, past + rows), dtype=bool))
    sees[:, past:] = False
    for row in range(rows):
        sees[past + row, [past + place for place in settings.path(row)]] = True
    positions = [*range(past), *(past + offset for offset in settings.offsets[:rows])]
    return tree([*text, *draft], sees, positions)[past:]
