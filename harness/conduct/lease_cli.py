"""`htpfarm lease ls | break PHONE`: who has which phone, and taking one back."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

TEXT = "leases of phones: ls shows who has which; break ends the holder of one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    parser.add_argument("action", choices=("ls", "break"))
    parser.add_argument("phone", nargs="?", help="for break: its name in the rack file, or its serial")


def run(arguments: argparse.Namespace) -> int:
    """Does it.

    Raises:
        ConfigError: an unknown phone.
        InfraError: the lease cannot be broken.
    """
    from harness.conduct.devices import serial_of
    from harness.farm.lease_service import HostLeases
    from harness.inventory import load_inventory
    from harness.rack.manage import status

    service = HostLeases()
    if arguments.action == "break":
        held = {holder.serial for holder in service.holders()}
        known = arguments.phone in held
        serial = arguments.phone if known else serial_of(load_inventory(arguments.rack), arguments.phone, status())
        ended = service.break_lease(serial)
        said = {"phone": arguments.phone, "ended": ended}
        words = f"ended: process {', '.join(map(str, ended))}" if ended else "it was free"
        print(json.dumps(said) if arguments.json else f"{arguments.phone}: {words}")
        return 0
    found = service.holders()
    if arguments.json:
        print(json.dumps([asdict(holder) for holder in found], indent=2))
        return 0
    table = Table(
        "phone", "user", "run", "process", "since", "until", "heartbeat", title="leases", title_justify="left"
    )
    for holder in found:
        owner = holder.owner
        assert owner is not None, "holders() names living ones"
        until = _clock(owner.deadline) if owner.deadline else ""
        since = _clock(owner.since)
        table.add_row(holder.serial, owner.user, owner.run_id, str(owner.pid), since, until, _clock(holder.heartbeat))
    Console().print(table)
    return 0


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))
