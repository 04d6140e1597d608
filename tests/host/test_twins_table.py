"""docs/models.md: what it says of runs."""

from __future__ import annotations

from pathlib import Path

from sample_run import planned

from harness.errors import FailureClass
from harness.models import load_models
from harness.paths import MODELS
from harness.results import ArtifactRecord, CheckRecord, Status
from harness.results.summary import CellSummary
from harness.twins.parity import Parity
from harness.twins.table import gather, markdown

ROWS = [load_models(MODELS)[name] for name in ("llama3_2_3b_instruct", "qwen3_0_6b")]
PARITY = Parity("qwen3_0_6b_twin", 123.4, 128, 2.0, 40, 0.1, 0.5, 1.0, 2.0)


def cell(name: str, status: Status, pte: Path | None = None, noise: float = 0.34, **more: object) -> CellSummary:
    artifact = ArtifactRecord(name, "k", str(pte), 1, False, 1.0) if pte else None
    checks = (
        CheckRecord(name, "phone_vs_qdq_noise", True, noise, 1.0, "…"),
        CheckRecord(name, "text_as_qdq", True, 0.0, 0.0, "32 of 40 greedy tokens held against QDQ, 2 of them near"),
    )
    return CellSummary(planned(name, 75), str(status), checks=checks, artifact=artifact, **more)  # type: ignore[arg-type]


def test_a_row_says_what_ran_and_what_did_not() -> None:
    cells = [
        cell("qwen3_0_6b_twin-kv-SM8650@s24", Status.FAILED, reason="old"),
        cell("qwen3_0_6b_twin-kv-SM8650@s24", Status.PASSED),
        cell("qwen3_0_6b_twin-kv-SM8550", Status.PASSED, noise=0.417),
        cell("qwen3_0_6b_twin-hybrid-SM8550", Status.FAILED, failure_class=FailureClass.PRODUCT, reason="it is wrong"),
        cell("qwen3_0_6b_twin-hybrid-SM8650", Status.SKIPPED),
        cell("tiny_llama-kv-SM8650@s24", Status.PASSED),
    ]
    page = markdown(gather(ROWS, {PARITY.name: PARITY}, cells), "the command")
    (line,) = [line for line in page.splitlines() if line.startswith("| qwen3_0_6b")]
    columns = [column.strip() for column in line.strip("|").split("|")]
    assert columns == [
        *("qwen3_0_6b", "123.4 dB", "upstream (LPBQ)", "16", "– of 1", "–"),
        *("2 of 2", "0 of 1", "–", "0.42", "6 of 96"),
    ]
    assert "2 of 3 cells that ran passed; 1\nof 2 rows have not run" in page
    assert "- `qwen3_0_6b_twin-hybrid-SM8550`: PRODUCT: it is wrong" in page
    assert "old" not in page
    assert "| llama3_2_3b_instruct | – | upstream (LPBQ) | 8 | – of 3 | – | – | – | – | – | – |" in page
    assert "the command" in page
