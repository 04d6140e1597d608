"""Makes twins: `python -m harness.twins.make ROW.yaml FOLDER [ROW.yaml FOLDER …]`, a process of its own.

The weights are random but scaled as trained ones are: a linear layer keeps the size of what it reads, attention looks
at some tokens more than at others, and logits spread over a few nats. transformers' own initialisation is made for
training and leaves logits that are all but equal, of which quantisation could spoil everything unseen.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from harness.build.families import Family, family_of
from harness.models import ModelSpec, load_model
from harness.twins.config import UNTIED, config_arguments
from harness.twins.tokenizer import write_tokenizer
from harness.twins.toy import Toy, toy

_LOGITS_SPREAD = 2.5  # standard deviation of the logits, nats
_STREAM = 0.1  # standard deviation of the embeddings in the residual stream
_NORM_SPREAD = 0.15
_BIAS_SPREAD = 0.1
_LAST_NORMS = ("model.norm.weight", "transformer.ln_f.weight")
_QKV_BLOCKS = 4  # of transformers' CodeGen
_QDQ_VS_FP = 2.0
_EVAL_TOKENS, _KV_TOKENS = 128, 32  # there are many twins, and the simulator takes its time
_MAX_NEW_TOKENS = 32


def make(row: ModelSpec, folder: Path) -> None:
    """Makes a row's twin in a folder that appears complete or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".twin-", dir=folder.parent))
    try:
        small = toy(row)
        name = folder.name.rpartition("-")[0]
        text = (row.calibration or row.eval).text.read_text(encoding="utf-8")
        bos, eos = write_tokenizer(row, text, small.params.vocab_size, scratch)
        _model(row, small, bos, eos).save_pretrained(scratch)
        (scratch / f"{name}.yaml").write_text(_model_file(row, small, name, scratch), encoding="utf-8")
        scratch.chmod(0o755)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _model(row: ModelSpec, small: Toy, bos: int | None, eos: int | None) -> Any:
    import transformers

    family = family_of(row.decoder)
    config = getattr(transformers, family.config)(**config_arguments(small.params, family, bos, eos))
    seed = int.from_bytes(hashlib.sha256(row.name.encode()).digest()[:4])
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(_values(name, parameter.shape, small, family, generator))
    return model.eval()


def _values(name: str, shape: torch.Size, small: Toy, family: Family, generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator)
    params = small.params
    # Embeddings are small in the residual stream beside what the layers add to it: else the context would not matter,
    # and a tied output layer would find the current token in the stream and choose it for ever.
    embedding = _STREAM * (params.residual_multiplier or 1.0) / (params.embedding_scale_factor or 1.0)
    logits = _LOGITS_SPREAD * (params.logits_scaling or 1.0) / math.sqrt(params.dim)
    if name.endswith(".bias"):
        return values * _BIAS_SPREAD
    if len(shape) == 1:
        # Tied embeddings are as small in the output layer, so the last norm is large, as it is in trained models.
        last = name in _LAST_NORMS and family.name not in UNTIED
        size = logits / embedding if last else 1.0
        return (values * _NORM_SPREAD + 1.0) * size - (1.0 if family.unit_offset else 0.0)
    if "embed" in name or "wte" in name:
        return values * embedding
    if "lm_head" in name:
        return values * logits
    values = values / math.sqrt(shape[-1])
    if params.attention_multiplier is not None and ("q_proj" in name or "k_proj" in name):
        # Trained with another divisor of q·k than √head_dim, both are larger.
        values = values / math.sqrt(params.attention_multiplier * math.sqrt(params.head_width))
    return values


def _model_file(row: ModelSpec, small: Toy, name: str, scratch: Path) -> str:
    """The twin's YAML; texts are copied beside it, so that the folder stands alone."""
    texts = {"eval": row.eval.text, **({"calibration": row.calibration.text} if row.calibration else {})}
    for use, path in texts.items():
        shutil.copy(path, scratch / f"{use}.txt")
    lengths = dataclasses.asdict(small.lengths)
    content: dict[str, Any] = {
        "name": name,
        "title": f"Twin of {row.title} (toy size, random weights)",
        "decoder": row.decoder,
        "license": "made here",
        "params": small.params.model_dump(mode="json", exclude_none=True),
        "checkpoint": {"format": "huggingface", "path": "."},
        "tokenizer": {"kind": row.tokenizer.kind},
        "instruct": row.instruct,
        "recipe": small.recipe.model_dump(mode="json", exclude_defaults=True) or {"name": small.recipe.name},
        "needs": row.needs.model_dump(mode="json"),
        "modes": [str(mode) for mode in row.modes],
        "lengths": lengths,
        "shards": small.shards,
        "eval": {"text": "eval.txt", "tokens": min(row.eval.tokens, _EVAL_TOKENS), "kv_tokens": _KV_TOKENS},
        "prompts": list(row.prompts),
        "max_new_tokens": min(row.max_new_tokens, _MAX_NEW_TOKENS),
        # Random weights predict no text: how far 4-bit weights move its perplexity says nothing.
        "bounds": {**row.bounds.model_dump(mode="json"), "qdq_vs_fp_ppl": _QDQ_VS_FP},
    }
    if row.system_prompt is not None:
        content["system_prompt"] = row.system_prompt
    if row.calibration is not None:
        content["calibration"] = {"text": "calibration.txt", "samples": row.calibration.samples}
    if "qkv_blocks" in family_of(row.decoder).fused.values():
        content["checkpoint"]["qkv_blocks"] = _QKV_BLOCKS
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def main() -> None:
    """Entry point."""
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    arguments = iter(map(Path, sys.argv[1:]))
    for row, folder in zip(arguments, arguments, strict=True):
        make(load_model(row), folder)


if __name__ == "__main__":
    main()
