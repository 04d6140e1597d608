"""The matrix: `pytest -m device`. One test a cell; see harness/pytest_plugin.py for where `outcome` comes from."""

from __future__ import annotations

import pytest

from harness.pytest_plugin import assert_passed
from harness.results import OutcomeRecord


@pytest.mark.device
def test_cell(outcome: OutcomeRecord) -> None:
    """The cell compiles, runs on its phone, writes QDQ's text, and keeps its perplexity within its bounds."""
    assert_passed(outcome)
