"""A regression between two versions of the QNN libraries, as the harness shows it: the same cells, compiled by both.

    python benchmarks/qnn_regression.py [VERSION ...]        (2.4.0 and 2.7.0)

The model has SmolLM2-135M's shape (9 heads, 3 KV heads, dim 576, 16-bit KV cache) in two layers with random weights and
the tiny model's vocabulary. Each version is installed into a folder of its own that is gone afterwards (about 240 MB).
Exit status 1 if a version fails where the first one passes.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from harness.build.builder import Builder, Request
from harness.build.cache import locate
from harness.matrix import cells
from harness.model_file import Mode
from harness.models import ModelSpec, load_model
from harness.paths import MODELS
from harness.soc import find_soc
from harness.target import Target
from harness.toolchain.environment import find_toolchain, fingerprint
from harness.toolchain.qnn import PACKAGE, lay_out

VERSIONS = ("2.4.0", "2.7.0")
PARAMS = {
    "dim": 576,
    "n_layers": 2,
    "n_heads": 9,
    "n_kv_heads": 3,
    "vocab_size": 1024,
    "hidden_dim": 1536,
    "norm_eps": 1.0e-5,
    "rope_theta": 100000.0,
}


def make_model(folder: Path) -> ModelSpec:
    """Writes the model's folder: random weights from a fixed seed, the tiny model's tokenizer and texts."""
    tiny = MODELS / "tiny_llama"
    for name in ("tokenizer.model", "heldout.txt", "calibration.txt"):
        shutil.copy(tiny / name, folder / name)
    generator = torch.Generator().manual_seed(0)
    dim, hidden, kv = PARAMS["dim"], PARAMS["hidden_dim"], PARAMS["dim"] // PARAMS["n_heads"] * PARAMS["n_kv_heads"]

    def draw(rows: float, columns: float) -> torch.Tensor:
        return torch.randn(int(rows), int(columns), generator=generator) * 0.02

    state = {"tok_embeddings.weight": draw(PARAMS["vocab_size"], dim), "norm.weight": torch.ones(int(dim))}
    for layer in range(int(PARAMS["n_layers"])):
        shapes = {"wq": (dim, dim), "wk": (kv, dim), "wv": (kv, dim), "wo": (dim, dim)}
        state |= {f"layers.{layer}.attention.{name}.weight": draw(*shape) for name, shape in shapes.items()}
        shapes = {"w1": (hidden, dim), "w2": (dim, hidden), "w3": (hidden, dim)}
        state |= {f"layers.{layer}.feed_forward.{name}.weight": draw(*shape) for name, shape in shapes.items()}
        state |= {f"layers.{layer}.{name}.weight": torch.ones(int(dim)) for name in ("attention_norm", "ffn_norm")}
    save_file(state, folder / "model.safetensors")
    file = {
        "name": folder.name,
        "title": "SmolLM2's shape in two layers",
        "decoder": "smollm2_135m",
        "license": "Apache-2.0",
        "params": PARAMS,
        "checkpoint": {"format": "meta", "path": "model.safetensors"},
        "tokenizer": {"kind": "sentencepiece", "path": "tokenizer.model"},
        "instruct": False,
        "needs": {"kv_bits": 16},
        "modes": ["kv", "hybrid"],
        "lengths": {"max_seq_len": 128, "prefill_ar_len": 32},
        "eval": {"text": "heldout.txt", "tokens": 64},
        "calibration": {"text": "calibration.txt", "samples": 1},
        "prompts": ["In the beginning"],
        "max_new_tokens": 16,
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(file), encoding="utf-8")
    return load_model(folder / "model.yaml")


def compile_with(version: str, spec: ModelSpec, scratch: Path) -> dict[str, str]:
    """Mode → `compiles`, or the line of the compiler's log that says why not."""
    packages = scratch / version
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", packages, f"{PACKAGE}=={version}"],
        check=True,
        timeout=900,
        capture_output=True,
    )
    toolchain = dataclasses.replace(find_toolchain(), qnn=lay_out(packages / "onnxruntime_qnn", version))
    known = fingerprint(toolchain)
    requests = [
        Request(cell, Target.SIM, locate(spec, cell.mode, cell.soc, Target.SIM, cell.lengths, known))
        for cell in cells([spec], [Mode.KV, Mode.HYBRID], [find_soc("SM8650")])
    ]
    found = {}
    for result in Builder(toolchain, scratch / "logs").build(requests):
        found[str(result.request.cell.mode)] = "compiles" if result.error is None else _reason(result.error.remedy)
    return found


def _reason(remedy: str) -> str:
    """The first error of the log that the build's remedy names."""
    log = Path(remedy.removeprefix("read "))
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else [remedy]
    errors = [line.strip() for line in lines if "could not create op" in line or "graph prepare failed" in line]
    return f"FAILS: {(errors or lines[-1:])[0][-160:]}"


def main() -> int:
    """Prints a row a version and mode."""
    results: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="htpfarm-regression-") as name:
        scratch = Path(name)
        os.environ["HTPFARM_CACHE"] = str(scratch / "cache")
        folder = scratch / "two_layers"
        folder.mkdir()
        spec = make_model(folder)
        for version in sys.argv[1:] or VERSIONS:
            results[version] = compile_with(version, spec, scratch)
            for mode, what in sorted(results[version].items()):
                print(f"{version:<8}{spec.name}-{mode}-SM8650  {what}", flush=True)
    first, *others = results.values()
    worse = [
        mode for other in others for mode, what in other.items() if what != "compiles" and first[mode] == "compiles"
    ]
    print(f"regressed: {', '.join(sorted(worse)) or 'none'}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
