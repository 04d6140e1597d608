"""Questions to the history: what is the latest of each cell, how did a metric go, which runs are there."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select

from harness.history.schema import records, results, runs, sessions
from harness.results.records import OutcomeRecord, PerplexityRecord, Status, decode

if TYPE_CHECKING:
    from harness.history.store import History

TRIED = (Status.PASSED.value, Status.FAILED.value, Status.ERROR.value)
"""Statuses of a cell that was carried out."""


@dataclass(frozen=True)
class RunRow:
    """A run. Attributes as in `RunInfo`; `ended` is when its last record was written."""

    run: str
    started: str
    ended: str
    host: str
    harness_version: str
    target: str
    rack: str
    command: tuple[str, ...]
    toolchain: dict[str, str]
    folder: str
    headline: str


@dataclass(frozen=True)
class CellResult:
    """How a cell ended in one run.

    Attributes:
        run: the run's id.
        cell, model, mode, soc, arch, recipe: as planned.
        phone: the phone it ran on or is pinned to.
        target: `sim` or `android`.
        status, failure_class, gate, reason, remedy, evidence: as in `CellSummary`.
        seconds, attempts: how long it took and how many tries.
        pte_bytes: size of the program.
        ended: when, ISO UTC.
        metrics: metric → median over sessions; filled where asked for.
    """

    run: str
    cell: str
    model: str
    mode: str
    soc: str
    arch: int
    recipe: str
    phone: str | None
    target: str
    status: str
    failure_class: str | None
    gate: str
    reason: str
    remedy: str
    evidence: str
    seconds: float
    attempts: int
    pte_bytes: int | None
    ended: str
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Standing:
    """Where a cell stands.

    Attributes:
        latest: its latest result that says something: it ran, or a gate skipped it. Interrupted runs and cells that a
            user left out say nothing.
        last_good: the latest in which it passed; None if it never did.
    """

    latest: CellResult
    last_good: CellResult | None


@dataclass(frozen=True)
class SessionValue:
    """The median of one session.

    Attributes:
        run, cell, metric: of what.
        session: which: `attempt/serial/number`; `curve` or `text` where the cell has one value a run.
        value: in the metric's unit.
        iterations: how many measurements it is the median of.
        phone, serial, time: where and when.
        target: `sim` or `android`.
    """

    run: str
    cell: str
    metric: str
    session: str
    value: float
    iterations: int
    phone: str
    serial: str
    time: str
    target: str


@dataclass(frozen=True)
class RunValue:
    """The median over a run's sessions: sessions of one run share its hour, so that against other runs they are one.

    Attributes:
        run, time: which run, and when its last session was.
        value: the median.
        sessions: how many.
        target: `sim` or `android`.
    """

    run: str
    time: str
    value: float
    sessions: int
    target: str


@dataclass(frozen=True)
class Choice:
    """What to look at; None for all.

    Attributes:
        cells: ids, or parts of ids where they hold a `*` (`tiny_llama-*`).
        phone: name of the phone.
        metrics: names, or with `*`.
        since, until: ISO times or the beginning of one (`2026-11`), both included.
        target: `sim` or `android`.
        run: one run's id.
    """

    cells: tuple[str, ...] = ()
    phone: str | None = None
    metrics: tuple[str, ...] = ()
    since: str | None = None
    until: str | None = None
    target: str | None = None
    run: str | None = None


def list_runs(history: History, choice: Choice = Choice()) -> list[RunRow]:  # noqa: B008 - frozen
    """The runs in the order started."""
    columns = [runs.c[name] for name in RunRow.__dataclass_fields__]
    query = select(*columns).where(*_range(runs.c.started, choice)).order_by(runs.c.started, runs.c.run)
    if choice.target:
        query = query.where(runs.c.target == choice.target)
    if choice.run:
        query = query.where(runs.c.run == choice.run)
    with history.reading() as connection:
        found = connection.execute(query).mappings().all()
    return [
        RunRow(**{**row, "command": tuple(json.loads(row["command"])), "toolchain": json.loads(row["toolchain"])})
        for row in found
    ]


def standings(history: History, choice: Choice = Choice(), metrics: Sequence[str] = ("*",)) -> list[Standing]:  # noqa: B008
    """Where each cell stands, sorted by cell and target: a phone's results and the simulator's are two cells.

    Args:
        choice: which cells, targets and times.
        metrics: which metrics to fill in; names, or with `*`.
    """
    says = or_(results.c.status.in_(TRIED), results.c.failure_class.is_not(None))
    with history.reading() as connection:
        latest = [CellResult(**row) for row in connection.execute(_latest(says, choice)).mappings()]
        passed = results.c.status == Status.PASSED.value
        good = [CellResult(**row) for row in connection.execute(_latest(passed, choice)).mappings()]
        wanted = {(one.run, one.cell) for one in (*latest, *good)}
        medians = _medians(connection, wanted, metrics)

    def filled(one: CellResult) -> CellResult:
        return CellResult(**{**vars(one), "metrics": medians.get((one.run, one.cell), {})})

    last_good = {(one.cell, one.target): filled(one) for one in good}
    return [Standing(filled(one), last_good.get((one.cell, one.target))) for one in latest]


def cell_results(history: History, choice: Choice) -> list[CellResult]:
    """Every result of the chosen cells, oldest first, without metrics."""
    query = select(*_result_columns()).where(*_result_filter(choice)).order_by(results.c.ended, results.c.run)
    with history.reading() as connection:
        return [CellResult(**row) for row in connection.execute(query).mappings()]


def medians(
    history: History, wanted: set[tuple[str, str]], metrics: Sequence[str] = ("*",)
) -> dict[tuple[str, str], dict[str, float]]:
    """(run, cell) → metric → median over the sessions.

    Args:
        wanted: run and cell of each result; those without a metric are left out.
        metrics: names, or with `*`.
    """
    with history.reading() as connection:
        return _medians(connection, wanted, metrics)


def evidence_paths(history: History, choice: Choice = Choice()) -> dict[tuple[str, str], str]:  # noqa: B008 - frozen
    """(run, cell) → the file with all of a failure's evidence, relative to the run's folder; only where there is one.

    It is no column of the results: the outcomes' own records have it.
    """
    failed = (Status.FAILED.value, Status.ERROR.value)
    query = (
        select(records.c.run, records.c.cell, records.c.body)
        .join(results, and_(results.c.run == records.c.run, results.c.cell == records.c.cell))
        .where(records.c.kind == OutcomeRecord.kind, results.c.status.in_(failed), *_result_filter(choice))
        .order_by(records.c.run, records.c.line)
    )
    with history.reading() as connection:
        found = [(str(run), str(cell), str(body)) for run, cell, body in connection.execute(query)]
    last = {(run, cell): json.loads(body).get("evidence_path") for run, cell, body in found}
    return {key: path for key, path in last.items() if path}


def perplexities(history: History, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], list[PerplexityRecord]]:
    """(run, cell) → its perplexities with their blocks, as recorded, in the order written.

    Args:
        history: the database.
        wanted: run and cell of each result; those without any are left out.
    """
    by_run: dict[str, list[str]] = {}
    for run, cell in sorted(wanted):
        by_run.setdefault(run, []).append(cell)
    found: dict[tuple[str, str], list[PerplexityRecord]] = {}
    with history.reading() as connection:
        for run, cells in by_run.items():
            for start in range(0, len(cells), 500):  # SQLite bounds the parameters of a statement
                query = (
                    select(records.c.cell, records.c.body)
                    .where(
                        records.c.kind == PerplexityRecord.kind,
                        records.c.run == run,
                        records.c.cell.in_(cells[start : start + 500]),
                    )
                    .order_by(records.c.line)
                )
                for cell_id, body in connection.execute(query):
                    if isinstance(record := decode(str(body)).record, PerplexityRecord):
                        found.setdefault((run, str(cell_id)), []).append(record)
    return found


def session_values(history: History, choice: Choice, limit: int | None = None) -> list[SessionValue]:
    """Sessions' medians, oldest first; with a limit the newest of them."""
    query = (
        select(sessions, runs.c.target)
        .join(runs, runs.c.run == sessions.c.run)
        .where(*_session_filter(choice))
        .order_by(sessions.c.time.desc(), sessions.c.run.desc(), sessions.c.session.desc())
    )
    with history.reading() as connection:
        found = connection.execute(query.limit(limit) if limit else query).mappings().all()
    return [SessionValue(**row) for row in reversed(found)]


def run_values(values: Sequence[SessionValue]) -> dict[tuple[str, str], list[RunValue]]:
    """(cell, metric) → a value a run, oldest first. Pure."""
    groups: dict[tuple[str, str], dict[str, list[SessionValue]]] = {}
    for value in values:
        groups.setdefault((value.cell, value.metric), {}).setdefault(value.run, []).append(value)
    return {
        key: sorted(
            (
                RunValue(run, max(v.time for v in group), statistics.median(v.value for v in group), len(group),
                         group[0].target)
                for run, group in by_run.items()
            ),
            key=lambda value: (value.time, value.run),
        )
        for key, by_run in sorted(groups.items())
    }  # fmt: skip


def _result_columns() -> list[ColumnElement[Any]]:
    return [results.c[name] for name in CellResult.__dataclass_fields__ if name != "metrics"]


def _latest(condition: ColumnElement[bool], choice: Choice) -> Select[Any]:
    """The latest result of each cell and target that fits."""
    place = (
        func.row_number()
        .over(partition_by=(results.c.cell, results.c.target), order_by=(results.c.ended.desc(), results.c.run.desc()))
        .label("place")
    )
    ranked = select(*_result_columns(), place).where(condition, *_result_filter(choice)).subquery()
    columns = [column for column in ranked.c if column.name != "place"]
    return select(*columns).where(ranked.c.place == 1).order_by(ranked.c.cell, ranked.c.target)


def _medians(
    connection: Any, wanted: set[tuple[str, str]], metrics: Sequence[str]
) -> dict[tuple[str, str], dict[str, float]]:
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    by_run: dict[str, list[str]] = {}
    for run, cell in sorted(wanted):
        by_run.setdefault(run, []).append(cell)
    for run, cells in by_run.items():
        for start in range(0, len(cells), 500):  # SQLite bounds the parameters of a statement
            query = select(sessions.c.cell, sessions.c.metric, sessions.c.value).where(
                sessions.c.run == run,
                sessions.c.cell.in_(cells[start : start + 500]),
                *_like(sessions.c.metric, metrics),
            )
            for cell, metric, value in connection.execute(query):
                found.setdefault((run, cell), {}).setdefault(metric, []).append(value)
    return {
        key: {metric: statistics.median(values) for metric, values in sorted(by_metric.items())}
        for key, by_metric in found.items()
    }


def _range(column: ColumnElement[str], choice: Choice) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if choice.since:
        found.append(column >= choice.since)
    if choice.until:
        found.append(func.substr(column, 1, len(choice.until)) <= choice.until)
    return found


def _like(column: ColumnElement[str], names: Sequence[str]) -> list[ColumnElement[bool]]:
    if not names or "*" in names:
        return []
    exact = [name for name in names if "*" not in name]
    each: list[ColumnElement[bool]] = [column.in_(exact)] if exact else []
    for name in names:
        if "*" in name:
            escaped = name.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%")
            each.append(column.like(escaped, escape="\\"))
    return [or_(*each)]


def _result_filter(choice: Choice) -> list[ColumnElement[bool]]:
    found = [*_like(results.c.cell, choice.cells), *_range(results.c.ended, choice)]
    found += [results.c.phone == choice.phone] if choice.phone else []
    found += [results.c.target == choice.target] if choice.target else []
    found += [results.c.run == choice.run] if choice.run else []
    return found


def _session_filter(choice: Choice) -> list[ColumnElement[bool]]:
    found = [
        *_like(sessions.c.cell, choice.cells),
        *_like(sessions.c.metric, choice.metrics),
        *_range(sessions.c.time, choice),
    ]
    found += [sessions.c.phone == choice.phone] if choice.phone else []
    found += [and_(runs.c.target == choice.target)] if choice.target else []
    found += [sessions.c.run == choice.run] if choice.run else []
    return found
