"""A run with every kind of record and every kind of ending, for the tests of `harness.results`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
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
from harness.results.records import Graph, Ground, encode
from harness.results.store import RECORDS
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
            TtftRecord(GOOD, "s24", "127.0.0.1:5601", target, "prefill", 32, length, -(-length // 32), ms)
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


PHONES = {"s23": ("SM8550", 73), "oneplus12": ("SM8650", 75), "s24": ("SM8650", 75), "s25": ("SM8750", 79)}
MODES = ("hybrid", "kv", "lookahead")


def wide_cell(mode: str, phone: str) -> str:
    soc, _ = PHONES[phone]
    pinned = [name for name, (other, _) in PHONES.items() if other == soc]
    return f"tiny_llama-{mode}-{soc}" + (f"@{phone}" if len(pinned) > 1 else "")


def ttfts(cell: str, phone: str, ar_len: int, step_ms: float, target: Target, **changes: object) -> list[TtftRecord]:
    """Three repeats of each length that is one under, at and one over the end of a block of 32; context 128."""
    lengths = (1, 16, 31, 32, 33, 48, 63, 64, 65, 80, 95)
    graph: Graph = "kv" if ar_len == 1 else "prefill"
    return [
        TtftRecord(
            cell,
            phone,
            f"127.0.0.1:{phone}",
            target,
            graph,
            ar_len,
            length,
            blocks := -(-length // ar_len),
            round(step_ms * blocks * (1 + 0.02 * repeat) + 4 + 0.01 * length, 3),
            repeat,
            **changes,  # type: ignore[arg-type]
        )
        for length in lengths
        for repeat in range(3)
    ]


def wide_records(target: Target = Target.SIM) -> list[Record]:
    """Three modes on four phones, all passed, with all that is measured: three grounds, tasks, lookahead, TTFT."""
    cells = [(mode, phone, wide_cell(mode, phone)) for mode in MODES for phone in PHONES]
    found: list[Record] = [run_info(target)]
    for mode, phone, cell in cells:
        found.append(replace(planned(cell, PHONES[phone][1]), mode=mode))
    for index, (mode, phone, cell) in enumerate(cells):
        soc = PHONES[phone][0]
        graphs: tuple[Graph, ...] = ("kv",) if mode == "kv" else ("kv", "prefill")
        for session in range(2):
            changes: dict[str, object] = {"phone": phone, "serial": f"127.0.0.1:{phone}", "soc": soc, "target": target}
            changes |= {"decode_steps": 24 + session, "accepted_tokens": 39 - session} if mode == "lookahead" else {}
            changes |= {"decode_steps": 63} if mode == "kv" else {}
            found.append(sample(cell, session, ttft_ms=88.0 + 11 * index + session, **changes))
        found += ttfts(cell, phone, 1 if mode == "kv" else 32, 50.0 + 9 * (index % 4), target)
        found.append(perplexity(cell, "FP", "full", 3910.0))
        found.append(perplexity(cell, "QDQ", "full", 3953.1))
        found += [perplexity(cell, "PHONE", graph, 3951.5 + 0.7 * len(graph)) for graph in graphs]
        for ground, graph in [("FP", "full"), ("QDQ", "full"), *(("PHONE", graph) for graph in graphs)]:
            path = f"tasks/{cell}/{ground}-{graph}.json"
            ppl = {"word_perplexity": 49.9 + len(path) % 5, "byte_perplexity": 2.1, "bits_per_byte": 1.07}
            acc = {"acc": 0.5 + len(ground) / 100, "acc_stderr": 0.079, "acc_norm": 0.525, "acc_norm_stderr": 0.0797}
            found.append(TaskRecord(cell, ground, graph, "wikitext_local", ppl, 4, None, None, 1234, 90, 9.5, path))
            found.append(TaskRecord(cell, ground, graph, "hellaswag_local", acc, 40, 40, 0, 1234, 160, 20.5, path))
        found.append(CheckRecord(cell, "phone_vs_qdq_ppl", True, 0.0004, 0.02, "+0.04% (bound ±2%)"))
        found.append(OutcomeRecord(cell, Status.PASSED, seconds=30.0, phone=phone))
    return found


def write_run(reports: Path, target: Target = Target.SIM, made: Sequence[Record] = ()) -> Path:
    """A run's folder with the records, or else with those of `records`."""
    folder = reports / run_info().id
    if made:  # at once: hundreds of records, each on the disk before the next, take seconds
        folder.mkdir(parents=True)
        (folder / RECORDS).write_bytes(b"".join(encode(record, folder.name) for record in made))
        return folder
    writer = RecordWriter(folder)
    for record in records(target):
        writer.append(record)
    return folder
