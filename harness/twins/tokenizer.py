"""Small tokenizers of the same kind as a row's, with its chat template's special pieces; trained on shipped text."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.models import ModelSpec
from harness.paths import MODELS
from harness.text.decoders import VERSIONS
from harness.text.templates import Template, find_template

_PIECE = re.compile(r"<[^<>\s]+>")
_SPACE = "\u2581"
_SENTENCEPIECE_ENDS = (1, 2)


@dataclass(frozen=True)
class Ends:
    """The pieces that open and end a text in a chat template's models; None: they have none."""

    bos: str | None
    eos: str


# As their tokenizer_config.json has them.
_ENDS = {
    "llama3": Ends("<|begin_of_text|>", "<|eot_id|>"),
    "codegen": Ends("<|endoftext|>", "<|endoftext|>"),
    "gemma": Ends("<bos>", "<eos>"),
    "gemma2": Ends("<bos>", "<eos>"),
    "gemma3": Ends("<bos>", "<eos>"),
    "glm": Ends(None, "<|endoftext|>"),
    "granite": Ends("<|end_of_text|>", "<|end_of_text|>"),
    "phi_4_mini": Ends("<|endoftext|>", "<|endoftext|>"),
    "qwen2_5": Ends(None, "<|endoftext|>"),
    "qwen3": Ends(None, "<|im_end|>"),
    "smollm2_135m": Ends("<|im_start|>", "<|im_end|>"),
    "smollm3": Ends(None, "<|im_end|>"),
}


def write_tokenizer(row: ModelSpec, text: str, size: int, folder: Path) -> tuple[int | None, int | None]:
    """Writes a twin's tokenizer into its folder; returns the ids of BOS and EOS.

    Args:
        row: whose kind and template it gets.
        text: what it is trained on.
        size: pieces it has at most.
        folder: gets tokenizer.json and tokenizer_config.json, or the shipped tokenizer.model.
    """
    if row.tokenizer.kind == "sentencepiece":
        shutil.copy(MODELS / "tiny_llama" / "tokenizer.model", folder / "tokenizer.model")
        return _SENTENCEPIECE_ENDS
    version = VERSIONS[row.decoder]
    ends = _ENDS[version]
    special = _special(find_template(version), ends)
    model = _metaspace(text, size, special) if version.startswith("gemma") else _byte_level(text, size, special)
    model.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": ends.bos, "eos_token": ends.eos}
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
    bos = model.token_to_id(ends.bos) if ends.bos is not None else None
    return bos, model.token_to_id(ends.eos)


def _special(template: Template, ends: Ends) -> list[str]:
    texts = (template.lead, *template.user, *template.system, template.tail, template.stop or "")
    found = [piece for text in texts for piece in _PIECE.findall(text)]
    return list(dict.fromkeys([*filter(None, (ends.bos, ends.eos)), *found]))


def _byte_level(text: str, size: int, special: list[str]) -> Any:
    """GPT-2's kind: bytes as letters, merged."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator([text], trainer)
    return model


def _metaspace(text: str, size: int, special: list[str]) -> Any:
    """Gemma's kind: a mark for the space, merged letters, and a piece for each byte that no letter stands for."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    special = ["<pad>", *special, "<unk>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", _SPACE)
    trainer = trainers.BpeTrainer(vocab_size=size - len(special) - len(bytes_), show_progress=False)
    # Without a pre-tokenizer a line is a word: short ones, or the pieces are whole phrases.
    learner.train_from_iterator(re.findall(r"\s*\S+", text), trainer)
    learnt = json.loads(learner.to_str())["model"]
    pieces = [*special, *bytes_, *sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)]
    merges = [tuple(merge) for merge in learnt["merges"]]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    model = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token=special[-1]))
    model.normalizer = normalizers.Replace(" ", _SPACE)
    model.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    model.add_special_tokens(special)
    return model
