"""What hosts and drivers tell each other, as plain data; whether they fit together. Pure, but for `own_identity`."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness import __version__
from harness.errors import ConfigError
from harness.inventory import Inventory, Limits, Phone
from harness.matrix import Cell
from harness.model_file import Lengths, Mode
from harness.models import load_models, select
from harness.paths import MODELS
from harness.soc import PHONE_KINDS, find_soc
from harness.sources import source_digest
from harness.toolchain.environment import find_toolchain, fingerprint

PHONE, MEMORY = "phone:", "memory_mb"
"""Resources of workers: one `phone:NAME` a phone, and megabytes of memory for compiling."""


@dataclass(frozen=True)
class HostReport:
    """A host by its own account.

    Attributes:
        host: what people call it.
        address: of its worker, as the engine knows it.
        identity: versions and hashes: name → value.
        phones: those that answer, as `phone_data`.
        refused: name of a phone that cannot be used → why.
        memory_mb: for compiling; 0: it compiles nothing.
    """

    host: str
    address: str
    identity: dict[str, str]
    phones: tuple[dict[str, Any], ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    memory_mb: float = 0.0

    def to_data(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> HostReport:
        """Of `to_data`."""
        return cls(**{**data, "phones": tuple(data["phones"])})


def own_identity() -> dict[str, str]:
    """What must be the same on all hosts of a run: htpfarm to its last line, and the toolchain."""
    try:
        engine = version("distributed")
    except PackageNotFoundError:
        engine = "absent"
    own = {"htpfarm": __version__, "python": platform.python_version(), "distributed": engine}
    return {**own, "sources": source_digest(), **fingerprint(find_toolchain())}


def check_hosts(own: Mapping[str, str], reports: Sequence[HostReport], where: str) -> None:
    """Refuses hosts that are not like the driver, or offer one name twice.

    Args:
        own: the driver's `own_identity`.
        reports: of all hosts.
        where: the engine's address, for the message.

    Raises:
        ConfigError: names what differs, or the phone and both hosts.
    """
    lines = []
    for report in reports:
        for name in sorted({*own, *report.identity}):
            here, there = own.get(name, "none"), report.identity.get(name, "none")
            if here != there:
                lines.append(f"{report.host} ({report.address}): {name} is {there}, here {here}")
    if lines:
        raise ConfigError(
            "hosts of the engine are not like this one: their cells could not be compared",
            where=where,
            remedy="install the same checkout with the same constraints.txt and QNN libraries, and join again",
            evidence="\n".join(lines),
        )
    seen: dict[str, HostReport] = {}
    for report in reports:
        for phone in report.phones:
            name = str(phone["name"])
            if name in seen:
                raise ConfigError(
                    f"two hosts offer a phone {name!r}: {seen[name].host} ({seen[name].address}) and "
                    f"{report.host} ({report.address})",
                    where=where,
                    remedy="give one of them another name in its rack file, and join again",
                )
            seen[name] = report


def phone_data(phone: Phone) -> dict[str, Any]:
    """A phone as plain data: what a driver plans and selects by."""
    return {
        "name": phone.name,
        "serial": phone.serial,
        "virtual": phone.virtual.key if phone.virtual else None,
        "soc": phone.soc.name if phone.soc else None,
        "rack": phone.rack,
        "labels": list(phone.labels),
        "capabilities": list(phone.capabilities),
        "priority": phone.priority,
        "limits": dataclasses.asdict(phone.limits),
    }


def phone_from_data(data: Mapping[str, Any]) -> Phone:
    """Of `phone_data`; its adb server, faults and power command stay with its host."""
    return Phone(
        data["name"],
        data["serial"],
        PHONE_KINDS[data["virtual"]] if data["virtual"] else None,
        find_soc(data["soc"]) if data["soc"] else None,
        rack=data["rack"],
        labels=tuple(data["labels"]),
        capabilities=tuple(data["capabilities"]),
        priority=data["priority"],
        limits=Limits(**data["limits"]),
    )


def inventory_of(reports: Iterable[HostReport], address: str) -> Inventory:
    """The phones of all hosts as one rack, by name."""
    phones = sorted((phone_from_data(data) for report in reports for data in report.phones), key=lambda p: p.name)
    return Inventory(Path(address.partition("//")[2] or address), "", 0, tuple(phones))


def cell_data(cell: Cell) -> dict[str, Any]:
    """A cell as plain data: its model by name, since paths in it are this host's."""
    return {
        "model": cell.model.name,
        "mode": cell.mode.value,
        "soc": cell.soc.name,
        "lengths": dataclasses.asdict(cell.lengths),
        "recipe": cell.recipe,
        "phone": cell.phone,
    }


def cell_from_data(data: Mapping[str, Any]) -> Cell:
    """Of `cell_data`, with this host's model of that name.

    Raises:
        ConfigError: there is no such model.
    """
    (model,) = select(load_models(MODELS), (data["model"],))
    lengths = Lengths(**data["lengths"])
    model = dataclasses.replace(model, lengths=lengths)
    return Cell(model, Mode(data["mode"]), find_soc(data["soc"]), lengths, data["recipe"], data["phone"])


def place(need_mb: float, free_mb: Mapping[str, float]) -> str | None:
    """The compile host for a build: the one with most memory left that has enough; None: none has now."""
    fitting = [name for name, free in free_mb.items() if free >= need_mb]
    return max(fitting, key=lambda name: (free_mb[name], name), default=None)


def order_phones(
    names: Sequence[str],
    avoid: Sequence[str | None],
    first: str | None,
    priority: Mapping[str, int],
    trouble: Mapping[str, str],
) -> list[str]:
    """The order in which the phones of a cell are asked: those that failed it last, and those in trouble after others.

    Args:
        names: phones that are there.
        avoid: phones that failed it, one entry a failure.
        first: the one that the scheduler chose.
        priority: name → as in devices.yaml.
        trouble: name → why it is of no use at the moment (hot, BAD).
    """
    return sorted(names, key=lambda n: (avoid.count(n), n in trouble, n != first, -priority.get(n, 0), n))


@dataclass
class InOrder:
    """Messages of one sender, numbered from 0: handed on in order and once, however and how often they come."""

    _next: int = 0
    _early: dict[int, Any] = field(default_factory=dict)

    def take(self, number: int, message: Any) -> list[Any]:
        """What can be handed on now that this message is here."""
        if number < self._next:
            return []
        self._early.setdefault(number, message)
        ready = []
        while self._next in self._early:
            ready.append(self._early.pop(self._next))
            self._next += 1
        return ready
