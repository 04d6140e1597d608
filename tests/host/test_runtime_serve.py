"""The runner that stays: frames, requests and their answers, and how it ends; on a toy HTP, then on the simulator."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from events import HANG_S
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_fixtures import ToyHtp, toy_info
from toy_runner import AR, CONTEXT

from harness.frames import MAX_FRAME, FrameError, encode_frame, take_frame
from harness.paths import REPOSITORY
from harness.runtime.generate import generate
from harness.runtime.program import read_info
from harness.runtime.sampling import dequantise, greedy, log_softmax, sampler
from harness.runtime.score import (
    TOP,
    Leg,
    LegScore,
    legs_json,
    likeliest,
    parse_scores,
    parse_walk,
    request_json,
    score,
)
from harness.runtime.session import Session
from harness.text.tokenizer import load_tokenizer
from harness.text.windows import Window
from harness.toolchain.environment import find_toolchain

TOY = [sys.executable, str(Path(__file__).with_name("toy_runner.py")), "--x_serve"]
LIMIT_S = HANG_S


class Runner:
    """A runner with its streams; `ready` is its first frame."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pending = bytearray()
        self.ready = self.receive()
        self.asked = 0

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while (message := take_frame(self.pending)) is None:
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"the runner ended: {self.end()}"
            self.pending += data
        return message

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        self.asked += 1
        self.write(encode_frame({"op": op, "id": self.asked, **fields}))
        answer = self.receive()
        assert answer.pop("id") == self.asked
        return answer

    def scores(self, windows: list[Window], graph: Any) -> list[tuple[float, ...]]:
        answer = self.ask("score", **request_json(windows, graph))
        assert answer["ok"], answer
        return [result.logprobs for result in parse_scores(answer["windows"])]

    def end(self) -> tuple[int, str, bytes]:
        """Status, stderr, and what is left of stdout, after the end of its input."""
        out, err = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, err.decode(errors="replace"), bytes(self.pending) + out


@contextmanager
def started(argv: list[str], cwd: Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, cwd=cwd, env=dict(env), stdin=pipe, stdout=pipe, stderr=pipe) as process:
        killer = threading.Timer(LIMIT_S, process.kill)
        killer.start()
        try:
            yield process
        finally:
            killer.cancel()
            process.kill()


@contextmanager
def toy(cwd: Path, **wanted: Any) -> Iterator[Runner]:
    with started(TOY, cwd, {**os.environ, "TOY": json.dumps(wanted)}) as process:
        yield Runner(process)


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    with toy(tmp_path, noise="noise by descriptor\n") as one:
        yield one


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """One for the tests that leave it running."""
    with toy(tmp_path_factory.mktemp("runner")) as one:
        yield one


def local() -> Session:
    return Session(ToyHtp(toy_info(CONTEXT, AR)))


# ---- frames -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.booleans()))), st.data())
def test_frames_survive_any_cut(messages: list[dict[str, Any]], data: st.DataObject) -> None:
    stream = b"".join(encode_frame(message) for message in messages)
    buffer, found, at = bytearray(), [], 0
    while at < len(stream):
        step = data.draw(st.integers(1, len(stream) - at))
        buffer += stream[at : at + step]
        at += step
        while (message := take_frame(buffer)) is not None:
            found.append(message)
    assert found == messages
    assert not buffer


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0\0\0\x03[1]", "no JSON object but list"),
        (b"\0\0\0\x02{]", "not JSON"),
        (b"\0\0\0\x02\xff\xfe", "not JSON"),
        (b"\0\0\0\0", "not JSON"),
        ((MAX_FRAME + 1).to_bytes(4, "big"), "the limit is"),
        (b"PyTorchObserver", "the limit is"),
        (b"\0\0\xff\xff" + b"[" * 0xFFFF, "not JSON"),
    ],
)
def test_what_is_no_frame(data: bytes, words: str) -> None:
    with pytest.raises(FrameError, match=words):
        take_frame(bytearray(data))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"x", "x" * (MAX_FRAME + 1)], ids=lambda v: str(v)[:9])
def test_what_fits_no_frame(value: Any) -> None:
    with pytest.raises(FrameError):
        encode_frame({"value": value})


# ---- requests -----------------------------------------------------------------------------------------------------


def test_noise_goes_to_stderr_and_the_end_of_the_input_is_a_good_end(runner: Runner, tmp_path: Path) -> None:
    facts = {key: value for key, value in runner.ready.items() if key not in ("load_ms", "peak_rss_kib")}
    assert facts == {
        "op": "ready",
        "protocol": 1,
        "mode": "hybrid",
        "context": CONTEXT,
        "ar_len": {"kv_forward": 1, "prefill_forward": AR},
        "vocab": 13,
        "soc": None,
        "bos": 1,
        "eos": 2,
    }
    assert runner.ready["peak_rss_kib"] > 0
    status, err, rest = runner.end()
    assert (status, rest) == (0, b"")
    assert "noise by descriptor\n" in err
    assert "noise by print\n" in err
    assert list(tmp_path.iterdir()) == []


def test_quit_is_answered_and_ends_it(runner: Runner) -> None:
    assert runner.ask("quit") == {"ok": True}
    assert runner.end()[::2] == (0, b"")


def test_scores_are_those_of_the_same_session_without_a_process(shared: Runner) -> None:
    windows = [Window((1, 2, 3, 4, 5), (2, 3, 4, 5, 6)), Window((7,), (8,)), Window((3,) * CONTEXT, (4,) * CONTEXT)]
    for graph in ("kv", "prefill", "kv"):
        expected = score(local(), windows, graph)
        answer = shared.ask("score", **request_json(windows, graph))
        found = parse_scores(answer["windows"])
        assert [(f.logprobs, f.greedy, f.steps) for f in found] == [(e.logprobs, e.greedy, e.steps) for e in expected]
    assert shared.ask("score", graph="kv", windows=[]) == {"ok": True, "windows": []}


@pytest.mark.parametrize(("prompt", "max_new", "count"), [([5, 6, 7], 4, 4), ([1], 1, 1), ([2] * 9, 99, CONTEXT - 9)])
def test_generation_is_that_of_the_same_session(shared: Runner, prompt: list[int], max_new: int, count: int) -> None:
    expected = generate(local(), prompt, seq_len=0, choose=greedy).tokens[:max_new]
    for _ in range(2):
        answer = shared.ask("generate", tokens=prompt, max_new=max_new)
        assert answer["ok"]
        assert tuple(answer["tokens"]) == expected
        assert len(expected) == count
        assert (answer["prefill_steps"], answer["decode_steps"]) == (-(-len(prompt) // AR), count - 1)
        assert not answer["stopped"]
        assert answer["ttft_ms"] > 0
        assert answer["decode_ms"] >= 0


def test_stop_tokens_and_sampling(shared: Runner) -> None:
    free = shared.ask("generate", tokens=[5, 6, 7], max_new=9)["tokens"]
    stop = free[2]
    answer = shared.ask("generate", tokens=[5, 6, 7], max_new=9, stop=[stop, 999])
    assert answer["tokens"] == free[: free.index(stop) + 1]
    assert answer["stopped"]
    info = toy_info(CONTEXT, AR)
    choose = sampler(50.0, info.logits_scale, info.logits_zero_point, 7)
    expected = generate(local(), [5, 6, 7], seq_len=0, choose=choose).tokens
    for _ in range(2):
        sampled = shared.ask("generate", tokens=[5, 6, 7], max_new=99, temperature=50, seed=7)["tokens"]
        assert tuple(sampled) == expected
    assert sampled != free


def test_a_conversation_continues_the_cache(shared: Runner) -> None:
    session = local()
    turns = [[1, 2], [3, 4, 5], [6]]
    expected = [generate(session, turn, seq_len=session.n_past + len(turn) + 3, choose=greedy) for turn in turns]
    answers = [shared.ask("generate", tokens=turn, max_new=3, fresh=n == 0) for n, turn in enumerate(turns)]
    assert [tuple(answer["tokens"]) for answer in answers] == [turn.tokens for turn in expected]
    # Something that is refused leaves it as it is: the next turn is the fourth.
    assert shared.ask("generate", tokens=[13], max_new=1, fresh=False)["ok"] is False
    assert shared.ask("score", graph="kv", windows=[{"input": [1], "target": [13]}])["ok"] is False
    fourth = generate(session, [7], seq_len=session.n_past + 1 + 1, choose=greedy)
    assert tuple(shared.ask("generate", tokens=[7], max_new=1, fresh=False)["tokens"]) == fourth.tokens
    full = shared.ask("generate", tokens=[1] * 9, max_new=1, fresh=False)
    assert (full["ok"], full["class"]) == (False, "CONFIG")
    assert "leave no room" in full["what"]
    shared.scores([Window((1,), (2,))], "kv")
    gone = shared.ask("generate", tokens=[7], max_new=1, fresh=False)
    assert "no conversation" in gone["what"]


def test_lookahead_gives_the_tokens_of_kv_and_repeats(tmp_path: Path) -> None:
    expected = generate(local(), [5, 6, 7], seq_len=9, choose=greedy).tokens
    with toy(tmp_path, lookahead=[2, 2, 2]) as runner:
        assert (runner.ready["mode"], runner.ready["ar_len"]["kv_forward"]) == ("lookahead", 4)
        answers = [runner.ask("generate", tokens=[5, 6, 7], max_new=6) for _ in range(2)]
        for answer in answers:
            assert tuple(answer["tokens"]) == expected
            # A fresh conversation has a fresh pool: what an earlier one guessed does not save it steps.
            assert answer["decode_steps"] == answers[0]["decode_steps"] == 5 - answer["accepted"]
        assert runner.ask("score", graph="kv", windows=[WINDOW])["class"] == "CONFIG"
        assert len(runner.scores([Window((1, 2), (2, 3))], "prefill")) == 1


def walked(runner: Runner, legs: list[Leg]) -> list[LegScore]:
    answer = runner.ask("walk", legs=legs_json(legs))
    assert answer["ok"], answer
    return parse_walk(answer["legs"])


def rows_of(runner: Runner, tokens: list[int], graph: str) -> npt.NDArray[np.float64]:
    """Log-probabilities [n,V] after each token by `logits`, from an empty cache."""
    answer = runner.ask("logits", graph=graph, tokens=tokens)
    raw = np.frombuffer(base64.b64decode(answer["logits"]), dtype=answer["dtype"]).reshape(len(tokens), -1)
    return log_softmax(dequantise(raw, answer["scale"], answer["zero_point"]))


def check_leg(found: LegScore, leg: Leg, rows: npt.NDArray[np.float64]) -> None:
    """`rows`: log-probabilities of the whole text; the leg's begin at what it keeps."""
    here = rows[leg.keep : leg.keep + len(leg.inputs)]
    ids = likeliest(here, min(TOP, here.shape[1]))
    assert found.top.ids.tolist() == ids.tolist()
    np.testing.assert_allclose(found.top.logprobs, np.take_along_axis(here, ids, axis=1), atol=1e-6)
    np.testing.assert_allclose(found.logprobs, here[np.arange(len(leg.targets)), leg.targets], atol=1e-9)


STORY = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 12, 3]


def leg(keep: int, graph: Any, end: int, targets: bool = True) -> Leg:
    """Of STORY, from `keep` to `end`."""
    following = (*STORY[1:], 0)
    return Leg(keep, graph, tuple(STORY[keep:end]), tuple(following[keep:end]) if targets else ())


@pytest.mark.parametrize("depth", [AR - 1, AR, AR + 1, 2 * AR + 1, CONTEXT - 1])
def test_a_walk_over_a_handover_and_a_rewind_gives_the_rows_of_the_text(shared: Runner, depth: int) -> None:
    """Of the toy every way to a text gives the same logits: any other column, position or mask gives others."""
    rows = rows_of(shared, STORY, "kv")
    legs = [
        leg(0, "prefill", depth),
        Leg(depth, "kv", (7, 7, 7)[: CONTEXT - depth]),  # other tokens, forgotten again
        leg(depth, "kv", CONTEXT),
        leg(0, "kv", depth, targets=False),
        leg(depth - 1, "prefill", CONTEXT),
    ]
    found = walked(shared, legs)
    for score_, one in zip(found, legs, strict=True):
        if one.targets:
            check_leg(score_, one, rows)
        else:
            assert (score_.logprobs, len(score_.top)) == ((), 0)
        assert score_.steps == (len(one.inputs) if one.graph == "kv" else -(-len(one.inputs) // AR))
        assert score_.seconds >= 0


def test_a_walk_begins_and_leaves_an_empty_cache(shared: Runner) -> None:
    rows = rows_of(shared, STORY, "kv")
    for _ in range(2):
        shared.ask("generate", tokens=[5, 6, 7], max_new=3)
        check_leg(walked(shared, [leg(0, "kv", 6)])[0], leg(0, "kv", 6), rows)
        assert "no conversation" in shared.ask("generate", tokens=[7], max_new=1, fresh=False)["what"]


def test_a_refused_walk_leaves_the_conversation(shared: Runner) -> None:
    expected = shared.ask("generate", tokens=[5, 6, 7], max_new=9)["tokens"]
    begun = shared.ask("generate", tokens=[5, 6, 7], max_new=3)["tokens"]
    assert shared.ask("walk", legs=[])["class"] == "CONFIG"
    session = local()
    generate(session, [5, 6, 7], seq_len=6, choose=greedy)
    following = generate(session, [4], seq_len=8, choose=greedy).tokens[:1]
    assert begun == expected[:3]
    assert tuple(shared.ask("generate", tokens=[4], max_new=1, fresh=False)["tokens"]) == following


def test_a_kv_program_walks_its_one_graph_and_refuses_the_other(tmp_path: Path) -> None:
    with toy(tmp_path, prefill=False) as runner:
        assert runner.ready["mode"] == "kv"
        check_leg(walked(runner, [leg(0, "kv", 5)])[0], leg(0, "kv", 5), rows_of(runner, STORY[:5], "kv"))
        answer = runner.ask("walk", legs=legs_json([leg(0, "kv", 3), leg(3, "prefill", 5)]))
        assert (answer["ok"], answer["class"], answer["where"]) == (False, "CONFIG", "legs[1]")
        assert "no prefill_forward" in answer["what"]


def test_in_lookahead_a_walk_takes_consecutive_tokens_a_step(tmp_path: Path) -> None:
    with toy(tmp_path, lookahead=[2, 2, 2]) as runner:
        step = runner.ready["ar_len"]["kv_forward"]
        rows = rows_of(runner, STORY, "prefill")
        legs = [leg(0, "prefill", 5), leg(5, "kv", 12)]
        for score_, one in zip(walked(runner, legs), legs, strict=True):
            check_leg(score_, one, rows)
        assert walked(runner, [leg(0, "kv", 7)])[0].steps == -(-7 // step)


WINDOW = {"input": [1], "target": [2]}
LEG = {"keep": 0, "graph": "kv", "input": [1, 2], "target": [2, 3]}
FULL = {"keep": 0, "graph": "prefill", "input": [1] * CONTEXT}  # its last block is not kept


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"op": "sing"}, "no such request: 'sing'"),
        ({}, "no such request: None"),
        ({"op": "score"}, "windows"),
        ({"op": "score", "graph": "full", "windows": [WINDOW]}, "graph is 'full'"),
        ({"op": "score", "graph": "kv", "windows": [{"input": [1, 2], "target": [3]}]}, "must be equal"),
        ({"op": "score", "graph": "kv", "windows": [{"input": [1] * 17, "target": [1] * 17}]}, "the context of 16"),
        ({"op": "score", "graph": "kv", "windows": [WINDOW, {"input": [1], "target": [13]}]}, "outside the vocabulary"),
        ({"op": "score", "graph": "kv", "windows": [{"input": [1.0], "target": [1]}]}, "whole numbers"),
        ({"op": "score", "graph": "kv", "windows": [WINDOW], "window": 1}, "knows no window"),
        ({"op": "walk"}, "no walk"),
        ({"op": "walk", "legs": []}, "a walk without a leg"),
        ({"op": "walk", "legs": [1]}, "no walk"),
        ({"op": "walk", "legs": [LEG], "graph": "kv"}, "knows no graph"),
        ({"op": "walk", "legs": [LEG | {"graph": "full"}]}, "no walk"),
        ({"op": "walk", "legs": [LEG | {"keep": 1.0}]}, "no walk"),
        ({"op": "walk", "legs": [LEG | {"keep": True}]}, "no walk"),
        ({"op": "walk", "legs": [LEG | {"input": ["1"]}]}, "no walk"),
        ({"op": "walk", "legs": [LEG | {"target": [2]}]}, "2 inputs and 1 targets must be equal"),
        ({"op": "walk", "legs": [LEG | {"input": [], "target": []}]}, "a leg has at least one"),
        ({"op": "walk", "legs": [LEG | {"keep": -1}]}, "2 tokens after -1"),
        ({"op": "walk", "legs": [LEG, LEG | {"keep": 15}]}, "the context holds 16"),
        ({"op": "walk", "legs": [LEG | {"input": [1, 13]}]}, "outside the vocabulary"),
        ({"op": "walk", "legs": [LEG | {"target": [-1, 2]}]}, "outside the vocabulary"),
        ({"op": "walk", "legs": [LEG | {"keep": 1}]}, "1 tokens are to stay, but the cache holds 0"),
        ({"op": "walk", "legs": [LEG, LEG | {"keep": 3}]}, "3 tokens are to stay, but the cache holds 2"),
        ({"op": "walk", "legs": [FULL, LEG | {"keep": 13}]}, "13 tokens are to stay, but the cache holds 12"),
        ({"op": "logits", "graph": "kv"}, "whole numbers"),
        ({"op": "logits", "graph": "full", "tokens": [1]}, "graph is 'full'"),
        ({"op": "logits", "graph": "kv", "tokens": [1, 13]}, "outside the vocabulary"),
        ({"op": "logits", "graph": "kv", "tokens": []}, "from 1 to the context"),
        ({"op": "logits", "graph": "kv", "tokens": [1, 2], "last": 3}, "from 1 to the tokens' number"),
        ({"op": "logits", "graph": "kv", "tokens": [1, 2], "last": 0}, "from 1 to the tokens' number"),
        ({"op": "generate", "max_new": 1}, "no prompt"),
        ({"op": "generate", "tokens": [], "max_new": 1}, "an empty prompt"),
        ({"op": "generate", "tokens": [13], "max_new": 1}, "outside the vocabulary"),
        ({"op": "generate", "tokens": "12", "max_new": 1}, "whole numbers"),
        ({"op": "generate", "tokens": [1] * 16, "max_new": 1}, "leave no room"),
        ({"op": "generate", "tokens": [1]}, "None tokens to generate"),
        ({"op": "generate", "tokens": [1], "max_new": 0}, "0 tokens to generate"),
        ({"op": "generate", "tokens": [1], "max_new": 1, "temperature": -1}, "no temperature"),
        ({"op": "generate", "tokens": [1], "max_new": 1, "seed": "x"}, "no seed"),
        ({"op": "generate", "tokens": [1], "max_new": 1, "fresh": 1}, "neither true nor false"),
        ({"op": "generate", "tokens": [1], "max_new": 1, "fresh": False}, "no conversation"),
        ({"op": "generate", "tokens": [1], "max_new": 1, "max_tokens": 2}, "knows no max_tokens"),
    ],
)
def test_a_request_that_cannot_be_is_refused_and_the_next_one_answered(
    shared: Runner, request_: dict[str, Any], words: str
) -> None:
    shared.scores([Window((1,), (2,))], "kv")  # no conversation is left of another test
    shared.write(encode_frame({**request_, "id": "seven"}))
    answer = shared.receive()
    assert (answer["id"], answer["ok"], answer["class"]) == ("seven", False, "CONFIG")
    assert words in answer["what"]
    assert {"where", "remedy"} <= set(answer)
    assert len(shared.scores([Window((1,), (2,))], "prefill")) == 1


@pytest.mark.parametrize("kind", ["ProductError", "ValueError"])
def test_a_backend_that_fails_is_the_products_and_the_next_request_is_answered(tmp_path: Path, kind: str) -> None:
    with toy(tmp_path, fail_at=3, fail_as=kind) as runner:
        before = runner.ask("generate", tokens=[1], max_new=2)
        failed = runner.ask("generate", tokens=[4], max_new=9, fresh=False)
        assert (failed["ok"], failed["class"]) == (False, "PRODUCT")
        assert "the step failed" in failed["what"]
        assert "no conversation" in runner.ask("generate", tokens=[4], max_new=9, fresh=False)["what"]
        assert runner.ask("generate", tokens=[1], max_new=2)["tokens"] == before["tokens"]
        status, err, _ = runner.end()
        assert status == 0
        assert ("Traceback" in err) == (kind == "ValueError")


def test_logits_that_are_no_numbers_are_the_products_fault(tmp_path: Path) -> None:
    with toy(tmp_path, scale=float("nan")) as runner:
        for asked in ({"op": "score", "graph": "kv", "windows": [WINDOW]}, {"op": "walk", "legs": [LEG]}):
            answer = runner.ask(**asked)  # type: ignore[arg-type]
            assert (answer["ok"], answer["class"]) == (False, "PRODUCT")
        assert runner.ask("generate", tokens=[1], max_new=2)["ok"]


# ---- how it ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0\0\0\x03[1]", "no JSON object"),
        (b"score 1 2 3\n", "the limit is"),
        (b"\0\0\0\x09{}", "the input ended 6 bytes into a frame"),
        (b"\0", "the input ended 1 bytes into a frame"),
    ],
)
def test_what_is_no_frame_ends_it_with_status_2(runner: Runner, data: bytes, words: str) -> None:
    runner.write(data)
    status, err, rest = runner.end()
    assert (status, rest) == (2, b"")
    assert "ERROR: standard input: " in err
    assert words in err
    assert "Traceback" not in err


def test_a_host_that_reads_no_more_is_a_good_end(runner: Runner) -> None:
    assert runner.process.stdout is not None
    runner.process.stdout.close()
    runner.write(encode_frame({"op": "generate", "id": 1, "tokens": [1], "max_new": 2}))
    assert runner.process.wait(timeout=LIMIT_S) == 0
    assert runner.process.stderr is not None
    assert b"the host has gone" in runner.process.stderr.read()


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (["--prompt", "x"], 2, "takes its requests from standard input alone"),
        (["--eval_mode", "7"], -signal.SIGABRT, "Unsupported llama evaluation mode"),
        ([], -signal.SIGABRT, "Failed to load tokenizer"),
    ],
)
def test_what_does_not_start_says_nothing_on_stdout(tmp_path: Path, flags: list[str], status: int, words: str) -> None:
    argv = [sys.executable, "-m", "harness.runtime", "--x_serve", *flags]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)}
    with started(argv, tmp_path, env) as process:
        out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, out) == (status, b"")
    assert words in err.decode()


# ---- on the simulator ---------------------------------------------------------------------------------------------

TEXT = "In the beginning God created the heavens and the earth. And the earth was without form, and void; "


@pytest.mark.slow
def test_a_walk_on_the_simulator_gives_the_rows_of_logits_and_crosses_every_seam(
    runtime_artifacts: dict[str, Path], tmp_path: Path
) -> None:
    info = read_info(runtime_artifacts["hybrid"])
    assert info.prefill is not None
    block, context = info.prefill.ar_len, info.context_len
    ids = load_tokenizer(runtime_artifacts["tokenizer"]).encode(TEXT * 5, bos=True)[: context + 1]

    def part(keep: int, graph: Any, end: int) -> Leg:
        return Leg(keep, graph, tuple(ids[keep:end]), tuple(ids[keep + 1 : end + 1]))

    deep = context - 2
    legs = [
        part(0, "prefill", block + 2),
        part(0, "kv", 6),
        Leg(3, "kv", tuple(ids[9:12])),  # other tokens, forgotten again
        part(3, "kv", 6),
        part(0, "prefill", block + 1),
        part(block + 1, "kv", block + 4),
        part(block + 1, "kv", block + 4),
        part(0, "prefill", deep),
        part(deep, "kv", context),
    ]
    argv = [
        *(sys.executable, "-m", "harness.runtime", "--model_path", str(runtime_artifacts["hybrid"]), "--x_serve"),
        *("--tokenizer_path", str(runtime_artifacts["tokenizer"]), "--eval_mode", "1"),
    ]
    with started(argv, tmp_path, find_toolchain().environment()) as process:
        runner = Runner(process)
        found = walked(runner, legs)
        blocks, single = rows_of(runner, ids[:context], "prefill"), rows_of(runner, ids[:6], "kv")
    # One graph alone: to the last bit what `logits` gives, after a rewind too.
    for number, rows in ((0, blocks), (1, single), (3, single), (4, blocks), (7, blocks)):
        check_leg(found[number], legs[number], rows)
    assert found[2].logprobs == ()
    # Decode on what prefill left: the same each time, and near the other graph's, which rounds differently.
    assert (found[5].logprobs, found[5].top.ids.tolist()) == (found[6].logprobs, found[6].top.ids.tolist())
    for number in (5, 8):
        places = np.arange(legs[number].keep, legs[number].keep + len(legs[number].inputs))
        np.testing.assert_allclose(found[number].logprobs, blocks[places, legs[number].targets], atol=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["hybrid", "kv"])
def test_a_stayed_runner_answers_as_one_that_is_started_for_it(
    runtime_artifacts: dict[str, Path], tmp_path: Path, mode: str
) -> None:
    graphs = ("kv", "prefill") if mode == "hybrid" else ("kv",)
    ids = load_tokenizer(runtime_artifacts["tokenizer"]).encode(TEXT * 2, bos=True)[:40]
    # Blocks of the prefill graph cost a step each, and more than one is wanted; in kv mode each token costs a step.
    length = 35 if mode == "hybrid" else 9
    windows = {
        "kv": [Window(tuple(ids[:9]), tuple(ids[1:10])), Window(tuple(ids[:2]), tuple(ids[1:3]))],
        "prefill": [Window(tuple(ids[:length]), tuple(ids[1 : length + 1])), Window(tuple(ids[:5]), tuple(ids[1:6]))],
    }
    first, second = ids[:length], ids[36:40]
    base = [
        *(sys.executable, "-m", "harness.runtime", "--model_path", str(runtime_artifacts[mode])),
        *("--tokenizer_path", str(runtime_artifacts["tokenizer"]), "--eval_mode", "1" if mode == "hybrid" else "0"),
    ]
    env = find_toolchain().environment()

    def once(*flags: str) -> None:
        done = subprocess.run([*base, *flags], cwd=tmp_path, env=env, capture_output=True, timeout=LIMIT_S, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    def generated(prompt: list[int], count: int) -> list[int]:
        np.array(prompt, dtype="<u8").tofile(tmp_path / "prompt.raw")
        length = str(len(prompt) + count)
        once("--tokenized_prompt", "prompt.raw", "--seq_len", length, "--x_ignore_eos", "--x_stats_path", "stats.json")
        return list(json.loads((tmp_path / "stats.json").read_text())["turns"][0]["tokens"])

    expected = {}
    for graph in graphs:
        (tmp_path / "request.json").write_text(json.dumps(request_json(windows[graph], graph)))
        once("--x_score_path", "request.json", "--x_score_output", "scores.json")
        found = parse_scores(json.loads((tmp_path / "scores.json").read_text())["windows"])
        expected[graph] = [result.logprobs for result in found]
    tokens = generated(first, 6)
    # The same text in one turn and in two: only in kv mode does each token go through the same graph.
    following = generated([*first, *tokens[:-1], *second], 5) if mode == "kv" else None

    with started([*base, "--x_serve"], tmp_path, env) as process:
        runner = Runner(process)
        info = read_info(runtime_artifacts[mode])
        assert info.delegate is not None
        assert [runner.ready[key] for key in ("mode", "context", "vocab", "soc", "bos", "eos")] == [
            *(mode, info.context_len, info.vocab, info.delegate.soc, 1, 2)
        ]
        for graph in graphs:
            assert runner.scores(windows[graph], graph) == expected[graph]
        assert runner.ask("generate", tokens=first, max_new=6)["tokens"] == tokens
        answer = runner.ask("generate", tokens=second, max_new=5, fresh=False)
        assert answer["ok"]
        assert following is None or answer["tokens"] == following
        assert runner.scores(windows[graphs[-1]], graphs[-1]) == expected[graphs[-1]]
        assert runner.ask("generate", tokens=first, max_new=6)["tokens"] == tokens
        status, err, rest = runner.end()
        assert (status, rest) == (0, b"")
        assert err.count("creating module: model_path") == 1
