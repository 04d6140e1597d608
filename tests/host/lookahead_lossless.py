"""A process of its own, started with the QNN environment: lookahead's tokens against greedy kv's, on the simulator.

Where the two differ, kv's two logits must be nearly equal, as for any two graphs on the HTP (`runtime.reference`), and
lookahead goes on from kv's token.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from harness.runtime.engine import Engine
from harness.runtime.generate import generate
from harness.runtime.lookahead import Lookahead
from harness.runtime.program import read_info
from harness.runtime.reference import NEAR_TIE_STEPS, difference
from harness.runtime.sampling import greedy
from harness.runtime.session import Session


def compare(plain: Session, ahead: Session, prompt: list[int], count: int) -> dict[str, Any]:
    plain.rewind(0)
    wanted = generate(plain, prompt, seq_len=len(prompt) + count, choose=greedy, keep_logits=True)
    assert wanted.prompt_logits is not None
    assert wanted.decode_logits is not None
    logits = np.concatenate([wanted.prompt_logits[-1:], wanted.decode_logits]).astype(np.float64)
    differences, done, steps, accepted = [], 0, 0, 0
    settings = ahead.info.lookahead
    assert settings is not None
    while done < count:
        ahead.rewind(0)
        text = [*prompt, *wanted.tokens[:done]]
        found = generate(ahead, text, seq_len=len(prompt) + count, choose=greedy, lookahead=Lookahead(settings))
        steps, accepted = steps + found.decode_steps, accepted + found.accepted
        pairs = list(zip(found.tokens, wanted.tokens[done:], strict=True))
        differing = [place for place, (got, want) in enumerate(pairs) if got != want]
        if not differing:
            break
        got, want = pairs[differing[0]]
        done += differing[0]
        differences.append(vars(difference(done, got, want, logits[done])))
        done += 1
    return {"tokens": len(wanted.tokens), "steps": steps, "accepted": accepted, "differences": differences}


def main(kv: str, lookahead: str, prompts: str, count: str, output: str) -> None:
    plain, ahead = (Session(Engine(read_info(Path(path)))) for path in (kv, lookahead))
    results = [compare(plain, ahead, prompt, int(count)) for prompt in json.loads(Path(prompts).read_text())]
    report = {"tie_steps": NEAR_TIE_STEPS, "lookahead": str(ahead.info.lookahead), "prompts": results}
    Path(output).write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
