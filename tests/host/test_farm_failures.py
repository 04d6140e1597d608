"""Decisions of the farm that need no phone."""

from __future__ import annotations

import dataclasses
import errno
import subprocess
from pathlib import Path

import pytest
from farm_rack import OBSERVER

from harness.errors import ConfigError, EnvError, FailureClass
from harness.farm.connect import command_line
from harness.farm.failures import classify, classify_exception
from harness.farm.identity import parse_getprop
from harness.farm.observer import parse_observers
from harness.farm.payload import android_payload, sim_payload
from harness.farm.session import SessionResult, SessionSpec, prompt_flags, session_command
from harness.farm.shell import AdbTimeout
from harness.farm.signatures import SIGNATURES, find_signature
from harness.soc import SOCS

GOOD = SessionResult(
    exit_status=0,
    stdout=OBSERVER,
    stderr="",
    observer=parse_observers(OBSERVER)[0],
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
        (subprocess.TimeoutExpired("adb", 3), FailureClass.INFRA),
        (OSError(errno.ENOSPC, "full"), FailureClass.ENV),
        (ValueError("boom"), FailureClass.PRODUCT),
    ):
        assert classify_exception(error).failure_class is expected, error
    assert "R3" in classify_exception(adb).reason


def test_observer_by_the_definitions() -> None:
    (record,) = parse_observers(f"noise\nI 00:00 {OBSERVER}\nPyTorchObserver {{broken\nPyTorchObserver {{}}\n")
    assert (record.load_ms, record.ttft_ms) == (250, 120)
    assert record.prefill_tok_s == pytest.approx(10 / 0.1)
    assert record.decode_tok_s == pytest.approx(30 / 3.0)
    still = dataclasses.replace(record, inference_end_ms=record.prompt_eval_end_ms)
    assert still.decode_tok_s is None


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
