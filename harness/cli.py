"""`htpfarm`: everything but running cells. Each verb is one function; every verb takes `--json`.

Exit status: 0 good; 1 a product or performance failure; 2 usage or configuration; 3 infrastructure only.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from harness import __version__
from harness.compare import cli as compare_cli
from harness.compatibility import cli as compatibility_cli
from harness.conduct import devices_cli, lease_cli
from harness.conduct.plan import LENGTH_OPTIONS, PHONE_OPTIONS, option
from harness.engine import cli as engine_cli
from harness.errors import ConfigError, FailureClass, HarnessError
from harness.export import cli as export_cli
from harness.history import cli as history_cli
from harness.paths import REPOSITORY, cache_root
from harness.rack import fault_cli
from harness.watch import cli as watch_cli

if TYPE_CHECKING:
    from harness.target import Target

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
    cells.add_argument("--models", default="tiny_llama", help="names or .yaml files, comma-separated, or all")
    cells.add_argument("--modes", help="kv, hybrid, lookahead; default: each model's own that are run by default")
    cells.add_argument("--socs", help="chipsets, comma-separated; default: those of the rack")
    for flag, taken in PHONE_OPTIONS.items():
        cells.add_argument(flag, **taken)
    for name, text in LENGTH_OPTIONS.items():
        cells.add_argument(option(name), type=int, metavar="N", help=f"{text}; default: each model's own")
    cells.add_argument("--calib-tasks", default="", help="calibrate with lm-eval tasks, comma-separated")
    cells.add_argument("--calib-limit", type=int, default=1, metavar="N", help="documents of each task at most")
    cells.add_argument("--calib-fewshot", type=int, metavar="K", help="examples before each document")
    cells.add_argument("--calib-samples", type=Path, metavar="FILE", help="calibrate with .json, .jsonl or text")
    cells.add_argument("--task-folder", type=Path, action="append", default=[], help="folder with lm-eval task YAMLs")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(
        name: str,
        verb: Callable[[argparse.Namespace], int],
        parents: Sequence[argparse.ArgumentParser],
        text: str,
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, parents=[common, *parents], help=text, description=text)
        sub.set_defaults(verb=verb)
        return sub

    doctor = add("doctor", _doctor, [], "what this machine has of what htpfarm needs, and what to do about the rest")
    doctor.add_argument("--env", action="store_true", help="print the variables ExecuTorch's own programs need")
    devices_cli.add_arguments(add("devices", devices_cli.run, [rack], devices_cli.TEXT))
    lease_cli.add_arguments(add("lease", lease_cli.run, [rack], lease_cli.TEXT))
    engine_cli.add_arguments(add("engine", engine_cli.run, [], engine_cli.TEXT))
    plan_ = add("plan", _plan, [rack, cells], "every cell with its verdict, before anything runs")
    plan_.add_argument("--target", choices=("sim", "android"), help="default: each cell's phone's, virtual or real")
    gates = add("gates", _gates, [], "what each HTP generation can do, with the source")
    gates.add_argument("--probe", action="store_true", help="prove each gate with the compiler; minutes, then kept")
    gates.add_argument("--fresh", action="store_true", help="with --probe: ask again what is known")
    compile_ = add("compile", _compile, [rack, cells], "compile what is missing from the cache")
    compile_.add_argument("--jobs", type=int, help="build workers at once; default: the cores")
    compile_.add_argument("--target", default="sim", choices=("sim", "android"), help="simulator or phone")
    compile_.add_argument(
        "--strict-memory", action="store_true", help="refuse what this machine's memory is too small for"
    )
    compile_.add_argument("--out", type=Path, metavar="DIR", help="copy the artifacts there, as --pte takes them")
    add("cache", _cache, [], "what the artifact cache holds")
    rack_verb = add(
        "rack", _rack, [rack], "virtual phones: start, stop, show, lend to ExecuTorch's own llama.py, break"
    )
    rack_verb.add_argument("action", choices=("up", "down", "status", "mend", "build-dir", "fault"))
    rack_verb.add_argument(
        "folder", nargs="?", type=Path, metavar="DIR|PHONE", help="for build-dir: the folder to write; for fault: whose"
    )
    fault_cli.add_arguments(rack_verb)
    compatibility_cli.add_arguments(add("matrix", compatibility_cli.run, [], compatibility_cli.TEXT))
    history_cli.add_parser(verbs, common)
    compare_cli.add_parser(verbs, common)
    watch_cli.add_arguments(add("watch", watch_cli.run, [], watch_cli.TEXT))
    export_cli.add_arguments(add("report", export_cli.run, [], export_cli.TEXT))
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
    from harness.rack.cli import export_lines
    from harness.toolchain.doctor import LICENCE_NOTE, examine
    from harness.toolchain.environment import find_toolchain

    if arguments.env:
        exports = find_toolchain().exports()
        if arguments.json:
            _print_json(exports)
        else:
            print("\n".join(export_lines(exports)))
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
    from harness.conduct.rack_use import arm_faults, start_rack
    from harness.inventory import load_inventory
    from harness.rack import cli as rack_cli
    from harness.rack.manage import default_state_dir, mend
    from harness.toolchain.environment import find_toolchain

    console = Console()
    if arguments.action == "build-dir":
        report = rack_cli.cmd_build_dir(arguments.folder)
        _print_json(report) if arguments.json else rack_cli.print_build_dir(report)
        return 0
    if arguments.action == "fault":
        done = fault_cli.run(arguments)
        _print_json(done) if arguments.json else fault_cli.show(done, console)
        return 0
    if arguments.action == "down":
        ended = rack_cli.cmd_down()
        if arguments.json:
            _print_json({"ended": ended})
        else:
            rack_cli.print_down(ended, console)
        return 0
    state = None
    if arguments.action == "up":
        inventory = load_inventory(arguments.rack)
        phones = [(phone.name, phone.virtual) for phone in inventory.phones if phone.virtual is not None]
        if not phones:
            raise ConfigError(
                "this rack has no virtual phone", where=str(arguments.rack), remedy="add one: `virtual: galaxy_s24`"
            )
        state = start_rack(phones, find_toolchain(), default_state_dir())
        arm_faults(inventory, state)
    else:
        if arguments.action == "mend":
            mend()
        state = rack_cli.cmd_status()
    if arguments.json:
        print(rack_cli.to_json(state))
    else:
        rack_cli.print_state(state, console)
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from harness.conduct.plan import left_out
    from harness.target import Target

    choice, planned = _planned(arguments, Target(arguments.target) if arguments.target else None)
    rows = [
        {
            "cell": p.cell.id,
            "phones": p.phones,
            "target": p.target,
            **dataclasses.asdict(p.verdict),
            "more": [dataclasses.asdict(verdict) for verdict in p.more],
        }
        for p in planned
    ]
    rows += [
        {"cell": None, "phones": (phone.name,), "target": None, **dataclasses.asdict(verdict), "more": []}
        for phone, verdict in left_out(choice.inventory.phones)
    ]
    if arguments.json:
        _print_json(rows)
        return 0
    columns = ("cell", "phones", "target", "verdict", "why")
    _print_table(f"plan for {choice.inventory.path}", columns, [_plan_words(row) for row in rows])
    stops = [each for row in rows if not row["run"] for each in (row, *row["more"])]
    for line in dict.fromkeys(f"{each['gate']}: {each['remedy']}" for each in stops):
        print(f"what to do: {line}")
    running = sum(p.verdict.run for p in planned)
    print(f"{running} cells run, {len(planned) - running} are skipped, {len(rows) - len(planned)} phones get none")
    return 0


def _plan_words(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the plan as text; where several gates stop a cell, a line each."""
    stops = [] if row["run"] else [row, *row["more"]]
    return (
        row["cell"] or "(none)",
        ", ".join(row["phones"]),
        row["target"] or "",
        "run" if row["run"] else "skip",
        "\n".join(f"{each['gate']}: {each['reason']}" for each in stops),
    )


def _planned(arguments: argparse.Namespace, target: Target | None, *, runs: bool = True) -> tuple[Any, Any]:
    """The choice and the plan, from the files alone: no phone is asked."""
    from harness.conduct.plan import calibration_choice, phone_wish, plan, read_choice
    from harness.farm.select import Standing, meeting
    from harness.toolchain.version import qnn_version_here

    lengths = {name: value for name in LENGTH_OPTIONS if (value := getattr(arguments, name)) is not None}
    calibration = calibration_choice(
        arguments.calib_tasks,
        arguments.calib_limit,
        arguments.calib_fewshot,
        arguments.calib_samples,
        tuple(folder.absolute() for folder in arguments.task_folder),
    )
    choice = read_choice(
        arguments.rack,
        arguments.models,
        arguments.modes,
        arguments.socs,
        lengths=lengths,
        calibration=calibration,
        wish=phone_wish(arguments.phones, arguments.arch, arguments.labels, arguments.capabilities),
    )
    phones = meeting(choice.wish, [Standing(phone) for phone in choice.inventory.phones])
    return choice, plan(choice, phones, target, qnn_version_here(), runs=runs)


def _gates(arguments: argparse.Namespace) -> int:
    from harness.build.probe.show import exit_status, gates_report, print_gates

    progress = Console(stderr=True) if arguments.probe else None
    report = gates_report(ask=arguments.probe, fresh=arguments.fresh, console=progress)
    if arguments.json:
        _print_json(report)
    else:
        print_gates(report, Console())
    return exit_status(report) if arguments.probe else 0


def _compile(arguments: argparse.Namespace) -> int:
    from harness.build.builder import Builder, Request
    from harness.build.given import export
    from harness.build.preflight import available_mb, concerns, refuse
    from harness.conduct.builds import words
    from harness.conduct.plan import artifacts
    from harness.target import Target
    from harness.toolchain.environment import find_toolchain, fingerprint

    target = Target(arguments.target)
    choice, planned = _planned(arguments, target, runs=False)
    toolchain = find_toolchain()
    located = artifacts(choice, planned, target, fingerprint(toolchain))
    cells = {p.cell.id: p.cell for p in planned if p.verdict.run}
    requests = [Request(cell, target, located[cell_id], choice.calibration) for cell_id, cell in cells.items()]
    found = concerns([r.cell for r in requests if not r.artifact.ready], available_mb())
    if arguments.strict_memory:
        refuse(found)
    for concern in found:
        print(f"htpfarm: likely to fail: {concern}", file=sys.stderr)
    builder = Builder(toolchain, cache_root() / "build-logs", jobs=arguments.jobs)
    rows, failed = [], 0
    for result in builder.build(requests, lambda name, event: print(words(name, event), file=sys.stderr, flush=True)):
        artifact = result.request.artifact
        what = (
            "FAILED" if result.error else "from the cache" if result.reused else f"compiled in {result.seconds:.0f} s"
        )
        failed += result.error is not None
        cell = result.request.cell
        rows.append((f"{cell.model.name}-{cell.mode}-{cell.soc.name}", what, str(artifact.pte)))
        if result.error:
            print(f"htpfarm: BUILD: {result.error}", file=sys.stderr)
    if arguments.out and not failed:
        export([(cell, located[cell_id]) for cell_id, cell in cells.items()], arguments.out)
    if arguments.json:
        _print_json([dict(zip(("artifact", "result", "path"), row, strict=True)) for row in sorted(rows)])
    else:
        _print_table("artifacts", ("artifact", "result", "path"), sorted(rows))
    return 1 if failed else 0


def _cache(arguments: argparse.Namespace) -> int:
    from harness.build.cache import list_artifacts

    found = list_artifacts()
    rows = [(e.name, f"{e.megabytes:.1f}", e.made, e.folder) for e in found]
    if arguments.json:
        _print_json(found)
    else:
        total = sum(entry.megabytes for entry in found)
        _print_table(
            f"{cache_root()}: {len(found)} artifacts, {total:.0f} MB", ("artifact", "MB", "made", "folder"), rows
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
