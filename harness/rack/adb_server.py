"""The adb server that belongs to a rack: how it is started, and the stock adb's command line against it."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from harness.adb_program import adb_path
from harness.errors import InfraError
from harness.rack.processes import ProcessRef, alive, tail
from harness.rack.record import RackState

ADB_SECONDS = 60.0
CONNECT_SECONDS = 180.0
"""Both end what hangs: it takes parts of a second, beside busy cores many times that."""


def adb_argv(state: RackState, *arguments: str, serial: str = "") -> list[str]:
    """The stock adb's command line against this rack's server."""
    which = ["-s", serial] if serial else []
    return [adb_path(), "-H", state.adb_host, "-P", str(state.adb_port), *which, *arguments]


def server_env(folder: Path) -> dict[str, str]:
    """An adb server that knows nothing but this rack: no USB, no mDNS, no emulators, keys of its own."""
    home = folder / "adb-home"
    (home / ".android").mkdir(parents=True, exist_ok=True)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("ADB_", "ANDROID_"))}
    return {
        **env,
        "HOME": str(home),
        "ANDROID_USER_HOME": str(home / ".android"),
        "ANDROID_ADB_LOG_PATH": str(folder / "adb.log"),
        "ADB_MDNS": "0",
        "ADB_MDNS_AUTO_CONNECT": "0",
        "ADB_MDNS_OPENSCREEN": "0",
        "ADB_USB": "0",
        "ADB_LIBUSB": "0",
        "ADB_EMU": "0",
        # A client of another version would otherwise end this server to start its own.
        "ADB_REJECT_KILL_SERVER": "1",
    }


def wait_listening(state: RackState, adb: ProcessRef, log: Path) -> None:
    """Waits until the server answers on its port. Raises InfraError if it dies or takes too long."""
    deadline = time.monotonic() + ADB_SECONDS
    while alive(adb) and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((state.adb_host, state.adb_port), timeout=1):
            return
        time.sleep(0.02)
    raise InfraError("the rack's adb server did not start", where=str(log), evidence=tail(log))


def _adb(state: RackState, *arguments: str) -> str:
    try:
        done = subprocess.run(
            adb_argv(state, *arguments), capture_output=True, text=True, timeout=ADB_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise InfraError(f"adb {' '.join(arguments)} took over {ADB_SECONDS:.0f} s") from None
    return done.stdout + done.stderr


def reconnect(state: RackState, serials: Sequence[str]) -> None:
    """Tells the server of phones once, whatever it knows of them; does not wait. Raises InfraError if it hangs."""
    for serial in serials:
        _adb(state, "disconnect", serial)
        _adb(state, "connect", serial)


def connect(state: RackState, needed: Sequence[ProcessRef]) -> None:
    """Makes every phone `device`: connects those that are not, and waits.

    Raises InfraError if that takes too long, or at once if one of the `needed` processes dies.
    """
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        states = dict(line.split("\t")[:2] for line in _adb(state, "devices").splitlines() if "\t" in line)
        missing = [phone.serial for phone in state.phones if states.get(phone.serial) != "device"]
        if not missing:
            return
        dead = [ref.pid for ref in needed if not alive(ref)]
        if dead or time.monotonic() > deadline:
            why = f"process {dead[0]} of the rack died" if dead else "virtual phones did not connect"
            raise InfraError(why, where=", ".join(missing), evidence=str(states))
        for serial in missing:
            if serial in states:  # listed, but offline: adb would not connect it anew
                _adb(state, "disconnect", serial)
            _adb(state, "connect", serial)
        time.sleep(0.05)
