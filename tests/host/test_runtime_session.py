"""Smart Mask cache, blocks and steps: every way to the same text gives the logits of one token at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_fixtures import ToyHtp, toy_info

from harness.errors import ConfigError, ProductError
from harness.runtime.generate import check_prompt, clamp_seq_len, generate
from harness.runtime.kv_cache import KvCache
from harness.runtime.lookahead import Settings
from harness.runtime.program import read_info
from harness.runtime.sampling import greedy
from harness.runtime.score import score
from harness.runtime.session import Session, plan_blocks
from harness.runtime.stats import Stats
from harness.text.windows import Window

CONTEXT = 16
WINDOWS = st.sampled_from([None, 1, 3, 9])
TOKENS = st.lists(st.integers(0, 12), min_size=1, max_size=CONTEXT - 1)


def truth(tokens: list[int], window: int | None) -> np.ndarray:
    """Raw logits of each token from the toy's rules alone: one graph as long as the text, no cache at all."""
    info = toy_info(context=len(tokens) + 1, ar=len(tokens), window=window)
    spec = info.graphs["prefill_forward"]
    order = np.arange(len(tokens))
    causal = order[:, None] >= order[None]
    near = causal & (order[:, None] - order[None] < (window or CONTEXT))
    masks = [np.pad(m, ((0, 0), (1, 0))).astype(np.uint16)[None, None] * 65535 for m in (causal, near)]
    caches = [np.full(s.shape, 77, np.uint8) for s in (*spec.k_in, *spec.v_in)]
    inputs = [np.array([tokens], np.int32), *(masks if spec.sliding else masks[:1]), order[None].astype(np.int32)]
    return ToyHtp(info).run("prefill_forward", [*inputs, *caches])[0][0]


@settings(max_examples=60, deadline=None)
@given(TOKENS, st.integers(2, 9), WINDOWS, st.data())
def test_any_cut_into_turns_and_steps_gives_the_same_logits(
    tokens: list[int], ar: int, window: int | None, data: st.DataObject
) -> None:
    expected = truth(tokens, window)
    session = Session(ToyHtp(toy_info(CONTEXT, ar, window)))
    for half in (*session.cache._flat_k, *session.cache._flat_v):
        half[:] = 99  # what an unmasked column would add
    rows: list[np.ndarray] = []

    def collect(new: np.ndarray) -> None:
        rows.append(new.copy())

    while session.n_past < len(tokens):
        start = session.n_past
        count = data.draw(st.integers(1, len(tokens) - start))
        if count == 1 and data.draw(st.booleans()):
            rows.append(session.step(tokens[start])[None])
        else:
            session.feed(tokens[start : start + count], on_rows=collect)
        if session.n_past > 1 and data.draw(st.integers(0, 4)) == 0:
            keep = data.draw(st.integers(0, session.n_past - 1))
            session.rewind(keep)
            rows[:] = [np.concatenate(rows)[:keep]]
    np.testing.assert_array_equal(np.concatenate(rows), expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=CONTEXT), st.integers(2, 9), WINDOWS)
def test_scores_are_the_same_with_both_graphs_up_to_the_whole_context(
    tokens: list[int], ar: int, window: int | None
) -> None:
    session = Session(ToyHtp(toy_info(CONTEXT, ar, window)))
    target = tuple((token * 5 + 1) % 13 for token in tokens)
    window_of = [Window(tuple(tokens), target)] * 2
    by_token = score(session, window_of, "kv")
    by_block = score(session, window_of, "prefill")
    raw = truth(tokens, window).astype(float) * 0.01
    expected = [row[t] - np.log(np.exp(row - row.max()).sum()) - row.max() for row, t in zip(raw, target, strict=True)]
    for result in (*by_token, *by_block):
        np.testing.assert_allclose(result.logprobs, expected, rtol=1e-9, atol=1e-9)
        assert result.greedy == tuple(bool(h) for h in raw.argmax(axis=1) == np.array(target))
    assert by_token[0].steps == len(tokens)
    assert by_block[0].steps == len(list(plan_blocks(0, len(tokens), ar, CONTEXT)))


@given(st.integers(0, 40), st.integers(1, 40), st.integers(1, 39))
def test_blocks_cover_each_new_token_once_and_fit_the_cache(done: int, more: int, ar: int) -> None:
    context = 40
    total = min(done + more, context)
    blocks = list(plan_blocks(done, total, ar, context))
    fresh = [i for block in blocks for i in range(block.fresh, block.end)]
    assert fresh == list(range(done, total))
    for block in blocks:
        assert 0 <= block.start <= block.fresh < block.end <= block.start + ar
        assert block.start <= context - ar
    if done == 0 and total <= context - ar:
        assert len(blocks) == -(-total // ar)


def test_only_new_columns_are_copied() -> None:
    session = Session(ToyHtp(toy_info(CONTEXT, 4)))
    column = 2 * 2 * (2 * 3)  # layers × (K and V) × heads × head_dim, one byte each
    session.feed([1] * 6)
    assert session.bytes_per_step == [4 * column, 2 * column]
    for token in range(3):
        session.step(token)
    assert session.bytes_per_step[2:] == [column] * 3
    assert session.cache.copied.switch == 4 * column  # once, from blocks to single steps


def test_a_change_of_graph_keeps_the_columns() -> None:
    info = toy_info(CONTEXT, 4)
    cache = KvCache(info, info.graphs["prefill_forward"])
    rng = np.random.default_rng(1)
    k = [rng.integers(0, 255, (1, 2, 3, 4), dtype=np.uint8) for _ in range(2)]
    v = [rng.integers(0, 255, (1, 2, 4, 3), dtype=np.uint8) for _ in range(2)]
    cache.commit(k, v, [3, 0])
    cache.switch(info.graphs["kv_forward"])
    assert [x.shape for x in cache.inputs()] == [(1, 2, 3, 15)] * 2 + [(1, 2, 15, 3)] * 2
    for layer in range(2):
        np.testing.assert_array_equal(cache.k[layer][..., :2], k[layer][..., [3, 0]])
        np.testing.assert_array_equal(cache.v[layer][:, :, :2], v[layer][:, :, [3, 0]])
    for _ in range(3):
        cache.commit(k, v, slice(0, 4))
    with pytest.raises(ValueError, match="do not fit"):
        cache.commit(k, v, slice(0, 4))


@pytest.mark.parametrize("length", [1, 3, 4, 5, 11, 12, 13, 15])
def test_generation_equals_one_token_at_a_time(length: int) -> None:
    prompt = [(3 * i + 2) % 13 for i in range(length)]
    results = [
        generate(Session(ToyHtp(toy_info(CONTEXT, 4)), graph), prompt, seq_len=0, choose=greedy, keep_logits=True)
        for graph in ("prefill_forward", "kv_forward")
    ]
    text = [*prompt, *results[0].tokens]
    logits = truth(text[:-1], None)
    assert list(results[0].tokens) == [int(row.argmax()) for row in logits[length - 1 :]]
    assert len(results[0].tokens) == CONTEXT - length
    for result in results:
        assert result.tokens == results[0].tokens
        np.testing.assert_array_equal(result.prompt_logits, logits[:length])
        if length < CONTEXT - 1:
            np.testing.assert_array_equal(result.decode_logits, logits[length:])


def test_stop_tokens_end_a_turn_and_are_emitted() -> None:
    prompt = [5, 6, 7]
    free = generate(Session(ToyHtp(toy_info(CONTEXT, 4))), prompt, seq_len=0, choose=greedy)
    stop = free.tokens[2]
    at = free.tokens.index(stop)
    emitted: list[tuple[int, int]] = []
    stats = Stats()
    result = generate(
        Session(ToyHtp(toy_info(CONTEXT, 4))),
        prompt,
        seq_len=0,
        choose=greedy,
        stop={stop},
        emit=lambda previous, token: emitted.append((previous, token)),
        stats=stats,
    )
    assert result.stopped
    assert result.tokens == free.tokens[: at + 1]
    assert [token for _, token in emitted] == list(result.tokens)
    assert [previous for previous, _ in emitted] == [free.tokens[0], *free.tokens[:at]]
    assert (stats.prompt_tokens, stats.generated_tokens) == (3, at)


def test_two_turns_share_the_cache() -> None:
    session = Session(ToyHtp(toy_info(CONTEXT, 4)))
    first = generate(session, [1, 2], seq_len=6, choose=greedy)
    second = generate(session, [3, 4, 5], seq_len=16, choose=greedy)
    text = [1, 2, *first.tokens[:-1], 3, 4, 5]  # the last token of a turn was never fed
    assert second.tokens[0] == int(truth(text, None)[-1].argmax())


@pytest.mark.parametrize(("past", "prompt", "seq_len"), [(0, 0, 16), (0, 16, 16), (10, 6, 16)])
def test_prompts_that_cannot_run_are_refused(past: int, prompt: int, seq_len: int) -> None:
    session = Session(ToyHtp(toy_info(16, 4)))
    if past:
        session.feed([1] * past)
    with pytest.raises(ProductError):
        check_prompt(session, prompt, seq_len)


def test_seq_len_is_clamped_to_the_context() -> None:
    assert [clamp_seq_len(n, 16) for n in (-1, 0, 1, 16, 17)] == [16, 16, 1, 16, 16]


def test_bad_tokens_and_windows_are_refused() -> None:
    session = Session(ToyHtp(toy_info(CONTEXT, 4, prefill=False)))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        session.feed([13])
    with pytest.raises(ConfigError, match="no prefill_forward"):
        score(session, [Window((1,), (1,))], "prefill")
    for window in (Window((1, 2), (1,)), Window((), ()), Window((1,) * 17, (1,) * 17), Window((1,), (13,))):
        with pytest.raises(ConfigError, match=r"windows\[0\]"):
            score(session, [window], "kv")


@pytest.mark.parametrize(("decode_ar", "context"), [(1, 16), (8, 48)])
def test_smart_mask_copies_a_column_a_token_and_needs_a_context(decode_ar: int, context: int) -> None:
    """ExecuTorch documents for Smart Mask: a step copies num_head × head_dim for K and as much for V (of a layer, for
    each token it takes), and the cache takes num_head × seq_len × head_dim for each, the step's own columns included.
    """
    info = toy_info(context, 4, decode_ar=decode_ar)
    session = Session(ToyHtp(info))
    heads, dim, layers = info.n_kv_heads, info.head_dim, info.n_layers
    column = layers * (heads * dim + heads * dim)  # one byte each: uint8
    session.feed([1, 2, 3, 4, 5, 6])
    assert session.bytes_per_step == [4 * column, 2 * column]
    if decode_ar == 1:
        session.step(7)
        assert session.bytes_per_step[2:] == [column]
    else:
        tree = Settings(3, 2, 2)
        output = session.branch([1, 2, 3], tree.offsets, tree.attention_map)
        session.accept(output, [7, 8, 9], [0, 4, 5])
        assert session.bytes_per_step[2:] == [3 * column]
    for graph in info.graphs.values():
        session.cache.switch(graph)
        held = [array.nbytes for array in session.cache.inputs()]
        own = heads * graph.ar_len * dim  # what the graph itself puts out
        assert [size + own for size in held] == [heads * context * dim] * (2 * layers)


@pytest.mark.slow
def test_the_accounts_of_a_compiled_model(runtime_artifacts: dict[str, Path]) -> None:
    for pte in ("kv", "hybrid", "lookahead"):
        info = read_info(runtime_artifacts[pte])
        for graph in info.graphs.values():
            assert {spec.shape for spec in graph.k_in} == {(1, 2, 32, info.context_len - graph.ar_len)}
            assert {spec.shape for spec in graph.v_in} == {(1, 2, info.context_len - graph.ar_len, 32)}
            assert {spec.dtype for spec in (*graph.k_in, *graph.v_in)} == {"uint8"}
