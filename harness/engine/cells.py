"""A run's cells on the phones of an engine's hosts: one try is a task of the phone's host; outcomes are made here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.build.cache import Artifact
from harness.conduct.run_cell import Tried, settle
from harness.engine.driver import ASK_LIMIT_S, LOOK_S, SILENT_TIMES, Engine
from harness.engine.facts import PHONE, cell_data, order_phones
from harness.engine.files import Bundle, bundle, bundle_by_content, bundle_of_file
from harness.engine.host import forget, new_token
from harness.engine.work import ATTEMPT, TryOrder, try_here
from harness.errors import HarnessError, InfraError
from harness.evaluate.choice import EvalChoice
from harness.farm.failures import classify_exception
from harness.matrix import Cell
from harness.results.records import OutcomeRecord, RawRecord, Record, decode
from harness.target import Target


def bundles_of(artifact: Artifact) -> tuple[Bundle, Bundle]:
    """An artifact's folder and its reference's, as they go to a host."""
    if artifact.key == "given":
        return bundle_of_file("given", artifact.pte, "model.pte"), bundle_by_content("given", artifact.reference)
    folder, reference = artifact.folder, artifact.reference
    return bundle(f"artifacts/{folder.name}", folder), bundle(f"references/{reference.name}", reference)


class RemoteCells:
    """Runs a run's cells on the phones of an engine's hosts. The outcome is this side's: each cell has one."""

    def __init__(
        self,
        engine: Engine,
        *,
        run_id: str,
        folder: Path,
        target: Target,
        evaluation: EvalChoice,
        record: Callable[[Record], None],
        say: Callable[[str, str], None],
        priority: Mapping[str, int],
        attempts_before: Mapping[str, int],
        attempt: str = ATTEMPT,
    ) -> None:
        """
        Args:
            engine: whose hosts.
            run_id: of the run.
            folder: of the run; evidence comes there.
            target: what artifacts were built for.
            evaluation: what to evaluate beyond the model's own.
            record: appends a record.
            say: progress: a phone's name (or "") and what it does now.
            priority: phone → as in devices.yaml.
            attempts_before: cell id → its tries before the run was interrupted.
            attempt: what an attempt is, see `TryOrder`.
        """
        self._engine, self._run_id, self._folder, self._target = engine, run_id, folder, target
        self._evaluation, self._record, self._say = evaluation, record, say
        self._priority, self._before, self._attempt = priority, attempts_before, attempt

    def run_cell(self, cell: Cell, artifact: Artifact, phones: Sequence[str], first: str | None) -> OutcomeRecord:
        """Runs a cell on one of the phones named, `first` if it is there; again elsewhere as its failures allow.

        Records everything, and returns the outcome. Never raises for the cell's own failures.
        """

        def once(number: int, places: Sequence[str | None], crashed: Collection[str]) -> Tried:
            others = [name for name in phones if name not in crashed] or phones
            return self._once(cell, artifact, others, first, number, places)

        return settle(cell, once, record=self._record, say=self._say, before=self._before.get(cell.id, 0))

    def _once(
        self,
        cell: Cell,
        artifact: Artifact,
        phones: Sequence[str],
        first: str | None,
        number: int,
        avoid: Sequence[str | None],
    ) -> Tried:
        try:
            there = {name: where for name, where in self._engine.phones_now().items() if name in phones}
            if not there:
                raise InfraError(
                    f"no host with a phone of {cell.soc.name} is left: {', '.join(phones)} cannot be reached",
                    where=cell.id,
                    remedy="see `htpfarm engine ls`; when the host is back, go on with `pytest -m device --resume RUN`",
                )
        except Exception as error:
            return Tried(classify_exception(error))
        trouble = {name: why for name, (_, why) in there.items() if why}
        order = order_phones(list(there), avoid, first, self._priority, trouble)
        for phone in order:
            last = phone == order[-1]
            tried = self._try(cell, artifact, phone, there[phone][0], number, wait_fit=last)
            if not tried.unfit or last:
                break
            assert tried.failure is not None
            self._say(phone, f"{tried.failure.reason}; another phone is asked")
        return tried

    def _try(self, cell: Cell, artifact: Artifact, phone: str, address: str, number: int, *, wait_fit: bool) -> Tried:
        engine, token = self._engine, new_token()
        try:
            if not engine.trusted(address):
                raise InfraError("this worker is no host of htpfarm", where=address)
            program, reference = (
                engine.send(address, one, lambda what: self._say(phone, what)) for one in bundles_of(artifact)
            )
            made = {"key": artifact.key, "pte": str(Path(program) / "model.pte"), "reference": reference}
            order = TryOrder(
                token,
                self._run_id,
                cell_data(cell),
                self._target.value,
                made,
                self._evaluation,
                phone,
                number,
                wait_fit,
                self._attempt,
            )
            result = engine.follow(address, try_here, order, {f"{PHONE}{phone}": 1}, self._deliver)
        except Exception as error:
            return Tried(classify_exception(error), phone)
        self._bring(address, token, cell)
        tried: Tried = result["tried"]
        return replace(tried, phone=tried.phone or phone)

    def _deliver(self, message: Mapping[str, Any]) -> None:
        if "record" in message:
            record = decode(message["record"]).record
            if isinstance(record, RawRecord):  # cannot be, of a host of the same sources
                raise InfraError(f"a host sent a record that is not understood: {record.problem}")
            self._record(record)
        else:
            self._say(message["phone"], message["say"])

    def _bring(self, address: str, token: str, cell: Cell) -> None:
        """Brings the files of a try here; what cannot be brought is said, and the try counts all the same."""
        try:
            place = f"engine/runs/{token}/cells/{cell.id}"
            self._engine.fetch(address, place, self._folder / "cells" / cell.id, merge=True)
            self._engine.connection.ask(address, forget, token)
        except (HarnessError, OSError) as error:
            self._say("", f"{cell.id}: its files stayed on {self._engine.name_of(address)}: {error}")


class Watch:
    """Looks at an engine each second, in a thread: which phones are there, and which are of no use at the moment."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._now: dict[str, tuple[str, str]] | None = None
        self._silent = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="htpfarm-engine", daemon=True)

    def start(self) -> None:
        """Starts looking."""
        self._look()
        self._thread.start()

    def stop(self) -> None:
        """Ends it."""
        self._stop.set()
        self._thread.join(timeout=ASK_LIMIT_S)

    def usable(self, phone: str) -> bool:
        """Whether a phone may be given work now."""
        return self._now is None or not self._now.get(phone, ("", "lost"))[1]

    def lost(self, phone: str) -> bool:
        """Whether no host offers the phone at the moment."""
        return self._now is not None and phone not in self._now

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            self._look()

    def _look(self) -> None:
        try:
            self._now, self._silent = self._engine.phones_now(), 0
        except HarnessError:
            self._silent += 1
            if self._silent >= SILENT_TIMES:
                self._now = {}
