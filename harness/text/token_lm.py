"""Text as tokens the way lm-eval's own HFLM turns it: what scoring and calibration by lm-eval tasks have in common.

Where the numbers of lm-eval over Hugging Face's models are to be met, these must be the same as in `HFLM` of lm_eval
0.4.13 (`lm_eval/models/huggingface.py`, causal models), and are held to it by tests/host/test_evaluate_lm.py:

- The prefix token, which stands before a rolling text and takes the place of an empty context, is BOS, or else EOS.
- No other BOS is added: as HFLM with `add_bos_token=False`, and as upstream's own `EagerEvalWrapper`. HFLM without
  that argument leaves it to the tokenizer: for Llama's every context then begins with BOS, and a rolling text with
  two. `add_bos` does the same.
- The context holds at most `max_length` inputs; one token more is cut from the left, since the last token is only
  predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from harness.errors import ConfigError
from harness.text.heldout import prefix_token
from harness.text.tokenizer import Tokenizer
from harness.text.windows import Window

MAX_GEN_TOKENS = 256
"""HFLM's `max_gen_toks`."""

Pair = tuple[list[int], list[int]]
"""Context and continuation; neither is empty."""


class TokenLM(TemplateLM):  # type: ignore[misc]
    """The tokenizer's half of an lm-eval model. The other half says what a request costs or scores.

    Args:
        tokenizer: the model's.
        context: inputs of the model at most.
        add_bos: begin every context with BOS.

    Raises:
        ConfigError: the tokenizer names neither BOS nor EOS.
    """

    def __init__(self, tokenizer: Tokenizer, context: int, *, add_bos: bool = False) -> None:
        super().__init__()
        # `tokenizer` is a name of lm-eval's, for one of Hugging Face's.
        self._text = tokenizer
        self._prefix = prefix_token(tokenizer)
        self._context = context
        self._add_bos = add_bos

    @property
    def eot_token_id(self) -> int:
        """Ends generation: EOS, or else BOS."""
        return self._prefix if self._text.eos is None else self._text.eos

    @property
    def prefix_token_id(self) -> int:
        """Stands before what has no context: BOS, or else EOS."""
        return self._prefix

    @property
    def max_length(self) -> int:
        """Inputs at most."""
        return self._context

    @property
    def max_gen_toks(self) -> int:
        """Tokens to generate where a task says nothing: HFLM's 256, but at most half the context."""
        return min(MAX_GEN_TOKENS, self._context // 2)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text. BOS comes first if asked for (here, or else by `add_bos`) and not there already."""
        ids = self._text.encode(string, bos=False)
        wanted = self._add_bos if add_special_tokens is None else add_special_tokens
        if wanted and self._text.bos is not None and ids[:1] != [self._text.bos]:
            return [self._text.bos, *ids]
        return ids

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """lm-eval's own, without its progress bar unless asked."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
        return answers

    def rolling_pairs(self, text: str) -> list[Pair]:
        """A text in lm-eval's rolling windows: every token is a continuation's exactly once."""
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [make_disjoint_window(window) for window in windows]

    def cut(self, context: Sequence[int], continuation: Sequence[int]) -> Window:
        """What the model is fed for a pair, and the token after each input; cut from the left where it is too long.

        Raises:
            ConfigError: an empty context or continuation, or a continuation longer than the model's context.
        """
        if not context or not continuation:
            which = "context" if not context else "continuation"
            raise ConfigError(
                f"a request's {which} has no token of its own",
                remedy="give the task's target_delimiter and choices text that the tokenizer does not merge",
            )
        if len(continuation) > self.max_length:
            raise ConfigError(
                f"a continuation of {len(continuation)} tokens does not fit the context of {self.max_length}",
                remedy="take a model compiled with a longer context (--max-seq-len), or another task",
            )
        tokens = tuple([*context, *continuation][-(self.max_length + 1) :])
        return Window(tokens[:-1], tokens[1:])
