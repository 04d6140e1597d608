"""The pytest side: options, the matrix as parametrised tests, one phone a worker, progress and the report. Thin.

`pytest -m device` runs cells; without `-m device` nothing here starts anything. Under pytest-xdist the controller
prepares the run (rack, plan, builds) and each worker joins it by the run's folder.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.mark.expression import Expression

from harness.conduct.distribute import one_at_a_time
from harness.conduct.jobs import cell_scheduling
from harness.conduct.live import Follower
from harness.conduct.options import Options
from harness.conduct.phone_files import BUILD_FOLDER
from harness.conduct.plan import (
    DEFAULT_MODELS,
    LENGTH_OPTIONS,
    PHONE_OPTIONS,
    Planned,
    calibration_choice,
    option,
    phone_wish,
    split_names,
)
from harness.conduct.resume import Resumed
from harness.conduct.screen import PhoneScreen, can_show, is_notable
from harness.conduct.session import FirstProcess, Run, join_run
from harness.errors import ConfigError, HarnessError
from harness.evaluate.choice import EvalChoice
from harness.inventory import load_inventory
from harness.paths import REPOSITORY
from harness.results import OutcomeRecord, Status, load_run
from harness.results.report import write_reports
from harness.results.summary import exit_status, summarise
from harness.results.table import table_text

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

    from harness.compare.gate import GateResult

_GROUP = "htpfarm"
_FIRST = pytest.StashKey[FirstProcess]()
_RUN = pytest.StashKey[Run]()
_FOLLOWER = pytest.StashKey[Follower]()
_SCREEN = pytest.StashKey[PhoneScreen]()
_WORKER_INPUT = "htpfarm_run"
_WORKER_RESUMED = "htpfarm_resumed"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of `pytest -m device`."""
    group = parser.getgroup(_GROUP, "cells on phones (pytest -m device)")
    group.addoption("--rack", type=Path, default=REPOSITORY / "devices.yaml", help="inventory (devices.yaml)")
    group.addoption(
        "--models", default=DEFAULT_MODELS, help=f"names or .yaml files, comma-separated, or all ({DEFAULT_MODELS})"
    )
    group.addoption("--modes", default=None, help="kv,hybrid,lookahead or all (each model's own)")
    group.addoption("--socs", default=None, help="chipsets, comma-separated (those of the rack)")
    for flags, options in PHONE_OPTIONS.items():
        group.addoption(flags, **options)
    group.addoption("--any-phone", action="store_true", help="run a cell once, on any phone of its SoC; not on each")
    group.addoption("--pte", type=Path, default=None, metavar="DIR", help="use these .pte files; compile nothing")
    group.addoption(
        "--strict-memory", action="store_true", help="refuse what will not compile in this machine's memory"
    )
    group.addoption(
        "--ab",
        type=Path,
        nargs=2,
        metavar=("BASE", "CANDIDATE"),
        help="compare two sides on one phone, a verdict a cell: Python environments, or folders of .pte files",
    )
    group.addoption(
        "--ab-build-folders",
        type=Path,
        nargs=2,
        metavar=("BASE", "CANDIDATE"),
        help="with --ab, for real phones: each side's build-android (the one in its checkout, else --build-folder)",
    )
    group.addoption(
        "--ab-sdks",
        type=Path,
        nargs=2,
        metavar=("BASE", "CANDIDATE"),
        help="with --ab: each side's QNN SDK, to compile with and for real phones ($QNN_SDK_ROOT)",
    )
    group.addoption("--ab-tokens", type=int, metavar="N", help="with --ab: tokens a timed session generates")
    group.addoption(
        "--build-folder", type=Path, metavar="DIR", help="ExecuTorch's build-android: real phones run its runner"
    )
    group.addoption(
        "--engine", metavar="ADDRESS", help="run on the phones of this engine's hosts (docs/engine.md); not on --rack's"
    )
    group.addoption(
        "--engine-tls", type=Path, metavar="DIR", help="ca.pem, cert.pem, key.pem for it ($HTPFARM_ENGINE_TLS)"
    )
    group.addoption(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with an interrupted run, in its folder, with its options: cells with an outcome are left out",
    )
    group.addoption("--plain", action="store_true", help="plain lines of progress, also in a terminal")
    group.addoption("--compile-only", action="store_true", help="stop after compiling")
    for name, text in LENGTH_OPTIONS.items():
        group.addoption(option(name), type=int, default=None, metavar="N", help=f"{text} (each model's own)")
    group.addoption("--eval-tokens", type=int, metavar="N", help="tokens of the held-out text (each model's own)")
    group.addoption("--eval-tasks", default="", help="lm-eval tasks, comma-separated, on FP, QDQ and phone")
    group.addoption("--eval-limit", type=int, metavar="N", help="documents of each task at most (all)")
    group.addoption("--eval-fewshot", type=int, metavar="K", help="examples before each document (the task's own)")
    group.addoption("--eval-seed", type=int, default=EvalChoice.seed, metavar="S", help="of the few-shot examples")
    group.addoption("--calib-tasks", default="", help="calibrate with lm-eval tasks, comma-separated")
    group.addoption("--calib-limit", type=int, default=1, metavar="N", help="documents of each task at most (1)")
    group.addoption("--calib-fewshot", type=int, metavar="K", help="examples before each document (the task's own)")
    group.addoption("--calib-samples", type=Path, metavar="FILE", help="calibrate with samples: .json, .jsonl or text")
    group.addoption("--task-folder", type=Path, action="append", default=[], help="folder with lm-eval task YAMLs")
    group.addoption("--reports", type=Path, default=REPOSITORY / "reports", help="where runs are written (reports/)")


def asks_for_cells(expression: str) -> bool:
    """Whether a `-m` expression asks for device tests by name: `not slow` would select them, but means others. Pure."""
    if not expression:
        return False
    compiled = Expression.compile(expression)
    return compiled.evaluate(_is_device) and not compiled.evaluate(_has_none)


def _active(config: pytest.Config) -> bool:
    return asks_for_cells(config.getoption("markexpr", ""))


def _is_device(name: str, /, **_: str | int | bool | None) -> bool:
    return name == "device"


def _has_none(_name: str, /, **_: str | int | bool | None) -> bool:
    return False


def _two(places: Sequence[Path] | None) -> tuple[Path, Path] | None:
    """The two sides' folders, wherever a worker of the run stands; None where none were given."""
    if not places:
        return None
    base, candidate = places
    return base.absolute(), candidate.absolute()


def _options(config: pytest.Config) -> Options:
    get = config.getoption
    folders = tuple(folder.absolute() for folder in get("task_folder"))
    return Options(
        rack=get("rack"),
        models=get("models"),
        modes=get("modes"),
        socs=get("socs"),
        pte=get("pte"),
        compile_only=get("compile_only"),
        strict_memory=get("strict_memory"),
        ab=_two(get("ab")),
        ab_build_folders=_two(get("ab_build_folders")),
        ab_sdks=_two(get("ab_sdks")),
        ab_tokens=get("ab_tokens"),
        wish=phone_wish(get("phones"), get("arch"), get("labels"), get("capabilities")),
        any_phone=get("any_phone"),
        resume=get("resume"),
        engine=get("engine"),
        engine_tls=get("engine_tls"),
        reports=get("reports"),
        lengths={name: get(name) for name in LENGTH_OPTIONS if get(name) is not None},
        evaluation=EvalChoice(
            tokens=get("eval_tokens"),
            tasks=split_names(get("eval_tasks")),
            limit=get("eval_limit"),
            fewshot=get("eval_fewshot"),
            seed=get("eval_seed"),
            task_folders=folders,
        ),
        calibration=calibration_choice(
            get("calib_tasks"), get("calib_limit"), get("calib_fewshot"), get("calib_samples"), folders
        ),
    )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Prepares the run, or joins it in a worker. Bad input ends here, before anything runs."""
    config.addinivalue_line("markers", "device: a cell of the matrix, run on a phone (real or virtual)")
    if not _active(config):
        return
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        # Nothing named: the cells are in one place, and collecting the host tests in every worker takes seconds.
        config.args = [str(REPOSITORY / "tests" / "device")]
    worker_input: dict[str, Any] | None = getattr(config, "workerinput", None)
    try:
        if config.option.resume is not None:  # in workers, too: xdist gives them what was typed, not what was restored
            _restore_options(config, config.option.resume)
        if config.option.build_folder is not None:
            os.environ[BUILD_FOLDER] = str(config.option.build_folder.absolute())
        if worker_input is not None:
            _die_with_controller()
            before = Resumed.from_data(worker_input[_WORKER_RESUMED])
            config.stash[_RUN] = join_run(_options(config), Path(worker_input[_WORKER_INPUT]), before)
            return
        if config.option.pte is not None and config.option.compile_only:
            raise ConfigError("--pte and --compile-only exclude each other", where="command line")
        first = FirstProcess(_options(config), dry=config.option.collectonly)
    except HarnessError as error:
        code = {"CONFIG": 2, "UNSUPPORTED": 2, "INFRA": 3, "ENV": 3}.get(error.failure_class, 1)
        raise pytest.exit.Exception(f"{error.failure_class}: {error}", returncode=code) from None
    config.stash[_FIRST], config.stash[_RUN] = first, first.run
    if not config.option.collectonly:
        screen = _screen(config, first.run.folder)
        if screen is not None:
            config.stash[_SCREEN] = screen
        config.stash[_FOLLOWER] = Follower(
            first.run.live, lambda line: _show(config, line) if screen is None or is_notable(line) else None
        )


def _restore_options(config: pytest.Config, folder: Path) -> None:
    """Our options that are not given again are those of the run to go on with: its first record has its command.

    Raises:
        ConfigError: the folder has no records.
    """
    command = load_run(folder).run.command
    recorded, plain = (config._parser.parse_known_args(list(words)) for words in (command[1:], ()))
    own = [option.dest for group in config._parser._groups if group.name == _GROUP for option in group.options]
    for name in own:
        if name not in ("resume", "reports") and getattr(config.option, name) == getattr(plain, name):
            setattr(config.option, name, getattr(recorded, name))


def _die_with_controller() -> None:
    """A worker whose controller is killed dies too: its lease is free at once."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(3)


def _screen(config: pytest.Config, folder: Path) -> PhoneScreen | None:
    """The view of phones at the foot of a terminal; None where plain lines are shown instead."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or config.option.plain or not can_show(reporter._tw._file):
        return None
    return PhoneScreen(reporter._tw, folder)


def _show(config: pytest.Config, line: str) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None:
        return
    if capture is None:
        reporter.write_line(line)
        return
    with capture.global_and_fixture_disabled():
        reporter.write_line(line)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """xdist: tells a worker where the run is."""
    if _RUN in node.config.stash:
        node.workerinput[_WORKER_INPUT] = str(node.config.stash[_RUN].folder)
        node.workerinput[_WORKER_RESUMED] = node.config.stash[_RUN].resumed.to_data()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:  # noqa: ARG001 - xdist passes it by name
    """xdist: a free worker gets the cell that a free phone should run now."""
    if _RUN not in config.stash:
        return None
    from xdist.workermanage import parse_tx_spec_config

    return cell_scheduling(config.stash[_RUN], workers=len(parse_tx_spec_config(config)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """`-n auto`: a worker a phone. Asked before `pytest_configure`, so a bad rack file is refused there."""
    if not _active(config):
        return None
    try:
        if config.getoption("engine"):
            return _phones_on_engine(config)
        return len(load_inventory(config.getoption("rack")).phones)
    except HarnessError:
        return None


def _phones_on_engine(config: pytest.Config) -> int:
    from harness.engine.driver import Engine

    engine = Engine(config.getoption("engine"), config.getoption("engine_tls"))
    try:
        return len(engine.phones_now())
    finally:
        engine.close()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """A worker's loop, which starts a test as soon as it has one; see `harness/conduct/distribute.py`."""
    if _RUN not in session.config.stash or not hasattr(session.config, "workerinput"):
        return None
    interactor = next(p for p in session.config.pluginmanager.get_plugins() if type(p).__name__ == "WorkerInteractor")
    one_at_a_time(session, interactor)
    return True


def pytest_sessionstart(session: pytest.Session) -> None:
    """Starts building and showing progress."""
    stash = session.config.stash
    if _FOLLOWER in stash:
        stash[_FOLLOWER].start()
        if _SCREEN in stash:
            stash[_SCREEN].start()
        stash[_FIRST].start()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a planned cell, by the cell's id."""
    if "planned" in metafunc.fixturenames:
        run = metafunc.config.stash.get(_RUN, None)
        cells: Sequence[Planned] = run.planned if run else ()
        metafunc.parametrize("planned", cells, ids=[planned.cell.id for planned in cells], scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Takes out the cells that a resumed run has done."""
    run = config.stash.get(_RUN, None)
    if run is None or not run.resumed.done:
        return
    done = [item for item in items if _cell_of(item) in run.resumed.done]
    if done:
        items[:] = [item for item in items if item not in set(done)]
        config.hook.pytest_deselected(items=done)


def _cell_of(item: pytest.Item) -> str | None:
    """The id of the cell that a test runs; None of another test."""
    planned: Planned | None = getattr(getattr(item, "callspec", None), "params", {}).get("planned")
    return planned.cell.id if planned else None


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Records cells that `-k` leaves out, so that the report does not call them missing."""
    for item in items:
        run = item.config.stash.get(_RUN, None)
        if run is None or item.config.option.collectonly or os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0":
            continue
        callspec = getattr(item, "callspec", None)
        if callspec is None or "planned" not in callspec.params:
            continue
        planned = callspec.params["planned"]
        if planned.cell.id not in run.resumed.done:
            run.leave_out(planned)


@pytest.fixture
def outcome(planned: Planned, request: pytest.FixtureRequest) -> OutcomeRecord:
    """The outcome of a cell. A skipped cell skips with its reason; what is not the product's fault is an error."""
    run = request.config.stash[_RUN]
    if not planned.verdict.run:
        run.skip(planned)
        pytest.skip(f"{planned.verdict.reason}; {planned.verdict.remedy}")
    result = run.run_cell(planned)
    if result.status is Status.ERROR:
        pytest.fail(_words(result), pytrace=False)
    return result


def _words(outcome: OutcomeRecord) -> str:
    parts = [f"{outcome.failure_class}: {outcome.reason}"]
    parts += [f"what to do: {outcome.remedy}"] if outcome.remedy else []
    parts += [outcome.evidence] if outcome.evidence else []
    return "\n".join(parts)


def assert_passed(outcome: OutcomeRecord) -> None:
    """Fails the test with the outcome's own words."""
    if outcome.status is not Status.PASSED:
        pytest.fail(_words(outcome), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Ends what the run started, writes the reports, and sets the exit status by the outcomes' classes."""
    try:
        return (yield)
    finally:
        stash = session.config.stash
        if _FIRST in stash:
            stash[_FIRST].close()
        elif _RUN in stash:
            stash[_RUN].close()
        if _FOLLOWER in stash:
            stash[_FOLLOWER].stop()
            if _SCREEN in stash:
                stash[_SCREEN].stop()
            folder = stash[_RUN].folder
            write_reports(folder)
            judged = _judged(folder)
            if judged:
                _write_ab_reports(folder, judged[0])
            status = judged[0].status if judged else exit_status(summarise(load_run(folder)))
            if judged and session.exitstatus == pytest.ExitCode.TESTS_FAILED:
                # What a cell says alone may not hold among all: the gate has the last word.
                session.exitstatus = status
            if status and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
                session.exitstatus = status
            if stash[_RUN].resumed.done and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
                session.exitstatus = status  # all of it was done


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of cells, and where the report is."""
    if _FOLLOWER not in config.stash:
        return
    folder = config.stash[_RUN].folder
    terminalreporter.section("cells")
    terminalreporter.write_line(table_text(summarise(load_run(folder))))
    if judged := _judged(folder):
        terminalreporter.section("base → candidate")
        terminalreporter.write_line(judged[1])
    for name in ("report.html", "report.md", "records.jsonl"):
        terminalreporter.write_line(str(folder / name))
    if problem := _kept(folder):
        terminalreporter.write_line(problem)


def _judged(folder: Path) -> tuple[GateResult, str] | None:
    # Here and not at the top: it loads the database's library, which other runs of pytest do without.
    from harness.compare.keep import judge_ab

    return judge_ab(folder)


def _write_ab_reports(folder: Path, found: GateResult) -> None:
    from harness.compare.keep import write_ab_reports

    write_ab_reports(folder, found)


def _kept(folder: Path) -> str:
    from harness.compare.keep import keep

    return keep(folder)
