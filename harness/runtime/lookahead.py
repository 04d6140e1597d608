"""Lookahead decoding: several tokens a step, the same tokens as greedy decoding. Pure; no graph is run here.

Fu et al., "Break the Sequential Dependency of LLM Inference Using Lookahead Decoding" (arXiv 2402.02057), as
ExecuTorch's `runner/lhd_token_generator.cpp` does it (main, cff6f4dd):

- The lookahead branch holds N−1 levels of W guessed tokens. Level i, column j is row i×W + j of a step; level 0 is a
  chain that starts with the current token, and below it each token follows the one above it in its column.
- The verification branch holds up to G n-grams of the pool that start with the current token: N−1 rows each, a chain
  that hangs on row 0.
- A step's first new token comes from row 0. While it is what an n-gram guessed, the n-gram's next row gives one more,
  and the rows passed are what goes into the KV cache. Then the levels move up, the last one is filled from the step's
  logits, and each column is an n-gram for the pool.

As in ExecuTorch, column 0 of the pool's update is filed under the token that stood at the level's head before the
current token took its row. Pool and branch last as long as the runner, over all its turns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from harness.errors import ConfigError
from harness.model_file import lookahead_ar_len


@dataclass(frozen=True)
class Settings:
    """N, W and G.

    Attributes:
        ngram: N, at least 2: a step gives at most N tokens.
        window: W, columns of the lookahead branch.
        gcap: G, n-grams kept for a token and verified in a step.
    """

    ngram: int
    window: int
    gcap: int

    def __post_init__(self) -> None:
        if self.ngram < 2 or self.window < 1 or self.gcap < 1:
            raise ConfigError(
                f"ngram {self.ngram}, window {self.window}, gcap {self.gcap} are no lookahead settings",
                where="--ngram, --window, --gcap",
                remedy="ngram is at least 2, window and gcap at least 1; give what the .pte was compiled with",
            )

    def __str__(self) -> str:
        return f"ngram {self.ngram}, window {self.window}, gcap {self.gcap}"

    @property
    def levels(self) -> int:
        """N − 1."""
        return self.ngram - 1

    @property
    def ar_len(self) -> int:
        """Tokens that a step takes."""
        return lookahead_ar_len(self.ngram, self.window, self.gcap)

    def verification_row(self, gram: int, place: int) -> int:
        """The row of token `place` (from 0) of the n-gram in slot `gram`."""
        return (self.window + gram) * self.levels + place

    @cached_property
    def attention_map(self) -> tuple[int, ...]:
        """For each row the row it follows, −1 for the cache alone: `masks.init_mask` makes the mask of it."""
        level_0 = range(-1, self.window - 1)
        below = range((self.levels - 1) * self.window)
        grams = (
            self.verification_row(gram, place - 1) if place else 0
            for gram in range(self.gcap)
            for place in range(self.levels)
        )
        return (*level_0, *below, *grams)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Each row's position relative to the current token's; as many as `ar_len`, 0 for rows that are not used."""
        levels = [level + column for level in range(self.levels) for column in range(self.window)]
        grams = [place + 1 for _ in range(self.gcap) for place in range(self.levels)]
        used = (*levels, *grams)
        return (*used, *([0] * (self.ar_len - len(used))))

    @cached_property
    def guessing_rows(self) -> tuple[int, ...]:
        """The rows whose likeliest tokens become the branch's new last level."""
        last = (self.levels - 1) * self.window
        return tuple(range(last, last + self.window))

    def path(self, row: int) -> tuple[int, ...]:
        """The rows that a row comes after, from row 0 on, itself included: what it attends to beside the cache."""
        rows = [row]
        while (parent := self.attention_map[rows[-1]]) >= 0:
            rows.append(parent)
        return tuple(reversed(rows))


@dataclass
class NgramPool:
    """For each token the n-grams seen after it: N−1 tokens each, at most G, the oldest replaced."""

    gcap: int
    _grams: dict[int, list[tuple[int, ...]]] = field(default_factory=dict)
    _heads: dict[int, int] = field(default_factory=dict)

    def after(self, token: int) -> tuple[tuple[int, ...], ...]:
        """The n-grams of a token, in their slots' order."""
        return tuple(self._grams.get(token, ()))

    def add(self, first: int, gram: tuple[int, ...]) -> None:
        """Files an n-gram under its first token, once."""
        grams = self._grams.setdefault(first, [])
        if gram in grams:
            return
        head = self._heads.get(first, 0)
        if len(grams) < self.gcap:
            grams.append(gram)
        else:
            grams[head] = gram
        self._heads[first] = (head + 1) % self.gcap


@dataclass(frozen=True)
class Verified:
    """What a step gave.

    Attributes:
        tokens: new tokens, 1 to N; the last one has been through no step yet.
        rows: rows of the step whose keys and values belong into the cache: those of the tokens before.
    """

    tokens: tuple[int, ...]
    rows: tuple[int, ...]


@dataclass
class Lookahead:
    """Branch and pool of one runner.

    Args:
        settings: N, W, G.
        seed: of the tokens that the branch starts with.
    """

    settings: Settings
    seed: int = 0

    def __post_init__(self) -> None:
        self.pool = NgramPool(self.settings.gcap)
        self.branch: list[list[int]] = []
        self._random = np.random.default_rng(self.seed)

    def begin(self, tokens: Sequence[int]) -> None:
        """Fills the branch with tokens of the text, the first one (BOS) excepted; the first time only.

        Args:
            tokens: prompt and first token: at least two.
        """
        if not self.branch:
            drawn = self._random.choice(np.asarray(tokens[1:]), (self.settings.levels, self.settings.window))
            self.branch = [[int(token) for token in level] for level in drawn]

    def draft(self, current: int) -> list[int]:
        """The tokens of a step's rows, the unused ones at the end left out."""
        first, *below = self.branch
        rows = [current, *first[1:]]
        for level in below:
            rows.extend(level)
        for gram in self.pool.after(current):
            rows.extend(gram)
        return rows

    def verify(
        self, current: int, choose: Callable[[int], int], guess: Callable[[int], int], stop: Collection[int] = ()
    ) -> Verified:
        """Takes the new tokens from a step that ran `draft(current)`, and moves the branch on.

        Args:
            current: the token of row 0.
            choose: row → the token that its logits give; called for the rows on the way, in order.
            guess: row → the most likely token, for the branch.
            stop: tokens that end the text: nothing after them is taken.
        """
        settings = self.settings
        active = dict(enumerate(self.pool.after(current)))
        tokens: list[int] = []
        rows: list[int] = []
        for place in range(settings.ngram):
            if place and not active:
                break
            rows.append(settings.verification_row(min(active), place - 1) if place else 0)
            tokens.append(choose(rows[-1]))
            if tokens[-1] in stop:
                break
            active = {g: gram for g, gram in active.items() if place < settings.levels and gram[place] == tokens[-1]}
            if place == 0:
                self._advance(guess)
        return Verified(tuple(tokens), tuple(rows))

    def _advance(self, guess: Callable[[int], int]) -> None:
        heads = self.branch[0]
        self.branch = [*self.branch[1:], [guess(row) for row in self.settings.guessing_rows]]
        for column, head in enumerate(heads):
            self.pool.add(head, tuple(level[column] for level in self.branch))


def fitting(found: int, n_past: int, seq_len: int, limit: int) -> tuple[int, int]:
    """How many of a step's new tokens belong to the text, and how many the cache takes.

    Args:
        found: tokens that the step gave.
        n_past: tokens in the cache.
        seq_len: prompt and output together.
        limit: tokens that the decode graph's cache holds, CL−AR. Where it takes fewer than fit, the turn ends.
    """
    fits = min(found, seq_len - 1 - n_past)
    return fits, min(fits, limit - n_past)


@dataclass(frozen=True)
class Course:
    """What lookahead comes to after a prompt.

    Attributes:
        tokens: generated, the first one included.
        steps: executions of the decode graph.
        accepted: tokens beyond the first of a step.
        full: whether the cache's end ended it.
    """

    tokens: tuple[int, ...]
    steps: int
    accepted: int
    full: bool = False


def run_lookahead(
    lookahead: Lookahead,
    prompt: Sequence[int],
    emitted: list[int],
    step: Callable[[Sequence[int]], Sequence[int]],
    *,
    seq_len: int,
    limit: int,
    stop: Collection[int] = (),
) -> Course:
    """The course of one turn, given what each step's rows choose: what the runner must have done.

    Args:
        lookahead: fresh, with the runner's seed.
        prompt: fed tokens.
        emitted: the first token; filled with those that follow.
        step: a step's draft → the likeliest token after each of its rows.
        seq_len, limit: as in `fitting`.
        stop: tokens that end the turn.
    """
    lookahead.begin([*prompt, *emitted])
    n_past, steps, accepted, full = len(prompt), 0, 0, False
    while not full and emitted[-1] not in stop and n_past < seq_len - 1:
        choices = step(lookahead.draft(emitted[-1]))
        found = lookahead.verify(emitted[-1], choices.__getitem__, choices.__getitem__, stop)
        fits, taken = fitting(len(found.tokens), n_past, seq_len, limit)
        emitted.extend(found.tokens[:fits])
        n_past, steps, accepted = n_past + taken, steps + 1, accepted + fits - 1
        full = taken < fits
    return Course(tuple(emitted), steps, accepted, full)
