"""The float model before and after a rotation: `spinquant_logits.py JSON`, a list of [params or null, spinquant].

Prints `MOVED {"logits": …, "by_mistake": …}` for each: the largest difference of a logit as a fraction of the logits'
range, through upstream's own model; `by_mistake` when the output layer is left as it was. null: the model that ships.
A program of its own, since the toolchain's environment must be there before the process starts.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from random_states import random_params, random_spec, random_state

from harness.build import upstream
from harness.build.checkpoint import load_state_dict
from harness.build.spinquant import State, rotate
from harness.model_file import Lengths, Mode
from harness.models import ModelSpec, load_models
from harness.paths import MODELS
from harness.recipes import SpinQuant
from harness.toolchain.mends import write_params

CONTEXT = 32


def main() -> None:
    torch.set_num_threads(1)
    for changes, asked in json.loads(sys.argv[1]):
        if changes is None:
            spec = load_models(MODELS)["tiny_llama"]
            state = load_state_dict(spec)
        else:
            spec = random_spec(random_params(**changes))
            state = random_state(spec.params, seed=3, outliers=8.0)
        turned = rotate(state, spec.params, SpinQuant(**asked))
        wrong = {**turned, "output.weight": state["output.weight"]}
        before, after, mistaken = (logits(spec, each) for each in (state, turned, wrong))
        moved = {"logits": distance(after, before), "by_mistake": distance(mistaken, before)}
        print("MOVED " + json.dumps(moved), flush=True)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / (other.max() - other.min()))


def logits(spec: ModelSpec, state: State) -> torch.Tensor:
    """Of a whole context, through the decoder with the layout of weights that is compiled."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(state, folder / "c.pt")
        params = write_params(spec.params.model_args(), folder)
        args = upstream.control_args(spec, Mode.KV, Lengths(CONTEXT, 4), params, folder / "c.pt")
        decoders = upstream.construct(spec, args)
    tokens = torch.randint(spec.params.vocab_size, (CONTEXT,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return upstream.full_logits(decoders.calibration_prefill, tokens.tolist())


if __name__ == "__main__":
    main()
