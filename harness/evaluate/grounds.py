"""The log-likelihoods of one text on one ground, token by token: what perplexities are made of and compared by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.evaluate.scorer import Scorer
from harness.results.records import Graph, Ground, PerplexityRecord
from harness.text.heldout import HeldOut

BLOCK = 32
"""Tokens that are recorded together: enough to be nearly independent of the next, few enough to have many."""


@dataclass(frozen=True)
class GroundScore:
    """A text's score.

    Attributes:
        ground: FP, QDQ or PHONE.
        graph: which graph scored.
        each: log-likelihood of each token, in nats, in the text's order. A shorter one covers the text's beginning.
        words: words that these tokens spell.
        context: tokens a score could look back at, at most.
        steps: executions of the graph; 0 where the score was made at compile time.
        seconds: time they took.
    """

    ground: Ground
    graph: Graph
    each: tuple[float, ...]
    words: int
    context: int
    steps: int = 0
    seconds: float = 0.0

    @property
    def token_ppl(self) -> float:
        """exp(−mean log-likelihood of a token); NaN of no tokens."""
        return math.exp(-math.fsum(self.each) / len(self.each)) if self.each else math.nan

    def record(self, cell: str) -> PerplexityRecord:
        """For the run's records."""
        nll = -math.fsum(self.each)
        counts = (len(self.each), self.words, nll, self.context, self.steps, round(self.seconds, 3))
        cut = [self.each[start : start + BLOCK] for start in range(0, len(self.each), BLOCK)]
        blocks = tuple((len(block), -math.fsum(block)) for block in cut)
        return PerplexityRecord(cell, self.ground, self.graph, *counts, blocks)


def score_text(scorer: Scorer, ground: Ground, graph: Graph, text: HeldOut) -> GroundScore:
    """Scores a text; errors as `Scorer.score`."""
    scores = scorer.score(text.windows)
    each = tuple(value for score in scores for value in score.logprobs)
    steps, seconds = sum(score.steps for score in scores), math.fsum(score.seconds for score in scores)
    return GroundScore(ground, graph, each, text.words, scorer.context, steps, seconds)


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Perplexity under `one` over that under `other`, less 1, over the tokens that both cover (the shorter's)."""
    count = min(len(one), len(other))
    if not count:
        return math.inf
    return math.exp((math.fsum(other[:count]) - math.fsum(one[:count])) / count) - 1
