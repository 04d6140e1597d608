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
        settings = self.settings
        heads = self.branch[0]
        last = (settings.levels - 1) * settings.window
        self.branch = [*self.branch[1:], [guess(last + column) for column in range(settings.window)]]
        for column, head in enumerate(heads):
            self.pool.add(head, tuple(level[column] for level in self.branch))
