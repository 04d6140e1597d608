"""A against B on the rack: an equal candidate, one slower on purpose in its runner, one made wrong by its quantiser,
and one with newer QNN libraries, which fail to compile what the base's do.

    python benchmarks/ab_rack.py equal [--runs 20]
    python benchmarks/ab_rack.py slow [--factor 1.3]
    python benchmarks/ab_rack.py wrong [--coarse 16]
    python benchmarks/ab_rack.py qnn [--qnn 2.7.0]

Candidates are copies of the installed ExecuTorch (links, but for what is changed) in environments of their own, that
are gone afterwards. `slow` changes the bindings that its runner calls, and compiles nothing: the artifacts are the
cache's. `wrong` makes the quantiser's activations coarser, which compiles the tiny model again. `qnn` is
benchmarks/qnn_regression.py's model in kv and hybrid on this environment's QNN libraries (2.48) and on 2.51, whose
hybrid must be a BUILD failure with its signature in the verdict, and in the matrix with the last good version. Exit
status 1 if the verdict is not the one expected.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import yaml
from qnn_regression import PARAMS
from random_model import make_model

from harness.models import ModelSpec, load_model
from harness.paths import MODELS, REPOSITORY, cache_root
from harness.toolchain.environment import find_toolchain
from harness.toolchain.qnn import PACKAGE
from harness.twins.tokenizer import write_tokenizer

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

# Made wrong on purpose: activations in steps {factor} times as wide.
from torchao.quantization.pt2e import MinMaxObserver

_calculate_qparams = MinMaxObserver.calculate_qparams


def _coarse(self):
    scale, zero_point = _calculate_qparams(self)
    return scale * {factor}, zero_point // {factor}


MinMaxObserver.calculate_qparams = _coarse
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


def make_coarse(copy: Path, factor: int) -> None:
    """Changes the copy's quantiser."""
    file = copy / "backends" / "qualcomm" / "quantizer" / "qconfig.py"
    text = file.read_text(encoding="utf-8")
    file.unlink()
    file.write_text(text + COARSE.format(factor=factor), encoding="utf-8")


def other_qnn(folder: Path, version: str) -> Path:
    """An environment with this one's packages and QNN libraries of another version; returns its prefix."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "this.pth").write_text(f"{find_toolchain().executorch.parent}\n", encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, f"{PACKAGE}=={version}"],
        check=True,
        timeout=900,
    )
    return folder


def two_layers(folder: Path) -> ModelSpec:
    """benchmarks/qnn_regression.py's model, with a tokenizer that has the special pieces of SmolLM2's chat."""
    # Random weights predict no text: how far quantising moves its perplexity says nothing.
    bounds = {"qdq_vs_fp_ppl": 10.0}
    file = make_model(folder, "SmolLM2's shape in two layers", PARAMS, ["kv", "hybrid"], bounds=bounds).file
    text = (MODELS / "tiny_llama" / "calibration.txt").read_text(encoding="utf-8")
    write_tokenizer(load_model(MODELS / "smollm2_135m.yaml"), text, PARAMS["vocab_size"], folder)
    known = yaml.safe_load(file.read_text(encoding="utf-8"))
    known["tokenizer"] = {"kind": "huggingface", "path": "tokenizer.json"}
    file.write_text(yaml.safe_dump(known), encoding="utf-8")
    return load_model(file)


def qnn_problems(reports: Path, output: str) -> list[str]:
    """What a run of the two QNN versions does not show that it should; prints the matrix."""
    argv = [sys.executable, "-m", "harness.cli", "matrix", "--reports", str(reports)]
    drawn, data = (
        subprocess.run([*argv, *more], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=True).stdout
        for more in ((), ("--json",))
    )
    print(drawn)
    cells = {f"{cell['model']}-{cell['mode']}": cell for cell in json.loads(data)["cells"]}
    failing, running = cells["two_layers-hybrid"], cells["two_layers-kv"]
    wanted = {
        "kv runs": running["state"] == "runs",
        "hybrid fails": failing["state"] == "fails",
        "its class is BUILD": failing["failure_class"] == "BUILD",
        "its signature is named": failing["signature"] == "op-not-prepared",
        "the compiler's line is shown": "could not create op: q::" in failing["evidence"],
        "the last good run is the base": str(failing["last_good_run"]).endswith("-base"),
        "both versions are named": "QNN 2.51" in failing["versions"] and "QNN 2.48" in failing["last_good_versions"],
        "the gate says BUILD": "BUILD" in output,
    }
    return [what for what, shown in wanted.items() if not shown]


def run(
    base: Path, candidate: Path, reports: Path, tokens: int, modes: str, models: str = "tiny_llama"
) -> tuple[int, str]:
    """`pytest -m device --ab`; its exit status and what it printed."""
    rack = reports / "rack.yaml"
    reports.mkdir(parents=True, exist_ok=True)
    rack.write_text(RACK, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "device", "-p", "no:cacheprovider", "--rack", str(rack),
         "--models", models, "--modes", modes, "--reports", str(reports), "--ab-tokens", str(tokens),
         "--ab", str(base), str(candidate)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=7200, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def main() -> int:
    """Prints each run's verdicts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=("equal", "slow", "wrong", "qnn"))
    parser.add_argument("--runs", type=int, default=20, help="of equal sides")
    parser.add_argument("--factor", type=float, default=1.3, help="how much slower")
    parser.add_argument("--coarse", type=int, default=16, help="how much wider the quantiser's steps")
    parser.add_argument("--tokens", type=int, default=16, help="that a timed session generates")
    parser.add_argument("--mode", default="kv")
    parser.add_argument("--qnn", default="2.7.0", metavar="VERSION", help=f"the candidate's {PACKAGE}")
    arguments = parser.parse_args()
    base = Path(sys.prefix)
    wrong = 0
    # In the cache's folder and not in /tmp, which phones have for themselves.
    cache_root().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ab-", dir=cache_root()) as name:
        scratch = Path(name)
        candidate, models, modes = base, "tiny_llama", arguments.mode
        if arguments.case == "qnn":
            candidate = other_qnn(scratch / "candidate", arguments.qnn)
            spec = two_layers(scratch / "two_layers")
            models, modes = str(spec.file), "kv,hybrid"
        elif arguments.case != "equal":
            candidate = scratch / "candidate"
            copy = copied_environment(candidate)
            make_slow(copy, arguments.factor) if arguments.case == "slow" else make_coarse(copy, arguments.coarse)
        for number in range(arguments.runs if arguments.case == "equal" else 1):
            reports = scratch / "reports" / str(number)
            status, output = run(base, candidate, reports, arguments.tokens, modes, models)
            shown = [line for line in output.splitlines() if line.startswith(("gate:", "  1.", "│", "FAILED", "ERROR"))]
            print(f"run {number + 1}: exit status {status}", *shown[-16:], sep="\n", flush=True)
            wrong += (status != 0) if arguments.case == "equal" else (status != 1)
            if arguments.case == "qnn":
                for problem in qnn_problems(reports, output):
                    print(f"NOT: {problem}")
                    wrong += 1
            if status > 1:
                print(output[-4000:])
    print(f"not as expected: {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
