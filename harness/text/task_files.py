"""The files that make up local lm-eval tasks: read without lm-eval, for fingerprints and messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Leaves lm-eval's `!function module.name` as text: nothing is imported or run."""


def _name(_loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    return str(node.value)


_Loader.add_constructor("!function", _name)


def read_task(path: Path) -> dict[str, Any]:
    """A task's or group's YAML as it stands, without what it includes.

    Raises:
        ValueError: no YAML, or no mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(str(error)) from None
    if not isinstance(content, dict):
        raise ValueError("it holds no mapping")
    return content


def task_files(folders: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """All files of the folders' tasks, sorted: YAMLs, Python files beside them, and data files that they name.

    Too many rather than too few: every YAML of a folder counts. None if no folder has a task, group or tag of `names`.
    """
    files: set[Path] = set()
    known: set[str] = set()
    for folder in folders:
        for path in folder.rglob("*.yaml"):
            try:
                content = read_task(path)
            except ValueError:
                continue
            known |= {word for key in ("task", "group", "tag") for word in _words(content.get(key))}
            files |= {path, *path.parent.glob("*.py")}
            kwargs = content.get("dataset_kwargs")
            data = kwargs.get("data_files") if isinstance(kwargs, dict) else None
            files |= {path.parent / word for word in (*_words(data), *_words(content.get("include")))}
    return sorted(path.resolve() for path in files if path.is_file()) if known & set(names) else []


def _words(value: Any) -> Iterator[str]:
    """The texts in a text, a list or a mapping's values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _words(part)
