"""What can run where: decides, before anything is built, whether a cell can run at all, and says why not.

Three kinds of line: a generation of the HTP, a version of the QNN libraries, a phone and not the simulator. The least
architectures are in ExecuTorch's `examples/qualcomm/oss_scripts/llama/README.md`, "HTP Minimum Version Requirements";
`htpfarm gates --probe` asks ExecuTorch's quantizer and Qualcomm's compiler about each (`harness.build.probe`).

What the probe finds with QNN 2.47 to 2.51: 16-bit matmul and LayerNorm are refused below V73. Weight sharing is not
refused anywhere. LPBQ on V68 is refused by ExecuTorch's quantizer where it has Qualcomm's op-info library, and by no
compiler; the simulator computes it right. These two gates rest on the README.

A fourth kind is a fault of the compiler: `softcap16` is accepted everywhere and computes wrong numbers everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.inventory import Phone
from harness.matrix import Cell, Mode, Target
from harness.recipes import ready, recipe_problems
from harness.soc import recognise

Version = tuple[int, int]
"""Of the QNN libraries, as (2, 48)."""

_LLAMA = "examples/qualcomm/oss_scripts/llama"
_README = f'ExecuTorch, {_LLAMA}/README.md, "HTP Minimum Version Requirements"'
_RULES = "ExecuTorch, backends/qualcomm/quantizer/annotators/htp_rules.py"
OLDER_HTP = ("16a4w_kv8", "16a4w_kv8_spin", "16a4w_kv8_mixed")
"""Ready-made recipes for an HTP before V73, in the order of ExecuTorch's advice (README, "Quantization Guidance for
Older Devices"): 16a4w first, then SpinQuant, then 16a8w on chosen layers."""
FAULTY_ROWS = 16
"""Rows of which the compiler miscomputes a tanh beside a multiplication.

Tried: 1, 2, 4, 8, 12, 15 to 17, 24, 32, 48, 64 and 128; only these came out wrong.
"""
_NEWER_QNN = "install the pinned onnxruntime-qnn, or point QNN_SDK_ROOT at a QAIRT SDK that is new enough"


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
class Site:
    """What a cell is built with and where it is to run.

    Attributes:
        target: what its artifact is for.
        qnn: version of the QNN libraries; None when it is not known: no gate is judged by it then.
        simulated: whether it is to run on a virtual phone. False too when it is only to be compiled.
    """

    target: Target
    qnn: Version | None = None
    simulated: bool = False


@dataclass(frozen=True)
class Gate:
    """One thing that not every HTP, every version of the QNN libraries or every phone can do.

    Attributes:
        name: short name, as reports and `htpfarm gates` show it.
        feature: what it is about, as in "16-bit KV cache".
        uses: whether a cell, built for a target, uses the feature.
        remedy: what to do where it cannot be had.
        remedy_for: the same for one cell; None: it is the same for all.
        source: where the fact comes from.
        least: the first architecture that can, as 73; None: all can.
        qnn: the first QNN version that can; None: all can.
        simulator: whether the simulator can.
        fault: what is wrong with what the compiler makes of it, for every architecture and version; empty: nothing.
    """

    name: str
    feature: str
    uses: Callable[[Cell, Target], bool]
    remedy: str
    source: str
    least: int | None = None
    qnn: Version | None = None
    simulator: bool = True
    fault: str = ""
    remedy_for: Callable[[Cell], str] | None = None

    @property
    def needs(self) -> str:
        """What it takes, as `V73`, `QNN 2.35` or `a phone`."""
        parts = [f"V{self.least}"] if self.least else []
        parts += [f"QNN {dotted(self.qnn)}"] if self.qnn else []
        parts += [] if self.simulator else ["a phone"]
        parts += ["a mended compiler"] if self.fault else []
        return ", ".join(parts)

    def lack(self, cell: Cell, site: Site) -> str:
        """What the cell's place lacks, with the numbers; empty where it lacks nothing."""
        if self.least and cell.soc.arch < self.least:
            return f"{cell.soc.name} is V{cell.soc.arch}; {self.feature} needs V{self.least}"
        if self.qnn and site.qnn and site.qnn < self.qnn:
            return f"the QNN libraries are {dotted(site.qnn)}; {self.feature} needs {dotted(self.qnn)}"
        if not self.simulator and site.simulated:
            return f"{cell.phone or 'the phone'} is virtual; its simulator refuses {self.feature}"
        if self.fault:
            return f"{self.feature}: {self.fault}"
        return ""


def dotted(version: Version) -> str:
    """(2, 48) → `2.48`."""
    return f"{version[0]}.{version[1]}"


def _shares_weights(cell: Cell, target: Target) -> bool:
    # Prefill and decode are two graphs over one set of weights; for the simulator each graph keeps its own copy.
    return target is Target.ANDROID and cell.mode in (Mode.HYBRID, Mode.LOOKAHEAD)


def _has_layernorm(cell: Cell, _target: Target) -> bool:
    return cell.model.params.model_args().get("norm_type") == "layernorm"


def _caps_16_rows(cell: Cell, _target: Target) -> bool:
    lengths = cell.lengths
    rows = {
        Mode.KV: (1,),
        Mode.HYBRID: (1, lengths.prefill_ar_len),
        Mode.LOOKAHEAD: (lengths.prefill_ar_len, lengths.lookahead_ar_len),
    }[cell.mode]
    return bool(cell.model.params.final_logit_softcapping) and FAULTY_ROWS in rows


def _advice(recipes: Sequence[str]) -> str:
    listed = ", then ".join(recipes)
    return f"give the model's file a recipe for older HTPs, tried in the order of ExecuTorch's advice: recipe: {listed}"


def _advice_for(cell: Cell) -> str:
    # Not every architecture can be rotated.
    return _advice([name for name in OLDER_HTP if not recipe_problems(ready(name), cell.model.params)])


GATES: tuple[Gate, ...] = (
    # First: what the other gates advise is in vain where this one closes.
    Gate(
        name="layernorm",
        feature="LayerNorm with 16-bit activations (its weights become 16-bit)",
        least=73,
        uses=_has_layernorm,
        remedy="no recipe has narrower activations: take a phone of V73 or newer, or a model with RMSNorm",
        source="the compiler (gates --probe): incorrect Value 69, expected >= 73. ExecuTorch's own rule for it in "
        "htp_rules.py looks for 32-bit weights and never applies",
    ),
    Gate(
        name="lpbq",
        feature="block-wise quantised weights (LPBQ)",
        least=69,
        uses=lambda cell, _: cell.model.lpbq,
        remedy=_advice(OLDER_HTP),
        remedy_for=_advice_for,
        source=f"{_README}; {_RULES}, validate_lpbq_support",
    ),
    Gate(
        name="kv16",
        feature="16-bit KV cache (matmul of 16-bit by 16-bit)",
        least=73,
        uses=lambda cell, _: cell.model.kv_bits == 16,
        remedy=_advice(OLDER_HTP),
        remedy_for=_advice_for,
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
    Gate(
        name="masked_softmax",
        feature="masked softmax",
        qnn=(2, 35),
        uses=lambda cell, _: cell.model.masked_softmax,
        remedy=f"{_NEWER_QNN}; or a recipe with masked_softmax: false",
        source=f"ExecuTorch, {_LLAMA}/wrappers/base_component.py: it would leave it out and only warn",
    ),
    Gate(
        name="hadamard",
        feature="SpinQuant's R3 as a Hadamard op",
        qnn=(2, 47),
        uses=lambda cell, _: cell.model.r3,
        remedy=f"{_NEWER_QNN}; or a recipe with spinquant: {{r3: false}}",
        source="ExecuTorch, backends/qualcomm/_passes/recompose_hadamard.py: it would be a 16-bit matmul",
    ),
    Gate(
        name="embedding",
        feature="embedding in one op with what follows it",
        qnn=(2, 48),
        # No cell is stopped: ExecuTorch chooses by itself.
        uses=lambda _cell, _target: False,
        remedy="nothing: with older libraries ExecuTorch lowers embeddings in two ops by itself, and cells run",
        source="ExecuTorch, backends/qualcomm/builders/op_embedding.py, define_node_optimize",
    ),
    Gate(
        name="softcap16",
        feature=f"capped logits (tanh times a number) of {FAULTY_ROWS} tokens a step",
        fault="the compiler takes it, and half of the rows come out wrong",
        uses=_caps_16_rows,
        remedy="another AR length: --prefill-ar-len other than 16, or in lookahead window and gcap of 8 (32 tokens)",
        source="gates --probe: the simulator's numbers against torch's, V68 to V81; QNN 2.47 to 2.51 alike "
        "(benchmarks/qnn_versions.py)",
    ),
    Gate(
        name="simulator",
        feature="a .pte made for phones (weight sharing, shared buffers)",
        simulator=False,
        uses=lambda _, target: target is Target.ANDROID,
        remedy="build for the simulator (--target sim), or use a phone",
        source="the simulator's own refusal: Fail to create context from binary with err 1000",
    ),
)


def judge(cell: Cell, target: Target, qnn: Version | None = None, *, simulated: bool = False) -> Verdict:
    """The first reason not to run the cell, or a verdict to run it; arguments as in `Site`."""
    return next(iter(judge_all(cell, target, qnn, simulated=simulated)), Verdict(run=True))


def judge_all(
    cell: Cell, target: Target, qnn: Version | None = None, *, simulated: bool = False
) -> tuple[Verdict, ...]:
    """Every reason not to run the cell, in the order the gates stand; empty when it can run."""
    site = Site(target, qnn, simulated)
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
            reason=lack,
            remedy=gate.remedy_for(cell) if gate.remedy_for else gate.remedy,
            source=gate.source,
        )
        for gate in GATES
        if gate.uses(cell, target) and (lack := gate.lack(cell, site))
    )
    return tuple(verdicts)


def judge_phone(phone: Phone, said: str = "") -> Verdict:
    """Whether a phone of the rack can have cells at all: not without a chipset that has an HTP.

    Args:
        phone: as the inventory or a probe has it.
        said: why a probe found no chipset (`PhoneIdentity.reason`); empty: the file alone is judged.
    """
    if phone.soc is not None:
        return Verdict(run=True)
    source = "harness/soc.py, recognise: the chipsets of ExecuTorch's qc_schema.py, found by ro.soc.model"
    if phone.virtual is not None and not said:
        kind = phone.virtual
        said = recognise({"ro.soc.model": kind.soc, "ro.product.model": kind.model}).reason
    if said:
        return Verdict(
            run=False,
            gate="phone",
            reason=said,
            remedy="take the phone off the rack, or one that has a Snapdragon in its place: the same Galaxy is sold "
            "with either, by country",
            source=source,
        )
    return Verdict(
        run=False,
        gate="phone",
        reason="the file does not say its chipset, and no phone was asked",
        remedy=f"see `htpfarm devices`, then write soc: under {phone.name}",
        source=source,
    )
