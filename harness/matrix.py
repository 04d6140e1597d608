"""Model × mode × SoC → cells, with ids that are unique, stable and sort. Pure: reads nothing, asks no phone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.errors import ConfigError
from harness.inventory import Phone
from harness.models import UPSTREAM, Lengths, Mode, ModelSpec
from harness.soc import SOCS, Soc, suggestion
from harness.target import Target

__all__ = ["Cell", "Lengths", "Mode", "Target", "cells", "cells_for_rack", "parse_modes", "parse_socs"]


@dataclass(frozen=True)
class Cell:
    """One thing to test: a model in a mode on a SoC.

    Attributes:
        model: the model.
        mode: how it is compiled and run.
        soc: the chipset it is compiled for.
        lengths: sizes compiled in.
        recipe: name of the quantisation recipe.
        phone: name of the one phone it must run on; None when any phone with the SoC will do.
    """

    model: ModelSpec
    mode: Mode
    soc: Soc
    lengths: Lengths
    recipe: str = UPSTREAM
    phone: str | None = None

    @property
    def id(self) -> str:
        """`model-mode-SoC`, then `-recipe` unless it is upstream's, then `@phone` when pinned to a phone."""
        text = f"{self.model.name}-{self.mode}-{self.soc.name}"
        if self.recipe != UPSTREAM:
            text += f"-{self.recipe}"
        return f"{text}@{self.phone}" if self.phone else text


def cells(
    models: Iterable[ModelSpec],
    modes: Sequence[Mode] | None,
    socs: Iterable[Soc],
    lengths: Lengths | None = None,
) -> tuple[Cell, ...]:
    """Every model in every mode for every SoC, sorted by id, each once.

    Args:
        models: the models; each in the recipe its file names.
        modes: the modes; None for each model's own. A mode that a model does not list is kept: a gate will skip it
            and say why.
        socs: the chipsets.
        lengths: sizes for all; None for each model's own.
    """
    socs = tuple(socs)
    found = {
        cell.id: cell
        for model in models
        for mode in (model.modes if modes is None else modes)
        for soc in socs
        for cell in (Cell(model, mode, soc, lengths or model.lengths, model.recipe.name),)
    }
    return tuple(found[cell_id] for cell_id in sorted(found))


def cells_for_rack(
    models: Iterable[ModelSpec],
    modes: Sequence[Mode] | None,
    phones: Iterable[Phone],
    socs: Iterable[Soc] | None = None,
    lengths: Lengths | None = None,
    *,
    each: bool = True,
) -> tuple[Cell, ...]:
    """One cell for each model × mode × phone of the rack, sorted by id.

    Where several phones have the SoC, each cell is pinned to one of them (`@phone`), so that each phone is tested;
    unless not `each`: then there is one cell for all of them, and any may run it.

    Args:
        models: as for `cells`.
        modes: as for `cells`.
        phones: the rack, probed: a phone whose `soc` is None gets no cell, and it is the caller's to say so.
        socs: only phones with one of these; None for all.
        lengths: as for `cells`.
    """
    wanted = None if socs is None else set(socs)
    rack = [(phone.name, phone.soc) for phone in phones if phone.soc and (wanted is None or phone.soc in wanted)]
    count = Counter(soc for _, soc in rack)
    if not each:
        return cells(models, modes, count, lengths)
    found = [
        Cell(cell.model, cell.mode, cell.soc, cell.lengths, cell.recipe, name if count[soc] > 1 else None)
        for cell in cells(models, modes, count, lengths)
        for name, soc in rack
        if soc == cell.soc
    ]
    return tuple(sorted(found, key=lambda cell: cell.id))


def parse_modes(text: str, *, where: str = "--modes") -> tuple[Mode, ...]:
    """`kv,hybrid` → modes in that order, each once; `all` for all.

    Raises:
        ConfigError: an unknown mode, or none at all.
    """
    return tuple(Mode(word) for word in _words(text, [mode.value for mode in Mode], "mode", where))


def parse_socs(text: str, *, where: str = "--socs") -> tuple[Soc, ...]:
    """`SM8550,SM8650` → chipsets in that order, each once; `all` for all.

    Raises:
        ConfigError: an unknown SoC, or none at all.
    """
    return tuple(SOCS[word] for word in _words(text, list(SOCS), "SoC", where))


def _words(text: str, known: Sequence[str], noun: str, where: str) -> list[str]:
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise ConfigError(f"no {noun} given", where=where, remedy=f"known: {', '.join(known)}")
    if words == ["all"]:
        return list(known)
    for word in words:
        if word not in known:
            raise ConfigError(f"unknown {noun} {word!r}", where=where, remedy=suggestion(word, known))
    return words
