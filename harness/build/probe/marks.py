"""What the answers to a gate's probes prove. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from harness.gates import Gate, Version, dotted


class Answer(StrEnum):
    """How a graph fared.

    accepted: every node was delegated and a context binary came out (`simulator`: and it loaded). refused: the compiler
    (`simulator`: the simulator) said that it will not, in words that are known as such. wrong: it was accepted, and the
    simulator computes other numbers than torch. crashed, timed_out, failed:
    it proves nothing.
    """

    ACCEPTED = "accepted"
    REFUSED = "refused"
    WRONG = "wrong"
    CRASHED = "crashed"
    TIMED_OUT = "timed out"
    FAILED = "failed"


class Mark(StrEnum):
    """What is known of a gate on one HTP generation.

    Attributes:
        PROVEN: as the gate says: refused, or computed wrongly, where it closes (and the control was accepted there),
            accepted where it opens.
        QUANTIZER_ONLY: the gate closes, ExecuTorch's quantizer agrees, but the compiler accepts.
        DOCUMENTED_ONLY: the gate closes, but nothing refuses: the documentation is all there is.
        CONTRADICTED: the gate opens, but the compiler refuses, or computes wrongly.
        NOT_SHOWN: the probe proves nothing: it crashed, took too long, or its control was not accepted either.
    """

    PROVEN = "proven"
    QUANTIZER_ONLY = "quantizer only"
    DOCUMENTED_ONLY = "documented only"
    CONTRADICTED = "contradicted"
    NOT_SHOWN = "not shown"


@dataclass(frozen=True)
class Observation:
    """What one gate's graph met on one chipset.

    Attributes:
        gate: the gate's name.
        soc: the chipset.
        arch: its HTP architecture, as 73.
        answer: to the graph that has the feature.
        control: to the same graph without it; None when it was not needed.
        quantizer: what ExecuTorch's quantizer says of the graph for this chipset; None where it has no rule.
        delegated: nodes that went to the HTP.
        left: targets of nodes that did not.
        evidence: the refusal's own words, or what was measured.
        seconds: how long it took, without the control.
        log: the file with all that was said.
    """

    gate: str
    soc: str
    arch: int
    answer: Answer
    control: Answer | None
    quantizer: Answer | None
    delegated: int
    left: tuple[str, ...]
    evidence: str
    seconds: float
    log: str

    @property
    def settled(self) -> bool:
        """Whether asking again would bring nothing new."""
        return self.answer in (Answer.ACCEPTED, Answer.REFUSED, Answer.WRONG)


def opens(gate: Gate, arch: int, qnn: Version) -> bool:
    """Whether a gate lets a phone of an architecture through (`simulator`: the simulator of one)."""
    return (gate.least or 0) <= arch and (gate.qnn or (0, 0)) <= qnn and gate.simulator and not gate.fault


def mark(gate: Gate, seen: Observation, qnn: Version) -> Mark:
    """What an observation proves of its gate, with QNN libraries of a version."""
    if seen.answer in (Answer.REFUSED, Answer.WRONG) and seen.control is Answer.ACCEPTED:
        return Mark.CONTRADICTED if opens(gate, seen.arch, qnn) else Mark.PROVEN
    if seen.answer is not Answer.ACCEPTED:
        return Mark.NOT_SHOWN
    if opens(gate, seen.arch, qnn):
        return Mark.PROVEN
    return Mark.QUANTIZER_ONLY if seen.quantizer is Answer.REFUSED else Mark.DOCUMENTED_ONLY


def status(gate: Gate, seen: Iterable[Observation], qnn: Version) -> str:
    """A gate's marks in one line: `proven V73–V81; documented only V68, V69`; a version's other side named."""
    marks = {each.arch: mark(gate, each, qnn) for each in seen if each.gate == gate.name}
    if not marks:
        return "not probed"
    known = sorted(marks)
    parts = []
    for one in Mark:
        archs = [arch for arch in known if marks[arch] is one]
        if archs:
            parts.append(f"{one} {_run_of(archs, known)}")
    if gate.qnn and gate.qnn <= qnn:
        parts.append(f"{Mark.DOCUMENTED_ONLY} for QNN before {dotted(gate.qnn)} (here: {dotted(qnn)})")
    return "; ".join(parts)


def _run_of(archs: Sequence[int], known: Sequence[int]) -> str:
    """V73–V81 for neighbours among the known ones, else a list."""
    first, last = archs[0], archs[-1]
    whole = [arch for arch in known if first <= arch <= last] == list(archs) and len(archs) > 2
    return f"V{first}–V{last}" if whole else ", ".join(f"V{arch}" for arch in archs)
