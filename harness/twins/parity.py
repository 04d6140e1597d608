"""transformers' logits against upstream's static Llama's, both in float32: is a checkpoint loaded as it is meant?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import BuildError
from harness.models import ModelSpec
from harness.toolchain.environment import find_toolchain

LEAST_DB = 60.0
"""SQNR below which two float models are not the same."""
MARK = "parity "
"""What a line of the worker's that holds a result begins with."""


@dataclass(frozen=True)
class Parity:
    """How near the two are over a text.

    Attributes:
        name: the model's.
        sqnr_db: 10 log10 of the logits' power over their difference's.
        tokens: positions compared.
        spread: standard deviation of transformers' logits at a position, nats; about 0 where weights are degenerate.
        distinct: how many different tokens they choose.
        repeats: share of positions at which transformers chooses the token that is there.
        context: how much the logits of the text's second half change when its first half does: RMS of the change over
            RMS of the logits; about 0 where attention does nothing.
        same: share of positions at which both choose the same token.
        seconds: it took.
    """

    name: str
    sqnr_db: float
    tokens: int
    spread: float
    distinct: int
    repeats: float
    context: float
    same: float
    seconds: float


def measure(models: Sequence[ModelSpec], timeout_s: float = 900) -> tuple[Parity, ...]:
    """Compares the two for each model, in one process for all.

    Args:
        models: twins, or models whose weights are here in Hugging Face's format.
        timeout_s: for all of them.

    Raises:
        BuildError: a model cannot be loaded.
    """
    done = subprocess.run(
        [sys.executable, "-m", "harness.twins.parity_worker", *(str(model.file) for model in models)],
        env=find_toolchain().environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(
            "transformers and the static Llama cannot be compared",
            where=", ".join(model.name for model in models),
            evidence="\n".join((done.stderr or done.stdout).splitlines()[-15:]),
        )
    lines = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    return tuple(Parity(**json.loads(line)) for line in lines)
