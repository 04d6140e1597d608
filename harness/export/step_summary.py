"""GitHub's step summary: the verdict whole, then as many cells as have room. Pure but for `append`.

GitHub refuses a summary above 1024 KiB altogether ("Workflow commands", adding a job summary), so that cells are cut
and not the verdict: the verdict, the failures in a line each, the matrix, the numbers, in this order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.results import page
from harness.results.alike import Figure, alike_in
from harness.results.records import PerplexityRecord, Status
from harness.results.report import escape_markdown
from harness.results.summary import NOT_RUN, SIM_NOTE, CellSummary, RunSummary
from harness.results.text import clock, joined, number, perplexity

LIMIT = 1024 * 1024
"""Bytes of one step's summary, all that a step appends to it."""
_SPARE = 2048
"""Kept for the line that says what was left out, and whatever the step itself adds."""
_NAMED = 20
"""Findings of a gate that are named."""
_LONGEST = 600
"""Characters of a reason: one that holds a log must not crowd out the other cells."""


def render_summary(summary: RunSummary, limit: int = LIMIT, verdict: str = "") -> str:
    """The summary as Markdown of at most `limit` bytes.

    Args:
        summary: the run.
        limit: bytes; less than what the verdict takes is no limit that can be kept.
        verdict: Markdown of a gate's answer, which comes first and is never cut.
    """
    head = _head(summary, verdict)
    made, room = [head], limit - _SPARE - len(head.encode())
    left_out: list[str] = []
    for name, block in _blocks(summary):
        lines, total = [], 0
        for line in block:
            size = len(line.encode()) + 1
            if total + size > room:
                left_out.append(name)
                break
            lines.append(line)
            total += size
        # A table of which only the head fitted says nothing.
        if len(lines) > (4 if lines and lines[-1].startswith("|") else 2):
            made += ["", *lines]
            room -= total + 1
    if left_out:
        made += ["", f"Cut to fit into {limit // 1024} KiB: {', '.join(left_out)}. All of it is in `report.html`."]
    return "\n".join(made) + "\n"


def gate_words(answer: page.Answer) -> str:
    """The gate's answer as Markdown, with what to look at first."""
    blocking = answer.blocking
    lines = [f"**Gate: {'PASS' if answer.passed else 'FAIL'}** against {_short(answer.against)}"]
    for place, (cell, what, remedy) in enumerate(blocking[:_NAMED], start=1):
        where = f"**{escape_markdown(cell)}** " if cell else ""
        lines.append(f"{place}. {where}{_short(what)}" + (f" *What to do:* {_short(remedy)}" if remedy else ""))
    lines += [f"{len(blocking) - _NAMED} more are in the gate's output."] if len(blocking) > _NAMED else []
    return "\n".join((lines[0], "", *lines[1:]))


def append(path: Path, summary: RunSummary, verdict: str = "") -> None:
    """Append to the file that `$GITHUB_STEP_SUMMARY` names, in what room it has left.

    Raises:
        OSError: it cannot be written.
    """
    taken = path.stat().st_size if path.exists() else 0
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(render_summary(summary, max(LIMIT - taken, 0), verdict))


def _head(summary: RunSummary, verdict: str) -> str:
    run = summary.run
    lines = [f"# {escape_markdown(summary.verdict)}", ""]
    lines += [verdict, ""] if verdict else []
    lines.append(f"Run {escape_markdown(run.id)}, started {clock(run.started)} on {escape_markdown(run.host)}.")
    if summary.is_sim:
        lines += ["", f"> **sim**: {SIM_NOTE}."]
    for note in summary.notes:
        lines += ["", f"> note: {escape_markdown(note)}"]
    return "\n".join(lines)


def _blocks(summary: RunSummary) -> Iterator[tuple[str, Iterator[str]]]:
    for head, statuses in (
        ("Failures and errors", (Status.FAILED, Status.ERROR)),
        ("Not run", (NOT_RUN,)),
    ):
        if found := summary.with_status(*statuses):
            yield head.lower(), _list(head, found)
    yield "matrix", _matrix(summary)
    yield "numbers", _numbers(summary)
    if skipped := summary.with_status(Status.SKIPPED):
        yield "skipped", _list("Skipped", skipped)


def _list(head: str, cells: tuple[CellSummary, ...]) -> Iterator[str]:
    yield f"## {head}"
    yield ""
    for cell in cells:
        klass = f" {cell.failure_class.value}" if cell.failure_class and cell.status != Status.SKIPPED else ""
        remedy = f" *What to do:* {_short(cell.remedy)}" if cell.remedy else ""
        yield f"- {page.MARKS[cell.status]} **{escape_markdown(cell.id)}**{klass}: {_short(cell.reason)}{remedy}"


def _matrix(summary: RunSummary) -> Iterator[str]:
    matrix = page.matrix(summary)
    yield "## Matrix"
    yield ""
    heads = [f"{column.soc} {escape_markdown(joined(column.phones))}" for column in matrix.columns]
    yield f"| model · mode | {' | '.join(heads)} |"
    yield "| --- |" + " --- |" * len(heads)
    for row in matrix.rows:
        marks = [f"{page.MARKS[cell.status]} {_of(cell)}" if cell else "" for cell in row.cells]
        yield f"| {escape_markdown(row.label)} | {' | '.join(marks)} |"


def _of(cell: CellSummary) -> str:
    """What a cell of the matrix says besides its mark."""
    if cell.status == Status.PASSED:
        return f"{number(cell.decode_tok_s)} tok/s" if cell.decode_tok_s is not None else ""
    return escape_markdown(cell.plan.gate if cell.status == Status.SKIPPED else cell.failure_class or cell.status)


def _numbers(summary: RunSummary) -> Iterator[str]:
    sim = "sim " if summary.is_sim else ""
    yield "## Numbers"
    yield ""
    yield f"| cell | phone | {sim}TTFT ms | {sim}prefill tok/s | {sim}decode tok/s | ppl phone (graph) |"
    yield "| --- | --- | ---: | ---: | ---: | ---: |"
    alike = alike_in(summary)
    for cell in summary.cells:
        if cell.samples or cell.perplexities:
            ppl = joined(_perplexity(alike[cell.id].figure(record), record) for record in cell.on("PHONE"))
            speeds = (cell.ttft_ms, cell.prefill_tok_s, cell.decode_tok_s)
            words = (cell.id, joined(cell.phones), *map(number, speeds), ppl)
            yield f"| {' | '.join(escape_markdown(word) for word in words)} |"


def _perplexity(shown: Figure, record: PerplexityRecord) -> str:
    return f"{perplexity(shown.value)} ({record.graph}{f', {shown.note}' if shown.note else ''})"


def _short(reason: str) -> str:
    text = reason or "no reason was recorded"
    return escape_markdown(text if len(text) <= _LONGEST else f"{text[:_LONGEST]} […]")
