"""devices.yaml: the phones of the rack, as `Inventory`.

A phone may stand in one of the file's `racks`, which are the places where phones hang: an adb server (of this host or
another one), labels, limits. What a phone says itself goes before what its rack says.

A phone is `virtual` (a kind from `soc.PHONE_KINDS`, run by the harness itself) or has a `serial` (a real one, found
through the adb server). Reading the file touches no phone: a real phone without `soc` is recognised later, by its
properties.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.config import Document, Problem, Section, read_document
from harness.rack.faults import FaultKind, FaultSpec
from harness.soc import PHONE_KINDS, SOCS, PhoneKind, Soc, suggestion


@dataclass(frozen=True)
class Limits:
    """What a phone must be like to be measured on.

    Attributes:
        hot_above_c: above this (degrees Celsius, the hottest of skin, battery and HTP) it must cool down first.
        cool_below_c: and then to below this: the gap keeps it from starting and stopping at one temperature.
        cool_limit_s: how long it may cool, in seconds.
        thermal_status: highest of Android's thermal statuses (0 none, 1 light, … 6 shutdown) at which a sample counts.
        battery_percent: lowest charge.
        storage_mb: lowest free storage on /data.
    """

    hot_above_c: float = 45.0
    cool_below_c: float = 40.0
    cool_limit_s: float = 900.0
    thermal_status: int = 1
    battery_percent: int = 15
    storage_mb: int = 256


@dataclass(frozen=True)
class Phone:
    """One phone of the rack.

    Attributes:
        name: what the rack calls it, as `s23`; unique.
        serial: what `adb devices` prints; None for a virtual phone, which gets one when its rack starts.
        virtual: what a virtual phone pretends to be; None for a real one.
        soc: its chipset; None until probed, and for a phone without an HTP.
        rack: name of the rack it stands in; empty for none.
        adb: host and port of the adb server it hangs on; None for the file's.
        labels: what people call it, for selection.
        capabilities: what it has that others have not, for cells that need it.
        priority: of two free phones the one with the higher is used first.
        limits: what it must be like to be measured on.
        power_cycle: a command of this host that cuts its power and gives it back; empty if there is none.
        faults: what a virtual phone is armed with when its rack starts.
    """

    name: str
    serial: str | None
    virtual: PhoneKind | None
    soc: Soc | None
    rack: str = ""
    adb: tuple[str, int] | None = None
    labels: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    priority: int = 0
    limits: Limits = Limits()
    power_cycle: tuple[str, ...] = ()
    faults: tuple[FaultSpec, ...] = ()


@dataclass(frozen=True)
class Inventory:
    """A rack: its phones in the order of the file, and the adb server that its real phones hang on."""

    path: Path
    adb_host: str
    adb_port: int
    phones: tuple[Phone, ...]


class AdbSection(Section):
    """`adb`: the server real phones are reached through."""

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=5037, ge=1, le=65535)


_Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
_Words = Annotated[tuple[_Word, ...], Field(strict=False)]


class LimitsSection(Section):
    """`limits` of a rack or a phone; see `Limits`. What is left out is the rack's, or the default."""

    hot_above_c: float | None = Field(default=None, gt=0, le=120, strict=False)
    cool_below_c: float | None = Field(default=None, gt=0, le=120, strict=False)
    cool_limit_s: float | None = Field(default=None, ge=0, strict=False)
    thermal_status: int | None = Field(default=None, ge=0, le=6)
    battery_percent: int | None = Field(default=None, ge=0, le=100)
    storage_mb: int | None = Field(default=None, ge=0)


class FaultSection(Section):
    """One of a virtual phone's `faults`; see `FaultSpec`. With a `rate`, without limit unless `count` says so."""

    kind: Literal[
        "hang-shell",
        "cut-push",
        "cut-pull",
        "corrupt-pull",
        "offline",
        "unauthorized",
        "reboot",
        "hot",
        "battery",
        "storage",
        "kill-runner",
        "slow",
        "garbage",
        "adb-down",
    ]
    rate: float | None = Field(default=None, ge=0, le=1, strict=False)
    after_s: float = Field(default=0.0, ge=0, strict=False)
    count: int | None = Field(default=None, ge=1)
    seconds: float = Field(default=5.0, ge=0, strict=False)
    match: str = ""
    seed: int = 0

    def spec(self) -> FaultSpec:
        """For the phone."""
        count = 1 if self.count is None and self.rate is None else self.count
        return FaultSpec(FaultKind(self.kind), self.rate, self.after_s, count, self.seconds, self.match, self.seed)


class RackSection(Section):
    """One item of `racks`: what its phones have in common."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    adb: AdbSection | None = None
    labels: _Words = ()
    limits: LimitsSection = LimitsSection()


class PhoneSection(Section):
    """One item of `phones`."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    virtual: str | None = None
    # No blanks and no leading dash: a serial becomes an argument of adb -s.
    serial: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:\[\]()%-]*$")
    soc: str | None = None
    rack: str | None = None
    adb: AdbSection | None = None
    labels: _Words = ()
    capabilities: _Words = ()
    priority: int = Field(default=0, ge=-1000, le=1000)
    limits: LimitsSection = LimitsSection()
    power_cycle: Annotated[tuple[str, ...], Field(strict=False)] = ()
    faults: Annotated[tuple[FaultSection, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _one_of_virtual_and_serial(self) -> PhoneSection:
        if (self.virtual is None) == (self.serial is None):
            state = "neither" if self.virtual is None else "both"
            raise ValueError(f"give exactly one of virtual and serial; {state} is there")
        return self


class InventoryFile(Section):
    """devices.yaml."""

    version: Literal[1]
    adb: AdbSection = AdbSection()
    racks: Annotated[tuple[RackSection, ...], Field(strict=False)] = ()
    phones: Annotated[tuple[PhoneSection, ...], Field(strict=False, min_length=1)]


def load_inventory(path: Path) -> Inventory:
    """Read a rack file.

    Raises:
        ConfigError: the file does not fit, a name or serial is there twice, a SoC or kind is unknown; with lines.
    """
    document = read_document(path, InventoryFile)
    if problems := _problems(document):
        raise document.refuse(problems)
    file = document.value
    racks = {rack.name: rack for rack in file.racks}
    phones = tuple(_phone(section, racks.get(section.rack or "")) for section in file.phones)
    return Inventory(path, file.adb.host, file.adb.port, phones)


def _problems(document: Document[InventoryFile]) -> list[Problem]:
    problems = []
    names: dict[str, str] = {}
    serials: dict[tuple[str, AdbSection | None], str] = {}
    racks: dict[str, RackSection] = {}
    for index, rack in enumerate(document.value.racks):
        if rack.name in racks:
            problems.append(Problem(("racks", index, "name"), f"{rack.name} is there twice"))
        racks[rack.name] = rack
    for index, phone in enumerate(document.value.phones):
        here = ("phones", index)
        if phone.name in names:
            problems.append(Problem((*here, "name"), f"{phone.name} is already the name of {names[phone.name]}"))
        names.setdefault(phone.name, f"phones[{index}]")
        home = racks.get(phone.rack or "")
        if phone.rack is not None and home is None:
            message = f"unknown rack {phone.rack!r}; {suggestion(phone.rack, racks) if racks else 'there is no racks:'}"
            problems.append(Problem((*here, "rack"), message))
        if phone.serial is not None:
            # `host:port` serials of two adb servers may be two phones.
            key = (phone.serial, phone.adb or (home.adb if home else None))
            if key in serials:
                message = f"{phone.serial} is already the serial of {serials[key]}"
                problems.append(Problem((*here, "serial"), message))
            serials.setdefault(key, f"phones[{index}]")
        problems.extend(_virtual_problems(phone, here))
        limits = _limits(phone.limits, home.limits if home else LimitsSection())
        if limits.cool_below_c > limits.hot_above_c:
            message = f"cool_below_c ({limits.cool_below_c:g}) is over hot_above_c ({limits.hot_above_c:g})"
            problems.append(Problem((*here, "limits"), message))
        if phone.virtual is not None and phone.virtual not in PHONE_KINDS:
            message = f"unknown kind of phone {phone.virtual!r}; {suggestion(phone.virtual, PHONE_KINDS)}"
            problems.append(Problem((*here, "virtual"), message))
        if phone.soc is not None:
            problems.extend(Problem((*here, "soc"), message) for message in _soc_problem(phone))
    return problems


def _virtual_problems(phone: PhoneSection, here: tuple[str | int, ...]) -> list[Problem]:
    """Keys that make sense for one sort of phone alone."""
    problems = []
    if phone.virtual is None and phone.faults:
        problems.append(Problem((*here, "faults"), "only a virtual phone can be told to have faults"))
    if phone.virtual is not None and phone.adb is not None:
        problems.append(Problem((*here, "adb"), "a virtual phone brings its own adb server; remove this key"))
    return problems


def _limits(own: LimitsSection, rack: LimitsSection) -> Limits:
    default = Limits()
    fields = {
        name: mine if (mine := getattr(own, name)) is not None else racks
        for name in LimitsSection.model_fields
        if (racks := getattr(rack, name)) is not None or getattr(own, name) is not None
    }
    return replace(default, **fields)


def _soc_problem(phone: PhoneSection) -> list[str]:
    if phone.virtual is not None:
        return ["a virtual phone has the SoC of its kind; remove this key"]
    if phone.soc not in SOCS:
        return [f"unknown SoC {phone.soc!r}; {suggestion(phone.soc or '', SOCS)}"]
    return []


def _phone(section: PhoneSection, rack: RackSection | None) -> Phone:
    kind = PHONE_KINDS[section.virtual] if section.virtual is not None else None
    soc = SOCS.get(kind.soc if kind else section.soc or "")
    adb = section.adb or (rack.adb if rack and kind is None else None)
    return Phone(
        section.name,
        section.serial,
        kind,
        soc,
        rack=section.rack or "",
        adb=(adb.host, adb.port) if adb else None,
        labels=tuple(dict.fromkeys((*section.labels, *(rack.labels if rack else ())))),
        capabilities=section.capabilities,
        priority=section.priority,
        limits=_limits(section.limits, rack.limits if rack else LimitsSection()),
        power_cycle=section.power_cycle,
        faults=tuple(fault.spec() for fault in section.faults),
    )
