"""Scoring windows, upstream's names, the judge of texts and perplexities."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.build.reference import Reference, Score
from harness.evaluate.judge import noise, noise_check, perplexity_checks, text_check
from harness.evaluate.text import check_text
from harness.model_file import Bounds
from harness.results.records import PerplexityRecord
from harness.text.decoders import VERSIONS
from harness.text.templates import MULTIMODAL, TEMPLATES
from harness.text.windows import rolling_windows
from harness.toolchain.environment import find_toolchain


@given(st.lists(st.integers(2, 99), min_size=1, max_size=60), st.integers(1, 17))
def test_windows_predict_every_token_once_from_the_one_before(tokens: list[int], context: int) -> None:
    windows = rolling_windows(tokens, 1, context)
    assert [t for w in windows for t in w.targets] == tokens
    assert [t for w in windows for t in w.inputs] == [1, *tokens[:-1]]
    assert all(len(w.inputs) == len(w.targets) <= context for w in windows)


def test_windows_are_lm_evals() -> None:
    from lm_eval.utils import get_rolling_token_windows

    tokens = list(range(10, 10 + 24))
    theirs = get_rolling_token_windows(tokens, 1, 8, 1)
    ours = [(list(w.inputs), list(w.targets)) for w in rolling_windows(tokens, 1, 8)]
    assert [(list(a), list(b)) for a, b in theirs] == ours


def test_every_decoder_has_a_template() -> None:
    assert set(VERSIONS.values()) <= {*TEMPLATES, *MULTIMODAL}


@pytest.mark.slow
def test_the_versions_are_upstreams() -> None:
    code = (
        "import json;"
        "from executorch.examples.qualcomm.oss_scripts.llama.decoder_constants import DECODER_MODEL_VERSION as d;"
        "print(json.dumps(d))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=find_toolchain().environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == dict(VERSIONS)


class FakeQdq:
    """Logits that say token + 1 follows, in steps of 0.01; token 5 is followed by 6 or, `gap` lower, 9."""

    def __init__(self, gap: float = 0.02) -> None:
        self.gap = gap

    def run(self, tokens: list[int]) -> Any:
        rows = np.zeros((len(tokens), 12))
        for i, token in enumerate(tokens):
            rows[i, token + 1] = 30.0
            if token == 5:
                rows[i, 9] = 30.0 - self.gap
        return SimpleNamespace(logits=rows)


def test_the_right_text_passes() -> None:
    report = check_text(FakeQdq(), [1, 2], [3, 4, 5], 0.01, 0.0)  # type: ignore[arg-type]
    assert (report.compared, report.near_ties, report.mismatches) == (3, (), ())
    assert text_check("c", (report,)).passed


def test_a_near_tie_passes_and_is_counted() -> None:
    report = check_text(FakeQdq(), [4, 5], [9, 10], 0.01, 0.0)  # type: ignore[arg-type]
    assert [d.got for d in report.near_ties] == [9]
    assert not report.mismatches
    assert "1 of them near ties" in text_check("c", (report,)).text


def test_a_wrong_token_fails_wherever_it_stands() -> None:
    for tokens in ([7, 8], [3, 9], [3, 4, 5, 6, 2]):
        report = check_text(FakeQdq(), [1, 2], tokens, 0.01, 0.5)  # type: ignore[arg-type]
        assert report.mismatches
        assert not text_check("c", (report,)).passed


@pytest.mark.parametrize(
    ("gap", "noise", "tie"), [(0.02, 0.0, True), (0.03, 0.0, False), (0.3, 0.1, True), (0.5, 0.1, False)]
)
def test_a_tie_spans_two_steps_or_four_times_the_noise(gap: float, noise: float, tie: bool) -> None:
    report = check_text(FakeQdq(gap), [4, 5], [9], 0.01, noise)  # type: ignore[arg-type]
    assert (len(report.near_ties), len(report.mismatches)) == ((1, 0) if tie else (0, 1))


def test_the_noise_is_the_rms_of_paired_log_likelihoods() -> None:
    known = reference(2, 2)
    assert noise(known, [-2.0] * 100) == 0
    assert noise(known, [-2.3, -1.7] * 50) == pytest.approx(0.3)
    assert noise(known, [-2.0] * 99) == math.inf
    assert noise_check("c", 0.25, Bounds()).passed
    assert not noise_check("c", 0.26, Bounds()).passed
    assert not noise_check("c", math.inf, Bounds()).passed


def test_no_text_is_no_pass() -> None:
    assert not text_check("c", ()).passed


def reference(fp: float, qdq: float) -> Reference:
    return Reference(
        128, (), 50, Score(-fp * 100, 100, 50), Score(-qdq * 100, 100, 50), (-qdq,) * 100, "tokenizer.model", 0.01
    )


def phone(nll: float, tokens: int = 100) -> PerplexityRecord:
    return PerplexityRecord("c", "PHONE", "kv", tokens, 50, nll * tokens, 128, tokens, 1.0)


@pytest.mark.parametrize(
    ("fp", "qdq", "on_phone", "passed"),
    [
        (2.0, 2.0, 2.0, (True, True)),
        (2.0, 2.0, 2.0 + math.log(1.019), (True, True)),
        (2.0, 2.0, 2.0 + math.log(1.021), (False, True)),
        (2.0, 2.0, 2.0 - math.log(1.03), (False, True)),
        (2.0, 2.0 + math.log(1.09), 2.0 + math.log(1.09), (True, True)),
        (2.0, 2.0 + math.log(1.11), 2.0 + math.log(1.11), (True, False)),
        (2.0, 1.5, 1.5, (True, True)),
    ],
)
def test_perplexity_bounds(fp: float, qdq: float, on_phone: float, passed: tuple[bool, bool]) -> None:
    checks = perplexity_checks("c", reference(fp, qdq), phone(on_phone), Bounds())
    assert tuple(check.passed for check in checks) == passed


def test_other_tokens_do_not_compare() -> None:
    checks = perplexity_checks("c", reference(2, 2), phone(2.0, tokens=99), Bounds())
    assert not checks[0].passed
