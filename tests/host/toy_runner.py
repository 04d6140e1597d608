"""The runner's own command line over a stand-in for the HTP: everything but loading and executing is the real thing.

    python toy_runner.py --x_serve

TOY, a JSON object in the environment: `stuck_at` (number of the step that never ends; the runner's folder has a file
`stuck` from then on), `fail_at` (number of the step that fails), `fail_as` (the exception's name), `scale` (of the
logits), `noise` (text on descriptor 1 while loading), `lookahead` (its three settings), `prefill` (false: a program of
kv mode).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from runtime_fixtures import Array, ToyHtp, toy_info  # noqa: E402

from harness.errors import ConfigError, ProductError  # noqa: E402
from harness.paths import MODELS  # noqa: E402
from harness.runtime import cli  # noqa: E402
from harness.runtime.lookahead import Lookahead, Settings  # noqa: E402
from harness.runtime.session import Session  # noqa: E402
from harness.text.tokenizer import load_tokenizer  # noqa: E402

CONTEXT, AR = 16, 4


@dataclass
class FaultyHtp(ToyHtp):
    """Fails at one step, and is stuck for good at another."""

    stuck_at: int = 0
    fail_at: int = 0
    fail_as: type[Exception] = ProductError

    def run(self, graph: str, inputs: Sequence[Array]) -> list[Array]:
        if self.calls + 1 == self.stuck_at:
            Path("stuck").touch()
            while True:
                signal.pause()
        if self.calls + 1 == self.fail_at:
            self.calls += 1
            raise self.fail_as("the step failed")
        return super().run(graph, inputs)


def load(*_: Any) -> cli.Loaded:
    wanted = json.loads(os.environ.get("TOY", "{}"))
    os.write(1, wanted.get("noise", "").encode())
    print("noise by print")
    kinds: dict[str, type[Exception]] = {e.__name__: e for e in (ProductError, ConfigError, ValueError)}
    settings = Settings(*wanted["lookahead"]) if "lookahead" in wanted else None
    prefill = wanted.get("prefill", True)
    info = toy_info(CONTEXT, AR, prefill=prefill, decode_ar=settings.ar_len if settings else 1)
    info = replace(info, logits_scale=wanted.get("scale", 0.01))
    stuck_at, fail_at = wanted.get("stuck_at", 0), wanted.get("fail_at", 0)
    htp = FaultyHtp(info, 0, stuck_at, fail_at, kinds[wanted.get("fail_as", "ProductError")])
    tokenizer = load_tokenizer(MODELS / "tiny_llama" / "tokenizer.model")
    return cli.Loaded(None, Session(htp), tokenizer, frozenset(), Lookahead(settings) if settings else None)  # type: ignore[arg-type]


if __name__ == "__main__":
    cli._load = load
    sys.exit(cli.main())
