"""A rack of one virtual phone, and cells run on it as a run does: leases, deployment, records in a run's folder."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from faults.fault import Fault
from faults.tap import FOLDER, Words, read_words
from harness.build.builder import Builder, Request
from harness.build.cache import Artifact, locate
from harness.build.materials import tokenizer_file
from harness.conduct.attempt import Bench
from harness.conduct.phone_files import PhoneFiles
from harness.conduct.run_cell import run_cell
from harness.conduct.sides import launcher
from harness.evaluate.choice import EvalChoice
from harness.evaluate.host import Host
from harness.farm.health import HealthBook
from harness.farm.identity import AttachedPhone, attach
from harness.farm.lease_service import HostLeases
from harness.farm.prepare import Nurse
from harness.gates import Verdict
from harness.inventory import load_inventory
from harness.matrix import Cell, cells
from harness.model_file import Mode
from harness.models import ModelSpec, load_models
from harness.paths import MODELS, REPOSITORY
from harness.rack import manage
from harness.rack.image import LAUNCHER
from harness.results import OutcomeRecord, RecordWriter, RunInfo, load_run, plan_entry, utc_now
from harness.results.records import CheckRecord
from harness.soc import PHONE_KINDS, SOCS
from harness.target import Target
from harness.toolchain.environment import find_toolchain, fingerprint
from harness.twins import select_twins

SOC = SOCS["SM8650"]
KIND = "galaxy_s24"
OURS, STOCK = "ours", "stock"
_STOCK_FILES = (
    "lib/aarch64-android/libQnnHtp.so",
    "lib/aarch64-android/libQnnHtpV75Stub.so",
    "lib/aarch64-android/libQnnHtpPrepare.so",
    "lib/aarch64-android/libQnnSystem.so",
    "lib/hexagon-v75/unsigned/libQnnHtpV75Skel.so",
)
# What ExecuTorch's own runner would refuse; tests/host/test_real_phone.py has a phone that insists on more.
_INSISTS = """\
for word in "$@"; do case $word in --x_*) echo "not the stock runner's: $word" >&2; exit 3 ;; esac; done
case $LD_LIBRARY_PATH in ''|*:*) echo "one LD_LIBRARY_PATH" >&2; exit 3 ;; esac
[ -f "$LD_LIBRARY_PATH/libQnnHtpV75Stub.so" ] || { echo "no stub" >&2; exit 3; }
"""


@dataclass(frozen=True)
class Place:
    """What a cell is run on: a model in a mode, on our runner or the stock path, with QDQ's module kept or not."""

    model: str
    mode: str
    way: str = OURS
    module: bool = True

    @property
    def name(self) -> str:
        """In a file's name."""
        return "-".join((self.model, self.mode, self.way, "module" if self.module else "no_module"))

    @property
    def title(self) -> str:
        """In words."""
        return (
            f"{self.model} {self.mode}"
            + (", stock" if self.way == STOCK else "")
            + ("" if self.module else ", no module")
        )


@dataclass
class Ran:
    """A cell that ran: how it ended, its checks, and what its runner said.

    Attributes:
        problem: why it says nothing of the fault: not planted, or the farm failed.
    """

    outcome: str
    failure_class: str
    reason: str
    checks: dict[str, str]
    texts: dict[str, str]
    words: Words
    seconds: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether the cell passed."""
        return self.outcome == "PASSED"


@dataclass
class Rack:
    """A virtual phone, and what cells need that run on it."""

    work: Path
    phones: dict[str, tuple[AttachedPhone, ...]] = field(default_factory=dict)
    root: Path = Path()
    heard: Path = Path()
    host: Host = field(default_factory=Host)
    _stored: dict[tuple[str, str], tuple[Cell, Artifact]] = field(default_factory=dict)
    _runs: int = 0

    def artifacts(self, models: Sequence[str], modes: Sequence[str]) -> None:
        """Compiles what the cache does not have."""
        toolchain = find_toolchain()
        known = fingerprint(toolchain)
        rows = load_models(MODELS)
        twins, others = select_twins(rows, models)
        specs: list[ModelSpec] = [*(rows[name] for name in others), *twins]
        requests = [
            Request(cell, Target.SIM, locate(cell.model, cell.mode, cell.soc, Target.SIM, cell.lengths, known))
            for cell in cells(specs, [Mode(mode) for mode in modes], [SOC])
        ]
        for result in Builder(toolchain, self.work / "build-logs").build(requests):
            if result.error is not None:
                raise result.error
        for request in requests:
            self._stored[request.cell.model.name, str(request.cell.mode)] = request.cell, request.artifact

    def artifact(self, model: str, mode: str, soc: str = SOC.name) -> Artifact:
        """A sound artifact of another mode or chipset; compiled if the cache does not have it."""
        toolchain = find_toolchain()
        spec = next(cell.model for (name, _), (cell, _) in self._stored.items() if name == model)
        (cell,) = cells([spec], [Mode(mode)], [SOCS[soc]])
        found = locate(spec, cell.mode, cell.soc, Target.SIM, cell.lengths, fingerprint(toolchain))
        for result in Builder(toolchain, self.work / "build-logs").build([Request(cell, Target.SIM, found)]):
            if result.error is not None:
                raise result.error
        return found

    def other_tokenizer(self, model: str) -> Path:
        """The tokenizer of a model that is not this one."""
        row = "stories110m_twin" if model != "stories110m_twin" else "qwen3_0_6b_twin"
        ((twin,), _) = select_twins(load_models(MODELS), [row])
        return tokenizer_file(twin, self.work)

    def stored(self, place: Place) -> tuple[Cell, Artifact]:
        """The sound artifact of a place."""
        cell, artifact = self._stored[place.model, place.mode]
        return cell, artifact if place.module else replace(artifact, reference=self.without_module(artifact.reference))

    def without_module(self, reference: Path) -> Path:
        """A copy of a reference folder without the modules, as large models' are."""
        copy = self.work / "no-module" / reference.name
        if not copy.is_dir():
            scratch = copy.with_name(f".{copy.name}")
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.copytree(reference, scratch, ignore=shutil.ignore_patterns("*.pt2"))
            scratch.rename(copy)
        return copy

    def run(
        self,
        place: Place,
        fault: Fault | None,
        *,
        artifact: Artifact | None = None,
        settings: Mapping[str, str] | None = None,
        label: str = "",
        memory: bool = True,
        product: bool = False,
    ) -> Ran:
        """Runs a cell with a fault planted in its runner, or none.

        Args:
            place: the cell.
            fault: planted in the runner's process; None: nothing is, or it is in the artifact.
            artifact: other than the sound one.
            settings: `HTPFARM_FAULT_…` variables of the runner's process.
            label: names the run's folder.
            memory: executions that were seen before are not done again.
            product: the harness's own runner as it stands: nothing is planted, heard or remembered.
        """
        cell, sound = self.stored(place)
        self._runs += 1
        name = label or (fault.name if fault else "clean")
        folder = self.work / "runs" / f"{place.name}-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        heard = f"{FOLDER}/{self._runs}"
        shutil.rmtree(self.root / heard, ignore_errors=True)
        (self.root / heard).mkdir(parents=True)
        exports = {"HTPFARM_FAULT": fault.name if fault else "", "HTPFARM_TAP": f"/{heard}", **(settings or {})}
        if memory:
            exports["HTPFARM_MEMORY"] = f"/{FOLDER}/memory.sqlite"
            if artifact is None and (fault is None or fault.kind == "runner"):
                exports["HTPFARM_MEMORY_SOUND"] = f"{place.model} {place.mode}"
        target = Target.ANDROID if place.way == STOCK else Target.SIM
        self.heard = self.root / heard
        script = runner_script(exports, insists=place.way == STOCK)
        writer = RecordWriter(folder, folder.name)
        writer.append(RunInfo(folder.name, utc_now(), tuple(sys.argv), "", "", {}, "", target))
        writer.append(plan_entry(cell, Verdict(run=True)))
        bench = Bench(
            run_id=f"{self._runs}",
            folder=folder,
            phones=self.phones[place.way],
            record=writer.append,
            say=lambda _phone, _what: None,
            target=target,
            evaluation=EvalChoice(),
            host=self.host,
            nurse=Nurse(HealthBook(self.work / "health" / str(self._runs))),
            leases=HostLeases(self.work / "leases"),
            launcher=script if place.way == OURS and not product else None,
            phone_files=self._stock_files(LAUNCHER if product else script) if place.way == STOCK else None,
        )
        started = time.monotonic()
        outcome = run_cell(bench, cell, artifact or sound)
        self._mend_storage(self.root / heard)
        return self._ran(folder, cell, outcome, self.root / heard, time.monotonic() - started)

    def _mend_storage(self, heard: Path) -> None:
        """Removes a file that a fault spoilt from the phone: the next deployment sends it again."""
        if (note := heard / "spoilt").is_file():
            (self.root / note.read_text().lstrip("/")).unlink(missing_ok=True)

    def _ran(self, folder: Path, cell: Cell, outcome: OutcomeRecord, heard: Path, seconds: float) -> Ran:
        checks: list[CheckRecord] = list(load_run(folder).checks.get(cell.id, ()))
        verdicts = {check.name: check.verdict or ("PASSED" if check.passed else "FAILED") for check in checks}
        words = read_words(heard)
        problem = ""
        if (heard / "cannot-plant").exists():
            problem = (heard / "cannot-plant").read_text().strip().splitlines()[-1]
        elif str(outcome.failure_class) in ("INFRA", "ENV"):
            problem = f"{outcome.failure_class}: {outcome.reason}"
        return Ran(
            str(outcome.status),
            str(outcome.failure_class or ""),
            outcome.reason,
            verdicts,
            {check.name: check.text for check in checks},
            words,
            round(seconds, 1),
            problem,
        )

    def _stock_files(self, script: str) -> PhoneFiles:
        """A build folder and an SDK as ExecuTorch's and Qualcomm's are laid out; the runner is a script."""
        build, sdk = self.work / "build-android", self.work / "sdk"
        runner = build / "examples/qualcomm/oss_scripts/llama/qnn_llama_runner"
        for path in (build / "backends/qualcomm/libqnn_executorch_backend.so", *(sdk / name for name in _STOCK_FILES)):
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{path.parent.name} {path.name}\n")
        runner.parent.mkdir(parents=True, exist_ok=True)
        runner.write_text(script)
        return PhoneFiles(build, sdk)


def runner_environment() -> dict[str, str]:
    """What `faults.launch` needs to be found, and the simulator."""
    return {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "benchmarks")])}


def runner_script(exports: Mapping[str, str], *, insists: bool) -> str:
    """The script that starts a runner with a fault on a virtual phone: the launcher of a side, and our own module."""
    lines = launcher(find_toolchain()).splitlines()
    run = lines.pop()
    if "-m harness.runtime " not in run:
        raise ValueError(f"the launcher starts no runner: {run}")
    path = runner_environment()["PYTHONPATH"]
    own = [f"export {key}={shlex.quote(value)}" for key, value in sorted(exports.items())]
    own.append(f"export PYTHONPATH={shlex.quote(path)}${{PYTHONPATH:+:$PYTHONPATH}}")
    first, *rest = lines
    check = _INSISTS.splitlines() if insists else []
    return "\n".join([first, *check, *rest, *own, run.replace("-m harness.runtime ", "-m faults.launch ")]) + "\n"


@contextlib.contextmanager
def rack(work: Path) -> Iterator[Rack]:
    """A rack of one phone, from its start to its end."""
    folder = work / "rack"
    state = manage.up([("lab", PHONE_KINDS[KIND])], state_dir=folder, boot_delay=0.5, expose=[work])
    try:
        (phone,) = state.phones
        ours, stock = work / "virtual.yaml", work / "real.yaml"
        ours.write_text(f"version: 1\nphones:\n  - {{name: lab, virtual: {KIND}}}\n")
        stock.write_text(
            f"version: 1\nadb: {{port: {state.adb_port}}}\nphones:\n  - {{name: lab, serial: '{phone.serial}'}}\n"
        )
        phones = {OURS: attach(load_inventory(ours), state), STOCK: attach(load_inventory(stock))}
        yield Rack(work, phones, Path(phone.root))
    finally:
        manage.down(folder)
