"""The table of rows: `python -m harness.twins.table RUN [RUN …]` writes docs/models.md from runs of all twins.

A row's cells come from the runs' records, a later run before an earlier one; what a `.pte` is made of from the file
itself and the log beside it; whether its weights are loaded as transformers loads them is measured now.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.files import write_atomically
from harness.models import ModelSpec, load_models
from harness.paths import MODELS, REPOSITORY
from harness.results.records import Status
from harness.results.store import load_run
from harness.results.summary import CellSummary, summarise
from harness.runtime.program import read_info
from harness.twins import SUFFIX, has_twin, twins
from harness.twins.parity import LEAST_DB, Parity, measure

TABLE = REPOSITORY / "docs" / "models.md"
_NODE = re.compile(r"\[QnnPartitioner\] \S+ \| (True|False)")
_NOT_RUN = "–"
_EXPLAINED = """\
Every row of `models/`, shown by its *twin*: the same architecture at toy size with random weights that transformers
makes from its own config class, quantised by the row's own recipe, compiled by Qualcomm's compiler and run on virtual
phones (`sim`). With the real weights on disk the same cells run on them.

Written by `{command}` after `pytest -m device --models all-twins`. {passed} of {cells} cells that ran passed; {missing}
of {rows} rows have not run.

- **static**: SQNR of upstream's static Llama against transformers, float32, over 128 tokens; at least {least} dB.
- **KV**: bits of the KV cache. **contexts**: context binaries a graph, of the shards asked for.
- **delegated**: nodes on the HTP of those that the partitioner was asked about, over all artifacts.
- **kv, hybrid, lookahead**: cells that passed of those that ran; a cell is one SoC. **noise**: RMS of the phone's
  log-probabilities off QDQ's, given the same tokens, in units of what random rounding does to them; the most of a cell.
- **ties**: greedy tokens that differ from QDQ's where it finds both nearly as likely, of all compared."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        model: the row.
        parity: its twin in the static Llama against transformers; None: not measured.
        cells: the twin's cells that ran, the last result of each.
        nodes: nodes the partitioner asked about, and of these delegated, over the artifacts whose log is there.
        contexts: context binaries of each graph, smallest and largest.
    """

    model: ModelSpec
    parity: Parity | None
    cells: tuple[CellSummary, ...]
    nodes: tuple[int, int]
    contexts: tuple[int, int] | None


def gather(
    models: Iterable[ModelSpec], parities: Mapping[str, Parity], cells: Sequence[CellSummary]
) -> tuple[Row, ...]:
    """A row for each model that has a twin; reads the artifacts that are still there."""
    rows = []
    for model in models:
        name = model.name + SUFFIX
        last = {cell.id: cell for cell in cells if cell.plan.model == name and cell.status != Status.SKIPPED}
        paths = {Path(cell.artifact.path) for cell in last.values() if cell.artifact}
        there = sorted(path for path in paths if path.is_file())
        nodes = [found for path in there for found in _NODE.findall(_log(path))]
        infos = [read_info(path) for path in there]
        counts = [info.delegate.contexts // len(info.graphs) for info in infos if info.delegate]
        rows.append(
            Row(
                model,
                parities.get(name),
                tuple(last[key] for key in sorted(last)),
                (len(nodes), nodes.count("True")),
                (min(counts), max(counts)) if counts else None,
            )
        )
    return tuple(rows)


def _log(pte: Path) -> str:
    log = pte.with_name("build.log")
    return log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""


def markdown(rows: Sequence[Row], command: str) -> str:
    """The page. Pure."""
    done = [row for row in rows if row.cells]
    passed = sum(cell.status == Status.PASSED for row in rows for cell in row.cells)
    lines = [
        "# Models",
        "",
        *_EXPLAINED.format(
            command=command,
            passed=passed,
            cells=sum(len(row.cells) for row in rows),
            missing=len(rows) - len(done),
            rows=len(rows),
            least=f"{LEAST_DB:g}",
        ).splitlines(),
        "",
        "| row | static | recipe | KV | contexts | delegated | kv | hybrid | lookahead | noise | ties |",
        "| --- | ---: | --- | ---: | --- | ---: | --- | --- | --- | ---: | --- |",
    ]
    lines += [_line(row) for row in rows]
    lines += ["", "## What did not pass", ""] if passed < sum(len(row.cells) for row in rows) else []
    lines += [
        f"- `{cell.id}`: {cell.failure_class}: {cell.reason}"
        for row in rows
        for cell in row.cells
        if cell.status != Status.PASSED
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    model, parity = row.model, row.parity
    weights = model.recipe.weights or ("LPBQ" if model.lpbq else "16a8w/16a4w")
    asked, nodes = model.shards, row.nodes
    made = "–" if row.contexts is None else "–".join(dict.fromkeys(map(str, row.contexts)))
    checks = [check for cell in row.cells for check in cell.checks]
    most = max((c.value for c in checks if c.name == "phone_vs_qdq_noise" and c.value is not None), default=None)
    cells = [
        model.name,
        f"{parity.sqnr_db:.1f} dB" if parity else _NOT_RUN,
        f"{model.recipe.name} ({weights})",
        str(model.kv_bits),
        f"{made} of {asked}",
        f"{nodes[1]:,} of {nodes[0]:,}" if nodes[0] else _NOT_RUN,
        *(_passed(row, mode) for mode in ("kv", "hybrid", "lookahead")),
        f"{most:.2f}" if most is not None else _NOT_RUN,
        _ties([check.text for check in checks if check.name == "text_as_qdq"]),
    ]
    return "| " + " | ".join(cells) + " |"


def _passed(row: Row, mode: str) -> str:
    if mode not in row.model.modes:
        return "not listed"
    ran = [cell for cell in row.cells if cell.plan.mode == mode]
    return f"{sum(cell.status == Status.PASSED for cell in ran)} of {len(ran)}" if ran else _NOT_RUN


def _ties(texts: Sequence[str]) -> str:
    found = [re.match(r"(\d+) of \d+ greedy tokens held against QDQ, (\d+)", text) for text in texts]
    counts = [(int(match[1]), int(match[2])) for match in found if match]
    return f"{sum(ties for _, ties in counts)} of {sum(all_ for all_, _ in counts)}" if counts else _NOT_RUN


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m harness.twins.table", description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs, the newest last")
    parser.add_argument("--output", type=Path, default=TABLE)
    arguments = parser.parse_args()
    models = [model for model in load_models(MODELS).values() if has_twin(model)]
    cells = [cell for run in arguments.runs for cell in summarise(load_run(run)).cells]
    parities = {found.name: found for found in measure(twins(models))}
    rows = gather(models, parities, cells)
    write_atomically(arguments.output, markdown(rows, "python -m harness.twins.table RUN"))
    print(arguments.output)


if __name__ == "__main__":
    main()
