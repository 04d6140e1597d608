"""The witness: what it holds of a text, how it is kept, and the roundings that its spreads are made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_witness import SURE, VOCAB, Floats, LoopQdq, ToyQdq, random_window, toy_witness

from harness.build import testify as making
from harness.build.dither import STEPS_16, random_rounding
from harness.build.witness import (
    COMPARED,
    FILE,
    Guess,
    LookaheadWitness,
    Witness,
    WitnessText,
    load_lookahead,
    load_witness,
    lookahead_file,
    save_lookahead,
)
from harness.errors import NotJudgedError
from harness.runtime.lookahead import Settings
from harness.runtime.sampling import log_softmax
from harness.runtime.score import TOP
from harness.text.windows import Window

QDQ = ToyQdq()
WINDOWS = [random_window(9, 1), random_window(4, 2)]
PROMPTS = [(1, 5, 6), (1, 9)]
TREE = Settings(3, 2, 2)


class Moved:
    """QDQ with a token's log-probability moved in every row, and nothing else."""

    def __init__(self, token: int, by: float) -> None:
        self.token, self.by = token, by

    def __call__(self, tokens: Sequence[int]) -> Floats:
        values = log_softmax(QDQ(tokens))
        others = np.arange(VOCAB) != self.token
        values[:, self.token] += self.by
        left = np.log1p(-np.exp(values[:, self.token])) - np.log(np.exp(values[:, others]).sum(axis=1))
        values[:, others] += left[:, None]
        return values


def made(dithered: Sequence[making.Logits] = (QDQ,), new: int = 7, context: int = 32) -> Witness:
    """The witness of all the texts."""
    return making.testify(QDQ, dithered, WINDOWS, PROMPTS, new, context)


def test_each_texts_rows_are_qdqs() -> None:
    witness = made()
    assert [(text.inputs, text.targets) for text in witness.held_out] == [(w.inputs, w.targets) for w in WINDOWS]
    assert list(witness.prompts) == PROMPTS
    for text in witness.texts:
        values = log_softmax(QDQ(text.inputs))
        assert text.ids.tolist() == np.argsort(-values, axis=1)[:, :TOP].tolist()
        assert text.ids.shape == text.logprobs.shape == (len(text.inputs), TOP)
        np.testing.assert_allclose(text.logprobs, -np.sort(-values, axis=1)[:, :TOP])
        np.testing.assert_allclose(text.target_logprobs, values[np.arange(len(values)), list(text.targets)])
        np.testing.assert_allclose(text.rest, -np.sort(-np.exp(values), axis=1)[:, TOP:].sum(axis=1), atol=1e-12)
    assert witness.texts == (*witness.held_out, *witness.prompts.values())


def test_a_prompt_goes_on_with_qdqs_own_greedy_text() -> None:
    for prompt, text in made().prompts.items():
        assert (text.prompt, text.inputs[: text.prompt]) == (len(prompt), prompt)
        whole = list(prompt)
        for _ in range(7):
            whole.append(int(QDQ(whole)[-1].argmax()))
        assert (*text.inputs, text.targets[-1]) == tuple(whole)
        assert text.targets == text.inputs[1:] + text.targets[-1:]
        assert text.continuation == tuple(whole[len(prompt) :])
    assert [len(text.continuation) for text in made(context=8).prompts.values()] == [5, 6]  # where the context ends
    assert made().held_out[0].prompt == 0
    assert made().held_out[0].continuation == WINDOWS[0].targets


def test_a_vocabulary_smaller_than_what_is_kept_is_kept_whole() -> None:
    window = Window((1, 2, 9), (2, 9, 12))
    text = making.testify(LoopQdq(), [LoopQdq()], [window], [], 1, 9).held_out[0]
    assert text.ids.shape == (3, 13)
    assert text.rest.tolist() == pytest.approx([0] * 3)


def test_a_spread_is_the_rms_of_what_rounding_does_to_the_likeliest_tokens() -> None:
    token = int(WINDOWS[0].targets[3])
    replicas = [Moved(token, -0.2), Moved(token, 0.1), QDQ]
    text = made(replicas).held_out[0]
    values = log_softmax(QDQ(text.inputs))
    moved = np.stack([log_softmax(replica(text.inputs)) - values for replica in replicas])
    order = np.argsort(-values, axis=1)[:, :COMPARED]
    near = np.stack([np.take_along_axis(one, order, axis=1) for one in moved])
    np.testing.assert_allclose(text.spread, np.sqrt((near**2).mean(axis=(0, 2))))
    at = np.stack([one[np.arange(len(values)), list(text.targets)] for one in moved])
    np.testing.assert_allclose(text.target_spread, np.sqrt((at**2).mean(axis=0)))
    assert text.target_spread[3] == pytest.approx(np.sqrt((0.2**2 + 0.1**2) / 3))
    assert made().held_out[0].spread.tolist() == [0.0] * 9
    assert making.REPLICAS == 4


def test_the_typical_spread_is_the_median_of_all_rows() -> None:
    witness = toy_witness(QDQ, WINDOWS, PROMPTS, new=2)
    for number, text in enumerate(witness.texts):
        text.spread[:] = number
    assert [len(text.spread) for text in witness.texts] == [9, 4, 4, 3]
    assert witness.typical_spread == 1.0
    assert Witness(witness.held_out, {}).typical_spread == 0.0


def test_the_rests_mass_is_never_beyond_0_and_1() -> None:
    text = toy_witness(QDQ, WINDOWS).held_out[0]
    heavy = WitnessText(0, (1,), (2,), text.ids[:1, :2], np.array([[0.1, -0.1]]), *([np.zeros(1)] * 3))
    assert heavy.rest.tolist() == [0.0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9999), st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6), st.integers(0, 12))
def test_the_greedy_continuation_is_the_token_by_token_one_in_no_more_passes(
    seed: int, prompt: list[int], count: int
) -> None:
    text = list(prompt)
    for _ in range(count):
        text.append(int(ToyQdq(seed=seed)(text)[-1].argmax()))
    qdq = ToyQdq(seed=seed)
    assert making.greedy_continuation(qdq, prompt, count) == tuple(text[len(prompt) :])
    assert qdq.calls <= count


def test_a_continuation_that_is_guessed_right_takes_one_pass() -> None:
    class Zeros(ToyQdq):
        def __call__(self, tokens: Sequence[int]) -> Floats:
            self.calls += 1
            return np.eye(VOCAB)[[0] * len(tokens)]

    qdq = Zeros()
    assert making.greedy_continuation(qdq, [3], 9) == (0,) * 9
    assert qdq.calls == 1


# Kept and read.


def test_a_witness_is_read_as_it_was_kept(tmp_path: Path) -> None:
    witness = made([Moved(7, 0.1)])
    witness.save(tmp_path)
    again = load_witness(tmp_path)
    assert list(again.prompts) == PROMPTS
    assert len(again.held_out) == 2
    for one, other in zip(witness.texts, again.texts, strict=True):
        assert (one.prompt, one.inputs, one.targets, one.continuation) == (
            *(other.prompt, other.inputs, other.targets, other.continuation),
        )
        assert one.ids.tolist() == other.ids.tolist()
        for name in ("logprobs", "target_logprobs", "spread", "target_spread"):
            np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-6)
            assert getattr(other, name).dtype == np.float64
        assert other.ids.dtype == np.int64
    with np.load(tmp_path / FILE) as data:
        assert {str(data[name].dtype) for name in data.files} == {"int32", "float32"}
    assert again.typical_spread == pytest.approx(witness.typical_spread)
    assert isinstance(again.held_out[0].inputs[0], int)


def test_no_witness_is_not_judged(tmp_path: Path) -> None:
    with pytest.raises(NotJudgedError, match="has no witness") as caught:
        load_witness(tmp_path)
    assert caught.value.where == str(tmp_path / FILE)
    assert "compile again" in caught.value.remedy


def test_a_damaged_witness_is_not_judged(tmp_path: Path) -> None:
    made().save(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    flipped = bytearray(whole)
    flipped[70:110] = bytes(byte ^ 0xFF for byte in flipped[70:110])  # of the first array's packed numbers
    np.savez(tmp_path / "other.npz", prompts=np.array([0]))
    for broken in (b"", b"no zip at all", whole[:100], whole[: len(whole) // 2], bytes(flipped)):
        (tmp_path / FILE).write_bytes(broken)
        with pytest.raises(NotJudgedError, match="cannot be read"):
            load_witness(tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / "other.npz").read_bytes())
    with pytest.raises(NotJudgedError, match="cannot be read") as caught:
        load_witness(tmp_path)
    assert caught.value.where == str(tmp_path / FILE)


def test_lookaheads_witness_is_read_as_it_was_kept(tmp_path: Path) -> None:
    found = {
        (1, 2): LookaheadWitness(5, 3, {(1, (4, 5)): Guess(6, 0.25), (2, (7,)): Guess(8, 1.234567)}),
        (1,): LookaheadWitness(2, 0, {}),
    }
    path = lookahead_file(tmp_path, TREE)
    assert path == tmp_path / "lookahead-3-2-2.json"
    assert (
        len({lookahead_file(tmp_path, Settings(*size)) for size in ((3, 2, 2), (4, 2, 2), (3, 3, 2), (3, 2, 3))}) == 4
    )
    save_lookahead(path, found)
    again = load_lookahead(tmp_path, TREE)
    assert list(again) == [(1, 2), (1,)]
    assert again[1,] == found[1,]
    assert again[1, 2].guesses == {(1, (4, 5)): Guess(6, 0.25), (2, (7,)): Guess(8, 1.23457)}
    assert (again[1, 2].steps, again[1, 2].accepted) == (5, 3)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '[{"prompt": [1]}]', '[{"prompt": [1], "steps": 1, "accepted": 0, "guesses": [[1, 2]]}]']
)
def test_a_lookahead_witness_that_cannot_be_read_is_not_judged(tmp_path: Path, text: str) -> None:
    if text:
        lookahead_file(tmp_path, TREE).write_text(text)
    with pytest.raises(NotJudgedError, match="no witness of lookahead with ngram 3, window 2, gcap 2") as caught:
        load_lookahead(tmp_path, TREE)
    assert caught.value.where == str(tmp_path / "lookahead-3-2-2.json")
    assert caught.value.remedy == "remove it and compile the lookahead cell again"


# Lookahead on QDQ's logits.


def tree(tokens: Sequence[int], sees: np.ndarray, positions: Sequence[int], qdq: making.Logits = QDQ) -> Floats:
    """A row's logits are those of the text that it sees, in the order of its positions."""
    assert (sees.dtype, sees.shape, len(positions)) == (bool, (len(tokens), len(tokens)), len(tokens))
    rows = []
    for row in range(len(tokens)):
        seen = sorted(np.flatnonzero(sees[row]), key=lambda column: positions[column])
        assert [positions[column] for column in seen] == list(range(len(seen)))
        rows.append(qdq([tokens[column] for column in seen])[-1])
    return np.stack(rows)


@pytest.mark.parametrize("size", [TREE, Settings(4, 3, 1), Settings(2, 1, 1)])
def test_a_rows_logits_are_those_of_the_path_that_leads_to_it(size: Settings) -> None:
    text = [1, 5, 6, 7]
    draft = [(3 * place + 2) % VOCAB for place in range(len(size.attention_map))]
    for count in (len(draft), size.levels * size.window):
        found = making.tree_logits(tree, size, text, draft[:count])
        assert found.shape == (count, VOCAB)
        for row in range(count):
            path = [draft[place] for place in size.path(row)]
            np.testing.assert_allclose(found[row], QDQ([*text, *path])[-1])


def test_lookaheads_witness_knows_every_guess_and_its_gap() -> None:
    loop = LoopQdq()
    text = toy_witness(loop, prompts=[(0, 1, 2)], new=20).prompts[0, 1, 2]
    found = making.testify_lookahead(lambda *a: tree(*a, qdq=loop), TREE, text, 20, 64)
    assert found.steps + found.accepted == 19
    assert found.accepted > 0
    assert {done for done, _ in found.guesses} >= {1, 2}
    for (done, path), guess in found.guesses.items():
        assert path[0] == text.continuation[done - 1]
        assert guess == Guess((path[-1] + 1) % 13, pytest.approx(SURE))
        assert len(path) in {len(TREE.path(row)) for row in TREE.guessing_rows}
    short = making.testify_lookahead(lambda *a: tree(*a, qdq=loop), TREE, text, 5, 64)
    assert short.steps + short.accepted == 4
    ended = making.testify_lookahead(lambda *a: tree(*a, qdq=loop), TREE, text, 20, 16)
    assert ended.steps + ended.accepted < 15  # a step of 8 no longer fits
    assert ended.steps > 3


# Random rounding.


INT8 = (0.5, 3, -128, 127, torch.int8)
UINT8 = (0.5, 120, 0, 255, torch.uint8)
INT16 = (0.5, 3, -32768, 32767, torch.int16)
UINT16 = (0.5, 30_000, 0, 65535, torch.uint16)
Step = tuple[float, int, int, int, torch.dtype]


def rounded(x: torch.Tensor, step: Step) -> torch.Tensor:
    """To steps and back, as QDQ writes it."""
    ops = torch.ops.quantized_decomposed
    return ops.dequantize_per_tensor.default(ops.quantize_per_tensor.default(x, *step), *step)


class Rounded(torch.nn.Module):
    """Three quantisers: of the input, then one to 8 bits and one to 16 of what is computed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = rounded(rounded(x, INT8) + 0.1, INT8)
        return rounded(first + 0.2, INT16)


class Once(torch.nn.Module):
    """One quantiser, of what is computed from the input and is equal to it, or of the input itself."""

    def __init__(self, step: Step, of_input: bool = False) -> None:
        super().__init__()
        self.step, self.of_input = step, of_input

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rounded(x if self.of_input else x + 0.0, self.step)


VALUES = torch.arange(-50, 51) / 10
"""At 0, 0.2, 0.4, 0.6 and 0.8 between two steps of 0.5."""


@pytest.mark.parametrize("step", [INT8, UINT8], ids=["int8", "uint8"])
def test_each_value_of_8_bits_goes_to_one_of_its_two_steps_as_often_as_it_is_near(step: Step) -> None:
    graph = torch.fx.symbolic_trace(Once(step))
    with random_rounding(graph, 1) as count:
        assert count == 1
        found = torch.stack([graph(VALUES) for _ in range(2000)])
    low = torch.floor(VALUES / 0.5) * 0.5
    assert ((found == low) | (found == low + 0.5)).all()
    assert (found.mean(dim=0) - VALUES).abs().max() < 0.05
    share = (VALUES - low) / 0.5
    np.testing.assert_allclose((found > low).double().mean(dim=0), share, atol=0.05)
    assert ((found == VALUES).all(dim=0) == (share == 0)).all()  # a value that is a step stays


@pytest.mark.parametrize("step", [INT16, UINT16], ids=["int16", "uint16"])
def test_each_value_of_16_bits_is_moved_by_noise_of_four_steps_before_it_is_rounded(step: Step) -> None:
    assert STEPS_16 == 4.0
    graph = torch.fx.symbolic_trace(Once(step))
    with random_rounding(graph, 1) as count:
        assert count == 1
        found = torch.stack([graph(VALUES) for _ in range(4000)])
    moved = found / 0.5 - torch.floor(VALUES / 0.5)  # in steps, from the step below
    assert (moved == moved.round()).all()
    place = VALUES / 0.5 - torch.floor(VALUES / 0.5)
    shares = []
    for goal in range(-3, 5):
        # what of the noise, even from two steps below the value to two above it, is nearest to this step
        part = (
            torch.minimum(place + 2, goal + torch.tensor(0.5)) - torch.maximum(place - 2, goal - torch.tensor(0.5))
        ) / 4
        shares.append(part.clamp(min=0))
        np.testing.assert_allclose((moved == goal).double().mean(dim=0), shares[-1], atol=0.04)
        assert not (moved == goal)[:, part < -1e-6].any()
    np.testing.assert_allclose(sum(shares), 1.0, rtol=1e-5)
    assert (found.mean(dim=0) - VALUES).abs().max() < 0.05


@pytest.mark.parametrize("step", [INT8, UINT8, INT16, UINT16], ids=["int8", "uint8", "int16", "uint16"])
def test_an_input_keeps_its_steps(step: Step) -> None:
    graph = torch.fx.symbolic_trace(Once(step, of_input=True))
    plain = graph(VALUES)
    with random_rounding(graph, 1) as count:
        assert count == 0
        assert all(torch.equal(graph(VALUES), plain) for _ in range(20))


def test_the_seed_gives_the_same_roundings_and_another_gives_others() -> None:
    graph = torch.fx.symbolic_trace(Rounded())

    def once(seed: int) -> list[float]:
        with random_rounding(graph, seed) as count:
            assert count == 2  # all but the input's
            return graph(VALUES).tolist()

    assert once(1) == once(1) != once(2)


def test_the_graph_is_given_back_as_it_was_whatever_happens() -> None:
    graph = torch.fx.symbolic_trace(Rounded())
    before, code, targets = graph(VALUES), graph.code, [node.target for node in graph.graph.nodes]
    with random_rounding(graph, 1):
        assert graph.code != code
    with pytest.raises(RuntimeError, match="stop"), random_rounding(graph, 1):
        raise RuntimeError("stop")
    assert [node.target for node in graph.graph.nodes] == targets
    assert graph.code == code
    assert torch.equal(graph(VALUES), before)


def test_a_graph_without_quantisers_stays() -> None:
    graph = torch.fx.symbolic_trace(torch.nn.ReLU())
    with random_rounding(graph, 1) as count:
        assert count == 0
        assert torch.equal(graph(VALUES), VALUES.relu())


def test_what_is_kept_of_lookahead_is_plain_json(tmp_path: Path) -> None:
    path = lookahead_file(tmp_path, TREE)
    save_lookahead(path, {(1,): LookaheadWitness(2, 1, {(1, (4, 5)): Guess(6, 0.25)})})
    assert json.loads(path.read_text()) == [
        {"prompt": [1], "steps": 2, "accepted": 1, "guesses": [[1, [4, 5], 6, 0.25]]}
    ]
