"""Read a YAML file into a pydantic model, and say of every mistake in which file, line and key it stands.

A schema for these files derives from `Section`: unknown keys are refused, values are not converted in silence
(`soc: 8650` is not text, `shards: yes` is no number), and what was read cannot be changed.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import ConfigError

T = TypeVar("T", bound=BaseModel)
Place = tuple[str | int, ...]

_SHOWN = 20  # a file of the wrong kind can be wrong in every line; the first mistakes are enough


class Section(BaseModel):
    """Base of everything people write in YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True)
class Problem:
    """One mistake: the place as keys and list positions, as `("phones", 2, "soc")`, and what is wrong there."""

    place: Place
    message: str


@dataclass(frozen=True)
class Document(Generic[T]):
    """A file that was read and fits its schema, with the positions of its keys for checks that come later."""

    path: Path
    value: T
    root: yaml.Node

    def refuse(self, problems: Sequence[Problem], remedy: str = "") -> ConfigError:
        """The one error that lists all problems with their lines. Returned, for the caller to raise."""
        return _error(self.path, self.root, problems, remedy)


def load_yaml(path: Path, schema: type[T]) -> T:
    """Read `path` as `schema`.

    Raises:
        ConfigError: the file is missing, is no YAML, repeats a key or does not fit; each problem as
            `file:line: key.path: message`, all in one error.
    """
    return read_document(path, schema).value


def read_document(path: Path, schema: type[T]) -> Document[T]:
    """As `load_yaml`, keeping the lines so that the caller can refuse what the schema alone cannot see."""
    root, data = _parse(path)
    try:
        return Document(path, schema.model_validate(data), root)
    except ValidationError as error:
        problems = [_problem(schema, detail) for detail in error.errors(include_url=False)]
    raise _error(path, root, problems)


def _parse(path: Path) -> tuple[yaml.Node, Any]:
    """The node tree (with lines) and the plain data, built with the safe loader."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError("no such file", where=str(path), remedy="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path)) from error
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                raise ConfigError("the file is empty", where=f"{path}:1")
            _refuse_duplicates(path, root)
            return root, loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ": ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"not valid YAML: {what}", where=f"{path}:{mark.line + 1}" if mark else str(path)) from error
    except RecursionError:
        raise ConfigError("lists and maps lie too deep in each other", where=str(path)) from None
    except (yaml.YAMLError, ValueError) as error:  # a control character; a date such as 2026-13-45
        raise ConfigError(f"not valid YAML: {error}", where=str(path)) from error


def _refuse_duplicates(path: Path, root: yaml.Node) -> None:
    """YAML forbids a key twice in one mapping, PyYAML lets the last one win."""
    problems: list[Problem] = []
    lines: list[int] = []
    seen: set[int] = set()  # an alias may point back at its parent
    todo: list[tuple[Place, yaml.Node]] = [((), root)]
    while todo:
        place, node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo.extend(((*place, index), item) for index, item in enumerate(node.value))
        elif isinstance(node, yaml.MappingNode):
            first: dict[Hashable, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode):
                    if key.value in first:
                        message = f"the key is there twice, first in line {first[key.value]}"
                        problems.append(Problem((*place, key.value), message))
                        lines.append(line)
                    first.setdefault(key.value, line)
                    todo.append(((*place, key.value), value))
    if problems:
        listed = sorted(zip(lines, problems, strict=True), key=lambda item: item[0])
        raise _listing(path, [(line, problem) for line, problem in listed], "keep one of the two")


def _line(root: yaml.Node, place: Place) -> int:
    """The line (from 1) of the key or list item at `place`, or of its nearest parent that is in the file."""
    node, line = root, root.start_mark.line
    for step in place:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value == str(step):
                    node, line = value, key.start_mark.line
                    break
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line
    return line + 1


def _key_path(place: Place) -> str:
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _error(path: Path, root: yaml.Node, problems: Sequence[Problem], remedy: str = "") -> ConfigError:
    lined = sorted(((_line(root, problem.place), problem) for problem in problems), key=lambda item: item[0])
    return _listing(path, lined, remedy)


def _listing(path: Path, lined: Sequence[tuple[int, Problem]], remedy: str) -> ConfigError:
    wheres = [
        f"{path}:{line}: {key}" if (key := _key_path(problem.place)) else f"{path}:{line}" for line, problem in lined
    ]
    if len(lined) == 1:
        return ConfigError(lined[0][1].message, where=wheres[0], remedy=remedy)
    rows = [f"{where}: {problem.message}" for where, (_, problem) in zip(wheres, lined, strict=True)]
    if len(rows) > _SHOWN:
        rows = [*rows[:_SHOWN], f"… and {len(rows) - _SHOWN} more"]
    return ConfigError("\n  ".join([f"{len(lined)} problems", *rows]), where=str(path), remedy=remedy)


def _problem(schema: type[BaseModel], detail: Mapping[str, Any]) -> Problem:
    """Pydantic's words for one mistake, turned into ours."""
    place: Place = tuple(detail["loc"])
    kind, message, got = detail["type"], detail["msg"], detail["input"]
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(str(place[-1]), fields := _fields(schema, place[:-1]), n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(fields)}"
        return Problem(place, f"unknown key; {hint}")
    if kind == "missing":
        return Problem(place, "the key is missing")
    if kind in ("model_type", "model_attributes_type"):
        return Problem(place, f"must be a mapping of keys, not {_kind_of(got)}")
    if kind == "value_error":  # raised by a validator of ours, whose words say it all
        return Problem(place, message.removeprefix("Value error, "))
    message = message[:1].lower() + message[1:]
    if kind == "string_type" and isinstance(got, (int, float, bool)):
        return Problem(place, f"must be text, but YAML reads it as {_kind_of(got)}; put it in quotes")
    return Problem(place, f"{message} (it is {_show(got)})")


def _show(value: Any) -> str:
    if isinstance(value, (str, int, float, bool)):
        text = repr(value)
        return text if len(text) <= 60 else text[:57] + "..."
    return _kind_of(value)


def _kind_of(value: Any) -> str:
    if value is None:
        return "empty"
    names: dict[type, str] = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "a mapping" if isinstance(value, dict) else type(value).__name__)


def _fields(schema: type[BaseModel], place: Place) -> list[str]:
    """The keys the schema knows at `place`: what a misspelt key is compared with."""
    kind: Any = schema
    for step in place:
        kind = _model_in(kind) if isinstance(step, str) else kind
        if isinstance(step, int):
            kind = _item_of(kind)
        elif isinstance(kind, type) and issubclass(kind, BaseModel) and step in kind.model_fields:
            kind = kind.model_fields[step].annotation
    model = _model_in(kind)
    return list(model.model_fields) if model else []


def _model_in(kind: Any) -> type[BaseModel] | None:
    """The pydantic model in an annotation such as `Model`, `Model | None` or `Annotated[Model, …]`."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    if typing.get_origin(kind) in (typing.Union, types.UnionType, typing.Annotated):
        return next((model for part in typing.get_args(kind) if (model := _model_in(part))), None)
    return None


def _item_of(kind: Any) -> Any:
    """`X` for `tuple[X, ...]` and `list[X]`."""
    return next(iter(typing.get_args(kind)), None)
