"""A virtual phone's body: battery, heat and free storage, as plain files that can change while it runs.

The files are those a phone has (`/sys/class/power_supply`, `/sys/class/thermal`), so `dumpsys` and whoever reads them
directly agree.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from harness.files import write_atomically

STATE = "system/etc/htpfarm"
"""What a phone keeps in no file of its own."""
_BATTERY = "sys/class/power_supply/battery"
_USB = "sys/class/power_supply/usb/online"
_THERMAL = "sys/class/thermal"
COOL: Mapping[str, float] = MappingProxyType(
    {
        "cpu-0-0": 34.0,
        "cpu-1-0": 35.0,
        "gpuss-0": 33.0,
        "nsphvx-0": 34.0,
        "nsphmx-0": 34.0,
        "skin-therm": 30.0,
        "battery": 29.0,
    }
)
"""Thermal zones of a phone at rest, degrees Celsius. `nsphvx` and `nsphmx` are the HTP's vector and matrix units."""


@dataclass(frozen=True)
class PhoneState:
    """What can be measured of the phone.

    Attributes:
        battery_level: percent.
        battery_celsius: the battery's own sensor.
        battery_status: `Charging`, `Discharging`, `Full` or `Not charging`.
        usb_powered: whether it hangs on a charger.
        thermal_status: Android's throttling status, 0 (none) to 6 (shutdown).
        zones: thermal zone to degrees Celsius, in the order of their numbers.
        data_free_kib: what `df` shows for /data; None for the host's own figure.
    """

    battery_level: int = 100
    battery_celsius: float = 29.0
    battery_status: str = "Full"
    usb_powered: bool = True
    thermal_status: int = 0
    zones: Mapping[str, float] = field(default_factory=lambda: COOL)
    data_free_kib: int | None = None


def write_state(root: Path, state: PhoneState) -> None:
    """Writes the state into the tree of the phone at `root`; readers see each file whole."""
    battery = {
        "capacity": str(state.battery_level),
        "temp": str(round(state.battery_celsius * 10)),
        "status": state.battery_status,
        "voltage_now": str(3_600_000 + 8_000 * state.battery_level),
        "charge_counter": str(40_000 * state.battery_level),
        "present": "1",
    }
    (root / _BATTERY).mkdir(parents=True, exist_ok=True)
    for name, text in battery.items():
        write_atomically(root / _BATTERY / name, text + "\n")
    (root / _USB).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(root / _USB, f"{int(state.usb_powered)}\n")
    for number, (name, celsius) in enumerate(state.zones.items()):
        zone = root / _THERMAL / f"thermal_zone{number}"
        zone.mkdir(parents=True, exist_ok=True)
        write_atomically(zone / "type", name + "\n")
        write_atomically(zone / "temp", f"{round(celsius * 1000)}\n")
    for old in (root / _THERMAL).glob("thermal_zone*"):
        if int(old.name.removeprefix("thermal_zone")) >= len(state.zones):
            shutil.rmtree(old)
    (root / STATE).mkdir(parents=True, exist_ok=True)
    write_atomically(root / STATE / "thermal_status", f"{state.thermal_status}\n")
    if state.data_free_kib is None:
        (root / STATE / "data_free_kib").unlink(missing_ok=True)
    else:
        write_atomically(root / STATE / "data_free_kib", f"{state.data_free_kib}\n")


def read_state(root: Path) -> PhoneState:
    """The state the files say, as `write_state` would write it."""

    def text(path: str) -> str:
        return (root / path).read_text().strip()

    folders = sorted(
        (root / _THERMAL).glob("thermal_zone*"), key=lambda zone: int(zone.name.removeprefix("thermal_zone"))
    )
    free = root / STATE / "data_free_kib"
    return PhoneState(
        battery_level=int(text(f"{_BATTERY}/capacity")),
        battery_celsius=int(text(f"{_BATTERY}/temp")) / 10,
        battery_status=text(f"{_BATTERY}/status"),
        usb_powered=text(_USB) == "1",
        thermal_status=int(text(f"{STATE}/thermal_status")),
        zones={(z / "type").read_text().strip(): int((z / "temp").read_text()) / 1000 for z in folders},
        data_free_kib=int(free.read_text()) if free.exists() else None,
    )
