"""Is lookahead's text what the kv graph would have written? For a finished run with both modes of a model on a SoC.

    python benchmarks/lookahead_vs_kv.py reports/RUN

Each reply of a lookahead cell is fed through the kv graph of the same model's hybrid (or kv) `.pte`, token by token,
on the simulator, and every token is held against the kv graph's choice after the same text. A line a reply: tokens that
are its choice, and of the others how far its logits of the two are apart, in nats.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from harness.results import load_run
from harness.results.records import SampleRecord
from harness.results.summary import CellSummary, summarise
from harness.runtime.engine import Engine
from harness.runtime.program import read_info
from harness.runtime.sampling import dequantise
from harness.runtime.session import Session
from harness.toolchain.environment import find_toolchain


def pairs(folder: Path) -> Iterator[tuple[CellSummary, CellSummary]]:
    """Each lookahead cell, with a cell of the same model and SoC that has a kv graph of one token."""
    cells = [cell for cell in summarise(load_run(folder)).cells if cell.artifact and cell.samples]
    for ahead in cells:
        if ahead.plan.mode == "lookahead":
            same = (ahead.plan.model, ahead.plan.soc)
            others = [c for c in cells if (c.plan.model, c.plan.soc) == same and c.plan.mode in ("hybrid", "kv")]
            yield from ((ahead, other) for other in others[:1])


def compare(session: Session, sample: SampleRecord, shown: str) -> None:
    """Prints one reply's line."""
    info = session.info
    (turn,) = sample.raw["turns"]
    session.rewind(0)
    row = session.feed(turn["prompt_tokens"])
    gaps = []
    for place, token in enumerate(turn["tokens"]):
        if place:
            row = session.step(turn["tokens"][place - 1])
        logits = dequantise(row, info.logits_scale, info.logits_zero_point)
        gaps.append(float(logits.max() - logits[token]))
    off = {place: round(gap, 3) for place, gap in enumerate(gaps) if gap > 0}
    same = len(gaps) - len(off)
    print(f"{shown}: {same} of {len(gaps)} tokens are kv's choice; the others apart by (place: nats) {off}")


def main() -> int:
    """Starts itself again with the toolchain's environment, and compares there."""
    folder = Path(sys.argv[1])
    if len(sys.argv) == 2:
        command = [sys.executable, __file__, str(folder), "here"]
        return subprocess.run(command, env=find_toolchain().environment(), check=False).returncode
    for ahead, other in pairs(folder):
        assert other.artifact is not None
        session = Session(Engine(read_info(Path(other.artifact.path))))
        for sample in ahead.samples:
            compare(session, sample, f"{ahead.id}, prompt {sample.session + 1}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
