"""`htpfarm engine serve`: the scheduler. It runs no cell, and forgets a host that is silent."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.engine.connection import engine_address, need_distributed, security, tls_folder
from harness.errors import ConfigError

LOST_AFTER_S = 30.0


@dataclass(frozen=True)
class Served:
    """How to serve: where, with which certificates, and after how many seconds a silent host is lost."""

    host: str
    port: int
    tls: Path | None = None
    lost_after_s: float = LOST_AFTER_S


def settings(lost_after_s: float) -> dict[str, Any]:
    """Dask's settings for a scheduler of ours."""
    return {
        # A task is never given to another host behind its driver's back: the driver decides what follows a loss.
        "distributed.scheduler.allowed-failures": 0,
        "distributed.scheduler.work-stealing": False,
        "distributed.scheduler.worker-ttl": f"{lost_after_s} s",
        # Messages go to those who listen, and need not be kept.
        "distributed.admin.low-level-log-length": 1000,
        "distributed.scheduler.events-cleanup-delay": "1 minute",
    }


def serve(served: Served) -> int:
    """Serves until it is interrupted or terminated; 0.

    Raises:
        ConfigError: Dask is missing, the port is taken, the certificates are no good.
    """
    need_distributed()
    tls = tls_folder(served.tls)
    address = engine_address(f"{served.host}:{served.port}", tls)
    import dask

    with dask.config.set(settings(served.lost_after_s)):
        asyncio.run(_serve(address, tls))
    return 0


async def _serve(address: str, tls: Path | None) -> None:
    from distributed import Scheduler

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        # Dask's page of metrics has no TLS: on the loopback, on any port.
        scheduler = await Scheduler(
            host=address, security=security(tls), dashboard=False, dashboard_address="127.0.0.1:0"
        )
    except OSError as error:
        raise ConfigError(
            f"cannot serve there: {error.strerror or error}", where=address, remedy="choose another --host or --port"
        ) from error
    try:
        safe = "TLS" if tls else "no TLS: who reaches this port can run code here and on every host"
        print(f"{scheduler.address} serves ({safe}); Ctrl-C ends it", flush=True)
        await stop.wait()
    finally:
        await scheduler.close()
