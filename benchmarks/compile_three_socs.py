"""How much more do three SoCs cost than one? Both compiled in one run, each with an empty cache, and the ratio.

    python benchmarks/compile_three_socs.py [--model tiny_llama] [--mode hybrid] [--repeat 1]

The two arms alternate, so that a slower hour hits both. Only compiling is timed; nothing runs on a phone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from harness.build.builder import Builder, Request
from harness.build.cache import locate
from harness.matrix import cells
from harness.model_file import Mode
from harness.models import load_models
from harness.paths import MODELS
from harness.soc import find_soc
from harness.target import Target
from harness.toolchain.environment import find_toolchain, fingerprint

ARMS = {"one": ("SM8650",), "three": ("SM8550", "SM8650", "SM8750")}


def compile_once(model: str, mode: Mode, socs: tuple[str, ...]) -> float:
    """Seconds to compile a model for some SoCs from nothing."""
    toolchain = find_toolchain()
    known = fingerprint(toolchain)
    spec = load_models(MODELS)[model]
    with tempfile.TemporaryDirectory(prefix="htpfarm-benchmark-") as cache:
        # The SDK view is not compiling: it stays where it is, the artifacts go to a cache of their own.
        os.environ["HTPFARM_CACHE"] = cache
        wanted = [
            Request(cell, Target.SIM, locate(spec, mode, cell.soc, Target.SIM, cell.lengths, known))
            for cell in cells([spec], [mode], [find_soc(soc) for soc in socs])
        ]
        start = time.monotonic()
        for result in Builder(toolchain, Path(cache) / "logs").build(wanted):
            if result.error:
                raise result.error
        return time.monotonic() - start


def main() -> None:
    """Runs both arms and prints their times and the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny_llama")
    parser.add_argument("--mode", default="hybrid", type=Mode)
    parser.add_argument("--repeat", default=1, type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    find_toolchain()
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(options.repeat):
        for arm, socs in ARMS.items():
            seconds[arm].append(round(compile_once(options.model, options.mode, socs), 1))
            print(f"{arm:>5} ({', '.join(socs)}): {seconds[arm][-1]:.1f} s", flush=True)
    ratio = statistics.median(seconds["three"]) / statistics.median(seconds["one"])
    print(json.dumps({"seconds": seconds, "ratio": round(ratio, 3)}) if options.json else f"ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
