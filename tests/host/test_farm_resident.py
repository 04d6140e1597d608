"""A runner that stays on a virtual phone: real adb and processes; first the toy runner, then the real simulator."""

from __future__ import annotations

import json
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from events import HANG_S, NEVER_S, until
from farm_rack import NAPS, link_to, processes
from runtime_fixtures import ToyHtp, toy_info
from toy_runner import AR, CONTEXT

from harness.conduct.speed_witness import Witnessed, speed_check
from harness.errors import ConfigError, CrashError, FailureClass, HarnessError, InfraError, ProductError
from harness.evaluate import phone_scorer
from harness.evaluate.phone_scorer import PhoneScorer
from harness.evaluate.scorer import Scorer
from harness.evaluate.stock_scorer import StockScorer
from harness.farm.connect import PhoneLink
from harness.farm.deploy import DeployReport, deploy
from harness.farm.failures import classify_exception
from harness.farm.payload import Payload, PayloadFile, sim_payload
from harness.farm.recover import sweep
from harness.farm.resident import Resident, resident_spec
from harness.farm.session import SessionSpec, run_session
from harness.farm.shell import AdbLost, AdbTimeout
from harness.farm.workspace import RUN
from harness.paths import REPOSITORY
from harness.rack import manage
from harness.rack.manage import RackState
from harness.rack.phone import tell
from harness.runtime.generate import generate
from harness.runtime.program import read_info
from harness.runtime.sampling import greedy, log_softmax
from harness.runtime.score import Leg, score, walk
from harness.runtime.session import Session
from harness.soc import PHONE_KINDS
from harness.text.tokenizer import load_tokenizer
from harness.text.windows import Window
from harness.toolchain.environment import find_toolchain

LIMIT_S = HANG_S
TOY = Path(__file__).with_name("toy_runner.py")


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RackState]:
    folder = tmp_path_factory.mktemp("rack")
    phones = [("s24", PHONE_KINDS["galaxy_s24"])]
    try:
        yield manage.up(phones, state_dir=folder, boot_delay=0.5, runner_env=find_toolchain().environment({}))
    finally:
        manage.down(folder)


@pytest.fixture
def link(rack: RackState) -> Iterator[PhoneLink]:
    """The phone; a test that leaves a process or a folder on it fails."""
    phone = link_to(rack, "s24")
    phone.wait_ready(HANG_S)
    yield phone
    phone.wait_ready(HANG_S)
    left = processes(phone, "x_serve"), phone.must(f"ls {RUN} 2>/dev/null | wc -l").stdout.strip()
    sweep(phone)
    assert left == ([], "0")


@contextmanager
def once(ready: Callable[[], object], action: Callable[[], object]) -> Iterator[None]:
    """Acts beside the block, as soon as it is so."""

    def act() -> None:
        until(ready)
        action()

    thread = threading.Thread(target=act)
    thread.start()
    yield
    thread.join()


# ---- adb's shell with stdin ---------------------------------------------------------------------------------------


def test_a_stream_goes_both_ways_at_once(link: PhoneLink) -> None:
    data = bytes(range(256)) * 40_000  # 10 MB: more than all buffers on the way
    deadline = time.monotonic() + LIMIT_S
    with link.open_shell("tee /dev/stderr; exit 3") as stream:
        stream.send(data, deadline)
        stream.close_stdin(deadline)
        assert stream.wait(deadline) == 3
        assert stream.stdout == stream.stderr == data


def test_a_stream_ends_with_its_command_its_time_or_its_phone(link: PhoneLink, rack: RackState) -> None:
    deadline = time.monotonic() + LIMIT_S
    with link.open_shell("read -r line; echo $line; exit 0") as stream:
        stream.send(b"word\n", deadline)
        stream.wait(deadline)
        stream.send(b"x" * 1_000_000, deadline)  # nobody reads that any more
        assert (bytes(stream.stdout), stream.exit_status) == (b"word\n", 0)
    with link.open_shell("head -c 5000 /dev/zero; cat", limit=1000) as stream:
        while len(stream.stdout) < 1000:
            stream.read(deadline)
        with pytest.raises(AdbTimeout):
            stream.wait(time.monotonic() + 0.5)
        assert len(stream.stdout) == 1000
    with link.open_shell(f"exec sleep 3600{NAPS}") as stream:
        drop = once(lambda: processes(link, f"sleep 3600{NAPS}"), lambda: tell(Path(rack.phones[0].root), "drop"))
        with drop, pytest.raises(AdbLost):
            stream.send(b"x" * 100_000_000, deadline)
    link.wait_ready(HANG_S)
    for line in processes(link, f"sleep 3600{NAPS}"):
        link.must(["kill", line.split()[1]])


# ---- the toy runner -----------------------------------------------------------------------------------------------


def toy(
    link: PhoneLink, folder: Path, number: int, script: str = "", timeout_s: float = LIMIT_S, **wanted: object
) -> Resident:
    """A resident of the toy runner, or of a script in its place."""
    exports = f"export TOY={shlex.quote(json.dumps(wanted))} PYTHONPATH={shlex.quote(str(REPOSITORY))}"
    path = folder / "runner.sh"
    path.write_text("#!/bin/sh\n" + (script or f'{exports}\nexec {sys.executable} {TOY} "$@"\n'))
    deployed = deploy(link, [PayloadFile(path, "qnn_llama_runner", executable=True)])
    payload = Payload((), "qnn_llama_runner", "m.pte", "t.model")
    spec = resident_spec(
        payload, run_id="toy", number=number, decoder_version="llama2", eval_mode=1, timeout_s=timeout_s
    )
    return Resident(link, deployed, spec, return_s=HANG_S)


WINDOWS = [Window((1, 2, 3, 4, 5), (2, 3, 4, 5, 6)), Window((7,), (8,)), Window((3,) * CONTEXT, (4,) * CONTEXT)]


def test_many_requests_to_one_process(link: PhoneLink, tmp_path: Path) -> None:
    session = Session(ToyHtp(toy_info(CONTEXT, AR)))
    seen: list[tuple[int, int]] = []
    with toy(link, tmp_path, 1, noise="noise on stdout\n") as resident:
        assert (resident.ready.mode, resident.ready.context, resident.ready.vocab) == ("hybrid", CONTEXT, 13)
        scorer: Scorer = PhoneScorer(resident, "kv", progress=lambda done, total: seen.append((done, total)))
        assert (scorer.context, scorer.vocab) == (CONTEXT, 13)
        for _ in range(20):
            found = scorer.score(WINDOWS)
            assert [f.logprobs for f in found] == [e.logprobs for e in score(session, WINDOWS, "kv")]
        blocks = PhoneScorer(resident, "prefill").score(WINDOWS)
        assert [b.steps for b in blocks] == [2, 1, 4]
        assert scorer.score([]) == []
        for graph in ("kv", "prefill"):
            logits = log_softmax(PhoneScorer(resident, graph).logits(WINDOWS[0].inputs))
            each = [float(row[target]) for row, target in zip(logits, WINDOWS[0].targets, strict=True)]
            assert each == pytest.approx(list(score(session, WINDOWS[:1], graph)[0].logprobs))
        expected = generate(session, [5, 6, 7], seq_len=9, choose=greedy).tokens
        assert scorer.generate([5, 6, 7], 6, ()) == list(expected)
        reply = resident.generate([5, 6, 7], max_new=3, timeout_s=LIMIT_S)
        again = resident.generate([1], max_new=3, fresh=False, timeout_s=LIMIT_S)
        session.rewind(0)
        assert reply.tokens == generate(session, [5, 6, 7], seq_len=6, choose=greedy).tokens
        assert again.tokens == generate(session, [1], seq_len=9, choose=greedy).tokens
        assert (reply.prefill_steps, reply.decode_steps, reply.stopped) == (1, 2, False)
        assert reply.ttft_ms > 0
        assert 0 < reply.ttft_ms + reply.decode_ms <= reply.host_ms
        assert [claim.place for claim in resident.claims] == [f"of a prompt of {count}" for count in (3, 3, 1)]
        assert speed_check("toy", [Witnessed(resident.claims)]).verdict == "PASSED"
        assert resident.requests == 26
        assert len(processes(link, "x_serve")) == 1
    assert seen == [(3, 3)] * 20
    assert not resident.alive
    assert resident.stderr.count("noise on stdout\n") == 1
    resident.write_stderr(tmp_path / "kept" / "stderr.txt")
    assert (tmp_path / "kept" / "stderr.txt").read_text() == resident.stderr
    with pytest.raises(ConfigError, match="not running"):
        resident.request("score", timeout_s=1)


def test_windows_are_asked_for_in_chunks(link: PhoneLink, tmp_path: Path) -> None:
    seen: list[int] = []
    many = [Window((n % 13,) * 10, (1,) * 10) for n in range(20)]
    with toy(link, tmp_path, 2) as resident:
        scores = PhoneScorer(resident, "kv", progress=lambda done, _: seen.append(done)).score(many)
    assert seen == [7, 14, 20]
    assert [s.logprobs for s in scores] == [
        s.logprobs for s in score(Session(ToyHtp(toy_info(CONTEXT, AR))), many, "kv")
    ]


def test_a_walk_goes_over_in_parts_that_begin_where_nothing_is_kept(link: PhoneLink, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    pair = [Leg(0, "prefill", (3,) * 12), Leg(12, "kv", (5, 6, 7, 8), (6, 7, 8, 9))]
    legs = [Leg(one.keep, one.graph, (n, *one.inputs[1:]), one.targets) for n in range(5) for one in pair]
    with toy(link, tmp_path, 2) as resident:
        found = phone_scorer.walk(resident, legs, progress=lambda done, total: seen.append((done, total)))
        assert resident.requests == 2
    assert seen == [(8, 10), (10, 10)]
    expected = walk(Session(ToyHtp(toy_info(CONTEXT, AR))), legs)
    for one, other in zip(found, expected, strict=True):
        assert (one.logprobs, one.steps) == (other.logprobs, other.steps)
        assert one.top.ids.tolist() == other.top.ids.tolist()
        assert one.top.logprobs == pytest.approx(other.top.logprobs, abs=1e-6)


@pytest.mark.parametrize(
    "legs",
    [
        "[]",
        '[{"logprobs": [], "top": {"ids": [], "logprobs": []}}]',
        '[{"logprobs": ["-"], "top": {"ids": [], "logprobs": []}, "steps": 1, "seconds": 0.1}]',
        '[{"logprobs": [-1.0], "top": {"ids": [[1, 2]], "logprobs": [[-1.0]]}, "steps": 1, "seconds": 0.1}]',
    ],
    ids=["too few", "no counts", "no number", "rows of two sizes"],
)
def test_a_walk_of_another_form_is_the_products_fault(link: PhoneLink, tmp_path: Path, legs: str) -> None:
    with (
        toy(link, tmp_path, 3, script=walked(legs)) as resident,
        pytest.raises(ProductError, match="the runner's scores have another form"),
    ):
        phone_scorer.walk(resident, [Leg(0, "kv", (1,), (2,))])


@pytest.mark.parametrize(("said", "named"), [("1e999", "inf"), ("-1e999", "-inf"), ("NaN", "nan")])
def test_a_walk_with_a_number_that_is_not_finite_is_the_products_fault_and_names_its_place(
    link: PhoneLink, tmp_path: Path, said: str, named: str
) -> None:
    legs = f'[{{"logprobs": [{said}], "top": {{"ids": [], "logprobs": []}}, "steps": 1, "seconds": 0.1}}]'
    with (
        toy(link, tmp_path, 3, script=walked(legs)) as resident,
        pytest.raises(ProductError, match="the runner says") as caught,
    ):
        phone_scorer.walk(resident, [Leg(0, "kv", (1,), (2,))])
    assert caught.value.what == f"the runner says {named} for legs.0.logprobs.0"
    assert caught.value.where.endswith(": walk")


def walked(legs: str) -> str:
    """A runner that is ready, answers a walk with these legs, and then ends in order."""
    answers = (f'{{"ok":true,"id":1,"legs":{legs}}}', '{"ok":true,"id":2}')
    return frame(READY) + "".join("head -c 5 >/dev/null; " + frame(answer) for answer in answers)


def test_a_graph_that_cannot_score_is_refused_at_once(link: PhoneLink, tmp_path: Path) -> None:
    with toy(link, tmp_path, 3, lookahead=[2, 2, 2]) as resident:
        with pytest.raises(ConfigError, match=r"the kv graph of a \.pte in lookahead mode cannot score"):
            PhoneScorer(resident, "kv")
        assert len(PhoneScorer(resident, "prefill").score(WINDOWS)) == 3
        assert resident.requests == 1
    info = toy_info(decode_ar=4)
    with pytest.raises(ConfigError, match="cannot score token by token"):
        StockScorer(link, resident._deployed, Payload((), "r", "m", "t"), info, run_id="x", decoder_version="llama2")


def test_an_answer_that_is_no_number_is_the_products_fault(link: PhoneLink, tmp_path: Path) -> None:
    script = f"""#!{sys.executable}
import os, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from harness.frames import HEADER_SIZE, PROTOCOL
def say(text):
    sys.stdout.buffer.write(len(text).to_bytes(HEADER_SIZE, "big") + text.encode()); sys.stdout.buffer.flush()
say('{{"op": "ready", "protocol": %d, "mode": "kv", "context": 16, "ar_len": {{"kv_forward": 1}}, "vocab": 13, '
    '"soc": null, "bos": 1, "eos": 2, "load_ms": 1.0, "peak_rss_kib": 1}}' % PROTOCOL)
os.read(0, 65536)
say('{{"id": 1, "ok": true, "windows": [{{"logprobs": [-1.0, NaN], "greedy": [true, true], '
    '"steps": 2, "seconds": 0}}]}}')
os.read(0, 65536)
say('{{"id": 2, "ok": true}}')
"""
    path = tmp_path / "nan.py"
    path.write_text(script)
    deployed = deploy(link, [PayloadFile(path, "qnn_llama_runner", executable=True)])
    spec = SessionSpec("nan", 1, "qnn_llama_runner", ("--x_serve",), timeout_s=LIMIT_S)
    words = r"nan for windows\.0\.logprobs\.1"
    with Resident(link, deployed, spec) as resident, pytest.raises(ProductError, match=words) as caught:
        PhoneScorer(resident, "kv").score([Window((1, 2), (2, 3))])
    assert caught.value.where.endswith("qnn_llama_runner: score")


def test_a_refused_request_does_not_end_it(link: PhoneLink, tmp_path: Path) -> None:
    with toy(link, tmp_path, 3, fail_at=2) as resident:
        with pytest.raises(ConfigError, match="outside the vocabulary") as refused:
            resident.generate([99], max_new=1, timeout_s=LIMIT_S)
        assert link.serial in refused.value.where
        with pytest.raises(ConfigError, match="the context of 16"):
            PhoneScorer(resident, "kv").score([Window((1,) * 17, (1,) * 17)])
        with pytest.raises(ProductError, match="the step failed"):
            resident.generate([1], max_new=9, timeout_s=LIMIT_S)
        assert resident.alive
        assert len(resident.generate([1], max_new=9, timeout_s=LIMIT_S).tokens) == 9


def test_a_body_that_fails_leaves_nothing(link: PhoneLink, tmp_path: Path) -> None:
    with pytest.raises(KeyError), toy(link, tmp_path, 4):
        raise KeyError


READY = (
    '{"op":"ready","protocol":1,"mode":"kv","context":8,"ar_len":{"kv_forward":1},"vocab":9,"soc":null,"bos":1,'
    '"eos":2,"load_ms":1,"peak_rss_kib":1}'
)


NO_ANSWER = "had not answered"


def limit_for(words: str) -> float:
    """A short limit for what never answers, else one that only ends what hangs."""
    return 2.0 if words == NO_ANSWER else LIMIT_S


def frame(text: str) -> str:
    size = "".join(f"\\{byte:03o}" for byte in len(text).to_bytes(4, "big"))
    return f"printf {shlex.quote(size)}; printf %s {shlex.quote(text)}; "


@pytest.mark.parametrize(
    ("script", "failure_class", "words"),
    [
        ("echo PyTorchObserver {}", FailureClass.PRODUCT, "breaks the protocol"),
        ("echo why >&2; exit 1", FailureClass.PRODUCT, "status 1"),
        ("exit 0", FailureClass.PRODUCT, "status 0"),
        ("echo why >&2; kill -6 $$", FailureClass.PRODUCT, "SIGABRT"),
        ("echo 'Failed to load skel, error: 1008' >&2; exit 0", FailureClass.CONFIG, "skel library"),
        ("echo 'incorrect Value 68, expected >= 73' >&2; exit 1", FailureClass.UNSUPPORTED, "newer HTP generation"),
        (frame('{"op":"hello"}') + "exec sleep 99", FailureClass.PRODUCT, "first word"),
        (frame('{"op":"ready","protocol":2}') + "exec sleep 99", FailureClass.PRODUCT, "not ready with protocol 1"),
        (frame('{"op":"ready","protocol":1}') + "exec sleep 99", FailureClass.PRODUCT, "another form"),
        ("sleep 98 & exec sleep 99", FailureClass.PRODUCT, NO_ANSWER),
    ],
)
def test_what_is_no_runner(
    link: PhoneLink, tmp_path: Path, script: str, failure_class: FailureClass, words: str
) -> None:
    with pytest.raises(HarnessError) as caught, toy(link, tmp_path, 5, script + "\n", limit_for(words)):
        pytest.fail("it is not ready")
    assert caught.value.failure_class is failure_class
    assert words in caught.value.what
    if "why" in script:
        assert "why" in caught.value.evidence
    assert processes(link, "sleep 9") == []


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ("head -c 5 >/dev/null; " + frame('{"id":7,"ok":true}') + "exec sleep 99", "answered request 7 instead of 1"),
        ("head -c 5 >/dev/null; echo late >&2; exit 9", "status 9"),
        ("exec sleep 99", NO_ANSWER),
    ],
)
def test_a_runner_that_goes_astray(link: PhoneLink, tmp_path: Path, after: str, words: str) -> None:
    with toy(link, tmp_path, 6, frame(READY) + after) as resident:
        for _ in range(2):
            with pytest.raises(ProductError, match=words) as caught:
                resident.request("score", timeout_s=limit_for(words))
            assert not resident.alive
    if "late" in after:
        assert "late" in caught.value.evidence


def test_a_runner_that_ends_badly_when_told_to_is_the_products_fault(link: PhoneLink, tmp_path: Path) -> None:
    script = frame(READY) + "head -c 5 >/dev/null; " + frame('{"id":1,"ok":true}') + "kill -11 $$"
    with pytest.raises(ProductError, match="SIGSEGV"), toy(link, tmp_path, 7, script):
        pass


def test_the_end_of_the_connection_ends_the_runner(link: PhoneLink, tmp_path: Path) -> None:
    """A host that dies leaves no runner; its folder is swept by the next."""
    resident = toy(link, tmp_path, 8)
    resident.__enter__()
    assert len(processes(link, "x_serve")) == 1
    resident._close()  # what the kernel does for a host that dies
    until(lambda: not processes(link, "x_serve"))
    assert sweep(link).removed


# ---- killed, rebooted, lost, too slow ------------------------------------------------------------------------------


def test_a_request_that_takes_too_long_ends_it(link: PhoneLink, tmp_path: Path) -> None:
    with toy(link, tmp_path, 9, stuck_at=1) as resident:
        with pytest.raises(ProductError, match=r"had not answered after \S+ s and was ended"):
            resident.generate([1], max_new=9, timeout_s=0.5)
        assert processes(link, "x_serve") == []
        with pytest.raises(ProductError, match="had not answered"):
            resident.generate([1], max_new=9, timeout_s=0.5)


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("kill", ProductError, "SIGKILL"),
        ("reboot", CrashError, "rebooted"),
        ("drop", AdbLost, "connection was lost"),
    ],
)
def test_what_ends_it_amid_a_request(
    link: PhoneLink, rack: RackState, tmp_path: Path, what: str, kind: type[HarnessError], words: str
) -> None:
    def act() -> None:
        if what == "kill":
            link.must(f"kill -9 $(cut -d' ' -f1 {RUN}/toy-10/pid)")
        else:
            tell(Path(rack.phones[0].root), what)

    stuck = f"{RUN}/toy-10/stuck"
    with toy(link, tmp_path, 10, stuck_at=1) as resident:
        amid = once(lambda: link.shell(["ls", stuck]).exit_status == 0, act)
        with amid, pytest.raises(kind, match=words) as caught:
            resident.generate([1], max_new=9, timeout_s=LIMIT_S)
    assert classify_exception(caught.value).failure_class is kind.failure_class


def test_a_phone_that_does_not_come_back_is_infrastructure(link: PhoneLink, rack: RackState, tmp_path: Path) -> None:
    resident = toy(link, tmp_path, 11, stuck_at=1)
    resident._return_s = 0.5
    with resident:
        tell(Path(rack.phones[0].root), f"away {NEVER_S}")
        with pytest.raises(InfraError):
            resident.generate([1], max_new=9, timeout_s=LIMIT_S)
    tell(Path(rack.phones[0].root), "back")
    link.wait_ready(HANG_S)
    sweep(link)  # the phone was not there to be cleaned


# ---- on the simulator ---------------------------------------------------------------------------------------------


@pytest.fixture
def real(link: PhoneLink, runtime_artifacts: dict[str, Path]) -> tuple[Payload, DeployReport]:
    payload = sim_payload(runtime_artifacts["hybrid"], runtime_artifacts["tokenizer"])
    deploy(link, payload.files)
    again = deploy(link, payload.files)
    assert again.pushed == ()
    return payload, again


def real_spec(payload: Payload, number: int) -> SessionSpec:
    return resident_spec(payload, run_id="real", number=number, decoder_version="llama2", eval_mode=1)


def text_windows(tokenizer: Path) -> list[Window]:
    text = "In the beginning God created the heavens and the earth. And the earth was without form, and void;"
    ids = load_tokenizer(tokenizer).encode(text, bos=True)[:24]
    return [Window(tuple(ids[:8]), tuple(ids[1:9])), Window(tuple(ids[:2]), tuple(ids[1:3]))]


@pytest.mark.slow
def test_both_scorers_agree(
    link: PhoneLink, real: tuple[Payload, DeployReport], runtime_artifacts: dict[str, Path], tmp_path: Path
) -> None:
    payload, deployed = real
    windows = text_windows(runtime_artifacts["tokenizer"])
    prompt = list(windows[0].inputs)
    info = read_info(runtime_artifacts["hybrid"])
    stock: Scorer = StockScorer(link, deployed, payload, info, run_id="stock", decoder_version="llama2")
    expected, tokens = stock.score(windows), stock.generate(prompt, 4, ())
    with Resident(link, deployed, real_spec(payload, 1)) as resident:
        scorer: Scorer = PhoneScorer(resident, "kv")
        assert scorer.vocab == stock.vocab
        assert scorer.context == stock.context + 1 == info.context_len
        for _ in range(2):
            found = scorer.score(windows)
            for one, other in zip(found, expected, strict=True):
                assert one.logprobs == pytest.approx(other.logprobs, rel=0, abs=1e-9)
                assert (one.greedy, one.steps) == (other.greedy, other.steps)
        assert scorer.generate(prompt, 4, ()) == tokens
        assert scorer.generate(prompt, 4, tokens[1:2]) == tokens[:2]
        # The other graph rounds differently here and there: close, not equal.
        blocks = PhoneScorer(resident, "prefill").score(windows)
        assert [block.steps for block in blocks] == [1, 1]
        assert sum(blocks[0].logprobs) == pytest.approx(sum(expected[0].logprobs), rel=0.02)
    assert resident.stderr.count("creating module: model_path") == 1
    for bad in (Window((1,) * info.context_len, (1,) * info.context_len), Window((1,), (info.vocab,))):
        with pytest.raises(ConfigError, match=r"windows\[0\]"):
            stock.score([bad])


@pytest.mark.slow
def test_a_stock_runner_that_fails_is_judged_as_a_session(
    link: PhoneLink, real: tuple[Payload, DeployReport], runtime_artifacts: dict[str, Path], tmp_path: Path
) -> None:
    payload, deployed = real
    info = read_info(runtime_artifacts["hybrid"])
    stock = StockScorer(link, deployed, payload, info, run_id="stock", decoder_version="nonesuch")
    with pytest.raises(ProductError, match="SIGABRT") as caught:
        stock.score([Window((1,), (2,))])
    assert "Unsupported Decoder Model" in caught.value.evidence


@pytest.mark.slow
def test_generation_is_that_of_a_session_of_its_own(
    link: PhoneLink, real: tuple[Payload, DeployReport], runtime_artifacts: dict[str, Path], tmp_path: Path
) -> None:
    payload, deployed = real
    flags = ("--model_path", payload.model, "--tokenizer_path", payload.tokenizer, "--seq_len", "24")
    flags += ("--prompt", "In the beginning", "--x_ignore_eos", "--x_stats_path", "stats.json")
    spec = SessionSpec("once", 1, payload.runner, flags, outputs=("stats.json",))
    result = run_session(link, deployed, spec, tmp_path)
    (turn,) = json.loads(result.files["stats.json"].read_text())["turns"]
    with Resident(link, deployed, real_spec(payload, 2)) as resident:
        for _ in range(2):
            reply = resident.generate(turn["prompt_tokens"], max_new=len(turn["tokens"]), timeout_s=LIMIT_S)
            assert reply.tokens == tuple(turn["tokens"])
        assert reply.decode_steps == len(turn["tokens"]) - 1
        # A time that does not say whole ms: finer than the stock runner's clock.
        assert reply.ttft_ms != int(reply.ttft_ms)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [("kill", ProductError, "SIGKILL"), ("reboot", CrashError, "rebooted"), ("time", ProductError, "had not answered")],
)
def test_the_simulator_is_ended_with_it(
    link: PhoneLink,
    rack: RackState,
    real: tuple[Payload, DeployReport],
    tmp_path: Path,
    what: str,
    kind: type[HarnessError],
    words: str,
) -> None:
    payload, deployed = real
    limit = 1.0 if what == "time" else LIMIT_S
    windows = [{"input": [1] * 120, "target": [1] * 120}] * 50  # minutes, if nothing ends it
    with Resident(link, deployed, real_spec(payload, 3)) as resident:
        acts = {
            "kill": lambda: link.must(f"kill -9 $(cut -d' ' -f1 {RUN}/real-3/pid)"),
            "reboot": lambda: tell(Path(rack.phones[0].root), "reboot"),
            "time": lambda: None,
        }
        with once(lambda: True, acts[what]), pytest.raises(kind, match=words):
            resident.request("score", graph="kv", windows=windows, timeout_s=limit)
