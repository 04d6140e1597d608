"""Faults of lookahead and of scores, and faults of generation that hide behind right scores."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from faults.fault import HYBRID, KV, LOOKAHEAD, Patch, fault
from faults.runner_cache import at_handover, swap_k_heads
from faults.runner_inputs import everywhere
from faults.runner_output import second_best
from faults.steps import DECODE, Step, before
from faults.tap import key_of

AHEAD = "harness.runtime.lookahead"
ONLY = (LOOKAHEAD,)


@fault("no guess is ever accepted", modes=ONLY)
def never_accepts(patch: Patch) -> None:
    @patch.around(AHEAD, "Lookahead.verify")
    def verify(original: Any, lookahead: Any, current: int, *rest: Any, **more: Any) -> Any:
        found = original(lookahead, current, *rest, **more)
        if len(found.tokens) > 1:
            patch.strike()
        return dataclasses.replace(found, tokens=found.tokens[:1], rows=found.rows[:1])


@fault("guesses are accepted unverified", modes=ONLY)
def accepts_unverified(patch: Patch) -> None:
    @patch.around(AHEAD, "Lookahead.verify")
    def verify(original: Any, lookahead: Any, current: int, *rest: Any, **more: Any) -> Any:
        grams = lookahead.pool.after(current)
        found = original(lookahead, current, *rest, **more)
        if not grams or len(found.tokens) > 1:
            return found
        patch.strike()
        row = lookahead.settings.verification_row(0, 0)
        return dataclasses.replace(found, tokens=(grams[0][0], *found.tokens), rows=(*found.rows, row))


@fault("of n-grams only the first is verified", modes=ONLY)
def verifies_the_first_alone(patch: Patch) -> None:
    @patch.around(AHEAD, "NgramPool.after")
    def after(original: Any, pool: Any, token: int) -> Any:
        grams = original(pool, token)
        if len(grams) > 1:
            patch.strike()
        return grams[:1]


@fault("n-grams are filed under the wrong token", modes=ONLY)
def pool_keyed_wrong(patch: Patch) -> None:
    @patch.around(AHEAD, "NgramPool.add")
    def add(original: Any, pool: Any, _first: int, gram: tuple[int, ...]) -> None:
        patch.strike()
        original(pool, gram[0], gram)


@fault("a full pool keeps its first n-grams for ever", modes=ONLY)
def pool_never_renewed(patch: Patch) -> None:
    @patch.around(AHEAD, "NgramPool.add")
    def add(original: Any, pool: Any, first: int, gram: tuple[int, ...]) -> None:
        if len(pool.after(first)) >= pool.gcap:
            patch.strike()
            return
        original(pool, first, gram)


@fault("the branch never moves on", modes=ONLY)
def branch_stands_still(patch: Patch) -> None:
    @patch.around(AHEAD, "Lookahead._advance")
    def advance(_original: Any, _lookahead: Any, _guess: Any) -> None:
        patch.strike()


@fault("the branch is filled with the second-best guesses", modes=ONLY)
def branch_guesses_badly(patch: Patch) -> None:
    @patch.around("harness.runtime.session", "Session.branch")
    def branch(original: Any, *arguments: Any, **more: Any) -> Any:
        output = original(*arguments, **more)
        last[:] = [output.logits]
        return output

    last: list[Any] = []

    @patch.around(AHEAD, "Lookahead.verify")
    def verify(original: Any, lookahead: Any, current: int, choose: Any, **more: Any) -> Any:
        def worse(row: int) -> int:
            patch.strike()
            return second_best(last[0][row])

        return original(lookahead, current, choose, **{**more, "guess": worse})


@fault("the branch starts with one token over and over", modes=ONLY)
def branch_begins_badly(patch: Patch) -> None:
    @patch.around(AHEAD, "Lookahead.begin")
    def begin(original: Any, lookahead: Any, tokens: Sequence[int]) -> None:
        patch.strike()
        original(lookahead, [tokens[0], *[tokens[0]] * (len(tokens) - 1)])


@fault("positions of n-grams are one too low", modes=ONLY)
def gram_positions_off(patch: Patch) -> None:
    move_grams(patch, -1)


@fault("positions of n-grams are one too high", modes=ONLY)
def gram_positions_high(patch: Patch) -> None:
    move_grams(patch, 1)


def move_grams(patch: Patch, by: int) -> None:
    """Moves the positions of the verification branch."""

    def change(step: Step) -> bool:
        settings = step.engine.info.lookahead
        if step.graph != DECODE or settings is None:
            return False
        first = settings.verification_row(0, 0)
        last = first + settings.gcap * settings.levels
        moved = step.positions.copy()
        moved[..., first:last] = np.clip(moved[..., first:last] + by, 0, step.context - 1)
        step.positions = moved
        return True

    before(patch, change)


@fault("an n-gram's rows do not see each other", modes=ONLY)
def grams_do_not_chain(patch: Patch) -> None:
    def change(step: Step) -> bool:
        settings = step.engine.info.lookahead
        if step.graph != DECODE or settings is None or settings.levels < 2:
            return False
        own = step.context - step.ar_len
        for mask in step.masks:
            for gram in range(settings.gcap):
                first = settings.verification_row(gram, 0)
                for place in range(1, settings.levels):
                    mask[first + place, own + first : own + first + place] = step.block(mask)
        return True

    before(patch, change)


@fault("accepted tokens get the branch's columns in the cache", modes=ONLY)
def accepts_other_rows(patch: Patch) -> None:
    @patch.around("harness.runtime.session", "Session.accept")
    def accept(original: Any, session: Any, output: Any, tokens: Sequence[int], rows: Sequence[int]) -> Any:
        other = [rows[0], *(number + 1 for number, _ in enumerate(rows[1:]))]
        if other != list(rows):
            patch.strike()
        return original(session, output, tokens, other)


@fault("the columns of accepted tokens are exchanged", modes=ONLY)
def accepted_columns_exchanged(patch: Patch) -> None:
    @patch.around("harness.runtime.session", "Session.accept")
    def accept(original: Any, session: Any, output: Any, tokens: Sequence[int], rows: Sequence[int]) -> Any:
        if len(rows) > 2:
            patch.strike()
            rows = [*rows[:-2], rows[-1], rows[-2]]
        return original(session, output, tokens, rows)


def misreport(patch: Patch, **changes: Any) -> None:
    """Reports other numbers of a turn; `changes`: field → function of the turn."""

    @patch.around("harness.runtime.generate", "generate")
    def generate(original: Any, *arguments: Any, **more: Any) -> Any:
        result = original(*arguments, **more)
        patch.strike()
        return dataclasses.replace(result, **{name: change(result) for name, change in changes.items()})


@fault("fewer steps are reported than were done", ways=("ours",))
def steps_misreported(patch: Patch) -> None:
    misreport(patch, decode_steps=lambda turn: turn.decode_steps * 3 // 4)


@fault("more accepted tokens are reported than there were", modes=ONLY)
def accepted_misreported(patch: Patch) -> None:
    misreport(patch, accepted=lambda turn: turn.accepted + 2)


@fault("steps and accepted tokens are reported as if more had been accepted", modes=ONLY, ways=("ours",))
def acceptance_made_up(patch: Patch) -> None:
    misreport(patch, decode_steps=lambda turn: max(1, turn.decode_steps - 3), accepted=lambda turn: turn.accepted + 3)


@fault("decode goes through every step twice", modes=(KV, HYBRID), harmless=True)
def steps_done_twice(patch: Patch) -> None:
    @patch.around("harness.runtime.engine", "Engine.run")
    def run(original: Any, engine: Any, graph: str, inputs: Sequence[Any]) -> Any:
        if graph == DECODE:
            patch.strike()
            original(engine, graph, inputs)
        return original(engine, graph, inputs)


# Scores


def change_scores(patch: Patch, change: Callable[[list[Any]], list[Any]]) -> None:
    """Changes what is answered to a request for scores; `change`: scores of windows or legs → others."""
    for name in ("score", "walk"):

        @patch.around("harness.runtime.score", name)
        def score(original: Any, *arguments: Any, **more: Any) -> Any:
            right = list(original(*arguments, **more))
            scored = [one for one in right if one.logprobs]
            others = iter(change(scored))
            result = [next(others) if one.logprobs else one for one in right]
            if [one.logprobs for one in result] != [one.logprobs for one in right]:
                patch.strike()
            return result


def change_values(patch: Patch, change: Callable[[tuple[float, ...]], tuple[float, ...]]) -> None:
    """Changes the log-likelihoods of each window or leg by themselves."""
    change_scores(patch, lambda scores: [dataclasses.replace(s, logprobs=change(s.logprobs)) for s in scores])


@fault("a log-likelihood is no number", ways=("ours",))
def score_is_nan(patch: Patch) -> None:
    change_values(patch, lambda values: (*values[:-1], float("nan")))


@fault("all log-likelihoods are 0", ways=("ours",))
def scores_are_zero(patch: Patch) -> None:
    change_values(patch, lambda values: (0.0,) * len(values))


@fault("scores of the window before are returned", ways=("ours",))
def scores_of_another_window(patch: Patch) -> None:
    said: list[tuple[float, ...]] = []

    def change(values: tuple[float, ...]) -> tuple[float, ...]:
        said.append(values)
        before = said[-2] if len(said) > 1 else values
        return tuple(before[place % len(before)] for place in range(len(values)))

    change_values(patch, change)


@fault("scores of the first window are returned for all", ways=("ours",))
def scores_of_the_first_window(patch: Patch) -> None:
    first: list[float] = []

    def change(values: tuple[float, ...]) -> tuple[float, ...]:
        first[:] = first or values
        return tuple(first[place % len(first)] for place in range(len(values)))

    change_values(patch, change)


@fault("scores stand one token too early", ways=("ours",))
def scores_shifted(patch: Patch) -> None:
    change_values(patch, lambda values: (*values[1:], values[0]))


@fault("log-likelihoods are in bits", ways=("ours",))
def scores_in_bits(patch: Patch) -> None:
    change_values(patch, lambda values: tuple(value / math.log(2) for value in values))


@fault("log-likelihoods are 1% too small", ways=("ours",))
def scores_times_1_01(patch: Patch) -> None:
    change_values(patch, lambda values: tuple(value * 1.01 for value in values))


@fault("the last score of each window is lost", ways=("ours",))
def last_score_lost(patch: Patch) -> None:
    change_values(patch, lambda values: values[:-1])


@fault("the last score of each window is the one before it", ways=("ours",))
def last_score_repeated(patch: Patch) -> None:
    change_values(patch, lambda values: (*values[:-1], values[-2]) if len(values) > 1 else values)


@fault("what is scored begins with another token", ways=("ours",))
def scored_text_begins_otherwise(patch: Patch) -> None:
    for name in ("score", "walk"):

        @patch.around("harness.runtime.score", name)
        def score(original: Any, session: Any, parts: Sequence[Any], *rest: Any) -> Any:
            patch.strike()
            fresh = [part for part in parts if not getattr(part, "keep", 0)]
            other = {id(p): dataclasses.replace(p, inputs=(p.inputs[-1], *p.inputs[1:])) for p in fresh}
            return original(session, [other.get(id(part), part) for part in parts], *rest)


@fault("scores are shifted where tasks ask for them; walks are right", ways=("ours",))
def scores_of_tasks_shifted(patch: Patch) -> None:
    @patch.around("harness.runtime.score", "score")
    def score(original: Any, *arguments: Any) -> Any:
        patch.strike()
        right = original(*arguments)
        return [dataclasses.replace(s, logprobs=(*s.logprobs[1:], s.logprobs[0])) for s in right]


# Behind right scores


class Generating:
    """Whether the runner is generating, and not scoring or giving logits."""

    def __init__(self, patch: Patch) -> None:
        self.now = False

        @patch.around("harness.runtime.generate", "generate")
        def generate(original: Any, *arguments: Any, **more: Any) -> Any:
            self.now = True
            try:
                return original(*arguments, **more)
            finally:
                self.now = False


@fault("positions are one too high in generation alone; scores are right")
def position_off_in_generation(patch: Patch) -> None:
    generating = Generating(patch)

    def change(step: Step) -> bool:
        if not generating.now or step.graph != DECODE:
            return False
        moved = np.clip(step.positions + everywhere(step), 0, step.context - 1)
        step.positions = moved.astype(step.positions.dtype)
        return True

    before(patch, change)


@fault("K heads are exchanged at the handover in generation alone", modes=(HYBRID, LOOKAHEAD))
def k_heads_in_generation(patch: Patch) -> None:
    generating = Generating(patch)
    at_handover(patch, swap_k_heads, lambda: generating.now)


@fault("decode's positions are off and its scores are those of prefill", modes=(HYBRID,), ways=("ours",))
def scores_of_prefill(patch: Patch) -> None:
    def change(step: Step) -> bool:
        if step.graph != DECODE:
            return False
        step.positions = np.clip(step.positions + 1, 0, step.context - 1).astype(step.positions.dtype)
        return True

    before(patch, change)
    for name in ("score", "logits"):

        @patch.around("harness.runtime.score", name)
        def asked(original: Any, session: Any, windows: Any, _graph: str, *rest: Any) -> Any:
            return original(session, windows, "prefill", *rest)

    @patch.around("harness.runtime.score", "walk")
    def walk(original: Any, session: Any, legs: Sequence[Any]) -> Any:
        return original(session, [dataclasses.replace(leg, graph="prefill") for leg in legs])


@fault("decode's positions are off; scores and logits are an earlier good run's", ways=("ours",))
def scores_of_a_good_run(patch: Patch) -> None:
    """Needs `HTPFARM_FAULT_GOOD`: the folder of a sound run's tap."""
    good: dict[str, Any] = {}
    for path in sorted(Path(patch.settings["HTPFARM_FAULT_GOOD"]).glob("*.json")):
        for word in json.loads(path.read_text())["words"]:
            if word["op"] in ("score", "walk", "logits"):
                good[word["asked"]] = word["said"]

    @patch.around("harness.runtime.serve", "_Server.answer")
    def answer(original: Any, server: Any, request: Any) -> Any:
        right = original(server, request)
        kept = good.get(key_of(request))
        if kept is None:
            return right
        patch.strike()
        return {key: value for key, value in kept.items() if key != "id"}

    def change(step: Step) -> bool:
        if step.graph != DECODE:
            return False
        step.positions = np.clip(step.positions + 1, 0, step.context - 1).astype(step.positions.dtype)
        return True

    before(patch, change)
