"""An attempt on a real phone: the stock qnn_llama_runner of a build folder, and nothing that it does not know.

Prompts run in a process each, for speed; where the kv graph takes one token a step, a few more processes say what the
graph's logits are, for the perplexity of the held-out text's beginning and for each reply's tokens (`StockScorer`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.conduct.attempt import Attempt, verdict
from harness.conduct.phone_files import phone_files
from harness.conduct.prompt_session import fed_tokens, sample_record, take_session
from harness.errors import ConfigError
from harness.evaluate.grounds import GroundScore, score_text
from harness.evaluate.host import Reply
from harness.evaluate.judge import noise_check, perplexity_checks, text_check, worst_noise
from harness.evaluate.stock_scorer import StockScorer
from harness.farm.awake import kept_awake
from harness.farm.deploy import DeployReport
from harness.farm.failures import Failure
from harness.farm.payload import Payload, android_payload
from harness.farm.session import SessionSpec, prompt_flags
from harness.inventory import Phone
from harness.model_file import Mode
from harness.results.records import CheckRecord, SampleRecord
from harness.runtime.program import ProgramInfo, read_info
from harness.soc import Soc
from harness.target import Target
from harness.text.decoders import VERSIONS
from harness.text.heldout import beginning

START_LIMIT_S, STEP_LIMIT_S = 120.0, 2.0
REPLY_TOKENS = 32
"""Tokens of each reply that are held against QDQ: each process dumps vocabulary × 2 bytes for every one."""


def target_of(phones: Iterable[Phone]) -> Target:
    """What a run's artifacts are for: real phones or virtual ones.

    Raises:
        ConfigError: there are both: what they run cannot be compared, and is not one run.
    """
    rack = tuple(phones)
    real = [phone.name for phone in rack if phone.virtual is None]
    virtual = [phone.name for phone in rack if phone.virtual is not None]
    if real and virtual:
        raise ConfigError(
            f"the rack has real phones ({', '.join(real)}) and virtual ones ({', '.join(virtual)})",
            where="--rack",
            remedy="give each a rack file and a run of their own",
        )
    return Target.ANDROID if real else Target.SIM


def socs_of(phones: Iterable[Phone]) -> list[Soc]:
    """The chipsets of phones, as far as they are known, in order."""
    return sorted({phone.soc for phone in phones if phone.soc})


def check_real(phones: Sequence[Phone]) -> None:
    """Refuses real phones without what they need, before anything runs.

    Raises:
        ConfigError: no build folder, no SDK, or files missing in them; names all.
    """
    if target_of(phones) is Target.ANDROID:
        phone_files().check(socs_of(phones))


def real_payload(attempt: Attempt, soc: Soc) -> Payload:
    """What a real phone needs for a cell."""
    pte, tokenizer = attempt.artifact.pte, attempt.tokenizer_file
    files = attempt.bench.phone_files or phone_files()
    return android_payload(pte, tokenizer, soc, build_folder=files.build, qnn_sdk_root=files.sdk)


def run_on_real(attempt: Attempt) -> Failure | None:
    """Deploys, runs every prompt, measures what the stock runner lets one measure, and judges. None if all holds.

    Raises:
        HarnessError: the phone, the connection or the artifact failed.
    """
    cell, bench, link = attempt.cell, attempt.bench, attempt.phone.link
    payload = real_payload(attempt, cell.soc)
    deployed = attempt.deploy(payload)
    with kept_awake(link):
        for number, prompt in enumerate(cell.model.prompts):
            attempt.say(f"prompt {number + 1}/{len(cell.model.prompts)}")
            taken = run_real_prompt(attempt, payload, deployed, prompt, number)
            if isinstance(taken, Failure):
                return taken
        if cell.mode is Mode.LOOKAHEAD:
            return None  # its decode graph takes guesses, and cannot score token by token
        checks = _accuracy(attempt, payload, deployed, read_info(attempt.artifact.pte))
    for check in checks:
        bench.record(check)
    return verdict(checks)


def prompt_spec(
    attempt: Attempt, payload: Payload, prompt: str, number: int, new_tokens: int | None = None
) -> SessionSpec:
    """The stock runner's command line for one prompt; `new_tokens`: how many to generate, None for the model's own."""
    cell = attempt.cell
    wanted = cell.model.max_new_tokens if new_tokens is None else new_tokens
    seq_len = min(cell.lengths.max_seq_len, len(fed_tokens(attempt, prompt)) + wanted)
    system = ("--system_prompt", cell.model.system_prompt) if cell.model.system_prompt else ()
    flags = (
        *("--model_path", payload.model, "--tokenizer_path", payload.tokenizer),
        *("--decoder_model_version", VERSIONS[cell.model.decoder]),
        *("--eval_mode", str(attempt.eval_mode), *attempt.lookahead_flags),
        *("--seq_len", str(seq_len), "--temperature", "0"),
        *("--output_path", "outputs.txt", "--performance_output_path", "inference_speed.txt", *system),
        *prompt_flags([prompt]),
    )
    limit = START_LIMIT_S + STEP_LIMIT_S * seq_len
    outputs = ("outputs.txt", "inference_speed.txt")
    return SessionSpec(attempt.session_id, number, payload.runner, flags, outputs=outputs, timeout_s=limit)


def run_real_prompt(
    attempt: Attempt,
    payload: Payload,
    deployed: DeployReport,
    prompt: str,
    number: int,
    *,
    pair: int | None = None,
    new_tokens: int | None = None,
) -> SampleRecord | Failure:
    """Runs one prompt in a fresh process and records the sample of it; taken again where the phone was throttled.

    Args:
        number: of the process.
        pair: number of the ABBA pair, in a run of A against B.
        new_tokens: how many tokens to generate at most; None for the model's own.

    Raises:
        HarnessError: the phone or the connection failed.
    """
    taken = take_session(attempt, deployed, prompt_spec(attempt, payload, prompt, number, new_tokens), number)
    if isinstance(taken, Failure):
        return taken
    sample = sample_record(attempt, prompt, number, taken, settings={"ignore_eos": False}, pair=pair)
    attempt.bench.record(sample)
    return sample


def _accuracy(attempt: Attempt, payload: Payload, deployed: DeployReport, info: ProgramInfo) -> tuple[CheckRecord, ...]:
    cell, reference, bench = attempt.cell, attempt.reference, attempt.bench
    scorer = StockScorer(
        attempt.phone.link,
        deployed,
        payload,
        info,
        run_id=attempt.session_id,
        decoder_version=VERSIONS[cell.model.decoder],
        first_session=len(cell.model.prompts),
        progress=lambda done, total: attempt.say(f"kv graph: {done}/{total} windows"),
    )
    # The beginning of what was scored at compile time: no module of the model is needed on this computer.
    tokens = min(cell.model.eval.kv_tokens, scorer.context)
    text = beginning(reference.held_out, attempt.tokenizer, tokens)
    phone = score_text(scorer, "PHONE", "kv", text)
    count = len(phone.each)
    fp = GroundScore("FP", "full", reference.fp_each[:count], text.words, reference.context)
    qdq = GroundScore("QDQ", "full", reference.qdq_each[:count], text.words, reference.context)
    for score in (fp, qdq, phone):
        bench.record(score.record(cell.id))
    rms = worst_noise(qdq, [phone])
    bounds = cell.model.bounds
    checks = (*perplexity_checks(cell.id, fp, qdq, [phone], bounds), noise_check(cell.id, qdq, [phone], bounds))
    if not bench.host.keeps(attempt.artifact.reference):  # the model is too large: perplexity alone judges
        return checks
    replies: list[Reply] = []
    for prompt in cell.model.prompts:
        fed = fed_tokens(attempt, prompt)
        new = scorer.generate(fed, min(REPLY_TOKENS, cell.model.max_new_tokens), ())
        replies.append((tuple(fed), tuple(new)))
    reports = bench.host.check_texts(attempt.artifact.reference, reference, replies, rms)
    return (*checks, text_check(cell.id, reports, rms))
