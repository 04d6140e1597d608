"""What one process of the runner, that stays, is asked of a cell: rows of every graph and seam, TTFT, tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.build.witness import Witness, WitnessText
from harness.conduct.attempt import Attempt
from harness.conduct.speed_witness import Witnessed
from harness.evaluate.deviations import Deviations, compare_rows
from harness.evaluate.grounds import GroundScore
from harness.evaluate.judge import DECODE, REPLIES, grey, perplexity_checks, qdq_check, row_checks
from harness.evaluate.phone_scorer import PhoneScorer, walk
from harness.evaluate.rules import LIMIT_ROUNDS
from harness.evaluate.scored import Scored
from harness.evaluate.scorer import Scorer
from harness.evaluate.seams import Stage, continuation_legs, decode_stages, prefill_stages
from harness.evaluate.text import first_tokens_check
from harness.evaluate.ttft import measure_ttft, prompt_graph
from harness.farm.deploy import DeployReport
from harness.farm.resident import Ready, Resident, resident_spec
from harness.model_file import Mode
from harness.results.records import CheckRecord, Graph, Ground, TaskRecord, TtftRecord
from harness.runtime.program import KV_GRAPH, PREFILL_GRAPH
from harness.runtime.score import GraphChoice
from harness.text.decoders import VERSIONS
from harness.text.heldout import HeldOut, beginning, held_out
from harness.text.windows import Window

# Prefill first: a block of AR tokens costs about one step, so the cell's noise is known early.
GRAPHS: dict[Mode, tuple[GraphChoice, ...]] = {
    Mode.KV: ("kv",),
    Mode.HYBRID: ("prefill", "kv"),
    Mode.LOOKAHEAD: ("prefill", "kv"),
}
START_LIMIT_S = 300.0


def measure_accuracy(
    attempt: Attempt, deployed: DeployReport, replies: Sequence[Deviations], unseen: Sequence[Unseen] = ()
) -> tuple[list[CheckRecord], Witnessed]:
    """Scores the held-out text through every graph and over every seam, times prompts of all lengths, runs the tasks.

    Args:
        attempt, deployed: what is run, and what is on the phone.
        replies: deviations of the rows that the cell's replies were chosen from: they are the decode graph's, too.
        unseen: continuations of QDQ's that no reply went along to the end, and nothing else speaks of.

    Returns:
        The checks; what the runner said of the times that its turns took, and what this host saw.

    Raises:
        HarnessError: the phone, the connection or the runner failed, or there is no witness.
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
            checks = _scores(attempt, resident, [*replies, *_continuations(attempt, resident, unseen)])
            checks.append(_ttft(attempt, resident))
            if attempt.bench.evaluation.tasks:
                _tasks(attempt, resident)
    finally:
        resident.write_stderr(attempt.folder("accuracy") / "stderr.txt")
    return checks, Witnessed(resident.claims)


@dataclass(frozen=True)
class Unseen:
    """What of a prompt's continuation no reply went along.

    Attributes:
        text: the witness's.
        start: the first input of it that is not judged yet.
    """

    text: WitnessText
    start: int


def _continuations(attempt: Attempt, resident: Resident, unseen: Sequence[Unseen]) -> list[Deviations]:
    """The decode graph's rows along QDQ's own text, where the phone's parted from it and QDQ's module was not kept."""
    found = []
    for one in unseen:
        attempt.say("scoring QDQ's own continuation, from which the phone's text parted")
        window, prefill = Window(one.text.inputs, one.text.targets), PREFILL_GRAPH in resident.ready.ar_len
        *_, score = walk(resident, continuation_legs(window, one.start, prefill=prefill))
        typical = attempt.witness.typical_spread
        found.append(compare_rows("kv", "QDQ's own continuation", one.text, one.start, score.top, typical))
    return found


def _scores(attempt: Attempt, resident: Resident, replies: Sequence[Deviations]) -> list[CheckRecord]:
    """The first round scores what the model's file or the run asks for; while a figure is grey, another follows."""
    model, bench, graphs = attempt.cell.model, attempt.bench, GRAPHS[attempt.cell.mode]
    text = _text(attempt, bench.evaluation.tokens or model.eval.tokens)
    share = text
    if bench.evaluation.tokens is None and model.eval.kv_tokens < text.tokens:
        share = _text(attempt, model.eval.kv_tokens)
    scored = Scored(attempt.witness)
    asked: dict[GraphChoice, HeldOut] = {"prefill": text, "kv": share}
    for graph in graphs:
        attempt.say(f"scoring {asked[graph].tokens} tokens, {graph} graph")
        _walk(attempt, resident, scored, _stages(attempt, resident.ready, graph, asked[graph].windows, 0, text))
    fp, qdq = bench.host.grounds(attempt.artifact.reference, attempt.reference, text)
    phone = [_ground(scored, graph, asked[graph], attempt.reference.context) for graph in graphs]
    for score in (fp, qdq, *phone):
        bench.record(score.record(attempt.cell.id))
    checks = judge_scores(attempt, scored, replies)
    used = {graph: len(asked[graph].windows) for graph in graphs}
    for number in range(1, LIMIT_ROUNDS):
        more = {graph: further(attempt.witness, used[graph], again(asked[graph].tokens, number)) for graph in graphs}
        if not grey(checks) or not any(more.values()):
            break
        for graph in graphs:
            if windows := more[graph]:
                attempt.say(f"not decided yet: {sum(len(w.inputs) for w in windows)} tokens more, {graph} graph")
                stages = _stages(attempt, resident.ready, graph, windows, used[graph], text)
                _walk(attempt, resident, scored, stages)
                used[graph] += len(windows)
        checks = judge_scores(attempt, scored, replies)
    return [*checks, qdq_check(attempt.cell.id, fp, qdq, model.bounds)]


def judge_scores(attempt: Attempt, scored: Scored, replies: Sequence[Deviations]) -> list[CheckRecord]:
    """All checks of rows and perplexities."""
    cell = attempt.cell
    rows: dict[str, list[Deviations]] = {f"{graph} graph": scored.rows_of(graph) for graph in sorted(scored.each)}
    if replies:
        # On their own: a decode that is wrong where it generates must not hide behind as many scores that are right.
        rows[REPLIES] = list(replies)
    else:
        rows.setdefault(DECODE, [])
    return [*row_checks(cell.id, rows), *perplexity_checks(cell.id, scored, cell.model.bounds)]


def _stages(
    attempt: Attempt, ready: Ready, graph: GraphChoice, windows: Sequence[Window], first: int, text: HeldOut
) -> list[Stage]:
    if graph == "prefill":
        return prefill_stages(windows, first)
    return decode_stages(
        windows,
        first,
        whole=_whole(attempt, text),
        context=ready.context,
        prefill_ar=ready.ar_len.get(PREFILL_GRAPH),
        decode_ar=ready.ar_len[KV_GRAPH],
    )


def _whole(attempt: Attempt, text: HeldOut) -> Window:
    """The held-out text's first window, as far as the witness has it."""
    known = attempt.witness.held_out[0]
    return max((Window(known.inputs, known.targets), text.windows[0]), key=lambda window: len(window.inputs))


def again(tokens: int, number: int) -> int:
    """Tokens of round `number`, from 1: as many as were scored before it, so that their sum doubles."""
    return tokens << (number - 1)


def further(witness: Witness, used: int, tokens: int) -> list[Window]:
    """The next text of the witness: windows from number `used` on, of `tokens` tokens together; less where it ends."""
    windows: list[Window] = []
    for text in witness.held_out[used:]:
        if tokens <= 0:
            break
        windows.append(Window(text.inputs[:tokens], text.targets[:tokens]))
        tokens -= len(text.inputs)
    return windows


def _walk(attempt: Attempt, resident: Resident, scored: Scored, stages: Sequence[Stage]) -> None:
    def progress(done: int, total: int) -> None:
        attempt.say(f"scored {done} of {total} parts of the text")

    scored.add(stages, walk(resident, [stage.leg for stage in stages], progress=progress))


def _ground(scored: Scored, graph: GraphChoice, text: HeldOut, context: int) -> GroundScore:
    """A graph's score of a text, for the records."""
    each = scored.targets(graph, range(len(text.windows)))
    return GroundScore("PHONE", graph, each, text.words, context, scored.steps[graph], scored.seconds[graph])


def _text(attempt: Attempt, tokens: int) -> HeldOut:
    """The beginning of the held-out text; as it was scored at compile time where that is what is asked for."""
    compiled = attempt.reference.held_out
    if tokens == compiled.tokens:
        return compiled
    if tokens < compiled.tokens:
        return beginning(compiled, attempt.tokenizer, tokens)
    text = attempt.cell.model.eval.text.read_text(encoding="utf-8")
    return held_out(attempt.tokenizer, text, tokens, attempt.reference.context)


def _ttft(attempt: Attempt, resident: Resident) -> CheckRecord:
    """Times prompts of all lengths; they are the held-out text's beginning, so that their first tokens are judged."""
    attempt.say("time to first token by prompt length")
    graph, ar_len = prompt_graph(resident.ready)
    text = [token for window in attempt.witness.held_out for token in window.inputs]
    phone, cell, target = attempt.phone, attempt.cell.id, attempt.bench.target
    first: list[tuple[int, int]] = []
    for length, number, ms, token in measure_ttft(resident, text):
        size = (graph, ar_len, length, -(-length // ar_len), round(ms, 3), number, attempt.number)
        attempt.bench.record(TtftRecord(cell, phone.phone.name, phone.identity.serial, target, *size))
        first.append((length, token))
    return first_tokens_check(cell, first, attempt.witness)


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
