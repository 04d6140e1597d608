"""What is known of a running rack, and the file that keeps it: `rack.json` in the rack's folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.files import write_atomically
from harness.rack.processes import ProcessRef, alive


@dataclass(frozen=True)
class RackPhone:
    """One running virtual phone.

    Attributes:
        name: as in devices.yaml.
        serial: what adb calls it, `127.0.0.1:PORT`.
        kind: key of the phone model it pretends to be.
        root: its tree on this host.
        fallback: whether it runs without a view of its own (namespaces are forbidden here).
    """

    name: str
    serial: str
    kind: str
    root: str
    fallback: bool


@dataclass(frozen=True)
class RackState:
    """A running rack: the adb server's address and process, the rack's process, the phones in the order asked for."""

    adb_host: str
    adb_port: int
    adb_pid: int
    server_pid: int
    phones: tuple[RackPhone, ...]


@dataclass(frozen=True)
class Record:
    """What `rack.json` holds; written as each process starts, so that an interrupted `up` can be cleaned."""

    adb_port: int
    server: ProcessRef | None = None
    adb: ProcessRef | None = None
    phones: tuple[RackPhone, ...] = ()


def record_file(folder: Path) -> Path:
    """Where the record of the rack in `folder` lies."""
    return folder / "rack.json"


def write_record(folder: Path, record: Record) -> None:
    """Replaces the record."""
    write_atomically(record_file(folder), json.dumps(asdict(record), indent=2))


def read_record(folder: Path) -> Record | None:
    """The record, or None where there is none that can be read."""
    try:
        data = json.loads(record_file(folder).read_text())
        return Record(
            adb_port=data["adb_port"],
            server=ProcessRef(**data["server"]) if data["server"] else None,
            adb=ProcessRef(**data["adb"]) if data["adb"] else None,
            phones=tuple(RackPhone(**phone) for phone in data["phones"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def live_record(folder: Path) -> Record | None:
    """The record of a rack whose two processes both run."""
    record = read_record(folder)
    if record and record.phones and record.server and record.adb and alive(record.server) and alive(record.adb):
        return record
    return None


def state_of(record: Record) -> RackState:
    """What a running rack shows of its record."""
    assert record.server is not None
    assert record.adb is not None
    return RackState("127.0.0.1", record.adb_port, record.adb.pid, record.server.pid, record.phones)
