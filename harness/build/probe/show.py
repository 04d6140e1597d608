"""`htpfarm gates`: the table of gates, what was proven of each, and the matrix of gate and HTP generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from harness.build.probe.job import to_dict
from harness.build.probe.marks import Answer, Mark, Observation, mark, status
from harness.build.probe.run import NAMES, PROBED, forget, known, missing, probe
from harness.errors import ConfigError
from harness.gates import GATES, Version, dotted
from harness.toolchain.environment import Toolchain, find_toolchain
from harness.toolchain.version import qnn_version

SIGNS = {
    Mark.PROVEN: "✓",
    Mark.QUANTIZER_ONLY: "q",
    Mark.DOCUMENTED_ONLY: "d",
    Mark.CONTRADICTED: "✗",
    Mark.NOT_SHOWN: "?",
}
"""A sign for each mark, so that colour is never all that tells them apart."""
_MEANINGS = {
    Mark.PROVEN: "as the gate says; what was refused was accepted without the feature",
    Mark.QUANTIZER_ONLY: "closed by ExecuTorch's quantizer and documentation, but the compiler accepts it",
    Mark.DOCUMENTED_ONLY: "closed by the documentation alone: nothing refuses it",
    Mark.CONTRADICTED: "the gate is open, but the compiler refuses",
    Mark.NOT_SHOWN: "crashed, took too long, or refused without the feature too: see the log",
}
_TAKES = {Answer.ACCEPTED: "yes", Answer.REFUSED: "no", Answer.WRONG: "wrong"}


def gates_report(*, ask: bool, fresh: bool, console: Console | None) -> dict[str, Any]:
    """What is known of every gate.

    Args:
        ask: probe what is not known yet; else only what was probed before is told.
        fresh: probe everything again.
        console: shows the probes' progress; None: silent.

    Returns:
        `qnn` (the version, None where there are no libraries), `gates` (one a gate: gate, feature, needs, remedy,
        source, status) and `probes` (one a gate and chipset: the observation and its mark).

    Raises:
        ConfigError: `ask`, and there is no toolchain.
        BuildError: the probe's worker ended early.
    """
    try:
        toolchain = find_toolchain()
        qnn: Version | None = qnn_version(toolchain)
    except ConfigError:
        if ask:
            raise
        toolchain, qnn = None, None
    seen: Sequence[Observation] = ()
    if toolchain and qnn:
        if fresh:
            forget(toolchain)
        seen = _probe(toolchain, console) if ask else known(toolchain)
    by_name = {gate.name: gate for gate in GATES}
    return {
        "qnn": dotted(qnn) if qnn else None,
        "gates": [
            {
                "gate": gate.name,
                "feature": gate.feature,
                "needs": gate.needs,
                "remedy": gate.remedy,
                "source": gate.source,
                "status": status(gate, seen, qnn) if qnn else "not probed",
            }
            for gate in GATES
        ],
        "probes": [
            {**to_dict(each), "mark": mark(by_name[each.gate], each, qnn)}
            for each in seen
            if qnn and each.gate in by_name
        ],
    }


def _probe(toolchain: Toolchain, console: Console | None) -> tuple[Observation, ...]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=console is None) as progress:
        line = progress.add_task("starting the compiler", total=len(missing(toolchain, NAMES, PROBED)))

        def heard(seen: Observation) -> None:
            progress.update(line, advance=1, description=f"{seen.gate} on {seen.soc}: {seen.answer}")

        return probe(toolchain, NAMES, PROBED, heard)


def print_gates(report: dict[str, Any], console: Console) -> None:
    """The report as tables, and the compiler's own words under them."""
    title = "what can run where" + (f" (QNN libraries here: {report['qnn']})" if report["qnn"] else "")
    table = Table(title=title, title_justify="left", show_lines=True)
    table.add_column("gate", no_wrap=True)
    table.add_column("needs", no_wrap=True)
    table.add_column("feature, remedy, source", ratio=3, overflow="fold")
    table.add_column("status", ratio=1)
    for row in report["gates"]:
        text = f"{row['feature']}\nremedy: {row['remedy']}\nsource: {row['source']}"
        table.add_row(row["gate"], row["needs"], escape(text), row["status"])
    console.print(table)
    if report["probes"]:
        _print_probes(report["probes"], console)
    else:
        console.print("nothing was probed with these libraries yet: htpfarm gates --probe", markup=False)


def _print_probes(probes: list[dict[str, Any]], console: Console) -> None:
    generations = sorted({(each["arch"], each["soc"]) for each in probes})
    matrix = Table(title="probed: does it take the graph, and what that proves", title_justify="left")
    matrix.add_column("gate", no_wrap=True)
    for arch, soc in generations:
        matrix.add_column(f"V{arch}\n{soc}", no_wrap=True)
    cells = {(each["gate"], each["soc"]): each for each in probes}
    for name in dict.fromkeys(each["gate"] for each in probes):
        row = [cells.get((name, soc)) for _, soc in generations]
        matrix.add_row(
            name, *(f"{SIGNS[each['mark']]} {_TAKES.get(each['answer'], '?')}" if each else "" for each in row)
        )
    console.print(matrix)
    console.print(
        "yes: accepted; no: refused; wrong: accepted, and computes other numbers than torch; "
        "by this machine's compiler and simulator, no phone was asked",
        markup=False,
    )
    for one, sign in SIGNS.items():
        if any(each["mark"] == one for each in probes):
            console.print(f"{sign} {one}: {_MEANINGS[one]}", markup=False, highlight=False)
    told: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for each in probes:
        if each["evidence"]:
            told.setdefault((each["gate"], each["answer"], each["mark"]), []).append(each)
    for (name, answer, _), same in told.items():
        archs = ", ".join(f"V{each['arch']}" for each in same)
        first = f" (V{same[0]['arch']})" if len(same) > 1 else ""
        console.print(f"{name} {archs}: {answer}{first}: {same[0]['evidence']}", markup=False, highlight=False)


def exit_status(report: dict[str, Any]) -> int:
    """1 where a probe contradicts a gate or shows nothing; else 0."""
    bad = {Mark.CONTRADICTED, Mark.NOT_SHOWN}
    return int(any(each["mark"] in bad for each in report["probes"]))
