"""Results → matrix. Pure: what counts as running, failing, unsupported and not tried is decided here and nowhere else.

- A phone's results and the simulator's never mix: they are two columns of a SoC.
- The rack's own failures (INFRA, ENV), interrupted runs, cells that a user left out and cells that were only compiled
  say nothing of whether a model runs on a SoC: the result before them counts, and without one the cell is not tried.
- Of each phone its latest result counts. A result without a phone (a build that failed, a gate) counts until a later
  one. Where phones of one SoC differ, a failure is what the cell shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from harness.compatibility.result import COMPILED, Result
from harness.errors import FailureClass
from harness.models import UPSTREAM
from harness.results.alike import over, sums
from harness.results.records import PerplexityRecord, Status

_SAYS_NOTHING = (FailureClass.INFRA, FailureClass.ENV, FailureClass.CONFIG)
_UNDECIDED = (FailureClass.NOT_JUDGED, FailureClass.INCONCLUSIVE, FailureClass.INVALID)


class State(StrEnum):
    """What a cell of the matrix says. One that is undecided ran, and nobody can say whether it is right."""

    RUNS = "runs"
    FAILS = "fails"
    UNDECIDED = "undecided"
    UNSUPPORTED = "unsupported"
    NOT_TRIED = "not tried"


_WORST_FIRST = (State.FAILS, State.UNDECIDED, State.RUNS, State.UNSUPPORTED)


@dataclass(frozen=True)
class Change:
    """A part of the toolchain that differs between the last good run and the failing one; empty where it was absent."""

    name: str
    good: str
    now: str


@dataclass(frozen=True)
class Shown:
    """The perplexity of a cell, as it may stand beside those of its model's other cells.

    Attributes:
        value: the perplexity.
        of: `word` or `token`.
        graph: the graph that scored it.
        tokens: over how many of the text's first tokens.
        note: what has to stand with it; empty of a word's over the same tokens as all of the model's.
    """

    value: float
    of: str
    graph: str
    tokens: int
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """One cell of the matrix.

    Attributes:
        state: what it says.
        result: the result that says so; None when nothing was tried.
        age_days: days since that; None without a result or its time.
        phones: phones with a result that counts, those that fail first.
        failing: of them, those that fail.
        last_good: the latest result that passed; also of a cell that runs. Of one that fails or is undecided: before
            that, and on the same phone, where there is such a one. Where only a build failed, having compiled is good.
        changed: of a cell that fails, what differs in the toolchain since `last_good`.
        note: of a cell that is not tried, what was tried and said nothing.
        ppl: the perplexity on the phone; None where none was measured.
    """

    state: State
    result: Result | None = None
    age_days: float | None = None
    phones: tuple[str, ...] = ()
    failing: tuple[str, ...] = ()
    last_good: Result | None = None
    changed: tuple[Change, ...] = ()
    note: str = ""
    ppl: Shown | None = None

    @property
    def word(self) -> str:
        """The state in its own word: `runs`; of one that is undecided why, as `not judged`."""
        if self.state is State.UNDECIDED and self.result:
            return self.result.failure_class.lower().replace("_", " ")
        return self.state.value


@dataclass(frozen=True, order=True)
class Column:
    """A SoC, on phones or in the simulator; sorts by generation."""

    arch: int
    soc: str
    target: str


@dataclass(frozen=True, order=True)
class Row:
    """A model in a mode and recipe."""

    model: str
    mode: str
    recipe: str

    @property
    def label(self) -> str:
        """`model · mode`, with the recipe unless it is upstream's."""
        name = f"{self.model} · {self.mode}"
        return name if self.recipe == UPSTREAM else f"{name} · {self.recipe}"


@dataclass(frozen=True)
class Compatibility:
    """The matrix.

    Attributes:
        columns, rows: in order.
        entries: an entry for every row and column.
        runs: how many runs it was made from.
        made: when, ISO UTC.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    entries: Mapping[tuple[Row, Column], Entry]
    runs: int
    made: str

    @property
    def counts(self) -> dict[State, int]:
        """State → number of cells, all of them."""
        return {state: sum(entry.state is state for entry in self.entries.values()) for state in State}

    def with_state(self, state: State) -> list[tuple[Row, Column, Entry]]:
        """The cells of one state, in order."""
        return [
            (row, column, entry)
            for row in self.rows
            for column in self.columns
            if (entry := self.entries[row, column]).state is state
        ]


def compatibility(results: Iterable[Result], now: str) -> Compatibility:
    """Make the matrix; every row and column that a result names is in it.

    Args:
        results: in any order, each run's once.
        now: ISO time in UTC that ages count from.
    """
    groups: dict[tuple[Row, Column], list[Result]] = {}
    runs: set[str] = set()
    for result in results:
        key = Row(result.model, result.mode, result.recipe), Column(result.arch, result.soc, result.target)
        groups.setdefault(key, []).append(result)
        if result.time:
            runs.add(result.run)
    rows = tuple(sorted({row for row, _ in groups}))
    columns = tuple(sorted({column for _, column in groups}))
    entries = {(row, column): entry(groups.get((row, column), ()), now) for row in rows for column in columns}
    return Compatibility(columns, rows, _with_perplexities(entries), len(runs), now)


def entry(results: Iterable[Result], now: str) -> Entry:
    """What the results of one row and column come to."""
    ordered = sorted(results, key=_in_order)
    telling = [result for result in ordered if state_of(result) is not State.NOT_TRIED]
    if not telling:
        compiled = next((result for result in reversed(ordered) if result.status == Status.PASSED), None)
        return Entry(State.NOT_TRIED, last_good=compiled, note=_note(ordered))
    counting = _counting(telling)
    by_state: dict[State, list[Result]] = {}
    for result in counting:
        by_state.setdefault(state_of(result), []).append(result)
    state = next(state for state in _WORST_FIRST if state in by_state)
    shown = by_state[state][-1]
    good = _last_good(ordered, shown)
    failing = _phones(by_state.get(State.FAILS, ()))
    others = _phones(result for result in counting if state_of(result) is not State.FAILS)
    changed = _changes(good, shown) if good and state is State.FAILS else ()
    phones = tuple(dict.fromkeys((*failing, *others)))
    return Entry(state, shown, age_days(shown.time, now), phones, failing, good, changed)


def _in_order(result: Result) -> tuple[str, ...]:
    """Oldest first; of one moment by all that tells two results apart, so that no other order of them counts."""
    told = (result.phone, result.status, result.failure_class)
    return (result.time, result.run, result.cell, *(str(part or "") for part in told))


def _with_perplexities(entries: Mapping[tuple[Row, Column], Entry]) -> dict[tuple[Row, Column], Entry]:
    """With the perplexities that may stand side by side: those of a model's cells, whatever mode, SoC and run."""
    found = dict(entries)
    for model in sorted({row.model for row, _ in entries}):
        scored = {
            key: one.result.scores
            for key, one in entries.items()
            if key[0].model == model and one.result and one.result.scores
        }
        for key, ppl in zip(scored, shown_alike(list(scored.values())), strict=True):
            found[key] = replace(found[key], ppl=ppl)
    return found


def shown_alike(cells: Sequence[Sequence[PerplexityRecord]]) -> list[Shown]:
    """A perplexity of each cell, over the same tokens where all have such.

    A cell may have several graphs that scored different shares of the text: a word's over all that a graph scored if
    each cell has one that scored as many, unless a token's can be told over more. Of graphs that will do the kv graph
    comes first: most modes have one.
    """
    ordered = [sorted(records, key=lambda record: (record.graph != "kv", -record.tokens)) for records in cells]
    if not ordered:
        return []
    contexts = {r.context_len for records in ordered for r in records}
    reach = math.inf if len(contexts) == 1 else min(contexts)  # beyond it one looks back further than the other
    wholes = [{(r.tokens, r.words) for r in records if r.tokens <= reach} for records in ordered]
    firsts = [{count for r in records for count in sums(r) if count <= reach} for records in ordered]
    whole = max(set.intersection(*wholes), default=(0, 0))
    texts = {(r.tokens, r.words) for records in ordered for r in records}
    one_text = len(texts) == len({tokens for tokens, _ in texts})  # as many tokens of other words: another text
    first = max(set.intersection(*firsts), default=0) if one_text else 0
    if whole[0] and whole[0] >= first:
        picked = [next(r for r in records if (r.tokens, r.words) == whole) for records in ordered]
        return [Shown(r.word_ppl, "word", r.graph, r.tokens) for r in picked]
    if first:
        picked = [next(r for r in records if first in sums(r)) for records in ordered]
        return [Shown(over(r, first), "token", r.graph, first, f"a token, first {first}") for r in picked]
    picked = [max(records, key=lambda r: (r.tokens, r.graph == "kv")) for records in ordered]
    return [Shown(r.word_ppl, "word", r.graph, r.tokens, f"over {r.tokens} tokens") for r in picked]


def state_of(result: Result) -> State:
    """What one result says of its cell."""
    if result.status == Status.PASSED:
        return State.NOT_TRIED if result.reason.startswith(COMPILED) else State.RUNS
    if result.failure_class == FailureClass.UNSUPPORTED:
        return State.UNSUPPORTED
    failed = result.status in (Status.FAILED, Status.ERROR)
    if failed and result.failure_class in _UNDECIDED:
        return State.UNDECIDED
    return State.FAILS if failed and result.failure_class not in _SAYS_NOTHING else State.NOT_TRIED


def age_days(time: str, now: str) -> float | None:
    """Days between two ISO times; None where one is none."""
    try:
        return (datetime.fromisoformat(now) - datetime.fromisoformat(time)).total_seconds() / 86400
    except (ValueError, TypeError):
        return None


def _counting(telling: list[Result]) -> list[Result]:
    """Oldest first: the latest of each phone, and a result without a phone if nothing came after it."""
    latest: dict[str, Result] = {}
    for result in telling:
        # A build that failed, or a gate, is of all phones: what they did before it no longer holds.
        if not _touched(result):
            latest = {"": result}
        else:
            latest.pop("", None)
            latest.pop(result.phone, None)
            latest[result.phone] = result
    return list(latest.values())


def _last_good(ordered: list[Result], shown: Result) -> Result | None:
    building = shown.failure_class == FailureClass.BUILD
    good = [
        result for result in ordered if result.status == Status.PASSED and (building or state_of(result) is State.RUNS)
    ]
    if state_of(shown) in (State.FAILS, State.UNDECIDED):
        before = [result for result in good if result.time <= shown.time] or good
        good = [result for result in before if _touched(shown) and result.phone == shown.phone] or before
    return good[-1] if good else None


def _touched(result: Result) -> bool:
    """Whether a phone had part in the result, and the cell is not only pinned to it."""
    return bool(result.phone) and result.failure_class not in (FailureClass.BUILD, FailureClass.UNSUPPORTED)


def _phones(results: Iterable[Result]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(result.phone for result in results if _touched(result)))


def _changes(good: Result, now: Result) -> tuple[Change, ...]:
    names = sorted({*good.toolchain, *now.toolchain})
    pairs = ((name, good.toolchain.get(name, ""), now.toolchain.get(name, "")) for name in names)
    return tuple(Change(*pair) for pair in pairs if pair[1] != pair[2])


def _note(ordered: list[Result]) -> str:
    if not ordered:
        return ""
    last = ordered[-1]
    if last.failure_class:
        return f"{last.failure_class}: {last.reason}"
    return last.reason
