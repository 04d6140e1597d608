"""How much memory does compiling take, and how near is the estimate? Models of growing size, a worker each.

    python benchmarks/build_memory.py [--sizes small,wide,…] [--json]

Random weights in a shape like Llama's, 16-bit KV cache, contexts of 128 and 256. Measured is what the worker and its
children take together, at the most (proportional share, so that what they share counts once), as the builder's own
limit counts it. Last it fits the estimate's coefficients to these alone; `harness/build/preflight.py` holds those of
the run in the README and of SmolLM2-135M's compile together. Exit status 1 if an estimate is more than a quarter off.
Some minutes a model; keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from random_model import make_model

from harness.build.builder import Builder, Request
from harness.build.cache import locate
from harness.build.families import weight_count
from harness.build.preflight import estimate, features
from harness.matrix import cells
from harness.model_file import Mode
from harness.soc import find_soc
from harness.target import Target
from harness.toolchain.environment import find_toolchain, fingerprint

# name → dim, layers, heads, width of the feed-forward layer, vocabulary, context, modes
SIZES: dict[str, tuple[int, int, int, int, int, int, str]] = {
    "small": (256, 2, 4, 768, 1024, 128, "kv"),
    "wide": (768, 2, 12, 2048, 8192, 128, "kv"),
    "wide_hybrid": (768, 2, 12, 2048, 8192, 128, "hybrid"),
    "vocabulary": (512, 2, 8, 1536, 49152, 128, "kv"),
    "deep": (512, 8, 8, 1536, 2048, 256, "kv"),
    "large": (1536, 3, 24, 4096, 4096, 128, "kv"),
    "large_hybrid": (1536, 3, 24, 4096, 4096, 128, "hybrid"),
}
ALLOWED = 0.25


@dataclass(frozen=True)
class Measured:
    """One compile: the model's weights, peak memory measured and estimated in MB, and seconds it took."""

    name: str
    modes: str
    weights: int
    context: int
    peak_mb: float
    estimated_mb: float
    seconds: float
    features: tuple[float, ...]

    @property
    def off(self) -> float:
        """The estimate's error, as a fraction of what was measured."""
        return self.estimated_mb / self.peak_mb - 1


def measure(name: str, scratch: Path) -> Measured:
    """Compiles one model for SM8650."""
    dim, layers, heads, hidden, vocabulary, context, mode = SIZES[name]
    params = {
        **{"dim": dim, "n_layers": layers, "n_heads": heads, "n_kv_heads": heads // 2, "hidden_dim": hidden},
        **{"vocab_size": vocabulary, "norm_eps": 1.0e-5, "rope_theta": 10000.0},
    }
    lengths = {"max_seq_len": context, "prefill_ar_len": 32}
    spec = make_model(scratch / name, f"{name}, random weights", params, [mode], lengths=lengths)
    toolchain = find_toolchain()
    known = fingerprint(toolchain)
    requests = [
        Request(cell, Target.SIM, locate(spec, cell.mode, cell.soc, Target.SIM, cell.lengths, known))
        for cell in cells([spec], [Mode(mode)], [find_soc("SM8650")])
    ]
    (result,) = Builder(toolchain, scratch / "logs").build(requests)
    if result.error:
        raise result.error
    found = estimate(spec, [Mode(mode)])
    return Measured(
        name,
        mode,
        weight_count(spec.params),
        context,
        result.peak_mb,
        found.memory_mb,
        result.seconds,
        features(spec, [Mode(mode)]),
    )


def main() -> int:
    """Prints a row a model, then the fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=",".join(SIZES), help="names, comma-separated")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="htpfarm-memory-") as folder:
        os.environ["HTPFARM_CACHE"] = f"{folder}/cache"
        for name in arguments.sizes.split(","):
            one = measure(name, Path(folder))
            results.append(one)
            print(
                f"{one.name:<14}{one.modes:<8}{one.weights / 1e6:>7.1f} M weights  measured {one.peak_mb:>6.0f} MB  "
                f"estimated {one.estimated_mb:>6.0f} MB ({one.off:+.0%})  {one.seconds:.0f} s",
                file=sys.stderr if arguments.json else sys.stdout,
                flush=True,
            )
    rows = np.array([one.features for one in results])
    peaks = np.array([one.peak_mb for one in results])
    # Relative errors count, not megabytes: each row is divided by its peak.
    fitted, *_ = np.linalg.lstsq(rows / peaks[:, None], np.ones(len(peaks)), rcond=None)
    if arguments.json:
        print(json.dumps({"compiles": [asdict(one) for one in results], "fitted": list(fitted)}, indent=1))
    else:
        print("fitted:", ", ".join(f"{value:.4g}" for value in fitted))
    return int(any(abs(one.off) > ALLOWED for one in results))


if __name__ == "__main__":
    sys.exit(main())
