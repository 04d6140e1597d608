"""What can be measured of a phone: boot, battery, heat, storage, clocks; and what of it is not as it must be.

Sources: `dumpsys battery`, `dumpsys thermalservice` (Android's ThermalManagerService; statuses as in
`android.os.PowerManager.THERMAL_STATUS_*`), `df`, cpufreq's sysfs. One shell command, since each costs a round trip.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from harness.errors import InfraError
from harness.farm.connect import COMMAND_SECONDS, PhoneLink
from harness.inventory import Limits

VITALS_SECONDS = min(20.0, COMMAND_SECONDS)
THERMAL_STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
_MARK = "--htpfarm--"
_COMMAND = f"""
getprop sys.boot_completed; getprop sys.user.0.ce_available; cat /proc/sys/kernel/random/boot_id
echo {_MARK}; dumpsys battery
echo {_MARK}; dumpsys thermalservice
echo {_MARK}; df -k /data/local/tmp
echo {_MARK}; for p in /sys/devices/system/cpu/cpufreq/policy*; do
[ -r $p/scaling_governor ] && echo "${{p##*/}} $(cat $p/scaling_governor) $(cat $p/scaling_cur_freq 2>/dev/null)"; done
true
"""
_TEMPERATURE = re.compile(r"Temperature\{mValue=(-?[0-9.]+), mType=(-?\d+), mName=([^,}]+)")
_HEAT_TYPES = frozenset({2, 3, 9})
"""Android's temperature types that say whether a phone will throttle: battery, skin, NPU. A CPU is hot for moments."""


@dataclass(frozen=True)
class Vitals:
    """A phone at one moment.

    Attributes:
        boot_id: the kernel's, empty if it may not be read.
        booted: whether Android has finished booting.
        unlocked: whether the user has unlocked the phone since it booted; None if it does not say.
        battery_percent: charge; None if unknown.
        celsius: the hottest of battery, skin and HTP; None if it does not say.
        zones: every temperature it names, degrees Celsius.
        thermal_status: 0 (none) to 6 (shutdown).
        storage_mb: free on /data; None if `df` cannot be read.
        clocks: cpufreq policy → governor and kHz.
    """

    boot_id: str = ""
    booted: bool = True
    unlocked: bool | None = None
    battery_percent: int | None = None
    celsius: float | None = None
    zones: Mapping[str, float] = field(default_factory=dict)
    thermal_status: int = 0
    storage_mb: int | None = None
    clocks: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def record(self) -> dict[str, object]:
        """For a sample's record: what may explain its speed."""
        return {
            "celsius": self.celsius,
            "thermal_status": self.thermal_status,
            "battery_percent": self.battery_percent,
            "zones": dict(self.zones),
            "clocks": {name: list(clock) for name, clock in self.clocks.items()},
        }


@dataclass(frozen=True)
class Ailment:
    """One thing that is not as it must be.

    Attributes:
        kind: `infra` (the phone must be recovered), `env` (it must wait: charge, be freed), `heat` (it must cool).
        text: what is wrong.
        remedy: what a person can do.
    """

    kind: Literal["infra", "env", "heat"]
    text: str
    remedy: str


def read_vitals(link: PhoneLink) -> Vitals:
    """Asks a phone.

    Raises:
        InfraError: it does not answer.
    """
    said = link.must(_COMMAND, timeout_s=VITALS_SECONDS).stdout
    if said.count(_MARK) != 4:
        raise InfraError("the phone does not say how it is", where=link.serial, evidence=said[-500:])
    return parse_vitals(said)


def parse_vitals(said: str) -> Vitals:
    """What the shell command printed. Pure; what is missing is None."""
    props, battery, thermal, df, clocks = (f"\n{part}" for part in said.split(_MARK))
    lines = [*props.strip("\n").split("\n"), "", ""]
    zones: dict[str, float] = {}
    heat: dict[str, float] = {}
    for value, kind, name in _TEMPERATURE.findall(thermal):
        zones[name] = float(value)  # the last: "Current temperatures from HAL" comes after the cached ones
        if int(kind) in _HEAT_TYPES:
            heat[name] = float(value)
    if tenths := _number(r"temperature: (-?\d+)", battery):
        heat.setdefault("battery", tenths / 10)
    free = re.search(r"\s(\d+)\s+\d+%", df)
    return Vitals(
        boot_id=lines[2].strip(),
        booted=lines[0].strip() == "1",
        unlocked={"true": True, "false": False}.get(lines[1].strip()),
        battery_percent=_number(r"\blevel: (\d+)", battery),
        celsius=max(heat.values()) if heat else None,
        zones=zones,
        thermal_status=_number(r"Thermal Status: (\d+)", thermal) or 0,
        storage_mb=int(free.group(1)) // 1024 if free else None,
        clocks={
            words[0]: (words[1], int(words[2]) if len(words) > 2 and words[2].isdigit() else 0)
            for line in clocks.splitlines()
            if len(words := line.split()) >= 2
        },
    )


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else None


def ailments(vitals: Vitals, limits: Limits, *, cooling: bool = False) -> tuple[Ailment, ...]:
    """What is not as it must be. Pure.

    Args:
        vitals: the phone's.
        limits: the phone's.
        cooling: whether it was found too hot before and has not been below `cool_below_c` since.
    """
    found: list[Ailment] = []
    if not vitals.booted:
        found.append(Ailment("infra", "Android has not finished booting", "wait, or look at its screen"))
    if vitals.unlocked is False:
        found.append(Ailment("env", "nobody has unlocked the phone since it booted", "unlock it once, or set no lock"))
    if vitals.battery_percent is not None and vitals.battery_percent < limits.battery_percent:
        text = f"battery at {vitals.battery_percent}%, the limit is {limits.battery_percent}%"
        found.append(Ailment("env", text, "let it charge; check that its USB port gives power"))
    if vitals.storage_mb is not None and vitals.storage_mb < limits.storage_mb:
        text = f"storage full: {vitals.storage_mb} MB free, the limit is {limits.storage_mb} MB"
        found.append(Ailment("env", text, "free storage on the phone"))
    bound = limits.cool_below_c if cooling else limits.hot_above_c
    if vitals.celsius is not None and vitals.celsius > bound:
        text = f"too hot: {vitals.celsius:.1f} degrees, the limit is {bound:g}"
        found.append(Ailment("heat", text, "let it cool; give it air, take its case off"))
    elif throttled(vitals, limits):
        found.append(Ailment("heat", throttle_text(vitals), "let it cool; give it air, take its case off"))
    return tuple(found)


def throttled(vitals: Vitals, limits: Limits) -> bool:
    """Whether a sample that ended like this is void."""
    return vitals.thermal_status > limits.thermal_status


def throttle_text(vitals: Vitals) -> str:
    """In words."""
    status = vitals.thermal_status
    name = THERMAL_STATUS[status] if status < len(THERMAL_STATUS) else "?"
    return f"throttled: Android's thermal status is {status} ({name})"
