"""`htpfarm engine serve | join | ls`: several computers as one rack."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

TEXT = "several computers as one rack: serve an engine, join it with phones or memory, list its hosts"
DEFAULT_HOST, PORT = "127.0.0.1", 8786


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    parser.add_argument("action", choices=("serve", "join", "ls"))
    parser.add_argument("address", nargs="?", metavar="ADDRESS", help="of the engine, as 127.0.0.1:8786; not for serve")
    parser.add_argument("--tls", type=Path, metavar="DIR", help="ca.pem, cert.pem, key.pem ($HTPFARM_ENGINE_TLS)")
    parser.add_argument("--host", help=f"serve, join: the address to listen on ({DEFAULT_HOST}; towards the engine)")
    parser.add_argument("--port", type=int, default=PORT, help=f"serve: the port ({PORT})")
    parser.add_argument("--lost-after", type=float, metavar="S", help="serve: a host silent so long is lost (30)")
    parser.add_argument("--rack", type=Path, metavar="FILE", help="join: the rack file whose phones are offered")
    parser.add_argument("--compile", action="store_true", help="join: offer to compile")
    parser.add_argument("--memory-mb", type=float, metavar="N", help="join: memory for it (what is free now)")
    parser.add_argument("--name", default="", help="join: what to call this host (its hostname)")
    parser.add_argument(
        "--build-folder", type=Path, metavar="DIR", help="join: as of pytest -m device, for real phones"
    )


def run(arguments: argparse.Namespace) -> int:
    """Does it.

    Raises:
        ConfigError, InfraError: as `serve`, `join` and `Connection` do.
    """
    from harness.conduct.phone_files import BUILD_FOLDER
    from harness.engine.serve import LOST_AFTER_S, Served, serve
    from harness.errors import ConfigError

    if arguments.action == "serve":
        limit = LOST_AFTER_S if arguments.lost_after is None else arguments.lost_after
        return serve(Served(arguments.host or DEFAULT_HOST, arguments.port, arguments.tls, limit))
    if not arguments.address:
        raise ConfigError(
            "no engine is named", where=f"htpfarm engine {arguments.action}", remedy="give HOST:PORT, as 127.0.0.1:8786"
        )
    if arguments.action == "join":
        from harness.engine.join import Joining, join

        if arguments.build_folder is not None:
            os.environ[BUILD_FOLDER] = str(arguments.build_folder.absolute())
        return join(
            Joining(
                arguments.address,
                arguments.rack,
                arguments.compile,
                arguments.memory_mb,
                arguments.name,
                arguments.host,
                arguments.tls,
            )
        )
    return _list(arguments)


def _list(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from harness.engine.driver import Engine

    engine = Engine(arguments.address, arguments.tls)
    try:
        reports = engine.reports()
    finally:
        engine.close()
    if arguments.json:
        print(json.dumps([report.to_data() for report in reports], indent=2))
        return 0
    table = Table("host", "address", "phones", "for compiling", "htpfarm", title=engine.address, title_justify="left")
    for report in reports:
        phones = [f"{phone['name']} ({phone['soc'] or 'no HTP'})" for phone in report.phones]
        phones += [f"{name}: {why}" for name, why in report.refused.items()]
        memory = f"{report.memory_mb:.0f} MB" if report.memory_mb else ""
        own = f"{report.identity.get('htpfarm', '')} {report.identity.get('sources', '')}"
        table.add_row(report.host, report.address, "\n".join(phones), memory, own)
    Console().print(table)
    return 0
