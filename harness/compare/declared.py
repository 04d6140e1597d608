"""A run's cells against what their models' files declare (`published`) for the whole model on phones."""

from __future__ import annotations

from collections.abc import Mapping

from harness.model_file import Mode
from harness.models import UPSTREAM, ModelSpec
from harness.results.records import Status
from harness.results.summary import CellSummary, RunSummary
from harness.target import Target
from harness.verdicts import Better, Declared, judge_declared

CONTEXT = 1024
"""What the figures hold for, with upstream's recipe in kv mode: see `Published`."""
_BETTER = {"decode_tok_s": Better.HIGHER, "pte_bytes": Better.LOWER}


def declared(summary: RunSummary, models: Mapping[str, ModelSpec]) -> dict[str, tuple[Declared, ...]]:
    """Cell → its declared bounds and how they were kept; only cells that passed on phones: `sim` speed is none."""
    if summary.run.target is not Target.ANDROID:
        return {}
    found = {cell.id: _of(cell, models.get(cell.plan.model)) for cell in summary.cells}
    return {cell: kept for cell, kept in found.items() if kept}


def _of(cell: CellSummary, model: ModelSpec | None) -> tuple[Declared, ...]:
    plan = cell.plan
    stated = model.published if model else None
    if stated is None or cell.status != Status.PASSED.value:
        return ()
    if (plan.mode, plan.recipe, plan.lengths.max_seq_len) != (Mode.KV.value, UPSTREAM, CONTEXT):
        return ()
    speeds = stated.decode_tok_s.model_dump() if stated.decode_tok_s else {}
    bounds = {"decode_tok_s": speeds.get(plan.soc), "pte_bytes": stated.pte_bytes}
    measured = {"decode_tok_s": cell.decode_tok_s, "pte_bytes": float(cell.artifact.bytes) if cell.artifact else None}
    return judge_declared(measured, {name: float(bound) for name, bound in bounds.items() if bound}, _BETTER)
