"""One attempt at a cell on one leased phone: deploy → run → measure → judge, with everything recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from harness.build.cache import Artifact
from harness.build.reference import Reference, load_reference
from harness.conduct.phone_files import PhoneFiles
from harness.errors import FailureClass
from harness.evaluate.choice import EvalChoice
from harness.evaluate.host import Host
from harness.farm.deploy import DeployReport, deploy
from harness.farm.failures import Failure
from harness.farm.health import HealthBook
from harness.farm.identity import AttachedPhone
from harness.farm.lease_service import HostLeases, LeaseService
from harness.farm.payload import Payload, sim_payload
from harness.farm.prepare import Nurse
from harness.matrix import Cell
from harness.model_file import Mode
from harness.results.records import CheckRecord, DeployRecord, Record
from harness.target import Target
from harness.text.tokenizer import Tokenizer, load_tokenizer

EVAL_MODES = {Mode.KV: 0, Mode.HYBRID: 1, Mode.LOOKAHEAD: 2}


@dataclass(frozen=True)
class Bench:
    """What cells are run with.

    Attributes:
        run_id: of the run.
        folder: of the run: evidence goes there.
        phones: those that answer.
        record: appends a record.
        say: progress: a phone's name (or "") and what it does now.
        target: what artifacts are built for.
        evaluation: what to evaluate beyond the model's own.
        host: the float model and QDQ.
        nurse: what phones are looked after with.
        leases: who gives phones out.
        attempts_before: cell id → its tries before the run was interrupted; the next is counted on.
        side: `base` or `candidate` of a run of A against B; else empty.
        launcher: what starts the runner on a virtual phone, where it is not the phone's own.
        phone_files: where a real phone's runner and libraries are from; None: what the run was told.
    """

    run_id: str
    folder: Path
    phones: tuple[AttachedPhone, ...]
    record: Callable[[Record], None]
    say: Callable[[str, str], None]
    target: Target
    evaluation: EvalChoice
    host: Host
    nurse: Nurse = field(default_factory=lambda: Nurse(HealthBook()))
    leases: LeaseService = field(default_factory=HostLeases)
    attempts_before: Mapping[str, int] = field(default_factory=dict)
    side: str = ""
    launcher: str | None = None
    phone_files: PhoneFiles | None = None


@dataclass(frozen=True)
class Attempt:
    """A cell on a phone that this process has leased; `number` counts the cell's attempts from 1."""

    bench: Bench
    cell: Cell
    artifact: Artifact
    phone: AttachedPhone
    number: int

    @cached_property
    def reference(self) -> Reference:
        """What the phone is judged by."""
        return load_reference(self.artifact.reference)

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer that goes to the phone."""
        return self.artifact.reference / self.reference.tokenizer

    @cached_property
    def runner_tokenizer(self) -> Tokenizer:
        """The tokenizer as the runner has it, which puts its own idea of BOS before a prompt."""
        return load_tokenizer(self.tokenizer_file, as_runner=True)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return load_tokenizer(self.tokenizer_file)

    @cached_property
    def payload(self) -> Payload:
        """The files it needs."""
        if self.bench.launcher is None:
            return sim_payload(self.artifact.pte, self.tokenizer_file)
        folder = self.bench.folder / "payload"
        return sim_payload(self.artifact.pte, self.tokenizer_file, folder=folder, launcher=self.bench.launcher)

    @property
    def session_id(self) -> str:
        """What names this attempt's sessions on the phone."""
        return f"{self.bench.run_id}-{self.cell.mode}-{self.number}"

    @property
    def eval_mode(self) -> int:
        """The runner's `--eval_mode`."""
        return EVAL_MODES[self.cell.mode]

    @property
    def lookahead_flags(self) -> tuple[str, ...]:
        """The runner's flags for what lookahead was compiled with; none in other modes."""
        if self.cell.mode is not Mode.LOOKAHEAD:
            return ()
        lengths = self.cell.lengths
        return ("--ngram", str(lengths.ngram), "--window", str(lengths.window), "--gcap", str(lengths.gcap))

    def deploy(self, payload: Payload) -> DeployReport:
        """Brings what a runner needs to the phone, and records it. Raises as `harness.farm.deploy.deploy`."""
        self.say("deploying")
        done = deploy(self.phone.link, payload.files)
        counts = (done.pushed, done.reused, done.bytes, round(done.seconds, 3))
        self.bench.record(DeployRecord(self.cell.id, self.phone.phone.name, *counts))
        return done

    def folder(self, session: int | str) -> Path:
        """Where a session's evidence is kept."""
        return self.bench.folder / "cells" / self.cell.id / f"{self.number}-{session}"

    def say(self, what: str) -> None:
        """Progress."""
        self.bench.say(self.phone.phone.name, f"{self.cell.id}: {what}")


def verdict(checks: Sequence[CheckRecord]) -> Failure | None:
    """What checks come to: a product failure that names those that failed, or None. Pure."""
    if failed := [check for check in checks if not check.passed]:
        return Failure(FailureClass.PRODUCT, "; ".join(f"{check.name}: {check.text}" for check in failed))
    return None
