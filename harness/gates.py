"""What a generation of the HTP can do: decides, before anything is built, whether a cell can run at all.

The least architectures are in ExecuTorch's `examples/qualcomm/oss_scripts/llama/README.md`, "HTP Minimum Version
Requirements"; LPBQ and 16-bit matmul are also enforced by its quantizer (`validate_lpbq_support`,
`validate_16a16w_support`). Weight sharing is not enforced anywhere: there the README is the only source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.matrix import Cell, Mode, Target

_README = 'ExecuTorch, examples/qualcomm/oss_scripts/llama/README.md, "HTP Minimum Version Requirements"'
_RULES = "ExecuTorch, backends/qualcomm/quantizer/annotators/htp_rules.py"


@dataclass(frozen=True)
class Verdict:
    """Whether a cell runs.

    Attributes:
        run: True: go on. False: skip it.
        gate: name of the gate that stopped it; empty when it runs.
        reason: why it cannot run, with the numbers; empty when it runs.
        remedy: what to change so that something runs; empty when it runs.
        source: where the fact comes from; empty when it runs.
    """

    run: bool
    gate: str = ""
    reason: str = ""
    remedy: str = ""
    source: str = ""


@dataclass(frozen=True)
class Gate:
    """One thing that only newer HTPs can do.

    Attributes:
        name: short name, as reports and `htpfarm gates` show it.
        feature: what it is about, as in "16-bit KV cache needs V73".
        least: the first architecture that can, as 73.
        uses: whether a cell, built for a target, uses the feature.
        remedy: what to do on an older HTP.
        source: where the fact comes from.
    """

    name: str
    feature: str
    least: int
    uses: Callable[[Cell, Target], bool]
    remedy: str
    source: str


def _shares_weights(cell: Cell, target: Target) -> bool:
    # Prefill and decode are two graphs over one set of weights; for the simulator each graph keeps its own copy.
    return target is Target.ANDROID and cell.mode in (Mode.HYBRID, Mode.LOOKAHEAD)


GATES: tuple[Gate, ...] = (
    Gate(
        name="lpbq",
        feature="block-wise quantised weights (LPBQ)",
        least=69,
        uses=lambda cell, _: cell.model.lpbq,
        remedy="use a per-channel recipe: in the model's file, recipe: {name: per_channel, weights: 16a4w} or 16a8w",
        source=f"{_README}; {_RULES}, validate_lpbq_support",
    ),
    Gate(
        name="kv16",
        feature="16-bit KV cache (matmul of 16-bit by 16-bit)",
        least=73,
        uses=lambda cell, _: cell.model.kv_bits == 16,
        remedy="use an 8-bit KV recipe: in the model's file, recipe: {name: kv8, kv_bits: 8}",
        source=f"{_README}; {_RULES}, validate_16a16w_support",
    ),
    Gate(
        name="weight_sharing",
        feature="weight sharing between prefill and decode",
        least=73,
        uses=_shares_weights,
        remedy="use kv mode (--modes kv), which has one graph and shares nothing",
        source=_README,
    ),
)


def judge(cell: Cell, target: Target) -> Verdict:
    """The first reason not to run the cell, or a verdict to run it."""
    return next(iter(judge_all(cell, target)), Verdict(run=True))


def judge_all(cell: Cell, target: Target) -> tuple[Verdict, ...]:
    """Every reason not to run the cell, in the order the gates stand; empty when it can run."""
    verdicts = []
    if cell.mode not in cell.model.modes:
        listed = ", ".join(cell.model.modes)
        verdicts.append(
            Verdict(
                run=False,
                gate="mode",
                reason=f"{cell.model.name} lists the modes {listed}, not {cell.mode}",
                remedy=f"choose from {listed}, or add {cell.mode} to modes in the model's file if it is meant to work",
                source=f"{cell.model.file.name}, modes",
            )
        )
    verdicts.extend(
        Verdict(
            run=False,
            gate=gate.name,
            reason=f"{cell.soc.name} is V{cell.soc.arch}; {gate.feature} needs V{gate.least}",
            remedy=gate.remedy,
            source=gate.source,
        )
        for gate in GATES
        if cell.soc.arch < gate.least and gate.uses(cell, target)
    )
    return tuple(verdicts)
