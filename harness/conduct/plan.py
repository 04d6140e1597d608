"""What a run will do, decided before anything runs: cells, verdicts, artifacts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.build.cache import Artifact, locate
from harness.gates import Verdict, judge
from harness.inventory import Inventory, Phone, load_inventory
from harness.matrix import Cell, cells_for_rack, parse_modes, parse_socs
from harness.model_file import Mode
from harness.models import ModelSpec, load_models, select
from harness.paths import MODELS
from harness.soc import Soc
from harness.target import Target

DEFAULT_MODELS = "tiny_llama"
_ORDER = {Mode.KV: 0, Mode.HYBRID: 1, Mode.LOOKAHEAD: 2}


@dataclass(frozen=True)
class Choice:
    """What the user asked for, read and checked."""

    inventory: Inventory
    models: tuple[ModelSpec, ...]
    modes: tuple[Mode, ...] | None
    socs: tuple[Soc, ...] | None


@dataclass(frozen=True)
class Planned:
    """A cell and its verdict; `phones` are the names of those it may run on."""

    cell: Cell
    verdict: Verdict
    phones: tuple[str, ...]


def read_choice(rack: Path, models: str, modes: str | None, socs: str | None, folder: Path = MODELS) -> Choice:
    """Reads the inventory and the models, and parses the selections.

    Raises:
        ConfigError: with file, key and line, or the option's name.
    """
    known = load_models(folder)
    names = [name.strip() for name in models.split(",") if name.strip()]
    return Choice(
        load_inventory(rack),
        select(known, names),
        parse_modes(modes) if modes else None,
        parse_socs(socs) if socs else None,
    )


def plan(choice: Choice, phones: Iterable[Phone], target: Target) -> tuple[Planned, ...]:
    """Every cell of the rack's phones with its verdict, in the order in which they are worth running.

    kv before hybrid: its artifact is ready first.

    Args:
        phones: probed: each with its SoC.
        target: what artifacts are built for; some gates depend on it.
    """
    rack = tuple(phones)
    planned = [
        Planned(
            cell,
            judge(cell, target),
            tuple(p.name for p in rack if p.soc == cell.soc and cell.phone in (None, p.name)),
        )
        for cell in cells_for_rack(choice.models, choice.modes, rack, choice.socs)
    ]
    return tuple(sorted(planned, key=lambda p: (p.cell.model.name, _ORDER[p.cell.mode], p.cell.id)))


def artifacts(planned: Sequence[Planned], target: Target, fingerprint: dict[str, str]) -> dict[str, Artifact]:
    """Cell id → where its artifact is or will be, for every cell that runs."""
    return {
        p.cell.id: locate(p.cell.model, p.cell.mode, p.cell.soc, target, p.cell.lengths, fingerprint)
        for p in planned
        if p.verdict.run
    }
