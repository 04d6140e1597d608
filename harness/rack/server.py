"""The rack's process: every virtual phone on one event loop.

    python -m harness.rack.server --config FILE

Started by `manage.up`; ends on SIGTERM, and its phones' processes end with it, however it ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import InfraError
from harness.files import write_atomically
from harness.rack.image import PhoneSpec, lay_out, write_runner
from harness.rack.namespace import NamespaceView, PlainView, View
from harness.rack.phone import VirtualPhone

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerConfig:
    """What the rack's process is told; written by `manage`, as JSON.

    Attributes:
        state_dir: where the phones' trees and the files of the rack lie.
        phones: which phones, in order.
        ports: phone name to the port it had last.
        boot_delay: seconds a reboot takes.
        runner_argv: what `/system/bin/htpfarm-runner` runs.
        runner_env: with which environment.
        expose: host paths that must be readable on the phones.
        plain: never use namespaces.
    """

    state_dir: str
    phones: list[PhoneSpec]
    ports: dict[str, int]
    boot_delay: float
    runner_argv: list[str]
    runner_env: dict[str, str]
    expose: list[str]
    plain: bool

    def to_json(self) -> str:
        """As the file holds it."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> ServerConfig:
        """The reverse of `to_json`."""
        data: dict[str, Any] = json.loads(text)
        data["phones"] = [PhoneSpec(**phone) for phone in data["phones"]]
        return cls(**data)


def phone_root(state_dir: Path, name: str) -> Path:
    """Where the tree of the phone called `name` lies."""
    return state_dir / "phones" / name


def ready_file(state_dir: Path) -> Path:
    """What the process writes once all phones are up: its pid and, per phone, port, tree and whether it is a plain
    fallback.
    """
    return state_dir / "server.json"


def _view(config: ServerConfig, root: Path) -> View:
    return PlainView(root) if config.plain else NamespaceView(root, config.expose)


async def _power_on(config: ServerConfig, spec: PhoneSpec) -> VirtualPhone:
    root = phone_root(Path(config.state_dir), spec.name)
    lay_out(root, spec)
    write_runner(root, spec, config.runner_argv, config.runner_env)
    phone = VirtualPhone(spec, root, _view(config, root), boot_delay=config.boot_delay)
    await phone.power_on(config.ports.get(spec.name, 0))
    return phone


async def serve(config: ServerConfig) -> None:
    """Runs the rack until SIGTERM or SIGINT. Raises InfraError if a phone cannot be started."""
    stop = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, stop.set)
    phones: list[VirtualPhone] = []
    try:
        for spec in config.phones:
            phones.append(await _power_on(config, spec))
        write_atomically(ready_file(Path(config.state_dir)), json.dumps(_ready(phones), indent=2))
        await stop.wait()
    finally:
        await asyncio.gather(*(phone.power_off() for phone in phones), return_exceptions=True)


def _ready(phones: list[VirtualPhone]) -> dict[str, object]:
    listed = [{"name": p.spec.name, "port": p.port, "root": str(p.root), "fallback": p.view.fallback} for p in phones]
    return {"pid": os.getpid(), "phones": listed}


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the process; 3 if the rack could not be started."""
    parser = argparse.ArgumentParser(prog="python -m harness.rack.server")
    parser.add_argument("--config", type=Path, required=True)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if sys.version_info < (3, 12):
        # The default there starts a thread for every command of a phone.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    try:
        asyncio.run(serve(ServerConfig.from_json(options.config.read_text())))
    except (InfraError, OSError) as error:
        print(f"the rack could not be started: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
