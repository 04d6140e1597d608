"""Accepted runs: files under `reports/baselines/`, each with who accepted it, when and why. None is ever overwritten.

A baseline says: what this run shows is how it shall be from now on. Its cells' histories begin with it, and `htpfarm
gate` compares with the latest one that has a cell. The files are small and meant for the repository.
"""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import ConfigError
from harness.paths import REPOSITORY
from harness.results.records import Status
from harness.results.store import load_run
from harness.results.summary import summarise
from harness.verdicts.metrics import BETTER

SCHEMA = 1
FOLDER = REPOSITORY / "reports" / "baselines"


class BaselineCell(BaseModel):
    """One cell as accepted.

    Attributes:
        status: how it ended; only what passed is accepted.
        metrics: metric → median over sessions.
        perplexity: `ground/graph/tokens` → perplexity of a token.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    status: str
    metrics: dict[str, float] = Field(default_factory=dict)
    perplexity: dict[str, float] = Field(default_factory=dict)


class Baseline(BaseModel):
    """One accepted run.

    Attributes:
        schema_: version of this file's format.
        run: the run's id.
        started: when the run was started, ISO UTC: its cells' histories begin then.
        target: `sim` or `android`.
        toolchain: its fingerprint.
        accepted: when it was accepted, ISO UTC.
        who, why: by whom and for what reason.
        cells: id → what was accepted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    schema_: int = Field(alias="schema", default=SCHEMA)
    run: str
    started: str
    target: str
    toolchain: dict[str, str]
    accepted: str
    who: str
    why: str
    cells: dict[str, BaselineCell]


@dataclass(frozen=True)
class Accepted:
    """A baseline and its file."""

    path: Path
    baseline: Baseline


def accept(run: Path, why: str, who: str | None = None, folder: Path = FOLDER, now: datetime | None = None) -> Accepted:
    """Accepts the cells of a run that passed.

    Args:
        run: the run's folder.
        why: the reason; not empty.
        who: None for git's or the system's name of the user.
        folder: of the baselines.
        now: for tests.

    Raises:
        ConfigError: no reason, no cell that passed, or no run.
    """
    if not why.strip():
        raise ConfigError("a baseline needs a reason", where="--why", remedy="say what changed and why it is good")
    summary = summarise(load_run(run))
    cells = {
        cell.id: BaselineCell(
            status=cell.status,
            metrics={name: value for name in BETTER if (value := _metric(cell, name)) is not None},
            perplexity={f"{score.ground}/{score.graph}/{score.tokens}": score.token_ppl for score in cell.perplexities},
        )
        for cell in summary.with_status(Status.PASSED)
    }
    if not cells:
        raise ConfigError("no cell of the run passed", where=str(run), remedy="accept a run whose cells are good")
    moment = now or datetime.now(UTC)
    made = Baseline(
        run=summary.run.id,
        started=summary.run.started,
        target=summary.run.target.value,
        toolchain=summary.run.toolchain,
        accepted=moment.isoformat(timespec="seconds"),
        who=who or _user(),
        why=why.strip(),
        cells=cells,
    )
    folder.mkdir(parents=True, exist_ok=True)
    text = made.model_dump_json(by_alias=True, indent=2) + "\n"
    stem = f"{moment:%Y%m%d-%H%M%S}-{re.sub(r'[^A-Za-z0-9._-]', '_', made.run)}"
    number = 0
    while True:
        path = folder / f"{stem}-{number:02d}.json"
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            number += 1
            continue
        return Accepted(path, made)


def load_baselines(folder: Path = FOLDER) -> list[Accepted]:
    """All baselines in the order accepted.

    Raises:
        ConfigError: a file is none, with its name.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            baseline = Baseline.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"no baseline: {first['msg']}", where=f"{path}: {place}") from error
        if baseline.schema_ != SCHEMA:
            raise ConfigError(
                f"schema {baseline.schema_} is not known, {SCHEMA} is", where=str(path), remedy="use a newer htpfarm"
            )
        found.append(Accepted(path, baseline))
    return sorted(found, key=lambda accepted: (accepted.baseline.accepted, accepted.path.name))


def latest_for(baselines: Sequence[Accepted], cell: str, target: str) -> Accepted | None:
    """The last baseline that has the cell on that target."""
    fit = [one for one in baselines if one.baseline.target == target and cell in one.baseline.cells]
    return fit[-1] if fit else None


def accepted_times(folder: Path = FOLDER) -> dict[tuple[str, str], str]:
    """(cell, target) → when the run was started that was last accepted for it, ISO UTC."""
    found = [one.baseline for one in load_baselines(folder)]
    return {(cell, baseline.target): baseline.started for baseline in found for cell in baseline.cells}


def _metric(cell: object, name: str) -> float | None:
    value = getattr(cell, "peak_mb" if name == "peak_rss_mb" else name)
    return None if value is None else float(value)


def _user() -> str:
    return os.environ.get("GIT_AUTHOR_NAME") or getpass.getuser()
