"""Mutants of one module against its tests: warm processes, forked, each with one mutant."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mutation.imports import dependents, module_name
from mutation.operators import Mutant
from mutation.session import AT_IMPORT, Child, Found, answer, die_with_parent, fork, next_done, run_tests, work_on

KILLED, TIMEOUT, SURVIVED, EQUIVALENT = "killed", "timeout", "survived", "equivalent"


@dataclass(frozen=True)
class Verdict:
    """How it went with one mutant.

    Attributes:
        mutant: which.
        word: killed, timeout (killed too), survived or equivalent.
        why: the test that noticed, or how many did not, or why it is equivalent.
    """

    mutant: Mutant
    word: str
    why: str


@dataclass(frozen=True)
class Traced:
    """What the unmutated tests did.

    Attributes:
        seconds: processor time of each test that passed.
        lines: test → file → executed lines.
        modules: all that they imported.
        failed: tests that do not pass as it is, so that they cannot say anything.
    """

    seconds: Mapping[str, float]
    lines: Mapping[str, Mapping[str, set[int]]]
    modules: Sequence[str]
    failed: Sequence[str]


@dataclass(frozen=True)
class Limits:
    """How long the unmutated tests may take, and what a mutant gets beyond their time.

    Processor time is what counts; the clock only ends what waits for ever, and so has much room for a busy machine.
    """

    baseline: float = 1800.0
    cpu_factor: float = 4.0
    cpu_more: float = 10.0
    clock_factor: float = 10.0
    clock_more: float = 60.0


LIMITS = Limits()


def trace(root: Path, test_file: str, modules: Sequence[str], limits: Limits = LIMITS) -> Traced:
    """Run one test file unmutated and note which test executes which lines of the modules.

    Raises:
        RuntimeError: the tests cannot run.
    """
    files = [str(root / module) for module in modules]
    found = work_on(lambda: run_tests(root, [test_file], traced=files), limits.baseline, limits.baseline)
    if found.status not in (0, 1):
        raise RuntimeError(f"{test_file}: pytest ended with status {found.status}; failed: {found.failed}")
    lines = {
        test: {str(Path(file).relative_to(root)): numbers for file, numbers in by_file.items()}
        for test, by_file in found.lines.items()
    }
    return Traced(found.passed, lines, found.modules, found.failed)


def killers(mutant: Mutant, traced: Sequence[Traced]) -> dict[str, float]:
    """The tests that can notice a mutant, with the time each takes."""
    wanted = set(range(mutant.lines[0], mutant.lines[1] + 1))
    at_import = any(wanted & one.lines.get(AT_IMPORT, {}).get(mutant.file, set()) for one in traced)
    return {
        test: seconds
        for one in traced
        for test, seconds in one.seconds.items()
        if at_import or not mutant.in_function or wanted & one.lines.get(test, {}).get(mutant.file, set())
    }


def judge_module(
    root: Path,
    file: str,
    every: Sequence[Mutant],
    traced: Mapping[str, Traced],
    graph: Mapping[str, frozenset[str]],
    jobs: int = 1,
    limits: Limits = LIMITS,
    said: Callable[[Verdict], None] = lambda _: None,
) -> list[Verdict]:
    """Every mutant of a module against the tests that execute it.

    This process imports what the tests import and what does not depend on the module, so it should be a fork itself.

    Args:
        root: the repository.
        file: the module, from there.
        every: its mutants.
        traced: test file → what it did unmutated.
        graph: which modules of the package import which.
        jobs: processes at a time.
        limits: of time.
        said: told of each as it is known.
    """
    _import_beforehand(root, file, traced, graph)
    sound = _still_passing(root, file, traced, limits)
    found: dict[int, Verdict] = {}
    kills: dict[str, int] = {}
    waiting, running = list(range(len(every))), dict[int, tuple[int, Child]]()
    while waiting or running:
        while waiting and len(running) < jobs:
            number = waiting.pop(0)
            mutant = every[number]
            able = killers(mutant, list(sound.values()))
            if not able:
                found[number] = Verdict(mutant, SURVIVED, "no test executes it")
                said(found[number])
                continue
            order = sorted(able, key=lambda test: (-kills.get(test, 0), able[test], test))
            files = list(dict.fromkeys(test.partition("::")[0] for test in order))
            child = _begin(root, mutant, order, files, sum(able.values()), limits)
            running[child.pid] = number, child
        if not running:
            continue
        child = next_done([child for _, child in running.values()])
        number, _ = running.pop(child.pid)
        verdict = _verdict(every[number], child, kills)
        found[number] = verdict
        said(verdict)
    return [found[number] for number in range(len(every))]


def _begin(
    root: Path, mutant: Mutant, order: Sequence[str], files: Sequence[str], seconds: float, limits: Limits
) -> Child:
    chosen = {test: place for place, test in enumerate(order)}
    changed = module_name(mutant.file), str(root / mutant.file), mutant.source
    return fork(
        lambda: run_tests(root, files, chosen, changed, stop_first=True),
        seconds * limits.clock_factor + limits.clock_more,
        seconds * limits.cpu_factor + limits.cpu_more,
    )


def _verdict(mutant: Mutant, child: Child, kills: dict[str, int]) -> Verdict:
    found = answer(child)
    if found is None:
        return Verdict(mutant, TIMEOUT, "its time was over, or the process died")
    if found.error or found.status == 5:
        raise RuntimeError(f"{mutant.id}: the tests could not be run: {found.error or 'none was found'}")
    if found.status == 0:
        return Verdict(mutant, SURVIVED, f"{len(found.passed)} tests pass")
    test = found.failed[0] if found.failed else f"pytest's status {found.status}"
    kills[test] = kills.get(test, 0) + 1
    return Verdict(mutant, KILLED, test)


def _import_beforehand(
    root: Path, file: str, traced: Mapping[str, Traced], graph: Mapping[str, frozenset[str]]
) -> None:
    """What takes time to import, once for all mutants; nothing that would have seen the unmutated module."""
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    unsafe = dependents(module_name(file), graph)
    names = dict.fromkeys(name for one in traced.values() for name in one.modules)
    others = [name for name in names if name not in graph and _is_installed(name, root)]
    for name in [*others, *(name for name in names if name in graph and name not in unsafe)]:
        if name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    with contextlib.suppress(ImportError, AttributeError), warnings.catch_warnings(action="ignore"):
        # Hypothesis reads the constants of all modules for its examples: once is enough.
        importlib.import_module("hypothesis.internal.conjecture.providers")._get_local_constants()
    gc.collect()
    gc.freeze()  # what is here now need not be looked through in every fork


def _is_installed(name: str, root: Path) -> bool:
    top = name.partition(".")[0]
    here = (root / top).exists() or (root / f"{top}.py").exists()
    return not here and not top.startswith(("test_", "conftest", "__", "mutation", "sitecustomize"))


def _still_passing(root: Path, file: str, traced: Mapping[str, Traced], limits: Limits) -> dict[str, Traced]:
    """The tests that pass where mutants will be tried: with the module imported anew from its own text."""
    files = [test_file for test_file, one in traced.items() if one.seconds]
    if not files:
        return dict(traced)
    changed = module_name(file), str(root / file), (root / file).read_text()
    chosen = {test: place for place, test in enumerate(test for one in traced.values() for test in one.seconds)}
    found = work_on(lambda: run_tests(root, files, chosen, changed), limits.baseline, limits.baseline)
    if found.status not in (0, 1):
        raise RuntimeError(f"{file}: pytest ended with status {found.status} on the unmutated module: {found.failed}")
    for test in sorted(set(chosen) - set(found.passed)):
        print(f"{file}: {test} fails without a mutant; it is left out", file=sys.stderr)
    return {
        test_file: Traced(
            {test: found.passed[test] for test in one.seconds if test in found.passed},
            one.lines,
            one.modules,
            one.failed,
        )
        for test_file, one in traced.items()
    }


def verdicts_of(
    work: Callable[[Callable[[Verdict], None]], list[Verdict]], said: Callable[[Verdict], None]
) -> Iterator[Verdict]:
    """Run `work` in a fork, so that what it imports stays there."""
    import pickle

    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            die_with_parent()
            os.close(reading)
            with os.fdopen(writing, "wb") as pipe:
                try:
                    pickle.dump(work(said), pipe)
                    status = 0
                except BaseException as error:
                    pickle.dump(f"{type(error).__name__}: {error}", pipe)
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        received = pipe.read()
    os.waitpid(pid, 0)
    found = pickle.loads(received)  # noqa: S301 - our own child wrote it
    if isinstance(found, str):
        raise RuntimeError(found)
    yield from found


__all__ = [
    "EQUIVALENT", "KILLED", "LIMITS", "SURVIVED", "TIMEOUT", "Found", "Limits", "Traced", "Verdict", "judge_module",
    "killers", "trace", "verdicts_of",
]  # fmt: skip
