"""lm-eval's model over a scorer: the float model, QDQ, or a phone's graph, all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from harness.errors import ConfigError
from harness.evaluate.scorer import Scorer
from harness.text.token_lm import TokenLM
from harness.text.tokenizer import Tokenizer

Answer = tuple[float, bool]
"""Log-likelihood of a continuation in nats, and whether greedy decoding would give it."""

_T = TypeVar("_T")


@dataclass
class Work:
    """What a task's requests took.

    Attributes:
        steps: executions of the graph that scored; what generating took a scorer does not say.
        seconds: spent in the scorer.
        truncated: requests cut from the left, since they were longer than the context.
    """

    steps: int = 0
    seconds: float = 0.0
    truncated: int = 0


class ScorerLM(TokenLM):
    """An lm-eval model that asks a scorer; its numbers are those of lm-eval's HFLM over the same logits.

    All windows of a task go to the scorer in one call.

    Args:
        scorer: FP, QDQ or a phone.
        tokenizer: the model's.
        add_bos: begin every context with BOS; see `harness.text.token_lm`.

    Attributes:
        work: task → what its requests took.

    Raises:
        ConfigError: the tokenizer names neither BOS nor EOS.
    """

    def __init__(self, scorer: Scorer, tokenizer: Tokenizer, *, add_bos: bool = False) -> None:
        super().__init__(tokenizer, scorer.context, add_bos=add_bos)
        self._scorer = scorer
        self._task = ""
        self.work: dict[str, Work] = {}

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results of this model."""
        return {
            "scorer": type(self._scorer).__name__,
            "max_length": self.max_length,
            "prefix_token_id": self.prefix_token_id,
            "add_bos": self._add_bos,
        }

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Answer]:
        """Each request's continuation after its context. Raises as `_loglikelihood_tokens`."""
        return self._by_task(requests, lambda own: super(ScorerLM, self).loglikelihood(own, disable_tqdm))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:  # noqa: ARG002
        """Log-likelihood of each request's whole text, in nats. Raises as `_loglikelihood_tokens`."""
        return self._by_task(requests, self._rolling)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:  # noqa: ARG002
        """Greedy text after each request's context, up to the first of its stop strings.

        Raises:
            ConfigError: a request samples, or wants as many tokens as the context has.
            HarnessError: the scorer's.
        """
        return self._by_task(requests, lambda own: [self._generate(*request.args) for request in own])

    def _by_task(self, requests: Sequence[Any], answer: Callable[[list[Any]], list[_T]]) -> list[_T]:
        """lm-eval gives the requests of all tasks at once; this keeps the account of each."""
        answers: list[_T] = []
        for task, own in groupby(requests, key=lambda request: str(request.task_name)):
            self._task = task
            self.work.setdefault(task, Work())
            try:
                answers += answer(list(own))
            except ConfigError as error:
                where = f"{task}: {error.where}" if error.where else task
                raise ConfigError(error.what, where=where, remedy=error.remedy, evidence=error.evidence) from error
        return answers

    def _rolling(self, requests: list[Any]) -> list[float]:
        pairs = [self.rolling_pairs(*request.args) for request in requests]
        answers = iter(self._loglikelihood_tokens([(None, *pair) for text in pairs for pair in text]))
        return [math.fsum(next(answers)[0] for _ in text) for text in pairs]

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[Answer]:
        """Log-likelihood of each continuation's tokens, the window cut from the left as HFLM's.

        Raises:
            ConfigError: see `TokenLM.cut`.
            HarnessError: the scorer's.
        """
        windows = [self.cut(context, continuation) for _, context, continuation in requests]
        work = self.work.setdefault(self._task, Work())
        start = time.perf_counter()
        scores = self._scorer.score(windows)
        work.seconds += time.perf_counter() - start
        work.steps += sum(score.steps for score in scores)
        answers = []
        for (_, context, continuation), score in zip(requests, scores, strict=True):
            work.truncated += len(context) + len(continuation) > self.max_length + 1
            count = len(continuation)
            answers.append((math.fsum(score.logprobs[-count:]), all(score.greedy[-count:])))
        return answers

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        wanted = normalize_gen_kwargs(settings, self.max_gen_toks)
        if wanted.get("do_sample"):
            raise ConfigError(
                "the task samples, and a scorer generates greedily",
                remedy="give the task generation_kwargs with do_sample: false",
            )
        count = int(wanted["max_gen_toks"])
        room = self.max_length - count
        if room < 1:
            raise ConfigError(
                f"the task wants {count} new tokens, and the context has {self.max_length}",
                remedy="give the task generation_kwargs with a smaller max_gen_toks, or the model a longer context",
            )
        ids = self.tok_encode(context) or [self.prefix_token_id]
        work = self.work[self._task]
        work.truncated += len(ids) > room
        until = [text for text in wanted.get("until") or [] if text]
        start = time.perf_counter()
        tokens = self._scorer.generate(ids[-room:], count, self._stops(until))
        work.seconds += time.perf_counter() - start
        text: str = postprocess_generated_text(self._decode(tokens), until, None)
        return text

    def _stops(self, until: Iterable[str]) -> frozenset[int]:
        """Tokens that end generation for sure: EOS, and those that have a whole stop string within them.

        A stop string that several tokens spell is cut off afterwards.
        """
        marks = [text.encode() for text in until]
        whole = {token for token in self._ids() if any(mark in self._piece(token) for mark in marks)} if marks else ()
        return frozenset({self.eot_token_id, *whole})

    def _ids(self) -> range:
        return range(min(self._text.size, self._scorer.vocab))

    def _piece(self, token: int) -> bytes:
        return b"" if token in (self._text.bos, self._text.eos) else self._text.piece(-1, token)

    def _decode(self, tokens: Sequence[int]) -> str:
        """As Hugging Face decodes a continuation alone: no BOS, no EOS, no blank where SentencePiece begins a text."""
        before = -1 if self._text.bos is None else self._text.bos
        pieces = []
        for token in tokens:
            if token not in (self._text.bos, self._text.eos):
                pieces.append(self._text.piece(before, token))
                before = token
        return b"".join(pieces).decode("utf-8", errors="replace")
