"""A text as scoring windows: the same ones for the float model, QDQ and the phone, at compile time and later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import ConfigError
from harness.text.tokenizer import Tokenizer
from harness.text.windows import Window, rolling_windows


@dataclass(frozen=True)
class HeldOut:
    """A text cut up.

    Attributes:
        windows: in which every token is predicted once; see `rolling_windows`.
        words: whitespace-separated words that the windows' targets spell: what word perplexity divides by.
    """

    windows: tuple[Window, ...]
    words: int

    @property
    def tokens(self) -> int:
        """Tokens predicted."""
        return sum(len(window.targets) for window in self.windows)


def held_out(tokenizer: Tokenizer, text: str, tokens: int, context: int) -> HeldOut:
    """The first `tokens` tokens of a text, or all it has, in windows of at most `context` inputs.

    Raises:
        ConfigError: the tokenizer names neither BOS nor EOS, or the text is empty.
    """
    ids = tokenizer.encode(text, bos=False)[:tokens]
    if not ids:
        raise ConfigError(
            "there is nothing to score", where="held-out text", remedy="give a text, and at least 1 token"
        )
    return HeldOut(rolling_windows(ids, prefix_token(tokenizer), context), count_words(tokenizer, ids))


def beginning(text: HeldOut, tokenizer: Tokenizer, tokens: int) -> HeldOut:
    """The first `tokens` tokens of a cut-up text, in its windows; all of it where it has no more."""
    windows = []
    left = tokens
    for window in text.windows:
        if left <= 0:
            break
        windows.append(Window(window.inputs[:left], window.targets[:left]))
        left -= len(window.targets)
    return HeldOut(tuple(windows), count_words(tokenizer, [token for w in windows for token in w.targets]))


def begins_with(text: HeldOut, start: HeldOut) -> bool:
    """Whether a cut-up text begins with another one, window by window: its last one may be cut short."""
    pairs = list(zip(text.windows, start.windows, strict=False))
    return len(pairs) == len(start.windows) and all(
        whole.inputs[: len(part.inputs)] == part.inputs
        and whole.targets[: len(part.targets)] == part.targets
        # Only the last window may end before its own end: a later one would not follow on it.
        and (number == len(pairs) - 1 or len(part.inputs) == len(whole.inputs))
        for number, (whole, part) in enumerate(pairs)
    )


def prefix_token(tokenizer: Tokenizer) -> int:
    """What is fed before a text's first token: BOS; of models that know none EOS, as lm-eval does it.

    Raises:
        ConfigError: the tokenizer names neither.
    """
    prefix = tokenizer.bos if tokenizer.bos is not None else tokenizer.eos
    if prefix is None:
        raise ConfigError("the tokenizer names neither BOS nor EOS", where="tokenizer")
    return prefix


def count_words(tokenizer: Tokenizer, tokens: Sequence[int]) -> int:
    """Whitespace-separated words that `tokens` spell."""
    pieces = (tokenizer.piece(before, token) for before, token in zip([-1, *tokens[:-1]], tokens, strict=True))
    return len(b"".join(pieces).decode("utf-8", errors="replace").split())
