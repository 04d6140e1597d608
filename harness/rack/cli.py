"""What `htpfarm rack up|down|status|build-dir` does; the command line itself is wired elsewhere."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.errors import ConfigError, InfraError
from harness.files import write_atomically
from harness.model_file import Mode
from harness.paths import MODELS, REPOSITORY
from harness.rack import manage
from harness.rack.record import RackState
from harness.soc import PHONE_KINDS, SOCS


def cmd_status(*, state_dir: Path | None = None) -> RackState | None:
    """The running rack, or None."""
    return manage.status(state_dir)


def cmd_down(*, state_dir: Path | None = None) -> bool:
    """Ends the rack; whether there was one."""
    return manage.down(state_dir)


def to_json(state: RackState | None) -> str:
    """One JSON object: `running`, and the state's fields where it runs."""
    return json.dumps({"running": state is not None, **(asdict(state) if state else {})}, indent=2)


def print_state(state: RackState | None, console: Console) -> None:
    """The rack as a table: one row a phone, and how to reach its adb server."""
    if state is None:
        console.print("no rack is running; start one with [bold]htpfarm rack up[/bold]")
        return
    table = Table("phone", "serial", "kind", "isolation")
    for phone in state.phones:
        table.add_row(phone.name, phone.serial, phone.kind, "none (plain fallback)" if phone.fallback else "namespaces")
    console.print(table)
    console.print(f"adb -P {state.adb_port} devices -l", highlight=False)


def print_down(ended: bool, console: Console) -> None:
    """What `down` did, in one line."""
    console.print("the rack is down" if ended else "no rack was running")


def cmd_build_dir(folder: Path | None, *, state_dir: Path | None = None) -> dict[str, Any]:
    """Writes what ExecuTorch's llama.py needs to drive the running rack, with the tiny model's compiled programs.

    Returns:
        `environment` (the variables to export), `directory` (where to run), `command` (an example), `script` (a file
        with these three, which takes further arguments). The last two are None while no hybrid is compiled for the
        rack's phones.

    Raises:
        ConfigError: no folder is given, or it cannot be written.
        InfraError: no rack runs.
    """
    from harness.build.cache import locate
    from harness.matrix import cells
    from harness.models import load_models
    from harness.rack import build_dir
    from harness.target import Target
    from harness.toolchain.environment import find_toolchain, fingerprint

    if folder is None:
        raise ConfigError("no folder is given", where="rack build-dir", remedy="htpfarm rack build-dir DIR")
    state = manage.status(state_dir)
    if state is None:
        raise InfraError("no rack is running: its adb server's port is not known", remedy="htpfarm rack up")
    toolchain = find_toolchain()
    known = fingerprint(toolchain)
    model = load_models(MODELS)["tiny_llama"]
    chipsets = {phone.serial: PHONE_KINDS[phone.kind].soc for phone in state.phones}
    wanted = cells([model], None, [SOCS[name] for name in chipsets.values() if name in SOCS])
    located = {
        (cell.soc.name, cell.mode): locate(model, cell.mode, cell.soc, Target.SIM, cell.lengths, known)
        for cell in wanted
    }
    ready = {key: artifact for key, artifact in located.items() if artifact.ready}
    made = build_dir.write_build_dir(folder, toolchain)
    files = build_dir.write_model(made, model, ready)
    example = None
    for serial, soc in chipsets.items():
        if example is None and (soc, Mode.HYBRID) in ready:
            example = build_dir.command(
                *(made, toolchain, files),
                serial=serial,
                soc=soc,
                mode=Mode.HYBRID,
                methods=(build_dir.PROMPT_EVAL, build_dir.SQNR_EVAL, build_dir.TASKS_EVAL),
                prompt=model.prompts[0],
                more=("--eval_tasks", str(REPOSITORY / "tasks" / "htpfarm_text.yaml")),
            )
    variables = build_dir.exports(made, toolchain, state)
    script = made.folder / "llama.sh"
    script.unlink(missing_ok=True)  # an old one knows an old port
    if example:
        lines = [
            *export_lines(variables),
            f"cd {shlex.quote(str(made.run))} || exit",
            f'exec {shlex.join(example)} "$@"',
        ]
        write_atomically(script, "\n".join(["#!/bin/sh", *lines, ""]), mode=0o755)
    return {
        "environment": variables,
        "directory": str(made.run),
        "command": example,
        "script": str(script) if example else None,
    }


def print_build_dir(report: Mapping[str, Any]) -> None:
    """For a shell's `eval`: exports, then the example as a comment."""
    print("\n".join(export_lines(report["environment"])))
    if report["script"]:
        print(f"# for example (further arguments override): {shlex.quote(report['script'])}, which runs, in run/:")
        print(f"# {shlex.join(report['command'])}")
    else:
        print("# nothing is compiled for these phones yet: htpfarm compile, then this once more")


def export_lines(variables: Mapping[str, str]) -> list[str]:
    """For a shell; what ends in PATH goes in front of what is there."""
    inherited = {key: f"${{{key}:+:${key}}}" if key.endswith("PATH") else "" for key in variables}
    return [f"export {key}={shlex.quote(value)}{inherited[key]}" for key, value in variables.items()]
