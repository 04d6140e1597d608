"""Makes endings_test.jsonl and endings_train.jsonl: `python tasks/make_endings.py [FOLDER]`, the same bytes each time.

A document is the beginning of a sentence of the tiny model's texts, its true ending, and three endings of other
sentences of the same text that are nearly as long.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TEXTS = HERE.parent / "models" / "tiny_llama"
SEED = 3
SPLITS = {"test": ("heldout.txt", 48), "train": ("calibration.txt", 8)}
WORDS = range(12, 25)
ENDINGS = 4


def sentences(text: str) -> list[list[str]]:
    """The words of each sentence that is of the right length and has no quotation mark, which would open elsewhere."""
    found = re.split(r"(?<=[.!?])\s+", text)
    plain = [sentence.split() for sentence in found if re.fullmatch(r"[A-Z][A-Za-z,;: '-]*[.!?]", sentence)]
    return [words for words in plain if len(words) in WORDS]


def documents(text: str, count: int, rng: random.Random) -> list[dict[str, object]]:
    """`count` documents: beginning, endings, label (the place of the true ending)."""
    cut = [(words[: len(words) // 2], words[len(words) // 2 :]) for words in sentences(text)]
    chosen = sorted(rng.sample(range(len(cut)), count))
    result: list[dict[str, object]] = []
    for index in chosen:
        beginning, ending = cut[index]
        # The nearest in length, so that length tells nothing; ties in the text's order. None begins as the true one:
        # the text repeats itself, and such an ending could be as true.
        others = [i for i in range(len(cut)) if cut[i][1][0] != ending[0]]
        others.sort(key=lambda i: abs(len(cut[i][1]) - len(ending)))
        wrong = [cut[i][1] for i in rng.sample(others[:12], ENDINGS - 1)]
        label = rng.randrange(ENDINGS)
        endings = [" ".join(words) for words in (*wrong[:label], ending, *wrong[label:])]
        result.append({"id": index, "beginning": " ".join(beginning), "endings": endings, "label": label})
    return result


def main(folder: Path) -> None:
    rng = random.Random(SEED)  # noqa: S311
    for split, (name, count) in SPLITS.items():
        found = documents((TEXTS / name).read_text("utf-8"), count, rng)
        lines = "".join(json.dumps(document) + "\n" for document in found)
        (folder / f"endings_{split}.jsonl").write_text(lines, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
