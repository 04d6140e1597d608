"""A run's folder: records appended as they happen, by several processes, readable after any of them was killed."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from harness.errors import ConfigError
from harness.files import sync
from harness.results.records import (
    ArtifactRecord,
    CheckRecord,
    ComparisonRecord,
    DeployRecord,
    Entry,
    OutcomeRecord,
    PerplexityRecord,
    PlanEntry,
    RawRecord,
    Record,
    RunInfo,
    SampleRecord,
    TaskRecord,
    TtftRecord,
    decode,
    encode,
)

RECORDS = "records.jsonl"
TORN = "records.torn"

_R = TypeVar("_R", bound=Record)


def new_run_id(now: datetime | None = None) -> str:
    """`YYYYMMDD-HHMMSS-<4 hex>`, in UTC: sorts by time."""
    return f"{now or datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def new_run_folder(reports: Path) -> Path:
    """Make `reports/<new run id>`, a folder that was not there, and return it."""
    reports.mkdir(parents=True, exist_ok=True)
    while True:
        folder = reports / new_run_id()
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder


class RecordWriter:
    """Appends to `records.jsonl` in a run's folder; made anew in each process, holds nothing open.

    Each append is one `write` of one line to a descriptor opened with O_APPEND, then fsync, under a lock on the file
    that the kernel frees if the process dies. What is in the file is never written again: a line that a killed
    process left half written is moved to `records.torn`, and the next line starts on its own.
    """

    def __init__(self, folder: Path, run: str | None = None) -> None:
        """
        Args:
            folder: the run's folder; made if missing.
            run: the run's id; None for the folder's name.
        """
        self.folder = folder
        self.run = run or folder.resolve().name
        self.path = folder / RECORDS

    def append(self, record: Record) -> None:
        """Write one record; it is on the disk when this returns.

        Raises:
            TypeError: the record holds what JSON cannot.
            OSError: the disk is full, the folder cannot be written.
        """
        line = encode(record, self.run)
        self.folder.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        # A descriptor of its own each time, so that threads and forked children lock each other out too.
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            _mend_tail(fd, self.folder / TORN)
            _write_all(fd, line)
            os.fsync(fd)
        finally:
            os.close(fd)
        if is_new:
            sync(self.folder)


def _write_all(fd: int, data: bytes) -> None:
    # The kernel takes a whole line in one write, unless the disk is full or a signal comes.
    while data:
        data = data[os.write(fd, data) :]


def _mend_tail(fd: int, torn: Path) -> None:
    """Make the file end with a whole line. Called under the lock, so that nobody is writing the last one."""
    size = os.fstat(fd).st_size
    if size == 0 or os.pread(fd, 1, size - 1) == b"\n":
        return
    tail = b""
    while (start := size - len(tail)) > 0 and b"\n" not in tail:
        step = min(65536, start)
        tail = os.pread(fd, step, start - step) + tail
    tail = tail[tail.rfind(b"\n") + 1 :]
    if _is_object(tail):
        _write_all(fd, b"\n")
        return
    with torn.open("ab") as file:
        file.write(tail + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.ftruncate(fd, size - len(tail))


def _is_object(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


@dataclass(frozen=True)
class Line:
    """A line of `records.jsonl`: its number from 1, its text without the newline, and what it says."""

    number: int
    text: str
    entry: Entry


def read_lines(path: Path) -> list[Line]:
    """All lines of the file that hold something.

    A last line that was cut short is left out. Other lines that are not understood are RawRecords.

    Raises:
        ConfigError: there is no such file.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(
            "there are no records here", where=str(path), remedy="give the folder of a run, as reports/<run>"
        ) from error
    lines = data.split(b"\n")
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if number == len(lines) and not _is_object(line):
            continue  # no newline after it: its writer was killed, or is at it
        text = line.decode("utf-8", "backslashreplace")
        found.append(Line(number, text, decode(text, number)))
    return found


def read_entries(path: Path) -> list[Entry]:
    """All records in the order of the file, with when and by which run they were written; as `read_lines`."""
    return [line.entry for line in read_lines(path)]


def read_records(path: Path) -> list[Record]:
    """The records of `read_entries`, without when.

    Raises:
        ConfigError: there is no such file.
    """
    return [entry.record for entry in read_entries(path)]


@dataclass(frozen=True)
class RunData:
    """A run as its records tell it.

    Attributes:
        run: how it was started, the first time.
        resumed: how it was started again, each time.
        plan: the planned cells in the order planned; of one planned again, the last.
        artifacts: cell id → the last artifact.
        deploys, samples, perplexities, ttfts, tasks, checks, comparisons: cell id → all of them, in the order written.
        outcomes: cell id → the last outcome.
        raw: the lines that were not understood.
        last_time: when the last record was written, ISO UTC.
    """

    run: RunInfo
    resumed: tuple[RunInfo, ...]
    plan: tuple[PlanEntry, ...]
    artifacts: dict[str, ArtifactRecord]
    deploys: dict[str, tuple[DeployRecord, ...]]
    samples: dict[str, tuple[SampleRecord, ...]]
    perplexities: dict[str, tuple[PerplexityRecord, ...]]
    ttfts: dict[str, tuple[TtftRecord, ...]]
    tasks: dict[str, tuple[TaskRecord, ...]]
    checks: dict[str, tuple[CheckRecord, ...]]
    outcomes: dict[str, OutcomeRecord]
    raw: tuple[RawRecord, ...] = ()
    last_time: str = ""
    comparisons: dict[str, tuple[ComparisonRecord, ...]] = field(default_factory=dict)


def load_run(folder: Path) -> RunData:
    """Read a run's folder.

    Raises:
        ConfigError: it has no records, or no record of how the run was started.
    """
    return run_data(read_entries(folder / RECORDS), str(folder / RECORDS))


def run_data(entries: Sequence[Entry], where: str) -> RunData:
    """What the records of one run come to; `where` they are from is for the error.

    Raises:
        ConfigError: none says how the run was started.
    """
    records = [entry.record for entry in entries]
    runs = _of(records, RunInfo)
    if not runs:
        raise ConfigError(
            "no record says how the run was started",
            where=where,
            remedy="the run was killed before its first record, or the file is not ours: run again",
        )
    times = [entry.time for entry in entries if entry.time]
    return RunData(
        run=runs[0],
        resumed=tuple(runs[1:]),
        plan=tuple({entry.cell: entry for entry in _of(records, PlanEntry)}.values()),
        artifacts={record.cell: record for record in _of(records, ArtifactRecord)},
        deploys=_by_cell((record.cell, record) for record in _of(records, DeployRecord)),
        samples=_by_cell((record.cell, record) for record in _of(records, SampleRecord)),
        perplexities=_by_cell((record.cell, record) for record in _of(records, PerplexityRecord)),
        ttfts=_by_cell((record.cell, record) for record in _of(records, TtftRecord)),
        tasks=_by_cell((record.cell, record) for record in _of(records, TaskRecord)),
        checks=_by_cell((record.cell, record) for record in _of(records, CheckRecord)),
        outcomes={record.cell: record for record in _of(records, OutcomeRecord)},
        raw=tuple(_of(records, RawRecord)),
        last_time=times[-1] if times else "",
        comparisons=_by_cell((record.cell, record) for record in _of(records, ComparisonRecord)),
    )


def _of(records: Iterable[Record], kind: type[_R]) -> list[_R]:
    return [record for record in records if isinstance(record, kind)]


def _by_cell(pairs: Iterable[tuple[str, _R]]) -> dict[str, tuple[_R, ...]]:
    found: dict[str, tuple[_R, ...]] = {}
    for cell, record in pairs:
        found[cell] = (*found.get(cell, ()), record)
    return found
