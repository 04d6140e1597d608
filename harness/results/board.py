"""What each phone and cell of a run does right now, from its records and live log as they grow. Pure but for `Tail`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from harness.results.cell_plots import celsius
from harness.results.page import label
from harness.results.records import (
    ArtifactRecord,
    Entry,
    OutcomeRecord,
    PlanEntry,
    Record,
    RunInfo,
    SampleRecord,
    Status,
    decode,
)
from harness.results.store import RECORDS
from harness.results.summary import STATUSES

LIVE = "live.log"
WAITING, RUNNING = "WAITING", "RUNNING"
"""Of a cell without an outcome: whether a phone is at it."""
_LINE = re.compile(r"(\d\d:\d\d:\d\d) (\S+) +(.*)")
_ENDED = re.compile(r"(PASSED|FAILED|ERROR|SKIPPED) after ")
_NO_PHONES = ("-", "build")


@dataclass
class Place:
    """One planned cell.

    Attributes:
        plan: as planned.
        status: WAITING, RUNNING or how it ended.
        doing: the last thing said of it.
        phone: the phone at it, or the last that was.
        failure_class, reason: of its outcome.
        decode_tok_s, ttft_ms: of its last sample.
        built: whether its `.pte` is there.
    """

    plan: PlanEntry
    status: str = WAITING
    doing: str = ""
    phone: str = ""
    failure_class: str = ""
    reason: str = ""
    decode_tok_s: float | None = None
    ttft_ms: float | None = None
    built: bool = False


@dataclass
class PhoneNow:
    """One phone.

    Attributes:
        name: as in devices.yaml.
        cell: what it is at; empty when it is free.
        doing: the last thing said of it, and when.
        since: `HH:MM:SS` of that.
        celsius: after its last sample, where it was recorded.
        done: cells that ended on it.
    """

    name: str
    cell: str = ""
    doing: str = ""
    since: str = ""
    celsius: float | None = None
    done: int = 0


@dataclass
class Board:
    """All of a run, kept up as entries and lines come in."""

    run: RunInfo | None = None
    cells: dict[str, Place] = field(default_factory=dict)
    phones: dict[str, PhoneNow] = field(default_factory=dict)
    build: str = ""
    last_time: str = ""

    def take(self, entry: Entry) -> None:
        """A record; of one that this version does not understand nothing is shown."""
        record: Record = entry.record
        self.last_time = entry.time or self.last_time
        if isinstance(record, RunInfo):
            self.run = self.run or record
        elif isinstance(record, PlanEntry):
            self._plan(record)
        elif isinstance(record, ArtifactRecord) and record.cell in self.cells:
            self.cells[record.cell].built = True
        elif isinstance(record, SampleRecord) and record.cell in self.cells:
            place = self.cells[record.cell]
            place.decode_tok_s, place.ttft_ms = record.decode_tok_s, record.ttft_ms
            heat = celsius(record)
            phone = self._phone(record.phone)
            phone.celsius = heat if heat is not None else phone.celsius
        elif isinstance(record, OutcomeRecord) and record.cell in self.cells:
            self._end(record)

    def say(self, line: str) -> None:
        """A line of the live log: `HH:MM:SS phone what`."""
        match = _LINE.match(line)
        if match is None:
            return
        since, name, what = match.groups()
        if name == "build":
            self.build = what
            return
        cell, _, doing = what.partition(": ")
        place = self.cells.get(cell)
        ended = _ENDED.match(doing)
        if place is not None and place.status in (WAITING, RUNNING):
            place.doing = doing
            if name not in _NO_PHONES and not ended:
                place.status, place.phone = RUNNING, name
        if name not in _NO_PHONES:
            phone = self._phone(name)
            phone.cell = "" if ended or place is None else cell
            phone.doing, phone.since = (doing if place is not None else what), since

    @property
    def counts(self) -> dict[str, int]:
        """Status → cells, all statuses."""
        found = Counter(place.status for place in self.cells.values())
        return {status: found[status] for status in (RUNNING, WAITING, *STATUSES) if status != "NOT RUN"}

    @property
    def verdict(self) -> str:
        """The run so far in one line."""
        counts = self.counts
        open_ = counts[RUNNING] + counts[WAITING]
        ended = ", ".join(f"{counts[s]} {s.lower()}" for s in counts if counts[s] and s not in (RUNNING, WAITING))
        going = f"{open_} of {len(self.cells)} cells to go" if open_ else f"all {len(self.cells)} cells have ended"
        return f"{going}{': ' + ended if ended else ''}"

    def as_data(self) -> dict[str, object]:
        """For a page or a program: strict JSON values only."""
        return {
            "run": self.run.id if self.run else "",
            "started": self.run.started if self.run else "",
            "target": self.run.target.value if self.run else "",
            "verdict": self.verdict,
            "counts": self.counts,
            "build": self.build,
            "last_time": self.last_time,
            "phones": [vars(self.phones[name]) for name in sorted(self.phones)],
            "cells": [_cell(place) for place in self.cells.values()],
        }

    def _plan(self, record: PlanEntry) -> None:
        status = WAITING if record.verdict == "run" else Status.SKIPPED.value
        if record.cell not in self.cells:  # a resumed run plans again what it has
            self.cells[record.cell] = Place(record, status, reason=record.reason)
        if record.phone:
            self._phone(record.phone)

    def _end(self, record: OutcomeRecord) -> None:
        place = self.cells[record.cell]
        if place.status not in (WAITING, RUNNING) and place.status == record.status.value:
            return
        place.status = record.status.value
        place.failure_class = record.failure_class.value if record.failure_class else ""
        place.reason = record.reason or place.reason
        place.phone = record.phone or place.phone
        if record.phone:
            phone = self._phone(record.phone)
            phone.done += 1
            phone.cell = "" if phone.cell == record.cell else phone.cell

    def _phone(self, name: str) -> PhoneNow:
        return self.phones.setdefault(name, PhoneNow(name))


def _cell(place: Place) -> dict[str, object]:
    plan = place.plan
    return {
        "id": plan.cell,
        "row": label(plan),
        "column": f"{plan.soc} {plan.phone}" if plan.phone else plan.soc,
        "status": place.status,
        "doing": place.doing if place.status in (WAITING, RUNNING) else "",
        "phone": place.phone,
        "failure_class": place.failure_class,
        "reason": place.reason,
        "gate": plan.gate,
        "decode_tok_s": _finite(place.decode_tok_s),
        "ttft_ms": _finite(place.ttft_ms),
        "built": place.built,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) < float("inf") else None


class Tail:
    """Reads what was added to a run's folder since the last time. Never writes."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: the run's; its files may not be there yet.
        """
        self.folder = folder
        self._offsets = {RECORDS: 0, LIVE: 0}

    def read(self, board: Board) -> bool:
        """Bring a board up to date. Returns whether anything was new."""
        records, lines = self._new(RECORDS), self._new(LIVE)
        for text in records:
            board.take(decode(text))
        for text in lines:
            board.say(text)
        return bool(records or lines)

    def _new(self, name: str) -> list[str]:
        """Whole lines only: the last one may be half written."""
        try:
            with (self.folder / name).open("rb") as file:
                file.seek(self._offsets[name])
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offsets[name] += len(whole)
        return [line for line in whole.decode("utf-8", "backslashreplace").split("\n") if line.strip()]
