"""An attempt on a real phone: the stock qnn_llama_runner of a build folder, and nothing that it does not know.

Prompts run in a process each, for speed and text; where the kv graph takes one token a step, a few more processes say
what the graph's logits are: over the held-out text's beginning, and over QDQ's own continuation of each prompt
(`StockScorer`). The witness is all they are held against, so a model too large to keep its QDQ module is judged alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from harness.build.witness import load_lookahead
from harness.conduct.accuracy import again, further, judge_scores
from harness.conduct.attempt import Attempt, not_judged_check, verdict
from harness.conduct.phone_files import phone_files
from harness.conduct.prompt_session import Taken, fed_tokens, sample_record, take_session
from harness.conduct.speed_witness import speed_check
from harness.errors import ConfigError, NotJudgedError
from harness.evaluate.deviations import Deviations, compare_rows
from harness.evaluate.grounds import GroundScore
from harness.evaluate.judge import delegation_check, grey, qdq_check
from harness.evaluate.lookahead import counted_check, course_of
from harness.evaluate.rules import LIMIT_ROUNDS
from harness.evaluate.scored import Scored
from harness.evaluate.seams import Stage
from harness.evaluate.stock_scorer import StockScorer
from harness.evaluate.text import Reply, text_checks
from harness.farm.awake import kept_awake
from harness.farm.deploy import DeployReport
from harness.farm.failures import Failure
from harness.farm.payload import Payload, android_payload
from harness.farm.session import SessionSpec, prompt_flags
from harness.inventory import Phone
from harness.model_file import Mode
from harness.results.records import CheckRecord, SampleRecord
from harness.runtime.program import ProgramInfo, read_info
from harness.runtime.score import Leg
from harness.soc import Soc
from harness.target import Target
from harness.text.decoders import VERSIONS
from harness.text.fed import formatted
from harness.text.heldout import beginning
from harness.text.windows import Window

START_LIMIT_S, STEP_LIMIT_S = 120.0, 2.0


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
    cell, link = attempt.cell, attempt.phone.link
    payload = real_payload(attempt, cell.soc)
    info = read_info(attempt.artifact.pte)
    deployed = attempt.deploy(payload)
    taken: list[Taken] = []
    with kept_awake(link):
        for number, prompt in enumerate(cell.model.prompts):
            attempt.say(f"prompt {number + 1}/{len(cell.model.prompts)}")
            one = run_real_prompt(attempt, payload, deployed, prompt, number)
            if isinstance(one, Failure):
                return one
            taken.append(one[1])
        checks = [
            delegation_check(cell.id, info.operators),
            speed_check(cell.id, [one.witnessed for one in taken], logs=False),
        ]
        try:
            checks += _judge(attempt, payload, deployed, info, taken)
        except NotJudgedError as error:
            checks.append(not_judged_check(cell.id, error))
    attempt.record_checks(checks)
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
) -> tuple[SampleRecord, Taken] | Failure:
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
    return sample, taken


def _judge(
    attempt: Attempt, payload: Payload, deployed: DeployReport, info: ProgramInfo, taken: Sequence[Taken]
) -> list[CheckRecord]:
    """Raises NotJudgedError where there is no witness, and what the phone raises."""
    cell = attempt.cell
    replies = [_reply(attempt, prompt, one) for prompt, one in zip(cell.model.prompts, taken, strict=True)]
    checks, judged, _ = text_checks(cell.id, replies, attempt.witness, attempt.tokenizer, attempt.stop, attempt.qdq)
    if cell.mode is Mode.LOOKAHEAD:
        # Its decode graph takes guesses: the stock runner has no way to score with it.
        known = load_lookahead(attempt.artifact.reference, attempt.settings)
        counts = [count for one in taken for count in accepted_counts(one.result.stderr + one.result.stdout)]
        return [*checks, counted_check(cell.id, counts, [course_of(known, reply.fed) for reply in replies])]
    rows = [part for one in judged for part in one.rows]
    return [*checks, *_accuracy(attempt, payload, deployed, info, rows)]


def _reply(attempt: Attempt, prompt: str, taken: Taken) -> Reply:
    """What the stock runner wrote, and how much it counted: it names no tokens."""
    cell, observer = attempt.cell, taken.result.observer
    assert observer is not None, "classify() refuses a session without one"
    fed = tuple(fed_tokens(attempt, prompt))
    wanted = min(cell.lengths.max_seq_len, len(fed) + cell.model.max_new_tokens) - len(fed)
    least = most = wanted
    if cell.mode is Mode.LOOKAHEAD:
        # It ends where its next step would not fit the cache, and its last step may give more than was asked for.
        least = min(wanted, cell.lengths.max_seq_len - attempt.settings.ar_len - len(fed) + 1)
        most = wanted + attempt.settings.ngram - 1
    return Reply(
        shown=formatted(cell.model, prompt),
        fed=fed,
        wanted=wanted,
        written=taken.result.files["outputs.txt"].read_bytes(),
        counted_fed=observer.prompt_tokens,
        counted_new=observer.generated_tokens,
        ends_at_stop=True,
        least=least,
        most=most,
    )


_ACCEPTED = re.compile(r"n_generated = (\d+) / n_accept = (\d+)")


def accepted_counts(log: str) -> list[tuple[int, int]]:
    """Tokens generated and accepted, of each turn, by the line of lookahead's generator (`lhd_token_generator.cpp`)."""
    return [(int(new), int(accepted)) for new, accepted in _ACCEPTED.findall(log)]


def _accuracy(
    attempt: Attempt, payload: Payload, deployed: DeployReport, info: ProgramInfo, rows: Sequence[Deviations]
) -> list[CheckRecord]:
    """The kv graph over the held-out text's beginning and QDQ's own continuation of each prompt, a process each."""
    cell, reference, bench, witness = attempt.cell, attempt.reference, attempt.bench, attempt.witness
    scorer = StockScorer(
        attempt.phone.link,
        deployed,
        payload,
        info,
        run_id=attempt.session_id,
        decoder_version=VERSIONS[cell.model.decoder],
        first_session=len(cell.model.prompts),
    )
    deviations = list(rows)
    for number, text in enumerate(witness.prompts.values()):
        attempt.say(f"kv graph over QDQ's text of prompt {number + 1}/{len(witness.prompts)}")
        count = min(len(text.inputs), scorer.context)
        score = scorer.walk(text.inputs[:count], text.targets[:count])
        place = (f"QDQ's text of prompt {number}", text, 0, score.top, witness.typical_spread)
        deviations.append(compare_rows("kv", *place))
    # The beginning of what was scored at compile time: no module of the model is needed on this computer.
    tokens = min(cell.model.eval.kv_tokens, scorer.context)
    held_out = beginning(reference.held_out, attempt.tokenizer, tokens)
    scored = Scored(witness)
    done = len(held_out.windows)
    _score_windows(attempt, scorer, scored, held_out.windows, 0)
    count = held_out.tokens
    fp = GroundScore("FP", "full", reference.fp_each[:count], held_out.words, reference.context)
    qdq = GroundScore("QDQ", "full", reference.qdq_each[:count], held_out.words, reference.context)
    size = (held_out.words, reference.context, scored.steps["kv"], scored.seconds["kv"])
    for score_ in (fp, qdq, GroundScore("PHONE", "kv", scored.targets("kv", range(done)), *size)):
        bench.record(score_.record(cell.id))
    checks = judge_scores(attempt, scored, deviations)
    for number in range(1, LIMIT_ROUNDS):
        windows = further(witness, done, again(tokens, number))
        if not grey(checks) or not windows:
            break
        _score_windows(attempt, scorer, scored, windows, done)
        done += len(windows)
        checks = judge_scores(attempt, scored, deviations)
    return [*checks, qdq_check(cell.id, fp, qdq, cell.model.bounds)]


def _score_windows(
    attempt: Attempt, scorer: StockScorer, scored: Scored, windows: Sequence[Window], first: int
) -> None:
    for number, window in enumerate(windows, first):
        attempt.say(f"kv graph: window {number} of the held-out text")
        stage = Stage(Leg(0, "kv", window.inputs, window.targets), number, f"window {number} of the held-out text")
        scored.add([stage], [scorer.walk(window.inputs, window.targets)])
