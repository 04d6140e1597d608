"""A run, and what it is held against → what blocks, what to look at first, and the exit status. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.compare.baselines import Accepted, latest_for
from harness.compare.runs import CARRIED_OUT, CellComparison, RunComparison, worst_change
from harness.errors import FailureClass
from harness.history.query import RunValue
from harness.history.trend import Trend
from harness.results.alike import over, sums
from harness.results.records import PerplexityRecord, Status
from harness.results.summary import NOT_RUN, CellSummary, RunSummary
from harness.results.text import change, number
from harness.verdicts import RULES, Declared, Judgement, Rules, control_discoveries
from harness.verdicts.perplexity import MARGIN

_RANKS = {
    FailureClass.PRODUCT: 0,
    FailureClass.CRASH: 1,
    FailureClass.BUILD: 2,
    FailureClass.PERF: 4,
    FailureClass.INVALID: 5.2,
    FailureClass.INCONCLUSIVE: 5.4,
    FailureClass.NOT_JUDGED: 5.6,
    FailureClass.CONFIG: 6,
    FailureClass.ENV: 8,
    FailureClass.INFRA: 8,
}
# What was measured and is wrong comes first, then what was not measured, or not well enough to say.
_REGRESSED_ACCURACY, _REGRESSED_SPEED, _VANISHED, _NOT_RUN, _NOTE = 3, 4, 5.8, 7, 9
_ALLOW = (
    "run the cells that are missing, or, where they are meant to be (other models, modes or SoCs were chosen), say so: "
    "--allow-missing"
)
_STATUS = {FailureClass.CONFIG: 2, FailureClass.INFRA: 3, FailureClass.ENV: 3}


@dataclass(frozen=True)
class Finding:
    """One thing to look at.

    Attributes:
        rank: the lower, the sooner; of slowdowns the larger one first.
        cell: which; empty of the run as a whole.
        what: what happened, one sentence with its numbers.
        remedy: what to do about it.
        evidence: where to read on: a path, or the output.
        status: the exit status it asks for; 0 when it does not block.
        last_good: run and toolchain in which the cell last passed; empty when not known.
    """

    rank: float
    cell: str
    what: str
    remedy: str = ""
    evidence: str = ""
    status: int = 0
    last_good: str = ""


@dataclass(frozen=True)
class GoodRun:
    """A run before this one, on the same target, in which no cell failed.

    Attributes:
        run: its id.
        cells: ids of those that passed.
    """

    run: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class GateResult:
    """The gate's answer.

    Attributes:
        run: the run's id.
        against: what it was held against, in words.
        status: exit status: 0 good; 1 the product is wrong or slow; 2 configuration; 3 only the rack.
        findings: what to look at, first things first.
    """

    run: str
    against: str
    status: int
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether a change may go in."""
        return self.status == 0


def gate(
    summary: RunSummary,
    comparison: RunComparison | None = None,
    baselines: Sequence[Accepted] = (),
    trends: Sequence[Trend] = (),
    last_good: Mapping[str, str] | None = None,
    stated: Mapping[str, Sequence[Declared]] | None = None,
    rules: Rules = RULES,
    *,
    last_run: GoodRun | None = None,
    allow_missing: bool = False,
) -> GateResult:
    """Judge a run.

    Args:
        summary: the run.
        comparison: with a base run, where there is one; of the cells in it neither baselines nor history are asked.
        baselines: accepted runs.
        trends: of the run's speeds, their latest value the run's own.
        last_good: cell → where it last passed, in words.
        stated: cell → the bounds of its model's file, and how they were kept.
        rules: levels.
        last_run: of the history, see `last_whole`; its cells and the baselines' have to be in the run, where there is
            no base.
        allow_missing: cells that vanished are told, and do not block.
    """
    compared = {cell.cell: cell for cell in comparison.cells} if comparison else {}
    findings: list[Finding] = []
    for cell in summary.cells:
        if not (cell.id in compared and cell.failure_class is FailureClass.PERF):
            # A slowdown found by pairs is judged below, among all the run's.
            findings += _ending(cell, (last_good or {}).get(cell.id, ""))
        if cell.id in compared:
            findings += _comparison(compared[cell.id])
        else:
            findings += _against_baseline(cell, latest_for(baselines, cell.id, summary.run.target.value))
    findings += _against_stated(stated or {})
    findings += _against_history([trend for trend in trends if trend.cell not in compared], rules)
    expected = _expected(comparison, baselines, last_run, summary.run.target.value)
    findings += _vanished(summary, expected, allow_missing)
    if not summary.cells:
        findings.append(Finding(_NOT_RUN, "", "the run has no cells", "choose some", status=3))
    ordered = tuple(sorted(findings, key=lambda finding: (finding.rank, finding.cell)))
    return GateResult(summary.run.id, _against(comparison, baselines, trends), _exit_status(ordered), ordered)


def _exit_status(findings: Sequence[Finding]) -> int:
    found = {finding.status for finding in findings}
    return next((status for status in (1, 2, 3) if status in found), 0)


def last_whole(runs: Sequence[GoodRun]) -> GoodRun | None:
    """The last of good runs, in the order started, that has all cells of those before it.

    A run that lost cells, or of a few only, is no measure for what the next one has to have.
    """
    kept: GoodRun | None = None
    for run in runs:
        if kept is None or set(kept.cells) <= set(run.cells):
            kept = run
    return kept


def _expected(
    comparison: RunComparison | None, baselines: Sequence[Accepted], last_run: GoodRun | None, target: str
) -> dict[str, dict[str, str]]:
    """What the run is held against, in words → cells that it has, and how they ended there."""
    if comparison:
        ended = {cell.cell: cell.base for cell in comparison.cells}
        return {f"the base {comparison.base}": {cell: base for cell, base in ended.items() if base in CARRIED_OUT}}
    found: dict[str, dict[str, str]] = {}
    for one in baselines:
        for cell, kept in one.baseline.cells.items():
            if one.baseline.target == target and latest_for(baselines, cell, target) is one:
                found.setdefault(f"the accepted baseline {one.path.name}", {})[cell] = kept.status
    if last_run:
        known = {cell for cells in found.values() for cell in cells}
        new = {cell: Status.PASSED.value for cell in last_run.cells if cell not in known}
        found[f"the history's last good run {last_run.run}"] = new
    return found


def _vanished(summary: RunSummary, expected: Mapping[str, Mapping[str, str]], allowed: bool) -> list[Finding]:
    """A finding for each thing the run is held against that has cells which the run did not carry out."""
    here = {cell.id: cell for cell in summary.cells}
    found = []
    for source, cells in expected.items():
        gone = {cell: here[cell].status if cell in here else "" for cell in sorted(cells)}
        gone = {cell: status for cell, status in gone.items() if status not in CARRIED_OUT}
        if not gone:
            continue
        names = ", ".join(f"{cell} ({status})" if status else cell for cell, status in gone.items())
        what = f"{len(gone)} of {len(cells)} cell(s) of {source} vanished: {names}"
        rank, status = (_NOTE, 0) if allowed else (_VANISHED, 1)
        found.append(Finding(rank, "", what, _ALLOW, status=status))
    return found


def _against(comparison: RunComparison | None, baselines: Sequence[Accepted], trends: Sequence[Trend]) -> str:
    if comparison:
        return f"run {comparison.base}"
    parts = [f"{len(baselines)} baseline(s)"] if baselines else []
    judged = [trend for trend in trends if trend.bound]
    parts += [f"the history of {len(judged)} speed(s)"] if judged else []
    return " and ".join(parts) or "nothing: no base, no baseline, and no history of ten runs"


def _ending(cell: CellSummary, last_good: str) -> list[Finding]:
    if cell.status == NOT_RUN:
        return [Finding(_NOT_RUN, cell.id, "not run: the run was interrupted", "resume it", status=3)]
    if cell.status not in (Status.FAILED.value, Status.ERROR.value):
        return []
    # A record that does not say why still says that the cell failed.
    kind = cell.failure_class or FailureClass.PRODUCT
    evidence = cell.evidence_path or cell.evidence
    return [
        Finding(
            _RANKS.get(kind, 0),
            cell.id,
            f"{kind}: {cell.reason}",
            cell.remedy,
            evidence,
            _STATUS.get(kind, 1),
            last_good,
        )
    ]


def _comparison(cell: CellComparison) -> list[Finding]:
    found = []
    if cell.outcome is Judgement.INCONCLUSIVE and cell.base != Status.PASSED.value:
        found.append(Finding(_NOTE, cell.cell, "it fails in the base, too"))
    for graph, one in cell.perplexity.items():
        if one.judgement is Judgement.REGRESSED:
            what = f"perplexity of the {graph} graph {one.ratio - 1:+.2%} against the base"
            found.append(Finding(_REGRESSED_ACCURACY, cell.cell, what, "compare the two sides' QDQ", status=1))
        elif one.judgement is Judgement.INVALID:
            found.append(Finding(_NOTE, cell.cell, f"perplexity of the {graph} graph: INVALID: {one.reason}"))
    invalid: dict[str, list[str]] = {}
    for speed in cell.speeds:
        if speed.judgement is Judgement.INVALID:
            invalid.setdefault(speed.reason, []).append(speed.metric)
    found += [
        Finding(_NOTE, cell.cell, f"{', '.join(metrics)}: INVALID: {reason}") for reason, metrics in invalid.items()
    ]
    for speed in cell.speeds:
        if speed.judgement is Judgement.REGRESSED and speed.change is not None:
            what = (
                f"{speed.metric} REGRESSED: {number(speed.base)} → {number(speed.candidate)}, {speed.change:+.1%} "
                f"({speed.lower:+.1%} to {speed.upper:+.1%}, {speed.pairs} pairs)"
            )
            rank = _REGRESSED_SPEED + 1 - min(1.0, worst_change(cell))
            found.append(Finding(rank, cell.cell, what, "look at what the change does in this graph", status=1))
    if cell.text is not None and not cell.text.equal:
        found.append(Finding(_NOTE, cell.cell, cell.text.words, "near ties may; the cell's own checks judge it"))
    return found


def _against_baseline(cell: CellSummary, accepted: Accepted | None) -> list[Finding]:
    if accepted is None or cell.status != Status.PASSED.value:
        return []
    kept = accepted.baseline.cells[cell.id].perplexity
    return [
        finding
        for score in cell.perplexities
        for name, before in kept.items()
        if name.rpartition("/")[0] == f"{score.ground}/{score.graph}"
        and (finding := _accuracy(cell.id, score, name.rpartition("/")[2], before, str(accepted.path)))
    ]


def _accuracy(cell: str, score: PerplexityRecord, tokens: str, before: float, path: str) -> Finding | None:
    """A perplexity against the one accepted for as many of the text's first tokens; None where it holds."""
    where = f"perplexity on {score.ground} [{score.graph}]"
    if not tokens.isdecimal() or int(tokens) not in sums(score):
        what = f"{where}: INVALID: accepted over {tokens} tokens, scored over {score.tokens}"
        return Finding(_NOTE, cell, what, "score as many, or accept this run", path)
    now = over(score, int(tokens))
    if now < before * (1 + MARGIN):
        return None
    what = f"{where} {number(now)} over {tokens} tokens, accepted was {number(before)}: {change(now, before)}"
    remedy = "find what changed it, or accept it: `htpfarm baseline accept RUN --why …`"
    return Finding(_REGRESSED_ACCURACY, cell, what, remedy, path, 1)


def _against_stated(stated: Mapping[str, Sequence[Declared]]) -> list[Finding]:
    remedy = "measure it against the last good version, or see what the model's file cites (published)"
    return [
        Finding(_REGRESSED_SPEED, cell, one.words, remedy, status=1)
        for cell, bounds in stated.items()
        for one in bounds
        if not one.passed
    ]


def _against_history(trends: Sequence[Trend], rules: Rules) -> list[Finding]:
    judged = [trend for trend in trends if trend.bound is not None and trend.judgement is not None]
    words = control_discoveries([str(trend.judgement) for trend in judged], [trend.p for trend in judged], rules)
    found = []
    for trend, word in zip(judged, words, strict=True):
        bound, latest = trend.bound, trend.latest
        assert bound is not None
        if trend.judgement is not Judgement.REGRESSED:
            continue
        what = (
            f"{trend.metric} {number(latest.value)}, expected {number(bound.mean)}, at worst {number(bound.worst)} "
            f"(after {bound.sessions} runs)"
        )
        if word == Judgement.REGRESSED.value:
            what, status, rank = f"{what}: REGRESSED", 1, _REGRESSED_SPEED
        else:
            what, status, rank = f"{what}: slow, but not surely among {len(judged)} speeds", 0, _NOTE
        found.append(Finding(rank, trend.cell, what, _measure_again(latest), status=status))
    return found


def _measure_again(latest: RunValue) -> str:
    return f"measure it against the last good version: `pytest -m device --ab …` ({latest.run})"
