"""`htpfarm devices`: the phones of the rack, what each says of itself, its health, and who has it."""

from __future__ import annotations

import argparse
import json
import socket
import time
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.errors import ConfigError, HarnessError, InfraError
from harness.farm.health import HealthBook
from harness.farm.identity import link_of, survey
from harness.farm.lease import Holder, holders
from harness.farm.vitals import read_vitals
from harness.inventory import Inventory, load_inventory
from harness.rack.manage import RackState, status
from harness.soc import suggestion


def run(arguments: argparse.Namespace) -> int:
    """Does it; the exit status: 3 if a phone cannot be used.

    Raises:
        ConfigError: an unknown phone.
    """
    inventory = load_inventory(arguments.rack)
    state, book = status(), HealthBook()
    if arguments.action == "list":
        rows = list_rows(inventory, state, book)
        _show_rows(str(inventory.path), rows, as_json=arguments.json)
        # A phone without an HTP is what it is; one that does not answer, or is BAD, needs somebody.
        return 0 if all(row["usable"] or row["soc"] == "none" for row in rows) else 3
    serial = serial_of(inventory, arguments.phone, state)
    if arguments.action == "log":
        events = [asdict(event) for event in book.events(serial)]
        if arguments.json:
            print(json.dumps(events, indent=2))
        else:
            table = Table("when", "event", "state", "cause", "by", title=arguments.phone, title_justify="left")
            for e in events:
                when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(e["time"]))
                table.add_row(when, e["event"], e["state"], e["cause"], e["by"])
            Console().print(table)
        return 0
    if arguments.action == "clear":
        before = book.clear(serial, f"cleared: {arguments.why}" if arguments.why else "cleared by hand")
    else:
        before = book.state(serial)
        book.maintain(serial, arguments.why or "put aside by hand")
    said = {"phone": arguments.phone, "before": before, "now": book.state(serial)}
    print(json.dumps(said) if arguments.json else f"{arguments.phone}: {before} → {said['now']}")
    return 0


def serial_of(inventory: Inventory, name: str | None, rack: RackState | None) -> str:
    """The serial of a phone by its name.

    Raises:
        ConfigError: there is no such phone.
        InfraError: it is a virtual one that does not run.
    """
    names = [phone.name for phone in inventory.phones]
    if name not in names:
        remedy = suggestion(name, names) if name else f"one of: {', '.join(names)}"
        raise ConfigError(f"no phone {name!r} in the rack", where=str(inventory.path), remedy=remedy)
    return link_of(inventory, inventory.phones[names.index(name)], rack).serial


def list_rows(inventory: Inventory, rack: RackState | None, book: HealthBook) -> list[dict[str, Any]]:
    """A row a phone, in the file's order."""
    found = survey(inventory, rack)
    held = {holder.serial: holder for holder in holders()}
    attached = {phone.phone.name: phone for phone in found.attached}
    refused = {phone.name: error for phone, error in found.refused}
    rows = []
    for phone in inventory.phones:
        row: dict[str, Any] = {
            "name": phone.name,
            "kind": "virtual" if phone.virtual else "real",
            "usable": False,
            "serial": phone.serial or "",
            "what": "",
            "soc": "",
            "health": "",
            "celsius": None,
            "battery": None,
            "lease": "",
            "note": "",
        }
        if (one := attached.get(phone.name)) is not None:
            serial, soc = one.identity.serial, one.identity.soc
            health = book.state(serial)
            row |= {"serial": serial, "what": one.identity.label, "soc": soc.name if soc else "none"}
            row |= {"usable": soc is not None and health.usable, "health": str(health)}
            row["note"] = one.identity.reason if soc is None or health.usable else book.cause(serial)
            row["lease"] = _lease(held.get(serial))
            try:
                vitals = read_vitals(one.link)
                row |= {"celsius": vitals.celsius, "battery": vitals.battery_percent}
            except InfraError as error:
                row |= {"usable": False, "note": error.what}
        else:
            row["note"] = _words(refused[phone.name])
        rows.append(row)
    return rows


def _words(error: HarnessError) -> str:
    return f"{error.what}; {error.remedy}" if error.remedy else error.what


def _lease(holder: Holder | None) -> str:
    if holder is None:
        return "free"
    if holder.owner is None:
        return "held"
    silent = time.time() - holder.heartbeat
    beat = f", last heard of {silent:.0f} s ago" if holder.owner.host == socket.gethostname() else ""
    until = f", until {time.strftime('%H:%M', time.localtime(holder.owner.deadline))}" if holder.owner.deadline else ""
    return f"{holder.owner}{until}{beat}"


def _show_rows(title: str, rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    columns = ("name", "kind", "serial", "what", "soc", "health", "celsius", "battery", "lease", "note")
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*("" if row[column] is None else str(row[column]) for column in columns))
    Console().print(table)
