"""`htpfarm`: everything but running cells. Each verb is one function; every verb takes `--json`.

Exit status: 0 good; 1 a product or performance failure; 2 usage or configuration; 3 infrastructure only.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness import __version__
from harness.errors import ConfigError, FailureClass, HarnessError
from harness.paths import MODELS, REPOSITORY, cache_root

EXIT_STATUS = {FailureClass.CONFIG: 2, FailureClass.INFRA: 3, FailureClass.ENV: 3}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `htpfarm` command. Returns the exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    verb: Callable[[argparse.Namespace], int] = arguments.verb
    try:
        return verb(arguments)
    except HarnessError as error:
        print(f"htpfarm: {error.failure_class}: {error}", file=sys.stderr)
        return EXIT_STATUS.get(error.failure_class, 1)
    except KeyboardInterrupt:
        print("htpfarm: interrupted", file=sys.stderr)
        return 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="htpfarm", description="Models × modes × SoCs on a rack of phones.")
    parser.add_argument("--version", action="version", version=__version__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON instead of a table")
    rack = argparse.ArgumentParser(add_help=False)
    rack.add_argument("--rack", type=Path, default=REPOSITORY / "devices.yaml", metavar="FILE", help="the inventory")
    cells = argparse.ArgumentParser(add_help=False)
    cells.add_argument("--models", default="tiny_llama", help="names, comma-separated, or all")
    cells.add_argument("--modes", help="kv, hybrid, lookahead; default: each model's own that are run by default")
    cells.add_argument("--socs", help="chipsets, comma-separated; default: those of the rack")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(name: str, verb: Callable[[argparse.Namespace], int], parents: Sequence[argparse.ArgumentParser], text: str):  # type: ignore[no-untyped-def]
        sub = verbs.add_parser(name, parents=[common, *parents], help=text, description=text)
        sub.set_defaults(verb=verb)
        return sub

    doctor = add("doctor", _doctor, [], "what this machine has of what htpfarm needs, and what to do about the rest")
    doctor.add_argument("--env", action="store_true", help="print the variables ExecuTorch's own programs need")
    add("devices", _devices, [rack], "the phones of the rack: what they are, whether they can be reached")
    add("plan", _plan, [rack, cells], "every cell with its verdict, before anything runs")
    add("gates", _gates, [], "what each HTP generation can do, with the source")
    compile_ = add("compile", _compile, [rack, cells], "compile what is missing from the cache")
    compile_.add_argument("--jobs", type=int, help="build workers at once; default: the cores")
    add("cache", _cache, [], "what the artifact cache holds")
    rack_verb = add("rack", _rack, [rack], "virtual phones: start, stop, show")
    rack_verb.add_argument("action", choices=("up", "down", "status"))
    report = add("report", _report, [], "write a run's report.html and report.md again, and print its table")
    report.add_argument("run", type=Path, help="a folder under reports/")
    return parser


def _print_json(value: object) -> None:
    def plain(item: object) -> object:
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return dataclasses.asdict(item)
        return str(item)

    print(json.dumps(value, default=plain, indent=2))


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _doctor(arguments: argparse.Namespace) -> int:
    from harness.toolchain.doctor import LICENCE_NOTE, examine
    from harness.toolchain.environment import find_toolchain

    if arguments.env:
        exports = find_toolchain().exports()
        if arguments.json:
            _print_json(exports)
        else:
            for key, value in exports.items():
                print(f"export {key}={shlex.quote(value)}${{{key}:+:${key}}}" if "PATH" in key else f"export {key}={shlex.quote(value)}")
        return 0
    findings = examine()
    if arguments.json:
        _print_json(findings)
    else:
        rows = [("good" if f.good else "BAD", f.part, f.version, f.remedy) for f in findings]
        _print_table("htpfarm doctor", ("", "part", "found", "what to do"), rows)
        print(LICENCE_NOTE)
    return 0 if all(finding.good for finding in findings) else 2


def _rack(arguments: argparse.Namespace) -> int:
    from harness.inventory import load_inventory
    from harness.rack import cli as rack_cli

    state_dir = cache_root() / "rack"
    if arguments.action == "up":
        inventory = load_inventory(arguments.rack)
        phones = [(phone.name, phone.virtual) for phone in inventory.phones if phone.virtual is not None]
        if not phones:
            raise ConfigError("no virtual phone in this rack", where=str(arguments.rack), remedy="add one: virtual: KIND")
        return rack_cli.up(phones, state_dir, as_json=arguments.json)
    action = rack_cli.down if arguments.action == "down" else rack_cli.show
    return action(state_dir, as_json=arguments.json)


def _devices(arguments: argparse.Namespace) -> int:
    raise NotImplementedError


def _plan(arguments: argparse.Namespace) -> int:
    raise NotImplementedError


def _gates(arguments: argparse.Namespace) -> int:
    raise NotImplementedError


def _compile(arguments: argparse.Namespace) -> int:
    raise NotImplementedError


def _cache(arguments: argparse.Namespace) -> int:
    raise NotImplementedError


def _report(arguments: argparse.Namespace) -> int:
    raise NotImplementedError


if __name__ == "__main__":
    sys.exit(main())
