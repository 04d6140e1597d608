"""One execution of a graph, as faults see it: its inputs by name, replaced and not changed in place.

The order of a graph's inputs is the program's: tokens, mask, the sliding window's mask if it has one, positions, all K,
all V. It changes with no refactoring of the runner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from faults.fault import Patch

DECODE, PREFILL = "kv_forward", "prefill_forward"


@dataclass
class Step:
    """An execution that is about to be done.

    Attributes:
        engine, graph: what runs.
        inputs: copies are put in place of what is changed.
    """

    engine: Any
    graph: str
    inputs: list[Any]

    @property
    def layers(self) -> int:
        """Layers with a cache."""
        return int(self.engine.info.n_layers)

    @property
    def ar_len(self) -> int:
        """Tokens that the graph takes."""
        return int(self.inputs[0].shape[-1])

    @property
    def context(self) -> int:
        """Columns of the mask."""
        return int(self.inputs[1].shape[-1])

    @property
    def past(self) -> int:
        """Tokens in the cache: the first row's position."""
        return int(self.positions.reshape(-1)[0])

    @property
    def _positions_at(self) -> int:
        return len(self.inputs) - 2 * self.layers - 1

    @property
    def positions(self) -> Any:
        """Of each row."""
        return self.inputs[self._positions_at]

    @positions.setter
    def positions(self, value: Any) -> None:
        self.inputs[self._positions_at] = value

    @property
    def masks(self) -> list[Any]:
        """[AR, context] each, copied: the plain one, and the sliding window's if there is one."""
        for index in range(1, self._positions_at):
            self.inputs[index] = self.inputs[index].copy()
        return [self.inputs[index][0, 0] for index in range(1, self._positions_at)]

    @property
    def tokens(self) -> Any:
        """[AR], copied."""
        self.inputs[0] = self.inputs[0].copy()
        return self.inputs[0][0]

    def cache(self, layer: int, *, value: bool) -> Any:
        """K or V of a layer, copied: [1, heads, width, columns] or [1, heads, columns, width]."""
        index = self._positions_at + 1 + layer + (self.layers if value else 0)
        self.inputs[index] = self.inputs[index].copy()
        return self.inputs[index]

    def attend(self, mask: Any) -> Any:
        """What a mask holds where a row attends: what stands where the first row sees itself."""
        return mask[0, self.context - self.ar_len]

    def block(self, mask: Any) -> Any:
        """What a mask holds where a row does not attend."""
        return 0 if mask.dtype.kind == "u" else mask.min()


def before(patch: Patch, change: Callable[[Step], bool]) -> None:
    """Changes the inputs of executions; `change` says whether it has."""

    @patch.around("harness.runtime.engine", "Engine.run")
    def run(original: Any, engine: Any, graph: str, inputs: Sequence[Any]) -> Any:
        step = Step(engine, graph, list(inputs))
        if not change(step):
            return original(engine, graph, inputs)
        patch.strike()
        return original(engine, graph, step.inputs)


def after(patch: Patch, change: Callable[[Step, list[Any]], bool]) -> None:
    """Changes the outputs of executions: logits [1,AR,V], all K, all V; they are copies."""

    @patch.around("harness.runtime.engine", "Engine.run")
    def run(original: Any, engine: Any, graph: str, inputs: Sequence[Any]) -> Any:
        outputs = [array.copy() for array in original(engine, graph, inputs)]
        if change(Step(engine, graph, list(inputs)), outputs):
            patch.strike()
        return outputs
