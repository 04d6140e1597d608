"""What happens inside a process under test: the mutated module is put in place, and executed lines are noted."""

# ruff: noqa: ARG002 - the interpreter gives its hooks more than they need

from __future__ import annotations

import atexit
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any


class MutantFinder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports one module from other text, under its own name and place."""

    def __init__(self, module: str, path: str, source: str) -> None:
        self.module, self.path, self.source = module, path, source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """That of the one module."""
        if fullname != self.module:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def get_source(self, fullname: str) -> str:
        """The mutated text."""
        return self.source

    def get_code(self, fullname: str) -> CodeType:
        """Of the mutated text."""
        return compile(self.source, self.path, "exec", dont_inherit=True)


class Tracer:
    """Notes which lines of some files are executed, in `into`: file → lines."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files = frozenset(files)
        self.into: dict[str, set[int]] = {}

    def start(self) -> None:
        """In this thread and in those started later."""
        threading.settrace(self._call)
        sys.settrace(self._call)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename in self.files else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.into.setdefault(frame.f_code.co_filename, set()).add(frame.f_lineno)
        return self._line


def start() -> None:
    """In a Python that a test has started: as its parent's variables say."""
    if module := os.environ.get("MUTATION_MODULE"):
        source = Path(os.environ["MUTATION_SOURCE"]).read_text()
        sys.meta_path.insert(0, MutantFinder(module, os.environ["MUTATION_PATH"], source))
    if folder := os.environ.get("MUTATION_TRACE"):
        tracer = Tracer(json.loads(os.environ["MUTATION_FILES"]))
        atexit.register(_leave, tracer, Path(folder))
        tracer.start()


def _leave(tracer: Tracer, folder: Path) -> None:
    sys.settrace(None)
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    lines = {file: sorted(found) for file, found in tracer.into.items()}
    (folder / f"{uuid.uuid4().hex}.json").write_text(json.dumps([test, lines]))
