"""`htpfarm rack fault PHONE KIND …`: the command line of faults on demand."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness.errors import ConfigError, InfraError
from harness.rack import manage
from harness.rack.faults import MEANING, FaultKind, FaultSpec, read_faults
from harness.rack.phone import tell
from harness.soc import suggestion

CLEAR = "clear"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `rack fault` takes besides PHONE, which stands where other actions have a folder."""
    parser.add_argument("kind", nargs="?", metavar="KIND", help=f"for fault: {', '.join(FaultKind)}, or {CLEAR}")
    parser.add_argument("--rate", type=float, help="chance at each opportunity; default: at a moment, once")
    parser.add_argument("--after", type=float, default=0.0, metavar="S", help="the moment, in seconds from now")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="how often at most; 0: no limit")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="how long a state lasts")
    parser.add_argument("--match", default="", metavar="TEXT", help="only commands that contain TEXT are opportunities")
    parser.add_argument("--seed", type=int, default=0, help="of the chance")


def arm(phone: str, spec: FaultSpec, *, state_dir: Path | None = None) -> None:
    """Tells a running virtual phone, by its name, to have a fault.

    Raises:
        InfraError: no rack runs, or it has no such phone.
    """
    tell(_root(phone, state_dir), f"fault {spec.to_json()}")


def clear(phone: str, *, state_dir: Path | None = None) -> None:
    """Ends a phone's faults: those that wait, and hot, empty, full, offline, unauthorized and slow. Errors as `arm`."""
    tell(_root(phone, state_dir), f"fault {CLEAR}")


def _root(phone: str, state_dir: Path | None) -> Path:
    state = manage.status(state_dir)
    if state is None:
        raise InfraError("no rack is running", remedy="htpfarm rack up")
    for running in state.phones:
        if running.name == phone:
            return Path(running.root)
    raise InfraError(f"the rack has no phone {phone!r}", remedy=suggestion(phone, [p.name for p in state.phones]))


def run(arguments: argparse.Namespace) -> dict[str, object]:
    """Does what the command line says; without a phone or a kind, shows what has struck.

    Raises:
        ConfigError: an unknown kind or a bad number.
        InfraError: see `arm`.
    """
    phone, kind = arguments.folder, arguments.kind
    if phone is None or kind is None:
        struck = read_faults(manage.default_state_dir())
        return {"kinds": MEANING, "struck": [vars(s) for s in struck if phone is None or s.phone == str(phone)]}
    if kind == CLEAR:
        clear(str(phone))
        return {"phone": str(phone), "cleared": True}
    if kind not in list(FaultKind):
        raise ConfigError(
            f"unknown fault {kind!r}", where="rack fault", remedy=suggestion(kind, [*map(str, FaultKind), CLEAR])
        )
    spec = FaultSpec(
        FaultKind(kind),
        rate=arguments.rate,
        after_s=arguments.after,
        count=arguments.count or None,
        seconds=arguments.seconds,
        match=arguments.match,
        seed=arguments.seed,
    )
    arm(str(phone), spec)
    return {"phone": str(phone), "armed": vars(spec)}


def show(report: dict[str, object], console: Console) -> None:
    """The report for people."""
    if "struck" not in report:
        what = "has no faults now" if report.get("cleared") else f"is armed: {report['armed']}"
        console.print(f"{report['phone']} {what}", highlight=False)
        return
    console.print(_table("kinds of fault", ("kind", "what happens"), [(k, v) for k, v in MEANING.items()]))
    struck = report["struck"]
    assert isinstance(struck, list)
    rows = [(f"{s['time']:.2f}", s["phone"], s["kind"], s["detail"][-60:]) for s in struck]
    console.print(_table(f"{len(rows)} struck", ("time", "phone", "kind", "what it hit"), rows))


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table
