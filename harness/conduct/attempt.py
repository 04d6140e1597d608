"""One attempt at a cell on one leased phone: deploy → run → measure → judge, with everything recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.build.cache import Artifact
from harness.build.reference import Reference, load_reference
from harness.build.witness import Witness, load_witness
from harness.conduct.phone_files import PhoneFiles
from harness.errors import FailureClass, NotJudgedError
from harness.evaluate.choice import EvalChoice
from harness.evaluate.host import Host
from harness.evaluate.judge import Verdict, make_check
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
from harness.runtime.lookahead import Settings
from harness.target import Target
from harness.text.decoders import VERSIONS
from harness.text.templates import find_template
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

    @cached_property
    def witness(self) -> Witness:
        """What QDQ says of the text and the prompts. Raises NotJudgedError as `load_witness`."""
        return load_witness(self.artifact.reference)

    @property
    def qdq(self) -> Callable[[Sequence[int]], npt.NDArray[np.float64]] | None:
        """QDQ's module: token ids → logits [n,V]; None where the model is too large to keep it."""
        host, folder = self.bench.host, self.artifact.reference
        return partial(host.logits, folder) if host.keeps(folder) else None

    @property
    def settings(self) -> Settings:
        """N, W and G of the lookahead that the cell was compiled for."""
        lengths = self.cell.lengths
        return Settings(lengths.ngram, lengths.window, lengths.gcap)

    @cached_property
    def stop(self) -> frozenset[int]:
        """The tokens that end a turn: the tokenizer's EOS and the template's own."""
        template = find_template(VERSIONS[self.cell.model.decoder])
        own = self.tokenizer.special(template.stop) if template.stop else None
        return frozenset(token for token in (self.tokenizer.eos, own) if token is not None)

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
        settings = self.settings
        return ("--ngram", str(settings.ngram), "--window", str(settings.window), "--gcap", str(settings.gcap))

    def deploy(self, payload: Payload) -> DeployReport:
        """Brings what a runner needs to the phone, and records it. Raises as `harness.farm.deploy.deploy`."""
        self.say("deploying")
        done = deploy(self.phone.link, payload.files)
        counts = (done.pushed, done.reused, done.bytes, round(done.seconds, 3))
        self.bench.record(DeployRecord(self.cell.id, self.phone.phone.name, *counts))
        return done

    def record_checks(self, checks: Sequence[CheckRecord]) -> None:
        """Appends what was judged, as this attempt's."""
        for check in checks:
            self.bench.record(replace(check, attempt=self.number))

    def folder(self, session: int | str) -> Path:
        """Where a session's evidence is kept."""
        return self.bench.folder / "cells" / self.cell.id / f"{self.number}-{session}"

    def say(self, what: str) -> None:
        """Progress."""
        self.bench.say(self.phone.phone.name, f"{self.cell.id}: {what}")


def not_judged_check(cell: str, error: NotJudgedError) -> CheckRecord:
    """That there is nothing to judge a cell by, as a check that did not pass."""
    return make_check(cell, "witness", Verdict.NOT_JUDGED, f"{error.where}: {error.what}")


_CLASSES = (
    (Verdict.FAILED, FailureClass.PRODUCT),
    (Verdict.INVALID, FailureClass.INVALID),
    (Verdict.NOT_JUDGED, FailureClass.NOT_JUDGED),
    (Verdict.INCONCLUSIVE, FailureClass.INCONCLUSIVE),
)
_REMEDIES = {
    FailureClass.INVALID: "run the cell again on a quiet computer; if it stays, the runner's clock is wrong",
    FailureClass.NOT_JUDGED: "remove the reference's folder and compile again: its witness lacks what a check needs",
    FailureClass.INCONCLUSIVE: "give the model's file a longer eval text (eval: tokens, kv_tokens) and compile again",
}


def verdict(checks: Sequence[CheckRecord]) -> Failure | None:
    """What checks come to: a failure of the class of the worst, which names all that are of it; None if all passed.

    Nothing that was not judged passes: no check at all is NOT_JUDGED. Pure.
    """
    if not checks:
        return Failure(FailureClass.NOT_JUDGED, "nothing was judged", _REMEDIES[FailureClass.NOT_JUDGED])
    for word, failure_class in _CLASSES:
        if found := [check for check in checks if check.verdict == word]:
            reason = "; ".join(f"{check.name}: {check.text}" for check in found)
            return Failure(failure_class, reason, _REMEDIES.get(failure_class, ""))
    return None
