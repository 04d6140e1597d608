"""`report.html` and `report.md` of a run, from its records: self-contained, and replaced as a whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from harness.files import write_atomically
from harness.results import accuracy, cell_plots, page, pair_plot, text, ttft, ttft_plot
from harness.results.against import MARKS, STYLES, VERDICTS, Against, percent
from harness.results.alike import alike_in, alike_of, over
from harness.results.store import load_run
from harness.results.summary import (
    SIM_NOTE,
    STATUSES,
    CellSummary,
    RunSummary,
    accepted_per_step,
    steps_saved,
    summarise,
)
from harness.results.table import print_table

HTML = "report.html"
MARKDOWN = "report.md"

MANY = 60
"""With more cells than this a page shows what is long only when asked for, and draws lighter."""

Pasts = Mapping[str, Mapping[str, Sequence[cell_plots.Past]]]
"""Cell → metric's title → its values in earlier runs and this one, oldest first."""

_EVIDENCE_LINES = 60
_EVIDENCE_CHARACTERS = 6000


def write_reports(
    folder: Path,
    past: Pasts = MappingProxyType({}),
    answer: page.Answer | None = None,
    against: Against | None = None,
) -> tuple[Path, Path]:
    """Write both reports into a run's folder.

    Args:
        folder: the run's folder, with `records.jsonl`; the run may be going on, or have been interrupted.
        past: what a history knows of its cells.
        answer: a gate's, if one was asked.
        against: the run against its base, if it has one.

    Returns:
        the paths of `report.html` and `report.md`.

    Raises:
        ConfigError: the folder has no records.
    """
    return _write(folder, summarise(load_run(folder)), past, answer, against)


def report(run_folder: Path, out: TextIO | None = None) -> RunSummary:
    """What `htpfarm report RUN` does: write both reports, print the table and where they are.

    Args:
        run_folder: the run's folder.
        out: where to print; None for stdout.

    Raises:
        ConfigError: the folder has no records.
    """
    out = out or sys.stdout
    summary = summarise(load_run(run_folder))
    paths = _write(run_folder, summary)
    print_table(summary, out)
    for path in paths:
        out.write(f"{path}\n")
    return summary


def render_html(
    summary: RunSummary,
    past: Pasts = MappingProxyType({}),
    answer: page.Answer | None = None,
    against: Against | None = None,
) -> str:
    """The page: needs no network, and no script but for its filter; everything that comes from records is escaped.

    Args:
        summary: the run.
        past: what a history knows of its cells.
        answer: a gate's, if one was asked.
        against: the run against its base, if it has one.
    """
    context = _context(summary, past) | {"answer": answer} | _against(against, summary)
    return html_environment().get_template("report.html.j2").render(context)


def render_markdown(summary: RunSummary, against: Against | None = None) -> str:
    """The same matrix and numbers for a pull request or a step summary; everything from records is escaped."""
    return markdown_environment().get_template("report.md.j2").render(_context(summary, {}) | _against(against))


def render_comparison_html(against: Against) -> str:
    """A comparison as a page of its own; as `render_html`."""
    return html_environment().get_template("comparison.html.j2").render(_against(against))


def render_comparison_markdown(against: Against) -> str:
    """A comparison as Markdown of its own; everything from records is escaped."""
    return markdown_environment().get_template("comparison.md.j2").render(_against(against))


def escape_markdown(value: str) -> str:
    """Foreign text as one line of Markdown that shows as it is, also in a table's cell."""
    line = re.sub(r"\s+", " ", text.visible(value))
    line = re.sub(r"([\\`*\[\]|~$])", r"\\\1", line)
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def fenced(value: str) -> Markup:
    """Foreign text as a block of code, in a fence longer than any in it."""
    clean = text.visible(value).rstrip("\n")
    longest = max((len(run) for run in re.findall(r"`+", clean)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}text\n{clean}\n{fence}")  # noqa: S704 - for Markdown, where a fence is the escape


def tail(value: str) -> str:
    """The end of a log, where the failure is."""
    lines = value.rstrip().splitlines()
    kept = "\n".join(lines[-_EVIDENCE_LINES:])[-_EVIDENCE_CHARACTERS:]
    return kept if len(kept) >= len(value.rstrip()) else f"[…]\n{kept}"


def _write(
    folder: Path,
    summary: RunSummary,
    past: Pasts = MappingProxyType({}),
    answer: page.Answer | None = None,
    against: Against | None = None,
) -> tuple[Path, Path]:
    html, markdown = folder / HTML, folder / MARKDOWN
    write_atomically(html, render_html(summary, past, answer, against))
    write_atomically(markdown, render_markdown(summary, against))
    return html, markdown


def _small_plots(past: Pasts, cell: CellSummary, ident: str) -> list[Markup]:
    lines = [cell_plots.speed_line(cell), cell_plots.heat_line(cell)]
    lines += [cell_plots.past_line(title, values) for title, values in past.get(cell.id, {}).items()]
    found = [cell_plots.draw_line(line, f"{ident}-{number}") for number, line in enumerate(lines) if line]
    perplexities = cell_plots.draw_perplexities(cell, f"{ident}-ppl")
    return [*found, perplexities] if perplexities else found


def _against(against: Against | None, summary: RunSummary | None = None) -> dict[str, Any]:
    """What the templates of a comparison need.

    Args:
        against: the comparison; None: there is none to show.
        summary: the run whose report it stands in; None: it is a page of its own. Decides what the filter goes by.
    """
    tags: dict[str, tuple[str, str]] = {}
    if summary is not None:
        for cell in summary.cells:
            phones = cell.phones if not cell.plan.phone else ()
            tags[cell.id] = " ".join((cell.id, *phones)), cell.status.lower().replace(" ", "-")
    elif against is not None:
        tags = {cell.cell: (cell.cell, cell.judgement.lower()) for cell in against.cells}
    counts = against.counts if against else {}
    return {
        "against": against,
        "verdict_marks": MARKS,
        "verdict_styles": STYLES,
        "verdict_states": [(word.lower(), MARKS[word], word, counts.get(word, 0)) for word in VERDICTS],
        "tags": tags,
        "draw_pairs": pair_plot.draw_pairs,
        "percent": percent,
        "fold": against is not None and len(against.cells) > MANY,
        "against_sim": "sim " if against and against.is_sim else "",
        "sim_words": SIM_NOTE,
    }


def _context(summary: RunSummary, past: Pasts) -> dict[str, Any]:
    return {
        "summary": summary,
        "run": summary.run,
        "cells": summary.cells,
        "command": shlex.join(summary.run.command),
        "matrix": page.matrix(summary),
        "charts": page.charts(summary),
        "same_texts": page.same_texts,
        "marks": page.MARKS,
        "plots": ttft.plots(summary),
        "draw": ttft_plot.draw,
        "swatch": ttft_plot.swatch,
        "task_cells": accuracy.with_tasks(summary),
        "ppl_columns": accuracy.columns(record for cell in summary.cells for record in cell.perplexities),
        "task_columns": accuracy.columns(record for cell in summary.cells for record in cell.tasks),
        "where": accuracy.where,
        "alike": alike_in(summary),
        "alike_of": alike_of,
        "over": over,
        "against_before": accuracy.against_before,
        "against_kv": accuracy.against_kv,
        "link": accuracy.link,
        "steps_saved": steps_saved,
        "accepted_per_step": accepted_per_step,
        "small_plots": partial(_small_plots, past),
        "many": len(summary.cells) > MANY,
        "states": [
            (status.lower().replace(" ", "-"), page.MARKS[status], status.lower(), summary.counts[status])
            for status in STATUSES
        ],
        "sim_note": SIM_NOTE if summary.is_sim else "",
        "sim": "sim " if summary.is_sim else "",
    }


@cache
def _script() -> tuple[Markup, str]:
    """The filter's script, and the policy that lets a page run it and nothing else, nor load anything.

    Escaping is what keeps a model's text from being markup; the policy is there should that ever fail.
    """
    source = files("harness.results").joinpath("templates", "filter.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    return Markup(source), policy  # noqa: S704 - our own file


@cache
def html_environment() -> Environment:
    """Templates of pages: every string that is no template's own is escaped."""
    environment = Environment(
        loader=PackageLoader("harness.results"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["script"], environment.globals["policy"] = _script()
    _add_filters(environment)
    return environment


@cache
def markdown_environment() -> Environment:
    """Templates of Markdown, escaped too."""
    environment = Environment(
        loader=PackageLoader("harness.results"),
        autoescape=False,  # noqa: S701 - no HTML: `finalize` escapes for Markdown whatever is put out
        finalize=_shown_in_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    _add_filters(environment)
    return environment


def _shown(value: Any) -> Any:
    # Markup is the template's own; all other strings may come from a model or a log.
    return text.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _shown_in_markdown(value: Any) -> Any:
    return value if isinstance(value, Markup) else escape_markdown(str(value))


def _add_filters(environment: Environment) -> None:
    environment.filters.update(
        number=text.number,
        ppl=text.perplexity,
        count=text.count,
        size=text.size,
        duration=text.duration,
        joined=text.joined,
        clock=text.clock,
        fenced=fenced,
        tail=tail,
        status_class=lambda status: status.lower().replace(" ", "-"),
        as_json=lambda value: json.dumps(value, ensure_ascii=False, sort_keys=True, default=str),
    )
