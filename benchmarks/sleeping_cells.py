"""Cells that sleep instead of computing, for benchmarks of the farm itself: real adb, real virtual phones, real leases,
health, retries and records; only the runner is a script, and nothing is compiled or judged.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.build.cache import Artifact
from harness.conduct.attempt import Attempt, Bench
from harness.conduct.farm_loop import FarmLoop
from harness.conduct.live import LiveLog
from harness.conduct.run_cell import run_cell
from harness.evaluate.choice import EvalChoice
from harness.evaluate.host import Host
from harness.farm.connect import AdbServer
from harness.farm.deploy import deploy
from harness.farm.failures import Failure, classify, classify_exception
from harness.farm.health import HealthBook
from harness.farm.identity import AttachedPhone, PhoneIdentity
from harness.farm.lease_service import HostLeases
from harness.farm.payload import RUNNER, PayloadFile
from harness.farm.prepare import Nurse
from harness.farm.rescue import Patience
from harness.farm.session import SessionSpec, run_session
from harness.inventory import Limits, Phone
from harness.matrix import Cell
from harness.model_file import Mode
from harness.models import load_models
from harness.paths import MODELS
from harness.rack import manage
from harness.results.records import DeployRecord, RunInfo, utc_now
from harness.results.store import RecordWriter, load_run
from harness.schedule.jobs import Job, Slot
from harness.soc import PHONE_KINDS, SOCS
from harness.target import Target

OBSERVER = (
    'PyTorchObserver {"prompt_tokens":10,"generated_tokens":30,"model_load_start_ms":100,"model_load_end_ms":350,'
    '"inference_start_ms":1000,"inference_end_ms":4100,"prompt_eval_end_ms":1100,"first_token_ms":1120}'
)
# Says so if another one runs on this phone at the same time; then sleeps, and ends as it is told to.
SCRIPT = f"""#!/bin/sh
sole=/data/local/tmp/sole
boot=$(cat /proc/sys/kernel/random/boot_id)
if read -r other when < $sole && [ "$when" = "$boot" ] && kill -0 "$other"; then
    echo "$other and $$" >> /data/local/tmp/doubles
fi 2>/dev/null
echo "$$ $boot" > $sole
sleep "$1"
rm -f $sole
case $2 in
    abort) echo "ET_CHECK failed" >&2; kill -ABRT $$ ;;
    silent) echo text > outputs.txt; exit 0 ;;
    empty) echo '{OBSERVER}'; exit 0 ;;
    hang) sleep 600 ;;
    skel) echo "DspTransport.openSession qnn_open failed, 0x80000406" >&2; exit 1 ;;
esac
echo text > outputs.txt
echo '{OBSERVER}'
"""


@dataclass(frozen=True)
class Plan:
    """What a cell's runner does: sleeps `seconds`, then ends as `behaviour` says."""

    seconds: float
    behaviour: str = "good"


@dataclass(frozen=True)
class Farm:
    """A rack of sleeping phones and how cells are run on it.

    Attributes:
        folder: of the run: records, live log, attempts.
        phones: name → kind.
        rack: the virtual rack's folder.
        timeout_s: for a runner.
        patience: of the ladder of recovery.
        limits: of all phones.
        leases: folder of leases and health; the run's own if None.
    """

    folder: Path
    phones: Mapping[str, str]
    rack: Path
    timeout_s: float = 30.0
    patience: Patience = field(default_factory=Patience)
    limits: Limits = field(default_factory=Limits)
    leases: Path | None = None

    @property
    def shared(self) -> Path:
        """Where leases and health lie."""
        return self.leases or self.folder

    def up(self, boot_delay: float = 1.0) -> manage.RackState:
        """Starts the phones."""
        kinds = [(name, PHONE_KINDS[kind]) for name, kind in self.phones.items()]
        return manage.up(kinds, state_dir=self.rack, boot_delay=boot_delay, runner_argv=["/bin/true"])

    def attached(self) -> tuple[AttachedPhone, ...]:
        """The phones, without asking them who they are."""
        state = manage.status(self.rack)
        assert state, "the rack does not run"
        server = AdbServer(state.adb_host, state.adb_port)
        found = []
        for running in state.phones:
            kind = PHONE_KINDS[running.kind]
            phone = Phone(running.name, None, kind, SOCS[kind.soc], limits=self.limits)
            who = PhoneIdentity(running.serial, kind.model, kind.device, phone.soc, kind.label, "", "", "", True, "")
            found.append(AttachedPhone(phone, server.link(running.serial), who))
        return tuple(found)

    def nurse(self) -> Nurse:
        """What looks after the phones."""
        return Nurse(
            HealthBook(self.shared / "health", run_id=self.folder.name),
            LiveLog(self.folder).say,
            lambda: manage.mend(self.rack),
            self.patience,
            server_mark=lambda: (state := manage.status(self.rack)) and state.adb_pid,
            poll_s=0.5,
        )

    def run(self, plans: Mapping[str, Plan], *, only: Sequence[str] | None = None) -> None:
        """Runs every cell that has no outcome yet.

        Args:
            plans: cell id → what its runner does; ids as `cells` makes them.
            only: names of the phones to use.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "runner.sh").write_text(SCRIPT)
        (self.folder / "input.json").write_text("{}")
        writer, log = RecordWriter(self.folder), LiveLog(self.folder)
        writer.append(RunInfo(self.folder.name, utc_now(), tuple(sys.argv), platform.node(), "", {}, "", Target.SIM))
        phones = tuple(p for p in self.attached() if only is None or p.phone.name in only)
        nurse = self.nurse()
        bench = Bench(
            self.folder.name,
            self.folder,
            phones,
            writer.append,
            log.say,
            Target.SIM,
            EvalChoice(),
            Host(),
            nurse,
            HostLeases(self.shared / "leases"),
        )
        done = load_run(self.folder).outcomes
        every = {cell.id: cell for cell in cells(plans)}
        jobs = [Job(c.id, c.soc.name, plans[c.id].seconds) for c in every.values() if c.id not in done]
        serial = {p.phone.name: p.link.serial for p in phones}
        artifact = Artifact("none", self.folder / "none.pte", self.folder, {})

        def run_one(job: Job, phone: str) -> None:
            attempt = attempt_of(self, plans[job.id])
            run_cell(bench, every[job.id], artifact, 600.0, first=phone, run=attempt)

        slots = [Slot(p.phone.name, p.phone.soc.name) for p in phones if p.phone.soc]
        left = FarmLoop(
            jobs,
            slots,
            run_one,
            usable=lambda name: not nurse.book.just_hot(serial[name]),
            lost=lambda name: not nurse.book.state(serial[name]).usable,
        ).run()
        for job in left:
            run_one(job, "")


def cells(names: Sequence[str] | Mapping[str, object]) -> list[Cell]:
    """Cells by ids of the form `NAME-kv-SOC`."""
    model = load_models(MODELS)["tiny_llama"]
    return [
        Cell(
            replace(model, name=name.split("-")[0]), Mode.KV, SOCS[name.split("-")[2]], model.lengths, model.recipe.name
        )
        for name in names
    ]


def attempt_of(farm: Farm, plan: Plan) -> Callable[[Attempt], Failure | None]:
    """What an attempt does: deploy, one session, classify; with lines in `attempts.jsonl` meanwhile."""

    def run(attempt: Attempt) -> Failure | None:
        name = {"cell": attempt.cell.id, "phone": attempt.phone.phone.name, "number": attempt.number}
        _line(farm.folder, {"event": "start", **name})
        failure: Failure | None
        try:
            failure = _run(farm, plan, attempt, name)
        except Exception as error:
            failure = classify_exception(error)
        _line(farm.folder, {"event": "end", **name, "class": failure.failure_class if failure else None})
        return failure

    return run


def _run(farm: Farm, plan: Plan, attempt: Attempt, name: dict[str, object]) -> Failure | None:
    link = attempt.phone.link
    deployed = deploy(link, [PayloadFile(farm.folder / "runner.sh", RUNNER, executable=True)])
    record = DeployRecord(attempt.cell.id, str(name["phone"]), deployed.pushed, deployed.reused, deployed.bytes, 0.0)
    attempt.bench.record(record)
    _line(farm.folder, {"event": "deployed", **name})
    spec = SessionSpec(
        attempt.session_id + "-" + attempt.cell.model.name,
        attempt.number,
        RUNNER,
        (str(plan.seconds), plan.behaviour),
        outputs=("outputs.txt",),
        inputs=(PayloadFile(farm.folder / "input.json", "input.json"),),
        timeout_s=farm.timeout_s,
    )
    started = time.time()
    result = run_session(link, deployed, spec, attempt.folder("session"))
    _line(farm.folder, {"event": "session", **name, "from": started, "seconds": result.seconds})
    return classify(result)


def _line(folder: Path, what: Mapping[str, object]) -> None:
    descriptor = os.open(folder / "attempts.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, (json.dumps({"time": time.time(), "pid": os.getpid(), **what}) + "\n").encode())
    finally:
        os.close(descriptor)


def attempt_lines(folder: Path) -> list[dict[str, object]]:
    """The lines of `attempts.jsonl`, a line that a kill cut short left out."""
    found = []
    path = folder / "attempts.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
