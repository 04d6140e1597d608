"""The command line without a backend: flags as gflags takes them, files, lines, statuses, templates, tokenizers."""

from __future__ import annotations

import json
import re
import shutil
import signal
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from events import HANG_S

from harness.errors import ConfigError
from harness.model_file import Mode
from harness.paths import MODELS, REPOSITORY
from harness.runtime.flags import FlagError, HelpRequested, parse_flags
from harness.runtime.phone import phone_soc, refusal
from harness.runtime.program import Delegate, mode_error, read_info
from harness.runtime.score import read_request
from harness.runtime.stats import Stats
from harness.soc import find_soc
from harness.text.templates import TEMPLATES, find_template, format_prompt
from harness.text.tokenizer import load_tokenizer, tokenizer_files
from harness.text.windows import Window

from runtime_fixtures import toy_info  # isort: skip


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness.runtime", *arguments],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )


# ---- flags --------------------------------------------------------------------------------------------------------


def test_gflags_spellings() -> None:
    flags = parse_flags(
        ["--seq_len", "9", "-eval_mode=0", "--shared_buffer", "ignored", "--temperature=0.5", "--", "-x"]
    )
    assert (flags.integer("seq_len"), flags.integer("eval_mode"), flags.number("temperature")) == (9, 0, 0.5)
    assert flags.switch("shared_buffer")
    assert flags.given == {"seq_len", "eval_mode", "shared_buffer", "temperature"}
    assert not parse_flags(["--noshared_buffer"]).switch("shared_buffer")
    assert not parse_flags(["--shared_buffer=false"]).switch("shared_buffer")
    assert parse_flags(["--system_prompt", "--odd"]).text("system_prompt") == "--odd"


def test_defaults_are_the_runners() -> None:
    flags = parse_flags([])
    assert (flags.integer("eval_mode"), flags.integer("seq_len"), flags.integer("num_iters")) == (1, 128, 1)
    assert flags.text("output_path") == "outputs.txt"
    assert flags.text("performance_output_path") == "inference_speed.txt"
    assert flags.prompts == ()


def test_prompts_are_collected_from_one_spelling_only() -> None:
    assert parse_flags(["--prompt", "a", "--prompt", "b c", "--prompt=d", "-prompt", "e"]).prompts == ("a", "b c")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kv_updater", "SmartMask"], "unknown command line flag 'kv_updater'"),
        (["--notemperature"], "unknown command line flag 'notemperature'"),
        (["--seq_len"], "flag '--seq_len' is missing its argument"),
        (["--seq_len", "1.5"], "illegal value '1.5' specified for int32 flag 'seq_len'"),
        (["--seq_len", "3000000000"], "illegal value '3000000000' specified for int32 flag 'seq_len'"),
        (["--temperature=hot"], "illegal value 'hot' specified for double flag 'temperature'"),
        (["--shared_buffer=maybe"], "illegal value 'maybe' specified for bool flag 'shared_buffer'"),
    ],
)
def test_flag_errors(arguments: list[str], message: str) -> None:
    with pytest.raises(FlagError, match=re.escape(message)):
        parse_flags(arguments)


def test_help_is_asked_for() -> None:
    with pytest.raises(HelpRequested):
        parse_flags(["--help"])


# ---- what is refused before a backend is needed -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--bogus"], 1, "ERROR: unknown command line flag 'bogus'"),
        ([], 2, "no prompt"),
        (["--prompt=text"], 2, "collects prompts from `--prompt TEXT` alone"),
        (["--prompt", "x", "--eval_mode", "2"], 2, "are no lookahead settings"),
        (["--prompt", "", "--decoder_model_version", "qwen3"], -signal.SIGABRT, "prompt cannot be null"),
        (["--prompt", "x", "--tokenized_prompt", "f"], -signal.SIGABRT, "Only provide prompt or tokenized_input"),
        (["--prompt", "x", "--dump_logits_path", "f"], -signal.SIGABRT, "Only TokenGenerator(kv) mode"),
        (["--prompt", "x", "--eval_mode", "7"], -signal.SIGABRT, "Unsupported llama evaluation mode"),
        (["--prompt", "x", "--decoder_model_version", "llama9"], -signal.SIGABRT, "Unsupported Decoder Model"),
        (["--prompt", "x"], -signal.SIGABRT, "Failed to load tokenizer with tokenizer.bin"),
    ],
)
def test_refusals(tmp_path: Path, arguments: list[str], status: int, message: str) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == status
    assert message in done.stderr
    assert "PyTorchObserver" not in done.stdout
    if status == -signal.SIGABRT:
        assert re.search(
            r"^F \d\d:\d\d:\d\d\.\d{6} executorch:\S+:\d+\] In function \S+\(\), assert failed", done.stderr, re.M
        )
    assert not (tmp_path / "inference_speed.txt").exists()


def test_a_stop_token_that_the_tokenizer_does_not_know_is_refused(tmp_path: Path) -> None:
    tokenizer = str(MODELS / "tiny_llama" / "tokenizer.model")
    done = run("--prompt", "x", "--decoder_model_version", "llama3", "--tokenizer_path", tokenizer, cwd=tmp_path)
    assert done.returncode == -signal.SIGABRT
    assert "the tokenizer has no token '<|eot_id|>', which ends a turn of llama3" in done.stderr


def test_a_file_that_is_no_program_fails_to_load(tmp_path: Path) -> None:
    (tmp_path / "kv_llama_qnn.pte").write_bytes(b"PK\x03\x04" * 100)
    tokenizer = str(MODELS / "tiny_llama" / "tokenizer.model")
    done = run("--prompt", "x", "--tokenizer_path", tokenizer, cwd=tmp_path)
    assert done.returncode == -signal.SIGABRT
    assert "no ExecuTorch program" in done.stderr
    assert "assert failed: hasValue_" in done.stderr
    assert (tmp_path / "outputs.txt").read_bytes() == b""


@pytest.mark.parametrize(
    "content",
    [b"", b"\x08\x00\x00\x00ET12", b"\xff\xff\xff\x7fET12" + b"\x00" * 60, b"\x08\x00\x00\x00ET12" + b"\xff" * 99],
)
def test_damaged_programs_are_refused_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pte"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.pte"):
        read_info(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_info(tmp_path / "absent.pte")


def test_another_mode_is_named() -> None:
    error = mode_error(toy_info(prefill=False), Mode.HYBRID)
    assert "compiled in kv mode and cannot run in hybrid mode" in str(error)


# ---- the phone ----------------------------------------------------------------------------------------------------


def _for(soc: str, vtcm: int = 8) -> object:
    chip = find_soc(soc)
    info = toy_info()
    return type(info)(**{**vars(info), "delegate": Delegate(soc, chip.arch, vtcm, False, False, 1, (1 << 20,))})


def test_a_phone_refuses_another_generation() -> None:
    info = _for("SM8650")
    assert refusal(info, None) is None  # type: ignore[arg-type]
    assert refusal(info, find_soc("SM8650")) is None  # type: ignore[arg-type]
    for soc in ("SM8550", "SM8750"):
        refused = refusal(info, find_soc(soc))  # type: ignore[arg-type]
        assert refused is not None
        assert any("Request feature arch with value 75 unsupported" in line for line in refused.qnn)
        assert any("Can't create context from binary. Error 5005." in line for line in refused.qnn)
    smaller = refusal(_for("SM8550"), find_soc("SSG2115P"))  # type: ignore[arg-type]
    assert smaller is not None
    assert any("vtcm size with value 8388608 unsupported" in line for line in smaller.qnn)


def test_the_phone_comes_from_the_environment() -> None:
    assert phone_soc({}) is None
    assert phone_soc({"HTPFARM_PHONE_SOC": "SM8550"}) == find_soc("SM8550")
    with pytest.raises(ConfigError, match="HTPFARM_PHONE_SOC"):
        phone_soc({"HTPFARM_PHONE_SOC": "SM0"})


# ---- stats --------------------------------------------------------------------------------------------------------

OBSERVER_KEYS = [
    "prefill_token_per_sec",
    "decode_token_per_sec",
    "prompt_tokens",
    "generated_tokens",
    "model_load_start_ms",
    "model_load_end_ms",
    "inference_start_ms",
    "inference_end_ms",
    "model_execution_start_ms",
    "model_execution_end_ms",
    "prompt_eval_end_ms",
    "first_token_ms",
    "aggregate_sampling_time_ms",
    "aggregate_model_execution_time_ms",
    "SCALING_FACTOR_UNITS_PER_SECOND",
]


def test_the_observer_line() -> None:
    stats = Stats(1000, 1200, 1300, 1500, 1500, 2500, 7.9, 40, 9)
    word, _, text = stats.observer_line().partition(" ")
    data = json.loads(text)
    assert word == "PyTorchObserver"
    assert list(data) == OBSERVER_KEYS
    assert data["prefill_token_per_sec"] == 200
    assert data["decode_token_per_sec"] == 9
    assert data["first_token_ms"] - data["inference_start_ms"] == 200
    assert data["aggregate_sampling_time_ms"] == 7
    assert stats.inference_speed() == "7.5"
    report = "\n".join(stats.report())
    assert "Prompt Tokens: 40    Generated Tokens: 9" in report
    assert "Time to first generated token:\t0.200000 (seconds)" in report


def test_rates_without_time_or_tokens() -> None:
    stats = Stats(prompt_tokens=8, prompt_eval_end_ms=400, inference_end_ms=400)
    assert "decode_token_per_sec" not in stats.observer_line()
    assert stats.inference_speed() == "20"
    assert Stats().inference_speed() == "0"


# ---- templates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "plain", "with_system"),
    [
        ("llama2", "U", "U"),
        (
            "llama3",
            "<|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU"
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "gemma3",
            "<start_of_turn>user\nU<end_of_turn>\n<start_of_turn>model\n",
            "<start_of_turn>user\nU<end_of_turn>\n<start_of_turn>model\nS<end_of_turn>\n",
        ),
        (
            "gemma2",
            "<start_of_turn>user\nU<end_of_turn>\n<start_of_turn>model\n",
            "<start_of_turn>user\nU<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            "gemma4",
            "<bos><|turn>user\nU<turn|>\n<|turn>model\n",
            "<bos><|turn>system\nS<turn|>\n<|turn>user\nU<turn|>\n<|turn>model\n",
        ),
        (
            "granite",
            "<|start_of_role|>user<|end_of_role|>U<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
            "<|start_of_role|>system<|end_of_role|>S<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>U"
            "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        ),
        ("phi_4_mini", "<|user|>U<|end|><|assistant|>", "<|system|>S<|end|><|user|>U<|end|><|assistant|>"),
        (
            "qwen3",
            "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant",
            "<|im_start|>user\nU<|im_end|>\n<|im_start|>system\nS<|im_end|>\n<|im_start|>assistant",
        ),
        (
            "smollm2_135m",
            "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n\n",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n\n",
        ),
        (
            "smollm3",
            "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n",
            "<|im_start|>system\nS\n\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("glm", "<|user|>\nU<|assistant|>\n", "<|user|>\nU<|system|>\nS<|assistant|>\n"),
    ],
)
def test_templates(version: str, plain: str, with_system: str) -> None:
    assert format_prompt(TEMPLATES[version], "U") == plain
    assert format_prompt(TEMPLATES[version], "U", "S") == with_system


def test_stop_pieces() -> None:
    assert {name: t.stop for name, t in TEMPLATES.items() if t.stop} == {
        "llama3": "<|eot_id|>",
        "phi_4_mini": "<|end|>",
        "qwen3": "<|im_end|>",
        "smollm2_135m": "<|im_end|>",
        "smollm3": "<|im_end|>",
        "gemma": "<end_of_turn>",
        "gemma2": "<end_of_turn>",
        "gemma3": "<end_of_turn>",
        "gemma4": "<turn|>",
        "codegen": "<|endoftext|>",
        "glm": "<|user|>",
    }


def test_unknown_versions() -> None:
    with pytest.raises(ConfigError, match="Unsupported Decoder Model"):
        find_template("lama3")
    with pytest.raises(ConfigError, match="multimodal"):
        find_template("smolvlm")


# ---- tokenizers ---------------------------------------------------------------------------------------------------

TEXT = "In the beginning God created the heavens, & é."


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.bin"])
def test_the_tiny_tokenizer_in_both_formats(name: str) -> None:
    tokenizer = load_tokenizer(MODELS / "tiny_llama" / name)
    reference = load_tokenizer(MODELS / "tiny_llama" / "tokenizer.model")
    ids = tokenizer.encode(TEXT, bos=True)
    assert ids == reference.encode(TEXT, bos=True)
    assert (ids[0], tokenizer.bos, tokenizer.eos) == (1, 1, 2)
    assert b"".join(tokenizer.piece(a, b) for a, b in pairwise(ids)).decode() == TEXT
    assert tokenizer.special("<|im_end|>") is None


def _huggingface(path: Path, specials: list[str], config: dict[str, object] | None = None) -> Path:
    vocabulary = {**{s: i for i, s in enumerate(specials)}, "a": 50, "Ġ": 51, "Ã": 52, "©": 53, "Ġa": 54}
    added = [
        {
            "id": i,
            "content": s,
            "special": True,
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        }
        for i, s in enumerate(specials)
    ]
    data = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["Ġ a"]},
    }
    (path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    if config:
        (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path / "tokenizer.json"


def test_huggingface_pieces_are_bytes(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(_huggingface(tmp_path, ["<|endoftext|>", "<|im_end|>"]))
    ids = tokenizer.encode("a aé<|im_end|>", bos=False)
    assert ids == [50, 54, 52, 53, 1]
    assert b"".join(tokenizer.piece(0, i) for i in ids).decode() == "a aé<|im_end|>"
    assert tokenizer.special("<|im_end|>") == 1


@pytest.mark.parametrize(
    ("specials", "config", "bos", "eos"),
    [
        (["<|begin_of_text|>", "<|end_of_text|>", "<|end_header_id|>"], None, 0, 1),
        (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, 0, 0),
        (
            ["<|endoftext|>", "<|im_start|>"],
            {"bos_token": "<|im_start|>", "eos_token": {"content": "<|endoftext|>"}},
            1,
            0,
        ),
        (["<unk>"], None, None, None),
    ],
)
def test_huggingface_ends(
    tmp_path: Path, specials: list[str], config: dict[str, object] | None, bos: int | None, eos: int | None
) -> None:
    tokenizer = load_tokenizer(_huggingface(tmp_path, specials, config))
    assert (tokenizer.bos, tokenizer.eos) == (bos, eos)


def test_a_copied_tokenizer_names_the_same_ends(tmp_path: Path) -> None:
    """Of SmolLM2's BOS <|im_start|> the runner's guess would make <|endoftext|>, and perplexity another figure."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    config: dict[str, object] = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    path = _huggingface(tmp_path, specials, config)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tokenizer_files(path):
        shutil.copy(file, copy)
    ours, theirs = load_tokenizer(copy / path.name), load_tokenizer(path)
    assert (ours.bos, ours.eos) == (theirs.bos, theirs.eos)
    (copy / "tokenizer_config.json").unlink()
    assert load_tokenizer(copy / path.name).bos != theirs.bos
    model = MODELS / "tiny_llama" / "tokenizer.model"
    assert tokenizer_files(model) == (model,)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"{nonsense", b"\nnot a model", struct.pack("<iiii", 5, 1, 2, 9) + b"1"]
)
def test_files_that_are_no_tokenizer(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(ConfigError, match="no tokenizer"):
        load_tokenizer(tmp_path / "t")


# ---- score requests -----------------------------------------------------------------------------------------------


def test_a_score_request(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text('{"windows": [{"input": [1, 2], "target": [2, 3]}], "graph": "prefill"}')
    request = read_request(path)
    assert (request.windows, request.graph) == ((Window((1, 2), (2, 3)),), "prefill")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"windows": 3}',
        '{"windows": [{"input": [1]}]}',
        '{"windows": [], "graph": "x"}',
        '{"windows": [{"input": [1.5], "target": [1]}]}',
    ],
)
def test_bad_score_requests(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no score request"):
        read_request(path)
