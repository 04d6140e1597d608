"""One prompt in a fresh process of a runner, ours or the stock one: run, logs kept, void where the phone throttled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.conduct.attempt import Attempt
from harness.conduct.speed_witness import Witnessed, session_witness
from harness.errors import FailureClass
from harness.farm.deploy import DeployReport
from harness.farm.failures import Failure, classify
from harness.farm.prepare import prepare
from harness.farm.session import SessionResult, SessionSpec, run_session
from harness.farm.vitals import read_vitals, throttle_text, throttled
from harness.results.records import SampleRecord
from harness.text.decoders import VERSIONS
from harness.text.templates import find_template, format_prompt

RETAKES = 3
"""How often a sample is taken that ends throttled, before the cell gives up."""


@dataclass(frozen=True)
class Taken:
    """A session that counts.

    Attributes:
        result: what came of it.
        vitals: the phone's, `before` and `after` it.
        witnessed: the runner's times, and this host's.
    """

    result: SessionResult
    vitals: dict[str, dict[str, object]]
    witnessed: Witnessed


def fed_tokens(attempt: Attempt, prompt: str) -> list[int]:
    """The tokens that a runner feeds for a prompt, BOS and chat template included."""
    model = attempt.cell.model
    text = format_prompt(find_template(VERSIONS[model.decoder]), prompt, model.system_prompt or "")
    return list(attempt.runner_tokenizer.encode(text, bos=True))


def take_session(attempt: Attempt, deployed: DeployReport, spec: SessionSpec, number: int) -> Taken | Failure:
    """Runs a session and keeps its logs; taken again where the phone was throttled.

    Args:
        number: of the process, as the folder of its logs is called.

    Raises:
        HarnessError: the phone or the connection failed.
    """
    phone = attempt.phone
    for retake in range(1, RETAKES + 1):
        before = read_vitals(phone.link)
        result = run_session(phone.link, deployed, spec, attempt.folder(number))
        _keep_logs(attempt, number, result)
        if failure := classify(result):
            return failure
        after = read_vitals(phone.link)
        if not throttled(after, phone.phone.limits):
            break
        attempt.say(f"{throttle_text(after)}: the sample is void")
        if retake == RETAKES:
            return Failure(FailureClass.ENV, throttle_text(after), "give the phone air, take its case off")
        prepare(attempt.bench.nurse, phone.phone, phone.link)
    return Taken(result, {"before": before.record(), "after": after.record()}, session_witness(number, result))


def sample_record(
    attempt: Attempt,
    prompt: str,
    number: int,
    taken: Taken,
    *,
    settings: dict[str, Any],
    raw: dict[str, Any] | None = None,
    **more: Any,
) -> SampleRecord:
    """What a session measured; `raw` and `more` are what only one of the runners says."""
    observer = taken.result.observer
    assert observer is not None, "classify() refuses a session without one"
    return SampleRecord(
        cell=attempt.cell.id,
        phone=attempt.phone.phone.name,
        serial=attempt.phone.identity.serial,
        soc=attempt.cell.soc.name,
        target=attempt.bench.target,
        session=number,
        prompt=prompt,
        prompt_tokens=observer.prompt_tokens,
        generated_tokens=observer.generated_tokens,
        text=taken.result.files["outputs.txt"].read_text(encoding="utf-8", errors="replace"),
        load_ms=observer.load_ms,
        ttft_ms=observer.ttft_ms,
        prefill_tok_s=observer.prefill_tok_s,
        decode_tok_s=observer.decode_tok_s,
        settings={"temperature": 0.0, "seq_len": attempt.cell.lengths.max_seq_len, **settings},
        raw={**vars(observer), **(raw or {}), "vitals": taken.vitals},
        attempt=attempt.number,
        host_ms=round(taken.result.seconds * 1000, 3),
        **more,
    )


def _keep_logs(attempt: Attempt, number: int, result: SessionResult) -> None:
    into = attempt.folder(number)
    into.mkdir(parents=True, exist_ok=True)
    (into / "stdout.txt").write_text(result.stdout, encoding="utf-8")
    (into / "stderr.txt").write_text(result.stderr, encoding="utf-8")
    (into / "command.txt").write_text(result.command + "\n", encoding="utf-8")
