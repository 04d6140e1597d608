"""Mutation testing: change one line of a module that decides an outcome, and see whether its tests notice.

    make mutants MODULES="harness/verdicts harness/gates.py" ARGS="--sample 30 --seed 1"
    python tools/mutants.py harness/verdicts/bound.py
    python tools/mutants.py --list harness/verdicts

Which tests belong to which module says `tools/mutation/modules.toml`; `tools/mutants_equivalent.toml` lists the mutants
that mean the same as the module. Exit status: 1 below 95% of the others killed, 2 for a wrong list or argument.

A script of ours, since of the two known tools neither fits: mutmut 3.8 changes what is inside undecorated functions,
so no constant of a module and no property; cosmic-ray 8.7 starts a test command, hence a new Python with all its
imports, for each mutant. Here one process imports once what the tests need and forks for each mutant, and only tests
that execute the changed line are run, those that noticed others first.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mutation import engine, equivalents
from mutation.engine import EQUIVALENT, KILLED, SURVIVED, TIMEOUT, Traced, Verdict
from mutation.imports import import_graph
from mutation.operators import Mutant, mutants, sample

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
LEAST = 95.0
"""Percent of mutants killed, those that are equivalent apart."""


@dataclass(frozen=True)
class Tally:
    """The mutants of one module, counted."""

    file: str
    mutants: int
    killed: int
    timeouts: int
    survived: int
    equivalent: int

    @property
    def percent(self) -> float:
        """Killed ones, of those that are not equivalent."""
        counted = self.mutants - self.equivalent
        return 100.0 * self.killed / counted if counted else 100.0


def tally(file: str, verdicts: Sequence[Verdict]) -> Tally:
    """Count; a mutant that ran out of time is a killed one."""
    count = {word: sum(one.word == word for one in verdicts) for word in (KILLED, TIMEOUT, SURVIVED, EQUIVALENT)}
    return Tally(
        file, len(verdicts), count[KILLED] + count[TIMEOUT], count[TIMEOUT], count[SURVIVED], count[EQUIVALENT]
    )


def table(tallies: Sequence[Tally]) -> str:
    """One row a module, and all of them."""
    whole = Tally("all", *(sum(getattr(one, name) for one in tallies) for name in list(Tally.__dataclass_fields__)[1:]))
    head = "| module | mutants | killed | of them by time | survived | equivalent | % killed |\n" + "| --- " * 7 + "|"
    rows = [
        f"| {one.file} | {one.mutants} | {one.killed} | {one.timeouts} | {one.survived} | {one.equivalent} "
        f"| {one.percent:.1f} |"
        for one in [*tallies, *([whole] if len(tallies) > 1 else [])]
    ]
    return "\n".join([head, *rows])


def difference(mutant: Mutant) -> str:
    """A mutant's change as two lines."""
    return f"    - {mutant.before.strip()}\n    + {mutant.after.strip()}"


def chosen_files(known: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The modules of the table that the arguments name: themselves or a folder of them; all without arguments.

    Raises:
        ValueError: an argument names none.
    """
    names = [name.rstrip("/") for one in wanted for name in one.replace(",", " ").split()]
    for name in names:
        if not any(file == name or file.startswith(f"{name}/") for file in known):
            raise ValueError(f"{name}: no module of the table; they are: {', '.join(known)}")
    return [file for file in known if not names or any(file == n or file.startswith(f"{n}/") for n in names)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="mutation testing of the modules that decide an outcome")
    parser.add_argument("modules", nargs="*", help="modules or folders of them (all of the table)")
    parser.add_argument("--list", action="store_true", help="name the mutants and run nothing")
    parser.add_argument("--sample", type=int, metavar="N", help="so many of each module, chosen by the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="TEXT", help="only mutants whose id contains it, as `:74:` or `boolop`")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="mutants at a time (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every mutant's verdict there too")
    parser.add_argument("--verbose", action="store_true", help="say of each mutant how it went")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    parser.add_argument("--package", default="harness", help=argparse.SUPPRESS)
    parser.add_argument("--table", type=Path, default=TOOLS / "mutation/modules.toml", help=argparse.SUPPRESS)
    parser.add_argument("--equivalent", type=Path, default=TOOLS / "mutants_equivalent.toml", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    root: Path = options.root.resolve()
    try:
        tests: dict[str, list[str]] = tomllib.loads(options.table.read_text())["modules"]
        files = chosen_files(list(tests), options.modules)
        entries = equivalents.load(options.equivalent)
        every = {file: mutants(file, (root / file).read_text()) for file in files}
    except (ValueError, OSError) as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2
    stale = equivalents.unmatched(entries, [one for found in every.values() for one in found], files)
    for entry in stale:
        print(f"{options.equivalent}: nothing matches any more: {entry.file}: {entry.operator}: {entry.line}")
    if stale:
        return 2
    if options.only:
        every = {file: [one for one in found if options.only in one.id] for file, found in every.items()}
    if options.sample is not None:
        every = {file: sample(found, options.sample, options.seed) for file, found in every.items()}
    if options.list:
        for found in every.values():
            for one in found:
                print(f"{one.id}\n{difference(one)}")
        return 0
    return run(root, options, tests, every, entries)


def run(
    root: Path,
    options: argparse.Namespace,
    tests: dict[str, list[str]],
    every: dict[str, list[Mutant]],
    entries: Sequence[equivalents.Equivalent],
) -> int:
    """Judge the mutants and print what came of them."""
    graph = import_graph(root, options.package)
    traced: dict[str, Traced] = {}
    verdicts: dict[str, list[Verdict]] = {}
    for file, found in every.items():
        for test_file in tests[file]:
            if test_file not in traced:
                traced[test_file] = engine.trace(root, test_file, [one for one in every if test_file in tests[one]])
                for test in traced[test_file].failed:
                    print(f"{test} fails without a mutant; it is left out", file=sys.stderr)
        reasons = {one.id: equivalents.reason(entries, one) for one in found}
        mine = {test_file: traced[test_file] for test_file in tests[file]}
        verdicts[file] = _judged(root, file, found, reasons, mine, graph, options)
        print(table([tally(file, verdicts[file])]).splitlines()[-1], file=sys.stderr, flush=True)
    for file, judged in verdicts.items():
        survivors = [one for one in judged if one.word == SURVIVED]
        if survivors:
            print(f"Survivors of {file}:")
        for one in survivors:
            print(f"  {one.mutant.id} ({one.why})\n{difference(one.mutant)}")
    tallies = [tally(file, judged) for file, judged in verdicts.items()]
    print(table(tallies))
    if options.json:
        rows = [
            {"id": one.mutant.id, "verdict": one.word, "why": one.why} for found in verdicts.values() for one in found
        ]
        options.json.write_text(json.dumps(rows, indent=1))
    return int(any(one.percent < LEAST for one in tallies))


def _judged(
    root: Path,
    file: str,
    found: Sequence[Mutant],
    reasons: dict[str, str],
    traced: dict[str, Traced],
    graph: dict[str, frozenset[str]],
    options: argparse.Namespace,
) -> list[Verdict]:
    real = [one for one in found if not reasons[one.id]]

    def said(verdict: Verdict) -> None:
        if options.verbose:
            print(f"{verdict.word}: {verdict.mutant.id} ({verdict.why})", file=sys.stderr, flush=True)

    judged = engine.verdicts_of(
        lambda told: engine.judge_module(root, file, real, traced, graph, options.jobs, said=told), said
    )
    by_id = {one.mutant.id: one for one in judged}
    return [by_id.get(one.id) or Verdict(one, EQUIVALENT, reasons[one.id]) for one in found]


if __name__ == "__main__":
    sys.exit(main())
