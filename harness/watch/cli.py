"""`htpfarm watch [RUN]`: serves the live page of a run."""

from __future__ import annotations

import argparse
import json
import socket
from pathlib import Path

from harness.errors import ConfigError
from harness.paths import REPOSITORY
from harness.results.store import RECORDS

TEXT = "serve a live page of a run on this machine: each phone, its cell, its heat, the matrix filling up; read only"
HOST = "127.0.0.1"
PORT = 8642


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options; `--json` is every verb's: it prints the state once and ends."""
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="a run's folder; default: the newest")
    parser.add_argument("--port", type=int, default=PORT, help=f"0 for any that is free ({PORT})")
    parser.add_argument("--reports", type=Path, default=REPOSITORY / "reports", help="where runs are (reports/)")


def run(arguments: argparse.Namespace) -> int:
    """Serves until interrupted.

    Raises:
        ConfigError: there is no such run, or the port is taken.
    """
    folder = arguments.run or newest(arguments.reports)
    if not folder.is_dir():
        raise ConfigError("no such folder", where=str(folder), remedy="give the folder of a run, as reports/<run>")
    if arguments.json:
        from harness.results.board import Board, Tail

        board = Board()
        Tail(folder).read(board)
        print(json.dumps(board.as_data(), indent=2))
        return 0
    import uvicorn

    from harness.watch.app import watch_app

    listener = _listen(arguments.port)
    print(f"http://{HOST}:{listener.getsockname()[1]}/ shows {folder}; Ctrl-C ends it", flush=True)
    config = uvicorn.Config(watch_app(folder), log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    with listener:
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def newest(reports: Path) -> Path:
    """The newest run of a folder of runs.

    Raises:
        ConfigError: it has none.
    """
    found = sorted(path.parent for path in reports.glob(f"*/{RECORDS}"))
    if not found:
        raise ConfigError("no run here", where=str(reports), remedy="start one: pytest -m device")
    return found[-1]


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"port {port} is taken", where="--port", remedy="give another, or 0 for any") from error
    return listener
