"""Faults of what goes in: the prompt's tokens, positions, masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from faults.fault import HYBRID, KV, LOOKAHEAD, Patch, fault
from faults.steps import DECODE, PREFILL, Step, before

BLOCKS = (HYBRID, LOOKAHEAD)
"""Modes in which a prompt goes in in blocks."""


# Positions


def shift_positions(patch: Patch, where: Callable[[Step], Any], by: int = 1) -> None:
    """Moves the positions of the rows that `where` marks."""

    def change(step: Step) -> bool:
        marked = where(step)
        if not np.any(marked):
            return False
        moved = np.clip(step.positions + by * np.asarray(marked).astype(step.positions.dtype), 0, step.context - 1)
        step.positions = moved.astype(step.positions.dtype)
        return True

    before(patch, change)


def everywhere(step: Step) -> Any:
    """All rows."""
    return np.ones(step.positions.shape, dtype=bool)


@fault("every position is one too high")
def position_off(patch: Patch) -> None:
    shift_positions(patch, everywhere)


@fault("decode's positions are one too high, prefill's right", modes=(HYBRID, LOOKAHEAD))
def position_off_in_decode(patch: Patch) -> None:
    shift_positions(patch, lambda step: everywhere(step) & (step.graph == DECODE))


@fault("prefill's positions are one too high, decode's right", modes=BLOCKS)
def position_off_in_prefill(patch: Patch) -> None:
    shift_positions(patch, lambda step: everywhere(step) & (step.graph == PREFILL))


@fault("positions from 64 on are one too high")
def position_off_from_64(patch: Patch) -> None:
    shift_positions(patch, lambda step: step.positions >= 64)


@fault("the last position of the context is one too low")
def position_off_at_the_end(patch: Patch) -> None:
    shift_positions(patch, lambda step: step.positions == step.context - 1, -1)


@fault("positions of the last 16 columns stand still")
def position_stands_still(patch: Patch) -> None:
    def change(step: Step) -> bool:
        limit = step.context - 16
        if not (step.positions > limit).any():
            return False
        step.positions = np.minimum(step.positions, limit).astype(step.positions.dtype)
        return True

    before(patch, change)


@fault("each block of prefill counts its positions from 0", modes=BLOCKS)
def position_of_the_block(patch: Patch) -> None:
    def change(step: Step) -> bool:
        if step.graph != PREFILL or step.past == 0:
            return False
        step.positions = (step.positions - step.past).astype(step.positions.dtype)
        return True

    before(patch, change)


# Prompts


def feed_another_prompt(patch: Patch, change: Callable[[list[int]], list[int]]) -> None:
    """Another prompt is fed than is reported."""

    @patch.around("harness.runtime.generate", "generate")
    def generate(original: Any, session: Any, prompt: Sequence[int], *rest: Any, **more: Any) -> Any:
        other = change(list(prompt))
        if other == list(prompt) or not other:
            return original(session, prompt, *rest, **more)
        patch.strike()
        if "seq_len" in more:
            more["seq_len"] -= len(prompt) - len(other)
        stats = more.get("stats")
        result = original(session, other, *rest, **more)
        if stats is not None:
            stats.prompt_tokens = len(prompt)
        return dataclasses.replace(result, prompt=tuple(prompt))


@fault("half of the prompt is dropped")
def half_the_prompt(patch: Patch) -> None:
    feed_another_prompt(patch, lambda prompt: prompt[: (len(prompt) + 1) // 2])


@fault("the first token of the prompt is dropped")
def first_token_dropped(patch: Patch) -> None:
    feed_another_prompt(patch, lambda prompt: prompt[1:])


@fault("the last token of the prompt is dropped")
def last_token_dropped(patch: Patch) -> None:
    feed_another_prompt(patch, lambda prompt: prompt[:-1])


@fault("two tokens in the middle of the prompt are exchanged")
def tokens_exchanged(patch: Patch) -> None:
    def change(prompt: list[int]) -> list[int]:
        middle = len(prompt) // 2
        return [*prompt[: middle - 1], *prompt[middle - 1 : middle + 1][::-1], *prompt[middle + 1 :]]

    feed_another_prompt(patch, change)


@fault("a prompt longer than one block is cut to the first", modes=BLOCKS)
def prompt_of_one_block(patch: Patch) -> None:
    lengths: list[int] = []

    @patch.around("harness.runtime.session", "Session.__init__")
    def init(original: Any, session: Any, *rest: Any, **more: Any) -> None:
        original(session, *rest, **more)
        lengths.append(session.prefill_graph.ar_len)

    feed_another_prompt(patch, lambda prompt: prompt[: lengths[-1]])


@fault("the second block of a prompt is the first once more", modes=BLOCKS)
def block_repeated(patch: Patch) -> None:
    last: list[Any] = [None]

    def change(step: Step) -> bool:
        if step.graph != PREFILL:
            return False
        again = step.past > 0 and last[0] is not None and not np.array_equal(last[0], step.tokens)
        if again:
            step.tokens[:] = last[0]
        else:
            last[0] = step.tokens.copy()
        return bool(again)

    before(patch, change)


@fault("every tenth token that decode takes is another one")
def another_token_fed(patch: Patch) -> None:
    count = 0

    def change(step: Step) -> bool:
        nonlocal count
        count += step.graph == DECODE
        if step.graph != DECODE or count % 10:
            return False
        step.tokens[0] = (step.tokens[0] + 1) % step.engine.info.vocab
        return True

    before(patch, change)


def change_encoding(patch: Patch, change: Callable[[Any, list[int]], list[int]]) -> None:
    """Changes what any tokenizer makes of a text."""
    for kind in ("SentencePiece", "HuggingFace", "Llama2c"):

        @patch.around("harness.text.tokenizer", f"{kind}.encode")
        def encode(original: Any, tokenizer: Any, text: str, *, bos: bool) -> list[int]:
            right = original(tokenizer, text, bos=bos)
            other = change(tokenizer, list(right)) if bos else right
            if other != right:
                patch.strike()
            return other


@fault("BOS is missing")
def bos_missing(patch: Patch) -> None:
    change_encoding(patch, lambda t, ids: ids[1:] if ids[:1] == [t.bos] else ids)


@fault("BOS stands twice")
def bos_twice(patch: Patch) -> None:
    change_encoding(patch, lambda t, ids: [t.bos, *ids] if ids[:1] == [t.bos] else ids)


@fault("EOS is put after the prompt")
def eos_after_the_prompt(patch: Patch) -> None:
    change_encoding(patch, lambda t, ids: [*ids, t.eos] if t.eos is not None else ids)


@fault("the chat template of another version")
def another_template(patch: Patch) -> None:
    @patch.around("harness.text.templates", "format_prompt")
    def format_prompt(original: Any, template: Any, prompt: str, *rest: Any, **more: Any) -> str:
        from harness.text.templates import TEMPLATES

        patch.strike()
        other = TEMPLATES["phi_4_mini"] if template != TEMPLATES["phi_4_mini"] else TEMPLATES["qwen3"]
        return str(original(other, prompt, *rest, **more))


@fault("the blank before the prompt's first word is lost, and a blank stands after its last")
def blanks_moved(patch: Patch) -> None:
    @patch.around("harness.text.templates", "format_prompt")
    def format_prompt(original: Any, template: Any, prompt: str, *rest: Any, **more: Any) -> str:
        patch.strike()
        return str(original(template, prompt.strip() + " ", *rest, **more))


# Masks


@fault("decode attends to a stale column", modes=(KV, HYBRID, LOOKAHEAD))
def stale_column(patch: Patch) -> None:
    def change(step: Step) -> bool:
        if step.graph != DECODE or step.past >= step.context - step.ar_len:
            return False
        for mask in step.masks:
            mask[:, step.past] = step.attend(mask)
        return True

    before(patch, change)


@fault("every fifth step of decode drops the newest column")
def newest_column_dropped(patch: Patch) -> None:
    count = 0

    def change(step: Step) -> bool:
        nonlocal count
        count += step.graph == DECODE
        if step.graph != DECODE or count % 5 or step.past < 1:
            return False
        for mask in step.masks:
            mask[:, step.past - 1] = step.block(mask)
        return True

    before(patch, change)


@fault("after a rewind, old columns stay visible")
def rewind_keeps_columns(patch: Patch) -> None:
    high = 0

    def change(step: Step) -> bool:
        nonlocal high
        past, end = step.past, min(high, step.context - step.ar_len)
        high = max(high, past + (step.ar_len if step.graph == PREFILL else 1))
        if end <= past:
            return False
        for mask in step.masks:
            mask[:, past:end] = step.attend(mask)
        return True

    before(patch, change)


@fault("the first column is hidden from decode")
def first_column_hidden(patch: Patch) -> None:
    def change(step: Step) -> bool:
        if step.graph != DECODE or step.past < 1:
            return False
        for mask in step.masks:
            mask[:, 0] = step.block(mask)
        return True

    before(patch, change)


@fault("the first 16 columns are hidden where the context nears its end")
def context_wraps(patch: Patch) -> None:
    def change(step: Step) -> bool:
        if step.past < step.context - step.ar_len - 16:
            return False
        for mask in step.masks:
            mask[:, :16] = step.block(mask)
        return True

    before(patch, change)


@fault("prefill sees the next row", modes=BLOCKS)
def prefill_sees_the_next_row(patch: Patch) -> None:
    def change(step: Step) -> bool:
        if step.graph != PREFILL:
            return False
        own = step.context - step.ar_len
        for mask in step.masks:
            for row in range(step.ar_len - 1):
                mask[row, own + row + 1] = step.attend(mask)
        return True

    before(patch, change)


@fault("the last row of a prefill block sees itself alone", modes=BLOCKS)
def last_row_alone(patch: Patch) -> None:
    def change(step: Step) -> bool:
        if step.graph != PREFILL:
            return False
        for mask in step.masks:
            mask[-1, :-1] = step.block(mask)
        return True

    before(patch, change)


@fault("a block of prefill does not see the blocks before it", modes=BLOCKS)
def earlier_blocks_hidden(patch: Patch) -> None:
    def change(step: Step) -> bool:
        if step.graph != PREFILL or step.past == 0:
            return False
        for mask in step.masks:
            mask[:, : step.context - step.ar_len] = step.block(mask)
        return True

    before(patch, change)


@fault("the rows of a step of guesses all see each other", modes=(LOOKAHEAD,))
def guesses_see_each_other(patch: Patch) -> None:
    def change(step: Step) -> bool:
        if step.graph != DECODE:
            return False
        for mask in step.masks:
            own = mask[:, step.context - step.ar_len :]
            own[own == step.block(mask)] = step.attend(mask)
        return True

    before(patch, change)


def change_window(patch: Patch, by: int) -> None:
    """Another width of the sliding window."""
    for name in ("init_mask", "update_mask"):

        @patch.around("harness.runtime.masks", name)
        def mask(original: Any, *arguments: Any, **more: Any) -> Any:
            # `update_mask` is called with the window in its fourth place, which `init_mask` has its dtype in.
            if more.get("window") is not None:
                more["window"] += by
                patch.strike()
            elif len(arguments) > 3 and isinstance(arguments[3], int):
                patch.strike()
                arguments = (*arguments[:3], arguments[3] + by, *arguments[4:])
            return original(*arguments, **more)


@fault("the sliding window is one column wider", needs="window")
def window_wider(patch: Patch) -> None:
    change_window(patch, 1)


@fault("the sliding window is one column narrower", needs="window")
def window_narrower(patch: Patch) -> None:
    change_window(patch, -1)


@fault("windowed layers see everything", needs="window")
def window_ignored(patch: Patch) -> None:
    def change(step: Step) -> bool:
        masks = step.masks
        if len(masks) < 2 or np.array_equal(masks[0], masks[1]):
            return False
        masks[1][:] = masks[0]
        return True

    before(patch, change)


@fault("the two masks are exchanged", needs="window")
def masks_exchanged(patch: Patch) -> None:
    def change(step: Step) -> bool:
        masks = step.masks
        if len(masks) < 2 or np.array_equal(masks[0], masks[1]):
            return False
        first = masks[0].copy()
        masks[0][:] = masks[1]
        masks[1][:] = first
        return True

    before(patch, change)
