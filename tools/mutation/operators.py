"""One-line mutants of a module: places found in its syntax tree, changed in its text.

A mutant changes one expression or one simple statement. Left alone: docstrings, annotations, decorators, assertions,
`__all__`, logging, imports, what only type checkers see, and the words of messages (f-strings and the arguments of
exceptions), since nothing is decided by them.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One change of one module.

    Attributes:
        file: the module's path from the repository's root.
        line, column: where the changed text begins; both from 1.
        operator: what was done, as `boolop-drop-right`.
        source: the whole module as it is then.
        before, after: the line that changed.
        lines: first and last line that a test must execute to notice.
        in_function: whether those lines run when something is called; else when the module is imported.
    """

    file: str
    line: int
    column: int
    operator: str
    source: str
    before: str
    after: str
    lines: tuple[int, int]
    in_function: bool

    @property
    def id(self) -> str:
        """As `harness/verdicts/bound.py:74:3 boolop-drop-right`."""
        return f"{self.file}:{self.line}:{self.column} {self.operator}"


@dataclass(frozen=True)
class _Edit:
    """Replace the text of `node` (or of a part of it, `span`)."""

    operator: str
    node: ast.AST
    text: str


@dataclass(frozen=True)
class _Place:
    """What is around a node: the lines of its statement, whether it runs in a call, and whether at module level."""

    lines: tuple[int, int]
    in_function: bool


def mutants(file: str, source: str) -> list[Mutant]:
    """All of a module, in the order of its text; none twice and none that means the same as the module."""
    tree = ast.parse(source)
    text = _Text(source)
    edits = sorted(
        _walk(tree, None, _Place((1, 1), False), text),
        key=lambda found: (*text.span(found[0].node), found[0].operator, found[0].text),
    )
    seen, names, found = {ast.dump(tree)}, dict[str, int](), []
    for edit, place in edits:
        mutated = text.replaced(edit.node, edit.text)
        try:
            dumped = ast.dump(ast.parse(mutated))
        except SyntaxError:
            continue
        if dumped in seen:
            continue
        seen.add(dumped)
        line, column = edit.node.lineno, text.column(edit.node)  # type: ignore[attr-defined]
        key = f"{line}:{column} {edit.operator}"
        names[key] = names.get(key, 0) + 1
        operator = edit.operator if names[key] == 1 else f"{edit.operator}-{names[key]}"
        before, after = text.lines[line - 1], mutated.split("\n")[line - 1]
        found.append(Mutant(file, line, column, operator, mutated, before, after, place.lines, place.in_function))
    return found


def sample(every: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """So many of them, the same for the same seed, in their order."""
    if count >= len(every):
        return list(every)
    chosen = random.Random(f"{seed} {every[0].file}").sample(range(len(every)), count)  # noqa: S311
    return [every[number] for number in sorted(chosen)]


class _Text:
    """A module's text by the positions of its syntax tree, which count bytes."""

    def __init__(self, source: str) -> None:
        self.lines = source.split("\n")
        self._bytes = source.encode()
        starts = [0]
        for line in self.lines:
            starts.append(starts[-1] + len(line.encode()) + 1)
        self._starts = starts

    def span(self, node: ast.AST) -> tuple[int, int]:
        """First byte, and the one after the last."""
        return (
            self._starts[node.lineno - 1] + node.col_offset,  # type: ignore[attr-defined]
            self._starts[node.end_lineno - 1] + node.end_col_offset,  # type: ignore[attr-defined]
        )

    def column(self, node: ast.AST) -> int:
        """From 1, in characters."""
        start = self._starts[node.lineno - 1]  # type: ignore[attr-defined]
        return len(self._bytes[start : start + node.col_offset].decode()) + 1  # type: ignore[attr-defined]

    def of(self, node: ast.AST) -> str:
        """A node's own text, in parentheses where it could fall apart."""
        start, end = self.span(node)
        text = self._bytes[start:end].decode()
        whole = (ast.Name, ast.Constant, ast.Attribute, ast.Call, ast.Subscript, ast.Starred, ast.List, ast.Dict)
        if isinstance(node, whole) and "\n" not in text:
            return text
        return text if isinstance(node, ast.Starred) else f"({text})"

    def replaced(self, node: ast.AST, text: str) -> str:
        """The module with other text for a node."""
        start, end = self.span(node)
        return (self._bytes[:start] + text.encode() + self._bytes[end:]).decode()


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_SKIPPED = (ast.Import, ast.ImportFrom, ast.Assert, ast.Global, ast.Nonlocal, ast.JoinedStr)
_LOGGERS = {"log", "logger", "logging", "_log", "_logger", "LOG", "LOGGER"}


def _walk(node: ast.AST, parent: ast.AST | None, place: _Place, text: _Text) -> Iterator[tuple[_Edit, _Place]]:
    """All edits of a node and of what is below it."""
    if isinstance(node, ast.stmt):
        place = _Place((node.lineno, _header_end(node)), place.in_function)
    if _left_alone(node, parent):
        if isinstance(node, ast.JoinedStr):
            yield from ((edit, place) for edit in _formatted(node, parent))
        elif isinstance(node, ast.Raise):
            yield _Edit("raise-delete", node, "pass"), place
        return
    yield from ((edit, place) for edit in _edits(node, parent, place, text))
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "op", "ops", "ctx", "bases"):
            continue
        called = isinstance(node, (*_FUNCTIONS, ast.Lambda)) and name == "body"
        inner = _Place(place.lines, True) if called else place
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walk(child, node, inner, text)


def _header_end(node: ast.stmt) -> int:
    """Last line of a statement, or of the head of one with a body."""
    body: list[ast.stmt] | None = getattr(node, "body", None)
    if isinstance(body, list) and body:
        return max(node.lineno, body[0].lineno - 1)
    return node.end_lineno or node.lineno


def _left_alone(node: ast.AST, parent: ast.AST | None) -> bool:
    if isinstance(node, _SKIPPED):
        return True
    if isinstance(node, ast.Raise):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or _is_logging(node.value)
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
    if isinstance(node, ast.If):
        return _name(node.test) == "TYPE_CHECKING"
    if isinstance(node, ast.Call):
        return _name(node.func).endswith(("Error", "Exception"))
    return isinstance(node, ast.Expr) and isinstance(parent, ast.ClassDef)


def _is_logging(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _name(node.func.value) in _LOGGERS


def _name(node: ast.AST) -> str:
    """The last part of a dotted name; empty of anything else."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _edits(node: ast.AST, parent: ast.AST | None, place: _Place, text: _Text) -> Iterator[_Edit]:
    if isinstance(node, ast.Compare):
        yield from _compare(node, parent, text)
    elif isinstance(node, ast.BoolOp):
        yield from _boolop(node, text)
    elif isinstance(node, ast.UnaryOp):
        yield from _unary(node, parent, text)
    elif isinstance(node, ast.BinOp):
        yield from _binary(node, text)
    elif isinstance(node, ast.If | ast.While):
        yield _Edit("condition-true", node.test, "True")
        yield _Edit("condition-false", node.test, "False")
    elif isinstance(node, ast.IfExp):
        yield _Edit("ternary-true", node, text.of(node.body))
        yield _Edit("ternary-false", node, text.of(node.orelse))
    elif isinstance(node, ast.comprehension):
        yield from (_Edit("filter-drop", test, "True") for test in node.ifs)
    elif isinstance(node, ast.Constant):
        yield from _constant(node, parent, place)
    elif isinstance(node, ast.Call):
        yield from _call(node, text)
    elif isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict):
        yield from _collection(node, parent, text)
    elif isinstance(node, ast.Slice):
        yield from _slice(node, text)
    elif isinstance(node, ast.ExceptHandler) and node.type is not None:
        yield _Edit("except-never", node.type, "()")
    elif isinstance(node, ast.stmt):
        yield from _statement(node, place)


_COMPARES: dict[type[ast.cmpop], tuple[str, tuple[tuple[str, str], ...]]] = {
    ast.Lt: ("<", (("compare-boundary", "<="), ("compare-negate", ">="))),
    ast.LtE: ("<=", (("compare-boundary", "<"), ("compare-negate", ">"))),
    ast.Gt: (">", (("compare-boundary", ">="), ("compare-negate", "<="))),
    ast.GtE: (">=", (("compare-boundary", ">"), ("compare-negate", "<"))),
    ast.Eq: ("==", (("compare-negate", "!="),)),
    ast.NotEq: ("!=", (("compare-negate", "=="),)),
    ast.Is: ("is", (("compare-negate", "is not"),)),
    ast.IsNot: ("is not", (("compare-negate", "is"),)),
    ast.In: ("in", (("compare-negate", "not in"),)),
    ast.NotIn: ("not in", (("compare-negate", "in"),)),
}


def _compare(node: ast.Compare, parent: ast.AST | None, text: _Text) -> Iterator[_Edit]:
    values = [text.of(value) for value in (node.left, *node.comparators)]
    words = [_COMPARES[type(op)][0] for op in node.ops]
    for place, op in enumerate(node.ops):
        for operator, word in _COMPARES[type(op)][1]:
            swapped = [word if place == number else old for number, old in enumerate(words)]
            parts = [part for pair in zip(swapped, values[1:], strict=True) for part in pair]
            yield _Edit(operator, node, " ".join([values[0], *parts]))
    conditional = isinstance(parent, ast.If | ast.While | ast.IfExp | ast.comprehension | ast.BoolOp | ast.UnaryOp)
    if not conditional:
        yield _Edit("compare-true", node, "True")
        yield _Edit("compare-false", node, "False")


def _boolop(node: ast.BoolOp, text: _Text) -> Iterator[_Edit]:
    words = (" and ", " or ") if isinstance(node.op, ast.And) else (" or ", " and ")
    values = [text.of(value) for value in node.values]
    yield _Edit("boolop-swap", node, words[1].join(values))
    for place in range(len(values)):
        rest = [*values[:place], *values[place + 1 :]]
        side = "left" if place == 0 else "right" if place == len(values) - 1 else f"operand-{place + 1}"
        yield _Edit(f"boolop-drop-{side}", node, words[0].join(rest))


def _unary(node: ast.UnaryOp, parent: ast.AST | None, text: _Text) -> Iterator[_Edit]:
    if isinstance(node.op, ast.Not):
        yield _Edit("not-drop", node, text.of(node.operand))
    elif isinstance(node.op, ast.USub):
        index = isinstance(parent, ast.Subscript) and isinstance(node.operand, ast.Constant)
        yield _Edit("index-first", node, "0") if index else _Edit("minus-drop", node, text.of(node.operand))
    elif isinstance(node.op, ast.Invert):
        yield _Edit("invert-drop", node, text.of(node.operand))


_ARITHMETIC: dict[type[ast.operator], tuple[str, ...]] = {
    ast.Add: ("-",), ast.Sub: ("+",), ast.Mult: ("/",), ast.Div: ("*",), ast.FloorDiv: ("/", "*"), ast.Mod: ("//",),
    ast.Pow: ("*",), ast.BitAnd: ("|",), ast.BitOr: ("&",), ast.BitXor: ("|",), ast.LShift: (">>",),
    ast.RShift: ("<<",), ast.MatMult: (),
}  # fmt: skip


def _binary(node: ast.BinOp, text: _Text) -> Iterator[_Edit]:
    left, right = text.of(node.left), text.of(node.right)
    if not _is_text(node.left) and not _is_text(node.right):
        for word in _ARITHMETIC[type(node.op)]:
            yield _Edit("arithmetic-swap", node, f"{left} {word} {right}")
    yield _Edit("arithmetic-drop-right", node, left)
    yield _Edit("arithmetic-drop-left", node, right)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _constant(node: ast.Constant, parent: ast.AST | None, place: _Place) -> Iterator[_Edit]:
    value = node.value
    if isinstance(value, bool):
        yield _Edit("bool-swap", node, str(not value))
    elif isinstance(value, int):
        if isinstance(parent, ast.Subscript):
            yield _Edit("index-last", node, "-1") if value == 0 else _Edit("index-first", node, "0")
            return
        yield _Edit("number+1", node, str(value + 1))
        if value > 0 and not isinstance(parent, ast.UnaryOp):
            yield _Edit("number-1", node, str(value - 1))
    elif isinstance(value, float):
        yield _Edit("float-double", node, repr(value * 2 if value else 1.0))
        if value and not place.in_function:
            yield _Edit("float-half", node, repr(value / 2))
    elif isinstance(value, str) and _is_key(node, parent):
        yield _Edit("string-change", node, repr(f"{value}?"))


def _is_key(node: ast.expr, parent: ast.AST | None) -> bool:
    """Whether a text is compared or looked up, and not only shown."""
    if isinstance(parent, ast.Compare | ast.Subscript):
        return True
    if isinstance(parent, ast.Dict):
        return node in parent.keys
    if isinstance(parent, ast.Call) and node in parent.args:
        return _name(parent.func) in ("get", "pop", "startswith", "endswith", "getattr", "setdefault", "split")
    return False


def _formatted(node: ast.JoinedStr, parent: ast.AST | None) -> Iterator[_Edit]:
    """Of f-strings that are keys or join data, each value fixed or left out; words for people are left alone."""
    words = "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
    if not (_is_key(node, parent) or (isinstance(parent, ast.Call) and not re.search("[A-Za-z]", words))):
        return
    for field in node.values:
        if isinstance(field, ast.FormattedValue):
            parts = [ast.Constant("?") if part is field else part for part in node.values]
            yield _Edit("format-field", node, ast.unparse(ast.JoinedStr(parts)))


_SWAPS = {
    "min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum",
    "floor": "ceil", "ceil": "floor", "argmin": "argmax", "argmax": "argmin", "startswith": "endswith",
    "endswith": "startswith", "is_file": "is_dir",
}  # fmt: skip
_UNWRAPPED = {"sorted", "abs", "sqrt", "reversed", "round", "max", "min", "maximum", "minimum", "set", "frozenset"}
_METHODS = {"strip", "lstrip", "rstrip", "lower", "upper", "casefold", "resolve", "absolute"}


def _call(node: ast.Call, text: _Text) -> Iterator[_Edit]:
    name = _name(node.func)
    plain = [one for one in node.args if not isinstance(one, ast.Starred)]
    if name in _SWAPS:
        whole = text.of(node.func)
        yield _Edit("call-swap", node.func, whole[: len(whole) - len(name)] + _SWAPS[name])
    if name in _UNWRAPPED and len(plain) == len(node.args) and len(plain) <= 2:
        yield from (_Edit("call-unwrap", node, text.of(one)) for one in plain if not isinstance(one, ast.GeneratorExp))
    elif name in ("min", "max"):
        for place, one in enumerate(node.args):
            rest = ", ".join(text.of(other) for number, other in enumerate(node.args) if number != place)
            yield _Edit("call-unwrap", one, "") if not rest else _Edit("call-unwrap", node, f"{name}({rest})")
    if name == "next" and len(node.args) == 2:
        yield _Edit("next-default", node, text.of(node.args[1]))
    if name in _METHODS and isinstance(node.func, ast.Attribute):
        yield _Edit("call-unwrap", node, text.of(node.func.value))
    for dropped in node.keywords:
        if dropped.arg is None:
            continue
        parts = [text.of(one) for one in node.args]
        parts += [
            f"{other.arg}={text.of(other.value)}" if other.arg else f"**{text.of(other.value)}"
            for other in node.keywords
            if other is not dropped
        ]
        yield _Edit(f"keyword-drop-{dropped.arg}", node, f"{text.of(node.func)}({', '.join(parts)})")


def _collection(
    node: ast.Tuple | ast.List | ast.Set | ast.Dict, parent: ast.AST | None, text: _Text
) -> Iterator[_Edit]:
    if isinstance(node, ast.Dict):
        pairs = [
            f"{text.of(key)}: {text.of(value)}" if key is not None else f"**{text.of(value)}"
            for key, value in zip(node.keys, node.values, strict=True)
        ]
        for place in range(len(pairs)):
            yield _Edit(f"item-drop-{place + 1}", node, "{" + ", ".join([*pairs[:place], *pairs[place + 1 :]]) + "}")
        return
    if not isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
        return
    unpacked = isinstance(parent, ast.Assign) and isinstance(parent.targets[0], ast.Tuple)
    if isinstance(node, ast.Tuple) and (
        unpacked or isinstance(parent, ast.Return | ast.Subscript | ast.For | ast.Yield)
    ):
        return  # where so many values are unpacked, one fewer only ends in a ValueError
    parts = [text.of(part) for part in node.elts]
    for place in range(len(parts)):
        rest = [*parts[:place], *parts[place + 1 :]]
        joined = ", ".join(rest)
        if isinstance(node, ast.Tuple):
            made = f"({joined},)" if rest else "()"
        elif isinstance(node, ast.List):
            made = f"[{joined}]"
        else:
            made = "{" + joined + "}" if rest else "set()"
        yield _Edit(f"item-drop-{place + 1}", node, made)


def _slice(node: ast.Slice, text: _Text) -> Iterator[_Edit]:
    lower, upper, step = (text.of(one) if one else "" for one in (node.lower, node.upper, node.step))
    tail = f":{step}" if step else ""
    if lower:
        yield _Edit("slice-drop-lower", node, f":{upper}{tail}")
    if upper:
        yield _Edit("slice-drop-upper", node, f"{lower}:{tail}")
    if step:
        yield _Edit("slice-drop-step", node, f"{lower}:{upper}")


def _statement(node: ast.stmt, place: _Place) -> Iterator[_Edit]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await | ast.Yield | ast.YieldFrom):
        yield _Edit("call-delete", node, "pass")
    elif isinstance(node, ast.AugAssign):
        yield _Edit("augment-delete", node, "pass")
    elif isinstance(node, ast.Assign) and place.in_function:
        # A name that nothing else sets would only be missing; what is set before keeps its old value.
        kept = (ast.Attribute, ast.Subscript)
        if all(isinstance(target, kept) for target in node.targets) or _sets_again(node):
            yield _Edit("assign-delete", node, "pass")
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield _Edit("return-none", node, "return None")
    elif isinstance(node, ast.Continue):
        yield _Edit("continue-delete", node, "pass")
        yield _Edit("continue-break", node, "break")
    elif isinstance(node, ast.Break):
        yield _Edit("break-delete", node, "pass")


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _sets_again(node: ast.Assign) -> bool:
    """Whether a value is made from the name it is given to, as in `x = f(x)`."""
    names = {one.id for target in node.targets for one in ast.walk(target) if isinstance(one, ast.Name)}
    return any(isinstance(one, ast.Name) and one.id in names for one in ast.walk(node.value))
