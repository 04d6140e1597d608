"""Who a phone is, by what it says of itself, and whether that is what devices.yaml says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from harness.errors import ConfigError, FailureClass, HarnessError, InfraError
from harness.farm.connect import AdbServer, PhoneLink
from harness.farm.shell import AdbFailure
from harness.inventory import Inventory, Phone
from harness.soc import Soc, recognise

_MARK = "--htpfarm--"
_BOOT_ID = "cat /proc/sys/kernel/random/boot_id 2>/dev/null || getprop ro.boottime.init"
READY_SECONDS = 60.0


class RackPhoneAddress(Protocol):
    """What is needed of a running virtual phone (`harness.rack.manage.RackPhone`)."""

    @property
    def name(self) -> str: ...
    @property
    def serial(self) -> str: ...


class RackAddress(Protocol):
    """What is needed of a running virtual rack (`harness.rack.manage.RackState`)."""

    @property
    def adb_host(self) -> str: ...
    @property
    def adb_port(self) -> int: ...
    @property
    def phones(self) -> tuple[RackPhoneAddress, ...]: ...


@dataclass(frozen=True)
class PhoneIdentity:
    """A phone by its own account.

    Attributes:
        serial: as adb calls it.
        model: `ro.product.model`.
        device: `ro.product.device`.
        soc: its chipset; None if it cannot run HTP cells.
        label: what people call it.
        reason: why it was taken for that chipset, or why it is refused.
        boot_id: differs after each boot.
        abi: `ro.product.cpu.abi`.
        virtual: whether it is one of the harness's own.
        fingerprint: `ro.build.fingerprint`: the very build of its system, for records.
    """

    serial: str
    model: str
    device: str
    soc: Soc | None
    label: str
    reason: str
    boot_id: str
    abi: str
    virtual: bool
    fingerprint: str


@dataclass(frozen=True)
class AttachedPhone:
    """A phone of devices.yaml that answers and is what the file says."""

    phone: Phone
    link: PhoneLink
    identity: PhoneIdentity


@dataclass(frozen=True)
class Survey:
    """All phones of a rack: those that can be used, and for each other one why not; both in the file's order."""

    attached: tuple[AttachedPhone, ...]
    refused: tuple[tuple[Phone, HarnessError], ...]

    def check(self, where: str) -> None:
        """Refuses a rack that cannot be used; `where` names it.

        Raises:
            ConfigError: a phone is not what the file says.
            InfraError: no phone answers.
        """
        for _, error in self.refused:
            if error.failure_class is FailureClass.CONFIG:
                raise error
        if not self.attached:
            raise InfraError(
                "no phone of the rack answers",
                where=where,
                remedy="see `htpfarm devices`",
                evidence="\n".join(f"{phone.name}: {error.what}" for phone, error in self.refused),
            )


def parse_getprop(text: str) -> dict[str, str]:
    """`[name]: [value]` lines to a dict; a value may run over several lines."""
    return dict(re.findall(r"^\[([^\]\n]+)\]: \[(.*?)\]\r?$", text, re.M | re.S))


def boot_id(link: PhoneLink) -> str:
    """The id of the phone's present boot: the kernel's, else the nanosecond at which init started.

    Raises:
        AdbFailure: the phone does not say.
    """
    return _checked_boot_id(link, link.must(_BOOT_ID).stdout)


def identify(link: PhoneLink) -> PhoneIdentity:
    """Asks the phone who it is.

    Raises:
        AdbFailure: it does not answer.
    """
    said, _, boot = link.must(f"getprop && echo {_MARK} && {{ {_BOOT_ID}; }}").stdout.partition(f"{_MARK}\n")
    return _identity(link.serial, parse_getprop(said), _checked_boot_id(link, boot))


def _checked_boot_id(link: PhoneLink, said: str) -> str:
    if not (text := said.strip()):
        raise AdbFailure("the phone does not tell its boot id", serial=link.serial, command=_BOOT_ID)
    return text


def _identity(serial: str, props: Mapping[str, str], boot: str) -> PhoneIdentity:
    found = recognise(props)
    return PhoneIdentity(
        serial=serial,
        model=props.get("ro.product.model", ""),
        device=props.get("ro.product.device", ""),
        soc=found.soc,
        label=found.label,
        reason=found.reason,
        boot_id=boot,
        abi=props.get("ro.product.cpu.abi", ""),
        virtual=props.get("ro.htpfarm.virtual") == "1",
        fingerprint=props.get("ro.build.fingerprint", ""),
    )


def link_of(inventory: Inventory, phone: Phone, rack: RackAddress | None) -> PhoneLink:
    """The way to a phone: a virtual one's through the rack that runs it, a real one's through the adb server of
    the phone, its rack or the file.

    Raises:
        InfraError: the virtual phone does not run.
    """
    if phone.serial is not None:
        host, port = phone.adb or (inventory.adb_host, inventory.adb_port)
        return AdbServer(host, port).link(phone.serial)
    for running in rack.phones if rack else ():
        if running.name == phone.name:
            assert rack is not None
            return AdbServer(rack.adb_host, rack.adb_port).link(running.serial)
    raise InfraError(
        "this virtual phone is not running", where=f"{inventory.path}: {phone.name}", remedy="run `htpfarm rack up`"
    )


def attach_one(inventory: Inventory, phone: Phone, rack: RackAddress | None) -> AttachedPhone:
    """Finds one phone and checks it against devices.yaml. One without an HTP is attached too, with no `soc`.

    Raises:
        ConfigError: it has another chipset than the file says.
        InfraError: it cannot be reached.
    """
    link = link_of(inventory, phone, rack)
    link.wait_ready(READY_SECONDS if phone.virtual else 0.0)
    identity = identify(link)
    _check_label(inventory, phone, identity)
    return AttachedPhone(phone, link, identity)


def _check_label(inventory: Inventory, phone: Phone, identity: PhoneIdentity) -> None:
    if phone.soc is None and phone.virtual is None:
        return  # the file leaves it to the phone
    if identity.soc == phone.soc:  # None on both sides: a virtual phone of a kind without an HTP
        return
    if phone.virtual:
        remedy = "another rack runs under this name: `htpfarm rack down`, then up again"
    elif identity.soc:
        remedy = f"write `soc: {identity.soc.name}`, or remove the key"
    else:
        remedy = "this phone cannot run HTP cells: remove it, or correct its serial"
    said = phone.soc.name if phone.soc else "no HTP"
    raise ConfigError(
        f"the file says {said}, but the phone says: {identity.reason}",
        where=f"{inventory.path}: phones: {phone.name}: soc",
        remedy=remedy,
        evidence=f"serial {identity.serial}, ro.product.model {identity.model}, ro.product.device {identity.device}",
    )


def survey(inventory: Inventory, rack: RackAddress | None = None) -> Survey:
    """Looks for every phone of devices.yaml; none is missed because another one fails."""
    attached: list[AttachedPhone] = []
    refused: list[tuple[Phone, HarnessError]] = []
    for phone in inventory.phones:
        try:
            attached.append(attach_one(inventory, phone, rack))
        except HarnessError as error:
            refused.append((phone, error))
    return Survey(tuple(attached), tuple(refused))


def attach(inventory: Inventory, rack: RackAddress | None = None) -> tuple[AttachedPhone, ...]:
    """All phones of devices.yaml, in its order.

    Raises:
        ConfigError: a phone is not what the file says.
        InfraError: a phone cannot be reached.
    """
    return tuple(attach_one(inventory, phone, rack) for phone in inventory.phones)
