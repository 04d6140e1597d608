"""The prompts of a cell, each in a fresh process of the runner's own command line: text, TTFT, tok/s, memory."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from harness.conduct.attempt import Attempt
from harness.errors import ConfigError, FailureClass
from harness.evaluate.host import Reply
from harness.farm.deploy import DeployReport
from harness.farm.failures import Failure, classify
from harness.farm.prepare import prepare
from harness.farm.session import SessionResult, SessionSpec, prompt_flags, run_session
from harness.farm.vitals import read_vitals, throttle_text, throttled
from harness.model_file import Mode
from harness.results.records import SampleRecord
from harness.text.decoders import VERSIONS
from harness.text.templates import find_template, format_prompt

# The simulator takes seconds a step with a large vocabulary, a phone milliseconds: a limit, not an expectation.
STEP_LIMIT_S = 30.0
START_LIMIT_S = 120.0
RETAKES = 3
"""How often a sample is taken that ends throttled, before the cell gives up."""


def run_prompts(attempt: Attempt, deployed: DeployReport) -> list[Reply] | Failure:
    """Runs each prompt of the model and records a sample of it; the first failure ends it.

    Raises:
        HarnessError: the phone or the connection failed.
    """
    prompts = attempt.cell.model.prompts
    replies: list[Reply] = []
    for session, prompt in enumerate(prompts):
        attempt.say(f"prompt {session + 1}/{len(prompts)}")
        taken = run_prompt(attempt, deployed, prompt, session)
        if isinstance(taken, Failure):
            return taken
        replies.append(taken[1])
    return replies


def run_prompt(
    attempt: Attempt,
    deployed: DeployReport,
    prompt: str,
    session: int,
    *,
    pair: int | None = None,
    new_tokens: int | None = None,
) -> tuple[SampleRecord, Reply] | Failure:
    """Runs one prompt in a fresh process and records the sample of it; taken again where the phone was throttled.

    Args:
        session: number of the process.
        pair: number of the ABBA pair, in a run of A against B.
        new_tokens: how many tokens to generate; None for the model's own.

    Raises:
        HarnessError: the phone or the connection failed.
    """
    spec = session_spec(attempt, prompt, session, new_tokens)
    for retake in range(1, RETAKES + 1):
        before = read_vitals(attempt.phone.link)
        result = run_session(attempt.phone.link, deployed, spec, attempt.folder(session))
        _keep_logs(attempt, session, result)
        if failure := classify(result):
            return failure
        after = read_vitals(attempt.phone.link)
        if not throttled(after, attempt.phone.phone.limits):
            break
        attempt.say(f"{throttle_text(after)}: the sample is void")
        if retake == RETAKES:
            return Failure(FailureClass.ENV, throttle_text(after), "give the phone air, take its case off")
        prepare(attempt.bench.nurse, attempt.phone.phone, attempt.phone.link)
    stats = json.loads(result.files["stats.json"].read_text(encoding="utf-8"))
    vitals = {"before": before.record(), "after": after.record()}
    sample = replace(_sample(attempt, prompt, session, result, stats, vitals), pair=pair)
    attempt.bench.record(sample)
    turn = stats["turns"][0]
    return sample, (tuple(turn["prompt_tokens"]), tuple(turn["tokens"]))


def session_spec(attempt: Attempt, prompt: str, session: int, new_tokens: int | None = None) -> SessionSpec:
    """The runner's command line for one prompt; `new_tokens` is how many to generate, None for the model's own."""
    cell = attempt.cell
    wanted = cell.model.max_new_tokens if new_tokens is None else new_tokens
    # The prompt's text is one of the model's, whatever the number of the session.
    place = cell.model.prompts.index(prompt) if prompt in cell.model.prompts else session
    seq_len = min(cell.lengths.max_seq_len, _prompt_tokens(attempt, prompt, place) + wanted)
    flags = [
        *("--model_path", attempt.payload.model, "--tokenizer_path", attempt.payload.tokenizer),
        *("--decoder_model_version", VERSIONS[cell.model.decoder]),
        *("--eval_mode", str(attempt.eval_mode), *attempt.lookahead_flags),
        *("--seq_len", str(seq_len), "--temperature", "0"),
        *("--output_path", "outputs.txt", "--performance_output_path", "inference_speed.txt"),
        # A fixed number of tokens, whatever the text says, or speeds do not compare.
        *("--x_stats_path", "stats.json", "--x_ignore_eos"),
    ]
    if cell.model.system_prompt:
        flags += ["--system_prompt", cell.model.system_prompt]
    return SessionSpec(
        run_id=attempt.session_id,
        number=session,
        runner=attempt.payload.runner,
        flags=(*flags, *prompt_flags([prompt])),
        outputs=("outputs.txt", "inference_speed.txt", "stats.json"),
        timeout_s=START_LIMIT_S + STEP_LIMIT_S * seq_len,
    )


def _prompt_tokens(attempt: Attempt, prompt: str, number: int) -> int:
    """Tokens that the runner will feed for a prompt, BOS and chat template included.

    Raises:
        ConfigError: more than the context, or lookahead's part of it, has room for.
    """
    model, cell = attempt.cell.model, attempt.cell
    template = find_template(VERSIONS[model.decoder])
    count = len(attempt.runner_tokenizer.encode(format_prompt(template, prompt, model.system_prompt or ""), bos=True))
    step = cell.lengths.lookahead_ar_len if cell.mode is Mode.LOOKAHEAD else 1
    if count > (limit := cell.lengths.max_seq_len - step):
        raise ConfigError(
            f"the prompt has {count} tokens, chat template included; the context of {cell.lengths.max_seq_len} takes "
            f"{limit} in {cell.mode} mode",
            where=f"{model.file}: prompts.{number}",
            remedy="shorten it, or compile with a longer --max-seq-len",
        )
    return count


def _keep_logs(attempt: Attempt, session: int, result: SessionResult) -> None:
    into = attempt.folder(session)
    into.mkdir(parents=True, exist_ok=True)
    (into / "stdout.txt").write_text(result.stdout, encoding="utf-8")
    (into / "stderr.txt").write_text(result.stderr, encoding="utf-8")
    (into / "command.txt").write_text(result.command + "\n", encoding="utf-8")


def _sample(
    attempt: Attempt,
    prompt: str,
    session: int,
    result: SessionResult,
    stats: dict[str, Any],
    vitals: dict[str, dict[str, object]],
) -> SampleRecord:
    observer = result.observer
    assert observer is not None, "classify() refuses a session without one"
    turn = stats["turns"][0]
    return SampleRecord(
        cell=attempt.cell.id,
        phone=attempt.phone.phone.name,
        serial=attempt.phone.identity.serial,
        soc=attempt.cell.soc.name,
        target=attempt.bench.target,
        session=session,
        prompt=prompt,
        prompt_tokens=observer.prompt_tokens,
        generated_tokens=observer.generated_tokens,
        text=result.files["outputs.txt"].read_text(encoding="utf-8", errors="replace"),
        load_ms=observer.load_ms,
        ttft_ms=observer.ttft_ms,
        prefill_tok_s=observer.prefill_tok_s,
        decode_tok_s=observer.decode_tok_s,
        peak_rss_mb=round(stats["peak_rss_kib"] / 1024, 1),
        settings={"temperature": 0.0, "seq_len": attempt.cell.lengths.max_seq_len, "ignore_eos": True, "seed": 0},
        raw={**vars(observer), "turns": stats["turns"], "vitals": vitals},
        attempt=attempt.number,
        decode_steps=turn["decode_steps"],
        accepted_tokens=turn["accepted"] if attempt.cell.mode is Mode.LOOKAHEAD else None,
    )
