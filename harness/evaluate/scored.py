"""What a phone's graphs scored of the held-out text, beside QDQ's: rows for the noise, targets for perplexities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.build.witness import Witness, WitnessText
from harness.errors import ProductError
from harness.evaluate.deviations import Deviations, compare_rows
from harness.evaluate.seams import Stage
from harness.results.records import Graph
from harness.runtime.score import LegScore


@dataclass
class Scored:
    """All stages of a cell so far.

    Attributes:
        witness: what QDQ says.
        rows: deviations of each stage whose text the witness has.
        each: graph → window's number → log-likelihood of its tokens from its beginning on, nats; each token once.
        steps, seconds: graph → executions that scored those tokens, and time in them.
    """

    witness: Witness
    rows: list[Deviations] = field(default_factory=list)
    each: dict[Graph, dict[int, list[float]]] = field(default_factory=dict)
    steps: dict[Graph, int] = field(default_factory=dict)
    seconds: dict[Graph, float] = field(default_factory=dict)

    def add(self, stages: Sequence[Stage], scores: Sequence[LegScore]) -> None:
        """Takes what a walk gave.

        Raises:
            ProductError: scores of another number of tokens than were asked for.
        """
        for stage, score in zip(stages, scores, strict=True):
            graph, wanted = stage.leg.graph, len(stage.leg.targets)
            if len(score.logprobs) != wanted or len(score.top) != wanted:
                raise ProductError(
                    f"{len(score.logprobs)} scores and {len(score.top)} rows of {wanted} tokens", where=stage.where
                )
            _agree(stage, score)
            if not wanted:
                continue
            if stage.counted:
                self.steps[graph] = self.steps.get(graph, 0) + score.steps
                self.seconds[graph] = self.seconds.get(graph, 0.0) + score.seconds
                self.each.setdefault(graph, {}).setdefault(stage.window, []).extend(score.logprobs)
            if text := self._witness_of(stage):
                place = (text, stage.leg.keep, score.top, self.witness.typical_spread)
                self.rows.append(compare_rows(graph, stage.where, *place))

    def rows_of(self, graph: Graph) -> list[Deviations]:
        """Deviations of one graph."""
        return [part for part in self.rows if part.graph == graph]

    def targets(self, graph: Graph, windows: Sequence[int]) -> tuple[float, ...]:
        """Log-likelihoods of the tokens of some windows, in their order."""
        return tuple(value for number in windows for value in self.each.get(graph, {}).get(number, ()))

    def common(self, one: Graph, other: Graph) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Log-likelihoods that two graphs gave of the same tokens."""
        pairs = [
            pair
            for number in sorted(self.each.get(one, {}))
            for pair in zip(self.each[one][number], self.each.get(other, {}).get(number, ()), strict=False)
        ]
        return tuple(a for a, _ in pairs), tuple(b for _, b in pairs)

    def against_qdq(self, graph: Graph) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The graph's log-likelihoods, and QDQ's of the same tokens: of the windows that the witness has."""
        phone: list[float] = []
        qdq: list[float] = []
        for number, values in sorted(self.each.get(graph, {}).items()):
            if number < len(self.witness.held_out):
                known = self.witness.held_out[number].target_logprobs[: len(values)]
                phone += values[: len(known)]
                qdq += [float(x) for x in np.asarray(known)]
        return tuple(phone), tuple(qdq)

    def _witness_of(self, stage: Stage) -> WitnessText | None:
        if stage.window >= len(self.witness.held_out):
            return None
        text, leg = self.witness.held_out[stage.window], stage.leg
        end = leg.keep + len(leg.inputs)
        return text if text.inputs[leg.keep : end] == leg.inputs else None


_SAME = 1e-4
"""Nats: rows are sent rounded to a millionth."""


def _agree(stage: Stage, score: LegScore) -> None:
    """A target's score is its log-probability in its row: one of them would be of another text otherwise.

    Raises:
        ProductError: it is not.
    """
    for row, (target, said) in enumerate(zip(stage.leg.targets, score.logprobs, strict=True)):
        ids, logprobs = score.top.ids[row], score.top.logprobs[row]
        place = np.flatnonzero(ids == target)
        # A target that is not among the likeliest is at most as likely as the least of them.
        off = abs(said - logprobs[place[0]]) if len(place) else said - logprobs.min()
        if not off <= _SAME:
            raise ProductError(
                f"the runner scores token {target} {said:.4f} nats, its row says otherwise by {off:.4f}",
                where=f"{stage.where}, {stage.leg.graph} graph, input {row}",
                remedy="the scores are of another text or graph than the rows: look at the runner's walk",
            )
