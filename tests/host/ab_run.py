"""A run of A against B with a cell of every verdict, for the tests of its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sample_run import EVIL, planned, run_info, sample

from harness.compare.view import BASE_SIDE
from harness.errors import FailureClass
from harness.results import OutcomeRecord, PerplexityRecord, Record, Status
from harness.results.records import encode
from harness.results.store import RECORDS
from harness.target import Target

SLOW, SAME, FAST = (f"tiny_llama-{mode}-SM8650" for mode in ("kv", "hybrid", "lookahead"))
SHORT, WRONG = (f"tiny_llama-{mode}-SM8550" for mode in ("kv", "hybrid"))
NOISE = (0.0, 0.4, -0.3, 0.2, -0.1, 0.3, -0.4, 0.1)
"""Percent, of the pairs."""
EVERY = ((SLOW, 10.0), (SAME, 0.0), (FAST, -20.0), (SHORT, 0.0), (WRONG, 0.0))


def write_ab_run(
    reports: Path, target: Target = Target.SIM, cells: Sequence[tuple[str, float]] = EVERY, *more: Record
) -> Path:
    """The run's folder, with the base's in it; `more` goes to the candidate's records."""
    folder = reports / "20260102-030405-cafe"
    for place, name in ((folder / BASE_SIDE, f"{folder.name}-base"), (folder, folder.name)):
        is_base = place.name == BASE_SIDE
        info = replace(run_info(target), id=name)
        info = replace(info, toolchain=info.toolchain | {"qnn": "2.4.0" if is_base else "2.7.0"})
        made: list[Record] = [info, *(planned(cell, 73 if "8550" in cell else 75) for cell, _ in cells)]
        for cell, percent in cells:
            made += _cell(cell, percent, target, is_base=is_base)
        place.mkdir(parents=True, exist_ok=True)
        lines = [*made, *(() if is_base else more)]
        (place / RECORDS).write_bytes(b"".join(encode(record, name) for record in lines))
    return folder


def _cell(cell: str, percent: float, target: Target, *, is_base: bool) -> list[Record]:
    count = 8 if percent > 0 else 5
    tokens = 60 if cell == SHORT and not is_base else 63
    place: dict[str, Any] = {"target": target, "soc": cell.split("-")[2]}
    found: list[Record] = [
        sample(
            cell, 0, text=" was the word" if is_base or cell != FAST else f" was {EVIL}",
            raw={"turns": [{"tokens": [7, 8, 9, 10] if is_base or cell != FAST else [7, 8, 77, 12, 13]}]}, **place,
        )
    ]  # fmt: skip
    for pair in range(count):
        wobble = 1 + (NOISE[pair] if is_base else NOISE[-1 - pair]) / 100
        slower = wobble if is_base else (1 + percent / 100) * wobble
        found.append(
            sample(
                cell, 100 + pair, pair=pair, generated_tokens=tokens, decode_tok_s=10 / slower,
                prefill_tok_s=50 / slower, ttft_ms=88 * slower, **place,
            )
        )  # fmt: skip
    worse = 1.05 if cell == WRONG and not is_base else 1.0
    blocks = tuple((32, 125.0 + n % 3 + (0 if worse == 1 else 32 * 0.049)) for n in range(8))
    found.append(PerplexityRecord(cell, "PHONE", "kv", 256, 200, sum(b for _, b in blocks), 127, 8, 1.0, blocks))
    if cell == WRONG and not is_base:
        words = ("perplexity of the kv graph +5.02% against the base", "compare what the two sides' quantisers chose")
        found.append(OutcomeRecord(cell, Status.FAILED, FailureClass.PRODUCT, *words, phone="s24"))
    elif cell == SLOW and not is_base:
        found.append(
            OutcomeRecord(cell, Status.FAILED, FailureClass.PERF, "decode_tok_s -9.1% over 8 pairs", phone="s24")
        )
    else:
        found.append(OutcomeRecord(cell, Status.PASSED, phone="s24"))
    return found
