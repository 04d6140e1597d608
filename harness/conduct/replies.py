"""The prompts of a cell, each in a fresh process of the runner's own command line: text, TTFT, tok/s, memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.conduct.attempt import Attempt
from harness.conduct.prompt_session import Taken, fed_tokens, sample_record, take_session
from harness.conduct.speed_witness import Witnessed
from harness.errors import ConfigError, FailureClass
from harness.evaluate.lookahead import Walked, replay
from harness.evaluate.text import Reply
from harness.farm.deploy import DeployReport
from harness.farm.failures import Failure
from harness.farm.session import SessionSpec, prompt_flags
from harness.model_file import Mode
from harness.results.records import SampleRecord
from harness.runtime.score import parse_rows, token_ids
from harness.text.decoders import VERSIONS
from harness.text.fed import formatted

# The simulator takes seconds a step with a large vocabulary, a phone milliseconds: a limit, not an expectation.
STEP_LIMIT_S = 30.0
START_LIMIT_S = 120.0


@dataclass(frozen=True)
class Answered:
    """What came of one prompt: its text as it is judged, its times, and in lookahead how it came about."""

    reply: Reply
    witnessed: Witnessed
    walked: Walked | None = None


def run_prompts(attempt: Attempt, deployed: DeployReport) -> list[Answered] | Failure:
    """Runs each prompt of the model and records a sample of it; the first failure ends it.

    Raises:
        HarnessError: the phone or the connection failed.
    """
    prompts = attempt.cell.model.prompts
    replies: list[Answered] = []
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
) -> tuple[SampleRecord, Answered] | Failure:
    """Runs one prompt in a fresh process and records the sample of it; taken again where the phone was throttled.

    Args:
        session: number of the process.
        pair: number of the ABBA pair, in a run of A against B.
        new_tokens: how many tokens to generate; None for the model's own.

    Raises:
        HarnessError: the phone or the connection failed.
    """
    taken = take_session(attempt, deployed, session_spec(attempt, prompt, session, new_tokens), session)
    if isinstance(taken, Failure):
        return taken
    try:
        stats = json.loads(taken.result.files["stats.json"].read_text(encoding="utf-8"))
        turn = stats["turns"][0]
        answered = _answered(attempt, prompt, taken, turn, new_tokens)
        peak = round(stats["peak_rss_kib"] / 1024, 1)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        reason = f"the runner's statistics have another form: {type(error).__name__}: {error}"
        return Failure(FailureClass.PRODUCT, reason, f"read {attempt.folder(session)}")
    sample = sample_record(
        attempt,
        prompt,
        session,
        taken,
        settings={"ignore_eos": True, "seed": 0},
        raw={"turns": [{key: value for key, value in turn.items() if key not in _BULKY}]},
        peak_rss_mb=peak,
        decode_steps=turn["decode_steps"],
        accepted_tokens=turn["accepted"] if attempt.cell.mode is Mode.LOOKAHEAD else None,
        pair=pair,
    )
    attempt.bench.record(sample)
    return sample, answered


_BULKY = frozenset({"rows", "row_choices"})
"""What of a turn is judged and not recorded."""


def _answered(attempt: Attempt, prompt: str, taken: Taken, turn: Mapping[str, Any], new: int | None) -> Answered:
    """Raises KeyError, TypeError or ValueError where the runner's statistics have another form."""
    observer = taken.result.observer
    assert observer is not None, "classify() refuses a session without one"
    fed, tokens = tuple(fed_tokens(attempt, prompt)), token_ids(turn["tokens"])
    asked = attempt.cell.model.max_new_tokens if new is None else new
    seq_len = min(attempt.cell.lengths.max_seq_len, len(fed) + asked)
    walked = None
    wanted = seq_len - len(fed)
    if attempt.cell.mode is Mode.LOOKAHEAD:
        choices = tuple(token_ids(step) for step in turn["row_choices"])
        limit = attempt.cell.lengths.max_seq_len - attempt.settings.ar_len
        walked = Walked(fed, tokens, int(turn["decode_steps"]), int(turn["accepted"]), choices, seq_len, limit)
        # Lookahead ends where its next step would not fit the cache: only the algorithm knows where.
        course = replay(walked, attempt.settings).course
        wanted = len(course.tokens) if course and course.full else wanted
    reply = Reply(
        shown=formatted(attempt.cell.model, prompt),
        fed=fed,
        wanted=wanted,
        written=taken.result.files["outputs.txt"].read_bytes(),
        counted_fed=observer.prompt_tokens,
        counted_new=observer.generated_tokens,
        said_fed=token_ids(turn["prompt_tokens"]),
        tokens=tokens,
        rows=parse_rows(turn["rows"]),
        steps=None if walked else int(turn["decode_steps"]),
    )
    return Answered(reply, taken.witnessed, walked)


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
    count = len(fed_tokens(attempt, prompt))
    step = cell.lengths.lookahead_ar_len if cell.mode is Mode.LOOKAHEAD else 1
    if count > (limit := cell.lengths.max_seq_len - step):
        raise ConfigError(
            f"the prompt has {count} tokens, chat template included; the context of {cell.lengths.max_seq_len} takes "
            f"{limit} in {cell.mode} mode",
            where=f"{model.file}: prompts.{number}",
            remedy="shorten it, or compile with a longer --max-seq-len",
        )
    return count
