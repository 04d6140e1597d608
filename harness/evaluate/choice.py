"""What a run was asked to evaluate beyond what each model's file says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EvalChoice:
    """The `--eval-…` options.

    Attributes:
        tokens: tokens of the held-out text to score; None for the model's own number.
        tasks: names of lm-eval tasks.
        limit, fewshot, seed: of the tasks; None for each task's own.
        task_folders: folders with task YAMLs of the user's.
    """

    tokens: int | None = None
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    fewshot: int | None = None
    seed: int = 1234
    task_folders: tuple[Path, ...] = ()
