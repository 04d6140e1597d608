"""What follows at the end of a run: it goes into the history, and a run of A against B is judged as a whole."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

from rich.console import Console

from harness.compare.cli import print_comparison, print_gate, run_gate, to_json
from harness.compare.gate import GateResult
from harness.compare.runs import compare_runs
from harness.compare.view import BASE_SIDE, ab_view, answer
from harness.errors import HarnessError
from harness.files import write_atomically
from harness.history.store import History, default_url
from harness.results.report import write_reports
from harness.results.store import RECORDS, load_run

WIDTH = 120
COMPARISON = "comparison.json"


def keep(folder: Path) -> str:
    """Takes a run into the history beside it (or `$HTPFARM_HISTORY`), both sides of it; returns what went wrong.

    The run is what its folder says, whether or not a database takes it in: nothing is raised.
    """
    try:
        with History(default_url(folder.parent)) as history:
            for place in (folder / BASE_SIDE, folder):
                if (place / RECORDS).is_file():
                    history.import_run(place)
    except HarnessError as error:
        return f"not taken into the history: {error}"
    return ""


def write_ab_reports(folder: Path, found: GateResult) -> None:
    """Writes the reports of a run of A against B, the gate's answer and the comparison first.

    Raises:
        ConfigError: a side has no records.
    """
    write_reports(folder, answer=answer(found), against=ab_view(folder))


def judge_ab(folder: Path) -> tuple[GateResult, str] | None:
    """The gate's answer to a run of A against B, and it in words; None of another run. Writes `comparison.json`.

    Raises:
        ConfigError: a side has no records.
    """
    if not (folder / BASE_SIDE / RECORDS).is_file():
        return None
    comparison = compare_runs(load_run(folder / BASE_SIDE), load_run(folder))
    found = run_gate(folder, history=default_url(folder.parent))
    write_atomically(
        folder / COMPARISON, to_json({"comparison": dataclasses.asdict(comparison), "gate": dataclasses.asdict(found)})
    )
    out = io.StringIO()
    console = Console(file=out, width=WIDTH, force_terminal=False, color_system=None, highlight=False)
    print_comparison(comparison, console)
    print_gate(found, console)
    return found, out.getvalue()
