"""What `htpfarm rack up|down|status` does; the command line itself is wired elsewhere."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness.rack import manage
from harness.rack.record import RackState


def cmd_status(*, state_dir: Path | None = None) -> RackState | None:
    """The running rack, or None."""
    return manage.status(state_dir)


def cmd_down(*, state_dir: Path | None = None) -> bool:
    """Ends the rack; whether there was one."""
    return manage.down(state_dir)


def to_json(state: RackState | None) -> str:
    """One JSON object: `running`, and the state's fields where it runs."""
    return json.dumps({"running": state is not None, **(asdict(state) if state else {})}, indent=2)


def print_state(state: RackState | None, console: Console) -> None:
    """The rack as a table: one row a phone, and how to reach its adb server."""
    if state is None:
        console.print("no rack is running; start one with [bold]htpfarm rack up[/bold]")
        return
    table = Table("phone", "serial", "kind", "isolation")
    for phone in state.phones:
        table.add_row(phone.name, phone.serial, phone.kind, "none (plain fallback)" if phone.fallback else "namespaces")
    console.print(table)
    console.print(f"adb -P {state.adb_port} devices -l", highlight=False)


def print_down(ended: bool, console: Console) -> None:
    """What `down` did, in one line."""
    console.print("the rack is down" if ended else "no rack was running")
