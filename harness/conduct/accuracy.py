"""What one process of the runner, that stays, is asked of a cell: scores, logits, times to first token, tasks."""

from __future__ import annotations

from collections.abc import Sequence

from harness.conduct.attempt import Attempt
from harness.evaluate.grounds import GroundScore, score_text
from harness.evaluate.host import Reply
from harness.evaluate.judge import logits_check, noise_check, perplexity_checks, text_check
from harness.evaluate.phone_scorer import PhoneScorer
from harness.evaluate.scorer import Scorer
from harness.evaluate.sqnr import candidate_noise, sqnr_db
from harness.evaluate.ttft import measure_ttft, prompt_graph
from harness.farm.deploy import DeployReport
from harness.farm.resident import Resident, resident_spec
from harness.model_file import Mode
from harness.results.records import CheckRecord, Graph, Ground, TaskRecord, TtftRecord
from harness.runtime.score import GraphChoice
from harness.text.decoders import VERSIONS
from harness.text.heldout import HeldOut, beginning, held_out

# Prefill first: a block of AR tokens costs about one step, so the cell's noise is known early.
GRAPHS: dict[Mode, tuple[GraphChoice, ...]] = {
    Mode.KV: ("kv",),
    Mode.HYBRID: ("prefill", "kv"),
    Mode.LOOKAHEAD: ("prefill",),  # its decode graph takes guesses, and cannot score token by token
}
KV_LOGITS = 16
"""Tokens whose logits are compared where each takes a step."""
LOGITS_VALUES = 1 << 20
"""Values of logits that are sent at once."""
START_LIMIT_S = 300.0


def measure_accuracy(attempt: Attempt, deployed: DeployReport, replies: Sequence[Reply]) -> tuple[CheckRecord, ...]:
    """Scores the held-out text on all grounds, judges the replies, times prompts of all lengths, runs the tasks asked.

    Args:
        attempt, deployed: what is run, and what is on the phone.
        replies: what the cell's prompts gave.

    Raises:
        HarnessError: the phone, the connection or the runner failed.
    """
    spec = resident_spec(
        attempt.payload,
        run_id=attempt.session_id,
        number=len(attempt.cell.model.prompts),
        decoder_version=VERSIONS[attempt.cell.model.decoder],
        eval_mode=attempt.eval_mode,
        flags=attempt.lookahead_flags,
        timeout_s=START_LIMIT_S,
    )
    resident = Resident(attempt.phone.link, deployed, spec)
    try:
        with resident:
            checks = (*_perplexities(attempt, resident), *_against_qdq(attempt, resident, replies))
            _ttft(attempt, resident)
            if attempt.bench.evaluation.tasks:
                _tasks(attempt, resident)
    finally:
        resident.write_stderr(attempt.folder("accuracy") / "stderr.txt")
    return checks


def _perplexities(attempt: Attempt, resident: Resident) -> tuple[CheckRecord, ...]:
    model, bench, reference = attempt.cell.model, attempt.bench, attempt.reference
    text = _text(attempt, bench.evaluation.tokens or model.eval.tokens)
    phone: list[GroundScore] = []
    for graph in GRAPHS[attempt.cell.mode]:
        share = text
        if graph == "kv" and bench.evaluation.tokens is None and model.eval.kv_tokens < text.tokens:
            share = _text(attempt, model.eval.kv_tokens)

        def progress(done: int, total: int, graph: str = graph, tokens: int = share.tokens) -> None:
            attempt.say(f"perplexity of {tokens} tokens, {graph} graph: {done}/{total} windows")

        progress(0, len(share.windows))
        phone.append(score_text(PhoneScorer(resident, graph, progress=progress), "PHONE", graph, share))
    fp, qdq = bench.host.grounds(attempt.artifact.reference, reference, text)
    for score in (fp, qdq, *phone):
        bench.record(score.record(attempt.cell.id))
    cell, bounds = attempt.cell.id, model.bounds
    return (*perplexity_checks(cell, fp, qdq, phone, bounds), noise_check(cell, qdq, phone, bounds))


def _against_qdq(attempt: Attempt, resident: Resident, replies: Sequence[Reply]) -> tuple[CheckRecord, ...]:
    """The phone's logits over the text's first tokens, and the replies; none where the model is too large to keep QDQ.

    Perplexity alone judges then.
    """
    window = attempt.reference.held_out.windows[0].inputs[: max(1, LOGITS_VALUES // resident.ready.vocab)]
    qdq = attempt.bench.host.logits(attempt.artifact.reference, window)
    if qdq is None:
        return ()
    found: dict[str, tuple[float, int]] = {}
    noise = 0.0
    for graph in GRAPHS[attempt.cell.mode]:
        tokens = window[:KV_LOGITS] if graph == "kv" else window
        logits = PhoneScorer(resident, graph).logits(tokens)
        found[graph] = sqnr_db(qdq[: len(tokens)], logits), len(tokens)
        noise = max(noise, candidate_noise(qdq[: len(tokens)], logits))
    check = logits_check(attempt.cell.id, found, attempt.cell.model.bounds)
    return (check, _texts(attempt, resident, replies, noise))


def _texts(attempt: Attempt, resident: Resident, replies: Sequence[Reply], noise: float) -> CheckRecord:
    attempt.say("comparing the text with QDQ's")
    witness = PhoneScorer(resident, "prefill").logits_after if attempt.cell.mode is Mode.LOOKAHEAD else None
    reports = attempt.bench.host.check_texts(attempt.artifact.reference, attempt.reference, replies, noise, witness)
    return text_check(attempt.cell.id, reports, noise)


def _text(attempt: Attempt, tokens: int) -> HeldOut:
    """The beginning of the held-out text; as it was scored at compile time where that is what is asked for."""
    compiled = attempt.reference.held_out
    if tokens == compiled.tokens:
        return compiled
    if tokens < compiled.tokens:
        return beginning(compiled, attempt.tokenizer, tokens)
    text = attempt.cell.model.eval.text.read_text(encoding="utf-8")
    return held_out(attempt.tokenizer, text, tokens, attempt.reference.context)


def _ttft(attempt: Attempt, resident: Resident) -> None:
    attempt.say("time to first token by prompt length")
    graph, ar_len = prompt_graph(resident.ready)
    text = [token for window in attempt.reference.held_out.windows for token in window.inputs]
    phone, cell, target = attempt.phone, attempt.cell.id, attempt.bench.target
    for length, number, ms in measure_ttft(resident, text):
        size = (graph, ar_len, length, -(-length // ar_len), round(ms, 3), number, attempt.number)
        attempt.bench.record(TtftRecord(cell, phone.phone.name, phone.identity.serial, target, *size))


def _tasks(attempt: Attempt, resident: Resident) -> None:
    bench = attempt.bench
    graph = GRAPHS[attempt.cell.mode][0]
    grounds: list[tuple[Ground, Graph, Scorer]] = [
        ("FP", "full", bench.host.scorer(attempt.artifact.reference, "FP")),
        ("QDQ", "full", bench.host.scorer(attempt.artifact.reference, "QDQ")),
        ("PHONE", graph, PhoneScorer(resident, graph)),
    ]
    # Here and not at the top: it loads lm-eval, which takes seconds and most runs do without.
    from harness.evaluate.tasks import run_tasks

    choice = bench.evaluation
    for ground, which, scorer in grounds:
        attempt.say(f"{', '.join(choice.tasks)} on {ground}")
        path = attempt.folder("accuracy") / f"lm-eval-{ground}-{which}.json"
        results = run_tasks(
            scorer,
            attempt.tokenizer,
            choice.tasks,
            limit=choice.limit,
            fewshot=choice.fewshot,
            seed=choice.seed,
            task_folders=choice.task_folders,
            output=path,
        )
        for result in results:
            bench.record(
                TaskRecord(
                    cell=attempt.cell.id,
                    ground=ground,
                    graph=which,
                    task=result.task,
                    metrics=result.metrics,
                    samples=result.samples,
                    limit=choice.limit,
                    fewshot=choice.fewshot,
                    seed=choice.seed,
                    steps=result.steps,
                    seconds=round(result.seconds, 3),
                    path=str(path.relative_to(bench.folder)),
                )
            )
