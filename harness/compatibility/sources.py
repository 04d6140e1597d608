"""Further sources of results: the history, and what the gates know of cells that nobody planned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.compatibility.result import Result, Source
from harness.gates import Version, judge_all
from harness.matrix import cells
from harness.models import ModelSpec
from harness.results.records import Status
from harness.results.summary import NOT_RUN
from harness.soc import Soc
from harness.target import Target

if TYPE_CHECKING:
    from harness.history.query import CellResult as Stored
    from harness.history.store import History

_PPL = "word_ppl[PHONE/"


@dataclass(frozen=True)
class Joined:
    """Several sources; of a run and cell that more than one knows, the first one's result."""

    sources: tuple[Source, ...]

    def results(self) -> Iterable[Result]:
        """The results of all."""
        seen: set[tuple[str, str]] = set()
        for source in self.sources:
            for result in source.results():
                key = result.run, result.cell
                if not result.run or key not in seen:
                    seen.add(key)
                    yield result


@dataclass(frozen=True)
class FromHistory:
    """The results in a history. Numbers are filled in where a cell's latest and last good results are.

    Attributes:
        history: the database, open.
        target: `sim` or `android` alone; None for both.
    """

    history: History
    target: str | None = None

    def results(self) -> Iterable[Result]:
        """All results of the history."""
        from harness.history.query import Choice, cell_results, list_runs, standings

        choice = Choice(target=self.target)
        toolchains = {run.run: run.toolchain for run in list_runs(self.history, choice)}
        wanted = ("ttft_ms", "prefill_tok_s", "decode_tok_s", f"{_PPL}*")
        numbers: dict[tuple[str, str], dict[str, float]] = {}
        for standing in standings(self.history, choice, wanted):
            for one in (standing.latest, standing.last_good):
                if one:
                    numbers[one.run, one.cell] = one.metrics
        for stored in cell_results(self.history, choice):
            yield _from_history(stored, numbers.get((stored.run, stored.cell), {}), toolchains.get(stored.run, {}))


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


def _from_history(stored: Stored, numbers: dict[str, float], toolchain: dict[str, str]) -> Result:
    scores = {name.removeprefix(_PPL).rstrip("]"): value for name, value in numbers.items() if name.startswith(_PPL)}
    graph, ppl = _best(scores)
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
        ttft_ms=numbers.get("ttft_ms"),
        prefill_tok_s=numbers.get("prefill_tok_s"),
        decode_tok_s=numbers.get("decode_tok_s"),
        ppl=ppl,
        ppl_graph=graph,
        toolchain=toolchain,
    )


def _best(scores: dict[str, float]) -> tuple[str, float | None]:
    """Of `graph/tokens` → perplexity: over the most tokens, the kv graph's first."""

    def place(name: str) -> tuple[int, bool]:
        graph, _, tokens = name.partition("/")
        return (-int(tokens) if tokens.isdigit() else 0), graph != "kv"

    name = min(scores, key=place, default=None)
    return ("", None) if name is None else (name.partition("/")[0], scores[name])
