"""Writes docs/checks.md: what each check of a cell compares, the noise of right products, and what it is sure to catch.

    python benchmarks/checks.py RUN [RUN …] [--mutants FILE] [--faults FILE] [--output docs/checks.md]

The noise is read from the records of runs of the unchanged product: every cell that PASSED, by model, recipe, mode and
SoC. The smallest faults are simulated with the shipped checks themselves, on the rows of the tiny model's witness: a
right phone is QDQ with noise of the size that the runs show, and the fault comes on top. `--mutants` takes what
`make mutants` wrote, `--faults` what `benchmarks/planted_faults.py --json` wrote.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.build.cache import locate
from harness.build.witness import COMPARED, Witness, load_witness
from harness.evaluate.deviations import compare_logprobs, gain, noise, row_scale
from harness.evaluate.judge import Verdict, decide, difference
from harness.evaluate.rules import LIMIT_ROUNDS, RULES, VERSION
from harness.model_file import Mode
from harness.models import load_models
from harness.paths import MODELS, REPOSITORY
from harness.results.records import ArtifactRecord, CheckRecord, OutcomeRecord, PlanEntry, Record, Status
from harness.results.store import RECORDS, read_records
from harness.runtime.score import TopRows
from harness.soc import find_soc
from harness.target import Target
from harness.toolchain.environment import find_toolchain, fingerprint

SURE = 0.99
SIMULATIONS = 200
SIZES = (32, 128, 256, 1024)
SHOWN = ("phone_vs_qdq_noise", "phone_vs_qdq_row", "phone_vs_qdq_gain", "phone_vs_qdq_ppl", "prefill_vs_kv_ppl")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Right:
    """A cell of the unchanged product and what its checks found."""

    model: str
    recipe: str
    mode: str
    soc: str
    found: dict[str, float]


def right_cells(runs: Sequence[Path]) -> list[Right]:
    """Every cell that passed, with the last value of each check."""
    cells = []
    for run in runs:
        records: list[Record] = read_records(run / RECORDS)
        plans = {record.cell: record for record in records if isinstance(record, PlanEntry)}
        built = {record.cell for record in records if isinstance(record, ArtifactRecord)}
        for outcome in (record for record in records if isinstance(record, OutcomeRecord)):
            if outcome.status is not Status.PASSED or outcome.cell not in built:
                continue
            checks = [
                r for r in records if isinstance(r, CheckRecord) and r.cell == outcome.cell and r.rules == VERSION
            ]
            found = {check.name: check.value for check in checks if check.name in SHOWN and check.value is not None}
            plan = plans[outcome.cell]
            if found:
                cells.append(Right(plan.model, plan.recipe, plan.mode, plan.soc, found))
    return sorted(cells, key=lambda cell: (cell.model, cell.mode, cell.soc))


@dataclass(frozen=True)
class Rows:
    """QDQ's rows that phones are simulated from: logprobs [n,COMPARED], and each row's spread and scale [n]."""

    logprobs: Floats
    spread: Floats
    scale: Floats
    target_spread: Floats


def witness_rows(witness: Witness) -> Rows:
    """All rows of a witness."""
    spread = np.concatenate([text.spread for text in witness.texts])
    return Rows(
        np.concatenate([text.logprobs[:, :COMPARED] for text in witness.texts]),
        spread,
        row_scale(spread, witness.typical_spread),
        np.concatenate([text.target_spread for text in witness.texts]),
    )


Fault = Callable[[Rows, npt.NDArray[np.int64], float, float, np.random.Generator], Verdict]
"""Rows, which of them, size of the right noise in spreads, size of the fault, randomness → what the check says."""


def _phone(rows: Rows, which: npt.NDArray[np.int64], right: float, random: np.random.Generator) -> Floats:
    """QDQ's log-probabilities with a right phone's noise."""
    sigma = right * rows.spread[which, None]
    return np.asarray(rows.logprobs[which] + random.normal(size=(len(which), COMPARED)) * sigma)


def _compared(rows: Rows, which: npt.NDArray[np.int64], phone: Floats) -> Any:
    ids = np.tile(np.arange(COMPARED), (len(which), 1))
    return compare_logprobs("kv", "simulated", ids, rows.logprobs[which], rows.scale[which], TopRows(ids, phone))


def more_noise(
    rows: Rows, which: npt.NDArray[np.int64], right: float, size: float, random: np.random.Generator
) -> Verdict:
    """Every log-probability is off by `size` spreads more."""
    phone = _phone(rows, which, right, random)
    phone = phone + random.normal(size=phone.shape) * size * rows.scale[which, None]
    return decide(noise([_compared(rows, which, phone)]), RULES.noise)


def one_row(
    rows: Rows, which: npt.NDArray[np.int64], right: float, size: float, random: np.random.Generator
) -> Verdict:
    """One row of all is off by `size` spreads."""
    phone = _phone(rows, which, right, random)
    direction = random.normal(size=COMPARED)
    phone[0] += direction / np.sqrt(np.square(direction).mean()) * size * rows.scale[which[0]]
    worst = float(_compared(rows, which, phone).units.max())
    return Verdict.PASSED if worst <= RULES.row else Verdict.FAILED


def scaled(rows: Rows, which: npt.NDArray[np.int64], right: float, size: float, random: np.random.Generator) -> Verdict:
    """All logits are `1 + size` times as large."""
    phone = _phone(rows, which, right, random)
    mean = rows.logprobs[which].mean(axis=1, keepdims=True)
    phone = phone + size * (rows.logprobs[which] - mean)
    return decide(gain([_compared(rows, which, phone)]), RULES.gain)


def shifted(
    rows: Rows, which: npt.NDArray[np.int64], right: float, size: float, random: np.random.Generator
) -> Verdict:
    """The perplexity is `size` higher (its logarithm)."""
    off = random.normal(size=len(which)) * right * rows.target_spread[which] - size
    return decide(difference(off.tolist(), [0.0] * len(which)), 0.01)


FAULTS: tuple[tuple[str, str, Fault, float, str], ...] = (
    ("phone_vs_qdq_noise", "noise on every logit beside the right one", more_noise, 1.0, "spreads"),
    ("phone_vs_qdq_row", "one row of all that is off", one_row, 1.0, "spreads"),
    ("phone_vs_qdq_gain", "all logits scaled by 1 + x", scaled, 100.0, "%"),
    ("phone_vs_qdq_ppl", "perplexity higher by x", shifted, 100.0, "%"),
)


def smallest(fault: Fault, rows: Rows, count: int, right: float, seed: int = 0) -> tuple[float, float]:
    """The smallest fault that is not PASSED in SURE of the simulations; the share of right products PASSED at once."""

    def caught(size: float) -> float:
        random = np.random.default_rng(seed)
        found = [
            fault(rows, random.integers(0, len(rows.spread), count), right, size, random) is not Verdict.PASSED
            for _ in range(SIMULATIONS)
        ]
        return sum(found) / SIMULATIONS

    low, high = 0.0, 1e-3
    while caught(high) < SURE:
        low, high = high, high * 2
        if high > 100:
            return math.inf, 1 - caught(0.0)
    for _ in range(7):
        middle = (low + high) / 2
        low, high = (low, middle) if caught(middle) >= SURE else (middle, high)
    return high, 1 - caught(0.0)


def noise_table(cells: Sequence[Right]) -> str:
    """The noise of right products, a line a model, recipe and mode, over its SoCs."""
    lines = ["| model | recipe | mode | SoCs | noise | worst row | gain | perplexity | prefill against kv |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    groups: dict[tuple[str, str, str], list[Right]] = {}
    for cell in cells:
        groups.setdefault((cell.model, cell.recipe, cell.mode), []).append(cell)
    for (model, recipe, mode), members in groups.items():
        socs = ", ".join(dict.fromkeys(cell.soc for cell in members))
        values = []
        for name in SHOWN:
            found = [cell.found[name] for cell in members if name in cell.found]
            worst = max(found, key=abs, default=None)
            scale, digits = (1, 2) if name in SHOWN[:2] else (100, 3)
            unit = "" if scale == 1 else "%"
            values.append("–" if worst is None else f"{worst * scale:.{digits}f}{unit}")
        lines.append(f"| {model} | {recipe} | {mode} | {socs} | {' | '.join(values)} |")
    return "\n".join(lines)


def fault_table(rows: Rows, right: float) -> str:
    """The smallest fault that each check is sure to catch, by the number of rows."""
    lines = [f"| check | fault | {' | '.join(f'{size} rows' for size in SIZES)} |"]
    lines.append("| --- | --- |" + " --- |" * len(SIZES))
    for name, words, fault, scale, unit in FAULTS:
        cells = []
        for count in SIZES:
            print(f"{name}, {count} rows", file=sys.stderr)
            size, passed = smallest(fault, rows, count, right)
            cells.append(f"{size * scale:.2f} {unit} ({passed:.0%})")
        lines.append(f"| `{name}` | {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def mutants_table(path: Path | None) -> str:
    """What `make mutants` found, a line a module."""
    if path is None:
        return "Not measured with this page: `make mutants`."
    modules = json.loads(path.read_text(encoding="utf-8"))["modules"]
    lines = ["| module | mutants | killed | survived | equivalent | killed of those not equivalent |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for one in modules:
        counted = one["killed"] + one["survived"]
        share = f"{one['killed'] / counted:.1%}" if counted else "–"
        counts = f"{one['killed'] + one['survived'] + one['equivalent']} | {one['killed']} | {one['survived']}"
        lines.append(f"| {one['module']} | {counts} | {one['equivalent']} | {share} |")
    return "\n".join(lines)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--mutants", type=Path)
    parser.add_argument("--faults", type=Path)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "checks.md")
    options = parser.parse_args()
    cells = right_cells(options.runs)
    if not cells:
        print(f"no cell that passed by rules {VERSION} in {', '.join(map(str, options.runs))}", file=sys.stderr)
        return 2
    model = load_models(MODELS)["tiny_llama"]
    known = fingerprint(find_toolchain())
    artifact = locate(model, Mode.HYBRID, find_soc("SM8650"), Target.SIM, model.lengths, known)
    witness = load_witness(artifact.reference)
    right = float(np.mean([cell.found["phone_vs_qdq_noise"] for cell in cells if cell.model == model.name] or [0.5]))
    faults = "Not measured with this page: `python benchmarks/planted_faults.py`."
    if options.faults:
        faults = options.faults.read_text(encoding="utf-8")
    text = (Path(__file__).parent / "checks.md.in").read_text(encoding="utf-8")
    values = {
        "VERSION": str(VERSION),
        "COMPARED": str(COMPARED),
        **{name.upper(): f"{value:g}" for name, value in vars(RULES).items() if name != "noise"},
        "NOISE_BOUND": f"{RULES.noise:g}",
        "NOISE": noise_table(cells),
        "RIGHT": f"{right:.2f}",
        "SPREAD": f"{witness.typical_spread:.3f}",
        "TIE_NATS": f"{RULES.tie * witness.typical_spread:.2f}",
        "SMALLEST": fault_table(witness_rows(witness), right),
        "ROUNDS": str(LIMIT_ROUNDS),
        "MUTANTS": mutants_table(options.mutants),
        "FAULTS": faults,
    }
    for key, value in values.items():
        text = text.replace(f"@{key}@", value.rstrip("\n"))
    options.output.write_text(text, encoding="utf-8")
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
