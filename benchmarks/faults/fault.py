"""What a planted fault is, and how one is planted: attributes of the harness are replaced in a process that runs it.

A fault names what it changes by attribute. Where that is gone, planting fails: a fault that planted nothing would look
like one that passed.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KV, HYBRID, LOOKAHEAD = "kv", "hybrid", "lookahead"
ALL_MODES = (KV, HYBRID, LOOKAHEAD)


class PlantError(Exception):
    """A fault cannot be planted: what it would change is not there any more."""


class Patch:
    """Replaces attributes, and counts how often the replacements changed anything.

    Attributes:
        places: what was replaced, as `module.Class.attribute`.
        strikes: how often a fault did what it is there for; told by the fault itself.
        settings: `HTPFARM_FAULT_…` variables: what a fault is told.
        folder: of the cell: lasts longer than one process.
        before_main: called before the program's main function, with its arguments.
    """

    def __init__(self, settings: Mapping[str, str] | None = None, folder: Path = Path()) -> None:
        self.settings, self.folder = dict(settings or {}), folder
        self.places: list[str] = []
        self._undo: list[tuple[Any, str, Any]] = []
        self.strikes = 0
        self.before_main: list[Callable[[Sequence[str]], None]] = []

    def strike(self) -> None:
        """The fault has just changed something."""
        self.strikes += 1

    def around(self, module: str, name: str) -> Callable[[Callable[..., Any]], None]:
        """Decorator: `replacement(original, …)` takes the place of a function, or of a class's method (`Class.method`).

        A function is replaced wherever the harness has imported it by name, too.

        Raises:
            PlantError: there is no such attribute.
        """
        home = _import(module)
        *path, last = name.split(".")
        owner = home
        for part in path:
            owner = _attribute(owner, part, f"{module}.{name}")
        original = _attribute(owner, last, f"{module}.{name}")

        def plant(replacement: Callable[..., Any]) -> None:
            @functools.wraps(original)
            def planted(*arguments: Any, **keywords: Any) -> Any:
                return replacement(original, *arguments, **keywords)

            self._set(owner, last, planted)
            if not path:
                for other in [other for key, other in sys.modules.items() if key.startswith("harness.")]:
                    for key, value in list(vars(other).items()):
                        if value is original:
                            self._set(other, key, planted)
            if _attribute(owner, last, name) is original:
                raise PlantError(f"{module}.{name} is still what it was")
            self.places.append(f"{module}.{name}")

        return plant

    def _set(self, owner: Any, name: str, value: Any) -> None:
        self._undo.append((owner, name, vars(owner)[name]))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Puts everything back."""
        while self._undo:
            owner, name, value = self._undo.pop()
            setattr(owner, name, value)


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PlantError(f"no module {module}: {error}") from None


def _attribute(owner: Any, name: str, whole: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        raise PlantError(f"there is no {whole} to change: the fault has to be written anew") from None


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: of the fault.
        what: what is wrong, in a few words.
        kind: `runner`, `build` or `phone`.
        modes: those in which it can make a difference; the first is the one it is tried in when time is short.
        plant: plants it in the process it belongs to.
        ways: on which runner it can be: `ours`, `stock`.
        needs: what of a model it needs to make a difference: "" or a word of `NEEDS`.
        harmless: it is planted to show that nothing is said of what changes nothing.
        speed: it changes nothing but what is reported of speeds.
        outside: why no cell asks for what it changes; empty where one does.
        reference: it is in what judges, and the phone's graphs are sound.
        both: it is in the phone's graphs and in what judges them, so that it is another model.
    """

    name: str
    what: str
    kind: str
    plant: Callable[[Patch], None]
    modes: tuple[str, ...] = ALL_MODES
    ways: tuple[str, ...] = ("ours", "stock")
    needs: str = ""
    harmless: bool = False
    speed: bool = False
    outside: str = ""
    reference: bool = False
    both: bool = False


NEEDS = ("window", "lpbq", "shards", "template")


@dataclass
class Catalog:
    """Faults by name, filled by the decorator."""

    faults: dict[str, Fault] = field(default_factory=dict)

    def fault(self, what: str, kind: str = "runner", **more: Any) -> Callable[[Callable[[Patch], None]], Any]:
        """Decorator: the function plants the fault of its name."""

        def enter(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
            name = plant.__name__
            if name in self.faults:
                raise ValueError(f"two faults are called {name}")
            self.faults[name] = Fault(name, what, kind, plant, **more)
            return plant

        return enter


CATALOG = Catalog()
fault = CATALOG.fault
