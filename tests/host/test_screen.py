"""The terminal view: what its foot says, and that on a real terminal it leaves pytest's lines as they are."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from events import HANG_S
from sample_run import BROKEN, GOOD, OLD, planned, run_info, sample

from harness.conduct.live import LiveLog
from harness.conduct.screen import can_show, foot, is_notable
from harness.results import OutcomeRecord, RecordWriter, Status
from harness.results.board import Board, Tail


def _board(folder: Path, phones: int = 1) -> Board:
    writer, live = RecordWriter(folder), LiveLog(folder)
    for record in (run_info(), planned(GOOD, 75), planned(BROKEN, 73), planned(OLD, 69, skip=True)):
        writer.append(record)
    writer.append(sample(GOOD, raw={"vitals": {"after": {"celsius": 38.2}}}))
    live.say("build", "tiny_llama (hybrid): load …")
    for number in range(phones):
        live.say(f"p{number:02d}", "idle")
    live.say("s24", f"{GOOD}: prompt 1/2 \x1b[31mred")
    board = Board()
    Tail(folder).read(board)
    return board


def test_the_foot_says_what_each_phone_does(tmp_path: Path) -> None:
    text = "\n".join(foot(_board(tmp_path), 120, 20, colour=False))
    for piece in ("1 running", "1 waiting", "1 skipped", "3.71 sim tok/s", "build: tiny_llama (hybrid): load", "38 °C"):
        assert piece in text, piece
    assert re.search(rf"s24 .*{GOOD}.*prompt 1/2", text)
    assert "\x1b" not in text


def test_a_large_rack_and_a_small_terminal(tmp_path: Path) -> None:
    board = _board(tmp_path, phones=40)
    for width, height in ((40, 4), (60, 8), (200, 12)):
        lines = foot(board, width, height, colour=False)
        assert len(lines) <= height
        assert max(map(len, lines)) < width
    assert "and 3" in "\n".join(foot(board, 120, 12, colour=False))
    assert "s24" in "\n".join(foot(board, 120, 12, colour=False))  # the busy one first


def test_an_ended_run_has_free_phones(tmp_path: Path) -> None:
    board = _board(tmp_path)
    RecordWriter(tmp_path).append(OutcomeRecord(GOOD, Status.PASSED, phone="s24"))
    Tail(tmp_path).read(board)
    text = "\n".join(foot(board, 120, 20, colour=False))
    assert "1 passed" in text
    assert "free" in text


def test_what_is_notable() -> None:
    assert is_notable("10:00:00 s24 x: INFRA: lost; trying again")
    assert not is_notable("10:00:00 s24 x: prompt 1/2")


def test_no_terminal_no_foot(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as stream:
        assert not can_show(stream)


_PROGRAM = """
    import sys, time
    from pathlib import Path
    from _pytest._io import TerminalWriter
    from harness.conduct.live import LiveLog
    from harness.conduct.screen import PhoneScreen, can_show
    assert can_show(sys.stdout)
    writer = TerminalWriter(sys.stdout)
    screen = PhoneScreen(writer, Path(sys.argv[1]))
    seen = Path(sys.argv[2])
    def until_seen(what):
        while not (seen / what).exists():
            time.sleep(0.02)
    screen.start()
    until_seen("prompt")
    for index in range(30):
        writer.line(f"pytest line {index}")
    writer.write("tests/x.py ")
    for number in range(5):
        LiveLog(Path(sys.argv[1])).say("s24", f"{sys.argv[3]}: thing {number}")
        until_seen(f"thing {number}")
        writer.write(".")
    writer.line()
    screen.stop()
    writer.line("the end")
"""


class _Terminal:
    """As much of a terminal as is used here: text, newline, return, cursor up and right, clear below, colours."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.lines: list[list[str]] = [[]]
        self.row = self.column = 0

    def feed(self, data: str) -> None:
        for match in re.finditer(r"\x1b\[(\d*)([A-Za-z])|\x1b\[[\d;]*m|(.)", data, flags=re.DOTALL):
            count, code, char = match.groups()
            if code == "A":
                self.row = max(len(self.lines) - self.height, self.row - int(count or 1), 0)
            elif code == "C":
                self.column += int(count or 1)
            elif code == "J":
                del self.lines[self.row + 1 :]
                del self.lines[self.row][self.column :]
            elif char == "\r":
                self.column = 0
            elif char == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append([])
            elif char:
                line = self.lines[self.row]
                line.extend(" " * (self.column + 1 - len(line)))
                line[self.column] = char
                self.column += 1

    @property
    def text(self) -> list[str]:
        return ["".join(line).rstrip() for line in self.lines]


def test_on_a_real_terminal_pytests_lines_stay_whole(tmp_path: Path) -> None:
    _board(tmp_path)
    master, slave = pty.openpty()
    os.set_inheritable(slave, True)
    subprocess.run(["stty", "rows", "24", "columns", "80"], stdin=slave, check=True)
    seen = tmp_path / "seen"  # what the program waits for until it has been on the terminal
    seen.mkdir()
    program = [sys.executable, "-c", textwrap.dedent(_PROGRAM), str(tmp_path), str(seen), GOOD]
    process = subprocess.Popen(program, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm"})
    os.close(slave)
    terminal, said, deadline = _Terminal(80, 24), "", time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        if not select.select([master], [], [], 1)[0]:
            if process.poll() is not None:
                break
            continue
        try:
            data = os.read(master, 65536).decode("utf-8", "replace")
        except OSError:
            break
        said += data
        terminal.feed(data)
        for word in ("prompt", *(f"thing {number}" for number in range(5))):
            if any(word in line for line in terminal.text):
                (seen / word).touch()
    os.close(master)
    assert process.wait(timeout=HANG_S) == 0, said
    text = [line for line in terminal.text if line]
    assert text == [*(f"pytest line {index}" for index in range(30)), "tests/x.py .....", "the end"]
