from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sample_models import make_model

from harness.gates import GATES, Verdict, judge, judge_all
from harness.matrix import Cell, Mode, Target, cells
from harness.soc import SOCS

ALL_MODES = ["kv", "hybrid", "lookahead"]
# The first generation that runs each mode, for a phone: by what the model needs.
FIRST = [
    ({}, Target.ANDROID, {"kv": 68, "hybrid": 73, "lookahead": 73}),
    ({}, Target.SIM, {"kv": 68, "hybrid": 68, "lookahead": 68}),
    ({"needs": {"lpbq": True}}, Target.ANDROID, {"kv": 69, "hybrid": 73, "lookahead": 73}),
    ({"needs": {"lpbq": True}}, Target.SIM, {"kv": 69, "hybrid": 69, "lookahead": 69}),
    ({"needs": {"kv_bits": 16}}, Target.ANDROID, {"kv": 73, "hybrid": 73, "lookahead": 73}),
    ({"needs": {"kv_bits": 16}}, Target.SIM, {"kv": 73, "hybrid": 73, "lookahead": 73}),
    (
        {"needs": {"kv_bits": 16, "lpbq": True}, "recipe": {"name": "old", "kv_bits": 8, "weights": "16a4w"}},
        Target.ANDROID,
        {"kv": 68, "hybrid": 73, "lookahead": 73},
    ),
]


@pytest.mark.parametrize(("changes", "target", "first"), FIRST)
def test_what_each_generation_runs(
    tmp_path: Path, changes: dict[str, Any], target: Target, first: dict[str, int]
) -> None:
    model = make_model(tmp_path, modes=ALL_MODES, **changes)
    found = cells([model], None, SOCS.values())
    assert len(found) == 3 * len(SOCS)
    for cell in found:
        verdict = judge(cell, target)
        assert verdict.run == (cell.soc.arch >= first[cell.mode]), (cell.id, verdict)
        assert all(bool(part) != verdict.run for part in (verdict.gate, verdict.reason, verdict.remedy, verdict.source))


def cell(tmp_path: Path, mode: Mode, soc: str, **changes: Any) -> Cell:
    model = make_model(tmp_path, **({"modes": ALL_MODES} | changes))
    return Cell(model, mode, SOCS[soc], model.lengths)


def test_the_reason_has_the_numbers_and_the_remedy_helps(tmp_path: Path) -> None:
    kv16 = judge(cell(tmp_path, Mode.KV, "SM8450", needs={"kv_bits": 16}), Target.ANDROID)
    assert kv16.gate == "kv16"
    assert kv16.reason.startswith("SM8450 is V69; 16-bit KV")
    assert kv16.reason.endswith("needs V73")
    assert "kv_bits: 8" in kv16.remedy
    assert "README.md" in kv16.source

    lpbq = judge(cell(tmp_path, Mode.KV, "SM8350", needs={"lpbq": True}), Target.SIM)
    assert (lpbq.gate, "SM8350 is V68" in lpbq.reason, "V69" in lpbq.reason) == ("lpbq", True, True)

    sharing = judge(cell(tmp_path, Mode.HYBRID, "SM8450"), Target.ANDROID)
    assert (sharing.gate, "kv mode" in sharing.remedy) == ("weight_sharing", True)


def test_following_a_remedy_opens_the_gate(tmp_path: Path) -> None:
    needs = {"lpbq": True, "kv_bits": 16}
    old = cell(tmp_path, Mode.HYBRID, "SM8350", needs=needs)
    assert [verdict.gate for verdict in judge_all(old, Target.ANDROID)] == ["lpbq", "kv16", "weight_sharing"]
    recipe = {"name": "old", "weights": "16a4w", "kv_bits": 8}
    new = cell(tmp_path, Mode.KV, "SM8350", needs=needs, recipe=recipe)
    assert judge(new, Target.ANDROID) == Verdict(run=True)
    assert judge_all(new, Target.ANDROID) == ()


@pytest.mark.parametrize("target", list(Target))
def test_a_mode_the_model_does_not_list(tmp_path: Path, target: Target) -> None:
    verdict = judge(cell(tmp_path, Mode.LOOKAHEAD, "SM8650", modes=["kv", "hybrid"]), target)
    assert (verdict.run, verdict.gate) == (False, "mode")
    assert verdict.reason == "tiny lists the modes kv, hybrid, not lookahead"
    assert "kv, hybrid" in verdict.remedy
    assert "tiny.yaml" in verdict.source


def test_gates_are_told_apart_by_name() -> None:
    assert len({gate.name for gate in GATES} | {"mode"}) == len(GATES) + 1
