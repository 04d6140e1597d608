"""What compiling is expected to take, before it starts: memory against this machine's, context sizes against the DSP's.

The estimate of memory is linear, its coefficients fitted to the compiles of `benchmarks/build_memory.py` and to
SmolLM2-135M's. Far beyond that a model's file says more (`host`, upstream's README for its largest): the larger of the
two counts. Pure, but for `available_mb`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import psutil

from harness.build.families import weight_count
from harness.errors import EnvError
from harness.matrix import Cell
from harness.model_file import Lengths, Mode, Params
from harness.models import ModelSpec

COEFFICIENTS_MB = (1043.0, 14.8, 2.9, 3.7)
"""Of `features`, in MB each."""
FITTED_UP_TO = 170_000_000
"""Weights; beyond it the model's file counts too."""
CONTEXT_LIMIT = 4 << 30
"""Bytes of a context binary: the DSP's address space is 32 bits wide (ExecuTorch's README: "4GB per context")."""


@dataclass(frozen=True)
class Estimate:
    """What one build worker takes.

    Attributes:
        memory_mb: resident memory of the worker and its children at the most.
        hours: where the model's file says so; else None.
        source: where the memory comes from, for people.
    """

    memory_mb: float
    hours: float | None
    source: str


def graphs(modes: Collection[Mode]) -> int:
    """Graphs that are exported for these modes: calibration, decode, and those of hybrid and lookahead."""
    return 2 + bool({Mode.HYBRID, Mode.LOOKAHEAD} & set(modes)) + (Mode.LOOKAHEAD in modes)


def features(model: ModelSpec, modes: Collection[Mode]) -> tuple[float, ...]:
    """What memory is linear in: 1; and, times graphs: millions of weights in layers, of those in the embedding and the
    output layer, layers.
    """
    count = graphs(modes)
    layers, ends = _weights(model.params)
    return 1.0, layers / 1e6 * count, ends / 1e6 * count, float(model.params.n_layers * count)


def _weights(params: Params) -> tuple[int, int]:
    """Weights in layers; those of the embedding and the output layer."""
    ends = 2 * params.vocab_size * params.dim
    return weight_count(params) - ends, ends


def estimate(model: ModelSpec, modes: Collection[Mode]) -> Estimate:
    """Memory and time of one worker that compiles a model in some modes, for any number of SoCs."""
    found = zip(COEFFICIENTS_MB, features(model, modes), strict=True)
    fitted = math.fsum(coefficient * feature for coefficient, feature in found)
    said = None
    if model.host is not None:
        said = model.host.kv if set(modes) == {Mode.KV} else model.host.hybrid
    hours = said.hours if said else None
    if said is not None and weight_count(model.params) > FITTED_UP_TO and said.memory_gb * 1024 > fitted:
        return Estimate(said.memory_gb * 1024, hours, f"{model.file.name}, host")
    return Estimate(fitted, hours, "fitted by benchmarks/build_memory.py")


def context_bytes(model: ModelSpec) -> int:
    """Estimated size of the largest context binary of one graph: its share of the weights, as wide as the recipe's.

    The cut falls between layers; the output layer goes with the last.
    """
    params = model.params
    layer_bits = 8 if model.recipe.weights == "16a8w" or (model.recipe.weights is None and not model.lpbq) else 4
    layers, _ = _weights(params)
    each = max(1, params.n_layers // model.shards)
    return int(layers / params.n_layers * each * layer_bits / 8 + params.vocab_size * params.dim * 3)


def shards_needed(size: int, shards: int) -> int:
    """The shards that bring a context of `size` bytes, made with some, below the limit."""
    return shards * math.ceil(size / (0.9 * CONTEXT_LIMIT))


def more_shards(model: ModelSpec, sizes: Sequence[int] = ()) -> str:
    """The advice to raise the number of shards, with the number.

    Args:
        model: whose contexts are too big.
        sizes: bytes of the contexts that were made; none: they are estimated.
    """
    size = max(sizes, default=0) or context_bytes(model)
    number = min(max(shards_needed(size, model.shards), model.shards + 1), model.params.n_layers)
    source = "its largest context has" if sizes else "a context is estimated at"
    if number <= model.shards:
        return f"{model.file.name} has a shard for each layer already; {source} {size / 1e9:.2f} GB"
    return f"set shards: {number} in {model.file.name} (now {model.shards}; {source} {size / 1e9:.2f} GB)"


def available_mb() -> float:
    """Memory that this machine can give now: available, and free swap."""
    return float(psutil.virtual_memory().available + psutil.swap_memory().free) / (1 << 20)


@dataclass(frozen=True)
class Concern:
    """Something a build is likely to fail of: what, and what to do."""

    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


def concerns(cells: Iterable[Cell], memory_mb: float) -> tuple[Concern, ...]:
    """What the builds of these cells are likely to fail of on a machine with so much memory to give."""
    groups: dict[tuple[str, Lengths], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.model.name, cell.lengths), []).append(cell)
    found = []
    for (name, _), group in groups.items():
        model, modes = group[0].model, {cell.mode for cell in group}
        need = estimate(model, modes)
        where = f"{name} ({', '.join(sorted(modes))})"
        if need.memory_mb > memory_mb:
            found.append(Concern(where, _memory(need, memory_mb), _less(model, modes, memory_mb)))
        size = context_bytes(model)
        if size > CONTEXT_LIMIT:
            number = shards_needed(size, model.shards)
            remedy = f"set shards: {number} in {model.file.name}"
            found.append(Concern(where, f"a context of about {size / 1e9:.1f} GB is over the DSP's 4 GB", remedy))
    return tuple(found)


def _memory(need: Estimate, memory_mb: float) -> str:
    hours = f" and {need.hours:g} h" if need.hours else ""
    takes = f"compiling takes about {need.memory_mb / 1024:.0f} GB{hours} ({need.source})"
    return f"{takes}; {memory_mb / 1024:.0f} GB are free"


def _less(model: ModelSpec, modes: Collection[Mode], memory_mb: float) -> str:
    alone = estimate(model, {Mode.KV})
    if set(modes) != {Mode.KV} and Mode.KV in model.modes and alone.memory_mb <= memory_mb:
        return f"try kv alone (--modes kv), which takes about {alone.memory_mb / 1024:.0f} GB"
    return "compile on a larger machine and bring the artifacts here (htpfarm compile --out DIR, then --pte DIR)"


def refuse(found: Sequence[Concern]) -> None:
    """For `--strict-memory`.

    Raises:
        EnvError: there are concerns; names them all.
    """
    if found:
        raise EnvError(
            f"{len(found)} builds are likely to fail: {found[0].what}",
            where=found[0].where,
            remedy=f"{found[0].remedy}; or leave out --strict-memory",
            evidence="\n".join(map(str, found)),
        )
