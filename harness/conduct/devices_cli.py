"""What `htpfarm devices` takes. What it does is loaded when it is asked for: adb's client takes a third of a second."""

from __future__ import annotations

import argparse

TEXT = "the phones of the rack: what they are, how they are, who has them; put aside (maintenance) and back (clear)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    parser.add_argument(
        "action",
        nargs="?",
        default="list",
        choices=("list", "clear", "maintenance", "log"),
        help="list (default); clear: a BAD phone may be used again; maintenance: it may not; log: what happened to it",
    )
    parser.add_argument("phone", nargs="?", help="its name in the rack file")
    parser.add_argument("--why", default="", help="the cause to note")


def run(arguments: argparse.Namespace) -> int:
    """See `harness.conduct.devices.run`."""
    from harness.conduct import devices

    return devices.run(arguments)
