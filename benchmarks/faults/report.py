"""What came of each fault, as one row, and the rows as a table. Pure, but for reading and writing files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

MARKS = {"PASSED": "·", "FAILED": "✗", "INVALID": "!", "INCONCLUSIVE": "?", "NOT_JUDGED": "–"}
CLEAN = "none"


@dataclass(frozen=True)
class Row:
    """One fault in one cell.

    Attributes:
        fault: its name; `none` of the unchanged product.
        what, kind: as in `Fault`.
        place: the cell.
        outcome, failure_class, reason: of the cell.
        checks: name → verdict.
        changes: what the fault changed in what the cell asked for, in words.
        matters: whether it changed a token, a score by more than 0.5%, or a number of steps, asked for by the cell or
            by the battery.
        beyond: what it changed in the battery's requests, where the cell saw nothing.
        strikes: how often it did what it is there for.
        seconds, cpu_s: of the cell; CPU of its runners.
        problem: why the row says nothing; empty if it does.
        exempt: why it need not be caught: it is another model, or a speed alone.
    """

    fault: str
    what: str
    kind: str
    place: str
    outcome: str
    failure_class: str
    reason: str
    checks: dict[str, str] = field(default_factory=dict)
    changes: str = ""
    matters: bool = False
    beyond: str = ""
    strikes: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    problem: str = ""
    exempt: str = ""

    @property
    def caught(self) -> bool:
        """Whether the cell did not pass."""
        return self.outcome != "PASSED"

    @property
    def word(self) -> str:
        """What is to be said of it: `caught`, `nothing changed`, `GOT THROUGH`, …"""
        if self.problem:
            return "PROBLEM"
        if self.fault == CLEAN:
            return f"FAILED ({self.failure_class})" if self.caught else "passed"
        if self.caught:
            if self.matters or self.exempt:
                return "caught"
            return "caught, though nothing changed" if self.changes == "nothing" else "caught, small as it is"
        if self.matters:
            return f"passes ({self.exempt})" if self.exempt else "GOT THROUGH"
        if not self.strikes and self.kind != "build":
            return "never struck"
        return "nothing changed" if self.changes == "nothing" else "passes, small as it is"

    @property
    def wrong(self) -> bool:
        """Whether the benchmark fails by it."""
        return self.word.startswith(("PROBLEM", "FAILED", "GOT THROUGH"))

    def by(self) -> str:
        """What caught it."""
        checks = [name for name, verdict in self.checks.items() if verdict != "PASSED"]
        return ", ".join(checks) if checks else (self.failure_class if self.caught else "")


def write(rows: Sequence[Row], path: Path) -> None:
    """As JSON."""
    path.write_text(json.dumps([{**asdict(row), "word": row.word} for row in rows], indent=1, ensure_ascii=False))


def read(path: Path) -> list[Row]:
    """What was written row by row."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        raw = json.loads(line)
        rows.append(Row(**raw))
    return rows


def append(row: Row, path: Path) -> None:
    """One row more."""
    with path.open("a") as stream:
        stream.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


def markdown(rows: Sequence[Row], command: str) -> str:
    """The table of faults and checks. Pure."""
    names = sorted({name for row in rows for name in row.checks})
    letters = [f"{number}" for number, _ in enumerate(names, 1)]
    faults = [row for row in rows if row.fault != CLEAN]
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.word] = counts.get(row.word, 0) + 1
    lines = [
        "# Planted faults",
        "",
        f"Written by `{command}`. {len({row.fault for row in faults})} faults in {len(faults)} cells: "
        + ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
        + ".",
        "",
        "What a fault changes is measured beside a sound runner, which is asked the same. It matters where a token, a "
        "score by more than 0.5%, or a number of steps changes. Checks: "
        + "; ".join(f"{letter} `{name}`" for letter, name in zip(letters, names, strict=True))
        + ". Marks: "
        + ", ".join(f"{mark} {verdict}" for verdict, mark in MARKS.items())
        + ".",
        "",
        "| fault | what | cell | it changes | verdict | " + " | ".join(letters) + " |",
        "| --- | --- | --- | --- | --- | " + " | ".join("---" for _ in letters) + " |",
    ]
    for row in sorted(rows, key=lambda row: (not row.wrong, row.fault != CLEAN, row.kind, row.fault, row.place)):
        marks = [MARKS.get(row.checks.get(name, ""), row.checks.get(name, "")) for name in names]
        change = row.changes + (f"; beyond the cell: {row.beyond}" if row.beyond else "")
        verdict = row.word + (f": {row.failure_class}" if row.caught and not row.problem else "")
        if row.problem:
            verdict += f": {row.problem}"
        cells = [f"`{row.fault}`", row.what, row.place, change, verdict, *marks]
        lines.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
