"""Runs lm-eval tasks over a scorer: our results, and lm-eval's own JSON beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.evaluate.lm import ScorerLM, Work
from harness.evaluate.scorer import Scorer
from harness.files import write_atomically
from harness.text import lm_tasks
from harness.text.tokenizer import Tokenizer

SEED = 1234
"""lm-eval's own for numpy, torch and few-shot examples."""


@dataclass(frozen=True)
class TaskResult:
    """One task's, or group's, result.

    Attributes:
        task: lm-eval's name of it.
        metrics: metric → value by lm-eval's names, as `acc_norm` and `acc_norm_stderr`; with another filter than none
            `metric,filter`. What is no number is left out.
        samples: documents scored.
        steps: executions of the graph that scored them.
        seconds: spent in the scorer.
        truncated: requests cut from the left, since they were longer than the context: their context was not whole.
    """

    task: str
    metrics: dict[str, float]
    samples: int
    steps: int
    seconds: float
    truncated: int = 0


def run_tasks(
    scorer: Scorer,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    fewshot: int | None = None,
    seed: int = SEED,
    task_folders: Sequence[Path] = (),
    output: Path | None = None,
    add_bos: bool = False,
    progress: bool = False,
) -> list[TaskResult]:
    """Evaluates `tasks` with `lm_eval.simple_evaluate`; the results in lm-eval's order, groups too.

    Nothing is downloaded: a task runs if it ships (`tasks/`), if its data are local files, or if Hugging Face's cache
    on this machine has them.

    Args:
        scorer: FP, QDQ or a phone.
        tokenizer: the model's.
        tasks: names of lm-eval tasks, groups or tags.
        limit: documents of each task at most; None for all.
        fewshot: examples before each document; None for the task's own number. A task that says 0 keeps it.
        seed: of Python, numpy, torch and the few-shot examples; lm-eval's JSON says it four times.
        task_folders: folders with task YAMLs of the user's; they come before `tasks/` and lm-eval's.
        output: file for lm-eval's JSON, replaced in one step.
        add_bos: begin every context with BOS; see `harness.text.token_lm`.
        progress: show lm-eval's progress bars and messages.

    Raises:
        ConfigError: an unknown task (the remedy names near ones), a task without data or one that does not fit the
            model; `where` is the task.
        HarnessError: the scorer's.
    """
    manager, loaded = lm_tasks.load_tasks(tasks, task_folders)
    model = ScorerLM(scorer, tokenizer, add_bos=add_bos)
    results = lm_tasks.run(model, manager, loaded, limit=limit, fewshot=fewshot, seed=seed, progress=progress)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        # An answer may be any object; lm-eval writes those as text too.
        write_atomically(output, json.dumps(results, indent=2, default=_plain) + "\n")
    return [_result(name, results, model.work) for name in results["results"]]


def _result(name: str, results: dict[str, Any], work: dict[str, Work]) -> TaskResult:
    parts = _leaves(name, results.get("group_subtasks", {}))
    spent = [work[part] for part in parts if part in work]
    return TaskResult(
        name,
        metrics_of(results["results"][name]),
        sum(int(results["n-samples"][part]["effective"]) for part in parts if part in results["n-samples"]),
        sum(own.steps for own in spent),
        math.fsum(own.seconds for own in spent),
        sum(own.truncated for own in spent),
    )


def _leaves(name: str, children: dict[str, list[str]]) -> list[str]:
    """The tasks of a group, of its groups too; of a task itself."""
    if not children.get(name):
        return [name]
    return [leaf for child in children[name] for leaf in _leaves(child, children)]


def metrics_of(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of one row of lm-eval's results: `acc,none` → `acc`. Pure."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in row.items()
        if "," in key and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _plain(value: Any) -> Any:
    """What JSON has no word for: a numpy scalar as its number, a set as a list, all else as text."""
    if hasattr(value, "item"):
        return value.item()
    return sorted(value, key=str) if isinstance(value, set | frozenset) else str(value)
