"""The reference a `.pte`'s output is checked against: the quantised model (QDQ) in torch, `decode_qdq.pt2`.

The HTP computes with integers what the QDQ module computes with rounded floats. Each of the many activations on the
way may differ in its last step, and a KV value on the edge between two of its 256 steps may fall to the other side. So
logits differ by more than a step: for tiny_llama on SM8650 by 40 to 55 steps of 65,536 (RMS), while no value of the KV
cache was ever more than one step off. Where the two choose different tokens, the reference's two top logits must
therefore be nearly equal, and so must its logit of the token the `.pte` chose, within `NEAR_TIE_STEPS`. Generation then
goes on from the reference's token, so that every token is compared after the same text.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import ConfigError
from harness.runtime.context_graph import ContextGraph
from harness.runtime.engine import Engine
from harness.runtime.files import write_json
from harness.runtime.program import read_info
from harness.runtime.sampling import dequantise, greedy
from harness.runtime.session import Session

NEAR_TIE_STEPS = 128.0
"""Steps of the 16-bit logits within which a different token is a tie: 0.2% of their range, for tiny_llama 0.07 nats.

The difference of two logits, each off by 40 to 55 steps RMS, has a standard deviation of 55 to 80. A wrong mask,
position or cache column moves logits by thousands of steps.
"""

Logits = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """A place where the two chose different tokens.

    Attributes:
        index: number of the generated token, from 0.
        got: the `.pte`'s token.
        expected: the reference's.
        top_gap: the reference's largest logit minus its second, in quantisation steps.
        token_gap: the reference's largest logit minus its logit of `got`, in quantisation steps.
        near_tie: whether both gaps are small enough for the last steps of a logit to explain it.
    """

    index: int
    got: int
    expected: int
    top_gap: float
    token_gap: float
    near_tie: bool


@dataclass(frozen=True)
class PromptComparison:
    """One prompt's comparison.

    Attributes:
        prompt_tokens: its length.
        tokens: the reference's greedy continuation.
        differences: where the `.pte` chose otherwise.
        worst_steps: largest difference of any logit of any compared row, in quantisation steps.
        rms_steps: root mean square of those differences.
        kv_worst_steps: largest difference of any value in the KV cache from the reference's, in its quantisation steps.
        kv_off_share: share of the cache's values that differ.
    """

    prompt_tokens: int
    tokens: tuple[int, ...]
    differences: tuple[Difference, ...]
    worst_steps: float
    rms_steps: float
    kv_worst_steps: float
    kv_off_share: float


@dataclass(frozen=True)
class ReferenceReport:
    """All prompts' comparisons."""

    prompts: tuple[PromptComparison, ...]

    @property
    def compared(self) -> int:
        """Tokens compared."""
        return sum(len(prompt.tokens) for prompt in self.prompts)

    @property
    def near_ties(self) -> tuple[Difference, ...]:
        """Differences that the last step of a logit explains."""
        return tuple(d for prompt in self.prompts for d in prompt.differences if d.near_tie)

    @property
    def mismatches(self) -> tuple[Difference, ...]:
        """Differences that it does not explain: the `.pte` is wrong."""
        return tuple(d for prompt in self.prompts for d in prompt.differences if not d.near_tie)

    @property
    def worst_steps(self) -> float:
        """Largest difference of any logit, in quantisation steps."""
        return max((prompt.worst_steps for prompt in self.prompts), default=0.0)


@dataclass(frozen=True)
class QdqOutput:
    """One pass of the reference over n tokens.

    Attributes:
        logits: [n,V], float.
        k, v: each layer's cache as the `.pte` keeps it, quantised: [1,Hkv,D,n] and [1,Hkv,n,D]; empty for float caches.
    """

    logits: Logits
    k: tuple[Logits, ...] = ()
    v: tuple[Logits, ...] = ()


class QdqReference:
    """`decode_qdq.pt2`: the calibration graph, which reads a whole context at once (AR = CL) and needs no cache.

    It also runs the float graph, `decode_fp.pt2`, which has the same signature and no encodings.

    Args:
        path: the file.
        window: width of the model's sliding window; None without one.

    Attributes:
        graph: calls it, with trees of continuations too.

    Raises:
        ConfigError: no such file, or another graph.
    """

    def __init__(self, path: Path, window: int | None = None) -> None:
        # Both register operators that the graph is made of: quantisation's, and Qualcomm's own (Hadamard, of R3).
        import executorch.backends.qualcomm.builders.custom_ops  # noqa: F401
        import torch
        import torch.ao.quantization.fx._decomposed

        if not path.is_file():
            raise ConfigError("no such file", where=str(path), remedy=f"compile again; {path.name} is written beside")
        program = torch.export.load(path)
        wanted = set(program.graph_signature.user_inputs)
        inputs = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in wanted]
        self.graph = ContextGraph(program.module(), inputs, window, str(path))
        self.context_len = self.graph.context_len
        self.vocab = _vocab(program.graph)
        self._encodings = _output_encodings(program.graph)
        self.encoding = self._encodings[0]

    def run(self, tokens: Sequence[int]) -> QdqOutput:
        """Logits after each of `tokens`, at most the context's number, and their keys and values."""
        logits, *caches = self.graph.run(tokens)
        count, layers = len(tokens), len(caches) // 2
        steps = [
            np.asarray(np.round(cache.double().numpy() / encoding[0]) + encoding[1])
            for cache, encoding in zip(caches, self._encodings[1:], strict=True)
            if encoding
        ]
        return QdqOutput(
            np.asarray(logits[0, :count].double().numpy()),
            tuple(k[..., :count] for k in steps[:layers]),
            tuple(v[:, :, :count] for v in steps[layers:]),
        )


def _vocab(graph: Any) -> int:
    """Number of logits: the first output's last dimension."""
    output = next(node for node in graph.nodes if node.op == "output").args[0]
    while isinstance(output, (list, tuple)):
        output = output[0]
    return int(output.meta["val"].shape[-1])


def _output_encodings(graph: Any) -> list[tuple[float, int] | None]:
    """Scale and zero point of each output, in order; None for one that is not dequantised."""
    found: list[tuple[float, int] | None] = []

    def visit(value: Any) -> None:
        if isinstance(value, (list, tuple)):
            for item in value:
                visit(item)
        elif "dequantize_per_tensor" in str(getattr(value, "target", "")):
            found.append((float(value.args[1]), int(value.args[2])))
        else:
            found.append(None)

    visit(next(node for node in graph.nodes if node.op == "output").args[0])
    return found


def compare_with_qdq(
    session: Session,
    reference: QdqReference,
    prompts: Sequence[Sequence[int]],
    tokens: int = 64,
    tie_steps: float = NEAR_TIE_STEPS,
) -> ReferenceReport:
    """Compares greedy generation, `tokens` tokens after each prompt (fewer where the context ends).

    Args:
        session: of the `.pte`; emptied before each prompt.
        reference: its QDQ module.
        prompts: token ids, each shorter than the context.
        tokens: how many to generate.
        tie_steps: quantisation steps that a near tie may span.

    Raises:
        ConfigError: the reference was made by another quantisation than the `.pte`.
    """
    info = session.info
    if reference.encoding not in (None, (info.logits_scale, info.logits_zero_point)):
        raise ConfigError(
            f"this reference is not the .pte's: its logits are encoded as {reference.encoding}, "
            f"the .pte's as {(info.logits_scale, info.logits_zero_point)}",
            where=str(info.path),
            remedy="use the decode_qdq.pt2 that was written when the .pte was compiled",
        )
    return ReferenceReport(tuple(_compare(session, reference, tuple(prompt), tokens, tie_steps) for prompt in prompts))


def _compare(
    session: Session, reference: QdqReference, prompt: tuple[int, ...], tokens: int, tie_steps: float
) -> PromptComparison:
    info = session.info
    count = min(tokens, info.context_len - len(prompt), reference.context_len - len(prompt) + 1)
    agreed: list[int] = []
    differences: list[Difference] = []
    worst, squares, kv = 0.0, 0.0, (0.0, 0.0)
    session.rewind(0)
    row = session.feed(prompt)
    while len(agreed) < count:
        # The .pte runs ahead; one pass of the reference judges all its tokens up to the first difference.
        rows, ahead = [row], [greedy(row)]
        while len(agreed) + len(ahead) < count:
            rows.append(session.step(ahead[-1]))
            ahead.append(greedy(rows[-1]))
        output = reference.run([*prompt, *agreed, *ahead[:-1]])
        kv = max(kv, _cache_error(session, output))
        expected = output.logits[len(prompt) + len(agreed) - 1 :]
        for raw, logits, got in zip(rows, expected, ahead, strict=True):
            steps = (dequantise(raw, info.logits_scale, info.logits_zero_point) - logits) / info.logits_scale
            worst = max(worst, float(np.abs(steps).max()))
            squares += float(np.square(steps).mean())
            best = int(logits.argmax())
            agreed.append(best)
            if got != best:
                differences.append(difference(len(agreed) - 1, got, best, logits / info.logits_scale, tie_steps))
                if len(agreed) < count:
                    session.rewind(len(prompt) + len(agreed) - 1)
                    row = session.step(best)
                break
    rms = float(np.sqrt(squares / max(len(agreed), 1)))
    return PromptComparison(len(prompt), tuple(agreed), tuple(differences), worst, rms, *kv)


def _cache_error(session: Session, output: QdqOutput) -> tuple[float, float]:
    """Largest difference of the session's cache from the reference's, in steps, and the share that differs."""
    count = session.cache.n_valid
    gaps = [
        np.abs(k[..., :count] - mine[..., :count].astype(np.float64))
        for k, mine in zip(output.k, session.cache.k, strict=False)
    ]
    gaps += [
        np.abs(v[:, :, :count] - mine[:, :, :count].astype(np.float64))
        for v, mine in zip(output.v, session.cache.v, strict=False)
    ]
    if not gaps:
        return 0.0, 0.0
    return max(float(gap.max()) for gap in gaps), float(np.mean([np.mean(gap > 0) for gap in gaps]))


def difference(index: int, got: int, best: int, steps: Logits, tie_steps: float = NEAR_TIE_STEPS) -> Difference:
    """What it means that token `got` was chosen where the reference's logits (in quantisation steps) say `best`."""
    """`steps`: the reference's logits in quantisation steps."""
    second = float(np.partition(steps, -2)[-2])
    # Rounded, as the reference's logits are float32 multiples of the scale.
    top_gap, token_gap = (round(float(steps[best]) - other, 3) for other in (second, float(steps[got])))
    return Difference(index, got, best, top_gap, token_gap, max(top_gap, token_gap) <= tie_steps)


def report_json(report: ReferenceReport) -> dict[str, Any]:
    """The report as plain data, with the totals that a verdict needs."""
    return {
        "compared": report.compared,
        "near_ties": len(report.near_ties),
        "mismatches": len(report.mismatches),
        "worst_steps": report.worst_steps,
        "kv_worst_steps": max((prompt.kv_worst_steps for prompt in report.prompts), default=0.0),
        "prompts": [asdict(prompt) for prompt in report.prompts],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m harness.runtime.reference`: compares in a process of its own, started with the QNN environment."""
    parser = argparse.ArgumentParser(prog="python -m harness.runtime.reference", description=main.__doc__)
    parser.add_argument("--pte", type=Path, required=True)
    parser.add_argument("--qdq", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="JSON: a list of lists of token ids")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--tie-steps", type=float, default=NEAR_TIE_STEPS)
    parser.add_argument("--output", type=Path, required=True, help="JSON report to write")
    options = parser.parse_args(arguments)
    info = read_info(options.pte)
    session = Session(Engine(info))
    reference = QdqReference(options.qdq, info.sliding_window)
    prompts = json.loads(options.prompts.read_text(encoding="utf-8"))
    report = compare_with_qdq(session, reference, prompts, options.tokens, options.tie_steps)
    write_json(options.output, report_json(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
