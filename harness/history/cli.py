"""`htpfarm history`: take runs in, show how cells went, draw it.

What loads the database's library is imported where it is used: other verbs do without.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.results.text import number, visible

if TYPE_CHECKING:
    from harness.history.trend import Trend

SPEED = ("ttft_ms", "prefill_tok_s", "decode_tok_s")


def add_parser(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Adds the verb."""
    text = "how cells went over many runs; by default the three speeds"
    parser = verbs.add_parser("history", help=text, description=text)
    where = argparse.ArgumentParser(add_help=False, parents=[common])
    where.add_argument(
        "--history",
        metavar="URL",
        help="a database (sqlite:///FILE, postgresql://USER@HOST/NAME) or a file; default: $HTPFARM_HISTORY, else "
        "reports/history.sqlite",
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    take = actions.add_parser("import", parents=[where], help="take runs in, or what is new of them")
    take.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders under reports/")
    take.set_defaults(verb=_import)
    show = actions.add_parser("show", parents=[where], help="each metric of each cell, run by run")
    show.add_argument("--cell", action="append", default=[], help="a cell's id, or with *: tiny_llama-*; repeatable")
    show.add_argument("--metric", action="append", default=[], help="name, or with *: ttft_ms@*; * for all; repeatable")
    show.add_argument("--phone", help="only on this phone")
    show.add_argument("--since", help="ISO time or its beginning, as 2026-11")
    show.add_argument("--until", help="the same; included")
    show.add_argument("--target", choices=("sim", "android"))
    show.add_argument("--plot", type=Path, metavar="FILE", help="draw it as a page")
    show.add_argument("--change-points", action="store_true", help="look for changes of level (apache-otava); advisory")
    show.set_defaults(verb=_show)
    listed = actions.add_parser("runs", parents=[where], help="the runs it holds")
    listed.add_argument("--since")
    listed.add_argument("--until")
    listed.set_defaults(verb=_runs)
    forget = actions.add_parser("forget", parents=[where], help="remove a run")
    forget.add_argument("run", help="its id")
    forget.set_defaults(verb=_forget)


def _import(arguments: argparse.Namespace) -> int:
    from harness.history.store import History

    with History(arguments.history) as history:
        done = list(history.import_runs(arguments.runs))
    if arguments.json:
        print(json.dumps([dataclasses.asdict(one) for one in done], indent=2))
    for one in [] if arguments.json else done:
        print(f"{one.run}: {one.records} records, {one.added} of them new; {one.cells} cells, {one.sessions} sessions")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from harness.compare.baselines import accepted_times
    from harness.history.changepoints import UnavailableError, with_changes
    from harness.history.query import Choice, session_values
    from harness.history.store import History
    from harness.history.trend import trends

    metrics = tuple(arguments.metric) or SPEED
    choice = Choice(tuple(arguments.cell), arguments.phone, metrics, arguments.since, arguments.until, arguments.target)
    with History(arguments.history) as history:
        found = trends(session_values(history, choice), accepted_times())
    if arguments.change_points:
        try:
            found = with_changes(found)
        except UnavailableError as error:
            print(f"htpfarm: no change points: {error}", file=sys.stderr)
    if arguments.plot:
        from harness.history.plot import write_plot

        write_plot(found, arguments.plot)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(trend) for trend in found], indent=2))
    else:
        _print(found)
        if arguments.plot:
            print(arguments.plot)
    return 0


def _print(found: Sequence[Trend]) -> None:
    if not found:
        print("nothing of that kind is in the history: `htpfarm history import RUN`")
        return
    table = Table(title="history", title_justify="left")
    for name in ("cell", "metric", "runs", "from", "to", "latest", "expected", "", "course"):
        table.add_column(name, overflow="fold")
    for trend in found:
        bound = f"{number(trend.bound.mean)}, worst {number(trend.bound.worst)}" if trend.bound else "–"
        table.add_row(
            escape(visible(trend.cell)) + (" (sim)" if trend.target == "sim" else ""),
            escape(visible(trend.metric)),
            str(len(trend.values)),
            trend.values[0].time[:10],
            trend.latest.time[:10],
            number(trend.latest.value),
            bound,
            trend.judgement.value if trend.judgement else "",
            trend.spark,
        )
    Console().print(table)
    for trend in found:
        for time in trend.changes:
            print(f"{trend.cell} {trend.metric}: its level changed at {time} (advisory)")


def _runs(arguments: argparse.Namespace) -> int:
    from harness.history.query import Choice, list_runs
    from harness.history.store import History

    with History(arguments.history) as history:
        found = list_runs(history, Choice(since=arguments.since, until=arguments.until))
    if arguments.json:
        print(json.dumps([dataclasses.asdict(run) for run in found], indent=2))
        return 0
    table = Table(title="runs", title_justify="left")
    for name in ("run", "started", "host", "target", "verdict", "folder"):
        table.add_column(name, overflow="fold")
    for run in found:
        table.add_row(
            run.run, run.started[:19], escape(visible(run.host)), run.target, run.headline, escape(visible(run.folder))
        )
    Console().print(table)
    return 0


def _forget(arguments: argparse.Namespace) -> int:
    from harness.history.store import History

    with History(arguments.history) as history:
        gone = history.forget(arguments.run)
    if arguments.json:
        print(json.dumps({"run": arguments.run, "removed": gone}))
    else:
        print(f"{arguments.run}: {'removed' if gone else 'not in the history'}")
    return 0 if gone else 2
