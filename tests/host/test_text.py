"""Scoring windows, upstream's names, the judge of texts and perplexities."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from events import HANG_S
from hypothesis import given
from hypothesis import strategies as st

from harness.evaluate.grounds import GroundScore, chance
from harness.evaluate.judge import (
    delegation_check,
    logits_check,
    noise_check,
    perplexity_checks,
    text_check,
    worst_noise,
)
from harness.evaluate.sqnr import candidate_noise, sqnr_db
from harness.evaluate.text import check_text
from harness.model_file import Bounds
from harness.paths import MODELS
from harness.results.records import Graph, Ground
from harness.text.decoders import VERSIONS
from harness.text.heldout import beginning, held_out
from harness.text.templates import MULTIMODAL, TEMPLATES
from harness.text.tokenizer import load_tokenizer
from harness.text.windows import rolling_windows
from harness.toolchain.environment import find_toolchain


@given(st.lists(st.integers(2, 99), min_size=1, max_size=60), st.integers(1, 17))
def test_windows_predict_every_token_once_from_the_one_before(tokens: list[int], context: int) -> None:
    windows = rolling_windows(tokens, 1, context)
    assert [t for w in windows for t in w.targets] == tokens
    assert [t for w in windows for t in w.inputs] == [1, *tokens[:-1]]
    assert all(len(w.inputs) == len(w.targets) <= context for w in windows)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 17))
def test_the_beginning_of_a_cut_up_text_is_the_beginning_of_the_text(tokens: int, share: int, context: int) -> None:
    tokenizer = load_tokenizer(MODELS / "tiny_llama" / "tokenizer.model")
    text = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 3
    whole = held_out(tokenizer, text, tokens, context)
    assert beginning(whole, tokenizer, share) == held_out(tokenizer, text, min(share, tokens), context)


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
        timeout=HANG_S,
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
    assert text_check("c", (report,), 0.1).passed


def test_a_near_tie_passes_and_is_counted() -> None:
    report = check_text(FakeQdq(), [4, 5], [9, 10], 0.01, 0.0)  # type: ignore[arg-type]
    assert [d.got for d in report.near_ties] == [9]
    assert not report.mismatches
    assert "1 of them near ties" in text_check("c", (report,), 0.1).text


def test_a_wrong_token_fails_wherever_it_stands() -> None:
    for tokens in ([7, 8], [3, 9], [3, 4, 5, 6, 2]):
        report = check_text(FakeQdq(), [1, 2], tokens, 0.01, 0.5)  # type: ignore[arg-type]
        assert report.mismatches
        assert not text_check("c", (report,), 0.1).passed


@pytest.mark.parametrize(
    ("gap", "noise", "tie"), [(0.02, 0.0, True), (0.03, 0.0, False), (0.5, 0.1, True), (0.7, 0.1, False)]
)
def test_a_tie_spans_two_steps_or_six_times_the_noise(gap: float, noise: float, tie: bool) -> None:
    report = check_text(FakeQdq(gap), [4, 5], [9], 0.01, noise)  # type: ignore[arg-type]
    assert (len(report.near_ties), len(report.mismatches)) == ((1, 0) if tie else (0, 1))


def test_what_another_graph_of_the_pte_chose_as_well_is_no_mismatch() -> None:
    asked: list[list[int]] = []

    def witness(best: int, near: int, gap: float) -> Any:
        def logits(tokens: Any) -> Any:
            asked.append(list(tokens))
            row = np.zeros(12)
            row[best], row[near] = 30.0, 30.0 - gap
            return row

        return logits

    text = [4, 5], [6, 2, 3]  # 2 after 6 is wrong for QDQ
    for judge, wrong in (
        (witness(2, 7, 1.0), 0),
        (witness(7, 2, 0.3), 0),
        (witness(7, 2, 0.7), 1),
        (witness(9, 8, 0.0), 1),
    ):
        report = check_text(FakeQdq(), *text, 0.01, 0.1, judge)  # type: ignore[arg-type]
        assert (len(report.vouched), len(report.mismatches)) == (1 - wrong, wrong)
        assert text_check("c", (report,), 0.1).passed is not bool(wrong)
        assert ("the prefill graph's" in text_check("c", (report,), 0.1).text) is not bool(wrong)
    assert asked == [[4, 5, 6]] * 4


def test_the_noise_is_the_rms_of_paired_log_likelihoods() -> None:
    known = ground("QDQ", 2)
    assert worst_noise(known, [phone("kv", 2)]) == 0
    assert worst_noise(known, [phone("prefill", 2), phone("kv", 2.3, tokens=20)]) == pytest.approx(0.3)
    assert worst_noise(known, []) == math.inf


def test_the_noise_may_exceed_its_bound_by_chance_alone() -> None:
    known = ground("QDQ", 2, tokens=400)

    def check(*each: float) -> bool:
        return noise_check("c", known, [replace(phone("kv", 2), each=each)], Bounds()).passed

    assert check(*[-2.25] * 400)
    assert not check(*[-2.26] * 400)
    assert check(-5.0, *[-2.0] * 31)  # one token of 32: 0.53 nats, and it may be luck
    assert not check(*[-5.0, *[-2.0] * 9] * 40)  # one of ten, all along
    assert not noise_check("c", known, [], Bounds()).passed


def test_candidates_noise_is_of_likely_tokens_against_each_other() -> None:
    qdq = np.zeros((2, 50))
    qdq[:, :10] = 20 - np.arange(10)
    shifted = qdq + 3.0  # a row that moves as a whole changes no choice
    shifted[:, 20:] += 9.0  # nor do tokens that are out of the question
    assert candidate_noise(qdq, shifted) == pytest.approx(0)
    shifted[:, 0] -= 1.0
    assert candidate_noise(qdq, shifted) == pytest.approx(0.3)
    assert candidate_noise(qdq[:0], qdq[:0]) == math.inf


def test_no_text_is_no_pass() -> None:
    assert not text_check("c", (), 0.1).passed


def ground(name: Ground, nll: float, tokens: int = 100, graph: Graph = "full") -> GroundScore:
    return GroundScore(name, graph, (-nll,) * tokens, 50, 128)


def phone(graph: Graph, nll: float, tokens: int = 100) -> GroundScore:
    return ground("PHONE", nll, tokens, graph)


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
    checks = perplexity_checks("c", ground("FP", fp), ground("QDQ", qdq), [phone("kv", on_phone)], Bounds())
    assert tuple(check.passed for check in checks) == passed


@pytest.mark.parametrize(("kv", "passed"), [(2.0, True), (2.0 + math.log(1.009), True), (2.0 - math.log(1.011), False)])
def test_both_graphs_are_held_to_each_other_and_to_qdq(kv: float, passed: bool) -> None:
    scores = [phone("prefill", 2.0), phone("kv", kv, tokens=20)]
    checks = {c.name: c for c in perplexity_checks("c", ground("FP", 2), ground("QDQ", 2), scores, Bounds())}
    assert checks["prefill_vs_kv_ppl"].passed is passed
    assert "over 20 tokens" in checks["prefill_vs_kv_ppl"].text
    assert checks["phone_vs_qdq_ppl"].passed
    off = [phone("prefill", 2.0), phone("kv", 2.0 + math.log(1.03), tokens=20)]
    assert not perplexity_checks("c", ground("FP", 2), ground("QDQ", 2), off, Bounds())[0].passed


def test_what_is_left_to_the_cpu_is_named() -> None:
    assert delegation_check("c", ()).passed
    assert delegation_check("c", ("llama::fallback.out", "quantized_decomposed::embedding_byte.out")).passed
    check = delegation_check("c", ("llama::fallback.out", "aten::layer_norm.out"))
    assert not check.passed
    assert check.text == "left to the CPU: aten::layer_norm.out"


def test_logits_are_held_to_qdqs() -> None:
    one = np.array([[3.0, -4.0], [1.0, 2.0]])
    assert sqnr_db(one, one) == math.inf
    assert sqnr_db(one, one * 1.01) == pytest.approx(40)
    assert sqnr_db(one, -one) == pytest.approx(-20 * math.log10(2))
    bounds = Bounds(phone_vs_qdq_sqnr=30)
    check = logits_check("c", {"prefill": (44.0, 128), "kv": (29.9, 16)}, bounds)
    assert not check.passed
    assert "29.9 dB over 16 tokens" in check.text
    assert logits_check("c", {"prefill": (44.0, 128), "kv": (30.0, 16)}, bounds).passed
    assert not logits_check("c", {}, bounds).passed


def test_few_tokens_are_judged_with_their_chance() -> None:
    """Noise of 0.2 nats a token is no bias over 32 tokens; the same mean over 3,200 is."""
    noise = [0.2, -0.2] * 1600
    qdq = GroundScore("QDQ", "full", (-2.0,) * 3200, 100, 512)

    def phone_of(bias: float, tokens: int) -> GroundScore:
        return GroundScore("PHONE", "kv", tuple(-2.0 - bias + x for x in noise[:tokens]), 10, 512)

    def passes(bias: float, tokens: int) -> bool:
        return perplexity_checks("c", ground("FP", 2), qdq, [phone_of(bias, tokens)], Bounds())[0].passed

    assert chance(phone_of(0, 32).each, qdq.each) == pytest.approx(2 * 0.2 / math.sqrt(32), rel=0.1)
    assert [passes(0.06, 32), passes(0.06, 3200), passes(0.11, 32)] == [True, False, False]
    assert [passes(0.02, 3200), passes(-0.06, 3200)] == [True, False]
    assert chance((-1.0,), (-2.0,)) == 0


def test_a_phone_that_scored_nothing_does_not_pass() -> None:
    assert not perplexity_checks("c", ground("FP", 2), ground("QDQ", 2), [], Bounds())[0].passed
    assert not perplexity_checks("c", ground("FP", 2), ground("QDQ", 2), [phone("kv", 2, 0)], Bounds())[0].passed


def test_other_tokens_do_not_compare() -> None:
    checks = perplexity_checks("c", ground("FP", 2, 99), ground("QDQ", 2), [phone("kv", 2.0)], Bounds())
    assert [check.passed for check in checks] == [True, False]
