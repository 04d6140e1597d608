"""The rule of near ties, on a made-up `.pte` and reference that differ where we say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from runtime_fixtures import ToyHtp, toy_info

from harness.errors import ConfigError
from harness.runtime.reference import QdqOutput, QdqReference, compare_with_qdq
from harness.runtime.session import Session


@dataclass
class Skewed:
    """A reference that agrees with the toy `.pte` but for one position, where another token leads by `steps`."""

    position: int
    steps: float
    encoding: tuple[float, int] | None = (0.01, 30000)
    context_len: int = 16
    kv_off: float = 0.0

    def run(self, tokens: Sequence[int]) -> QdqOutput:
        rows: list[np.ndarray] = []
        session = Session(ToyHtp(toy_info()))
        session.feed(list(tokens), keep=len(tokens) < 16, on_rows=lambda new: rows.append(new.astype(float)))
        found = np.concatenate(rows)
        if self.position < len(tokens):
            row = found[self.position]
            other = (int(row.argmax()) + 1) % len(row)
            row[other] = row.max() + self.steps
        cached = len(tokens)
        k = tuple(x[..., :cached].astype(float) + self.kv_off for x in session.cache.k)
        v = tuple(x[:, :, :cached].astype(float) for x in session.cache.v)
        return QdqOutput((found - 30000) * 0.01, k, v)


def compare(reference: Any, **options: float) -> Any:
    return compare_with_qdq(Session(ToyHtp(toy_info())), reference, [[1, 2, 3], [4]], 9, **options)


def test_agreement() -> None:
    report = compare(Skewed(99, 0))
    assert (report.compared, report.near_ties, report.mismatches) == (18, (), ())
    assert report.worst_steps == pytest.approx(0, abs=1e-6)
    assert {(p.kv_worst_steps, p.kv_off_share) for p in report.prompts} == {(0.0, 0.0)}


def test_the_cache_is_compared_too() -> None:
    report = compare(Skewed(99, 0, kv_off=1.0))
    assert {(p.kv_worst_steps, p.kv_off_share) for p in report.prompts} == {(1.0, 0.5)}


@pytest.mark.parametrize(("steps", "tie"), [(1, True), (2, True), (3, False)])
def test_a_near_tie_spans_so_many_steps(steps: float, tie: bool) -> None:
    report = compare(Skewed(5, steps), tie_steps=2)
    # Position 5 is the fourth token after the first prompt, the sixth after the second.
    found = report.near_ties if tie else report.mismatches
    assert [d.index for d in found] == [3, 5]
    assert all(d.token_gap == d.top_gap == steps and d.near_tie is tie for d in found)
    assert len(report.near_ties) + len(report.mismatches) == 2


def test_generation_goes_on_from_the_references_token() -> None:
    reference = Skewed(5, 1)
    first = compare(reference).prompts[0]
    text = [1, 2, 3, *first.tokens]
    logits = reference.run(text[:-1]).logits
    assert list(first.tokens) == [int(row.argmax()) for row in logits[2:]]
    assert first.tokens[3] != first.differences[0].got


def test_a_reference_of_another_quantisation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"not the \.pte's"):
        compare(Skewed(5, 1, encoding=(0.02, 30000)))


def test_no_such_reference(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        QdqReference(tmp_path / "decode_qdq.pt2")
