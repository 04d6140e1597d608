"""A run of 500 cells, as a large lab's night: 10 models × 5 modes and recipes × 10 phones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sample_run import EVIL, artifact, perplexity, planned, run_info, sample, ttfts, write_run

from harness.errors import FailureClass
from harness.results import CheckRecord, DeployRecord, OutcomeRecord, PlanEntry, Record, Status
from harness.target import Target

MODELS = [f"model_{number}_{size}b" for number, size in enumerate((1, 2, 3, 1, 2, 3, 1, 2, 3, 4))]
WAYS = [("kv", "upstream"), ("hybrid", "upstream"), ("lookahead", "upstream"), ("kv", "kv8"), ("hybrid", "kv8")]
ARCHS = {"SM8450": 69, "SM8475": 69, "SM8550": 73, "SM8650": 75, "SM8750": 79, "SM8850": 81}
RACK = ("SM8450", "SM8475", "SM8550", "SM8550", "SM8650", "SM8650", "SM8650", "SM8750", "SM8750", "SM8850")
PHONES = [(f"phone{number}", soc, ARCHS[soc]) for number, soc in enumerate(RACK)]
SCRIPT = "<script>alert(1)</script>"


def plan() -> list[tuple[PlanEntry, str]]:
    """The cells, and the phone of each."""
    found = []
    for model in MODELS:
        for mode, recipe in WAYS:
            for phone, soc, arch in PHONES:
                tail = "" if recipe == "upstream" else f"-{recipe}"
                skips = arch < 73 and mode != "kv"
                entry = planned(f"{model}-{mode}-{soc}{tail}@{phone}", arch, skip=skips)
                found.append((replace(entry, mode=mode, recipe=recipe), phone))
    return found


def big_records(target: Target = Target.SIM) -> list[Record]:
    """All of them: 340 pass, 20 fail, 30 errors, 80 skipped, 30 not run, or about that."""
    cells = plan()
    found: list[Record] = [run_info(target), *(entry for entry, _ in cells)]
    for index, (entry, phone) in enumerate(cells):
        if entry.verdict == "run" and index % 17 != 5:
            found += _cell(index, entry, phone, target)
    return found


def _cell(index: int, entry: PlanEntry, phone: str, target: Target) -> Iterator[Record]:
    cell = entry.cell
    if index % 23 == 4:
        log = "\n".join(f"line {line} of a log that goes on for long" for line in range(150))
        yield OutcomeRecord(cell, Status.ERROR, FailureClass.INFRA, "adb push timed out", "check the cable", log)
        return
    yield artifact(cell, reused=index % 3 == 0)
    yield DeployRecord(cell, phone, ("model.pte",), ("libQnnHtp.so", "qnn_llama_runner"), 7_654_321, 1.5)
    place: dict[str, object] = {"phone": phone, "serial": f"serial-{phone}", "soc": entry.soc, "target": target}
    for session in range(4):
        words = f"{SCRIPT if index % 10 == 0 else ''} the quick brown fox jumps over the lazy dog " * 6
        speed = 20.0 + index % 13 + 0.3 * session
        yield sample(cell, session, text=words, decode_tok_s=speed, ttft_ms=80.0 + index % 50, **place)
    yield from ttfts(cell, phone, 1 if entry.mode == "kv" else 32, 10.0 + index % 9, target)
    yield perplexity(cell, "FP", "full", 3910.0)
    yield perplexity(cell, "QDQ", "full", 3953.1)
    yield perplexity(cell, "PHONE", "kv", 3954.0)
    for name in ("text_as_qdq", "phone_vs_qdq_noise", "phone_vs_qdq_ppl", "prefill_vs_kv_ppl"):
        yield CheckRecord(cell, name, True, 0.0004, 0.02, f"{name} +0.04% (bound ±2%)")
    if index % 19 == 3:
        yield OutcomeRecord(
            cell, Status.FAILED, FailureClass.PRODUCT, f"text differs {SCRIPT}", "compare logits", EVIL, None, 44.0,
            phone=phone,
        )  # fmt: skip
    else:
        yield OutcomeRecord(cell, Status.PASSED, seconds=130.0, phone=phone)


def write_big_run(reports: Path, target: Target = Target.SIM) -> Path:
    """Its folder."""
    return write_run(reports, made=big_records(target))
