"""`htpfarm engine join`: this computer as a host of an engine, with its phones, its memory for compiling, or both."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.build.preflight import available_mb
from harness.conduct.rack_use import RackUse
from harness.conduct.real import check_real
from harness.engine.connection import engine_address, need_distributed, security, tls_folder
from harness.engine.facts import MEMORY, PHONE, own_identity
from harness.engine.host import Here, be, state_of_phones
from harness.errors import ConfigError, InfraError
from harness.farm.identity import AttachedPhone, survey
from harness.inventory import Inventory, load_inventory
from harness.paths import cache_root
from harness.toolchain.environment import find_toolchain

JOIN_LIMIT_S = 60.0


@dataclass(frozen=True)
class Joining:
    """What a host offers, and to whom.

    Attributes:
        address: of the engine.
        rack: its rack file; None: no phones.
        compiles: whether builds come here.
        memory_mb: for them; None: what the machine can give now.
        name: what people call the host.
        host: the address it listens on; None: the one that leads to the engine.
        tls: the folder with the certificates.
    """

    address: str
    rack: Path | None = None
    compiles: bool = False
    memory_mb: float | None = None
    name: str = ""
    host: str | None = None
    tls: Path | None = None


def join(joining: Joining) -> int:
    """Serves until it is interrupted or terminated (0), or the engine is gone (3).

    Raises:
        ConfigError: nothing is offered, or the rack, the toolchain, the address or the certificates are no good.
        InfraError: no phone of the rack answers, or no engine.
    """
    need_distributed()
    if joining.rack is None and not joining.compiles:
        raise ConfigError("this host would offer nothing", where="htpfarm engine join", remedy="give --rack, --compile")
    tls = tls_folder(joining.tls)
    address = engine_address(joining.address, tls)
    own_identity()  # what is wrong with the toolchain is said now
    inventory = load_inventory(joining.rack) if joining.rack else None
    rack: RackUse | None = None
    if inventory is not None:
        check_real(inventory.phones)
        rack = RackUse(inventory, find_toolchain())
    try:
        here = Here(joining.name or socket.gethostname())
        if inventory is not None:
            _find_phones(here, inventory, rack)
        if joining.compiles:
            here.memory_mb = round(joining.memory_mb if joining.memory_mb is not None else available_mb())
        be(here)
        by_signal = asyncio.run(_work(joining, address, tls, here))
    finally:
        if rack is not None:
            rack.close()
    if by_signal:
        print("left the engine", flush=True)
    else:
        print(f"htpfarm: INFRA: {address}: the engine is gone, or has given this host up", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # A try may still be under way in a thread: its phone is free when this process ends, and nobody waits for it.
    os._exit(0 if by_signal else 3)


def _find_phones(here: Here, inventory: Inventory, rack: RackUse | None) -> None:
    found = survey(inventory, rack.state if rack else None)
    found.check(str(inventory.path))
    here.refused = {phone.name: error.what for phone, error in found.refused}
    for one in found.attached:
        here.phones[one.phone.name] = _as_reported(one)


def _as_reported(one: AttachedPhone) -> AttachedPhone:
    """With the SoC that the phone says it has."""
    import dataclasses

    return dataclasses.replace(one, phone=dataclasses.replace(one.phone, soc=one.identity.soc))


def resources_of(here: Here) -> dict[str, float]:
    """What a host offers, as Dask's resources. Pure."""
    offered: dict[str, float] = {f"{PHONE}{name}": 1.0 for name in here.phones}
    return {**offered, MEMORY: here.memory_mb} if here.memory_mb else offered


async def _work(joining: Joining, address: str, tls: Path | None, here: Here) -> bool:
    """Is a worker until the engine is gone (False) or a signal comes (True)."""
    from distributed import Worker
    from distributed.worker import DEFAULT_METRICS

    threads = len(here.phones) + ((os.cpu_count() or 1) if here.memory_mb else 0)
    metrics: dict[str, Any] = {**DEFAULT_METRICS, "htpfarm": state_of_phones}
    try:
        worker = await Worker(
            address,
            nthreads=threads,
            resources=resources_of(here),
            name=f"{here.name}-{os.getpid()}",
            host=joining.host,
            security=security(tls),
            metrics=metrics,
            memory_limit=0,  # no tasks' data is kept here; Dask's guard would pause the host while others compile
            local_directory=str(cache_root() / "engine" / "dask"),
            dashboard=False,
            dashboard_address="127.0.0.1:0",
            death_timeout=JOIN_LIMIT_S,
        )
    except (OSError, TimeoutError) as error:
        raise InfraError(
            f"no engine answers within {JOIN_LIMIT_S:.0f} s ({type(error).__name__})",
            where=address,
            remedy="start it: `htpfarm engine serve`; with TLS on one side, give certificates on both",
            evidence=str(error)[:500],
        ) from error
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    offers = ", ".join(sorted(here.phones)) or "no phone"
    offers += f"; {here.memory_mb:.0f} MB for compiling" if here.memory_mb else ""
    print(f"{here.name} ({worker.address}) has joined {address}: {offers}", flush=True)
    for name, why in here.refused.items():
        print(f"{name}: not offered: {why}", flush=True)
    gone = asyncio.ensure_future(worker.finished())
    told = asyncio.ensure_future(stop.wait())
    await asyncio.wait([gone, told], return_when=asyncio.FIRST_COMPLETED)
    if told.done():
        await worker.close(timeout=2, reason="htpfarm-leaves")
        return True
    return False
