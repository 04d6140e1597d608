"""One cell, from lease to outcome: lease → deploy → run → measure → judge → record."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.build.cache import Artifact
from harness.build.reference import QDQ_FILE, Reference, load_reference
from harness.conduct.retry import again, verdict_class
from harness.errors import FailureClass, InfraError
from harness.evaluate.judge import perplexity_checks, text_check
from harness.farm.deploy import deploy
from harness.farm.failures import Failure, classify, classify_exception
from harness.farm.identity import AttachedPhone
from harness.farm.lease import Owner, acquire_any
from harness.farm.payload import Payload, PayloadFile, sim_payload
from harness.farm.recover import sweep
from harness.farm.session import SessionResult, SessionSpec, prompt_flags, run_session
from harness.matrix import Cell
from harness.model_file import Mode
from harness.results.records import (
    CheckRecord,
    DeployRecord,
    Graph,
    Ground,
    OutcomeRecord,
    PerplexityRecord,
    Record,
    SampleRecord,
    Status,
)
from harness.target import Target
from harness.text.decoders import VERSIONS

EVAL_MODES = {Mode.KV: 0, Mode.HYBRID: 1, Mode.LOOKAHEAD: 2}
LEASE_WAIT_S = 3600.0
# The simulator takes seconds a step with a large vocabulary, a phone milliseconds: a limit, not an expectation.
STEP_LIMIT_S = 30.0
START_LIMIT_S = 120.0

Say = Callable[[str, str], None]
"""Called with a phone's name (or "") and what it does now."""


@dataclass(frozen=True)
class Bench:
    """What cells are run with.

    Attributes:
        run_id: of the run.
        folder: of the run: evidence goes there.
        phones: those that answer.
        record: appends a record.
        say: progress.
        target: what artifacts are built for.
        check_text: compares replies with QDQ; a parameter since it needs torch, which this module does not.
    """

    run_id: str
    folder: Path
    phones: tuple[AttachedPhone, ...]
    record: Callable[[Record], None]
    say: Say
    target: Target
    check_text: Callable[[Path, Reference, Sequence[tuple[tuple[int, ...], tuple[int, ...]]]], Any]


def run_cell(bench: Bench, cell: Cell, artifact: Artifact, lease_wait_s: float = LEASE_WAIT_S) -> OutcomeRecord:
    """Runs a cell on a phone that fits, trying again where the class of a failure allows it; records everything."""
    start = time.monotonic()
    failures: list[FailureClass] = []
    avoid: list[str] = []
    while True:
        attempt = len(failures) + 1
        phone: AttachedPhone | None = None
        try:
            candidates = fitting(bench.phones, cell, avoid)
            owner = Owner.this_process(bench.run_id)
            bench.say("", f"{cell.id}: waiting for a phone")
            with acquire_any([p.link.serial for p in candidates], owner, wait_s=lease_wait_s) as lease:
                phone = next(p for p in candidates if p.link.serial == lease.serial)
                failure = _attempt(bench, cell, artifact, phone, attempt)
        except Exception as error:
            failure = classify_exception(error)
        name = phone.phone.name if phone else None
        seconds = round(time.monotonic() - start, 2)
        if failure is None:
            outcome = OutcomeRecord(cell.id, Status.PASSED, seconds=seconds, attempts=attempt, phone=name)
            break
        failures.append(failure.failure_class)
        if name:
            avoid.append(name)
        if not again(failures):
            klass = verdict_class(failures)
            status = Status.FAILED if klass in (FailureClass.PRODUCT, FailureClass.PERF) else Status.ERROR
            evidence = (failure.reason, failure.remedy, failure.evidence)
            outcome = OutcomeRecord(cell.id, status, klass, *evidence, None, seconds, attempt, name)
            break
        bench.say(name or "", f"{cell.id}: {failure.failure_class}: {failure.reason}; trying again")
    bench.record(outcome)
    bench.say(outcome.phone or "", f"{cell.id}: {outcome.status} after {outcome.seconds:.0f} s")
    return outcome


def fitting(phones: Sequence[AttachedPhone], cell: Cell, avoid: Sequence[str]) -> list[AttachedPhone]:
    """The phones a cell may run on, those that failed it last; a cell pinned to a phone has only that one.

    Raises:
        InfraError: none.
    """
    matching = [
        p for p in phones if p.identity.soc == cell.soc and (cell.phone is None or p.phone.name == cell.phone)
    ]
    if not matching:
        raise InfraError(
            f"no phone with {cell.soc.name} answers",
            where=cell.id,
            remedy="see `htpfarm devices` for what each phone says",
        )
    return sorted(matching, key=lambda p: avoid.count(p.phone.name))


def _attempt(bench: Bench, cell: Cell, artifact: Artifact, phone: AttachedPhone, attempt: int) -> Failure | None:
    name = phone.phone.name
    reference = load_reference(artifact.reference)
    if leftovers := sweep(phone.link):
        bench.say(name, f"{cell.id}: removed what a dead run left: {leftovers}")
    payload = sim_payload(artifact.pte, artifact.reference / reference.tokenizer)
    bench.say(name, f"{cell.id}: deploying")
    deployed = deploy(phone.link, payload.files)
    bench.record(
        DeployRecord(cell.id, name, deployed.pushed, deployed.reused, deployed.bytes, round(deployed.seconds, 3))
    )
    replies = []
    failed: list[CheckRecord] = []
    for number, prompt in enumerate(cell.model.prompts):
        scoring = number == 0
        what = "prompt and perplexity" if scoring else "prompt"
        bench.say(name, f"{cell.id}: {what} {number + 1}/{len(cell.model.prompts)}")
        into = bench.folder / "cells" / cell.id / f"{attempt}-{number}"
        spec = _session_spec(bench, cell, payload, reference, prompt, number, into, attempt, scoring)
        result = run_session(phone.link, deployed, spec, into)
        _keep_logs(result, into)
        if failure := classify(result):
            return failure
        stats = json.loads(result.files["stats.json"].read_text(encoding="utf-8"))
        bench.record(_sample(bench, cell, phone, prompt, number, result, stats, attempt))
        turn = stats["turns"][0]
        replies.append((tuple(turn["prompt_tokens"]), tuple(turn["tokens"])))
        if scoring:
            failed += _judge_perplexity(bench, cell, reference, result)
    bench.say(name, f"{cell.id}: comparing the text with QDQ's")
    check = text_check(cell.id, bench.check_text(artifact.reference / QDQ_FILE, reference, replies))
    bench.record(check)
    failed += [] if check.passed else [check]
    if failed:
        return Failure(FailureClass.PRODUCT, "; ".join(f"{check.name}: {check.text}" for check in failed))
    return None


def _session_spec(
    bench: Bench,
    cell: Cell,
    payload: Payload,
    reference: Reference,
    prompt: str,
    number: int,
    into: Path,
    attempt: int,
    scoring: bool,
) -> SessionSpec:
    flags = [
        *("--model_path", payload.model, "--tokenizer_path", payload.tokenizer),
        *("--decoder_model_version", VERSIONS[cell.model.decoder], "--eval_mode", str(EVAL_MODES[cell.mode])),
        *("--seq_len", str(cell.lengths.max_seq_len), "--temperature", "0"),
        *("--output_path", "outputs.txt", "--performance_output_path", "inference_speed.txt"),
        *("--x_stats_path", "stats.json", "--x_ignore_eos"),
    ]
    if cell.model.system_prompt:
        flags += ["--system_prompt", cell.model.system_prompt]
    outputs = ["outputs.txt", "inference_speed.txt", "stats.json"]
    inputs: tuple[PayloadFile, ...] = ()
    steps = cell.lengths.max_seq_len
    if scoring:
        into.mkdir(parents=True, exist_ok=True)
        request = into / "windows.json"
        windows = [{"input": list(w.inputs), "target": list(w.targets)} for w in reference.windows]
        request.write_text(json.dumps({"windows": windows, "graph": _graph(cell)}), encoding="utf-8")
        inputs = (PayloadFile(request, "windows.json"),)
        flags += ["--x_score_path", "windows.json", "--x_score_output", "scores.json"]
        outputs.append("scores.json")
        steps += reference.qdq.tokens
    return SessionSpec(
        run_id=f"{bench.run_id}-{cell.mode}-{attempt}",
        number=number,
        runner=payload.runner,
        flags=(*flags, *prompt_flags([prompt])),
        outputs=tuple(outputs),
        inputs=inputs,
        timeout_s=START_LIMIT_S + STEP_LIMIT_S * steps,
    )


def _graph(cell: Cell) -> Graph:
    # A block of AR tokens costs about what one token costs, so the prefill graph is scored where there is one.
    return "kv" if cell.mode is Mode.KV else "prefill"


def _keep_logs(result: SessionResult, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    (into / "stdout.txt").write_text(result.stdout, encoding="utf-8")
    (into / "stderr.txt").write_text(result.stderr, encoding="utf-8")
    (into / "command.txt").write_text(result.command + "\n", encoding="utf-8")


def _sample(
    bench: Bench,
    cell: Cell,
    phone: AttachedPhone,
    prompt: str,
    session: int,
    result: SessionResult,
    stats: dict[str, Any],
    attempt: int,
) -> SampleRecord:
    observer = result.observer
    assert observer is not None, "classify() refuses a session without one"
    text = result.files["outputs.txt"].read_text(encoding="utf-8", errors="replace")
    return SampleRecord(
        cell=cell.id,
        phone=phone.phone.name,
        serial=phone.identity.serial,
        soc=cell.soc.name,
        target=bench.target,
        session=session,
        prompt=prompt,
        prompt_tokens=observer.prompt_tokens,
        generated_tokens=observer.generated_tokens,
        text=text,
        load_ms=observer.load_ms,
        ttft_ms=observer.ttft_ms,
        prefill_tok_s=observer.prefill_tok_s,
        decode_tok_s=observer.decode_tok_s,
        peak_rss_mb=round(stats["peak_rss_kib"] / 1024, 1),
        settings={"temperature": 0.0, "seq_len": cell.lengths.max_seq_len, "ignore_eos": True},
        raw={**vars(observer), "kv_bytes_per_step": stats["kv_bytes_per_step"][:4], "turns": stats["turns"]},
        attempt=attempt,
    )


def _judge_perplexity(bench: Bench, cell: Cell, reference: Reference, result: SessionResult) -> list[CheckRecord]:
    scores = json.loads(result.files["scores.json"].read_text(encoding="utf-8"))
    total = -sum(value for window in scores["windows"] for value in window["logprobs"])
    grounds: list[tuple[Ground, Graph, float, int, int, float]] = [
        ("FP", "full", -reference.fp.log_likelihood, reference.fp.tokens, 0, 0.0),
        ("QDQ", "full", -reference.qdq.log_likelihood, reference.qdq.tokens, 0, 0.0),
        ("PHONE", _graph(cell), total, scores["tokens"], scores["steps"], round(scores["seconds"], 3)),
    ]
    records = [
        PerplexityRecord(cell.id, ground, graph, tokens, reference.words, nll, reference.context, steps, seconds)
        for ground, graph, nll, tokens, steps, seconds in grounds
    ]
    for record in records:
        bench.record(record)
    checks = perplexity_checks(cell.id, reference, records[-1], cell.model.bounds)
    for check in checks:
        bench.record(check)
    return [check for check in checks if not check.passed]
