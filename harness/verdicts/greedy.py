"""Greedy text against greedy text, token by token: equal or not, and where it first differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest


@dataclass(frozen=True)
class TextComparison:
    """Replies of two sides to the same prompts.

    Attributes:
        equal: whether every token of every reply is the same.
        replies: how many were compared.
        different: how many differ.
        prompt: number of the first reply that differs; None when equal.
        place: number of its first token that differs, from 0; None when equal.
    """

    equal: bool
    replies: int
    different: int = 0
    prompt: int | None = None
    place: int | None = None

    @property
    def words(self) -> str:
        """The comparison in words."""
        if self.equal:
            return f"{self.replies} greedy replies, the same to the last token"
        return (
            f"{self.different} of {self.replies} greedy replies differ; the first is reply {self.prompt}, "
            f"from token {self.place} on"
        )


def compare_greedy(base: Sequence[Sequence[int]], candidate: Sequence[Sequence[int]]) -> TextComparison:
    """Compare the tokens of each reply; a reply that one side lacks differs."""
    places = [
        (number, place)
        for number, (a, b) in enumerate(zip_longest(base, candidate))
        if (place := _first_difference(a or (), b or ())) is not None
    ]
    count = max(len(base), len(candidate))
    if not places:
        return TextComparison(len(base) == len(candidate), count)
    return TextComparison(False, count, len(places), *places[0])


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    return next((place for place, (x, y) in enumerate(zip_longest(a, b)) if x != y), None)
