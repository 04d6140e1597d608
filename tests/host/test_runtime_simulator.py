"""The runtime on the HTP simulator with a compiled model: against its QDQ module, and through its command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from events import HANG_S

from harness.paths import REPOSITORY
from harness.runtime.lookahead import Lookahead, Settings, run_lookahead
from harness.runtime.program import ProgramInfo, read_info
from harness.runtime.sampling import dequantise, log_softmax
from harness.runtime.score import TOP, parse_rows
from harness.text.tokenizer import load_tokenizer
from harness.toolchain.environment import find_toolchain

pytestmark = pytest.mark.slow

TEXT = "In the beginning God created the heavens and the earth. The earth was without form, and void"


def start(module: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=find_toolchain().environment() | environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=2 * HANG_S,
        check=False,
    )


def runner(artifacts: dict[str, Path], pte: str, *arguments: str, cwd: Path, **environment: str) -> Any:
    base = ("--model_path", str(artifacts[pte]), "--tokenizer_path", str(artifacts["tokenizer"]))
    return start("harness.runtime", *base, *arguments, cwd=cwd, **environment)


def prompt_ids(artifacts: dict[str, Path], count: int, info: ProgramInfo) -> list[int]:
    """The first `count` ids of the text, repeated if it is short."""
    ids = load_tokenizer(artifacts["tokenizer"]).encode(TEXT, bos=True)
    return [token % info.vocab for token in (ids * (count // len(ids) + 1))[:count]]


@pytest.mark.parametrize("pte", ["hybrid", "kv"])
def test_greedy_tokens_are_the_references(runtime_artifacts: dict[str, Path], pte: str, tmp_path: Path) -> None:
    info = read_info(runtime_artifacts["hybrid"])
    assert info.prefill is not None
    ar = info.prefill.ar_len
    lengths = [1, ar - 1, ar, ar + 1, info.context_len - 64] if pte == "hybrid" else [1, ar + 1]
    (tmp_path / "prompts.json").write_text(json.dumps([prompt_ids(runtime_artifacts, n, info) for n in lengths]))
    done = start(
        "harness.runtime.reference",
        *("--pte", str(runtime_artifacts[pte]), "--qdq", str(runtime_artifacts["qdq"])),
        *("--prompts", "prompts.json", "--output", "report.json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert [len(prompt["tokens"]) for prompt in report["prompts"]] == [64] * len(lengths)
    # The HTP's integers: no key or value is more than one step from the reference's.
    assert report["kv_worst_steps"] <= 1
    differences = [d for prompt in report["prompts"] for d in prompt["differences"]]
    assert not [d for d in differences if not d["near_tie"]]
    # Ties are rare: seen were 2 of 320.
    assert len(differences) <= 0.03 * 64 * len(lengths)


PROMPTS = (
    "David said to Jonathan,",
    "In the third year of king",
    "And it came to pass",
    "The word of the LORD",
    "Blessed are",
)


@pytest.mark.parametrize("tree", ["own", "other"])
def test_lookahead_writes_what_kv_writes(
    runtime_artifacts: dict[str, Path], request: pytest.FixtureRequest, tree: str, tmp_path: Path
) -> None:
    lookahead = runtime_artifacts["lookahead"] if tree == "own" else request.getfixturevalue("other_lookahead")
    tokenizer = load_tokenizer(runtime_artifacts["tokenizer"])
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([tokenizer.encode(prompt, bos=True) for prompt in PROMPTS]))
    arguments = (str(runtime_artifacts["kv"]), str(lookahead), str(prompts), "64", "report.json")
    done = start("lookahead_lossless", *arguments, cwd=tmp_path, PYTHONPATH=_with_tests())
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert [prompt["tokens"] for prompt in report["prompts"]] == [64] * len(PROMPTS)
    differences = [d for prompt in report["prompts"] for d in prompt["differences"]]
    assert not [d for d in differences if not d["near_tie"]]
    assert len(differences) <= 0.03 * 64 * len(PROMPTS)  # seen: none
    # Guesses come true: fewer steps than tokens.
    assert sum(prompt["accepted"] for prompt in report["prompts"]) > 0.1 * 64 * len(PROMPTS)


def test_lookaheads_statistics_say_what_each_row_chose(runtime_artifacts: dict[str, Path], tmp_path: Path) -> None:
    tree = Settings(3, 4, 4)
    done = runner(
        runtime_artifacts,
        "lookahead",
        *("--prompt", PROMPTS[0], "--eval_mode", "2", "--ngram", "3", "--window", "4", "--gcap", "4"),
        *("--seq_len", "40", "--x_ignore_eos", "--x_stats_path", "x.json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (turn,) = json.loads((tmp_path / "x.json").read_text())["turns"]
    assert parse_rows(turn["rows"]).ids[:, 0].tolist() == turn["tokens"]
    assert [len(step) for step in turn["row_choices"]] == [tree.ar_len] * turn["decode_steps"]
    steps = iter(turn["row_choices"])
    limit = read_info(runtime_artifacts["lookahead"]).context_len - tree.ar_len
    course = run_lookahead(
        Lookahead(tree), turn["prompt_tokens"], turn["tokens"][:1], lambda _: next(steps), seq_len=40, limit=limit
    )
    assert list(course.tokens) == turn["tokens"]
    assert (course.steps, course.accepted) == (turn["decode_steps"], turn["accepted"])


def _with_tests() -> str:
    return os.pathsep.join([str(Path(__file__).parent), find_toolchain().environment()["PYTHONPATH"]])


@pytest.mark.parametrize(
    ("pte", "arguments", "message"),
    [
        ("lookahead", ("--eval_mode", "0"), "compiled in lookahead mode and cannot run in kv mode"),
        ("hybrid", ("--eval_mode", "2", "--ngram", "3", "--window", "4", "--gcap", "4"), "compiled in hybrid mode"),
        (
            "lookahead",
            ("--eval_mode", "2", "--ngram", "5", "--window", "2", "--gcap", "2"),
            "with ngram 5, window 2, gcap 2 takes 16 tokens a step; the .pte was compiled with ngram 3, window 4",
        ),
        ("lookahead", ("--eval_mode", "2"), "no lookahead settings"),
    ],
)
def test_a_pte_runs_in_its_own_mode_with_its_own_settings(
    runtime_artifacts: dict[str, Path], pte: str, arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = runner(runtime_artifacts, pte, "--prompt", TEXT, *arguments, cwd=tmp_path)
    assert done.returncode != 0
    assert message in done.stderr


def test_files_lines_and_repeatability(runtime_artifacts: dict[str, Path], tmp_path: Path) -> None:
    texts = []
    for mode in ("1", "0", "1"):
        done = runner(
            runtime_artifacts,
            "hybrid",
            *("--prompt", TEXT, "--eval_mode", mode, "--seq_len", "48", "--x_ignore_eos", "--x_stats_path", "x.json"),
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        texts.append((tmp_path / "outputs.txt").read_bytes())
        lines = [line for line in done.stdout.splitlines() if line.startswith("PyTorchObserver ")]
        assert len(lines) == 1
        observed = json.loads(lines[0].removeprefix("PyTorchObserver "))
        stats = json.loads((tmp_path / "x.json").read_text())
        (turn,) = stats["turns"]
        assert observed["prompt_tokens"] == len(turn["prompt_tokens"])
        assert observed["prompt_tokens"] + observed["generated_tokens"] + 1 == 48
        assert observed["generated_tokens"] == len(turn["tokens"]) - 1
        assert observed["inference_start_ms"] < observed["first_token_ms"] <= observed["inference_end_ms"]
        total = observed["inference_end_ms"] - observed["inference_start_ms"]
        expected = observed["generated_tokens"] / total * 1000
        assert float((tmp_path / "inference_speed.txt").read_text()) == pytest.approx(expected, rel=1e-4)
        assert set(stats["step_ms"]) == ({"kv_forward"} if mode == "0" else {"kv_forward", "prefill_forward"})
        assert stats["peak_rss_kib"] > 0
        rows = parse_rows(turn["rows"])
        assert rows.ids[:, 0].tolist() == turn["tokens"]
        assert rows.ids.shape == (len(turn["tokens"]), TOP)
        assert np.all(np.diff(rows.logprobs, axis=1) <= 0)
        assert np.all(np.exp(rows.logprobs).sum(axis=1) <= 1 + 1e-6)
        assert turn["row_choices"] == []
        assert f"Prompt Tokens: {observed['prompt_tokens']}" in done.stderr
    assert texts[0].startswith(TEXT.encode())
    assert len(texts[0]) > len(TEXT)
    assert texts[0] == texts[1] == texts[2]  # prefill and decode agree, and a run repeats


def test_scores_agree_with_the_dumped_logits(runtime_artifacts: dict[str, Path], tmp_path: Path) -> None:
    info = read_info(runtime_artifacts["hybrid"])
    ids = prompt_ids(runtime_artifacts, 41, info)
    np.array(ids[:-1], dtype="<u8").tofile(tmp_path / "prompt.raw")
    request: dict[str, Any] = {"windows": [{"input": ids[:-1], "target": ids[1:]}]}
    scores = {}
    for graph in ("kv", "prefill"):
        (tmp_path / "request.json").write_text(json.dumps(request | {"graph": graph}))
        done = runner(
            runtime_artifacts,
            "hybrid",
            *("--tokenized_prompt", "prompt.raw", "--eval_mode", "0", "--seq_len", "42", "--x_ignore_eos"),
            *("--dump_logits_path", "logits.raw", "--x_score_path", "request.json", "--x_score_output", "s.json"),
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        scores[graph] = json.loads((tmp_path / "s.json").read_text())["windows"][0]["logprobs"]
    assert (tmp_path / "outputs.txt").read_bytes().startswith(b"prompt.raw")
    logits = np.fromfile(tmp_path / "logits.raw", dtype=np.uint16).reshape(-1, info.vocab)
    assert len(logits) == 40 + 1
    expected = log_softmax(dequantise(logits[:40], info.logits_scale, info.logits_zero_point))
    np.testing.assert_allclose(scores["kv"], expected[np.arange(40), ids[1:]], rtol=1e-9, atol=1e-12)
    # The two graphs round differently here and there: close, not equal.
    np.testing.assert_allclose(np.mean(scores["prefill"]), np.mean(scores["kv"]), rtol=0.02)


def test_a_phone_of_another_generation_refuses_the_pte(runtime_artifacts: dict[str, Path], tmp_path: Path) -> None:
    info = read_info(runtime_artifacts["hybrid"])
    assert info.delegate is not None
    other = "SM8550" if info.delegate.htp_arch != 73 else "SM8650"
    prompt = ("--prompt", TEXT, "--seq_len", "48")
    done = runner(runtime_artifacts, "hybrid", *prompt, cwd=tmp_path, HTPFARM_PHONE_SOC=other)
    assert done.returncode == -signal.SIGABRT
    assert f"Request feature arch with value {info.delegate.htp_arch} unsupported" in done.stderr
    assert "Can't create context from binary. Error 5005." in done.stderr
    assert "PyTorchObserver" not in done.stdout
    assert not (tmp_path / "inference_speed.txt").exists()
    same = runner(runtime_artifacts, "hybrid", *prompt, cwd=tmp_path, HTPFARM_PHONE_SOC=info.delegate.soc)
    assert same.returncode == 0, same.stderr[-3000:]


def test_a_pte_of_another_mode_and_a_prompt_that_is_too_long(
    runtime_artifacts: dict[str, Path], tmp_path: Path
) -> None:
    done = runner(runtime_artifacts, "kv", "--prompt", TEXT, "--eval_mode", "1", cwd=tmp_path)
    assert done.returncode == -signal.SIGABRT
    assert "compiled in kv mode and cannot run in hybrid mode" in done.stderr
    done = runner(runtime_artifacts, "hybrid", "--prompt", TEXT, "--seq_len", "8", cwd=tmp_path)
    assert done.returncode == -signal.SIGABRT
    assert "sequence length exceeded - please increase the seq_len value" in done.stderr


def test_without_qnn_libraries_loading_fails_but_reading_works(
    runtime_artifacts: dict[str, Path], tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "harness.runtime", "--prompt", TEXT),
            *(
                "--model_path",
                str(runtime_artifacts["hybrid"]),
                "--tokenizer_path",
                str(runtime_artifacts["tokenizer"]),
            ),
        ],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == -signal.SIGABRT
    assert "does not load" in done.stderr
    assert (tmp_path / "outputs.txt").read_bytes() == b""
