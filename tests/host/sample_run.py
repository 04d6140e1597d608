"""A run with every kind of record and every kind of ending, for the tests of `harness.results`."""

from __future__ import annotations

import math
from pathlib import Path

from harness.errors import FailureClass
from harness.models import Lengths
from harness.results import (
    ArtifactRecord,
    CheckRecord,
    DeployRecord,
    OutcomeRecord,
    PerplexityRecord,
    PlanEntry,
    Record,
    RecordWriter,
    RunInfo,
    SampleRecord,
    Status,
    TaskRecord,
    TtftRecord,
)
from harness.results.records import Graph, Ground
from harness.target import Target

GOOD = "tiny_llama-hybrid-SM8650@s24"
BROKEN = "tiny_llama-kv-SM8550"
LOST = "tiny_llama-kv-SM8650@oneplus"
OLD = "tiny_llama-hybrid-SM8450"
UNRUN = "smollm2_135m-hybrid-SM8750-kv8"
EVIL = "In the <script>alert('x')</script> beginning | of `code` & \x1b[31mred\nwas ``` the *word* \u202etfel"


def run_info(target: Target = Target.SIM) -> RunInfo:
    return RunInfo(
        id="20260102-030405-abcd",
        started="2026-01-02T03:04:05.000+00:00",
        command=("pytest", "-m", "device", "-k", "a b"),
        host="bench-1",
        harness_version="0.1.0",
        toolchain={"executorch": "1.5.1", "qnn": "2.4.0", "build id": "v2.4.0.1234567890_abcdef"},
        rack="devices.yaml",
        target=target,
    )


def planned(cell: str, arch: int, *, skip: bool = False) -> PlanEntry:
    name, _, phone = cell.partition("@")
    model, mode, soc, *recipe = name.split("-")
    return PlanEntry(
        cell=cell,
        model=model,
        mode=mode,
        soc=soc,
        arch=arch,
        recipe=recipe[0] if recipe else "upstream",
        phone=phone or None,
        lengths=Lengths(128, 32),
        verdict="skip" if skip else "run",
        gate="weight_sharing" if skip else "",
        reason="SM8450 is V69; weight sharing between prefill and decode needs V73" if skip else "",
        remedy="use kv mode (--modes kv), which has one graph and shares nothing" if skip else "",
    )


def sample(cell: str, session: int = 0, **changes: object) -> SampleRecord:
    values: dict[str, object] = {
        "cell": cell,
        "phone": "s24",
        "serial": "127.0.0.1:5601",
        "soc": "SM8650",
        "target": Target.SIM,
        "session": session,
        "prompt": "In the beginning",
        "prompt_tokens": 5,
        "generated_tokens": 63,
        "text": " was the word",
        "load_ms": 1234.5,
        "ttft_ms": 410.0,
        "prefill_tok_s": 12.2,
        "decode_tok_s": 3.71,
        "peak_rss_mb": 812.0,
        "settings": {"temperature": 0, "seed": 7},
        "raw": {"prompt_tokens": 5, "generated_tokens": 63, "model_load_start_ms": 1},
    }
    return SampleRecord(**(values | changes))  # type: ignore[arg-type]


def perplexity(cell: str, ground: Ground, graph: Graph, nll_sum: float) -> PerplexityRecord:
    return PerplexityRecord(cell, ground, graph, 2032, 1000, nll_sum, 127, 16, 12.5)


def artifact(cell: str, *, reused: bool = False) -> ArtifactRecord:
    stages = {"checkpoint": 0.4, "calibrate": 31.0, "lower": 64.25}
    return ArtifactRecord(cell, "3f9c0a", f"cache/{cell}.pte", 7_654_321, reused, 95.65, stages, 2311.0)


def records(target: Target = Target.SIM) -> list[Record]:
    """Five cells: passed, failed, error, skipped, and one without an outcome; the plan first."""
    return [
        run_info(target),
        planned(GOOD, 75),
        planned(BROKEN, 73),
        planned(LOST, 75),
        planned(OLD, 69, skip=True),
        planned(UNRUN, 79),
        artifact(GOOD),
        DeployRecord(GOOD, "s24", ("model.pte",), ("libQnnHtp.so", "qnn_llama_runner"), 7_654_321, 1.5),
        sample(GOOD, 0, text=EVIL),
        sample(GOOD, 1, decode_tok_s=3.9),
        perplexity(GOOD, "FP", "full", 5100.0),
        perplexity(GOOD, "QDQ", "full", 5120.0),
        perplexity(GOOD, "PHONE", "kv", 5121.0),
        perplexity(GOOD, "PHONE", "prefill", 5123.0),
        *(
            TtftRecord(GOOD, "s24", "127.0.0.1:5601", Target.SIM, "prefill", 32, length, -(-length // 32), ms)
            for length, ms in ((1, 90.0), (32, 91.0), (33, 180.0), (64, 181.5))
        ),
        TaskRecord(GOOD, "PHONE", "prefill", "cloze", {"acc": 0.5, "acc_norm": 0.75}, 8, 8, 0, 1234, 32, 4.5, "c.json"),
        CheckRecord(GOOD, "phone_vs_qdq_ppl", True, 0.003, 0.02, "phone 168.2 is 0.3 % above QDQ 167.3, bound 2 %"),
        OutcomeRecord(GOOD, Status.PASSED, seconds=130.0, phone="s24"),
        artifact(BROKEN, reused=True),
        sample(BROKEN, 0, phone="s23", soc="SM8550", serial="127.0.0.1:5602", decode_tok_s=2.5),
        perplexity(BROKEN, "PHONE", "kv", math.inf),
        CheckRecord(BROKEN, "phone_vs_qdq_ppl", False, math.inf, 0.02, "phone inf is above QDQ 167.3, bound 2 %"),
        OutcomeRecord(
            BROKEN,
            Status.FAILED,
            FailureClass.PRODUCT,
            "perplexity on the phone [kv] is out of bounds | inf",
            "compare the QDQ and phone logits, layer by layer",
            "line 1\n<b>not bold</b>\nfinal | line",
            "evidence/broken.log",
            44.0,
            phone="s23",
        ),
        OutcomeRecord(
            LOST, Status.ERROR, FailureClass.INFRA, "adb push timed out after 60 s", "check the cable", attempts=3
        ),
    ]


def write_run(reports: Path, target: Target = Target.SIM) -> Path:
    folder = reports / run_info().id
    writer = RecordWriter(folder)
    for record in records(target):
        writer.append(record)
    return folder
