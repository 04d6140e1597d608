"""A phone that is this computer's own shell in a folder: its commands do what they say, in milliseconds.

adb alone is left out (test_farm_session.py has it), so that a test can say what it does: damage a file on its way, lose
a command at a certain event, reboot.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness.farm.connect import COMMAND_SECONDS, AdbServer, PhoneLink, ShellResult, command_line
from harness.farm.identity import AttachedPhone, PhoneIdentity
from harness.farm.journal import note
from harness.farm.shell import AdbFailure, AdbTimeout
from harness.farm.workspace import BOOT_ID, ROOT
from harness.inventory import Phone
from harness.soc import SOCS

# Android's programs: what they print stands in files of the phone's folder.
TOOLS = {
    "df": '[ "$*" = "-k /data/local/tmp" ] || exit 9; echo "Filesystem 1K-blocks Used Available Use%"; cat "$PHONE/df"',
    "logcat": 'cat "$PHONE/logcat"',
    "getprop": 'case "$1" in sys.boot_completed) echo 1;; *) echo true;; esac',
    "dumpsys": 'echo "  level: 80"; echo "  temperature: $(cat "$PHONE/tenths")"',
    "dmesg": "true",
}


@dataclass(frozen=True)
class Loss:
    """A command that is not heard of any more: `error` as soon as `event` is there, whatever the command does then."""

    word: str
    event: Path
    error: type[AdbFailure] = AdbTimeout


@dataclass(frozen=True)
class NearPhone(PhoneLink):
    """The phone.

    Attributes:
        root: its folder.
        asked: the commands, in order, and how long each might take.
        sent: what was pushed and pulled: `push NAME` or `pull NAME`.
        before: sees each command before it starts; what it raises is what becomes of it.
        losses: commands that are lost after they have started.
        on_way: sees each file that has been pushed or pulled, by that word and where it arrived.
    """

    root: Path = Path()
    asked: list[tuple[str, float]] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    before: list[Callable[[str], None]] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    on_way: list[Callable[[str, Path], None]] = field(default_factory=list)

    def here(self, text: str) -> str:
        """A text with the phone's paths as this computer's."""
        return text.replace(ROOT, str(self.root / "htpfarm")).replace(BOOT_ID, str(self.root / "boot_id"))

    def place(self, remote: str) -> Path:
        """Where a file of the phone's lies."""
        return Path(self.here(remote))

    def shell(self, command, *, timeout_s=COMMAND_SECONDS, env=None, watch=None) -> ShellResult:  # type: ignore[no-untyped-def]
        line = command_line(command, env)
        self.asked.append((line, timeout_s))
        for sees in self.before:
            sees(line)
        began = time.monotonic()
        output = [self.root / f"{len(self.asked)}.{name}" for name in ("out", "err")]
        with output[0].open("wb") as out, output[1].open("wb") as err:
            process = subprocess.Popen(
                ["sh", "-c", self.here(line)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.root,
                env={**os.environ, "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}", "PHONE": str(self.root)},
                start_new_session=True,
            )
        lost = next((loss for loss in self.losses if loss.word in line), None)
        if lost is not None:
            deadline = time.monotonic() + 60
            while not lost.event.exists() or not lost.event.stat().st_size:
                assert time.monotonic() < deadline, f"{lost.event} never came"
                time.sleep(0.01)
            said = [path.read_text() for path in output]
            raise lost.error("lost", serial=self.serial, command=line, stdout=said[0], stderr=said[1])
        status = process.wait(timeout=60)
        result = ShellResult(
            status if status >= 0 else 128 - status,
            *(path.read_text() for path in output),
            time.monotonic() - began,
        )
        if watch is not None:
            watch(bytearray(output[1].read_bytes()))
        note(self.serial, line, f"status {result.exit_status}", result.seconds, result.stdout, result.stderr)
        return result

    def push(self, local: Path, remote: str, *, timeout_s: float | None = None) -> None:
        self.place(remote).parent.mkdir(parents=True, exist_ok=True)
        self._carry("push", local, self.place(remote))

    def pull(self, remote: str, local: Path, *, timeout_s: float = 300.0) -> None:
        self._carry("pull", self.place(remote), local)

    def _carry(self, word: str, start: Path, end: Path) -> None:
        self.sent.append(f"{word} {start.name}")
        shutil.copyfile(start, end)
        for happens in self.on_way:
            happens(word, end)


def near_phone(root: Path, serial: str = "near", server: AdbServer | None = None) -> NearPhone:
    """A phone that is well: booted, cool, charged, with 1 GiB free."""
    (root / "bin").mkdir(parents=True)
    for name, line in TOOLS.items():
        tool = root / "bin" / name
        tool.write_text(f"#!/bin/sh\n{line}\n")
        tool.chmod(0o755)
    (root / "boot_id").write_text("boot-1\n")
    (root / "df").write_text(f"/dev/fuse 9999999 1 {2**20} 5% /data\n")
    (root / "logcat").write_text("")
    (root / "tenths").write_text("301\n")
    return NearPhone(serial, server or AdbServer(), root=root)


def attached(link: NearPhone, name: str, soc: str | None = "SM8650", **changes: object) -> AttachedPhone:
    known = SOCS[soc] if soc else None
    identity = PhoneIdentity(
        link.serial, "model", "device", known, "label", "reason", "boot-1", "arm64", False, "print"
    )
    return AttachedPhone(Phone(name, link.serial, None, known, **changes), link, identity)  # type: ignore[arg-type]


@contextlib.contextmanager
def listening() -> Iterator[AdbServer]:
    """Where somebody listens, as an adb server does, and hangs up whatever is asked."""
    with socket.create_server(("127.0.0.1", 0)) as door:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    door.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        try:
            yield AdbServer("127.0.0.1", door.getsockname()[1])
        finally:
            door.shutdown(socket.SHUT_RDWR)
