"""How one cell ended in one run: what a matrix is made of, whether it comes from runs' folders or from the history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.errors import HarnessError
from harness.results.records import Entry, OutcomeRecord, PerplexityRecord
from harness.results.store import RECORDS, read_entries, run_data
from harness.results.summary import CellSummary, RunSummary, summarise

COMPILED = "compiled; not run"
"""How the reason of an outcome begins where the run only compiled."""


@dataclass(frozen=True)
class Result:
    """One cell in one run.

    Attributes:
        run: the run's id.
        cell, model, mode, soc, recipe: as planned.
        arch: HTP architecture, as 75.
        target: `sim` or `android`.
        phone: the phone it ran on or is pinned to; empty when it came to none.
        time: when it ended, ISO UTC; empty for what is known without a run.
        status: one of `summary.STATUSES`.
        failure_class: why it did not pass; empty when it did, or when nothing was tried.
        gate, reason, remedy, evidence: as in `CellSummary`.
        evidence_path: file with all of the evidence, relative to the run's folder; empty without.
        ttft_ms, prefill_tok_s, decode_tok_s: medians over sessions.
        scores: the perplexities on the phone, a graph each; what of them is shown, see `matrix.Shown`.
        toolchain: name → version or hash of the run.
    """

    run: str
    cell: str
    model: str
    mode: str
    soc: str
    arch: int
    recipe: str
    target: str
    phone: str
    time: str
    status: str
    failure_class: str = ""
    gate: str = ""
    reason: str = ""
    remedy: str = ""
    evidence: str = ""
    evidence_path: str = ""
    ttft_ms: float | None = None
    prefill_tok_s: float | None = None
    decode_tok_s: float | None = None
    scores: tuple[PerplexityRecord, ...] = ()
    toolchain: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """Where results come from."""

    def results(self) -> Iterable[Result]:
        """All that are worth a look, in any order."""
        ...


@dataclass(frozen=True)
class RunFolders:
    """Results of runs' folders; of those that cannot be read only if named (`strict`) is anything said.

    Attributes:
        folders: the runs.
        strict: raise for a folder without records, instead of passing over it.
    """

    folders: tuple[Path, ...]
    strict: bool = True

    @classmethod
    def below(cls, reports: Path) -> RunFolders:
        """Every run of a folder of runs, oldest first."""
        return cls(tuple(sorted(path.parent for path in reports.glob(f"*/{RECORDS}"))), strict=False)

    def results(self) -> Iterable[Result]:
        """The results, run by run.

        Raises:
            ConfigError: a named folder has no records.
        """
        for folder in self.folders:
            try:
                yield from folder_results(folder)
            except (HarnessError, OSError):
                if self.strict:
                    raise


def folder_results(folder: Path) -> list[Result]:
    """A result for each planned cell of a run's folder.

    Raises:
        ConfigError: it has no records, or none of how the run was started.
    """
    entries = read_entries(folder / RECORDS)
    return run_results(summarise(run_data(entries, str(folder / RECORDS))), entries)


def run_results(summary: RunSummary, entries: Iterable[Entry] = ()) -> list[Result]:
    """A result for each planned cell of a run; of one without an outcome the time is the run's last."""
    ended = {entry.record.cell: entry.time for entry in entries if isinstance(entry.record, OutcomeRecord)}
    return [_result(cell, summary, ended.get(cell.id) or summary.last_time) for cell in summary.cells]


def _result(cell: CellSummary, summary: RunSummary, time: str) -> Result:
    plan = cell.plan
    return Result(
        run=summary.run.id,
        cell=cell.id,
        model=plan.model,
        mode=plan.mode,
        soc=plan.soc,
        arch=plan.arch,
        recipe=plan.recipe,
        target=summary.run.target.value,
        phone=cell.phones[-1] if cell.phones else plan.phone or "",
        time=time,
        status=cell.status,
        failure_class=cell.failure_class.value if cell.failure_class else "",
        gate=plan.gate,
        reason=cell.reason,
        remedy=cell.remedy,
        evidence=cell.evidence,
        evidence_path=cell.evidence_path or "",
        ttft_ms=cell.ttft_ms,
        prefill_tok_s=cell.prefill_tok_s,
        decode_tok_s=cell.decode_tok_s,
        scores=cell.on("PHONE"),
        toolchain=summary.run.toolchain,
    )
