"""Starting, finding and ending a rack of virtual phones and the adb server that belongs to it.

One rack lives in one folder (`state_dir`). A lock file there makes `up` and `down` safe to call from several processes
at once; `rack.json` names the processes with their start times, and only those are ever signalled.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from harness.adb_program import adb_path
from harness.errors import ConfigError, InfraError
from harness.files import write_atomically
from harness.paths import REPOSITORY, cache_root
from harness.rack.adb_server import adb_argv, connect, reconnect, server_env, wait_listening
from harness.rack.image import Kind, PhoneSpec, write_runner
from harness.rack.namespace import namespace_support
from harness.rack.processes import ProcessRef, alive, end, spawn, tail
from harness.rack.record import (
    RackPhone,
    RackState,
    Record,
    live_record,
    read_record,
    record_file,
    state_of,
    write_record,
)
from harness.rack.server import ServerConfig, phone_root, ready_file

__all__ = [
    "Kind",
    "RackPhone",
    "RackState",
    "adb_argv",
    "default_state_dir",
    "down",
    "find",
    "is_anothers",
    "mend",
    "namespace_support",
    "status",
    "up",
]

RACK_VARIABLE = "HTPFARM_RACK"
"""Environment variable: the folder of a rack that several users share."""
START_SECONDS = 300.0
LOCK_SECONDS = 600.0
DEFAULT_BOOT_DELAY = 2.0


def default_state_dir() -> Path:
    """Where the rack lies unless told otherwise: the folder that HTPFARM_RACK names, else one in the user's cache."""
    named = os.environ.get(RACK_VARIABLE)
    return Path(named) if named else cache_root() / "rack"


def is_anothers(state_dir: Path | None = None) -> bool:
    """Whether the rack in that folder is another user's: it can be used, but not started, mended or ended."""
    folder = state_dir or default_state_dir()
    return folder.is_dir() and not os.access(folder, os.W_OK)


def find(phones: Sequence[tuple[str, Kind]], *, state_dir: Path | None = None) -> RackState:
    """The rack that runs in that folder, whosever it is, with its phones as adb sees them.

    Args:
        phones: names and what each pretends to be; the rack may have more.
        state_dir: the rack's folder; `default_state_dir()` if None.

    Raises:
        ConfigError: it has other phones.
        InfraError: none runs, or a phone does not become `device` in time.
    """
    folder = (state_dir or default_state_dir()).resolve()
    if (record := live_record(folder)) is None:
        raise InfraError("no rack runs here", where=str(folder), remedy="let its owner run `htpfarm rack up`")
    return _reuse(record, _same_phones(folder, record, [PhoneSpec.of(name, kind) for name, kind in phones]))


def up(
    phones: Sequence[tuple[str, Kind]],
    *,
    state_dir: Path | None = None,
    boot_delay: float = DEFAULT_BOOT_DELAY,
    runner_argv: Sequence[str] | None = None,
    runner_env: Mapping[str, str] | None = None,
    expose: Sequence[Path] = (),
    plain: bool | None = None,
) -> RackState:
    """Starts the rack, or finds the one that already runs with these phones (or more).

    Args:
        phones: names and what each pretends to be.
        state_dir: the rack's folder; `default_state_dir()` if None.
        boot_delay: seconds a reboot takes.
        runner_argv: what `/system/bin/htpfarm-runner` on the phones runs; the harness's own runner if None.
        runner_env: its environment; renewed on a running rack, too.
        expose: host paths that must be readable on the phones although they lie under /tmp or another folder that
            phones have for themselves.
        plain: True for no namespaces, False to insist on them, None to use them where they work.

    Raises:
        ConfigError: a rack with other phones runs in that folder, or names repeat or are no names.
        InfraError: a process did not start, or a phone did not become `device` in time.
    """
    folder = (state_dir or default_state_dir()).resolve()
    specs = [PhoneSpec.of(name, kind) for name, kind in phones]
    _check_names([spec.name for spec in specs])
    argv = list(runner_argv) if runner_argv is not None else [sys.executable, "-m", "harness.runtime"]
    env = {"PYTHONPATH": str(REPOSITORY), **(runner_env or {})}
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _mend(folder)
        if (record := live_record(folder)) is not None:
            for spec in _same_phones(folder, record, specs):
                write_runner(phone_root(folder, spec.name), spec, argv, env)
            try:
                return _reuse(record, specs)
            except InfraError:
                if live_record(folder) is not None:
                    raise  # otherwise it was just dying, and is replaced
        _clean(folder)
        config = ServerConfig(
            state_dir=str(folder),
            phones=specs,
            ports=_last_ports(folder),
            boot_delay=boot_delay,
            runner_argv=argv,
            runner_env=env,
            expose=_exposed(expose),
            plain=_plain(plain),
        )
        try:
            return _start(folder, config)
        except BaseException:
            _clean(folder)
            raise


def mend(state_dir: Path | None = None) -> bool:
    """Starts a rack's adb server again, on its port, if that has died while the phones live; connects them.

    Returns whether it had to. Does not wait for the phones. Another user's rack is that user's to mend.

    Raises:
        InfraError: the server did not start.
    """
    folder = (state_dir or default_state_dir()).resolve()
    if not folder.is_dir() or is_anothers(folder):
        return False
    with _locked(folder):
        return _mend(folder)


def _mend(folder: Path) -> bool:
    record = read_record(folder)
    lives = record is not None and record.server is not None and record.phones and alive(record.server)
    if record is None or not lives or (record.adb and alive(record.adb)):
        return False
    adb = spawn([adb_path(), "-P", str(record.adb_port), "server", "nodaemon"], server_env(folder), folder / "adb.log")
    record = replace(record, adb=adb)
    write_record(folder, record)
    state = state_of(record)
    wait_listening(state, adb, folder / "adb.log")
    reconnect(state, [phone.serial for phone in record.phones])
    return True


def status(state_dir: Path | None = None) -> RackState | None:
    """The rack that runs in that folder, or None."""
    folder = (state_dir or default_state_dir()).resolve()
    record = live_record(folder)
    return state_of(record) if record else None


def down(state_dir: Path | None = None) -> bool:
    """Ends the rack in that folder, its phones' processes and its adb server. Returns whether there was anything to
    end.
    """
    folder = (state_dir or default_state_dir()).resolve()
    if not folder.is_dir():
        return False
    with _locked(folder):
        return _clean(folder)


def _check_names(names: list[str]) -> None:
    for name in names:
        if not name or not name.replace("_", "").replace("-", "").isalnum() or not name.isascii():
            raise ConfigError(f"{name!r} cannot name a phone", remedy="use letters, digits, - and _")
    if len(set(names)) != len(names):
        raise ConfigError("two phones have the same name", evidence=", ".join(names))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / "rack.lock", timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except PermissionError:
        raise InfraError("this rack is another user's", where=str(folder), remedy="ask its owner") from None
    except Timeout:
        raise InfraError(
            f"another process has held the rack's lock for {LOCK_SECONDS:.0f} s", where=str(folder / "rack.lock")
        ) from None
    try:
        yield
    finally:
        lock.release()


def _plain(wish: bool | None) -> bool:
    if wish:
        return True
    ok, why = namespace_support()
    if not ok and wish is False:
        raise InfraError("virtual phones cannot have namespaces here", remedy="allow user namespaces", evidence=why)
    return not ok


def _exposed(more: Sequence[Path]) -> list[str]:
    """Host paths phones must be able to read: the interpreter, this checkout, the libraries in the user's cache."""
    return list(
        dict.fromkeys([sys.prefix, sys.base_prefix, str(REPOSITORY), str(cache_root().resolve()), *map(str, more)])
    )


def _clean(folder: Path) -> bool:
    """Ends what the record names and is still the same process. The ports stay on file for the next `up`."""
    record = read_record(folder)
    ended = False
    for ref in (record.adb, record.server) if record else ():
        if ref and alive(ref):
            end(ref)
            ended = True
    record_file(folder).unlink(missing_ok=True)
    ready_file(folder).unlink(missing_ok=True)
    return ended


def _last_ports(folder: Path) -> dict[str, int]:
    try:
        return {str(name): int(port) for name, port in json.loads((folder / "ports.json").read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _same_phones(folder: Path, record: Record, specs: Sequence[PhoneSpec]) -> Sequence[PhoneSpec]:
    """`specs`, if the running rack has them all. Raises ConfigError if not."""
    running = {phone.name: phone.kind for phone in record.phones}
    wrong = [spec.name for spec in specs if running.get(spec.name) != spec.kind]
    if wrong:
        raise ConfigError(
            f"a rack with other phones is running; it has no {', '.join(wrong)} of the kind asked for",
            where=str(folder),
            remedy="`htpfarm rack down` first",
            evidence=", ".join(f"{name} ({kind})" for name, kind in running.items()),
        )
    return specs


def _reuse(record: Record, specs: Sequence[PhoneSpec]) -> RackState:
    state = state_of(record)
    connect(state, [ref for ref in (record.server, record.adb) if ref])
    running = {phone.name: phone for phone in record.phones}
    return replace(state, phones=tuple(running[spec.name] for spec in specs))


def _start(folder: Path, config: ServerConfig) -> RackState:
    config_file = folder / "config.json"
    write_atomically(config_file, config.to_json())
    ready_file(folder).unlink(missing_ok=True)
    ports = config.ports
    record = Record(adb_port=_free_port(ports.get("adb", 0)))
    server = spawn(
        [sys.executable, "-m", "harness.rack.server", "--config", str(config_file)],
        {**os.environ, "PYTHONPATH": str(REPOSITORY)},
        folder / "server.log",
    )
    record = replace(record, server=server)
    write_record(folder, record)
    adb = spawn(
        [adb_path(), "-P", str(record.adb_port), "server", "nodaemon"],
        server_env(folder),
        folder / "adb.log",
    )
    record = replace(record, adb=adb)
    write_record(folder, record)
    phones = _wait_ready(folder, server, config)
    record = replace(record, phones=phones)
    state = state_of(record)
    wait_listening(state, adb, folder / "adb.log")
    connect(state, [server, adb])
    write_record(folder, record)
    kept = {**ports, **{phone.name: int(phone.serial.rpartition(":")[2]) for phone in phones}, "adb": record.adb_port}
    write_atomically(folder / "ports.json", json.dumps(kept))
    return state


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as one, suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", port))
            one.listen(1)
            return int(one.getsockname()[1])
    raise InfraError("no free port on 127.0.0.1")


def _wait_ready(folder: Path, server: ProcessRef, config: ServerConfig) -> tuple[RackPhone, ...]:
    deadline = time.monotonic() + START_SECONDS
    while not ready_file(folder).exists():
        if not alive(server) or time.monotonic() > deadline:
            raise InfraError(
                "the rack's process died" if not alive(server) else f"the rack was not up after {START_SECONDS:.0f} s",
                where=str(folder / "server.log"),
                evidence=tail(folder / "server.log"),
            )
        time.sleep(0.02)
    data = json.loads(ready_file(folder).read_text())
    kinds = {spec.name: spec.kind for spec in config.phones}
    return tuple(
        RackPhone(p["name"], f"127.0.0.1:{p['port']}", kinds[p["name"]], p["root"], p["fallback"])
        for p in data["phones"]
    )
