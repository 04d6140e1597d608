"""`htpfarm report`: a run's reports again, and its results in the formats of others."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.files import write_atomically
from harness.results.summary import RunSummary

if TYPE_CHECKING:
    from harness.results.page import Answer

TEXT = "write a run's report.html and report.md again, print its table; export it as JUnit, a step summary, …"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options; `--json` is every verb's."""
    parser.add_argument("run", type=Path, help="a folder under reports/")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="JUnit XML, for GitHub, GitLab and Jenkins")
    parser.add_argument(
        "--summary", type=Path, metavar="FILE", help="append a GitHub step summary; default: $GITHUB_STEP_SUMMARY"
    )
    parser.add_argument("--gate", action="store_true", help="begin the reports with `htpfarm gate`'s answer")
    parser.add_argument(
        "--base", type=Path, metavar="RUN", help="what to hold the run against: in the report, and by --gate"
    )
    parser.add_argument("--allow-missing", action="store_true", help="with --gate: cells that vanished do not block")
    parser.add_argument("--pytorch", type=Path, metavar="FILE", help="PyTorch's benchmark records v3, JSON")
    parser.add_argument("--prometheus", type=Path, metavar="FILE", help="Prometheus's text format")
    parser.add_argument("--history", metavar="URL", help="whose past runs to draw; default: $HTPFARM_HISTORY, reports/")


def run(arguments: argparse.Namespace) -> int:
    """Writes and prints. Returns the run's exit status.

    Raises:
        ConfigError: the folder has no records.
    """
    import sys

    from harness.compare.view import ab_view
    from harness.export.past import history_url, past_of
    from harness.export.step_summary import append, gate_words
    from harness.results import load_run
    from harness.results.report import Pasts, write_reports
    from harness.results.summary import exit_status, summarise
    from harness.results.table import print_table

    summary = summarise(load_run(arguments.run))
    past: Pasts = {}
    if url := history_url(arguments.run.absolute().parent, arguments.history):
        from harness.history.store import History

        with History(url) as history:
            past = past_of(history, summary)
    answer = _answer(arguments) if arguments.gate else None
    written = list(write_reports(arguments.run, past, answer, ab_view(arguments.run, arguments.base)))
    for name, render in _renderers().items():
        if path := getattr(arguments, name):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, render(summary))
            written.append(path)
    if target := arguments.summary or os.environ.get("GITHUB_STEP_SUMMARY"):
        append(Path(target), summary, gate_words(answer) if answer else "")
        written.append(Path(target))
    if arguments.json:
        print(json.dumps(_data(summary), indent=2, default=str))
    else:
        print_table(summary, sys.stdout)
        print("\n".join(map(str, written)))
    return exit_status(summary)


def _answer(arguments: argparse.Namespace) -> Answer:
    from harness.compare.cli import run_gate
    from harness.compare.view import answer

    return answer(run_gate(arguments.run, arguments.base, arguments.history, allow_missing=arguments.allow_missing))


def _renderers() -> dict[str, Callable[[RunSummary], str]]:
    from harness.export.junit import render_junit
    from harness.export.prometheus import render_prometheus
    from harness.export.pytorch import render_pytorch

    return {"junit": render_junit, "pytorch": render_pytorch, "prometheus": render_prometheus}


def _data(summary: RunSummary) -> object:
    import dataclasses

    return dataclasses.asdict(summary)
