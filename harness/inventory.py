"""devices.yaml: the phones of the rack, as `Inventory`.

A phone is `virtual` (a kind from `soc.PHONE_KINDS`, run by the harness itself) or has a `serial` (a real one, found
through the adb server). Reading the file touches no phone: a real phone without `soc` is recognised later, by its
properties.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.config import Document, Problem, Section, read_document
from harness.soc import PHONE_KINDS, SOCS, PhoneKind, Soc, suggestion


@dataclass(frozen=True)
class Phone:
    """One phone of the rack.

    Attributes:
        name: what the rack calls it, as `s23`; unique.
        serial: what `adb devices` prints; None for a virtual phone, which gets one when its rack starts.
        virtual: what a virtual phone pretends to be; None for a real one.
        soc: its chipset; None until probed, and for a phone without an HTP.
    """

    name: str
    serial: str | None
    virtual: PhoneKind | None
    soc: Soc | None


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


class PhoneSection(Section):
    """One item of `phones`."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    virtual: str | None = None
    # No blanks and no leading dash: a serial becomes an argument of adb -s.
    serial: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:\[\]()%-]*$")
    soc: str | None = None

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
    return Inventory(path, file.adb.host, file.adb.port, tuple(_phone(section) for section in file.phones))


def _problems(document: Document[InventoryFile]) -> list[Problem]:
    problems = []
    names: dict[str, str] = {}
    serials: dict[str, str] = {}
    for index, phone in enumerate(document.value.phones):
        here = ("phones", index)
        if phone.name in names:
            problems.append(Problem((*here, "name"), f"{phone.name} is already the name of {names[phone.name]}"))
        names.setdefault(phone.name, f"phones[{index}]")
        if phone.serial is not None:
            if phone.serial in serials:
                message = f"{phone.serial} is already the serial of {serials[phone.serial]}"
                problems.append(Problem((*here, "serial"), message))
            serials.setdefault(phone.serial, f"phones[{index}]")
        if phone.virtual is not None and phone.virtual not in PHONE_KINDS:
            message = f"unknown kind of phone {phone.virtual!r}; {suggestion(phone.virtual, PHONE_KINDS)}"
            problems.append(Problem((*here, "virtual"), message))
        if phone.soc is not None:
            problems.extend(Problem((*here, "soc"), message) for message in _soc_problem(phone))
    return problems


def _soc_problem(phone: PhoneSection) -> list[str]:
    if phone.virtual is not None:
        return ["a virtual phone has the SoC of its kind; remove this key"]
    if phone.soc not in SOCS:
        return [f"unknown SoC {phone.soc!r}; {suggestion(phone.soc or '', SOCS)}"]
    return []


def _phone(section: PhoneSection) -> Phone:
    kind = PHONE_KINDS[section.virtual] if section.virtual is not None else None
    soc = SOCS.get(kind.soc if kind else section.soc or "")
    return Phone(section.name, section.serial, kind, soc)
