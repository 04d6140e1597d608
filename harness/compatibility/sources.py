"""Further sources of results: the history, and what the gates know of cells that nobody planned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.compatibility.matrix import State, state_of
from harness.compatibility.result import Result, Source
from harness.gates import Version, judge_all
from harness.matrix import cells
from harness.models import ModelSpec
from harness.results.records import PerplexityRecord, Status
from harness.results.summary import GRAPHS, NOT_RUN
from harness.soc import Soc
from harness.target import Target

if TYPE_CHECKING:
    from harness.history.query import CellResult as Stored
    from harness.history.store import History

_SPEEDS = ("ttft_ms", "prefill_tok_s", "decode_tok_s")


@dataclass(frozen=True)
class Joined:
    """Several sources; of a run and cell that more than one knows, the latest result (a run may have gone on since it
    was imported), of equal ones the first source's."""

    sources: tuple[Source, ...]

    def results(self) -> Iterable[Result]:
        """The results of all."""
        kept: dict[tuple[str, str], Result] = {}
        for source in self.sources:
            for result in source.results():
                key = result.run, result.cell
                if not result.run:
                    yield result
                elif key not in kept or result.time > kept[key].time:
                    kept[key] = result
        yield from kept.values()


@dataclass(frozen=True)
class FromHistory:
    """The results in a history. Numbers are filled in where a matrix can show them: in the latest result of each cell
    and phone that says something.

    Attributes:
        history: the database, open.
        target: `sim` or `android` alone; None for both.
    """

    history: History
    target: str | None = None

    def results(self) -> Iterable[Result]:
        """All results of the history."""
        from harness.history.query import Choice, cell_results, evidence_paths, list_runs, medians, perplexities

        choice = Choice(target=self.target)
        toolchains = {run.run: run.toolchain for run in list_runs(self.history, choice)}
        paths = evidence_paths(self.history, choice)
        found = [
            _from_history(stored, toolchains.get(stored.run, {}), paths.get((stored.run, stored.cell), ""))
            for stored in cell_results(self.history, choice)
        ]
        telling = [result for result in found if state_of(result) is not State.NOT_TRIED]
        latest = {(result.cell, result.target, result.phone): (result.run, result.cell) for result in telling}
        numbers = medians(self.history, set(latest.values()), _SPEEDS)
        scores = perplexities(self.history, set(latest.values()))
        for result in found:
            key = result.run, result.cell
            yield _with_numbers(result, numbers.get(key, {}), scores.get(key, ()))


@dataclass(frozen=True)
class Gates:
    """What the gates say of models on SoCs, without a run: unsupported, or not tried.

    Attributes:
        models: each in its own modes and recipe.
        socs: the chipsets.
        target: what artifacts would be built for.
        qnn: version of the QNN libraries; None: no gate is judged by it.
    """

    models: Sequence[ModelSpec]
    socs: Sequence[Soc]
    target: Target
    qnn: Version | None = None

    def results(self) -> Iterable[Result]:
        """A result for each cell, with no run and no time."""
        for cell in cells(self.models, None, self.socs):
            stops = judge_all(cell, self.target, self.qnn, simulated=self.target is Target.SIM)
            stop = stops[0] if stops else None
            yield Result(
                run="",
                cell=cell.id,
                model=cell.model.name,
                mode=cell.mode.value,
                soc=cell.soc.name,
                arch=cell.soc.arch,
                recipe=cell.recipe,
                target=self.target.value,
                phone="",
                time="",
                status=Status.SKIPPED.value if stop else NOT_RUN,
                failure_class="UNSUPPORTED" if stop else "",
                gate=stop.gate if stop else "",
                reason=stop.reason if stop else "",
                remedy=stop.remedy if stop else "",
            )


def _from_history(stored: Stored, toolchain: dict[str, str], evidence_path: str) -> Result:
    return Result(
        run=stored.run,
        cell=stored.cell,
        model=stored.model,
        mode=stored.mode,
        soc=stored.soc,
        arch=stored.arch,
        recipe=stored.recipe,
        target=stored.target,
        phone=stored.phone or "",
        time=stored.ended,
        status=stored.status,
        failure_class=stored.failure_class or "",
        gate=stored.gate,
        reason=stored.reason,
        remedy=stored.remedy,
        evidence=stored.evidence,
        evidence_path=evidence_path,
        toolchain=toolchain,
    )


def _with_numbers(result: Result, numbers: Mapping[str, float], scores: Sequence[PerplexityRecord]) -> Result:
    """With the speeds and, of each graph of the phone, the last perplexity."""
    last = {score.graph: score for score in scores if score.ground == "PHONE"}
    speeds = {name: numbers.get(name) for name in _SPEEDS}
    ordered = tuple(last[graph] for graph in GRAPHS if graph in last)
    return replace(result, scores=ordered, **speeds)  # type: ignore[arg-type]
