"""What a build leaves beside its artifacts that no SoC changes: the reference the phone is judged by.

A reference folder holds `reference.json` (this file's `Reference`), the tokenizer, and, where the model is small
enough, `decode_qdq.pt2`: the calibration graph after convert_pt2e.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.text.windows import Window

FILE = "reference.json"
QDQ_FILE = "decode_qdq.pt2"


@dataclass(frozen=True)
class Score:
    """Natural-log likelihood of a text: its sum over `tokens`, and the words those tokens spell."""

    log_likelihood: float
    tokens: int
    words: int

    @property
    def token_perplexity(self) -> float:
        """exp(−Σ log-likelihood / Σ tokens)."""
        return math.exp(-self.log_likelihood / self.tokens)

    @property
    def word_perplexity(self) -> float:
        """exp(−Σ log-likelihood / Σ words), as in lm-eval."""
        return math.exp(-self.log_likelihood / self.words)


@dataclass(frozen=True)
class Reference:
    """The float and QDQ results of one model, recipe and context.

    Attributes:
        context: tokens of the context.
        windows: the scoring windows of the held-out text.
        words: words that the scored tokens spell.
        fp, qdq: the scores of the float model and of the QDQ graph.
        qdq_each: log-likelihood of each scored token under QDQ, in the windows' order.
        tokenizer: file name of the tokenizer in the folder.
        logits_scale: one step of the quantised logits.
    """

    context: int
    windows: tuple[Window, ...]
    words: int
    fp: Score
    qdq: Score
    qdq_each: tuple[float, ...]
    tokenizer: str
    logits_scale: float

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self))


def load_reference(folder: Path) -> Reference:
    """Reads `reference.json` of a reference folder."""
    raw = json.loads((folder / FILE).read_text(encoding="utf-8"))
    windows = tuple(Window(tuple(w["inputs"]), tuple(w["targets"])) for w in raw["windows"])
    return Reference(
        raw["context"],
        windows,
        raw["words"],
        Score(**raw["fp"]),
        Score(**raw["qdq"]),
        tuple(raw["qdq_each"]),
        raw["tokenizer"],
        raw["logits_scale"],
    )
