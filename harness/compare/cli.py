"""`htpfarm compare`, `htpfarm gate` and `htpfarm baseline`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.errors import HarnessError
from harness.paths import REPOSITORY
from harness.results.records import Status
from harness.results.text import number, perplexity, visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.compare.gate import GateResult, GoodRun
    from harness.compare.runs import RunComparison
    from harness.history.trend import Trend
    from harness.results.store import RunData
    from harness.results.summary import RunSummary

FOLDER = REPOSITORY / "reports" / "baselines"
_SHOWN = 20
_GOOD_RUNS = 30
"""How many good runs are looked through for the last whole one."""


def add_parser(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Adds the verbs."""
    text = "two finished runs: outcomes, speeds, perplexity and text of each cell"
    compare = verbs.add_parser("compare", parents=[common], help=text, description=text)
    compare.add_argument("base", type=Path, metavar="BASE_RUN")
    compare.add_argument("new", type=Path, metavar="NEW_RUN")
    _add_allow_missing(compare)
    compare.add_argument("--html", type=Path, metavar="FILE", help="write a page that needs no network")
    compare.add_argument("--markdown", type=Path, metavar="FILE", help="write Markdown")
    compare.set_defaults(verb=_compare)
    text = "may it go in? exit status 0 yes; 1 wrong, slow, or nobody can say; 2 configuration; 3 only the rack"
    gate = verbs.add_parser("gate", parents=[common], help=text, description=text)
    gate.add_argument("run", type=Path, metavar="RUN", help="a finished run, also one of --ab")
    gate.add_argument(
        "--base", type=Path, metavar="RUN", help="compare with this run; default: the run's own base side"
    )
    gate.add_argument("--history", metavar="URL", help="a database or a file; default as `htpfarm history`")
    _add_allow_missing(gate)
    _add_baselines(gate)
    gate.set_defaults(verb=_gate)
    text = "accepted runs, as files under reports/baselines/"
    baseline = verbs.add_parser("baseline", help=text, description=text)
    actions = baseline.add_subparsers(required=True, metavar="ACTION")
    accept = actions.add_parser("accept", parents=[common], help="accept a run's passed cells as they are")
    accept.add_argument("run", type=Path, metavar="RUN")
    accept.add_argument("--why", required=True, metavar="TEXT", help="the reason")
    accept.add_argument("--who", metavar="NAME", help="default: git's or the system's name of the user")
    accept.set_defaults(verb=_accept)
    listed = actions.add_parser("list", parents=[common], help="what was accepted")
    listed.set_defaults(verb=_list)
    _add_baselines(accept)
    _add_baselines(listed)


def _add_allow_missing(parser: argparse.ArgumentParser) -> None:
    text = "cells that the run did not have, and what it is held against did, do not block"
    parser.add_argument("--allow-missing", action="store_true", help=text)


def _add_baselines(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--baselines", type=Path, default=FOLDER, metavar="DIR", help="default: reports/baselines")


def _compare(arguments: argparse.Namespace) -> int:
    from harness.compare.runs import compare_runs
    from harness.results.store import load_run
    from harness.verdicts import Judgement

    base, new = load_run(arguments.base), load_run(arguments.new)
    found = compare_runs(base, new)
    written = _write_pages(base, new, arguments.html, arguments.markdown)
    if arguments.json:
        vanished = [cell.cell for cell in found.vanished]
        print(to_json({**dataclasses.asdict(found), "counts": found.counts, "vanished": vanished}))
    else:
        print_comparison(found, Console())
        print("\n".join(map(str, written)), end="\n" if written else "")
    gone = found.vanished and not arguments.allow_missing
    return 1 if gone or found.with_judgement(Judgement.REGRESSED) else 0


def _write_pages(base: RunData, new: RunData, html: Path | None, markdown: Path | None) -> list[Path]:
    """Writes the pages that were asked for; returns where they are."""
    from harness.compare.view import view
    from harness.files import write_atomically
    from harness.results.report import render_comparison_html, render_comparison_markdown

    written = []
    for path, render in ((html, render_comparison_html), (markdown, render_comparison_markdown)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, render(view(base, new)))
            written.append(path)
    return written


def print_comparison(found: RunComparison, console: Console) -> None:
    """Each cell with its speeds, then what differs between the two; changes with their 90% intervals."""
    from harness.verdicts import Judgement

    note = " (speeds of the simulator)" if found.target == "sim" else ""
    table = Table(title=f"{found.base} → {found.candidate}{note}", title_justify="left")
    for name in ("cell", "what", "base", "new", "change", "pairs", "verdict"):
        table.add_column(name, overflow="fold")
    for cell in found.cells:
        verdict = cell.judgement.value + (f": {escape(visible(cell.reason))}" if cell.reason else "")
        table.add_row(escape(visible(cell.cell)), "ended", cell.base or "–", cell.candidate or "–", "", "", verdict)
        for speed in cell.speeds:
            word = speed.judgement.value + (f": {escape(speed.reason)}" if speed.reason else "")
            change = _change(speed.change, speed.lower, speed.upper)
            table.add_row("", speed.metric, number(speed.base), number(speed.candidate), change, str(speed.pairs), word)
        for graph, one in cell.perplexity.items():
            edges = [None if edge is None else edge - 1 for edge in (one.lower, one.upper)]
            change = _change(None if math.isnan(one.ratio) else one.ratio - 1, *edges)
            word = one.judgement.value + (f": {one.reason}" if one.reason else "")
            table.add_row(
                "",
                escape(f"perplexity [{graph}]"),
                perplexity(one.base),
                perplexity(one.candidate),
                change,
                f"{one.documents} blocks, {one.tokens} tokens",
                word,
            )
        if cell.text is not None:
            table.add_row("", "text", "", "", "", "", cell.text.words)
        table.add_section()
    console.print(table)
    for part, (old, new) in found.toolchain.items():
        console.print(f"{part}: {_short(old)} → {_short(new)}", highlight=False)
    console.print(", ".join(f"{count} {word}" for word, count in found.counts.items() if count) or "no cells")
    if regressed := found.with_judgement(Judgement.REGRESSED):
        console.print("REGRESSED: " + ", ".join(cell.cell for cell in regressed))
    if found.vanished:
        names = ", ".join(cell.cell for cell in found.vanished)
        console.print(f"vanished, in the base and not carried out in the new run: {names}", markup=False)


def _change(change: float | None, lower: float | None, upper: float | None) -> str:
    if change is None:
        return "–"
    return f"{change:+.1%}" + (f" ({lower:+.1%} to {upper:+.1%})" if lower is not None and upper is not None else "")


def _short(value: str) -> str:
    return value[:12] if len(value) == 64 else value  # a hash


def _gate(arguments: argparse.Namespace) -> int:
    found = run_gate(
        arguments.run, arguments.base, arguments.history, arguments.baselines, allow_missing=arguments.allow_missing
    )
    if arguments.json:
        print(to_json({**dataclasses.asdict(found), "passed": found.passed}))
    else:
        print_gate(found, Console())
    return found.status


def run_gate(
    run: Path,
    base: Path | None = None,
    history: str | None = None,
    folder: Path = FOLDER,
    *,
    allow_missing: bool = False,
) -> GateResult:
    """Judge a run by its base (given, or its own of `--ab`), else by accepted baselines and the history.

    Args:
        run: its folder.
        base: the folder of the run to compare with.
        history: a database or a file.
        folder: of the baselines.
        allow_missing: cells that vanished do not block.

    Raises:
        ConfigError: a folder has no records, or a baseline is none.
    """
    from harness.compare.baselines import load_baselines
    from harness.compare.declared import declared
    from harness.compare.gate import gate
    from harness.compare.runs import compare_runs
    from harness.compare.view import BASE_SIDE
    from harness.models import load_models
    from harness.paths import MODELS
    from harness.results.store import RECORDS, load_run
    from harness.results.summary import summarise

    data = load_run(run)
    summary = summarise(data)
    own = run / BASE_SIDE
    side = base or (own if (own / RECORDS).is_file() else None)
    comparison = compare_runs(load_run(side), data) if side else None
    baselines = load_baselines(folder)
    trends, last_good, last_run = _from_history(summary, run, history, folder)
    stated = declared(summary, load_models(MODELS))
    past = () if comparison else trends
    return gate(summary, comparison, baselines, past, last_good, stated, last_run=last_run, allow_missing=allow_missing)


def _from_history(
    summary: RunSummary, run: Path, url: str | None, folder: Path
) -> tuple[Sequence[Trend], Mapping[str, str], GoodRun | None]:
    """Trends that end with the run, where each cell last passed before it, and the last whole run in which none failed.

    The run is taken in if it is new. Accepting a baseline begins the history anew.
    """
    from harness.compare.baselines import accepted_times
    from harness.compare.gate import GoodRun, last_whole
    from harness.history.query import Choice, cell_results, list_runs, session_values, standings
    from harness.history.store import History
    from harness.history.trend import trends
    from harness.toolchain.version import version_words
    from harness.verdicts.metrics import JUDGED

    try:
        with History(url) as history:
            history.import_run(run)
            cells = tuple(cell.id for cell in summary.cells)
            target = summary.run.target.value
            until = summary.last_time
            values = session_values(history, Choice(cells, metrics=JUDGED, until=until, target=target))
            ours = {value.cell for value in values if value.run == summary.run.id}
            good = standings(history, Choice(cells, until=summary.run.started, target=target), metrics=("none",))
            every = list_runs(history)
            versions = {one.run: one.toolchain for one in every}
            since = max((at for (_, kind), at in accepted_times(folder).items() if kind == target), default="")
            before = [
                one.run
                for one in every
                if (one.target, one.headline) == (target, Status.PASSED.value)
                and since <= one.started < summary.run.started
            ]
            passed = {run: cell_results(history, Choice(run=run)) for run in before[-_GOOD_RUNS:]}
    except HarnessError as error:
        # The run's own failures count also where the history cannot be had.
        Console(stderr=True).print(f"htpfarm: without history: {error}", markup=False)
        return (), {}, None
    found = [
        trend
        for trend in trends(values, accepted_times(folder))
        if trend.cell in ours and trend.latest.run == summary.run.id
    ]
    where = {
        one.last_good.cell: f"{one.last_good.run} ({version_words(versions.get(one.last_good.run, {})) or 'unknown'})"
        for one in good
        if one.last_good
    }
    whole = last_whole(
        [
            GoodRun(run, tuple(one.cell for one in ended if one.status == Status.PASSED.value))
            for run, ended in passed.items()
        ]
    )
    return found, where, whole


def print_gate(found: GateResult, console: Console) -> None:
    """The answer, then what to look at first."""
    word = "PASS" if found.passed else "FAIL"
    console.print(f"gate: {word} (exit status {found.status}); {found.run} against {found.against}", highlight=False)
    blocking = [finding for finding in found.findings if finding.status]
    notes = [finding for finding in found.findings if not finding.status]
    for title, group in (("look at first:", blocking), ("does not block:", notes)):
        if group:
            console.print(title)
        for place, finding in enumerate(group[:_SHOWN], start=1):
            where = f"{finding.cell}: " if finding.cell else ""
            console.print(f"  {place}. {visible(where + finding.what)}", markup=False, highlight=False)
            if finding.last_good:
                console.print(f"     last good: {finding.last_good}", markup=False, highlight=False)
            if finding.remedy and finding.status:
                console.print(f"     what to do: {visible(finding.remedy)}", markup=False, highlight=False)
            if finding.evidence and finding.status:
                lines = visible(finding.evidence).strip().splitlines()
                console.print(f"     evidence: {lines[-1] if lines else ''}", markup=False, highlight=False)
        if len(group) > _SHOWN:
            console.print(f"  … and {len(group) - _SHOWN} more")


def _accept(arguments: argparse.Namespace) -> int:
    from harness.compare.baselines import accept

    accepted = accept(arguments.run, arguments.why, arguments.who, arguments.baselines)
    if arguments.json:
        print(accepted.baseline.model_dump_json(by_alias=True, indent=2))
    else:
        baseline = accepted.baseline
        print(f"{accepted.path}: {len(baseline.cells)} cell(s) of {baseline.run}, accepted by {baseline.who}")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from harness.compare.baselines import load_baselines

    found = load_baselines(arguments.baselines)
    if arguments.json:
        print(json.dumps([one.baseline.model_dump(by_alias=True) for one in found], indent=2))
        return 0
    table = Table(title="accepted baselines", title_justify="left")
    for name in ("accepted", "run", "cells", "target", "who", "why"):
        table.add_column(name, overflow="fold")
    for one in found:
        b = one.baseline
        table.add_row(b.accepted, b.run, str(len(b.cells)), b.target, escape(visible(b.who)), escape(visible(b.why)))
    Console().print(table)
    return 0


def to_json(value: object) -> str:
    """Strict JSON: what is not finite becomes its name."""
    return json.dumps(_plain(value), indent=2, default=str, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
