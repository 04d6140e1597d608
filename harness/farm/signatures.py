"""Known failures of the runner and of QNN, as data: what to look for, what it means, what to do.

The first that matches decides, so the more telling stand first: "1008" alone, for one, ends several different stories.
Sources are issues of pytorch/executorch unless they name another repository; messages as quoted there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.errors import FailureClass


@dataclass(frozen=True)
class Signature:
    """One known failure.

    Attributes:
        name: short and stable, for records.
        pattern: searched in each line of the runner's stderr and stdout.
        failure_class: what follows.
        meaning: what happened, one sentence.
        remedy: what the reader can do.
        source: where it is known from.
    """

    name: str
    pattern: re.Pattern[str]
    failure_class: FailureClass
    meaning: str
    remedy: str
    source: str


def _known(name: str, pattern: str, failure_class: FailureClass, meaning: str, remedy: str, source: str) -> Signature:
    return Signature(name, re.compile(pattern, re.IGNORECASE), failure_class, meaning, remedy, source)


MORE_SHARDS = ("context-too-big", "dsp-memory", "compile-memory")
"""Failures that smaller contexts mend."""

_SAME_SDK = "push the libraries of the QNN SDK that the model was compiled with"

SIGNATURES: tuple[Signature, ...] = (
    _known(
        "storage-full",
        r"No space left on device",
        FailureClass.ENV,
        "the phone's storage is full",
        "free storage on the phone",
        "errno ENOSPC",
    ),
    _known(
        "library-missing",
        r"CANNOT LINK EXECUTABLE|error while loading shared libraries|libc\+\+\.so\.1: cannot open",
        FailureClass.CONFIG,
        "the runner's program does not start: a library is missing",
        "see which library it names; push it with the payload, or install it on the host (libc++ for the simulator)",
        "#5120 #10895",
    ),
    _known(
        "stub-mismatch",
        r"Stub lib id mismatch",
        FailureClass.CONFIG,
        "another version of the HTP stub library than the one pushed was loaded, likely the vendor's",
        "put the session's folder first in LD_LIBRARY_PATH; " + _SAME_SDK,
        "#8762",
    ),
    _known(
        "dsp-refused-root",
        r"0x80000416",
        FailureClass.CONFIG,
        "the DSP refuses a session to a runner under su",
        "run it as the shell user",
        "#7492",
    ),
    _known(
        "skel-not-found",
        r"0x80000406|Unable to load Skel Library|Failed to load skel|Failed to retrieve skel build id",
        FailureClass.CONFIG,
        "the DSP found no skel library that fits",
        "push the unsigned libQnnHtpV*Skel.so of the phone's HTP generation and of the same SDK; ADSP_LIBRARY_PATH "
        "must name one folder, not a list with colons",
        "#2788, qualcomm/ai-hub-apps#158, qualcomm/fastrpc#379",
    ),
    _known(
        "dsp-transport",
        r"transport\D{0,40}4000\b|error\D{0,4}14001\b",
        FailureClass.CONFIG,
        "the DSP's transport was not set up",
        "check that the skel library lies in ADSP_LIBRARY_PATH and is of the same SDK as the other libraries",
        "#15387, qualcomm/ai-hub-apps#158",
    ),
    _known(
        "soc-unknown-to-sdk",
        r"No Snapdragon SOC detected",
        FailureClass.CONFIG,
        "the QNN SDK is older than this chipset",
        "use QNN 2.42 or newer",
        "#16465",
    ),
    _known(
        "sdk-api-mismatch",
        r"is not supported\. The minimum supported version is",
        FailureClass.CONFIG,
        "the QNN libraries are of another major API version than ExecuTorch was built for",
        _SAME_SDK,
        "backends/qualcomm/runtime/backends/QnnBackendCommon.cpp",
    ),
    _known(
        "binary-info-version",
        r"Unknown QNN BinaryInfo version",
        FailureClass.CONFIG,
        "the runtime is older than the compiler",
        "build the runner with the SDK that the model was compiled with; push that SDK's libraries",
        "#9311",
    ),
    _known(
        "context-newer-than-sdk",
        r"context\b.*\b(?:err|error)\b\D{0,6}(?:5000|0x1388)\b",
        FailureClass.CONFIG,
        "the context binary is for a newer QNN or another chipset",
        "compile with the SDK that is on the phone, for the phone's chipset",
        "PR #16011, qualcomm/ai-hub-apps#148",
    ),
    _known(
        "wrong-backend-build",
        r"Failed to interpret (?:QNN )?context binary.*30010",
        FailureClass.CONFIG,
        "the app was built for another backend",
        "build it with the QNN backend",
        "#6820",
    ),
    _known(
        "artifact-for-phones-on-simulator",
        r"create context from binary with err (?:1000|0x3e8)\b",
        FailureClass.CONFIG,
        "the simulator refuses this context: it was compiled for phones, with weight sharing or shared buffers",
        "compile it for target sim",
        "#14032",
    ),
    _known(
        "context-too-big",
        r"Failed to find available PD for contextId|create context from binary with err (?:1002|0x3ea)\b|"
        r"persistent weights? buffer|couldn't insert overall len",
        FailureClass.PRODUCT,
        "a context is larger than the DSP can map, which is under 4 GB",
        "raise num_sharding; use a phone with 12 GB of memory or more",
        "#4517 #6728 #18862 #6388",
    ),
    _known(
        "dsp-memory",
        r"fastrpc memory map.*fail|fastrpc_mmap.*fail",
        FailureClass.ENV,
        "the phone could not give the DSP the memory it asked for",
        "reboot the phone; if it stays, raise num_sharding or use a phone with 12 GB of memory or more",
        "#4517 #18862",
    ),
    _known(
        "gate-16a16w",
        r"incorrect Value \d+, expected >= ?\d+",
        FailureClass.UNSUPPORTED,
        "an operator needs a newer HTP generation than the chipset has",
        "use a recipe without 16-bit weights or KV cache, or a phone with HTP V73 or newer",
        "#17296 #18280",
    ),
    _known(
        "method-missing",
        r"No method named",
        FailureClass.CONFIG,
        "the .pte is not of the static Llama flow, or of another mode than the runner was told",
        "compile it with llama.py, and match --eval_mode to its mode",
        "#21452",
    ),
    _known(
        "runner-not-static",
        r"input [23] is none",
        FailureClass.CONFIG,
        "a static .pte in a generic runner",
        "use qnn_llama_runner",
        "#7614",
    ),
    _known(
        "prompt-too-long",
        r"sequence length exceeded|maximum limit that the prompt processor can handle",
        FailureClass.CONFIG,
        "the prompt is longer than the model was compiled for",
        "shorten the prompt, or compile with a larger context length",
        "examples/qualcomm/oss_scripts/llama/runner",
    ),
    _known(
        "mem-handle",
        r"PreRegisterMem|mem ?handle.*(?:duplicate|already)",
        FailureClass.PRODUCT,
        "shared memory was registered twice",
        "a known fault of older ExecuTorch: use 1.1 or newer",
        "#15732, PR #16000, PR #13410",
    ),
    _known(
        "qnn-library-missing",
        r"Cannot Open QNN library",
        FailureClass.CONFIG,
        "a QNN library does not load",
        "see which one and why on that line; on a host, install libc++ (libc++.so.1) and let LD_LIBRARY_PATH name the "
        "SDK's libraries",
        "#10895 #5120",
    ),
    _known(
        "not-executable",
        r"qnn_llama_runner: (?:can't execute: )?Permission denied",
        FailureClass.CONFIG,
        "the phone may not execute the runner",
        "chmod 755 it, and keep it under /data/local/tmp: /sdcard is mounted without execution",
        "errno EACCES",
    ),
    _known(
        "program-damaged",
        r"data may be truncated or corrupt|Program identifier '.*' != expected",
        FailureClass.INFRA,
        "the .pte on the phone is damaged",
        "let it be sent again: remove it from the phone's store; if it stays, compile it again",
        "runtime/executor/program.cpp",
    ),
    _known(
        "backend-missing",
        r"Backend QnnBackend is not (?:registered|available)",
        FailureClass.CONFIG,
        "the runner was built without the QNN backend",
        "build it with backends/qualcomm/scripts/build.sh",
        "runtime/executor/method.cpp",
    ),
    _known(
        "tokenizer-load",
        r"failed to load tokenizer",
        FailureClass.CONFIG,
        "the runner cannot read the tokenizer",
        "give it the model's own: tokenizer.json, tokenizer.model or tokenizer.bin, as --decoder_model_version wants",
        "PR #12285",
    ),
    _known(
        "tokenizer-regex",
        r"PCRE2 compilation failed",
        FailureClass.CONFIG,
        "a pattern of the tokenizer does not compile",
        "the tokenizer.json holds tokens that are no UTF-8; use the model's own file",
        "#14432",
    ),
    # Late: with the fallback built in, this line stands in good logs too, and the failure is another one.
    _known(
        "tokenizer-lookahead",
        r"invalid perl operator: \(\?!",
        FailureClass.CONFIG,
        "the tokenizer needs lookahead in patterns, which the runner was built without",
        "build it with -DSUPPORT_REGEX_LOOKAHEAD=ON",
        "#10867 #11311",
    ),
    _known(
        "compile-memory",
        r"estimated allocation.*2097152",
        FailureClass.BUILD,
        "the HTP compiler ran into its 2 GB limit",
        "raise num_sharding",
        "#15954 #17782",
    ),
    _known(
        "op-not-prepared",
        r"could not create op\b",
        FailureClass.BUILD,
        "the HTP compiler cannot prepare an operator of the graph",
        "compile with the QNN libraries it last passed with (`htpfarm matrix` names them), and report the operator",
        "benchmarks/qnn_regression.py with QNN 2.51",
    ),
)


def find_signature(text: str) -> tuple[Signature, str] | None:
    """The first known failure in an output, and the line that shows it. Order of SIGNATURES decides, not of lines."""
    lines = text.splitlines()
    for signature in SIGNATURES:
        for line in lines:
            if signature.pattern.search(line):
                return signature, line.strip()
    return None
