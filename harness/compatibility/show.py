"""A matrix as a page, Markdown, CSV, JSON, and a table for a terminal. Pure."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.compatibility.matrix import Change, Column, Compatibility, Entry, Row, Shown, State
from harness.compatibility.result import Result
from harness.errors import FailureClass
from harness.farm.signatures import find_signature
from harness.results.report import html_environment, markdown_environment
from harness.results.text import NONE, number, perplexity, visible
from harness.target import Target
from harness.toolchain.version import qnn_words, version_words

MARKS = {State.RUNS: "✓", State.FAILS: "✗", State.UNDECIDED: "?", State.UNSUPPORTED: "–", State.NOT_TRIED: "…"}
"""A sign for each state, so that colour is never all that tells them apart."""
_STYLES = {
    State.RUNS: "green",
    State.FAILS: "bold red",
    State.UNDECIDED: "bold magenta",
    State.UNSUPPORTED: "dim",
    State.NOT_TRIED: "yellow",
}
STYLE_CLASSES = {
    State.RUNS: "passed",
    State.FAILS: "failed",
    State.UNDECIDED: "error",
    State.UNSUPPORTED: "skipped",
    State.NOT_TRIED: "not-run",
}
"""Classes of the page's style sheet."""

SCHEMA = 1
CSV_COLUMNS = (
    "model",
    "mode",
    "recipe",
    "soc",
    "arch",
    "target",
    "state",
    "failure_class",
    "gate",
    "reason",
    "remedy",
    "evidence",
    "evidence_path",
    "run",
    "phones",
    "failing",
    "age_days",
    "time",
    "ttft_ms",
    "prefill_tok_s",
    "decode_tok_s",
    "ppl",
    "ppl_of",
    "ppl_tokens",
    "ppl_graph",
    "last_good_run",
    "last_good_time",
    "changed",
    "note",
    "signature",
    "versions",
    "last_good_versions",
)


def age(days: float | None) -> str:
    """`12 min`, `5 h`, `3 d`; NONE when it is not known."""
    if days is None:
        return NONE
    minutes = max(0.0, days * 1440)
    if minutes < 90:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.0f} h" if minutes < 48 * 60 else f"{days:.0f} d"


def numbers(found: Entry) -> list[str]:
    """`TTFT 88.0 ms`, `12.1 tok/s`, `ppl 52.0 (kv)`: what was measured."""
    result = found.result
    if result is None:
        return []
    parts = [f"TTFT {number(result.ttft_ms)} ms"] if result.ttft_ms is not None else []
    parts += [f"{number(result.decode_tok_s)} tok/s"] if result.decode_tok_s is not None else []
    parts += [f"ppl {perplexity(found.ppl.value)} ({scored(found.ppl)})"] if found.ppl else []
    return parts


def scored(ppl: Shown) -> str:
    """`kv`, or `kv, a token, first 128`: what a perplexity is of, as far as it has to be told."""
    return f"{ppl.graph}, {ppl.note}" if ppl.note else ppl.graph


def change(changed: Change) -> str:
    """`qnn 2.48 → 2.51`, hashes cut."""
    return f"{changed.name} {_cut(changed.good)} → {_cut(changed.now)}"


def render_html(matrix: Compatibility) -> str:
    """The page: needs no network; all that comes from runs is escaped."""
    return html_environment().get_template("compatibility.html.j2").render(_context(matrix))


def render_markdown(matrix: Compatibility) -> str:
    """The matrix and its lists, for an issue or a step summary; all that comes from runs is escaped."""
    return markdown_environment().get_template("compatibility.md.j2").render(_context(matrix))


def as_data(matrix: Compatibility) -> dict[str, Any]:
    """The matrix as JSON holds it: a list of cells, in order, with all that is known of each."""
    return {
        "schema": SCHEMA,
        "made": matrix.made,
        "runs": matrix.runs,
        "counts": {state.value: count for state, count in matrix.counts.items()},
        "columns": [dataclasses.asdict(column) for column in matrix.columns],
        "rows": [dataclasses.asdict(row) for row in matrix.rows],
        "cells": list(_flat(matrix)),
    }


def render_json(matrix: Compatibility) -> str:
    """`as_data` as text. What is no finite number is a string, as in records."""
    return json.dumps(as_data(matrix), indent=1, default=str) + "\n"


def render_csv(matrix: Compatibility) -> str:
    """A row a cell, with a head."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for cell in _flat(matrix):
        row = cell | {name: _joined(cell[name]) for name in ("phones", "failing", "changed")}
        writer.writerow({name: _spreadsheet(row[name]) for name in CSV_COLUMNS})
    return out.getvalue()


def print_matrix(matrix: Compatibility, console: Console) -> None:
    """The matrix and what fails, for a terminal."""
    table = Table(title=Text(f"{matrix.runs} run(s), as of {matrix.made[:16]}"), title_justify="left")
    table.add_column("model · mode", overflow="fold")
    for column in matrix.columns:
        table.add_column(f"{column.soc} V{column.arch}\n{where(column)}", overflow="fold")
    for row in matrix.rows:
        table.add_row(visible(row.label), *(_words(matrix.entries[row, column]) for column in matrix.columns))
    console.print(table)
    for row, column, found in _bad(matrix):
        console.print(Text(f"{row.label} on {column.soc} ({where(column)})", _STYLES[found.state]))
        for line in failure_lines(found):
            console.print(Text(f"    {visible(line)}"), soft_wrap=True)
    reasons = {(e.result.reason, e.result.remedy) for _, _, e in matrix.with_state(State.UNSUPPORTED) if e.result}
    for reason, remedy in sorted(reasons):
        console.print(Text(f"unsupported: {visible(reason)}; what to do: {visible(remedy)}", "dim"), soft_wrap=True)
    console.print(", ".join(f"{count} {state}" for state, count in matrix.counts.items()), highlight=False)


def _bad(matrix: Compatibility) -> list[tuple[Row, Column, Entry]]:
    return [*matrix.with_state(State.FAILS), *matrix.with_state(State.UNDECIDED)]


def failure_lines(found: Entry) -> list[str]:
    """What is known of a cell that fails or is undecided, a line each: what, where, since when, what to do."""
    result = found.result
    if result is None:
        return []
    known = f" [{name}]" if (name := signature(result)) else ""
    lines = [f"{result.failure_class or 'no class'}{known}: {result.reason or 'no reason was recorded'}"]
    lines.append(f"run {result.run}, {age(found.age_days)} old" + _on(found))
    lines.append(f"last good: {last_good(found)}")
    lines += [f"changed since: {', '.join(change(one) for one in found.changed)}"] if found.changed else []
    lines += [f"what to do: {result.remedy}"] if result.remedy else []
    if result.evidence_path or result.evidence.strip():
        lines.append(f"evidence: {result.evidence_path or result.evidence.rstrip().splitlines()[-1]}")
    return lines


def last_good(found: Entry) -> str:
    """The last run in which the cell passed, when, and with which versions."""
    good = found.last_good
    if not good:
        return "none known"
    said = f"{good.run} ({good.time[:16].replace('T', ' ')} UTC)"
    return f"{said} with {words}" if (words := versions(good)) else said


def last_good_short(found: Entry) -> str:
    """The same for a cell of the matrix: `last good with QNN 2.48 in run X`; empty where none is known."""
    good = found.last_good
    if not good:
        return ""
    return f"last good{f' with {words}' if (words := qnn_words(good.toolchain)) else ''} in run {good.run}"


def versions(result: Result) -> str:
    """`QNN 2.48 (onnxruntime-qnn 2.4.0), ExecuTorch 1.5.1`: what is known of a result's toolchain, hashes left out."""
    return version_words(result.toolchain)


def signature(result: Result) -> str:
    """Name of the known failure that a failing result's evidence or reason shows; empty of another one.

    A known message counts where it decided the class, as when the cell failed, or where a build failed.
    """
    match = find_signature(result.evidence) or find_signature(result.reason)
    counts = match and result.failure_class in (FailureClass.BUILD, match[0].failure_class)
    return match[0].name if match and counts else ""


def where(column: Column) -> str:
    """`sim` or `phone`."""
    return "sim" if column.target == Target.SIM else "phone"


def _on(found: Entry) -> str:
    if not found.failing:
        return ""
    well = [phone for phone in found.phones if phone not in found.failing]
    return f", on {', '.join(found.failing)}" + (f"; runs on {', '.join(well)}" if well else "")


def _words(found: Entry) -> Text:
    text = Text(f"{MARKS[found.state]} {found.word}", _STYLES[found.state])
    result = found.result
    if result is None:
        return text
    if found.state is State.FAILS:
        text.append(f" {result.failure_class}")
    if found.state in (State.FAILS, State.UNDECIDED):
        text.append(f"\n{visible(last_good_short(found))}" if found.last_good else "", "dim")
    if found.state is State.UNSUPPORTED:
        text.append(f"\n{visible(result.gate)}")
    if found.state is State.RUNS:
        text.append("".join(f"\n{part}" for part in numbers(found)))
    if result.time:
        text.append(f"\n{age(found.age_days)} old", "dim")
    return text


def _flat(matrix: Compatibility) -> Iterator[dict[str, Any]]:
    for row in matrix.rows:
        for column in matrix.columns:
            yield _cell(row, column, matrix.entries[row, column])


def _cell(row: Row, column: Column, found: Entry) -> dict[str, Any]:
    result, good = found.result, found.last_good
    empty = dict.fromkeys(("failure_class", "gate", "reason", "remedy", "evidence", "evidence_path", "run", "time"), "")
    names = [*empty, "ttft_ms", "prefill_tok_s", "decode_tok_s"]
    ppl = found.ppl
    return {
        "model": row.model,
        "mode": row.mode,
        "recipe": row.recipe,
        "soc": column.soc,
        "arch": column.arch,
        "target": column.target,
        "state": found.state.value,
        **{name: _plain(getattr(result, name)) if result else empty.get(name) for name in names},
        "ppl": _plain(ppl.value) if ppl else None,
        "ppl_of": ppl.of if ppl else "",
        "ppl_tokens": ppl.tokens if ppl else None,
        "ppl_graph": ppl.graph if ppl else "",
        "phones": list(found.phones),
        "failing": list(found.failing),
        "age_days": None if found.age_days is None else round(found.age_days, 4),
        "last_good_run": good.run if good else None,
        "last_good_time": good.time if good else None,
        "changed": [change(one) for one in found.changed],
        "note": found.note,
        "signature": signature(result) if result and found.state is State.FAILS else "",
        "versions": versions(result) if result else "",
        "last_good_versions": versions(good) if good else "",
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _joined(values: list[str]) -> str:
    return "; ".join(values)


def _spreadsheet(value: object) -> object:
    """A text that a spreadsheet would run as a formula, with an apostrophe before it (OWASP, "CSV Injection")."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _cut(value: str) -> str:
    """A hash is told by its beginning; nothing at all is said."""
    if not value:
        return "none"
    return f"{value[:12]}…" if len(value) >= 40 and " " not in value else value


def _context(matrix: Compatibility) -> dict[str, Any]:
    return {
        "matrix": matrix,
        "State": State,
        "marks": MARKS,
        "classes": STYLE_CLASSES,
        "age": age,
        "change": change,
        "where": where,
        "scored": scored,
        "bad": _bad(matrix),
        "last_good": last_good,
        "last_good_short": last_good_short,
        "signature": signature,
        "versions": versions,
        "anchor": lambda row, column: f"{row.label}-{column.soc}-{column.target}".replace(" ", ""),
        "has_sim": any(column.target == Target.SIM for column in matrix.columns),
        "unsupported": _reasons(matrix),
    }


def _reasons(matrix: Compatibility) -> list[tuple[Result, list[str]]]:
    """Each reason with the cells it stops: one gate stops many."""
    found: dict[tuple[str, str], tuple[Result, list[str]]] = {}
    for row, column, one in matrix.with_state(State.UNSUPPORTED):
        if one.result:
            key = one.result.reason, one.result.remedy
            found.setdefault(key, (one.result, []))[1].append(f"{row.label} on {column.soc} ({where(column)})")
    return list(found.values())
