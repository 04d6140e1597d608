"""The process behind `harness.twins.parity`: `python -m harness.twins.parity_worker MODEL.yaml …`.

With the toolchain's environment; prints a line of JSON for each model.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from harness.build import upstream
from harness.build.checkpoint import load_state_dict
from harness.build.score import prepare_text
from harness.evaluate.sqnr import sqnr_db
from harness.model_file import Mode
from harness.models import ModelSpec, load_model
from harness.toolchain.mends import write_params
from harness.twins.parity import MARK, Parity
from harness.weights import find_weights

_TOKENS = 128


def compare(spec: ModelSpec) -> Parity:
    """Compares the two over the start of the model's held-out text."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="htpfarm-parity-") as name:
        scratch = Path(name)
        text = prepare_text(spec, min(_TOKENS, spec.lengths.max_seq_len), scratch)
        tokens = list(text.held_out.windows[0].inputs)
        checkpoint = scratch / "checkpoint.pt"
        torch.save(load_state_dict(spec), checkpoint)
        params = write_params(spec.params.model_args(), scratch)
        arguments = upstream.control_args(spec, Mode.KV, spec.lengths, params, checkpoint)
        ours = upstream.full_logits(upstream.construct(spec, arguments).calibration_prefill, tokens)
    theirs = transformers_logits(spec, tokens)
    chosen, chosen_here = theirs.argmax(-1), ours.argmax(-1)
    return Parity(
        spec.name,
        round(sqnr_db(theirs.numpy(), ours.numpy()), 1),
        len(tokens),
        round(float(theirs.std(-1).mean()), 3),
        len(set(chosen.tolist())),
        round(float((chosen == torch.tensor(tokens)).float().mean()), 3),
        round(_context(spec, tokens, theirs), 3),
        round(float((chosen == chosen_here).float().mean()), 4),
        round(time.monotonic() - start, 2),
    )


def _context(spec: ModelSpec, tokens: list[int], logits: torch.Tensor) -> float:
    half = len(tokens) // 2
    other = transformers_logits(spec, [*reversed(tokens[:half]), *tokens[half:]])
    change = (other - logits)[half:].square().mean() / logits[half:].square().mean()
    return math.sqrt(float(change))


@torch.no_grad()
def transformers_logits(spec: ModelSpec, tokens: list[int]) -> torch.Tensor:
    """Logits [len(tokens), vocab] float32 of the model as transformers loads its folder."""
    from transformers import AutoModelForCausalLM

    folder = find_weights(spec).folder
    model = AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    logits: torch.Tensor = model(torch.tensor([tokens])).logits[0].float()
    return logits


def main() -> None:
    """Entry point."""
    torch.set_num_threads(1)
    for argument in sys.argv[1:]:
        print(MARK + json.dumps(asdict(compare(load_model(Path(argument))))), flush=True)


if __name__ == "__main__":
    main()
