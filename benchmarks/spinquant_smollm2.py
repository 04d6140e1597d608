"""What do SpinQuant's rotations do to the perplexity of a model in 16a4w? Float and QDQ, the same tokens in every arm.

    python benchmarks/spinquant_smollm2.py [--model smollm2_135m] [--context 256] [--tokens 1024] [--kv-bits 16]
                                   [--arms none,r1,r2,r1+r2,r1+r2+r3] [--seeds 0] [--json]

Each arm is a process of its own: weights, rotations, upstream's quantiser with the model's own calibration text, and
the perplexity of held-out tokens in windows of the context, in torch; nothing is compiled. R3 is off where an arm does
not name it. The float perplexity has to be the same in all arms: rotations leave the float model as it is.

SmolLM2-135M takes about 7 GB and some minutes an arm on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.models import load_models
from harness.paths import MODELS
from harness.recipes import Recipe
from harness.toolchain.environment import find_toolchain

LIMIT_S = 7200.0


def measure(model: str, recipe: Recipe, context: int, tokens: int) -> dict[str, Any]:
    """Perplexities of one arm; needs the toolchain's environment."""
    import torch

    from harness.build import upstream
    from harness.build.checkpoint import load_state_dict
    from harness.build.score import prepare_text
    from harness.build.spinquant import rotate
    from harness.model_file import Lengths, Mode
    from harness.toolchain.mends import write_params

    start = time.monotonic()
    found = load_models(MODELS)[model]
    spec = replace(found, recipe=recipe, eval=replace(found.eval, tokens=tokens, kv_tokens=tokens))
    with tempfile.TemporaryDirectory(prefix="htpfarm-benchmark-") as name:
        folder = Path(name)
        torch.save(rotate(load_state_dict(spec), spec.params, recipe.spinquant), folder / "checkpoint.pt")
        params = write_params(spec.params.model_args(), folder)
        args = upstream.control_args(spec, Mode.KV, Lengths(context, 16), params, folder / "checkpoint.pt")
        decoders = upstream.construct(spec, args)
        text = prepare_text(spec, context, folder)

    def score() -> tuple[float, ...]:
        with torch.no_grad():
            return text.score(lambda ids: upstream.full_logits(decoders.calibration_prefill, ids))

    fp = score()
    upstream.quantise(decoders, text.calibration, context, "SM8650")
    qdq = score()
    return {
        "fp_ppl": round(math.exp(-sum(fp) / len(fp)), 4),
        "qdq_ppl": round(math.exp(-sum(qdq) / len(qdq)), 4),
        "tokens": len(qdq),
        "seconds": round(time.monotonic() - start, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def recipe_of(arm: str, seed: int, kv_bits: int) -> Recipe:
    """16a4w with the rotations that an arm names."""
    named = {} if arm == "none" else dict.fromkeys(arm.split("+"), True)
    spinquant = {"r3": False, **named, "seed": seed}
    return Recipe.model_validate({"name": "arm", "weights": "16a4w", "kv_bits": kv_bits, "spinquant": spinquant})


def main() -> None:
    """Runs the arms one after the other and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--context", default=256, type=int)
    parser.add_argument("--tokens", default=1024, type=int)
    parser.add_argument("--kv-bits", default=16, type=int)
    parser.add_argument("--arms", default="none,r1,r2,r1+r2,r1+r2+r3")
    parser.add_argument("--seeds", default="0", help="of the random signs; an arm without R1 and R2 runs once")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--recipe", help=argparse.SUPPRESS)  # the arm of a child
    options = parser.parse_args()
    if options.recipe:
        recipe = Recipe.model_validate_json(options.recipe)
        print("ARM " + json.dumps(measure(options.model, recipe, options.context, options.tokens)), flush=True)
        return
    rows = []
    for arm in options.arms.split(","):
        seeds = [int(seed) for seed in options.seeds.split(",")]
        for seed in seeds if "r1" in arm or "r2" in arm else seeds[:1]:
            recipe = recipe_of(arm, seed, options.kv_bits)
            same = ("--model", options.model, "--context", str(options.context), "--tokens", str(options.tokens))
            done = subprocess.run(
                [sys.executable, __file__, *same, "--recipe", recipe.model_dump_json()],
                env=find_toolchain().environment(),
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                check=False,
            )
            lines = [line for line in done.stdout.splitlines() if line.startswith("ARM ")]
            if not lines:
                sys.exit(f"{arm}: exit status {done.returncode}\n{done.stderr[-3000:]}")
            rows.append({"arm": arm, "seed": seed, **json.loads(lines[0].removeprefix("ARM "))})
            if not options.json:
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
