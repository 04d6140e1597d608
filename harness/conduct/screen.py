"""Phones and cells at the foot of a terminal while pytest writes above: what each phone does, builds, the counts.

The cursor always rests where pytest left it. Before pytest writes, all below the cursor is cleared; after it has, the
foot is drawn below and the cursor goes back. So nothing here knows what pytest writes, and the scrollback is pytest's.
"""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.results.board import RUNNING, WAITING, Board, Tail
from harness.results.text import number, visible

REFRESH_S = 0.5
_LEAST_WIDTH, _LEAST_HEIGHT = 40, 10
_CLEAR_BELOW = "\x1b[J"
_NOTABLE = re.compile(r"trying again|not used|FAILED|likely to fail|ERROR|resumed:|likely|quarantine", re.IGNORECASE)
_STYLES = {"PASSED": "green", "FAILED": "bold red", "ERROR": "bold magenta", RUNNING: "cyan", WAITING: "dim"}


def is_notable(line: str) -> bool:
    """Whether a line of the live log is worth a line of its own beside the foot, which shows the rest."""
    return bool(_NOTABLE.search(line))


def can_show(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can move its cursor and has room."""
    try:
        size = os.get_terminal_size(stream.fileno()) if stream.isatty() else None
    except (OSError, ValueError):
        return False
    if size is None or os.environ.get("TERM", "dumb") == "dumb":
        return False
    return size.columns >= _LEAST_WIDTH and size.lines >= _LEAST_HEIGHT


def foot(board: Board, width: int, height: int, *, colour: bool = True) -> list[str]:
    """The foot's lines, each at most `width` columns; at most `height` of them.

    A rack of more phones than have room shows those that are busy first, and says how many are left out.
    """
    phones = sorted(board.phones.values(), key=lambda phone: (not phone.cell, phone.name))
    room = max(1, height - 3)
    shown = phones if len(phones) <= room else phones[: room - 1]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, show_header=False, expand=False)
    for _ in range(4):
        table.add_column(no_wrap=True, overflow="ellipsis")
    for phone in shown:
        heat = f"{phone.celsius:.0f} °C" if phone.celsius is not None else ""
        what = phone.doing if phone.cell else f"free, {phone.done} done" if phone.done else "free"
        style = "cyan" if phone.cell else "dim"
        table.add_row(*(Text(visible(word), style) for word in (phone.name, heat, phone.cell, what)))
    if left := len(phones) - len(shown):
        table.add_row(Text(f"and {left} more", "dim"), "", "", "")
    words = Text(" ")
    for status, count in board.counts.items():
        if count:
            words.append(f" {count} {status.lower()} ", _STYLES.get(status, ""))
    if rate := _last_rate(board):
        words.append(f" last: {rate}", "dim")
    out = io.StringIO()
    console = Console(
        file=out,
        width=width - 1,
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
        legacy_windows=False,
    )
    console.print(words, no_wrap=True, overflow="ellipsis", crop=True)
    if board.build:
        console.print(Text(f"  build: {visible(board.build)}", "dim"), no_wrap=True, overflow="ellipsis", crop=True)
    if shown:
        console.print(table)
    return [line for line in out.getvalue().splitlines() if line.strip()][:height]


def _last_rate(board: Board) -> str:
    measured = [place for place in board.cells.values() if place.decode_tok_s is not None]
    if not measured:
        return ""
    sim = "sim " if board.run and board.run.target.value == "sim" else ""
    return f"{visible(measured[-1].plan.cell)} {number(measured[-1].decode_tok_s)} {sim}tok/s"


class PhoneScreen:
    """Draws the foot of a run on pytest's terminal, from a thread and around each of pytest's own writes."""

    def __init__(self, writer: Any, folder: Path) -> None:
        """
        Args:
            writer: pytest's `TerminalWriter`; its `write` is wrapped while this runs.
            folder: the run's.
        """
        self._writer, self._stream = writer, writer._file
        self._board, self._tail = Board(), Tail(folder)
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="htpfarm-screen", daemon=True)
        self._write: Callable[..., None] = writer.write
        self._depth = 0

    def start(self) -> None:
        """Starts drawing."""
        self._writer.write = self._wrapped
        self._thread.start()

    def stop(self) -> None:
        """Clears the foot; the terminal is pytest's alone again."""
        self._stop.set()
        self._thread.join(timeout=60)
        with self._lock:
            self._writer.write = self._write
            self._put(_CLEAR_BELOW)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """For something that writes: the foot is not there meanwhile."""
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                self._put(_CLEAR_BELOW)
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0 and not self._stop.is_set():
                    self._draw()

    def _wrapped(self, *arguments: Any, **options: Any) -> None:
        with self.aside():
            self._write(*arguments, **options)

    def _run(self) -> None:
        while not self._stop.wait(REFRESH_S):
            if self._tail.read(self._board):
                with self._lock:
                    if not self._stop.is_set():  # or it would come back after it was cleared
                        self._draw()

    def _draw(self) -> None:
        try:
            size = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return
        lines = foot(self._board, size.columns, max(1, size.lines // 2 - 1))
        column = int(self._writer.width_of_current_line) % size.columns
        below = "".join(f"\r\n{line}" for line in lines)
        back = f"\x1b[{len(lines)}A\r" + (f"\x1b[{column}C" if column else "")
        self._put(f"{_CLEAR_BELOW}{below}{back}" if lines else _CLEAR_BELOW)

    def _put(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
