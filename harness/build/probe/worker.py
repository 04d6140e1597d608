"""The probe's worker: `python -m harness.build.probe.worker JOB.json`, with the toolchain's environment.

Each gate's graph is quantised once, here; then one forked child a chipset lowers it as builds do, says into its own
log what the compiler says, and may abort or hang: only its own answer is lost. A graph that was not accepted is
followed by its control, the same without the feature: what refuses both proves nothing about the gate.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from executorch.backends.qualcomm._passes.build_quant_io import BuildQuantIo
from executorch.backends.qualcomm.utils.utils import to_edge_transform_and_lower_to_qnn
from executorch.exir.capture._config import ExecutorchBackendConfig
from executorch.exir.passes.memory_planning_pass import MemoryPlanningPass

from harness.build import upstream
from harness.build.events import Event, emit
from harness.build.probe.graphs import GRAPHS, MUST_DELEGATE, Graph
from harness.build.probe.job import ProbeJob, to_dict
from harness.build.probe.marks import Answer, Observation
from harness.soc import find_soc

# What the compiler and the simulator say when they will not, as opposed to what goes wrong.
_REFUSALS = re.compile(
    r"incorrect Value \d+, expected|validateOpConfig failed|graph prepare failed|Failed to finalize Qnn Graph"
    r"|Fail to create context from binary"
)
_SHOWN = 2
_ROUNDING = 0.01
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Said:
    """One child's answer."""

    answer: Answer
    delegated: int = 0
    left: tuple[str, ...] = ()
    evidence: str = ""
    size: int = 0


def lower(graph: Graph, soc: str, output: Path) -> tuple[list[str], list[str]]:
    """Lowers a graph for a chipset, as ExecuTorch's own scripts do, and writes the `.pte`.

    Returns:
        Targets of the nodes that were delegated, and of those that were not.
    """
    spec = upstream.compiler_spec(soc, graph.target, 1)
    manager = to_edge_transform_and_lower_to_qnn(
        module=dict(graph.modules),
        inputs=dict(graph.inputs),
        compiler_specs=dict.fromkeys(graph.modules, spec),
    )
    delegated: list[str] = []
    left: list[str] = []
    for name in graph.modules:
        program = manager.exported_program(name)
        calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        left += [_short(call) for call in calls if "executorch_call_delegate" not in call and "getitem" not in call]
        for child in program.graph_module.children():
            if original := getattr(child, "original_module", None):
                delegated += [_short(str(n.target)) for n in original.graph.nodes if n.op == "call_function"]
    planning = MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=False)
    program = manager.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning, passes=[BuildQuantIo()]))
    with output.open("wb") as stream:
        program.write_to_file(stream)
    return delegated, left


def _short(target: str) -> str:
    """`<EdgeOpOverload: aten.matmul.default>: schema = …` → `aten.matmul.default`."""
    found = re.match(r"<EdgeOpOverload: ([^>]+)>", target)
    return found[1] if found else target


def answer(gate: str, graph: Graph, control: bool, soc: str, output: Path, log: Path) -> Said:
    """Lowers a graph (and loads it in the simulator, where it is about that) and judges what came of it."""
    delegated: list[str] = []
    left: list[str] = []
    wrong = off = ""
    try:
        delegated, left = lower(graph, soc, output)
        if graph.loads:
            _load(output, next(iter(graph.modules)))
        if graph.runs:
            off = _off(graph, output)
    except Exception as error:
        traceback.print_exc()
        wrong = (str(error).splitlines() or [repr(error)])[0]
    sys.stderr.flush()
    size = output.stat().st_size if output.is_file() else 0
    if not wrong and not left:
        must = None if control else MUST_DELEGATE.get(gate)
        if must and must not in delegated:
            return Said(Answer.FAILED, len(delegated), (), f"{must} is not among the nodes that were delegated", size)
        if off:
            return Said(Answer.WRONG, len(delegated), (), off, size)
        return Said(Answer.ACCEPTED, len(delegated), (), "", size)
    words = refusal(log.read_text(encoding="utf-8", errors="replace"))
    if words:
        return Said(Answer.REFUSED, len(delegated), tuple(left), words, size)
    return Said(Answer.FAILED, len(delegated), tuple(left), wrong or f"not delegated: {', '.join(left)}", size)


def refusal(log: str) -> str:
    """The compiler's words of refusal in a log, each once, without its decoration; empty where there are none."""
    lines = [line for line in log.splitlines() if _REFUSALS.search(line)]
    words = dict.fromkeys(re.sub(r"^\[[A-Z]+\] \[Qnn ExecuTorch\]:\s*(<E> )?", "", line).strip() for line in lines)
    return "; ".join(list(words)[:_SHOWN])


def _load(pte: Path, method: str) -> None:
    from executorch.runtime import Runtime

    Runtime.get().load_program(pte).load_method(method)


def _off(graph: Graph, pte: Path) -> str:
    """Which rows of a graph's result are not torch's, by more than a hundredth of the largest value; empty: none."""
    from executorch.runtime import Runtime

    name, module = next(iter(graph.modules.items()))
    inputs = graph.inputs[name]
    wanted = module(*inputs)[0]
    got = Runtime.get().load_program(pte).load_method(name).execute(list(inputs))[0][0]
    gaps = (got - wanted).abs().amax(dim=-1) / wanted.abs().max()
    rows = [row for row, gap in enumerate(gaps.tolist()) if not gap <= _ROUNDING]
    return f"rows {', '.join(map(str, rows))} of {len(gaps)} are not torch's, by up to {gaps.max():.0%}" if rows else ""


@dataclass
class _Task:
    gate: str
    soc: str
    control: bool
    process: BaseProcess | None = None
    started: float = 0.0
    seconds: float = 0.0

    @property
    def stem(self) -> str:
        return f"{self.gate}-{self.soc}{'-control' if self.control else ''}"


@dataclass
class _Both:
    """A gate's two answers for one chipset."""

    feature: Said | None = None
    control: Said | None = None
    seconds: float = 0.0


def say_probed(seen: Observation) -> None:
    """An answer as the worker's event."""
    emit(Event("probed", seen.gate, seen.seconds, json.dumps(to_dict(seen))))


class Prober:
    """Runs a job's tasks in forked children."""

    def __init__(
        self,
        job: ProbeJob,
        *,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[Observation], None] = say_probed,
    ) -> None:
        """
        Args:
            job: what is asked.
            clock: seconds, for each graph's time limit.
            say: hears each answer.
        """
        self._job, self._clock, self._say = job, clock, say
        self._context = multiprocessing.get_context("fork")
        self._graphs: dict[tuple[str, bool], Graph | str] = {}
        self._waiting = [_Task(gate, soc, control=False) for gate, soc in job.tasks]
        self._running: list[_Task] = []
        self._answers: dict[tuple[str, str], _Both] = {task: _Both() for task in job.tasks}

    def run(self) -> None:
        """Until every task has its answer."""
        while self._waiting or self._running:
            while self._waiting and len(self._running) < self._job.parallel:
                self._start(self._waiting.pop(0))
            for task in list(self._running):
                if said := self._outcome(task):
                    self._running.remove(task)
                    self._settle(task, said)
            time.sleep(0.02)

    def _graph(self, gate: str, control: bool) -> Graph | str:
        """The quantised graph, made when it is first wanted; or why it cannot be made."""
        key = (gate, control)
        if key not in self._graphs:
            torch.manual_seed(0)
            try:
                self._graphs[key] = GRAPHS[gate][control]()
            except Exception as error:
                traceback.print_exc()
                self._graphs[key] = f"the graph cannot be quantised: {error}"
        return self._graphs[key]

    def _start(self, task: _Task) -> None:
        graph = self._graph(task.gate, task.control)
        if isinstance(graph, str):
            self._settle(task, Said(Answer.FAILED, evidence=graph))
            return
        task.started = self._clock()
        # Daemonic: a child that hangs ends with this process.
        arguments = (task.stem, task, graph, self._job.folder)
        task.process = self._context.Process(target=_child, args=arguments, daemon=True)
        task.process.start()
        self._running.append(task)

    def _outcome(self, task: _Task) -> Said | None:
        """A task's answer once its child has ended; the child is ended when it takes too long."""
        process = task.process
        assert process is not None
        task.seconds = round(self._clock() - task.started, 2)
        if process.is_alive():
            if task.seconds < self._job.seconds:
                return None
            process.kill()
            process.join()
            return Said(Answer.TIMED_OUT, evidence=f"took more than {self._job.seconds:.0f} s")
        process.join()
        path = self._job.folder / f"{task.stem}.json"
        if process.exitcode == 0 and path.is_file():
            raw = json.loads(path.read_text(encoding="utf-8"))
            path.unlink()
            return Said(**{**raw, "answer": Answer(raw["answer"]), "left": tuple(raw["left"])})
        code = process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return Said(Answer.CRASHED, evidence=f"the compiler's process ended with {how}")

    def _settle(self, task: _Task, said: Said) -> None:
        both = self._answers[task.gate, task.soc]
        if task.control:
            both.control = said
        else:
            both.feature, both.seconds = said, task.seconds
            if said.answer is not Answer.ACCEPTED or task.gate in _MEASURED:
                self._waiting.insert(0, _Task(task.gate, task.soc, control=True))
                return
        self._report(task, both)

    def _report(self, task: _Task, both: _Both) -> None:
        feature, control = both.feature, both.control
        assert feature is not None
        soc = find_soc(task.soc)
        graph = self._graph(task.gate, control=False)
        quantizer = None
        if isinstance(graph, Graph) and graph.refused:
            quantizer = Answer.REFUSED if task.soc in graph.refused else Answer.ACCEPTED
        evidence = feature.evidence
        if feature.answer is Answer.ACCEPTED and control is not None:
            evidence = _MEASURED[task.gate](feature, control)
        seen = Observation(
            gate=task.gate,
            soc=soc.name,
            arch=soc.arch,
            answer=feature.answer,
            control=control.answer if control else None,
            quantizer=quantizer,
            delegated=feature.delegated,
            left=feature.left,
            evidence=evidence,
            seconds=both.seconds,
            log=str(self._job.folder / f"{_Task(task.gate, task.soc, control=False).stem}.log"),
        )
        self._say(seen)


def _sizes(feature: Said, control: Said) -> str:
    return f"{feature.size:,} bytes with it, {control.size:,} without"


_MEASURED: Mapping[str, Callable[[Said, Said], str]] = {"weight_sharing": _sizes}
"""Gates whose control is always lowered, since only the difference shows that the feature is there."""


def _child(stem: str, task: _Task, graph: Graph, folder: Path) -> None:
    """Body of a forked child."""
    _die_with_parent()
    torch.set_num_threads(1)
    log, pte = folder / f"{stem}.log", folder / f"{stem}.pte"
    with log.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    said = answer(task.gate, graph, task.control, task.soc, pte, log)
    with contextlib.suppress(FileNotFoundError):
        pte.unlink()
    raw: dict[str, Any] = {**said.__dict__, "left": list(said.left)}
    (folder / f"{stem}.json").write_text(json.dumps(raw), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    # No interpreter shutdown: the QNN libraries' and torch's destructors belong to the parent's memory.
    os._exit(0)


def _die_with_parent() -> None:
    """Asks the kernel to end this process when its parent dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Entry point."""
    _die_with_parent()
    torch.set_num_threads(1)
    job = ProbeJob.from_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    emit(Event("begin", "probing"))
    Prober(job).run()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
