"""Decisions of the farm that need no phone."""

from __future__ import annotations

import dataclasses
import errno
import json
import subprocess
from pathlib import Path

import pytest
from farm_rack import OBSERVER

from harness.errors import ConfigError, EnvError, FailureClass, HarnessError
from harness.farm.connect import command_line
from harness.farm.failures import Failure, classify, classify_exception, ended_with, error_of, explain, last_lines
from harness.farm.identity import parse_getprop
from harness.farm.observer import Observer, parse_observers
from harness.farm.payload import android_payload, sim_payload
from harness.farm.session import SessionResult, SessionSpec, prompt_flags, session_command
from harness.farm.shell import AdbTimeout
from harness.farm.signatures import SIGNATURES, find_signature
from harness.soc import SOCS

GOOD_OBSERVER = parse_observers(OBSERVER)[0]
GOOD = SessionResult(
    exit_status=0,
    stdout=OBSERVER,
    stderr="",
    observer=GOOD_OBSERVER,
    files={},
    missing=(),
    boot_id_before="a",
    boot_id_after="a",
    seconds=1.0,
    timed_out=False,
    command="x",
)

# As quoted in the issues that SIGNATURES names.
QUOTED = {
    "stub-mismatch": "[ERROR] [Qnn ExecuTorch]:  <E> Stub lib id mismatch: expected (v2.28.2), detected (v2.25.17)\n"
    "[ERROR] [Qnn ExecuTorch]:  <E> Unable to load Remote symbols 1008",
    "skel-not-found": "[ERROR] [Qnn ExecuTorch]:  <E> DspTransport.openSession qnn_open failed, 0x80000406\n"
    "[ERROR] [Qnn ExecuTorch]:  <E> Transport layer setup failed: 1008",
    "gate-16a16w": "[ERROR] [Qnn ExecuTorch]:  <E> [4294967295] has incorrect Value 68, expected >= 73.",
    "binary-info-version": "Unknown QNN BinaryInfo version 3.",
    "wrong-backend-build": "Failed to interpret QNN context binary. Error code 30010. Try verifying binary with",
    "context-newer-than-sdk": "Could not create context from binary for context index = 0 : err 5000",
    "artifact-for-phones-on-simulator": "QnnDsp <E> Fail to create context from binary with err 1000",
    "context-too-big": "QnnDsp <E> Fail to create context from binary with err 1002",
    "method-missing": "No method named 'kv_forward'",
    "library-missing": "error while loading shared libraries: libc++.so.1: cannot open shared object file",
    "dsp-refused-root": "<E> DspTransport.openSession qnn_open failed, 0x80000416",
    "dsp-transport": "Failed to create transport for device, error: 4000",
    "soc-unknown-to-sdk": "[ERROR] No Snapdragon SOC detected on this device",
    "dsp-memory": "[ERROR] [Qnn ExecuTorch]:  <E> fastrpc memory map for fd: 58 with length: 440401920 failed",
    "runner-not-static": "E 00:00:00.100000 executorch:method.cpp:996] input 2 is none",
    "mem-handle": "PreRegisterMem failed to get file descriptor.\nFail to initialize Qnn Manager",
    "compile-memory": "[ERROR] estimated allocation (2500000 KB) > 2097152 KB",
    "qnn-library-missing": "Cannot Open QNN library libQnnHtp.so, with error: libxyz.so: not found",
    "not-executable": "/system/bin/sh: ./qnn_llama_runner: can't execute: Permission denied",
    "program-damaged": "E executorch:program.cpp:150] Verification failed; data may be truncated or corrupt",
    "backend-missing": "E executorch:method.cpp:108] Backend QnnBackend is not registered.",
    "tokenizer-load": "failed to load tokenizer tokenizer.json",
    "tokenizer-regex": "E tokenizers:pcre2_regex.cpp:36] PCRE2 compilation failed at offset 275: UTF-8 error",
    "tokenizer-lookahead": "re2.cc:237] Error parsing '((?i:'s|'t': invalid perl operator: (?!",
    "storage-full": "write failed: No space left on device",
    "sdk-api-mismatch": "Qnn API version 2.14.0 is not supported. The minimum supported version is 2.17.0",
    "op-not-prepared": "[ERROR] [Qnn ExecuTorch]: graph_prepare.cc:211::ERROR:could not create op: q::ConvLayer_s1.opt",
    "prompt-too-long": "prompt is over the maximum limit that the prompt processor can handle",
}


def test_a_session_counts_only_when_all_is_there() -> None:
    assert classify(GOOD) is None


@pytest.mark.parametrize(
    ("change", "failure_class"),
    [
        ({"exit_status": 1}, FailureClass.PRODUCT),
        ({"observer": None}, FailureClass.PRODUCT),
        ({"missing": ("outputs.txt",)}, FailureClass.PRODUCT),
        ({"exit_status": None, "timed_out": True}, FailureClass.PRODUCT),
        ({"boot_id_after": "b"}, FailureClass.CRASH),
        ({"exit_status": None, "boot_id_after": "b", "stderr": QUOTED["skel-not-found"]}, FailureClass.CRASH),
        ({"exit_status": 134, "stderr": QUOTED["skel-not-found"]}, FailureClass.CONFIG),
        ({"observer": None, "stderr": "write: No space left on device"}, FailureClass.ENV),
        ({"exit_status": 137}, FailureClass.PRODUCT),
        ({"exit_status": 137, "killed": "lowmemorykiller: Kill 'qnn_llama_runner' (7)"}, FailureClass.ENV),
    ],
)
def test_classes(change: dict, failure_class: FailureClass) -> None:
    found = classify(dataclasses.replace(GOOD, **change))
    assert found
    assert found.failure_class is failure_class
    assert found.reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"exit_status": 1}, "the runner ended with status 1"),
        ({"exit_status": None}, "the runner ended with no status"),
        ({"observer": None}, "printed no PyTorchObserver record"),
        ({"missing": ("outputs.txt", "speed.txt")}, "the runner wrote no outputs.txt, speed.txt"),
        # What comes first explains what follows from it.
        ({"observer": None, "missing": ("outputs.txt",)}, "no PyTorchObserver record"),
        ({"exit_status": 3, "observer": None}, "ended with status 3"),
        (
            {"observer": dataclasses.replace(GOOD_OBSERVER, prompt_tokens=0), "missing": ("x",)},
            "no measurement: 0 prompt",
        ),
        ({"timed_out": True, "exit_status": 3, "seconds": 61.7}, "still running after 62 s and was ended"),
    ],
)
def test_a_session_that_does_not_count_says_why(change: dict, words: str) -> None:
    found = classify(dataclasses.replace(GOOD, **change))
    assert found
    assert words in found.reason
    assert (found.remedy, found.signature) == ("", "")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_known_failure_is_found_in_either_stream_with_its_remedy_and_the_line_that_shows_it(stream: str) -> None:
    said = f"loading\n{QUOTED['context-too-big']}  \nbye"
    found = classify(dataclasses.replace(GOOD, exit_status=1, **{stream: said}))
    (known,) = (known for known in SIGNATURES if known.name == "context-too-big")
    assert found == Failure(
        known.failure_class,
        f"{known.meaning} (the runner ended with status 1; see {known.source})",
        known.remedy,
        QUOTED["context-too-big"],
        "context-too-big",
    )


def test_the_line_that_shows_a_known_failure_is_of_stderr_first() -> None:
    said = dataclasses.replace(GOOD, exit_status=1, stdout="write failed: no space left on device")
    found = classify(dataclasses.replace(said, stderr="dd: No space left on device"))
    assert found
    assert found.evidence == "dd: No space left on device"


def test_the_evidence_is_the_end_of_both_streams() -> None:
    out, err = [f"out {n}" for n in range(12)], [f"err {n}" for n in range(12)]
    bad = dataclasses.replace(GOOD, exit_status=1, stdout="\n".join(out), stderr="\n".join(err))
    found = classify(bad)
    assert found
    assert found.evidence.splitlines() == [*out[4:], *err]  # twenty lines
    crash = classify(dataclasses.replace(bad, boot_id_after="b"))
    assert crash == Failure(
        FailureClass.CRASH,
        "the phone rebooted during the session",
        "see the phone's /sys/fs/pstore and `adb logcat -L` for why",
        found.evidence,
    )
    assert last_lines("one\ntwo") == "one\ntwo"
    assert explain("why", "nothing known", "shown") == Failure(FailureClass.PRODUCT, "why", "", "shown")


def test_a_killed_runner_is_the_phones_memory_whatever_it_said_unless_the_session_counts() -> None:
    killed = dataclasses.replace(GOOD, killed="lowmemorykiller: Kill (7)", stderr=QUOTED["storage-full"])
    assert classify(killed) is None
    found = classify(dataclasses.replace(killed, exit_status=137))
    assert found
    assert (found.failure_class, found.signature) == (FailureClass.ENV, "low-memory-killer")
    assert (found.reason, found.evidence) == ("Android's low-memory killer ended the runner", killed.killed)
    assert "more memory" in found.remedy


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (1, "status 1"),
        (126, "status 126 (the session's folder or program cannot be used)"),
        (127, "status 127 (the program or its interpreter was not found)"),
        (128, "status 128"),
        (129, "status 129 (SIGHUP)"),
        (134, "status 134 (SIGABRT, as a failed ET_CHECK does)"),
        (137, "status 137 (SIGKILL, as Android's low-memory killer does)"),
        (139, "status 139 (SIGSEGV)"),
        (255, "status 255"),
        (None, "no status"),
    ],
)
def test_a_status_is_told_in_words(status: int | None, words: str) -> None:
    assert ended_with(status) == f"the runner ended with {words}"


@pytest.mark.parametrize("failure_class", FailureClass)
def test_a_failure_as_an_exception_is_of_its_class_and_says_the_same(failure_class: FailureClass) -> None:
    error = error_of(Failure(failure_class, "why", "do this", "shown", "name"), "s24: runner")
    # No exception is of class PERF: what is too slow is a result of its own.
    assert error.failure_class is (FailureClass.PRODUCT if failure_class is FailureClass.PERF else failure_class)
    assert (error.what, error.where, error.remedy, error.evidence) == ("why", "s24: runner", "do this", "shown")


def test_a_known_message_in_a_good_session_means_nothing() -> None:
    assert classify(dataclasses.replace(GOOD, stderr=QUOTED["skel-not-found"])) is None


@pytest.mark.parametrize("name", QUOTED)
def test_quoted_messages_are_told_apart(name: str) -> None:
    match = find_signature(QUOTED[name])
    assert match
    assert match[0].name == name


def test_every_signature_is_tried_and_there_are_enough() -> None:
    assert set(QUOTED) == {known.name for known in SIGNATURES}
    assert len(SIGNATURES) >= 23


def test_signatures_are_usable() -> None:
    assert len({known.name for known in SIGNATURES}) == len(SIGNATURES)
    assert all(known.remedy and known.source and known.meaning for known in SIGNATURES)
    assert find_signature("I 00:00:01 executorch: Model Load Time: 5000 (ms), Generated 1002 tokens") is None
    assert find_signature("Error parsing json file") is None


def test_exceptions() -> None:
    adb = AdbTimeout("slow", serial="R3", command="ls")
    for error, expected in (
        (adb, FailureClass.INFRA),
        (EnvError("hot"), FailureClass.ENV),
        (ConnectionResetError(), FailureClass.INFRA),
        (TimeoutError("slow"), FailureClass.INFRA),
        (subprocess.TimeoutExpired("adb", 3), FailureClass.INFRA),
        (OSError(errno.ENOSPC, "full"), FailureClass.ENV),
        (OSError(errno.EDQUOT, "quota"), FailureClass.ENV),
        (MemoryError(), FailureClass.ENV),
        (OSError(errno.EACCES, "denied"), FailureClass.PRODUCT),
        (subprocess.CalledProcessError(1, "adb"), FailureClass.PRODUCT),
        (ValueError("boom"), FailureClass.PRODUCT),
    ):
        assert classify_exception(error).failure_class is expected, error
    assert classify_exception(adb) == Failure(FailureClass.INFRA, "R3: ls: slow")
    own = HarnessError("it broke", remedy="mend it", evidence="log")
    assert classify_exception(own) == Failure(FailureClass.PRODUCT, "it broke", "mend it", "log")
    assert classify_exception(ValueError("boom")) == Failure(FailureClass.PRODUCT, "ValueError: boom")
    assert classify_exception(TimeoutError("slow")) == Failure(FailureClass.INFRA, "TimeoutError: slow")
    memory, full = classify_exception(MemoryError("x")), classify_exception(OSError(errno.ENOSPC, "full"))
    assert (memory.reason, memory.evidence) == ("this computer has too little memory", "MemoryError: x")
    assert memory.remedy == "run fewer cells side by side"
    assert (full.reason, full.remedy) == ("this computer's storage is full", "free storage")
    assert full.evidence.endswith("full")


def test_observer_by_the_definitions() -> None:
    (record,) = parse_observers(f"noise\nI 00:00 {OBSERVER}\nPyTorchObserver {{broken\nPyTorchObserver {{}}\n")
    assert (record.load_ms, record.ttft_ms) == (250, 120)
    assert record.prefill_tok_s == pytest.approx(10 / 0.1)
    assert record.decode_tok_s == pytest.approx(30 / 3.0)
    assert record == Observer(
        prompt_tokens=10,
        generated_tokens=30,
        model_load_start_ms=100.0,
        model_load_end_ms=350.0,
        inference_start_ms=1000.0,
        inference_end_ms=4100.0,
        prompt_eval_end_ms=1100.0,
        first_token_ms=1120.0,
    )
    still = dataclasses.replace(record, inference_end_ms=record.prompt_eval_end_ms)
    assert still.decode_tok_s is None
    back = dataclasses.replace(record, inference_end_ms=record.prompt_eval_end_ms - 1)
    assert back.decode_tok_s is None
    assert dataclasses.replace(record, generated_tokens=0).decode_tok_s is None
    one = dataclasses.replace(record, generated_tokens=1, inference_end_ms=record.prompt_eval_end_ms + 1)
    assert one.decode_tok_s == 1000.0  # one token in one ms, the least that a clock of whole ms can count


def test_records_come_in_order_and_only_whole_ones() -> None:
    data = json.loads(OBSERVER.partition(" ")[2])
    lines = [
        f"PyTorchObserver {json.dumps(data | {'prompt_tokens': 3.0})}",
        f"PyTorchObserver {json.dumps(data | {'prompt_tokens': None})}",
        f"PyTorchObserver {json.dumps(data | {'prompt_tokens': 'many'})}",
        f"PyTorchObserver {json.dumps(data | {'first_token_ms': 10**400})}",
        "PyTorchObserver [1]",
        "PyTorchObserver 7",
        json.dumps(data),  # without the mark it is only text
        f"said: {OBSERVER}",
    ]
    found = parse_observers("\n".join(lines))
    assert [record.prompt_tokens for record in found] == [3, 10]
    assert isinstance(found[0].prompt_tokens, int)
    assert parse_observers("") == ()


def test_the_rates_that_a_record_states_are_kept_beside_its_times() -> None:
    data = json.loads(OBSERVER.partition(" ")[2])
    stated = data | {"prefill_token_per_sec": 100, "decode_token_per_sec": 9.5}
    (record,) = parse_observers(f"PyTorchObserver {json.dumps(stated)}")
    assert (record.stated_prefill_tok_s, record.stated_decode_tok_s) == (100.0, 9.5)
    (record,) = parse_observers(OBSERVER)
    assert (record.stated_prefill_tok_s, record.stated_decode_tok_s) == (None, None)
    (record,) = parse_observers(OBSERVER.replace('"prompt_tokens":10', '"prompt_tokens":Infinity'))
    assert record.prompt_tokens == -1
    (record,) = parse_observers(OBSERVER.replace('"generated_tokens":30', '"generated_tokens":NaN'))
    assert record.generated_tokens == -1


POSSIBLE = Observer(1, 0, 5.0, 5.0, 7.0, 7.0, 7.0, 7.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"stated_decode_tok_s": 1e9}, ""),  # whether it is true is another question
        ({"prompt_tokens": 0}, "0 prompt tokens, 0 generated ones"),
        ({"generated_tokens": -1}, "1 prompt tokens, -1 generated ones"),
        ({"model_load_end_ms": 4.0}, "model_load_end_ms is 1 ms before model_load_start_ms"),
        ({"prompt_eval_end_ms": 6.0}, "prompt_eval_end_ms is 1 ms before inference_start_ms"),
        ({"first_token_ms": 5.5}, "first_token_ms is 1.5 ms before inference_start_ms"),
        ({"prompt_eval_end_ms": 9.0}, "inference_end_ms is 2 ms before prompt_eval_end_ms"),
        ({"first_token_ms": 9.0}, "inference_end_ms is 2 ms before first_token_ms"),
        ({"model_load_start_ms": float("nan")}, "model_load_start_ms is nan"),
        ({"stated_prefill_tok_s": float("inf")}, "stated_prefill_tok_s is inf"),
    ],
)
def test_what_no_runner_can_have_measured_is_told(change: dict, words: str) -> None:
    assert dataclasses.replace(POSSIBLE, **change).nonsense == words


def test_moments_that_are_one_give_no_rate() -> None:
    assert (POSSIBLE.load_ms, POSSIBLE.ttft_ms) == (0, 0)
    assert (POSSIBLE.prefill_tok_s, POSSIBLE.decode_tok_s) == (None, None)
    assert dataclasses.replace(POSSIBLE, prompt_eval_end_ms=8.0).prefill_tok_s == 1000.0


def test_command_lines() -> None:
    assert command_line(["a b", "$c"], {"V": "x y", "A": "1"}) == "export A=1; export V='x y'; 'a b' '$c'"
    with pytest.raises(ValueError, match="variable"):
        command_line("true", {"A;rm": "1"})
    line = session_command(SessionSpec("r", 2, "run me", ("--prompt", "it's")))
    assert line.endswith("exec '/data/local/tmp/htpfarm/run/r-2/run me' --prompt 'it'\"'\"'s'")
    with pytest.raises(ConfigError):
        session_command(SessionSpec("../r", 2, "r", ()))
    assert prompt_flags(["a", "b"]) == ("--prompt", "a", "--prompt", "b")
    for bad in ([], [""]):
        with pytest.raises(ConfigError):
            prompt_flags(bad)


def test_getprop() -> None:
    text = "[a.b]: [x]\n[multi]: [one\ntwo]\n[empty]: []\n[c]: [[y]]\r\n"
    assert parse_getprop(text) == {"a.b": "x", "multi": "one\ntwo", "empty": "", "c": "[y]"}


def test_android_payload(tmp_path: Path) -> None:
    build, sdk = tmp_path / "build-android", tmp_path / "sdk"
    pte, tokenizer = tmp_path / "m.pte", tmp_path / "tok.bin"

    def payload():
        return android_payload(pte, tokenizer, SOCS["SM8650"], build_folder=build, qnn_sdk_root=sdk)

    with pytest.raises(ConfigError) as caught:
        payload()
    missing = [Path(line) for line in caught.value.evidence.splitlines()]
    assert len(missing) == 9
    for path in missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    found = payload()
    assert {file.name for file in found.files} >= {"libQnnHtpV75Stub.so", "libQnnHtpV75Skel.so", "qnn_llama_runner"}
    assert [file.name for file in found.files if file.executable] == [found.runner]
    assert (found.model, found.tokenizer) == ("m.pte", "tok.bin")
    (sdk / "lib/hexagon-v75/unsigned/libQnnHtpV75Skel.so").unlink()
    with pytest.raises(ConfigError) as caught:
        payload()
    assert caught.value.evidence.endswith("libQnnHtpV75Skel.so")


def test_sim_payload_needs_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing"):
        sim_payload(tmp_path / "m.pte", tmp_path / "t", folder=tmp_path)
