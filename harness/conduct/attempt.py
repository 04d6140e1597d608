"""One attempt at a cell on one leased phone: deploy → run → measure → judge, with everything recorded."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.build.cache import Artifact
from harness.build.reference import QDQ_FILE, Reference, load_reference
from harness.errors import FailureClass
from harness.evaluate.judge import noise, noise_check, perplexity_checks, text_check
from harness.evaluate.text import TextReport
from harness.farm.deploy import DeployReport, deploy
from harness.farm.failures import Failure, classify
from harness.farm.identity import AttachedPhone
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
    PerplexityRecord,
    Record,
    SampleRecord,
)
from harness.target import Target
from harness.text.decoders import VERSIONS
from harness.text.templates import find_template, format_prompt
from harness.text.tokenizer import load_tokenizer

EVAL_MODES = {Mode.KV: 0, Mode.HYBRID: 1, Mode.LOOKAHEAD: 2}
# The simulator takes seconds a step with a large vocabulary, a phone milliseconds: a limit, not an expectation.
STEP_LIMIT_S = 30.0
START_LIMIT_S = 120.0

Reply = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids that were fed, BOS included, and those that came back."""


@dataclass(frozen=True)
class Bench:
    """What cells are run with.

    Attributes:
        run_id: of the run.
        folder: of the run: evidence goes there.
        phones: those that answer.
        record: appends a record.
        say: progress: a phone's name (or "") and what it does now.
        target: what artifacts are built for.
        check_text: compares replies with the QDQ module of that file, allowing for noise in nats; given, since it loads
            torch and this does not.
    """

    run_id: str
    folder: Path
    phones: tuple[AttachedPhone, ...]
    record: Callable[[Record], None]
    say: Callable[[str, str], None]
    target: Target
    check_text: Callable[[Path, Reference, Sequence[Reply], float], tuple[TextReport, ...]]


@dataclass(frozen=True)
class Attempt:
    """A cell on a phone that this process has leased; `number` counts the cell's attempts from 1."""

    bench: Bench
    cell: Cell
    artifact: Artifact
    phone: AttachedPhone
    number: int

    @cached_property
    def reference(self) -> Reference:
        """What the phone is judged by."""
        return load_reference(self.artifact.reference)

    @cached_property
    def payload(self) -> Payload:
        """The files it needs."""
        return sim_payload(self.artifact.pte, self.artifact.reference / self.reference.tokenizer)

    @property
    def graph(self) -> Graph:
        """The graph that scores: prefill where there is one, since a block of AR tokens costs about one step."""
        return "kv" if self.cell.mode is Mode.KV else "prefill"

    def folder(self, session: int) -> Path:
        """Where a session's evidence is kept."""
        return self.bench.folder / "cells" / self.cell.id / f"{self.number}-{session}"

    def say(self, what: str) -> None:
        """Progress."""
        self.bench.say(self.phone.phone.name, f"{self.cell.id}: {what}")


def run_attempt(attempt: Attempt) -> Failure | None:
    """Runs every prompt in a session of its own, the first one with the held-out text; None when all checks hold.

    Raises:
        HarnessError: the phone, the connection or the artifact failed.
    """
    cell, prompts = attempt.cell, attempt.cell.model.prompts
    if leftovers := sweep(attempt.phone.link):
        attempt.say(f"removed what a dead run left: {leftovers}")
    attempt.say("deploying")
    deployed = deploy(attempt.phone.link, attempt.payload.files)
    attempt.bench.record(_deploy_record(attempt, deployed))
    replies: list[Reply] = []
    checks: list[CheckRecord] = []
    rms = 0.0
    for session, prompt in enumerate(prompts):
        attempt.say(f"prompt {session + 1}/{len(prompts)}{' and perplexity' if session == 0 else ''}")
        spec = session_spec(attempt, prompt, session, scoring=session == 0)
        result = run_session(attempt.phone.link, deployed, spec, attempt.folder(session))
        _keep_logs(result, attempt.folder(session))
        if failure := classify(result):
            return failure
        stats = json.loads(result.files["stats.json"].read_text(encoding="utf-8"))
        attempt.bench.record(_sample(attempt, prompt, session, result, stats))
        turn = stats["turns"][0]
        replies.append((tuple(turn["prompt_tokens"]), tuple(turn["tokens"])))
        if session == 0:
            rms = noise(attempt.reference, _phone_each(result))
            checks += [*_perplexity_checks(attempt, result), noise_check(cell.id, rms, cell.model.bounds)]
    attempt.say("comparing the text with QDQ's")
    qdq = attempt.artifact.reference / QDQ_FILE
    checks.append(text_check(cell.id, attempt.bench.check_text(qdq, attempt.reference, replies, rms)))
    for check in checks:
        attempt.bench.record(check)
    if failed := [check for check in checks if not check.passed]:
        return Failure(FailureClass.PRODUCT, "; ".join(f"{check.name}: {check.text}" for check in failed))
    return None


def session_spec(attempt: Attempt, prompt: str, session: int, *, scoring: bool) -> SessionSpec:
    """The runner's command line for one prompt; with `scoring` it also scores the held-out text."""
    cell, reference = attempt.cell, attempt.reference
    seq_len = min(cell.lengths.max_seq_len, _prompt_tokens(attempt, prompt) + cell.model.max_new_tokens)
    flags = [
        *("--model_path", attempt.payload.model, "--tokenizer_path", attempt.payload.tokenizer),
        *("--decoder_model_version", VERSIONS[cell.model.decoder], "--eval_mode", str(EVAL_MODES[cell.mode])),
        *("--seq_len", str(seq_len), "--temperature", "0"),
        *("--output_path", "outputs.txt", "--performance_output_path", "inference_speed.txt"),
        # A fixed number of tokens, whatever the text says, or speeds do not compare.
        *("--x_stats_path", "stats.json", "--x_ignore_eos"),
    ]
    if cell.model.system_prompt:
        flags += ["--system_prompt", cell.model.system_prompt]
    outputs = ["outputs.txt", "inference_speed.txt", "stats.json"]
    inputs: tuple[PayloadFile, ...] = ()
    steps = seq_len
    if scoring:
        folder = attempt.folder(session)
        folder.mkdir(parents=True, exist_ok=True)
        request = folder / "windows.json"
        windows = [{"input": list(w.inputs), "target": list(w.targets)} for w in reference.windows]
        request.write_text(json.dumps({"windows": windows, "graph": attempt.graph}), encoding="utf-8")
        inputs = (PayloadFile(request, "windows.json"),)
        flags += ["--x_score_path", "windows.json", "--x_score_output", "scores.json"]
        outputs.append("scores.json")
        steps += reference.qdq.tokens
    return SessionSpec(
        run_id=f"{attempt.bench.run_id}-{cell.mode}-{attempt.number}",
        number=session,
        runner=attempt.payload.runner,
        flags=(*flags, *prompt_flags([prompt])),
        outputs=tuple(outputs),
        inputs=inputs,
        timeout_s=START_LIMIT_S + STEP_LIMIT_S * steps,
    )


def _prompt_tokens(attempt: Attempt, prompt: str) -> int:
    """Tokens that the runner will feed for a prompt, BOS and chat template included."""
    tokenizer = load_tokenizer(attempt.artifact.reference / attempt.reference.tokenizer)
    template = find_template(VERSIONS[attempt.cell.model.decoder])
    return len(tokenizer.encode(format_prompt(template, prompt, attempt.cell.model.system_prompt or ""), bos=True))


def _keep_logs(result: SessionResult, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    (into / "stdout.txt").write_text(result.stdout, encoding="utf-8")
    (into / "stderr.txt").write_text(result.stderr, encoding="utf-8")
    (into / "command.txt").write_text(result.command + "\n", encoding="utf-8")


def _deploy_record(attempt: Attempt, deployed: DeployReport) -> DeployRecord:
    return DeployRecord(
        attempt.cell.id,
        attempt.phone.phone.name,
        deployed.pushed,
        deployed.reused,
        deployed.bytes,
        round(deployed.seconds, 3),
    )


def _sample(attempt: Attempt, prompt: str, session: int, result: SessionResult, stats: dict[str, Any]) -> SampleRecord:
    observer = result.observer
    assert observer is not None, "classify() refuses a session without one"
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
        settings={"temperature": 0.0, "seq_len": attempt.cell.lengths.max_seq_len, "ignore_eos": True},
        raw={**vars(observer), "turns": stats["turns"]},
        attempt=attempt.number,
    )


def _phone_each(result: SessionResult) -> list[float]:
    """The phone's log-likelihood of each scored token, in nats."""
    scores = json.loads(result.files["scores.json"].read_text(encoding="utf-8"))
    return [float(value) for window in scores["windows"] for value in window["logprobs"]]


def _perplexity_checks(attempt: Attempt, result: SessionResult) -> tuple[CheckRecord, ...]:
    """Records the three grounds' perplexities and judges them."""
    reference = attempt.reference
    scores = json.loads(result.files["scores.json"].read_text(encoding="utf-8"))
    total = -math.fsum(_phone_each(result))
    grounds: list[tuple[Ground, Graph, float, int, int, float]] = [
        ("FP", "full", -reference.fp.log_likelihood, reference.fp.tokens, 0, 0.0),
        ("QDQ", "full", -reference.qdq.log_likelihood, reference.qdq.tokens, 0, 0.0),
        ("PHONE", attempt.graph, total, scores["tokens"], scores["steps"], round(scores["seconds"], 3)),
    ]
    records = [
        PerplexityRecord(attempt.cell.id, ground, graph, tokens, reference.words, nll, reference.context, steps, took)
        for ground, graph, nll, tokens, steps, took in grounds
    ]
    for record in records:
        attempt.bench.record(record)
    return perplexity_checks(attempt.cell.id, reference, records[-1], attempt.cell.model.bounds)
