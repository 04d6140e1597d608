"""Calibration sequences as upstream makes them: `upstream_calibration.py CONTEXT TOKENIZER SAMPLES TASK.yaml…`.

Prints `TOKENS {"samples": …, "both": …}`. A program of its own, since the toolchain's environment must be
there before the process starts. Upstream loads `gpt2` and uses nothing of it; a small model of that name in the current
folder saves it from asking the Hub.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

from executorch.examples.qualcomm.oss_scripts.llama.dataset.builders import DatasetBuilder
from executorch.examples.qualcomm.oss_scripts.llama.dataset.config import DataConfig
from executorch.examples.qualcomm.oss_scripts.llama.decoder_constants import TEXT_DECODER
from executorch.examples.qualcomm.oss_scripts.llama.tokenizer import TokenizerWrapper
from pytorch_tokenizers import get_tokenizer
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from harness.text.lm_tasks import settled

VOCAB = 1024


def main() -> None:
    context, tokenizer, samples, tasks = int(sys.argv[1]), sys.argv[2], [sys.argv[3]], sys.argv[4:]
    GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1)).save_pretrained("gpt2")
    empty = Tokenizer(models.BPE(vocab={"</s>": 0}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=empty, eos_token="</s>").save_pretrained("gpt2")
    wrapper = object.__new__(TokenizerWrapper)
    wrapper.__dict__ |= {"tokenizer": get_tokenizer(tokenizer), "vocab_size": VOCAB, "chat_template": None}
    found = {}
    for name, chosen in (("samples", (samples, None)), ("both", (samples, tasks))):
        config = DataConfig(
            max_context_len=context,
            calib_samples=chosen[0],
            calib_tasks=chosen[1],
            calib_limit=2,
            calib_num_fewshot=1,
        )
        builder = DatasetBuilder(config, Namespace(), wrapper, attn_mask=None)
        with settled():
            dataset = builder.build_calib_dataloaders()[TEXT_DECODER].dataset
        found[name] = [list(dataset[index][0]) for index in range(len(dataset))]
    print("TOKENS " + json.dumps(found))


if __name__ == "__main__":
    assert not Path("gpt2").exists()
    main()
