"""A run held against its base, as a report shows it: a verdict a cell, its numbers, the raw pairs, and what differs in
the text. Made by `harness.compare.view`; here because pages show it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from harness.results.records import ComparisonRecord

REGRESSED, INVALID, INCONCLUSIVE, IMPROVED, OK = "REGRESSED", "INVALID", "INCONCLUSIVE", "IMPROVED", "OK"
VERDICTS = (REGRESSED, INVALID, INCONCLUSIVE, IMPROVED, OK)
"""All, the ones to look at first."""
MARKS = {REGRESSED: "✗", INVALID: "–", INCONCLUSIVE: "?", IMPROVED: "↑", OK: "✓"}
"""A sign for each, so that colour is never all that tells them apart."""
STYLES = {REGRESSED: "failed", INVALID: "skipped", INCONCLUSIVE: "not-run", IMPROVED: "passed", OK: "passed"}
"""Classes of the page's style sheet."""
NAMES = {"ttft_ms": "TTFT", "prefill_tok_s": "prefill", "decode_tok_s": "decode"}
_PPL = "token_ppl["


@dataclass(frozen=True)
class Pair:
    """One pair of sessions.

    Attributes:
        number: of the ABBA pair, or of the session where two runs of their own are compared.
        base, candidate: the metric in each, in its unit.
        first: `base` or `candidate`: which of an ABBA pair was measured first; empty where it was none.
    """

    number: int
    base: float
    candidate: float
    first: str = ""

    @property
    def change(self) -> float:
        """candidate / base − 1; both are positive."""
        return self.candidate / self.base - 1


@dataclass(frozen=True)
class Measured:
    """One metric of a cell.

    Attributes:
        record: its comparison; the judgement is the one among all comparisons, where those are known.
        unit: of the values; empty of a perplexity.
        higher_is_better: which way it gets better.
        pairs: in the order taken; empty of a perplexity, and where only the record is left.
    """

    record: ComparisonRecord
    unit: str = ""
    higher_is_better: bool = False
    pairs: tuple[Pair, ...] = ()

    @property
    def is_perplexity(self) -> bool:
        """Whether it is no speed."""
        return self.record.metric.startswith(_PPL)

    @property
    def name(self) -> str:
        """`decode`, `perplexity [kv]`."""
        metric = self.record.metric
        return f"perplexity [{metric.removeprefix(_PPL)}" if self.is_perplexity else NAMES.get(metric, metric)

    @property
    def change(self) -> str:
        """`-9.1% (-9.6% to -8.5%)`, the interval where there is one; a dash where nothing was compared."""
        one = self.record
        if one.change is None or not math.isfinite(one.change):
            return "–"
        return percent(one.change) + (f" ({self.interval})" if self.interval else "")

    @property
    def interval(self) -> str:
        """`-9.6% to -8.5%`; empty without one."""
        one = self.record
        known = one.lower is not None and one.upper is not None
        return f"{percent(one.lower)} to {percent(one.upper)}" if known else ""

    @property
    def count(self) -> str:
        """`8 pairs`, `64 blocks`."""
        noun = "block" if self.is_perplexity else "pair"
        return f"{self.record.pairs} {noun}{'' if self.record.pairs == 1 else 's'}"


@dataclass(frozen=True)
class Reply:
    """Two replies to one prompt that are not the same.

    Attributes:
        prompt: what was asked.
        base, candidate: the texts.
        place: number of the first token that differs, from 0.
        tokens: the two tokens there; None where one side has none, or the records hold no tokens.
        unit: `token`, or `character` where the records hold no tokens.
    """

    prompt: str
    base: str
    candidate: str
    place: int
    tokens: tuple[int | None, int | None] = (None, None)
    unit: str = "token"

    @property
    def shared(self) -> int:
        """How many characters the two texts begin with in common."""
        pairs = zip(self.base, self.candidate, strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(self.base), len(self.candidate)))

    @property
    def where(self) -> str:
        """`from token 7 on (13 in the base, 99 in the candidate)`."""
        if self.tokens == (None, None):
            return f"from {self.unit} {self.place} on"
        a, b = ("none" if token is None else str(token) for token in self.tokens)
        return f"from {self.unit} {self.place} on ({a} in the base, {b} in the candidate)"


@dataclass(frozen=True)
class CellAgainst:
    """One cell on both sides.

    Attributes:
        cell: its id.
        judgement: one of VERDICTS: the worst of what it is made of.
        base, candidate: how it ended on each side; None where it was not planned, or is not known.
        measured: a metric each.
        replies: those that differ.
        text: the comparison of all replies in words; empty where there was none.
        reason: why the candidate did not pass, or the cell is in one run only.
        remedy: what to do about it.
    """

    cell: str
    judgement: str
    base: str | None = None
    candidate: str | None = None
    measured: tuple[Measured, ...] = ()
    replies: tuple[Reply, ...] = ()
    text: str = ""
    reason: str = ""
    remedy: str = ""

    @property
    def speeds(self) -> tuple[Measured, ...]:
        """The metrics of speed."""
        return tuple(one for one in self.measured if not one.is_perplexity)

    @property
    def perplexities(self) -> tuple[Measured, ...]:
        """The perplexities, a graph each."""
        return tuple(one for one in self.measured if one.is_perplexity)

    @property
    def most_pairs(self) -> int:
        """The most pairs that a speed has."""
        return max((one.record.pairs for one in self.speeds), default=0)

    @property
    def raw(self) -> list[tuple[Pair, list[Pair | None]]]:
        """Each pair's number, and its values of every speed that has pairs."""
        found: dict[int, dict[str, Pair]] = {}
        for one in self.speeds:
            for pair in one.pairs:
                found.setdefault(pair.number, {})[one.record.metric] = pair
        metrics = [one.record.metric for one in self.speeds if one.pairs]
        return [
            (next(iter(values.values())), [values.get(metric) for metric in metrics])
            for _, values in sorted(found.items())
        ]


@dataclass(frozen=True)
class Look:
    """Something to look at: in which cell, what happened, what to do, and whether it blocks."""

    cell: str
    what: str
    remedy: str = ""
    blocks: bool = False


@dataclass(frozen=True)
class Against:
    """A run against its base.

    Attributes:
        base, candidate: ids of the runs.
        is_sim: whether the speeds are the simulator's.
        cells: the worst first, in order of id.
        toolchain: part → (base's, candidate's) where they differ.
        look: what to look at, first things first.
        note: what a reader must know of it as a whole.
    """

    base: str
    candidate: str
    is_sim: bool
    cells: tuple[CellAgainst, ...]
    toolchain: Mapping[str, tuple[str, str]]
    look: tuple[Look, ...] = ()
    note: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Verdict → cells, all of VERDICTS."""
        return {word: sum(cell.judgement == word for cell in self.cells) for word in VERDICTS}

    @property
    def headline(self) -> str:
        """The worst verdict of all; REGRESSED blocks."""
        return next((word for word in VERDICTS if self.counts[word]), "NOTHING COMPARED")

    @property
    def style(self) -> str:
        """The headline's class in the style sheet."""
        return STYLES.get(self.headline, "not-run")

    @property
    def detail(self) -> str:
        """`3 cells: 1 REGRESSED, 2 OK`."""
        said = ", ".join(f"{count} {word}" for word, count in self.counts.items() if count)
        return f"{len(self.cells)} cell{'' if len(self.cells) == 1 else 's'}" + (f": {said}" if said else "")

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of all metrics, in the order first met."""
        return tuple(dict.fromkeys(one.name for cell in self.cells for one in cell.measured))


def worst_first(cells: list[CellAgainst]) -> tuple[CellAgainst, ...]:
    """The cells in the order a reader wants them."""
    return tuple(sorted(cells, key=lambda cell: (VERDICTS.index(cell.judgement), cell.cell)))


def percent(value: float | None) -> str:
    """A change as a percentage, with its sign: +1.2%, -12%."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:+.0%}" if abs(value) >= 1 else f"{value:+.1%}" if abs(value) >= 0.001 else f"{value:+.2%}"
