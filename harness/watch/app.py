"""The page's server: three GET routes over a run's folder, and nothing that changes anything.

`/` is the page, `/state` the board as JSON, `/events` the same whenever it changes (server-sent events, which a browser
reconnects by itself). All state is in the folder, so that a reload, and a restart of this server, lose nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from harness.results.board import Board, Tail
from harness.results.report import html_environment

POLL_S = 0.5
HEARTBEAT_S = 10.0
"""A line is sent at least this often, so that a client that is gone is found out."""
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


class Watcher:
    """One board for all clients, brought up to date when a client asks."""

    def __init__(self, folder: Path) -> None:
        self.board = Board()
        self.version = 0
        self._tail = Tail(folder)
        self._lock = asyncio.Lock()

    async def refresh(self) -> int:
        """Read what is new. Returns a number that rises with each change."""
        async with self._lock:
            # In a thread: the first reading of a long run takes a while.
            if await asyncio.to_thread(self._tail.read, self.board):
                self.version += 1
            return self.version

    def data(self) -> str:
        """The board as JSON in one line."""
        return json.dumps(self.board.as_data(), allow_nan=False)


def watch_app(folder: Path) -> Starlette:
    """The application for one run's folder."""
    watcher = Watcher(folder)
    script = files("harness.results").joinpath("templates", "watch.js").read_text(encoding="utf-8")
    page = html_environment().get_template("watch.html.j2").render(run=folder.name)

    async def index(_: Request) -> Response:
        return HTMLResponse(page, headers=_HEADERS)

    async def code(_: Request) -> Response:
        return Response(script, media_type="text/javascript", headers=_HEADERS)

    async def state(_: Request) -> Response:
        await watcher.refresh()
        return JSONResponse(watcher.board.as_data(), headers=_HEADERS)

    async def events(_: Request) -> Response:
        return StreamingResponse(_events(watcher), media_type="text/event-stream", headers=_HEADERS)

    return Starlette(
        routes=[
            Route("/", index),
            Route("/watch.js", code),
            Route("/state", state),
            Route("/events", events),
        ],
        # Or a page elsewhere could read this one under a name of its own that it lets lead to 127.0.0.1.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
    )


async def _events(watcher: Watcher) -> AsyncIterator[str]:
    sent, quiet = -1, 0.0
    while True:
        version = await watcher.refresh()
        if version != sent:
            sent, quiet = version, 0.0
            yield f"retry: 1000\ndata: {watcher.data()}\n\n"
        elif quiet >= HEARTBEAT_S:
            quiet = 0.0
            yield ": still here\n\n"
        await asyncio.sleep(POLL_S)
        quiet += POLL_S
