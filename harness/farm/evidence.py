"""The evidence of a failed attempt: a folder beside the runner's own logs, linked from the outcome's record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from harness.errors import InfraError
from harness.farm.connect import PhoneLink
from harness.farm.journal import Command
from harness.farm.vitals import read_vitals

ASK_SECONDS = 30.0
LOG_LINES = 2000

# What Android's shell user may read differs from phone to phone: what may not be says so in its file.
_QUESTIONS = {
    "logcat.txt": f"logcat -d -t {LOG_LINES}",
    "dmesg.txt": "dmesg 2>&1 | tail -n 500",
    "tombstones.txt": "ls -lt /data/tombstones 2>&1 | head -n 20; "
    'newest=$(ls -t /data/tombstones/tombstone_* 2>/dev/null | grep -v "\\.pb$" | head -n 1); '
    '[ -n "$newest" ] && head -n 200 "$newest"; true',
    "properties.txt": "getprop",
    "processes.txt": "ps -A -o PID,PPID,STAT,ARGS 2>/dev/null || ps -ef",
}


def collect(link: PhoneLink, folder: Path, commands: Sequence[Command] = ()) -> tuple[str, ...]:
    """Writes `commands.txt` and what the phone says; ends with the first question it does not answer in time.

    Returns:
        Names of the files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = ["commands.txt"]
    (folder / "commands.txt").write_text("\n".join(command.text() for command in commands), encoding="utf-8")
    with suppress(InfraError):
        (folder / "vitals.json").write_text(json.dumps(read_vitals(link).record(), indent=2), encoding="utf-8")
        written.append("vitals.json")
        for name, line in _QUESTIONS.items():
            result = link.shell(line, timeout_s=ASK_SECONDS)
            (folder / name).write_text(result.stdout + result.stderr, encoding="utf-8")
            written.append(name)
    return tuple(written)
