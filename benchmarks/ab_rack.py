"""A against B on the rack: an equal candidate, one slower on purpose in its runner, one made wrong by its quantiser.

    python benchmarks/ab_rack.py equal [--runs 20]
    python benchmarks/ab_rack.py slow [--factor 1.3]
    python benchmarks/ab_rack.py wrong

Candidates are copies of the installed ExecuTorch (links, but for what is changed) in environments of their own, that
are gone afterwards. `slow` changes the bindings that its runner calls, and compiles nothing: the artifacts are the
cache's. `wrong` makes the quantiser's activations coarser, which compiles the tiny model again. Exit status 1 if the
verdict is not the one expected.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from harness.paths import REPOSITORY
from harness.toolchain.environment import find_toolchain

RACK = "version: 1\nphones:\n  - name: one\n    virtual: galaxy_s24\n"
SLOW = '''
"""The bindings of a copied ExecuTorch, slower on purpose: each execution takes {factor} times as long."""
import importlib.machinery, importlib.util, pathlib, time

_place = next(pathlib.Path({folder!r}).glob("_C.*.so"))
_loader = importlib.machinery.ExtensionFileLoader("executorch.extension.pybindings._C", str(_place))
_spec = importlib.util.spec_from_file_location("executorch.extension.pybindings._C", _place, loader=_loader)
_real = importlib.util.module_from_spec(_spec)
_loader.exec_module(_real)


class _Program:
    def __init__(self, program):
        self._program = program

    def load_method(self, name):
        method = self._program.load_method(name)

        def call(*arguments):
            start = time.perf_counter()
            outputs = method(*arguments)
            time.sleep(({factor} - 1) * (time.perf_counter() - start))
            return outputs

        return call


def _load_program(path):
    return _Program(_real._load_program(path))


def __getattr__(name):
    return getattr(_real, name)
'''
COARSE = """

# Made wrong on purpose: activations in steps 256 times as wide.
_calculate_qparams = MovingAverageMinMaxObserver.calculate_qparams


def _coarse(self):
    scale, zero_point = _calculate_qparams(self)
    return scale * 256, zero_point // 256


MovingAverageMinMaxObserver.calculate_qparams = _coarse
"""


def copied_environment(folder: Path) -> Path:
    """An environment with this one's packages and a copy of its ExecuTorch; returns the copy's folder."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    installed = find_toolchain().executorch
    (site / "this.pth").write_text(f"{installed.parent}\n", encoding="utf-8")
    subprocess.run(["cp", "-rs", str(installed), str(site / "executorch")], check=True, timeout=300)
    return site / "executorch"


def make_slow(copy: Path, factor: float) -> None:
    """Wraps the copy's bindings."""
    bindings = copy / "extension" / "pybindings"
    for library in bindings.glob("_C.*.so"):
        library.unlink()
    folder = str(find_toolchain().executorch / "extension" / "pybindings")
    (bindings / "_C.py").write_text(SLOW.format(factor=factor, folder=folder), encoding="utf-8")


def make_coarse(copy: Path) -> None:
    """Changes the copy's quantiser."""
    file = copy / "backends" / "qualcomm" / "quantizer" / "qconfig.py"
    text = file.read_text(encoding="utf-8")
    file.unlink()
    file.write_text(text + COARSE, encoding="utf-8")


def run(base: Path, candidate: Path, reports: Path, tokens: int, mode: str) -> tuple[int, str]:
    """`pytest -m device --ab`; its exit status and what it printed."""
    rack = reports / "rack.yaml"
    reports.mkdir(parents=True, exist_ok=True)
    rack.write_text(RACK, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "device", "-p", "no:cacheprovider", "--rack", str(rack),
         "--modes", mode, "--reports", str(reports), "--ab-tokens", str(tokens), "--ab", str(base), str(candidate)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=7200, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def main() -> int:
    """Prints each run's verdicts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=("equal", "slow", "wrong"))
    parser.add_argument("--runs", type=int, default=20, help="of equal sides")
    parser.add_argument("--factor", type=float, default=1.3, help="how much slower")
    parser.add_argument("--tokens", type=int, default=16, help="that a timed session generates")
    parser.add_argument("--mode", default="kv")
    arguments = parser.parse_args()
    base = Path(sys.prefix)
    wrong = 0
    # In the cache's folder and not in /tmp, which phones have for themselves.
    from harness.paths import cache_root

    with tempfile.TemporaryDirectory(prefix="ab-", dir=cache_root()) as name:
        scratch = Path(name)
        candidate = base
        if arguments.case != "equal":
            candidate = scratch / "candidate"
            copy = copied_environment(candidate)
            make_slow(copy, arguments.factor) if arguments.case == "slow" else make_coarse(copy)
        for number in range(arguments.runs if arguments.case == "equal" else 1):
            reports = scratch / "reports" / str(number)
            status, output = run(base, candidate, reports, arguments.tokens, arguments.mode)
            shown = [line for line in output.splitlines() if line.startswith(("gate:", "  1.", "│", "FAILED", "ERROR"))]
            print(f"run {number + 1}: exit status {status}", *shown[-16:], sep="\n", flush=True)
            wrong += (status != 0) if arguments.case == "equal" else (status != 1)
            if status > 1:
                print(output[-4000:])
    print(f"not as expected: {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
