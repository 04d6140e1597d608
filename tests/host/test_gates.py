from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sample_models import TINY, make_model

from harness.gates import GATES, OLDER_HTP, Gate, Site, Verdict, Version, dotted, judge, judge_all, judge_phone
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
    lpbq = judge(cell(tmp_path, Mode.KV, "SM8350", needs={"lpbq": True}, params=params), Target.SIM)
    assert (lpbq.gate, lpbq.remedy) == ("lpbq", verdict.remedy)


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


README = 'ExecuTorch, examples/qualcomm/oss_scripts/llama/README.md, "HTP Minimum Version Requirements"'
RULES = "ExecuTorch, backends/qualcomm/quantizer/annotators/htp_rules.py, "
NEWER = "install the pinned onnxruntime-qnn, or point QNN_SDK_ROOT at a QAIRT SDK that is new enough; or a recipe with "
RECIPES = (
    "give the model's file a recipe for older HTPs, tried in the order of ExecuTorch's advice: recipe: "
    "16a4w_kv8, then 16a4w_kv8_spin, then 16a4w_kv8_mixed"
)


def test_a_cell_that_every_gate_stops_hears_them_all_in_order(tmp_path: Path) -> None:
    asks = cell(
        tmp_path,
        Mode.LOOKAHEAD,
        "SM8350",
        modes=["kv", "hybrid"],
        needs={"lpbq": True, "kv_bits": 16, "masked_softmax": True, "r3": True},
        lengths={"prefill_ar_len": 16},
    )
    params = asks.model.params.model_copy(update={"final_logit_softcapping": 30.0})
    asks = replace(asks, model=replace(asks.model, params=params))
    found = judge_all(asks, Target.ANDROID, (2, 34), simulated=True)
    assert not any(verdict.run for verdict in found)
    assert found[0] == judge(asks, Target.ANDROID, (2, 34), simulated=True)
    assert [(verdict.gate, verdict.reason) for verdict in found] == [
        ("mode", "tiny lists the modes kv, hybrid, not lookahead"),
        ("lpbq", "SM8350 is V68; block-wise quantised weights (LPBQ) needs V69"),
        ("kv16", "SM8350 is V68; 16-bit KV cache (matmul of 16-bit by 16-bit) needs V73"),
        ("weight_sharing", "SM8350 is V68; weight sharing between prefill and decode needs V73"),
        ("masked_softmax", "the QNN libraries are 2.34; masked softmax needs 2.35"),
        ("hadamard", "the QNN libraries are 2.34; SpinQuant's R3 as a Hadamard op needs 2.47"),
        (
            "softcap16",
            "capped logits (tanh times a number) of 16 tokens a step: "
            "the compiler takes it, and half of the rows come out wrong",
        ),
        (
            "simulator",
            "the phone is virtual; its simulator refuses a .pte made for phones (weight sharing, shared buffers)",
        ),
    ]
    assert {verdict.gate: verdict.remedy for verdict in found} == {
        "mode": "choose from kv, hybrid, or add lookahead to modes in the model's file if it is meant to work",
        "lpbq": RECIPES,
        "kv16": RECIPES,
        "weight_sharing": "use kv mode (--modes kv), which has one graph and shares nothing",
        "masked_softmax": f"{NEWER}masked_softmax: false",
        "hadamard": f"{NEWER}spinquant: {{r3: false}}",
        "softcap16": "another AR length: --prefill-ar-len other than 16, "
        "or in lookahead window and gcap of 8 (32 tokens)",
        "simulator": "build for the simulator (--target sim), or use a phone",
    }
    sources = {verdict.gate: verdict.source for verdict in found}
    assert sources["mode"] == "tiny.yaml, modes"
    assert sources["lpbq"] == f"{README}; {RULES}validate_lpbq_support"
    assert sources["kv16"] == f"{README}; {RULES}validate_16a16w_support"
    assert sources["weight_sharing"] == README
    assert sources["masked_softmax"].startswith("ExecuTorch, examples/qualcomm/oss_scripts/llama/wrappers/base_comp")
    assert sources["hadamard"].startswith("ExecuTorch, backends/qualcomm/_passes/recompose_hadamard.py")
    assert sources["softcap16"].startswith("gates --probe: the simulator's numbers against torch's")
    assert "Fail to create context from binary with err 1000" in sources["simulator"]


def test_the_first_gate_says_what_no_recipe_helps_against(tmp_path: Path) -> None:
    params = TINY["params"] | {"norm_type": "layernorm"}
    verdict = judge(cell(tmp_path, Mode.KV, "SM8450", params=params), Target.SIM)
    assert verdict.reason == ("SM8450 is V69; LayerNorm with 16-bit activations (its weights become 16-bit) needs V73")
    assert verdict.remedy.startswith("no recipe has narrower activations: take a phone of V73 or newer")
    assert verdict.source.startswith("the compiler (gates --probe): incorrect Value 69, expected >= 73")


def test_a_virtual_phone_is_called_by_its_name(tmp_path: Path) -> None:
    asks = replace(cell(tmp_path, Mode.KV, "SM8650"), phone="s24")
    assert judge(asks, Target.ANDROID, simulated=True).reason.startswith("s24 is virtual; its simulator refuses")


def test_what_is_only_to_be_compiled_is_judged_without_a_simulator_and_without_versions(tmp_path: Path) -> None:
    assert Site(Target.ANDROID) == Site(Target.ANDROID, qnn=None, simulated=False)
    asks = cell(tmp_path, Mode.KV, "SM8650", needs={"masked_softmax": True, "r3": True})
    assert judge_all(asks, Target.ANDROID) == ()
    assert judge(asks, Target.ANDROID) == Verdict(run=True, gate="", reason="", remedy="", source="")


def test_no_cell_is_stopped_by_what_executorch_does_by_itself(tmp_path: Path) -> None:
    (gate,) = (gate for gate in GATES if gate.name == "embedding")
    assert gate.needs == "QNN 2.48"
    assert "cells run" in gate.remedy
    for mode in Mode:
        assert judge_all(cell(tmp_path, mode, "SM8650"), Target.SIM, (2, 30)) == ()


def made(**changes: Any) -> Gate:
    values = {"name": "x", "feature": "it", "uses": lambda _cell, _target: True, "remedy": "none", "source": "here"}
    return Gate(**(values | changes))


def test_what_a_gate_takes() -> None:
    assert {gate.name: gate.needs for gate in GATES} == {
        "layernorm": "V73",
        "lpbq": "V69",
        "kv16": "V73",
        "weight_sharing": "V73",
        "masked_softmax": "QNN 2.35",
        "hadamard": "QNN 2.47",
        "embedding": "QNN 2.48",
        "softcap16": "a mended compiler",
        "simulator": "a phone",
    }
    assert made().needs == ""
    assert (
        made(least=73, qnn=(2, 35), simulator=False, fault="wrong").needs == "V73, QNN 2.35, a phone, a mended compiler"
    )


def test_a_gate_names_the_first_thing_that_is_missing(tmp_path: Path) -> None:
    old, new = cell(tmp_path, Mode.KV, "SM8450"), cell(tmp_path, Mode.KV, "SM8550")  # V69, V73
    gate = made(least=73, qnn=(2, 35), simulator=False, fault="wrong numbers")
    virtual = Site(Target.SIM, (2, 34), simulated=True)
    assert gate.lack(old, virtual) == "SM8450 is V69; it needs V73"
    assert gate.lack(new, virtual) == "the QNN libraries are 2.34; it needs 2.35"
    assert gate.lack(new, replace(virtual, qnn=(2, 35))) == "the phone is virtual; its simulator refuses it"
    assert gate.lack(new, replace(virtual, qnn=None)) == "the phone is virtual; its simulator refuses it"
    assert gate.lack(new, Site(Target.SIM, (2, 36))) == "it: wrong numbers"
    assert replace(gate, fault="").lack(new, Site(Target.SIM, (2, 36))) == ""
    assert made().lack(old, virtual) == ""
    assert made(qnn=(2, 35)).lack(new, replace(virtual, qnn=(1, 99))) == "the QNN libraries are 1.99; it needs 2.35"


def test_versions_in_words() -> None:
    assert dotted((2, 48)) == "2.48"


def test_a_phone_without_a_chipset_says_what_it_is_judged_by() -> None:
    exynos = phone("galaxy_s24_exynos", None)
    verdict = judge_phone(exynos)
    assert verdict.reason == "ro.soc.model is s5e9945, a Samsung Exynos: it has no Hexagon HTP"
    assert verdict.remedy.startswith("take the phone off the rack, or one that has a Snapdragon in its place")
    assert "recognise" in verdict.source
    assert "found by ro.soc.model" in verdict.source
    # A probe's word goes before what the kind would say.
    assert judge_phone(exynos, "it said so") == replace(verdict, reason="it said so")
    assert judge_phone(phone(None, None), "it said so") == replace(verdict, reason="it said so")
    assert judge_phone(phone(None, "SM8450"), "it said so") == Verdict(run=True)
    # A kind that tells no chipset is known by its model's name.
    kind = replace(PHONE_KINDS["galaxy_s24_exynos"], soc="")
    assert "this model is sold with an Exynos" in judge_phone(replace(exynos, virtual=kind)).reason
    unasked = judge_phone(phone(None, None))
    assert (unasked.run, unasked.gate, unasked.source) == (False, "phone", verdict.source)
    assert unasked.reason == "the file does not say its chipset, and no phone was asked"
    assert unasked.remedy == "see `htpfarm devices`, then write soc: under p"


def test_gates_are_told_apart_by_name_and_say_everything() -> None:
    assert len({gate.name for gate in GATES} | {"mode", "phone"}) == len(GATES) + 2
    for gate in GATES:
        assert all((gate.feature, gate.needs, gate.remedy, gate.source)), gate.name
