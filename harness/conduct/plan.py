"""What a run will do, decided before anything runs: cells, verdicts, artifacts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.build.cache import Artifact, locate
from harness.build.calibration import MODELS_OWN, CalibrationChoice
from harness.errors import ConfigError
from harness.farm.select import ANY_PHONE, Wish
from harness.gates import Verdict, Version, judge_all, judge_phone
from harness.inventory import Inventory, Phone, load_inventory
from harness.matrix import Cell, cells_for_rack, parse_modes, parse_socs
from harness.model_file import Mode
from harness.models import ModelSpec, load_models, select
from harness.paths import MODELS
from harness.soc import Soc, suggestion
from harness.target import Target

DEFAULT_MODELS = "tiny_llama"
LENGTH_OPTIONS = {
    "max_seq_len": "context: prompt and output, in tokens",
    "prefill_ar_len": "tokens that a prefill step takes (AR-N)",
    "ngram": "N of lookahead",
    "window": "W of lookahead",
    "gcap": "G of lookahead",
}
"""Fields of `Lengths` that the command line can change, and what they are."""
_ORDER = {Mode.KV: 0, Mode.HYBRID: 1, Mode.LOOKAHEAD: 2}


@dataclass(frozen=True)
class Choice:
    """What the user asked for, read and checked."""

    inventory: Inventory
    models: tuple[ModelSpec, ...]
    modes: tuple[Mode, ...] | None
    socs: tuple[Soc, ...] | None
    calibration: CalibrationChoice = MODELS_OWN
    each_phone: bool = True
    wish: Wish = ANY_PHONE


@dataclass(frozen=True)
class Planned:
    """A cell and its verdict.

    Attributes:
        cell: the cell.
        verdict: whether it runs, and if not the first reason.
        phones: names of those it may run on.
        target: what its artifact is built for.
        more: further reasons not to run it: each has its own remedy.
    """

    cell: Cell
    verdict: Verdict
    phones: tuple[str, ...]
    target: Target
    more: tuple[Verdict, ...] = ()


PHONE_OPTIONS: dict[str, dict[str, Any]] = {
    "--phones": {"default": "", "help": "names of phones, comma-separated (all of the rack)"},
    "--arch": {"type": int, "metavar": "N", "help": "only phones with this HTP, as 75"},
    "--labels": {"default": "", "help": "only phones with all these labels, comma-separated"},
    "--capabilities": {"default": "", "help": "only phones with all these capabilities, comma-separated"},
}
"""Which phones: what argparse takes of each option."""


def split_names(text: str) -> tuple[str, ...]:
    """`a, b` → its names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def calibration_choice(
    tasks: str, limit: int, fewshot: int | None, samples: Path | None, folders: tuple[Path, ...]
) -> CalibrationChoice:
    """The `--calib-…` options.

    Raises:
        ConfigError: the samples file is not there.
    """
    if samples is not None and not samples.is_file():
        raise ConfigError("no such file", where=f"--calib-samples {samples}", remedy="name a .json, .jsonl or text")
    return CalibrationChoice(
        split_names(tasks), limit, fewshot, samples.absolute() if samples is not None else None, folders
    )


def read_choice(
    rack: Path,
    models: str,
    modes: str | None,
    socs: str | None,
    folder: Path = MODELS,
    lengths: Mapping[str, int] | None = None,
    calibration: CalibrationChoice = MODELS_OWN,
    wish: Wish = ANY_PHONE,
    inventory: Inventory | None = None,
) -> Choice:
    """Reads the inventory and the models, and parses the selections.

    Args:
        rack: the inventory's file.
        models, modes, socs: comma-separated.
        folder: of the models' files.
        lengths: fields of `Lengths` to use instead of each model's own.
        calibration: what to calibrate with.
        wish: which of the rack's phones; the SoC is `socs`'s.
        inventory: the phones, where they do not stand in `rack`.

    Raises:
        ConfigError: with file, key and line, or the option's name.
    """
    inventory = inventory or load_inventory(rack)
    _check_words(wish, inventory)
    known = load_models(folder)
    names = split_names(models)
    chosen = parse_modes(modes) if modes else None
    return Choice(
        inventory,
        tuple(with_lengths(model, lengths or {}, chosen or model.modes) for model in select(known, names)),
        chosen,
        parse_socs(socs) if socs else None,
        calibration,
        wish=wish,
    )


def phone_wish(phones: str, arch: int | None, labels: str, capabilities: str) -> Wish:
    """The `--phones`, `--arch`, `--labels`, `--capabilities` options; words comma-separated."""
    named, labelled, able = (frozenset(split_names(text)) for text in (phones, labels, capabilities))
    return Wish(arch=arch, labels=labelled, capabilities=able, phones=named)


def _check_words(wish: Wish, inventory: Inventory) -> None:
    """A word that stands nowhere in the rack's file is a mistake, not a phone that is missing."""
    known = {
        "--phones": (wish.phones, {p.name for p in inventory.phones}),
        "--labels": (wish.labels, {word for p in inventory.phones for word in p.labels}),
        "--capabilities": (wish.capabilities, {word for p in inventory.phones for word in p.capabilities}),
    }
    for where, (asked, there) in known.items():
        for word in sorted(asked - there):
            remedy = suggestion(word, sorted(there)) if there else "give phones some in the file"
            raise ConfigError(f"no phone of {inventory.path} has {word!r}", where=where, remedy=remedy)


def option(name: str) -> str:
    """`max_seq_len` → `--max-seq-len`."""
    return f"--{name.replace('_', '-')}"


def with_lengths(model: ModelSpec, changes: Mapping[str, int], modes: Sequence[Mode]) -> ModelSpec:
    """The model with other sizes compiled in.

    Raises:
        ConfigError: they fit neither each other nor the model.
    """
    if not changes:
        return model
    lengths = replace(model.lengths, **changes)
    options = ", ".join(f"{option(name)} {value}" for name, value in changes.items())
    for mode in modes:
        if problem := lengths.problem(mode):
            raise ConfigError(problem, where=f"{options}: {model.name} in {mode} mode", remedy="choose other sizes")
    if model.max_new_tokens >= lengths.max_seq_len:
        raise ConfigError(
            f"the model's max_new_tokens ({model.max_new_tokens}) must be less than max_seq_len", where=options
        )
    return replace(model, lengths=lengths)


def plan(
    choice: Choice,
    phones: Iterable[Phone],
    target: Target | None = None,
    qnn: Version | None = None,
    *,
    runs: bool = True,
) -> tuple[Planned, ...]:
    """Every cell of the rack's phones with its verdict, in the order in which they are worth running.

    kv before hybrid: its artifact is ready first.

    Args:
        phones: probed: each with its SoC.
        target: what artifacts are built for; some gates depend on it. None: each for its phone, virtual or real.
        qnn: version of the QNN libraries; None: no gate is judged by it.
        runs: whether cells are to run on these phones, too: False when they are only compiled.
    """
    rack = tuple(phones)
    planned = []
    for cell in cells_for_rack(choice.models, choice.modes, rack, choice.socs, each=choice.each_phone):
        fitting = [p for p in rack if p.soc == cell.soc and cell.phone in (None, p.name)]
        phone = fitting[0]
        fitting = [p for p in fitting if (p.virtual is None) == (phone.virtual is None)]
        own = target or (Target.SIM if phone.virtual else Target.ANDROID)
        reasons = judge_all(cell, own, qnn, simulated=runs and phone.virtual is not None)
        verdict = reasons[0] if reasons else Verdict(run=True)
        planned.append(Planned(cell, verdict, tuple(p.name for p in fitting), own, reasons[1:]))
    return tuple(sorted(planned, key=lambda p: (p.cell.model.name, _ORDER[p.cell.mode], p.cell.id)))


def left_out(phones: Iterable[Phone]) -> tuple[tuple[Phone, Verdict], ...]:
    """The phones of a rack that get no cell at all, and why."""
    judged = ((phone, judge_phone(phone)) for phone in phones)
    return tuple((phone, verdict) for phone, verdict in judged if not verdict.run)


def artifacts(
    choice: Choice, planned: Sequence[Planned], target: Target, fingerprint: dict[str, str]
) -> dict[str, Artifact]:
    """Cell id → where its artifact is or will be, for every cell that runs."""
    return {
        p.cell.id: locate(
            p.cell.model, p.cell.mode, p.cell.soc, target, p.cell.lengths, fingerprint, choice.calibration
        )
        for p in planned
        if p.verdict.run
    }
