"""A comparison as pages show it: of a run of A against B, or of two runs of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from harness.compare.gate import GateResult, gate
from harness.compare.runs import (
    CellComparison,
    RunComparison,
    SpeedComparison,
    compare_runs,
    has_tokens,
    perplexity_record,
    reply_tokens,
)
from harness.results.against import (
    VERDICTS,
    Against,
    CellAgainst,
    Look,
    Measured,
    Pair,
    Reply,
    worst_first,
)
from harness.results.page import Answer
from harness.results.records import ComparisonRecord, SampleRecord
from harness.results.store import RECORDS, RunData, load_run
from harness.results.summary import RunSummary, summarise
from harness.verdicts import abba
from harness.verdicts.metrics import BETTER, UNITS
from harness.verdicts.rules import Better

BASE_SIDE = "base"
"""Folder of the base's records in the folder of a run of `pytest -m device --ab`."""
_ONLY_RECORDS = (
    "made of the run's own records: the base's are not here, so each verdict is by its own pairs, "
    "and neither pairs nor texts can be shown"
)


def ab_view(folder: Path, base: Path | None = None) -> Against | None:
    """What a run's report shows of its comparison; None of a run that has none.

    Args:
        folder: the run's.
        base: a run to compare with; None for the run's own base side, where it is one of A against B.

    Raises:
        ConfigError: a folder has no records.
    """
    data = load_run(folder)
    own = folder / BASE_SIDE
    if side := base or (own if (own / RECORDS).is_file() else None):
        return view(load_run(side), data)
    return recorded_view(data)


def view(base: RunData, candidate: RunData) -> Against:
    """Two runs, compared anew from their records. Pure."""
    comparison = compare_runs(base, candidate)
    old, new = summarise(base), summarise(candidate)
    before, after = ({cell.id: cell.samples for cell in run.cells} for run in (old, new))
    cells = [
        _cell(cell, comparison.base, before.get(cell.cell, ()), after.get(cell.cell, ())) for cell in comparison.cells
    ]
    return Against(
        comparison.base,
        comparison.candidate,
        new.is_sim,
        worst_first(cells),
        comparison.toolchain,
        _look(new, comparison),
    )


def recorded_view(data: RunData) -> Against | None:
    """What the comparisons in a run's own records say; None where it has none. Pure."""
    if not data.comparisons:
        return None
    summary = summarise(data)
    ended = {cell.id: cell for cell in summary.cells}
    cells = []
    for name, records in data.comparisons.items():
        last = {record.metric: record for record in records}  # of a cell tried again, the last attempt's
        words = {record.judgement for record in last.values()}
        judgement = next((word for word in VERDICTS if word in words), VERDICTS[-1])
        one = ended.get(name)
        cells.append(
            CellAgainst(
                name,
                judgement,
                None,
                one.status if one else None,
                tuple(_measured(record) for record in last.values()),
                reason=one.reason if one else "",
                remedy=one.remedy if one else "",
            )
        )
    (first, *_) = (record for records in data.comparisons.values() for record in records)
    return Against(first.base_run, summary.run.id, summary.is_sim, worst_first(cells), {}, note=_ONLY_RECORDS)


def answer(found: GateResult) -> Answer:
    """A gate's answer for the head of a page."""
    blocking = tuple((one.cell, one.what, one.remedy) for one in found.findings if one.status)
    return Answer(found.passed, found.against, blocking)


def replies(base: Sequence[SampleRecord], candidate: Sequence[SampleRecord]) -> tuple[Reply, ...]:
    """The first reply to each prompt that both sides were given, where the two are not the same. Pure."""
    sides = [{sample.prompt: sample for sample in reversed(side)} for side in (base, candidate)]
    prompts = [prompt for prompt in dict.fromkeys(sample.prompt for sample in base) if prompt in sides[1]]
    found = (_reply(sides[0][prompt], sides[1][prompt]) for prompt in prompts)
    return tuple(reply for reply in found if reply is not None)


def _reply(a: SampleRecord, b: SampleRecord) -> Reply | None:
    known = has_tokens(a) and has_tokens(b)
    for place, both in enumerate(zip_longest(reply_tokens(a), reply_tokens(b))):
        if both[0] != both[1]:
            tokens, unit = (both, "token") if known else ((None, None), "character")
            return Reply(a.prompt, a.text, b.text, place, tokens, unit)
    return None


def _cell(
    one: CellComparison, base_run: str, before: Sequence[SampleRecord], after: Sequence[SampleRecord]
) -> CellAgainst:
    phone = ", ".join(dict.fromkeys(sample.phone for sample in after))
    in_turns = any(sample.pair is not None for sample in after)
    measured = [_speed(speed, one.cell, base_run, phone, in_turns=in_turns) for speed in one.speeds]
    measured += [
        _measured(perplexity_record(one.cell, base_run, phone, graph, found)) for graph, found in one.perplexity.items()
    ]
    return CellAgainst(
        one.cell,
        one.judgement.value,
        one.base,
        one.candidate,
        tuple(measured),
        replies(before, after),
        one.text.words if one.text else "",
        one.reason,
        one.remedy,
    )


def _speed(speed: SpeedComparison, cell: str, base_run: str, phone: str, *, in_turns: bool) -> Measured:
    plain = _measured(speed.record(cell, base_run, phone, speed.judgement))
    order = dict(enumerate(abba(max((number for number, _, _ in speed.each), default=0) + 1))) if in_turns else {}
    firsts = {number: "base" if turn[0] == "A" else "candidate" for number, turn in order.items()}
    return replace(plain, pairs=tuple(Pair(number, a, b, firsts.get(number, "")) for number, a, b in speed.each))


def _measured(record: ComparisonRecord) -> Measured:
    known = record.metric in BETTER
    higher = known and BETTER[record.metric] is Better.HIGHER
    return Measured(record, UNITS.get(record.metric, ""), higher)


def _look(candidate: RunSummary, comparison: RunComparison) -> tuple[Look, ...]:
    """What blocks, and then what does not; a cell's own reason stands with the cell."""
    return tuple(Look(one.cell, one.what, one.remedy, bool(one.status)) for one in gate(candidate, comparison).findings)
