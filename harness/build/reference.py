"""What a build leaves beside its artifacts that no SoC changes: the reference the phone is judged by.

A reference folder holds `reference.json` (this file's `Reference`), the tokenizer, and, where the model is small
enough, the calibration graph twice: `decode_fp.pt2` in float, and `decode_qdq.pt2` after convert_pt2e.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.text.heldout import HeldOut
from harness.text.windows import Window

FILE = "reference.json"
FP_FILE = "decode_fp.pt2"
QDQ_FILE = "decode_qdq.pt2"


@dataclass(frozen=True)
class Reference:
    """The float and QDQ results of one model, recipe and context.

    Attributes:
        context: tokens of the context.
        held_out: the held-out text that was scored.
        fp_each, qdq_each: log-likelihood of each of its tokens under the float model and under QDQ, nats.
        tokenizer: file name of the tokenizer in the folder.
        logits_scale: one step of the quantised logits.
        sliding_window: tokens that the model's windowed layers see; None where it has none.
    """

    context: int
    held_out: HeldOut
    fp_each: tuple[float, ...]
    qdq_each: tuple[float, ...]
    tokenizer: str
    logits_scale: float
    sliding_window: int | None = None

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self))


def load_reference(folder: Path) -> Reference:
    """Reads `reference.json` of a reference folder."""
    raw = json.loads((folder / FILE).read_text(encoding="utf-8"))
    text = raw["held_out"]
    windows = tuple(Window(tuple(w["inputs"]), tuple(w["targets"])) for w in text["windows"])
    return Reference(
        raw["context"],
        HeldOut(windows, text["words"]),
        tuple(raw["fp_each"]),
        tuple(raw["qdq_each"]),
        raw["tokenizer"],
        raw["logits_scale"],
        raw["sliding_window"],
    )
