"""A run's folder → rows of the tables."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import FailureClass
from harness.results.records import OutcomeRecord, SampleRecord, utc_now
from harness.results.store import RECORDS, Line, read_lines, run_data
from harness.results.summary import CellSummary, RunSummary, summarise
from harness.verdicts.sessions import session_medians

SPEEDS = ("load_ms", "ttft_ms", "prefill_tok_s", "decode_tok_s", "peak_rss_mb")
"""Fields of a sample that become metrics."""


_Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """A run as rows.

    Attributes:
        run: of `runs`.
        records, results, sessions: of the tables of that name.
    """

    run: _Row
    records: list[_Row]
    results: list[_Row]
    sessions: list[_Row]

    def records_after(self, line: int) -> list[_Row]:
        """The rows of later lines."""
        return [row for row in self.records if row["line"] > line]

    def body(self, line: int) -> str | None:
        """A line as written; None when the file has none of that number."""
        return next((str(row["body"]) for row in self.records if row["line"] == line), None)


def run_rows(folder: Path) -> Rows:
    """Read a run's folder.

    Raises:
        ConfigError: it has no records, or none of how the run was started.
    """
    lines = read_lines(folder / RECORDS)
    data = run_data([line.entry for line in lines], str(folder / RECORDS))
    summary = summarise(data)
    clock = _Clock(lines, summary.last_time)
    return Rows(
        _run(folder, summary),
        [_record(summary.run.id, line) for line in lines],
        [_result(cell, summary, clock) for cell in summary.cells],
        [row for cell in summary.cells for row in _sessions(cell, summary, clock)],
    )


class _Clock:
    """When things were written down: records hold no time of their own, their lines do."""

    def __init__(self, lines: Sequence[Line], last: str) -> None:
        self._last = last
        self._found: dict[tuple[object, ...], str] = {}
        for line in lines:
            record = line.entry.record
            if isinstance(record, OutcomeRecord):
                self._found["outcome", record.cell] = line.entry.time
            elif isinstance(record, SampleRecord):
                self._found["sample", record.cell, _session(record)] = line.entry.time

    def outcome(self, cell: str) -> str:
        """Of a cell's last outcome; without one, of the run's last record."""
        return self._found.get(("outcome", cell), self._last)

    def session(self, cell: str, session: str) -> str:
        """Of a session's last sample."""
        return self._found.get(("sample", cell, session), self._last)


def _run(folder: Path, summary: RunSummary) -> _Row:
    run = summary.run
    return {
        "run": run.id,
        "started": run.started,
        "ended": summary.last_time,
        "host": clean(run.host),
        "harness_version": run.harness_version,
        "target": run.target.value,
        "rack": clean(run.rack),
        "command": json.dumps(run.command),
        "toolchain": json.dumps(run.toolchain, sort_keys=True),
        "folder": clean(str(folder.absolute())),
        "headline": summary.headline,
        "imported": utc_now(),
    }


def _record(run: str, line: Line) -> _Row:
    record = line.entry.record
    return {
        "run": run,
        "line": line.number,
        "kind": record.kind,
        "cell": getattr(record, "cell", None),
        "time": line.entry.time,
        "body": clean(line.text),
    }


def _result(cell: CellSummary, summary: RunSummary, clock: _Clock) -> _Row:
    plan = cell.plan
    return {
        "run": summary.run.id,
        "cell": cell.id,
        "model": plan.model,
        "mode": plan.mode,
        "soc": plan.soc,
        "arch": plan.arch,
        "recipe": plan.recipe,
        "phone": clean(cell.phones[-1]) if cell.phones else plan.phone,
        "target": summary.run.target.value,
        "status": cell.status,
        "failure_class": cell.failure_class.value if cell.failure_class else None,
        "gate": plan.gate,
        "reason": clean(cell.reason),
        "remedy": clean(cell.remedy),
        "evidence": clean(cell.evidence),
        "seconds": cell.seconds,
        "attempts": cell.attempts,
        "pte_bytes": cell.artifact.bytes if cell.artifact else None,
        "ended": clock.outcome(cell.id),
    }


def _sessions(cell: CellSummary, summary: RunSummary, clock: _Clock) -> Iterator[_Row]:
    def row(metric: str, session: str, value: float, count: int, where: tuple[str, str], time: str) -> _Row:
        return {
            "run": summary.run.id,
            "cell": cell.id,
            "metric": metric,
            "session": session,
            "value": value,
            "iterations": count,
            "phone": where[0],
            "serial": where[1],
            "time": time,
        }

    # A run of A against B tries what nobody has accepted yet: its speeds are no part of a cell's course.
    # Speeds that contradict the host's clock are no measurement.
    no_speeds = any(sample.pair is not None for sample in cell.samples) or cell.failure_class is FailureClass.INVALID
    by_session = {_session(sample): sample for sample in cell.samples}
    for metric in () if no_speeds else SPEEDS:
        counts = Counter(_session(sample) for sample in cell.samples if getattr(sample, metric) is not None)
        medians = session_medians((_session(sample), getattr(sample, metric)) for sample in cell.samples)
        for session, value in medians.items():
            sample = by_session[session]
            where, time = (clean(sample.phone), clean(sample.serial)), clock.session(cell.id, session)
            yield row(metric, session, value, counts[session], where, time)
    ended = clock.outcome(cell.id)
    phone = clean(cell.phones[-1]) if cell.phones else ""
    curve = session_medians(
        ((f"ttft_ms@{record.prompt_tokens}[{record.graph}]"), record.ttft_ms) for record in cell.ttfts
    )
    counts = Counter(f"ttft_ms@{record.prompt_tokens}[{record.graph}]" for record in cell.ttfts)
    for metric, value in () if no_speeds else curve.items():
        yield row(metric, "curve", value, counts[metric], (phone, clean(cell.ttfts[-1].serial)), ended)
    for metric, value in _accuracy(cell):
        if not math.isnan(value):
            yield row(metric, "text", value, 1, (phone, ""), ended)


def _accuracy(cell: CellSummary) -> Iterator[tuple[str, float]]:
    """Perplexities, tasks and checks by name. A perplexity's name has its tokens: of fewer it is another quantity."""
    for score in cell.perplexities:
        where = f"{score.ground}/{score.graph}/{score.tokens}"
        yield f"token_ppl[{where}]", score.token_ppl
        yield f"word_ppl[{where}]", score.word_ppl
    for task in cell.tasks:
        for name, value in task.metrics.items():
            yield clean(f"task:{task.task}:{name}[{task.ground}/{task.graph}/{task.samples}]")[:128], value
    for check in cell.checks:
        if check.value is not None:
            yield clean(f"check:{check.name}")[:128], check.value


def _session(sample: SampleRecord) -> str:
    return clean(f"{sample.attempt}/{sample.serial}/{sample.session}")


def clean(text: str) -> str:
    """Foreign text as every database holds it: no NUL, no half of a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\0")
