"""The tree of a lookahead step on the real QDQ module of the tiny model: one pass, and each path by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.build.testify import tree_logits
from harness.runtime.lookahead import Settings
from harness.runtime.reference import QdqReference


@pytest.mark.slow
def test_the_real_modules_rows_of_a_tree_are_those_of_each_path(runtime_artifacts: dict[str, Path]) -> None:
    qdq = QdqReference(runtime_artifacts["qdq"])
    settings, text = Settings(3, 2, 2), [1, 40, 262, 350, 77]
    draft = [90, 12, 31, 44, 55, 66, 77, 88]
    rows = tree_logits(qdq.graph.logits, settings, text, draft)
    for row in (0, 1, 3, 5, 7):  # a row of each kind: level 0, the one below, and both n-grams
        path = [draft[place] for place in settings.path(row)]
        np.testing.assert_allclose(rows[row], qdq.run([*text, *path]).logits[-1], atol=1e-4)
