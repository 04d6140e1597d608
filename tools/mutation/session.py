"""One pytest inside a forked process: some tests in some order, silent, with what it found written to a pipe."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import pickle
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mutation.inside import MutantFinder, Tracer

SITE = Path(__file__).parent / "site"
AT_IMPORT = ""
"""In the place of a test: lines that ran before the first one."""


@dataclass
class Found:
    """What a pytest session found.

    Attributes:
        status: its exit status.
        passed: seconds of processor time of each test that passed, in the order run.
        failed: tests that did not pass.
        lines: test → file → executed lines, when traced.
        modules: all that was imported in the end, in that order.
        error: why it could not begin.
    """

    status: int = -1
    passed: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    lines: dict[str, dict[str, set[int]]] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    error: str = ""


@dataclass
class Child:
    """A forked process and the pipe on which it answers."""

    pid: int
    pipe: int
    deadline: float
    received: bytearray = field(default_factory=bytearray)


def fork(work: Callable[[], Found], seconds: float, cpu_seconds: float, verbose: bool = False) -> Child:
    """Do it in a process of its own, which ends when the time is over."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Child(pid, reading, time.monotonic() + seconds)
    try:
        os.setsid()
        os.close(reading)
        if not verbose:
            silent = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(silent, number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        die_with_parent()
        limit = int(cpu_seconds + time.process_time()) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        try:
            found = work()
        except BaseException:
            found = Found(error=traceback.format_exc())
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(found, pipe)
    finally:
        os._exit(0)


def die_with_parent() -> None:
    """A process that is killed takes its forks with it (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def next_done(children: Sequence[Child]) -> Child:
    """Wait for one that has answered, died or had its time, and leave nothing of it."""
    while True:
        ready, _, _ = select.select([child.pipe for child in children], [], [], 0.5)
        for child in children:
            closed = False
            if child.pipe in ready:
                part = os.read(child.pipe, 1 << 20)
                child.received += part
                closed = not part
            # What it has started may hold the pipe open for longer than it lives itself.
            dead = child.pipe not in ready and os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if closed or dead or time.monotonic() > child.deadline:
                end(child)
                return child


def end(child: Child) -> None:
    """End it with all that it started: it leads a group of its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    os.close(child.pipe)


def answer(child: Child) -> Found | None:
    """What it wrote; None of one that died or was ended before."""
    try:
        found = pickle.loads(bytes(child.received))  # noqa: S301 - our own child wrote it
    except (EOFError, pickle.UnpicklingError):
        return None
    return found if isinstance(found, Found) else None


def work_on(work: Callable[[], Found], seconds: float, cpu_seconds: float, verbose: bool = False) -> Found:
    """Fork one and wait for it.

    Raises:
        RuntimeError: it ended without an answer, or could not begin.
    """
    child = next_done([fork(work, seconds, cpu_seconds, verbose)])
    found = answer(child)
    if found is None:
        raise RuntimeError("the tests ended without an answer: a crash, or their time was over")
    if found.error:
        raise RuntimeError(found.error)
    return found


def run_tests(
    root: Path,
    files: Sequence[str],
    chosen: Mapping[str, int] | None = None,
    mutant: tuple[str, str, str] | None = None,
    traced: Sequence[str] = (),
    stop_first: bool = False,
) -> Found:
    """Run pytest here; this process is good for nothing else afterwards.

    Args:
        root: the repository.
        files: test files, from the root.
        chosen: tests → place in the order; None runs all.
        mutant: module's name, its path, its other text.
        traced: files whose executed lines are noted, by test.
        stop_first: end at the first failure.
    """
    import pytest

    os.chdir(root)
    sys.path[:] = [str(root), *(one for one in sys.path if one not in (str(root), str(SITE.parents[1])))]
    place = Path(tempfile.mkdtemp(prefix="mut"))
    try:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(SITE), str(root)])
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        watcher = _Watcher(chosen, root, Tracer(traced) if traced else None)
        if mutant is not None:
            module, path, source = mutant
            (place / "mutant.py").write_text(source)
            os.environ |= {"MUTATION_MODULE": module, "MUTATION_PATH": path}
            os.environ["MUTATION_SOURCE"] = str(place / "mutant.py")
            sys.meta_path.insert(0, MutantFinder(module, path, source))
            try:
                importlib.import_module(module)
            except BaseException:  # whatever a mutant raises, also SystemExit: it was noticed
                return Found(1, failed=["its import"])
        if traced:
            (place / "lines").mkdir()
            os.environ |= {"MUTATION_TRACE": str(place / "lines"), "MUTATION_FILES": json.dumps(list(traced))}
        steady_hypothesis()
        arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no", "--assert=plain"]
        arguments += ["--rootdir", str(root), *(["-x"] if stop_first else [])]
        status = 0
        # One after the other: what the first file notices, the others need not be imported for.
        for number, file in enumerate(files):
            status = max(
                status, pytest.main([*arguments, f"--basetemp={place / str(number)}", file], plugins=[watcher])
            )
            if status and stop_first:
                break
        sys.settrace(None)
        lines = watcher.lines | {}
        for one in sorted((place / "lines").glob("*.json")) if traced else ():
            with contextlib.suppress(ValueError):
                test, found = json.loads(one.read_text())
                into = lines.setdefault(test, {})
                for file, numbers in found.items():
                    into.setdefault(file, set()).update(numbers)
        names = [name for name, module in list(sys.modules.items()) if getattr(module, "__file__", None)]
        return Found(int(status), watcher.passed, watcher.failed, lines, names)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def steady_hypothesis() -> None:
    """The same examples each time, and none of the work that only explains a failure."""
    with contextlib.suppress(ImportError):
        from hypothesis import Phase, settings

        settings.register_profile(
            "mutants", database=None, derandomize=True, deadline=None, phases=(Phase.explicit, Phase.generate)
        )
        settings.load_profile("mutants")


class _Watcher:
    """A plugin: chooses and orders tests, times them, and gives each the lines that ran in it and in its fixtures."""

    def __init__(self, chosen: Mapping[str, int] | None, root: Path, tracer: Tracer | None) -> None:
        self.chosen, self.root, self.tracer = chosen, root, tracer
        self.passed: dict[str, float] = {}
        self.failed: list[str] = []
        self.lines: dict[str, dict[str, set[int]]] = {}
        self._shared: dict[str, dict[str, set[int]]] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if self.chosen is not None:
            chosen = self.chosen
            items[:] = sorted((one for one in items if one.nodeid in chosen), key=lambda one: chosen[one.nodeid])

    def pytest_configure(self) -> None:
        if self.tracer is not None:
            self.tracer.into = self.lines.setdefault(AT_IMPORT, {})
            self.tracer.start()

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(f"{report.nodeid} (its import)")

    def _runtest(self, item: Any) -> Iterator[None]:
        began = time.process_time()
        into = self.lines.setdefault(item.nodeid, {})
        if self.tracer is not None:
            self.tracer.into = into
        yield
        for name in getattr(item, "fixturenames", ()):
            for file, lines in self._shared.get(name, {}).items():
                into.setdefault(file, set()).update(lines)
        if item.nodeid in self.passed:
            self.passed[item.nodeid] = time.process_time() - began

    def _fixture(self, fixturedef: Any) -> Iterator[None]:
        if self.tracer is None or fixturedef.scope == "function":
            yield
            return
        before = self.tracer.into
        self.tracer.into = self._shared.setdefault(fixturedef.argname, {})
        yield
        self.tracer.into = before

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
            self.passed.pop(report.nodeid, None)
        elif report.when == "call" and report.passed:
            self.passed[report.nodeid] = 0.0


def _hooks() -> None:
    import pytest

    _Watcher.pytest_runtest_protocol = pytest.hookimpl(hookwrapper=True)(_Watcher._runtest)  # type: ignore[attr-defined]
    _Watcher.pytest_fixture_setup = pytest.hookimpl(hookwrapper=True)(_Watcher._fixture)  # type: ignore[attr-defined]


_hooks()
