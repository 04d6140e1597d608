"""Scoring windows, upstream's names, scores of a text on one ground and how two of them compare."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from events import HANG_S
from hypothesis import given
from hypothesis import strategies as st

from harness.evaluate.grounds import GroundScore, ratio, score_text
from harness.evaluate.sqnr import sqnr_db
from harness.paths import MODELS
from harness.results.records import Graph, Ground
from harness.runtime.score import WindowScore
from harness.text.decoders import VERSIONS
from harness.text.heldout import HeldOut, beginning, begins_with, held_out
from harness.text.templates import MULTIMODAL, TEMPLATES
from harness.text.tokenizer import load_tokenizer
from harness.text.windows import Window, rolling_windows
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


def test_likeness_of_logits_in_decibels() -> None:
    one = np.array([[3.0, -4.0], [1.0, 2.0]])
    assert sqnr_db(one, one) == math.inf
    assert sqnr_db(one, one * 1.01) == pytest.approx(40)
    assert sqnr_db(one, -one) == pytest.approx(-20 * math.log10(2))
    assert sqnr_db(one.astype(np.float32), np.zeros((2, 2))) == pytest.approx(0)


def ground(each: Sequence[float], name: Ground = "PHONE", graph: Graph = "kv", words: int = 10) -> GroundScore:
    return GroundScore(name, graph, tuple(each), words, 512, steps=7, seconds=1.23456)


def test_a_perplexity_is_of_the_mean_token() -> None:
    assert ground([-1.0, -2.0, -3.0]).token_ppl == pytest.approx(math.exp(2))
    assert math.isnan(ground([]).token_ppl)


def test_a_score_is_recorded_in_blocks_that_add_up_to_it() -> None:
    record = ground([-1.0 - i / 100 for i in range(70)]).record("cell")
    assert (record.cell, record.ground, record.graph, record.tokens, record.words) == ("cell", "PHONE", "kv", 70, 10)
    assert (record.context_len, record.steps, record.seconds) == (512, 7, 1.235)
    assert [count for count, _ in record.blocks] == [32, 32, 6]
    assert record.blocks[0][1] == pytest.approx(sum(1 + i / 100 for i in range(32)))
    assert sum(nll for _, nll in record.blocks) == pytest.approx(record.nll_sum)
    assert record.nll_sum == pytest.approx(70 + 0.01 * 69 * 70 / 2)


def test_a_text_is_scored_window_by_window() -> None:
    class Two:
        context, vocab = 8, 9

        def score(self, windows: Sequence[Window]) -> list[WindowScore]:
            return [WindowScore((-float(len(w.inputs)),) * len(w.inputs), (), 2, 0.5) for w in windows]

    text = HeldOut((Window((1, 2), (2, 3)), Window((3,), (4,))), 3)
    found = score_text(Two(), "QDQ", "full", text)  # type: ignore[arg-type]
    assert found == GroundScore("QDQ", "full", (-2.0, -2.0, -1.0), 3, 8, 4, 1.0)


def test_two_perplexities_compare_over_the_tokens_that_both_cover() -> None:
    assert ratio([-2.0, -2.0], [-1.0, -2.0, -90.0]) == pytest.approx(math.exp(0.5) - 1)
    assert ratio([-1.0, -2.0, -90.0], [-2.0, -2.0]) == pytest.approx(math.exp(-0.5) - 1)
    assert ratio([], [-1.0]) == math.inf


def test_a_text_begins_with_its_beginnings_and_with_nothing_else() -> None:
    whole = HeldOut((Window((1, 2, 3), (2, 3, 4)), Window((4, 5, 6), (5, 6, 7))), 6)
    first, second = whole.windows
    cut = Window((4, 5), (5, 6))
    for windows, good in (
        ((first, second), True),
        ((first, cut), True),
        ((Window((1, 2), (2, 3)),), True),
        ((), True),
        ((Window((1, 2), (2, 3)), second), False),
        ((first, Window((4, 9), (5, 6))), False),
        ((first, Window((4, 5), (5, 9))), False),
        ((first, second, cut), False),
        ((second,), False),
    ):
        assert begins_with(whole, HeldOut(windows, 1)) is good, windows
