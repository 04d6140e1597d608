"""`htpfarm matrix`: the compatibility matrix of the history, or of given runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.compatibility.matrix import compatibility
from harness.compatibility.result import RunFolders, Source
from harness.errors import ConfigError
from harness.files import write_atomically
from harness.paths import MODELS, REPOSITORY

if TYPE_CHECKING:
    from contextlib import ExitStack

TEXT = "model × mode × SoC: what runs, fails, is unsupported or was not tried, with numbers and how old they are"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options; `--json` is every verb's."""
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="runs' folders; default: all that is known")
    parser.add_argument("--reports", type=Path, default=REPOSITORY / "reports", help="where runs are (reports/)")
    parser.add_argument("--history", metavar="URL", help="the history's database; default: $HTPFARM_HISTORY, reports/")
    parser.add_argument("--target", choices=("sim", "android"), help="only the simulator's, or only phones'")
    parser.add_argument("--all", action="store_true", help="with every model file on every chipset, by the gates")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page that needs no network")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write Markdown")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a row a cell")


def run(arguments: argparse.Namespace) -> int:
    """Prints the matrix, or writes it. Returns the exit status: 0, since a matrix only tells.

    Raises:
        ConfigError: there is nothing to make it from, or a named run has no records.
    """
    from contextlib import ExitStack

    from rich.console import Console

    from harness.compatibility import show
    from harness.compatibility.sources import Joined
    from harness.results.records import utc_now

    with ExitStack() as stack:
        found = Joined(tuple(_sources(arguments, stack))).results()
        wanted = [result for result in found if arguments.target in (None, result.target)]
    matrix = compatibility(wanted, utc_now())
    if not matrix.rows:
        raise ConfigError(
            "no run has a cell to show",
            where=str(arguments.reports),
            remedy="run cells first (`pytest -m device`), or see what the gates say with --all",
        )
    renderers = {"html": show.render_html, "markdown": show.render_markdown, "csv": show.render_csv}
    written = [(getattr(arguments, name), render) for name, render in renderers.items() if getattr(arguments, name)]
    for path, render in written:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, render(matrix))
    if arguments.json:
        print(show.render_json(matrix), end="")
    elif written:
        print("\n".join(str(path) for path, _ in written))
    else:
        show.print_matrix(matrix, Console())
    return 0


def _sources(arguments: argparse.Namespace, stack: ExitStack) -> Sequence[Source]:
    from harness.compatibility.sources import FromHistory, Gates
    from harness.models import load_models
    from harness.soc import SOCS
    from harness.target import Target
    from harness.toolchain.version import qnn_version_here

    sources: list[Source] = []
    if arguments.runs:
        sources.append(RunFolders(tuple(arguments.runs)))
    else:
        from harness.export.past import history_url

        if url := history_url(arguments.reports, arguments.history):
            from harness.history.store import History

            sources.append(FromHistory(stack.enter_context(History(url)), arguments.target))
        sources.append(RunFolders.below(arguments.reports))
    if arguments.all:
        target = Target(arguments.target or "android")
        sources.append(Gates(list(load_models(MODELS).values()), list(SOCS.values()), target, qnn_version_here()))
    return sources
