"""Mutants that mean the same as the module, listed with the reason; each entry must still match one."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mutation.operators import Mutant

_KEYS = {"file", "line", "operator", "becomes", "reason"}


@dataclass(frozen=True)
class Equivalent:
    """One entry.

    Attributes:
        file: the module.
        line: the text of the changed line, without the space around it.
        operator: what was done to it.
        reason: why nobody can tell.
        becomes: the changed line; empty stands for all that the operator makes of it.
    """

    file: str
    line: str
    operator: str
    reason: str
    becomes: str = ""

    def matches(self, mutant: Mutant) -> bool:
        """Whether it is about this mutant."""
        return (self.file, self.line, self.operator) == (mutant.file, mutant.before.strip(), mutant.operator) and (
            not self.becomes or self.becomes == mutant.after.strip()
        )


def load(path: Path) -> list[Equivalent]:
    """The entries of a file.

    Raises:
        ValueError: a key that is unknown or missing, or an entry without a reason.
    """
    if not path.exists():
        return []
    found = []
    for number, entry in enumerate(tomllib.loads(path.read_text()).get("equivalent", ()), start=1):
        missing = _KEYS - {"becomes"} - {key for key, value in entry.items() if str(value).strip()}
        if missing or entry.keys() - _KEYS:
            wrong = sorted(missing | (entry.keys() - _KEYS))
            raise ValueError(f"{path}: entry {number}: missing or unknown: {', '.join(wrong)}")
        found.append(Equivalent(**entry))
    return found


def unmatched(entries: Sequence[Equivalent], every: Sequence[Mutant], files: Sequence[str]) -> list[Equivalent]:
    """Entries about these files that match no mutant of them any more."""
    return [one for one in entries if one.file in files and not any(one.matches(mutant) for mutant in every)]


def reason(entries: Sequence[Equivalent], mutant: Mutant) -> str:
    """Why a mutant is equivalent; empty when it is not listed."""
    return next((one.reason for one in entries if one.matches(mutant)), "")
