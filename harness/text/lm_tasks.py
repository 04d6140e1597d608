"""lm-eval's tasks: found by name, loaded from what this machine has, run quietly.

Folders of task YAMLs are looked at first: those the user names, then the repository's `tasks/`. Only a name that none
of them has makes lm-eval's own 14,000 tasks be indexed, which takes some 5 to 10 seconds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from functools import cache, partialmethod
from pathlib import Path
from typing import Any

from harness.errors import ConfigError, HarnessError
from harness.paths import REPOSITORY
from harness.soc import suggestion
from harness.text.task_files import read_task

SHIPPED = REPOSITORY / "tasks"
"""The tasks that come with their data."""

BOOTSTRAP_ITERATIONS = 1000
"""For the standard error of metrics that have no formula for it, as F1; lm-eval's 100,000 take minutes."""

_LOCAL_FORMATS = ("json", "csv", "text", "parquet")


def task_folders(extra: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Folders that tasks are looked for in: `extra`, absolute, then `SHIPPED`.

    Raises:
        ConfigError: one of `extra` is no folder.
    """
    for folder in extra:
        if not folder.is_dir():
            raise ConfigError("no such task folder", where=str(folder), remedy="give a folder of lm-eval task YAMLs")
    return (*(folder.resolve() for folder in extra), SHIPPED)


def load_tasks(names: Sequence[str], folders: Sequence[Path] = ()) -> tuple[Any, list[Any]]:
    """lm-eval's task manager, and the tasks and groups of these names, in their order; a tag is several.

    Args:
        names: of tasks, groups or tags.
        folders: see `task_folders`.

    Raises:
        ConfigError: no or an unknown name, or a task whose data this machine does not have, or that does not load.
    """
    if not names:
        raise ConfigError("no task is named", remedy="name an lm-eval task, such as htpfarm_text or htpfarm_endings")
    searched = task_folders(folders)
    with settled():
        manager = _manager(searched, names)
        loaded: dict[str, Any] = {}
        for name in names:
            loaded |= _load(manager, name)
    return manager, list(loaded.values())


def run(
    model: Any,
    manager: Any,
    tasks: list[Any],
    *,
    limit: int | None = None,
    fewshot: int | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """`lm_eval.simple_evaluate` over loaded tasks; its results, without documents.

    Args:
        model: an `lm_eval.api.model.LM`.
        manager, tasks: of `load_tasks`.
        limit: documents of each task at most; None for all.
        fewshot: examples before each document; None for the task's own number.
        seed: of everything random in lm-eval; None for lm-eval's own seeds (0, and 1234 for numpy, torch, few-shot).
        progress: show lm-eval's progress bars and messages.

    Raises:
        ConfigError: a limit or fewshot that makes no sense, a task that is given twice, one that runs code or looks at
            pictures.
    """
    from lm_eval import simple_evaluate

    # To lm-eval a limit of 0 is no limit.
    for name, value, least in (("limit", limit, 1), ("fewshot", fewshot, 0)):
        if value is not None and value < least:
            raise ConfigError(f"{name} is {value}, but must be at least {least}")
    keys = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    seeds = {} if seed is None else dict.fromkeys(keys, seed)
    with settled(progress):
        _check(manager, tasks)
        results: dict[str, Any] = simple_evaluate(
            model,
            tasks=tasks,
            task_manager=manager,
            limit=limit,
            num_fewshot=fewshot,
            bootstrap_iters=BOOTSTRAP_ITERATIONS,
            log_samples=False,
            **seeds,
        )
    return results


def _check(manager: Any, tasks: list[Any]) -> None:
    try:
        leaves = manager.load(tasks)["tasks"]
    except ValueError as error:
        raise ConfigError(str(error), where="tasks", remedy="name each task once") from None
    for name, task in leaves.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise ConfigError("the task runs code that the model writes: not here", where=name)
        if getattr(task, "MULTIMODAL", False):
            raise ConfigError("the task is not of text alone", where=name)


def _manager(folders: tuple[Path, ...], names: Sequence[str]) -> Any:
    files = tuple((path, path.stat().st_mtime_ns) for folder in folders for path in sorted(folder.rglob("*.yaml")))
    own = _index(folders, files, defaults=False)
    if all(_complete(own, name) for name in names):
        return own
    everything = _index(folders, files, defaults=True)
    for name in names:
        if name not in everything.task_index:
            raise ConfigError(
                f"unknown lm-eval task {name!r}",
                where="tasks",
                remedy=_near(name, everything.all_tasks),
                evidence="\n".join(_unreadable(files)),
            )
    return everything


def _complete(manager: Any, name: str) -> bool:
    """Whether all of a task or group is in this index. A group may have tasks of lm-eval's, and so may any tag."""
    if name in manager.all_subtasks:
        return True
    if name not in manager.all_groups:
        return False
    members = manager.task_index[name].cfg.get("task")
    names = [member.get("task") or member.get("group") if isinstance(member, dict) else member for member in members]
    return all(isinstance(member, str) and _complete(manager, member) for member in names)


def _near(name: str, known: Sequence[str]) -> str:
    """`suggestion`, but not all 14,000 where none is near."""
    found = suggestion(name, known)
    return found if found.startswith("did") else f"tasks that ship: {', '.join(_shipped())}; see also lm-eval ls tasks"


@cache
def _index(folders: tuple[Path, ...], files: tuple[tuple[Path, int], ...], defaults: bool) -> Any:  # noqa: ARG001
    """`files` makes an edited folder be read again."""
    from lm_eval.tasks import TaskManager

    # Later folders win.
    return TaskManager(include_path=[str(folder) for folder in reversed(folders)], include_defaults=defaults)


def _unreadable(files: Sequence[tuple[Path, int]]) -> Iterator[str]:
    """YAMLs that lm-eval passes over in silence: the task looked for may be in one of them."""
    for path, _ in files:
        try:
            read_task(path)
        except ValueError as error:
            yield f"{path} was left out: {error}"


def _load(manager: Any, name: str) -> dict[str, Any]:
    """The task or group of one name, or a tag's tasks."""
    try:
        found = manager.load([name])
    except HarnessError:
        raise
    except Exception as error:  # the task's YAML may call any code
        raise _refusal(manager, name, error) from error
    if name in found["groups"]:
        return {name: found["groups"][name]}
    return dict(found["tasks"])


def _refusal(manager: Any, name: str, error: Exception) -> ConfigError:
    config = manager.task_index[name].cfg or {}
    source, subset = config.get("dataset_path"), config.get("dataset_name")
    evidence = f"{type(error).__name__}: {error}"
    # datasets raises these two, or subclasses, for what is not in its cache while it may not ask the Hub.
    if not isinstance(error, (ConnectionError, FileNotFoundError)):
        return ConfigError("lm-eval cannot load the task", where=name, evidence=evidence)
    if source in _LOCAL_FORMATS:
        return ConfigError(
            "the task's data files are not there",
            where=name,
            remedy="lm-eval looks for data_files in the current folder: give absolute paths, or load them with "
            "custom_dataset: !function harness.text.task_data.load, which looks in the YAML's folder",
            evidence=evidence,
        )
    wanted = ", ".join(repr(part) for part in (source, subset) if part) or "…"
    return ConfigError(
        f"the task's data {source or ''} is not on this machine".replace("  ", " "),
        where=name,
        remedy=f'fetch it once where there is internet (python -c "import datasets; datasets.load_dataset({wanted})"), '
        f"point HF_HOME at a cache that has it, or take a task that ships: {', '.join(_shipped())}",
        evidence=evidence,
    )


def _shipped() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


_settling = threading.Lock()
_depth = 0
_undo = contextlib.ExitStack()


@contextlib.contextmanager
def settled(progress: bool = False) -> Iterator[None]:
    """Within it lm-eval is quiet (unless `progress`) and neither asks the Hub nor starts processes of its own.

    These settings belong to the process: the first of several threads makes them, the last takes them back.
    """
    global _depth
    with _settling:
        if _depth == 0:
            _settle(_undo, progress)
        _depth += 1
    try:
        yield
    finally:
        with _settling:
            _depth -= 1
            if _depth == 0:
                _undo.close()


def _settle(undo: contextlib.ExitStack, progress: bool) -> None:
    import datasets  # type: ignore[import-untyped, unused-ignore]
    import huggingface_hub
    import tqdm  # type: ignore[import-untyped, unused-ignore]

    # The environment variable HF_HUB_OFFLINE is read at import, which may be long ago. Without it a task without data
    # ends after five tries and 23 seconds.
    for module in (huggingface_hub.constants, datasets.config):
        _set(undo, module, "HF_HUB_OFFLINE", True)
    # lm-eval forks workers for bootstrapping otherwise, in a process with torch's threads.
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    undo.callback(_restore_variable, "DISABLE_MULTIPROC", before)
    if progress:
        return
    _set(undo, tqdm.tqdm, "__init__", partialmethod(tqdm.tqdm.__init__, disable=True))
    for name in ("lm_eval", "datasets"):
        logger = logging.getLogger(name)
        undo.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)


def _set(undo: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _restore_variable(name: str, before: str | None) -> None:
    if before is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = before
