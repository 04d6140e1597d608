"""A text that a good phone gives to the letter: greedy tokens of which QDQ is sure, taken from the held-out text.

A phone's logits are a little off QDQ's, and where QDQ hesitates between two tokens either may come. So the known text
is the longest run of tokens in the held-out text that QDQ would choose, each by more than the phone's noise explains;
the prompt is what stands before it. One pass of QDQ over each window finds it, so nothing is written down by hand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.build.reference import QDQ_FILE, load_reference
from harness.build.witness import load_witness
from harness.errors import ConfigError
from harness.evaluate.host_scorer import HostScorer, torch_threads
from harness.evaluate.rules import RULES
from harness.files import write_atomically
from harness.models import ModelSpec
from harness.text.decoders import VERSIONS
from harness.text.templates import find_template, format_prompt
from harness.text.tokenizer import Tokenizer, load_tokenizer
from harness.text.windows import Window

LEAST_TOKENS = 3
"""A text of fewer tokens could come from a wrong HTP by chance."""


@dataclass(frozen=True)
class KnownText:
    """What to ask, and what a good phone answers.

    Attributes:
        prompt: the user's text.
        prompt_tokens: tokens a runner feeds for it, BOS and template included.
        tokens: number of tokens of the answer.
        text: what they spell.
    """

    prompt: str
    prompt_tokens: int
    tokens: int
    text: str


def known_text(model: ModelSpec, reference: Path, *, kept: Path | None = None) -> KnownText:
    """The known text of a model that was built.

    Args:
        model: it.
        reference: the folder that its build left.
        kept: file that remembers it, read where it is there and else written: QDQ takes seconds to load.

    Raises:
        ConfigError: QDQ was not kept, or is sure of no text that is long enough.
    """
    if kept is not None and kept.is_file():
        return KnownText(**json.loads(kept.read_text(encoding="utf-8")))
    found = _find(model, reference)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, json.dumps(asdict(found)))
    return found


def sure_run(logits: npt.NDArray[np.float64], targets: Sequence[int], margin: float) -> tuple[int, int]:
    """The first of the longest runs of rows that choose their target, and by more than `margin`. Pure.

    Args:
        logits: [n, V].
        targets: n token ids.
        margin: least distance of the best logit from the second, in nats.

    Returns:
        Where it begins, and its length; 0 where there is none.
    """
    second, best = np.partition(logits, -2, axis=1)[:, -2:].T
    sure = (logits.argmax(axis=1) == np.asarray(targets)) & (best - second > margin)
    start, length, run = 0, 0, 0
    for index, good in enumerate(sure):
        run = run + 1 if good else 0
        if run > length:
            start, length = index - run + 1, run
    return start, length


def _find(model: ModelSpec, folder: Path) -> KnownText:
    reference = load_reference(folder)
    scorer = HostScorer(folder / QDQ_FILE, reference.sliding_window)
    tokenizer = load_tokenizer(folder / reference.tokenizer, as_runner=True)
    margin = RULES.tie * load_witness(folder).typical_spread
    best: KnownText | None = None
    for window in reference.held_out.windows:
        with torch_threads(1):
            logits = scorer.module.run(window.inputs).logits
        start, length = sure_run(logits, window.targets, margin)
        if length > (best.tokens if best else LEAST_TOKENS - 1):
            best = _asked(model, tokenizer, window, start, length) or best
    if best is None:
        raise ConfigError(
            f"QDQ is sure of no {LEAST_TOKENS} tokens of the held-out text in a row",
            where=str(folder),
            remedy="give the model a longer held-out text",
        )
    return best


def _asked(model: ModelSpec, tokenizer: Tokenizer, window: Window, start: int, length: int) -> KnownText | None:
    """The run as prompt and answer; None where the prompt's text does not become the same tokens again."""
    fed, answer = window.inputs[: start + 1], window.targets[start : start + length]
    prompt = _spell(tokenizer, fed[0], fed[1:])
    turn = format_prompt(find_template(VERSIONS[model.decoder]), prompt, "")
    if not prompt or tuple(tokenizer.encode(turn, bos=True)) != tuple(fed):
        return None
    return KnownText(prompt, len(fed), len(answer), _spell(tokenizer, fed[-1], answer))


def _spell(tokenizer: Tokenizer, before: int, tokens: Sequence[int]) -> str:
    pieces = (tokenizer.piece(b, t) for b, t in zip([before, *tokens[:-1]], tokens, strict=True))
    return b"".join(pieces).decode("utf-8", errors="replace")
