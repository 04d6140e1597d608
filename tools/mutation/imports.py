"""Which modules of a package import which: those that do not depend on a mutated one can be imported beforehand."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path


def module_name(file: str) -> str:
    """`harness/verdicts/bound.py` → `harness.verdicts.bound`."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def import_graph(root: Path, package: str) -> dict[str, frozenset[str]]:
    """Module → modules of the package that importing it imports."""
    files = {module_name(str(path.relative_to(root))): path for path in sorted((root / package).rglob("*.py"))}
    return {name: frozenset(_imported(name, path, files)) for name, path in files.items()}


def dependents(module: str, graph: Mapping[str, frozenset[str]]) -> set[str]:
    """The module and all that import it, directly or not."""
    found, waiting = {module}, [module]
    while waiting:
        wanted = waiting.pop()
        for name, imported in graph.items():
            if name not in found and wanted in imported:
                found.add(name)
                waiting.append(name)
    return found


def _imported(name: str, path: Path, files: Mapping[str, Path]) -> set[str]:
    # A module's packages are imported before it, and a package that cannot be is none for what is in it.
    parts = name.split(".")
    found = {".".join(parts[:count]) for count in range(1, len(parts))}
    for node in _at_import(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for one in names:
            pieces = one.split(".")
            found |= {".".join(pieces[:count]) for count in range(1, len(pieces) + 1)} & files.keys()
    return found - {name}


def _at_import(tree: ast.AST) -> list[ast.AST]:
    """The nodes outside functions and outside what only type checkers see."""
    found: list[ast.AST] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        found += [node, *_at_import(node)]
    return found
