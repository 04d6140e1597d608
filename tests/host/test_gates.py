from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sample_models import TINY, make_model

from harness.gates import GATES, OLDER_HTP, Verdict, Version, dotted, judge, judge_all, judge_phone
from harness.inventory import Phone
from harness.matrix import Cell, Mode, Target, cells
from harness.soc import PHONE_KINDS, SOCS

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


def test_the_reason_has_the_numbers_and_the_remedy_names_recipes(tmp_path: Path) -> None:
    kv16 = judge(cell(tmp_path, Mode.KV, "SM8450", needs={"kv_bits": 16}), Target.ANDROID)
    assert kv16.gate == "kv16"
    assert kv16.reason.startswith("SM8450 is V69; 16-bit KV")
    assert kv16.reason.endswith("needs V73")
    assert "16a4w_kv8, then 16a4w_kv8_spin, then 16a4w_kv8_mixed" in kv16.remedy
    assert "README.md" in kv16.source

    lpbq = judge(cell(tmp_path, Mode.KV, "SM8350", needs={"lpbq": True}), Target.SIM)
    assert (lpbq.gate, "SM8350 is V68" in lpbq.reason, "V69" in lpbq.reason) == ("lpbq", True, True)

    sharing = judge(cell(tmp_path, Mode.HYBRID, "SM8450"), Target.ANDROID)
    assert (sharing.gate, "kv mode" in sharing.remedy) == ("weight_sharing", True)


@pytest.mark.parametrize("recipe", OLDER_HTP)
@pytest.mark.parametrize(
    ("soc", "gates"), [("SM8350", ["lpbq", "kv16", "weight_sharing"]), ("SM8450", ["kv16", "weight_sharing"])]
)
def test_following_a_remedy_opens_the_gate(tmp_path: Path, soc: str, gates: list[str], recipe: str) -> None:
    needs = {"lpbq": True, "kv_bits": 16}
    old = judge_all(cell(tmp_path, Mode.HYBRID, soc, needs=needs), Target.ANDROID)
    assert [verdict.gate for verdict in old] == gates
    assert recipe in old[0].remedy
    new = cell(tmp_path, Mode.KV, soc, needs=needs, recipe=recipe)
    assert judge(new, Target.ANDROID) == Verdict(run=True)
    assert judge_all(new, Target.ANDROID) == ()


def test_a_recipe_that_the_architecture_refuses_is_not_advised(tmp_path: Path) -> None:
    params = TINY["params"] | {"post_attention_norm": True}
    verdict = judge(cell(tmp_path, Mode.KV, "SM8450", needs={"kv_bits": 16}, params=params), Target.SIM)
    assert "16a4w_kv8, then 16a4w_kv8_mixed" in verdict.remedy
    assert "spin" not in verdict.remedy


def test_where_no_recipe_helps_that_is_the_first_thing_said(tmp_path: Path) -> None:
    params = TINY["params"] | {"norm_type": "layernorm"}
    found = judge_all(cell(tmp_path, Mode.KV, "SM8450", needs={"kv_bits": 16}, params=params), Target.SIM)
    assert [verdict.gate for verdict in found] == ["layernorm", "kv16"]
    assert "RMSNorm" in found[0].remedy
    assert judge(cell(tmp_path, Mode.KV, "SM8550", params=params), Target.SIM).run


@pytest.mark.parametrize(
    ("needs", "recipe", "gate", "floor", "remedy"),
    [
        ({"masked_softmax": True}, None, "masked_softmax", (2, 35), "masked_softmax: false"),
        ({}, {"name": "x", "masked_softmax": True}, "masked_softmax", (2, 35), "masked_softmax: false"),
        ({"r3": True}, None, "hadamard", (2, 47), "r3: false"),
        ({}, {"name": "x", "spinquant": {"r3": True}}, "hadamard", (2, 47), "r3: false"),
    ],
)
def test_a_floor_of_the_qnn_libraries(
    tmp_path: Path, needs: dict[str, Any], recipe: dict[str, Any] | None, gate: str, floor: Version, remedy: str
) -> None:
    asks = cell(tmp_path, Mode.KV, "SM8650", needs=needs, recipe=recipe)
    older = (floor[0], floor[1] - 1)
    verdict = judge(asks, Target.SIM, older)
    assert (verdict.run, verdict.gate) == (False, gate)
    assert f"are {dotted(older)}" in verdict.reason
    assert f"needs {dotted(floor)}" in verdict.reason
    assert remedy in verdict.remedy
    for version in (floor, (floor[0] + 1, 0), None):  # None: not known here, so not judged
        assert judge(asks, Target.SIM, version).run
    off = {"name": "off", "masked_softmax": False, "spinquant": {"r3": False}}
    assert judge(cell(tmp_path, Mode.KV, "SM8650", needs=needs, recipe=off), Target.SIM, older).run


def test_the_simulator_takes_nothing_that_is_made_for_phones(tmp_path: Path) -> None:
    asks = cell(tmp_path, Mode.KV, "SM8650")
    verdict = judge(asks, Target.ANDROID, simulated=True)
    assert (verdict.run, verdict.gate) == (False, "simulator")
    assert "--target sim" in verdict.remedy
    assert judge(asks, Target.SIM, simulated=True).run
    assert judge(asks, Target.ANDROID).run


def phone(kind: str | None, soc: str | None) -> Phone:
    virtual = PHONE_KINDS[kind] if kind else None
    return Phone("p", None if virtual else "R5CT1", virtual, SOCS.get(virtual.soc if virtual else soc or ""))


def test_a_galaxy_with_an_exynos_gets_no_cells_and_is_told_why() -> None:
    verdict = judge_phone(phone("galaxy_s24_exynos", None))
    assert (verdict.run, verdict.gate) == (False, "phone")
    assert "Exynos" in verdict.reason
    assert "Snapdragon" in verdict.remedy
    assert judge_phone(phone("galaxy_s24", None)) == Verdict(run=True)
    # A real one: by what it said, or unknown until it is asked.
    said = judge_phone(phone(None, None), "ro.soc.model is s5e9945, a Samsung Exynos: it has no Hexagon HTP")
    assert "s5e9945" in said.reason
    assert "htpfarm devices" in judge_phone(phone(None, None)).remedy
    assert judge_phone(phone(None, "SM8450")).run


@pytest.mark.parametrize(
    ("capped", "mode", "lengths", "runs"),
    [
        (True, Mode.KV, {"prefill_ar_len": 16}, True),
        (True, Mode.HYBRID, {"prefill_ar_len": 16}, False),
        (True, Mode.HYBRID, {"prefill_ar_len": 32}, True),
        (True, Mode.LOOKAHEAD, {"prefill_ar_len": 32, "ngram": 3, "window": 4, "gcap": 4}, False),
        (True, Mode.LOOKAHEAD, {"prefill_ar_len": 32, "ngram": 3, "window": 8, "gcap": 8}, True),
        (True, Mode.LOOKAHEAD, {"prefill_ar_len": 16, "ngram": 3, "window": 8, "gcap": 8}, False),
        (False, Mode.LOOKAHEAD, {"prefill_ar_len": 16, "ngram": 3, "window": 4, "gcap": 4}, True),
    ],
)
def test_capped_logits_of_16_rows_are_kept_from_the_compiler(
    tmp_path: Path, capped: bool, mode: Mode, lengths: dict[str, int], runs: bool
) -> None:
    one = cell(tmp_path, mode, "SM8650", lengths=lengths)
    if capped:
        params = one.model.params.model_copy(update={"final_logit_softcapping": 30.0})
        one = replace(one, model=replace(one.model, params=params))
    verdict = judge(one, Target.SIM)
    assert verdict.run is runs
    assert runs or (verdict.gate == "softcap16" and "wrong" in verdict.reason and "--prefill-ar-len" in verdict.remedy)


@pytest.mark.parametrize("target", list(Target))
def test_a_mode_the_model_does_not_list(tmp_path: Path, target: Target) -> None:
    verdict = judge(cell(tmp_path, Mode.LOOKAHEAD, "SM8650", modes=["kv", "hybrid"]), target)
    assert (verdict.run, verdict.gate) == (False, "mode")
    assert verdict.reason == "tiny lists the modes kv, hybrid, not lookahead"
    assert "kv, hybrid" in verdict.remedy
    assert "tiny.yaml" in verdict.source


def test_gates_are_told_apart_by_name_and_say_everything() -> None:
    assert len({gate.name for gate in GATES} | {"mode", "phone"}) == len(GATES) + 2
    for gate in GATES:
        assert all((gate.feature, gate.needs, gate.remedy, gate.source)), gate.name
