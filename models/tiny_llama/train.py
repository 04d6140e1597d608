"""Train the tiny Llama-2 model that ships: text, tokenizer, weights and scores, all from one Debian package.

An offline tool: the harness never imports it. It needs torch, sentencepiece, safetensors and numpy, and either
`apt-get` (to download the package) or `--deb FILE`, and `dpkg-deb`. It writes everything in this folder except CARD.md,
model.yaml and the two scripts:

    python models/tiny_llama/train.py --out models/tiny_llama

The text is the World English Bible (public domain), taken from Debian's `sword-text-web` package, with its markup,
notes, titles and verse numbers removed and its typographic quotes turned into ASCII ones.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import io
import json
import math
import re
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import sentencepiece as spm
import torch
import torch.nn.functional as F  # noqa: N812
from llama import BOS, EOS, Llama, Params, fake_quantize, greedy, load_model, negative_log_likelihood, save
from torch import Tensor, nn

PACKAGE, PACKAGE_VERSION = "sword-text-web", "426.0-1"
# Of all chapters joined by DOCUMENT_END.
TEXT_SHA256 = "36f12c71a8c274a6369b829586303ab279e777461c0c0fa934d8d151cf78887e"
MODULE = "usr/share/sword/modules/texts/ztext/engWEB2015eb"
DOCUMENT_END = "\n\n"
# Greek Esther and Daniel repeat most of Esther and Daniel: keeping them would leak held-out chapters into training.
SKIPPED_BOOKS = frozenset({"EsthGr", "DanGr"})
SEED = 20240
PROMPTS = (
    "David said to Jonathan,",
    "The woman said to him,",
    "In the third year of king",
    "Then Peter stood up and said,",
    "There was a man in the city whose name was",
    "In those days the people of the city",
)


# ---- text ---------------------------------------------------------------------------------------------------------


def read_chapters(deb: Path | None) -> dict[str, str]:
    """Chapter name ("Gen.1") to plain text, paragraphs separated by one newline, in the package's order."""
    with tempfile.TemporaryDirectory() as tmp:
        if deb is None:
            subprocess.run(["apt-get", "download", f"{PACKAGE}={PACKAGE_VERSION}"], cwd=tmp, check=True, timeout=300)
            deb = next(Path(tmp).glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(deb.resolve()), tmp], check=True, timeout=60)
        chapters: dict[str, str] = {}
        for testament in ("ot", "nt"):
            for book in _books(Path(tmp) / MODULE / testament):
                for name, body in re.findall(
                    r'<chapter [^>]*osisID="([^"]+)" sID=[^>]*/>(.*?)<chapter eID', book, re.S
                ):
                    if name.split(".")[0] not in SKIPPED_BOOKS and (text := _plain(body)):
                        chapters[name] = text
    digest = hashlib.sha256(DOCUMENT_END.join(chapters.values()).encode()).hexdigest()
    if digest != TEXT_SHA256:
        raise SystemExit(
            f"{PACKAGE}: text has sha256 {digest}, expected {TEXT_SHA256}: another version of the package?"
        )
    return chapters


def _books(stem: Path) -> Iterator[str]:
    """Decompress a SWORD zText testament: `.bzs` has (offset, length, plain length) of each block in `.bzz`."""
    index, data = stem.with_suffix(".bzs").read_bytes(), stem.with_suffix(".bzz").read_bytes()
    for offset, length, _ in struct.iter_unpack("<III", index):
        if length:
            yield zlib.decompress(data[offset : offset + length]).decode("utf-8")


def _plain(osis: str) -> str:
    """OSIS markup to text: notes and titles dropped, each `x-p` division a paragraph, white space collapsed."""
    osis = re.sub(r"<(note|title)\b.*?</\1>", " ", osis, flags=re.S)
    osis = re.sub(r'<div sID="[^"]*" type="x-p"/>', "\0", osis)
    text = html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"</?(w|name|transChange|q)\b[^>]*>", "", osis)))
    text = text.translate(str.maketrans("“”‘’—–\u00a0", "\"\"''-- "))
    paragraphs = (re.sub(r" ([,.;:?!])", r"\1", " ".join(p.split())) for p in text.split("\0"))
    return "\n".join(p for p in paragraphs if p)


def split_chapters(chapters: dict[str, str]) -> tuple[list[str], list[str]]:
    """(train, held-out) texts. A chapter is held out when the hash of its name says so: about one in 90.

    The remainder 2 was chosen, before any training, for its mix of history, law, prophets and wisdom.
    """
    held = {name for name in chapters if hashlib.sha256(name.encode()).digest()[0] % 90 == 2}
    return [t for n, t in chapters.items() if n not in held], [t for n, t in chapters.items() if n in held]


# ---- tokenizer ----------------------------------------------------------------------------------------------------


def train_tokenizer(texts: list[str], out: Path, vocab_size: int) -> None:
    """SentencePiece BPE with byte fallback, as llama2.c's `tinystories.py` sets it up; unk 0, bos 1, eos 2, no pad."""
    written = io.BytesIO()  # given a file name, SentencePiece writes that name into the model
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts for line in text.split("\n")),
        model_writer=written,
        model_type="bpe",
        vocab_size=vocab_size,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        max_sentence_length=1 << 16,
        num_threads=1,
        minloglevel=1,
    )
    (out / "tokenizer.model").write_bytes(written.getvalue())
    export_llama2c(out / "tokenizer.model", out / "tokenizer.bin")


def export_llama2c(model: Path, target: Path) -> None:
    """Write the tokenizer as ExecuTorch's llama2.c reader wants it: vocabulary size, bos, eos and longest piece as
    uint32, then score (float32), length (uint32) and bytes of each piece, with SentencePiece's blank as a space."""
    sp = spm.SentencePieceProcessor(model_file=str(model))
    pieces = [sp.id_to_piece(i).replace("▁", " ").encode() for i in range(sp.vocab_size())]
    blob = struct.pack("<IIII", len(pieces), BOS, EOS, max(map(len, pieces)))
    for i, piece in enumerate(pieces):
        blob += struct.pack("<fI", sp.get_score(i), len(piece)) + piece
    target.write_bytes(blob)


# ---- training -----------------------------------------------------------------------------------------------------


def training_stream(texts: list[str], sp: spm.SentencePieceProcessor) -> Tensor:
    """All training text as one row of ids. Every other chapter ends in EOS and BOS, the rest in the blank line that
    ends chapters in the text files, so that the model knows both."""
    stream: list[int] = []
    for i, text in enumerate(texts):
        stream += [*sp.encode(text), EOS, BOS] if i % 2 else sp.encode(text + DOCUMENT_END)
    return torch.tensor(stream)


def train(model: Llama, stream: Tensor, args: argparse.Namespace) -> None:
    """AdamW, warm-up then cosine; the last `--qat` share of the steps sees its weights rounded to 4 bits.

    A batch is random windows of the stream, each after a BOS: the form in which prompts and evaluation windows come.
    The first 70 % of the steps use windows of half the length and twice the number, which is cheaper.
    """
    rng = np.random.default_rng(SEED)
    decay = [w for w in model.parameters() if w.dim() == 2]
    plain = [w for w in model.parameters() if w.dim() != 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    opt = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)
    began, mean_loss = time.monotonic(), 0.0
    for step in range(args.steps):
        if step == int(args.steps * (1 - args.qat)):
            model.set_weight_bits(4)
        share = step / args.steps
        factor = min((step + 1) / 100, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in opt.param_groups:
            group["lr"] = args.lr * factor
        length = args.seq_len // 2 if share < 0.7 else args.seq_len
        starts = rng.integers(0, len(stream) - length, args.batch * args.seq_len // length)
        target = torch.stack([stream[s : s + length] for s in starts.tolist()])
        ids = torch.cat([torch.full((len(starts), 1), BOS), target[:, :-1]], dim=1)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            logits = model(ids)
        loss = F.cross_entropy(logits.float().flatten(0, 1), target.flatten())
        opt.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        mean_loss = loss.item() if step == 0 else 0.98 * mean_loss + 0.02 * loss.item()
        if step % 100 == 0 or step == args.steps - 1:
            print(f"step {step} loss {mean_loss:.3f} {time.monotonic() - began:.0f} s", flush=True)
        if args.checkpoint_every and (step + 1) % args.checkpoint_every == 0:
            save(model, args.out)
    model.set_weight_bits(0)


# ---- scores -------------------------------------------------------------------------------------------------------


def unigram_nll(train_ids: list[int], ids: list[int], vocab: int) -> float:
    """Sum of -ln p over `ids` under the training text's token counts, plus one each."""
    counts = np.bincount(train_ids, minlength=vocab) + 1
    return float(-np.log(counts / counts.sum())[ids].sum())


def score(folder: Path, train_ids: list[int]) -> dict[str, object]:
    """Everything CARD.md reports about the files in `folder`."""
    model, sp = load_model(folder), spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    text = (folder / "heldout.txt").read_text("utf-8")
    ids: list[int] = sp.encode(text)
    nll = negative_log_likelihood(model, ids, 128)
    samples = {p: sp.decode(greedy(model, [BOS, *sp.encode(p)], 64)) for p in PROMPTS}
    result: dict[str, object] = {
        "heldout_tokens": len(ids),
        "heldout_words": len(text.split()),
        "token_perplexity_context_128": math.exp(nll / len(ids)),
        "token_perplexity_context_256": math.exp(negative_log_likelihood(model, ids, 256) / len(ids)),
        "token_perplexity_first_2000_context_128": math.exp(negative_log_likelihood(model, ids[:2000], 128) / 2000),
        "word_perplexity_context_128": math.exp(nll / len(text.split())),
        "bits_per_byte_context_128": nll / math.log(2) / len(text.encode()),
        "unigram_token_perplexity": math.exp(unigram_nll(train_ids, ids, sp.vocab_size()) / len(ids)),
        "train_token_perplexity_context_128": math.exp(
            negative_log_likelihood(model, train_ids[: len(ids)], 128) / len(ids)
        ),
        "greedy": samples,
    }
    with torch.no_grad():  # what rounding alone does: linear layers to 4 bits, the (tied) output layer to 8
        model.set_weight_bits(4)
        model.tok_embeddings.weight.copy_(fake_quantize(model.tok_embeddings.weight, 8))
    result["token_perplexity_context_128_int4"] = math.exp(negative_log_likelihood(model, ids, 128) / len(ids))
    return result


def make(train_texts: list[str], held_texts: list[str], args: argparse.Namespace) -> None:
    """Write every file but scores.json to `args.out`."""
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "heldout.txt").write_text(DOCUMENT_END.join(held_texts) + "\n", "utf-8")
    # A chapter in every 400, so that calibration sees several kinds of book.
    (out / "calibration.txt").write_text(DOCUMENT_END.join(train_texts[40::400]) + "\n", "utf-8")
    params = Params()
    (out / "params.json").write_text(json.dumps(asdict(params), indent=2) + "\n")
    train_tokenizer(train_texts, out, params.vocab_size)
    stream = training_stream(train_texts, spm.SentencePieceProcessor(model_file=str(out / "tokenizer.model")))
    print(f"{len(train_texts)} chapters, {len(stream)} tokens; held out {len(held_texts)} chapters", flush=True)
    model = Llama(params)
    save(model, out)
    train(model, stream, args)
    save(model, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--deb", type=Path, help=f"{PACKAGE}_{PACKAGE_VERSION}_all.deb, if apt-get should not fetch it")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--qat", type=float, default=0.15, help="share of the steps with 4-bit weights")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint-every", type=int, default=0, help="steps between saves while training; 0: none")
    parser.add_argument("--score-only", action="store_true", help="score the files in --out, train nothing")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads)

    train_texts, held_texts = split_chapters(read_chapters(args.deb))
    if not args.score_only:
        make(train_texts, held_texts, args)
    sp = spm.SentencePieceProcessor(model_file=str(args.out / "tokenizer.model"))
    scores = json.dumps(score(args.out, training_stream(train_texts, sp).tolist()), indent=2, ensure_ascii=False)
    (args.out / "scores.json").write_text(scores + "\n", "utf-8")
    print(scores)


if __name__ == "__main__":
    main()
