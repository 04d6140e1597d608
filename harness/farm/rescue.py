"""The ladder of recovery: what brings a phone back that does not answer, from the mildest to the rudest."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from harness.adb_program import adb_path
from harness.errors import InfraError
from harness.farm.connect import PhoneLink
from harness.farm.vitals import read_vitals
from harness.inventory import Phone

REBOOTS = 3
"""More would not help, and wears a phone out."""


@dataclass(frozen=True)
class Patience:
    """How long each step may take to help, in seconds.

    Attributes:
        settle_s: after adb was told to connect anew.
        boot_s: after a reboot.
        power_s: for the power-cycle command itself.
    """

    settle_s: float = 10.0
    boot_s: float = 180.0
    power_s: float = 60.0


@dataclass(frozen=True)
class Step:
    """One rung that was tried: its name, whether the phone answered and had booted after it, and why not."""

    name: str
    helped: bool
    why: str = ""


@dataclass(frozen=True)
class Rescue:
    """The ladder for one phone.

    Attributes:
        phone: of devices.yaml; its `power_cycle` command is the last rung.
        link: the way to it.
        patience: time limits.
        mend_server: starts an adb server that is ours and dead; returns whether it had to. None: there is none of ours.
    """

    phone: Phone
    link: PhoneLink
    patience: Patience = Patience()
    mend_server: Callable[[], bool] | None = None

    def run(self) -> tuple[Step, ...]:
        """Climbs until the phone answers and has booted. The last step says whether it helped."""
        taken: list[Step] = []
        for name, act, seconds in self._rungs():
            try:
                act()
                self._wait_well(seconds)
            except (InfraError, OSError, subprocess.SubprocessError) as error:
                taken.append(Step(name, False, str(error).splitlines()[0]))
                continue
            taken.append(Step(name, True))
            break
        return tuple(taken)

    def _rungs(self) -> Iterator[tuple[str, Callable[[], None], float]]:
        if self.mend_server is not None:
            yield "adb server", self._mend, 0.0
        yield "adb reconnect", self._reconnect, self.patience.settle_s
        yield "transport reset", self._reset_transport, self.patience.settle_s
        for number in range(1, REBOOTS + 1):
            yield f"reboot {number}", self._reboot, self.patience.boot_s
        if self.phone.power_cycle:
            yield "power cycle", self._power_cycle, self.patience.boot_s

    def _wait_well(self, seconds: float) -> None:
        """Raises InfraError if the phone does not answer, booted, within `seconds`; asks at least once."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if read_vitals(self.link).booted:
                    return
                raise InfraError("Android has not finished booting", where=self.link.serial)
            except InfraError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(min(0.5, max(0.05, deadline - time.monotonic())))
            self._connect_again()

    def _mend(self) -> None:
        assert self.mend_server is not None
        self.mend_server()

    def _connect_again(self) -> None:
        with suppress(InfraError):
            if ":" in self.link.serial and self.link.state() != "device":
                self._adb("disconnect", self.link.serial)
                self._adb("connect", self.link.serial)

    def _reconnect(self) -> None:
        """`adb reconnect` for USB; over TCP adb knows the phone by its address, and is told it again."""
        if ":" in self.link.serial:
            self._adb("connect", self.link.serial)
        else:
            self._adb("-s", self.link.serial, "reconnect")

    def _reset_transport(self) -> None:
        if ":" in self.link.serial:
            self._adb("disconnect", self.link.serial)
            self._adb("connect", self.link.serial)
        else:
            self._adb("-s", self.link.serial, "reconnect", "device")

    def _reboot(self) -> None:
        with suppress(InfraError):  # what hangs its shell may still take the reboot service
            before = read_vitals(self.link).boot_id
            self._adb("-s", self.link.serial, "reboot")
            self._wait_boot(before)
            return
        self._adb("-s", self.link.serial, "reboot")

    def _wait_boot(self, before: str) -> None:
        """Until it is gone or another boot: or the old one would be taken for the new."""
        deadline = time.monotonic() + self.patience.settle_s
        while time.monotonic() < deadline:
            try:
                if read_vitals(self.link).boot_id != before:
                    return
            except InfraError:
                return
            time.sleep(0.2)

    def _power_cycle(self) -> None:
        subprocess.run(self.phone.power_cycle, timeout=self.patience.power_s, capture_output=True, check=True)

    def _adb(self, *arguments: str) -> None:
        """The adb program against the phone's server; it is never asked to start one."""
        self.link.server.client()
        env = {key: value for key, value in os.environ.items() if not key.startswith(("ADB_", "ANDROID_"))}
        server = self.link.server
        argv = [adb_path(), "-H", server.host, "-P", str(server.port), *arguments]
        subprocess.run(argv, capture_output=True, timeout=max(5.0, self.patience.settle_s), check=False, env=env)
