"""The token sequences that an lm-eval task would feed a model: calibration data as upstream collects it.

Upstream's `collect_lm_eval_tokens` (ExecuTorch 1.5.1, oss_scripts/llama/dataset/loaders.py) runs `simple_evaluate`
with lm-eval's HFLM, batch size 1, and keeps what would have gone into the model. Here no model of Hugging Face's is
loaded for it (upstream wants `gpt2` from the Hub), but the sequences and their order are the same:
tests/host/test_calibration.py holds them against upstream's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.models.utils import Collator

from harness.errors import ConfigError
from harness.text import lm_tasks
from harness.text.token_lm import TokenLM
from harness.text.tokenizer import Tokenizer

_Request = tuple[Any, list[int], list[int]]


def collect(
    tokenizer: Tokenizer,
    context: int,
    tasks: Sequence[str],
    *,
    limit: int | None,
    fewshot: int | None,
    folders: Sequence[Path] = (),
) -> list[list[int]]:
    """Sequences of at most `context` tokens that scoring `limit` documents of each task feeds the model.

    Args:
        tokenizer: the model's.
        context: tokens of the context.
        tasks: names of lm-eval tasks, groups or tags.
        limit: documents of each at most; None for all.
        fewshot: examples before each document; None for the task's own number.
        folders: of task YAMLs of the user's.

    Raises:
        ConfigError: as `lm_tasks.load_tasks` and `run`; a task that generates.
    """
    manager, loaded = lm_tasks.load_tasks(tasks, folders)
    collector = _Collector(tokenizer, context)
    lm_tasks.run(collector, manager, loaded, limit=limit, fewshot=fewshot)
    return collector.sequences


class _Collector(TokenLM):
    """Scores nothing: keeps what would be fed, in HFLM's order."""

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        super().__init__(tokenizer, context)
        self.sequences: list[list[int]] = []

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:  # noqa: ARG002
        for request in requests:
            for pair in self.rolling_pairs(*request.args):
                self.sequences.append(list(self.cut(*pair).inputs))
        return [0.0] * len(requests)

    def _loglikelihood_tokens(self, requests: Sequence[_Request], **_: Any) -> list[tuple[float, bool]]:
        # Longest first, and once for requests that differ in the last token alone: nobody feeds that.
        order = Collator(
            requests,
            sort_fn=lambda request: (-len(request[1] + request[2]), tuple(request[1] + request[2])),
            group_by="contexts",
            group_fn=lambda request: request[1] + request[2][:-1],
        )
        for chunk in order.get_batched(n=1):
            for _text, context, continuation in chunk:
                self.sequences.append(list(self.cut(context, continuation).inputs))
        return [(0.0, False)] * len(requests)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:  # noqa: ARG002
        raise ConfigError(
            "the task generates, and calibration takes tasks that score (upstream's does too)",
            where=str(requests[0].task_name),
            remedy="calibrate with a task of output_type loglikelihood, loglikelihood_rolling or multiple_choice",
        )
