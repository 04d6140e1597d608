"""The plan of every model on the default rack and phones with older HTPs: each cell run, or skipped with what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from events import HANG_S
from snapshot import assert_snapshot

from harness.conduct.plan import Planned, left_out, plan, read_choice
from harness.gates import GATES
from harness.models import load_models
from harness.paths import MODELS, REPOSITORY
from harness.target import Target

# The versions that gates are judged by are this file's, not those of the machine that runs it.
QNN = (2, 48)
OLDER = [
    {"name": "s22", "virtual": "galaxy_s22"},
    {"name": "s21", "virtual": "galaxy_s21"},
    {"name": "s24e", "virtual": "galaxy_s24_exynos"},
    {"name": "lab-s22", "serial": "R5CT1", "soc": "SM8450"},
    {"name": "lab-s21", "serial": "R5CT2", "soc": "SM8350"},
    {"name": "lab-new", "serial": "R5CT3"},
]


@pytest.fixture
def rack(tmp_path: Path) -> Path:
    content = yaml.safe_load((REPOSITORY / "devices.yaml").read_text(encoding="utf-8"))
    content["phones"] += OLDER
    path = tmp_path / "devices.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def line(planned: Planned) -> str:
    verdicts = [] if planned.verdict.run else [planned.verdict, *planned.more]
    why = "; ".join(f"{verdict.gate}: {verdict.reason}" for verdict in verdicts)
    return f"{planned.cell.id} [{planned.target}] " + (f"skip | {why}" if why else "run")


def test_every_model_on_every_phone(rack: Path) -> None:
    choice = read_choice(rack, "all", None, None)
    planned = plan(choice, choice.inventory.phones, None, QNN)
    stops = [(p.cell.model.name, v) for p in planned if not p.verdict.run for v in (p.verdict, *p.more)]
    phones = left_out(choice.inventory.phones)
    remedies: dict[str, list[str]] = {}
    for model, verdict in stops:
        remedies.setdefault(f"{verdict.gate}: {verdict.remedy}", []).append(model)
    text = [line(p) for p in planned]
    text += [f"no cells for {phone.name} | {v.gate}: {v.reason} | {v.remedy}" for phone, v in phones]
    text += ["", "what to do:"]
    text += [f"{remedy} ({', '.join(dict.fromkeys(models))})" for remedy, models in remedies.items()]
    running = sum(p.verdict.run for p in planned)
    text += ["", f"{running} cells run, {len(planned) - running} are skipped"]
    assert_snapshot("plan_all.txt", "\n".join(text) + "\n")

    # What must hold whatever the models are.
    models = load_models(MODELS)
    usable = [phone for phone in choice.inventory.phones if phone.soc]
    assert len(planned) == sum(len(model.modes) for model in models.values()) * len(usable)
    assert {phone.name for phone, _ in phones} == {"s24e", "lab-new"}
    for _, verdict in stops:
        assert all((verdict.gate, verdict.reason, verdict.remedy, verdict.source))
    for p in planned:
        older = p.cell.soc.arch < 73
        assert p.target is (Target.ANDROID if p.phones[0].startswith("lab-") else Target.SIM)
        assert p.verdict.run or older, f"{p.cell.id} does not run on an HTP of today: {p.verdict.reason}"
    shared = {p.phones[0] for p in planned if "weight_sharing" in {p.verdict.gate, *(v.gate for v in p.more)}}
    assert shared == {"lab-s22", "lab-s21"}


def test_old_libraries_close_more_gates(rack: Path) -> None:
    choice = read_choice(rack, "all", "kv", "SM8750")
    closed = {
        version: {p.verdict.gate for p in plan(choice, choice.inventory.phones, None, version) if not p.verdict.run}
        for version in ((2, 34), (2, 37), QNN)
    }
    assert closed == {(2, 34): {"masked_softmax", "hadamard"}, (2, 37): {"hadamard"}, QNN: set()}


def test_an_artifact_for_phones_is_planned_for_what_it_is(rack: Path) -> None:
    choice = read_choice(rack, "tiny_llama", "hybrid", "SM8450")

    def gates(target: Target | None, *, runs: bool = True) -> dict[str, str]:
        found = plan(choice, choice.inventory.phones, target, QNN, runs=runs)
        return {p.phones[0]: p.verdict.gate for p in found}

    assert gates(None) == {"s22": "", "lab-s22": "weight_sharing"}
    assert gates(Target.SIM) == {"s22": "", "lab-s22": ""}
    assert gates(Target.ANDROID) == {"s22": "weight_sharing", "lab-s22": "weight_sharing"}
    newer = read_choice(rack, "tiny_llama", "hybrid", "SM8750")
    (virtual,) = plan(newer, newer.inventory.phones, Target.ANDROID, QNN)
    assert virtual.verdict.gate == "simulator"
    (compiled,) = plan(newer, newer.inventory.phones, Target.ANDROID, QNN, runs=False)
    assert compiled.verdict.run


WITHOUT_TORCH = """
import sys
for name in ("torch", "executorch", "transformers"):
    sys.modules[name] = None  # importing it fails
from harness.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("verb", [["plan", "--models", "all"], ["gates"]])
def test_plan_and_gates_need_no_torch(rack: Path, verb: list[str]) -> None:
    arguments = [*verb, "--json", *(["--rack", str(rack)] if verb[0] == "plan" else [])]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        env=dict(os.environ),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    if verb[0] == "gates":
        assert [row["gate"] for row in said["gates"]] == [gate.name for gate in GATES]
        return
    assert {row["run"] for row in said} == {True, False}
    assert all(row["run"] or (row["reason"] and row["remedy"] and row["source"]) for row in said)
    (exynos,) = [row for row in said if row["phones"] == ["s24e"]]
    assert (exynos["cell"], exynos["run"], exynos["gate"]) == (None, False, "phone")
    assert "Exynos" in exynos["reason"]
