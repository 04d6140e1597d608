"""Perplexities over the same tokens: what may stand side by side. Pure.

Graphs and grounds score different shares of the held-out text, all from its beginning: a kv graph takes a step a token
and is asked for fewer. Of each score the sums up to the end of every block are kept, so that the first tokens that all
have give each a figure over the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from harness.results.records import PerplexityRecord
from harness.results.summary import CellSummary, RunSummary


@dataclass(frozen=True)
class Figure:
    """One perplexity as it is shown.

    Attributes:
        value: the perplexity.
        tokens: over how many of the text's first tokens.
        note: what has to stand with it; empty of a word's perplexity of the whole text, as all beside it are.
    """

    value: float
    tokens: int
    note: str = ""


@dataclass(frozen=True)
class Alike:
    """How the perplexities that stand side by side compare.

    Attributes:
        tokens: the first tokens that all of them scored; None where there are none that all can tell apart.
        whole: whether that is all that any of them scored, so that words' perplexities compare as well.
    """

    tokens: int | None
    whole: bool

    def figure(self, record: PerplexityRecord) -> Figure:
        """A word's perplexity where the texts are the same; else a token's over the same tokens, and marked.

        Words are only counted for the whole. Without tokens in common it is a word's over its own tokens, marked so.
        """
        if self.whole:
            return Figure(record.word_ppl, record.tokens)
        if self.tokens is None:
            return Figure(record.word_ppl, record.tokens, f"over {record.tokens} tokens")
        return Figure(over(record, self.tokens), self.tokens, f"a token, first {self.tokens}")

    def token(self, record: PerplexityRecord) -> Figure:
        """A token's perplexity over the same tokens; over its own, marked, where there are none in common."""
        if self.tokens is None:
            return Figure(record.token_ppl, record.tokens, f"over {record.tokens} tokens")
        return Figure(over(record, self.tokens), self.tokens)


def sums(record: PerplexityRecord) -> dict[int, float]:
    """Of the text's first tokens → −Σ log-likelihood, for as many as a block ends at; always for all of them."""
    found: dict[int, float] = {}
    tokens, nll = 0, 0.0
    for count, block in record.blocks:
        tokens, nll = tokens + count, nll + block
        found[tokens] = nll
    return {count: value for count, value in found.items() if 0 < count < record.tokens} | (
        {record.tokens: record.nll_sum} if record.tokens > 0 else {}
    )


def over(record: PerplexityRecord, tokens: int) -> float:
    """A token's perplexity over the text's first tokens; NaN where the record does not tell them apart."""
    nll = sums(record).get(tokens, math.nan)
    try:
        return math.exp(nll / tokens)
    except OverflowError:
        return math.inf


def alike(records: Iterable[PerplexityRecord]) -> Alike:
    """How far some perplexities of one text are over the same tokens.

    Where they could look back at different numbers of tokens, they are the same only as far as the shortest reaches.
    As many tokens of another number of words are another text.
    """
    known = list(records)
    if not known:
        return Alike(None, True)
    if len({(record.tokens, record.words) for record in known}) > len({record.tokens for record in known}):
        return Alike(None, False)
    common = set.intersection(*(set(sums(record)) for record in known))
    contexts = {record.context_len for record in known}
    if len(contexts) > 1:
        common = {tokens for tokens in common if tokens <= min(contexts)}
    tokens = max(common, default=None)
    same = {(record.tokens, record.words) for record in known}
    return Alike(tokens, len(same) == 1 and tokens == known[0].tokens)


def alike_in(summary: RunSummary) -> Mapping[str, Alike]:
    """Cell → how its perplexities compare with each other's and those of all cells of its model, which stand below."""
    models: dict[str, list[PerplexityRecord]] = {}
    for cell in summary.cells:
        models.setdefault(cell.plan.model, []).extend(cell.perplexities)
    found = {model: alike(records) for model, records in models.items()}
    return {cell.id: found[cell.plan.model] for cell in summary.cells}


def alike_of(cell: CellSummary) -> Alike:
    """How a cell's own perplexities compare."""
    return alike(cell.perplexities)
