"""A run as its processes see it: the first one prepares (rack, plan, builds), the others join by the run's folder."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness import __version__
from harness.build import preflight
from harness.build.builder import Builder, Request, check_disk
from harness.build.cache import Artifact
from harness.build.given import given_artifacts
from harness.conduct.attempt import Bench
from harness.conduct.builds import Builds, BuildService, build_file, wait_for_artifact
from harness.conduct.deep_check import DeepCheck
from harness.conduct.distribute import assigned_phone
from harness.conduct.live import LiveLog
from harness.conduct.options import Options
from harness.conduct.phone_files import PhoneFiles, phone_files
from harness.conduct.plan import Choice, Planned, artifacts, plan
from harness.conduct.rack_use import RackUse
from harness.conduct.real import check_real, socs_of, target_of
from harness.conduct.resume import Resumed, check_same, resumed
from harness.conduct.run_cell import not_built, run_cell
from harness.conduct.sides import BASE, CANDIDATE, Side, read_side
from harness.errors import ConfigError, FailureClass, HarnessError
from harness.evaluate.host import Host
from harness.farm.health import HealthBook
from harness.farm.identity import AttachedPhone, survey
from harness.farm.prepare import Nurse
from harness.farm.select import Standing, meeting
from harness.inventory import Inventory, Phone
from harness.matrix import Cell
from harness.paths import cache_root
from harness.rack.manage import mend, status
from harness.results import (
    OutcomeRecord,
    RecordWriter,
    RunData,
    RunInfo,
    Status,
    load_run,
    new_run_folder,
    plan_entry,
    utc_now,
)
from harness.soc import find_soc
from harness.target import Target
from harness.toolchain.environment import Toolchain, find_toolchain, fingerprint

if TYPE_CHECKING:  # most runs have no engine, and do without its modules
    from harness.engine.cells import RemoteCells, Watch
    from harness.engine.driver import Engine
    from harness.engine.facts import HostReport

NOTHING_DONE = Resumed()


class Run:
    """One process's part in a run: the plan, the phones, and running a cell.

    A run of A against B is two: this one is the candidate's, and `base` the other side, with a folder in this one's.
    """

    def __init__(
        self, options: Options, folder: Path, choice: Choice, phones: Sequence[Phone], side: Side | None = None
    ) -> None:
        self.options, self.folder, self.choice = options, folder, choice
        self.resumed = Resumed()
        self.target = target_of(phones)
        self.base: Run | None = None
        if options.ab and side is None:
            own = options.ab_build_folders or (None, None), options.ab_sdks or (None, None)
            before, side = (read_side(*named) for named in zip((BASE, CANDIDATE), options.ab, *own, strict=True))
            self.base = Run(options, folder / BASE, choice, phones, before)
        self.side = side
        self.toolchain: Toolchain = side.toolchain if side else find_toolchain()
        self.fingerprint = side.fingerprint if side else fingerprint(self.toolchain)
        self.planned: tuple[Planned, ...] = plan(choice, phones, self.target)
        self.live = LiveLog(folder)
        if self.base is not None:
            self.base.live = self.live
        self.id = f"{folder.parent.name}-{BASE}" if side and side.name == BASE else folder.name
        self.writer = RecordWriter(folder, self.id)
        given = self.given
        self.artifacts: dict[str, Artifact] = (
            given_artifacts(given, self.planned_cells(), self.target, self.fingerprint)
            if given
            else artifacts(choice, self.planned, self.target, self.fingerprint)
        )
        self._attached: tuple[AttachedPhone, ...] | None = None
        self._host = Host()
        self.engine: Engine | None = None
        self.watch: Watch | None = None

    @property
    def given(self) -> Path | None:
        """The folder of `.pte` files that were given; None where they are built."""
        return self.side.pte if self.side else self.options.pte

    def phone_files(self) -> PhoneFiles | None:
        """What real phones get, of this side; None on virtual ones, and on an engine, where each host has its own.

        Raises:
            ConfigError: there is none.
        """
        if self.target is not Target.ANDROID or self.engine is not None:
            return None
        return self.side.phone_files() if self.side else phone_files()

    def recorded_toolchain(self) -> dict[str, str]:
        """What the run's first record says: the toolchain, and what runs on real phones beside the model."""
        files = self.phone_files()
        return self.fingerprint | (files.fingerprint() if files else {})

    def planned_cells(self) -> list[Cell]:
        """The cells that run."""
        return [p.cell for p in self.planned if p.verdict.run]

    def find(self, cell_id: str) -> Planned:
        """A planned cell by its id."""
        return next(p for p in self.planned if p.cell.id == cell_id)

    def wait_for_artifact(self, planned: Planned) -> Artifact:
        """The cell's artifact, once the run's builder has it. Raises the build's error."""
        artifact = self.artifacts[planned.cell.id]
        if self.given is None:
            self.live.say("", f"{planned.cell.id}: waiting for its artifact")
            wait_for_artifact(self.folder, artifact)
        return artifact

    def run_cell(self, planned: Planned) -> OutcomeRecord:
        """Carries a cell out; records and returns its outcome. Never raises for the cell's own failures."""
        cell = planned.cell
        if self.base is not None and not self.options.compile_only:
            from harness.conduct.ab import run_ab_cell  # loads scipy, a second that runs of one side do without

            return run_ab_cell(self.base, self, planned, assigned_phone(self.folder, cell.id))
        try:
            artifact = self.wait_for_artifact(planned)
            if self.options.compile_only:
                outcome = OutcomeRecord(cell.id, Status.PASSED, reason="compiled; not run (--compile-only)")
            elif self.engine is not None:
                first = assigned_phone(self.folder, cell.id)
                return self._remote_cells(self.engine).run_cell(cell, artifact, planned.phones, first)
            else:
                return run_cell(self.bench(), cell, artifact, first=assigned_phone(self.folder, cell.id))
        except HarnessError as error:
            outcome = not_built(cell.id, error)
        self.writer.append(outcome)
        return outcome

    def skip(self, planned: Planned) -> None:
        """Records that a gate skipped a cell."""
        verdict = planned.verdict
        skipped = OutcomeRecord(
            planned.cell.id, Status.SKIPPED, FailureClass.UNSUPPORTED, verdict.reason, verdict.remedy
        )
        for side in (self, self.base):
            if side is not None:
                side.writer.append(skipped)

    def leave_out(self, planned: Planned) -> None:
        """Records that the user chose not to run a cell."""
        left_out = OutcomeRecord(planned.cell.id, Status.SKIPPED, reason="not selected (-k or a test's name)")
        for side in (self, self.base):
            if side is not None:
                side.writer.append(left_out)

    def attached(self) -> tuple[AttachedPhone, ...]:
        """The phones that answer; asked once."""
        if self._attached is None:
            found = survey(self.choice.inventory, status())
            self._attached = found.attached
            for phone, error in found.refused:
                self.live.say(phone.name, f"not used: {error.what}")
        return self._attached

    def _remote_cells(self, engine: Engine) -> RemoteCells:
        from harness.engine.cells import RemoteCells

        return RemoteCells(
            engine,
            run_id=self.id,
            folder=self.folder,
            target=self.target,
            evaluation=self.options.evaluation,
            record=self.writer.append,
            say=self.live.say,
            priority={phone.name: phone.priority for phone in self.choice.inventory.phones},
            attempts_before=self.resumed.attempts,
        )

    def close(self) -> None:
        """Ends what this process's part holds open."""
        if self.watch is not None:
            self.watch.stop()
        if self.engine is not None:
            self.engine.close()

    def bench(self) -> Bench:
        """What cells are run with."""
        return Bench(
            run_id=self.id,
            folder=self.folder,
            phones=self.attached(),
            record=self.writer.append,
            say=self.live.say,
            target=self.target,
            evaluation=self.options.evaluation,
            host=self._host,
            attempts_before=self.resumed.attempts,
            nurse=Nurse(
                HealthBook(run_id=self.folder.name),
                self.live.say,
                mend,
                deep_check=self._deep_check(),
                server_mark=lambda: (rack := status()) and rack.adb_pid,
            ),
            side=self.side.name if self.side else "",
            launcher=self.side.launcher if self.side else None,
            phone_files=self.phone_files(),
        )

    def _deep_check(self) -> DeepCheck:
        """With what this environment makes: neither a side's toolchain nor a user's own files are known to be good."""
        own = [] if self.given or self.side else [(c, self.artifacts[c.id]) for c in self.planned_cells()]
        known = fingerprint(find_toolchain()) if self.side else self.fingerprint
        return DeepCheck(self.id, self.folder, self.target, self.attached(), known, own, self.live.say)

    def base_bench(self) -> Bench:
        """What the base's side of a cell is run with: the same phones, its own records, runner and references."""
        base = self.base
        assert base is not None, "only a run of A against B has a base"
        return replace(
            self.bench(),
            run_id=base.id,
            folder=base.folder,
            record=base.writer.append,
            host=base._host,
            side=BASE,
            launcher=base.side.launcher if base.side else None,
            phone_files=base.phone_files(),
        )


def check_tasks(tasks: Sequence[str], folders: Sequence[Path]) -> None:
    """Refuses lm-eval tasks that are unknown or have no data, before anything runs.

    Raises:
        ConfigError: names the task.
    """
    if tasks:
        # Here and not at the top: it loads lm-eval, which takes seconds and most runs do without.
        from harness.text.lm_tasks import load_tasks

        load_tasks(tasks, folders)


def join_run(options: Options, folder: Path, before: Resumed = NOTHING_DONE) -> Run:
    """A further process of a run: the same plan, from the same files and what the first process found out."""
    engine, inventory = _known_engine(options, folder) if options.engine else (None, None)
    choice = options.choice(inventory)
    socs = json.loads((folder / "phones.json").read_text(encoding="utf-8"))
    phones = [replace(p, soc=find_soc(socs[p.name])) for p in choice.inventory.phones if socs.get(p.name)]
    run = Run(options, folder, choice, phones)
    run.resumed, run.engine = before, engine
    return run


ENGINE_FILE = "engine.json"
"""In a run's folder: the hosts that its first process found, for the others."""


def _known_engine(options: Options, folder: Path) -> tuple[Engine, Inventory]:
    from harness.engine.driver import Engine
    from harness.engine.facts import HostReport, inventory_of

    assert options.engine is not None
    said = json.loads((folder / ENGINE_FILE).read_text(encoding="utf-8"))
    hosts = [HostReport.from_data(data) for data in said]
    return Engine(options.engine, options.engine_tls, hosts), inventory_of(hosts, options.engine)


class FirstProcess:
    """Prepares a run and ends it. Nothing has run, and nothing is built, when the constructor refuses."""

    def __init__(self, options: Options, dry: bool = False) -> None:
        """
        Args:
            dry: only plan (`--collect-only`): no rack is started, no phone asked, nothing recorded.
        """
        self._rack: RackUse | None = None
        self._builds: list[BuildService] = []
        self._engine: Engine | None = None
        self._hosts: tuple[HostReport, ...] = ()
        try:
            inventory = self._find_hosts(options) if options.engine else None
            self._begin(options, options.choice(inventory), dry=dry)
        except BaseException:
            if self._engine is not None:
                self._engine.close()
            raise

    def _find_hosts(self, options: Options) -> Inventory:
        """The phones of an engine's hosts, as one rack."""
        assert options.engine is not None
        if options.ab:
            raise ConfigError(
                "a run of A against B cannot be on an engine yet",
                where="--ab with --engine",
                remedy="run it on the rack host itself, without --engine",
            )
        from harness.engine.driver import Engine
        from harness.engine.facts import inventory_of

        self._engine = Engine(options.engine, options.engine_tls)
        self._hosts = self._engine.admit()
        return inventory_of(self._hosts, self._engine.address)

    def _begin(self, options: Options, choice: Choice, *, dry: bool) -> None:
        check_tasks(options.evaluation.tasks, options.evaluation.task_folders)
        check_tasks(choice.calibration.tasks, choice.calibration.task_folders)
        if dry:
            phones = [p for p in meeting(choice.wish, [Standing(p) for p in choice.inventory.phones]) if p.soc]
            self.run = Run(options, options.reports / "not-made", choice, phones)
            if options.resume:
                self.run.resumed = resumed(load_run(options.resume))
            self.run.engine = self._engine
            return
        if self._engine is None and not options.ab:  # else each host has looked; or each side is asked, later
            check_real(choice.inventory.phones)
        if (options.ab_build_folders or options.ab_sdks) and not options.ab:
            raise ConfigError(
                "--ab-build-folders and --ab-sdks are the two sides' of --ab, which is not given",
                where="command line",
                remedy="give --ab BASE CANDIDATE too; a run of one side takes --build-folder and QNN_SDK_ROOT",
            )
        if options.ab and options.resume:
            raise ConfigError("a run of A against B cannot be resumed", where="--resume", remedy="start it again")
        if options.ab and options.pte:
            raise ConfigError(
                "--ab and --pte exclude each other", where="command line", remedy="name the folder in --ab"
            )
        check_disk(options.reports, needed=64 << 20)
        if self._engine is None:
            expose = [place.absolute() for place in options.ab or ()]
            self._rack = RackUse(choice.inventory, find_toolchain(), expose=expose)
        try:
            self.run = self._prepare(options, choice)
        except BaseException:
            if self._rack is not None:
                self._rack.close()
            raise
        for side in (self.run.base, self.run):
            if side is not None:
                # One after the other: two builds at once may not fit into memory.
                self._builds.append(_build_service(side, after=self._builds[-1] if self._builds else None))

    def _prepare(self, options: Options, choice: Choice) -> Run:
        phones = self._probe(choice)
        before = load_run(options.resume) if options.resume else None
        folder = options.resume or new_run_folder(options.reports)
        if before is None or not (folder / "phones.json").exists():
            names = {p.name: p.soc.name if p.soc else None for p in phones}
            (folder / "phones.json").write_text(json.dumps(names), encoding="utf-8")
        run = Run(options, folder, choice, [p for p in phones if p.soc])
        if self._engine is not None:
            self._use_engine(run, self._engine)
        if not run.planned:
            raise ConfigError(
                "no phone of the rack has a chipset that was asked for",
                where=f"{options.phones_from}: --socs {options.socs}",
                remedy="see `htpfarm devices`",
            )
        for named in (run.base, run) if run.base is not None else ():
            files = named.phone_files()
            if files is not None and named.side is not None:
                files.check(socs_of(phones), f"--ab, {named.side.name} ({named.side.place})")
        if before is not None:
            _go_on(run, before)
        for side in (run.base, run):
            if side is None:
                continue
            side.folder.mkdir(exist_ok=True)
            if side.given is None and not all(artifact.ready for artifact in side.artifacts.values()):
                check_disk(cache_root())
                _preflight(side, self._memory_mb())
            _record_plan(side)
        return run

    def _use_engine(self, run: Run, engine: Engine) -> None:
        from harness.engine.cells import Watch

        run.engine, run.watch = engine, Watch(engine)
        (run.folder / ENGINE_FILE).write_text(json.dumps([one.to_data() for one in self._hosts]), encoding="utf-8")
        for one in self._hosts:
            names = ", ".join(str(phone["name"]) for phone in one.phones) or "no phone"
            memory = f"; {one.memory_mb:.0f} MB for compiling" if one.memory_mb else ""
            run.live.say("", f"host {one.host} ({one.address}): {names}{memory}")
            for name, why in one.refused.items():
                run.live.say(name, f"not used: {why}")

    def _memory_mb(self) -> float:
        """Memory for one build: of the largest compile host, else of this computer."""
        return max((one.memory_mb for one in self._hosts), default=0.0) or preflight.available_mb()

    def start(self) -> None:
        """Starts building."""
        if self.run.watch is not None:
            self.run.watch.start()
        for service in self._builds:
            service.start()

    def close(self) -> None:
        """Ends what the run started."""
        for service in self._builds:
            service.stop()
        self.run.close()
        if self._rack:
            self._rack.close()

    def _probe(self, choice: Choice) -> list[Phone]:
        """The inventory's phones with the SoC each reports; one that does not answer keeps what the file says."""
        if self._engine is not None:
            return meeting(choice.wish, [Standing(phone) for phone in choice.inventory.phones])
        found = survey(choice.inventory, self._rack.state if self._rack else None)
        found.check(str(choice.inventory.path))
        attached = {a.phone.name: a for a in found.attached}
        phones = [
            replace(p, soc=attached[p.name].identity.soc) if p.name in attached else p for p in choice.inventory.phones
        ]
        refused = {phone.name: error.what for phone, error in found.refused}
        return meeting(choice.wish, [Standing(p, refused.get(p.name, "")) for p in phones])


def _build_service(run: Run, after: BuildService | None) -> BuildService:
    requests = [
        Request(p.cell, run.target, run.artifacts[p.cell.id], run.choice.calibration)
        for p in run.planned
        if p.verdict.run and run.given is None and p.cell.id not in run.resumed.done
    ]
    local = Builder(run.toolchain, run.folder / "build-logs")
    builder: Builds = local
    if run.engine is not None:
        from harness.engine.builds import EngineBuilder

        builder = EngineBuilder(run.engine, local, lambda what: run.live.say("build", what))
    return BuildService(builder, requests, run.folder, run.writer.append, run.live.say, after)


def _record_plan(run: Run) -> None:
    run.writer.append(
        RunInfo(
            run.id,
            utc_now(),
            tuple(sys.argv),
            platform.node(),
            __version__,
            run.recorded_toolchain(),
            run.options.phones_from,
            run.target,
        )
    )
    if run.options.resume is None:  # else it is there, and the same
        for planned in run.planned:
            run.writer.append(plan_entry(planned.cell, planned.verdict))


def _go_on(run: Run, before: RunData) -> None:
    """Makes a run the rest of an interrupted one.

    Raises:
        ConfigError: it is another run.
    """
    entries = [plan_entry(planned.cell, planned.verdict) for planned in run.planned]
    check_same(before, entries, run.recorded_toolchain(), run.target.value, run.folder)
    run.resumed = resumed(before)
    for planned in run.planned:  # what the killed process said of a build is not the answer of this one's
        if planned.verdict.run and planned.cell.id not in run.resumed.done:
            build_file(run.folder, run.artifacts[planned.cell.id].key).unlink(missing_ok=True)
    run.live.say("", f"resumed: {len(run.resumed.done)} of {len(entries)} cells have an outcome and are not run again")


def _preflight(run: Run, memory_mb: float) -> None:
    """Says what the builds are likely to fail of, where so much memory can be had.

    Raises:
        EnvError: there is something, and `--strict-memory`.
    """
    cells = [p.cell for p in run.planned if p.verdict.run and not run.artifacts[p.cell.id].ready]
    found = preflight.concerns(cells, memory_mb)
    if run.options.strict_memory:
        preflight.refuse(found)
    for concern in found:
        run.live.say("build", f"likely to fail: {concern}")
