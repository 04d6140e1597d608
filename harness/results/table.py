"""The table at the end of a run, for a terminal: 100 columns, plain when it is none."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.results.accuracy import Task, TaskValue, columns, with_tasks
from harness.results.alike import Alike, alike_in
from harness.results.records import Ground, Status
from harness.results.summary import NOT_RUN, SIM_NOTE, CellSummary, RunSummary
from harness.results.text import NONE, count, number, perplexity, visible

WIDTH = 100
_CELL_WIDTH = 24
_WIDE_CELL = 37
_PHONE_WIDTH = 10

_STYLES = {
    Status.PASSED.value: "green",
    Status.FAILED.value: "bold red",
    Status.ERROR.value: "bold magenta",
    Status.SKIPPED.value: "dim",
    NOT_RUN: "yellow",
}
_HEADLINE_STYLES = {"PASSED": "bold green", "FAILED": "bold red", "ERROR": "bold magenta"}


def table_text(summary: RunSummary, width: int = WIDTH) -> str:
    """The table and all below it as plain text, for pytest's summary or a log.

    Args:
        summary: the run.
        width: columns, at most.
    """
    file = io.StringIO()
    _print(summary, Console(file=file, width=width, force_terminal=False, color_system=None, highlight=False))
    return file.getvalue()


def print_table(summary: RunSummary, file: TextIO) -> None:
    """Print the table; in colour if `file` is a terminal, in its width up to 100 columns."""
    console = Console(file=file, highlight=False)
    console.width = min(WIDTH, console.width) if console.is_terminal else WIDTH
    _print(summary, console)


def _print(summary: RunSummary, console: Console) -> None:
    console.print(_table(summary))
    note = _common_note(summary)
    what = "what stands below it" if note is None else note or "a word"
    console.print(Text(f"ppl: perplexity of the held-out text, of {what}; speeds: medians over sessions", "dim"))
    if summary.is_sim:
        console.print(Text(SIM_NOTE, "yellow"))
    if summary.has_lookahead:
        _say_table(console, "Lookahead: medians over sessions of a generation", _lookahead(summary))
    if cells := with_tasks(summary):
        _say_table(console, "lm-eval tasks: the main metric of each, all are in the report", _tasks(cells))
    if measured := sum(bool(cell.ttfts) for cell in summary.cells):
        console.print(Text(f"TTFT against prompt length of {measured} cell(s) is drawn in the report", "dim"))
    _list(console, "Failures and errors", summary.with_status(Status.FAILED, Status.ERROR))
    _list(console, "Skipped", summary.with_status(Status.SKIPPED))
    _list(console, "Not run", summary.with_status(NOT_RUN))
    console.print()
    for note in summary.notes:
        console.print(Text(f"note: {visible(note)}"))
    console.print(Text(visible(summary.verdict), _HEADLINE_STYLES.get(summary.headline, "bold yellow")))


def _common_note(summary: RunSummary) -> str | None:
    """What is to be said of all perplexities of the table, once; None where it is to be said of each."""
    alike = alike_in(summary)
    notes = {alike[cell.id].figure(record).note for cell in summary.cells for record in cell.perplexities}
    return notes.pop() if len(notes) == 1 else None if notes else ""


def _table(summary: RunSummary) -> Table:
    sim = "sim\n" if summary.is_sim else ""
    title = f"{summary.run.id} ({summary.run.target.value}{': simulator, no phone' if summary.is_sim else ''})"
    table = Table(title=Text(visible(title)), box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.title_justify = "left"
    table.add_column("cell", no_wrap=True)
    table.add_column("phone", overflow="fold")
    table.add_column("outcome", overflow="fold")
    for head in ("TTFT\nms", "prefill\ntok/s", "decode\ntok/s", "load\nms", "peak\nMB"):
        table.add_column(sim + head, justify="right", no_wrap=True)
    for head in ("ppl\nFP", "ppl\nQDQ"):
        table.add_column(head, justify="right", overflow="fold")
    table.add_column("ppl phone\n(graph)", justify="right", overflow="fold")
    alike, notes = alike_in(summary), _common_note(summary) is None
    for cell in summary.cells:
        table.add_row(*_row(cell, alike[cell.id], notes=notes))
    return table


def _row(cell: CellSummary, alike: Alike, *, notes: bool) -> list[Text]:
    outcome = Text(cell.status, _STYLES[cell.status])
    if cell.status in (Status.FAILED, Status.ERROR) and cell.failure_class:
        outcome.append(f"\n{cell.failure_class}")
    numbers = (cell.ttft_ms, cell.prefill_tok_s, cell.decode_tok_s, cell.load_ms, cell.peak_mb)
    return [
        Text(_wrap(cell.id, _CELL_WIDTH)),
        Text("\n".join(_wrap(phone, _PHONE_WIDTH) for phone in cell.phones) or NONE),
        outcome,
        *(Text(number(value)) for value in numbers),
        Text(_ground(cell, "FP", alike, notes=notes)),
        Text(_ground(cell, "QDQ", alike, notes=notes)),
        Text(_ground(cell, "PHONE", alike, notes=notes, with_graph=True)),
    ]


def _lookahead(summary: RunSummary) -> Table:
    table = _small_table("cell")
    for head in ("accepted\na step", "decode\nsteps", "steps\nsaved"):
        table.add_column(head, justify="right", no_wrap=True)
    for cell in summary.cells:
        if cell.accepted_per_step is not None:
            counts = (number(cell.accepted_per_step), count(cell.decode_steps), count(cell.steps_saved))
            table.add_row(Text(_wrap(cell.id, _WIDE_CELL)), *(Text(value) for value in counts))
    return table


def _tasks(cells: Sequence[tuple[CellSummary, Sequence[Task]]]) -> Table:
    """A row a task, with its main metric; a cell is named where it begins."""
    table = _small_table("cell", "task", "metric")
    grounds = columns(record for _, tasks in cells for task in tasks for record in task.records)
    for ground in grounds:
        table.add_column(ground.head.replace(" ", "\n"), justify="right", overflow="fold")
    for cell, tasks in cells:
        name = _wrap(cell.id, _WIDE_CELL)
        for task in tasks:
            if metric := task.main:
                values = (_shown(metric.at(ground)) for ground in grounds)
                table.add_row(*(Text(text) for text in (name, visible(task.name), visible(metric.name), *values)))
                name = ""
    return table


def _shown(values: Sequence[TaskValue]) -> str:
    return "\n".join(value.shown for value in values) or NONE


def _small_table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _say_table(console: Console, head: str, table: Table) -> None:
    console.print()
    console.print(Text(head, "bold"))
    console.print(table)


def _ground(cell: CellSummary, ground: Ground, alike: Alike, *, notes: bool, with_graph: bool = False) -> str:
    """One line a graph; the graph is named for a phone, and where there are several; then what the figure is over."""
    records = cell.on(ground)
    named = with_graph or len(records) > 1
    lines = []
    for record in records:
        shown = alike.figure(record)
        lines.append(perplexity(shown.value) + (f" {record.graph}" if named else ""))
        lines += [shown.note or "a word"] if notes else []
    return "\n".join(lines) or NONE


def _wrap(text: str, width: int) -> str:
    """Break at hyphens, since an id has no blanks."""
    return "\n".join(textwrap.wrap(visible(text), width)) or NONE


def _list(console: Console, head: str, cells: Sequence[CellSummary]) -> None:
    if not cells:
        return
    console.print()
    console.print(Text(head, "bold"))
    for cell in cells:
        failure = f"{cell.status} {cell.failure_class}: " if head.startswith("Failures") else ""
        _say(console, "  ", f"{cell.id}: {failure}{cell.reason or 'no reason was recorded'}", _STYLES[cell.status])
        if cell.remedy:
            _say(console, "      ", f"what to do: {cell.remedy}")
        if cell.evidence_path:
            _say(console, "      ", f"evidence: {cell.evidence_path}")
        elif cell.evidence.strip() and cell.status != Status.SKIPPED:
            _say(console, "      ", f"evidence: {cell.evidence.rstrip().splitlines()[-1]}")


def _say(console: Console, indent: str, text: str, style: str = "") -> None:
    lines = textwrap.wrap(
        visible(text).replace("\n", " "),
        console.width,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_on_hyphens=False,
    )
    console.print(Text("\n".join(lines), style), soft_wrap=True)
