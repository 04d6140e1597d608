from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from events import HANG_S
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import ConfigError
from harness.soc import PHONE_KINDS, SOCS, PhoneKind, find_soc, recognise


def props(kind: PhoneKind, **changes: str) -> dict[str, str]:
    return {
        "ro.soc.model": changes.get("part", kind.soc),
        "ro.soc.manufacturer": kind.soc_manufacturer,
        "ro.product.model": changes.get("model", kind.model),
        "ro.board.platform": kind.platform,
    }


def test_chipsets_agree_with_the_installed_executorch() -> None:
    # Read as text: importing executorch pulls in torch.
    spec = importlib.util.find_spec("executorch")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("executorch is not installed")
    schema = Path(spec.submodule_search_locations[0]) / "backends/qualcomm/serialization/qc_schema.py"
    rows = re.findall(r"SocInfo\(\s*QcomChipset\.(\w+),\s*HtpInfo\(HtpArch\.V(\d+), (\d+)\)", schema.read_text())
    upstream = {name: (int(arch), int(vtcm)) for name, arch, vtcm in rows}
    assert len(upstream) > 15
    assert {soc.name: (soc.arch, soc.vtcm_mb) for soc in SOCS.values()} == upstream


@pytest.mark.parametrize("key", sorted(PHONE_KINDS))
def test_every_kind_is_recognised_for_what_it_is(key: str) -> None:
    kind = PHONE_KINDS[key]
    seen = recognise(props(kind))
    assert kind.key == key
    assert seen.soc == SOCS.get(kind.soc)
    assert seen.label == kind.label
    assert kind.soc in seen.reason


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("SM8650", "SM8650"),
        ("SM8650-AC", "SM8650"),
        ("SM8750P", "SM8750"),
        ("sm8550", "SM8550"),
        ("SM8550-AC", "SM8550"),
        ("SXR2230P", "SXR2230P"),
        (" SM8450 ", "SM8450"),
    ],
)
def test_part_numbers_with_suffixes(part: str, name: str) -> None:
    soc = recognise({"ro.soc.model": part}).soc
    assert soc == SOCS[name]


@pytest.mark.parametrize("part", ["SM86500", "SM7550", "CQ8750S", "xSM8650", "", "MT6989", "SM8"])
def test_other_part_numbers_are_refused_whatever_else_the_phone_says(part: str) -> None:
    seen = recognise({**props(PHONE_KINDS["galaxy_s25"]), "ro.soc.model": part})
    assert seen.soc is None
    assert seen.reason


@pytest.mark.parametrize("model", ["SM-S921B", "SM-S921N", "SM-S926B"])
def test_an_exynos_s24_is_refused_by_its_chipset(model: str) -> None:
    seen = recognise(props(PHONE_KINDS["galaxy_s24_exynos"], model=model))
    assert seen.soc is None
    assert "Exynos" in seen.label
    assert "s5e9945" in seen.reason
    assert "Exynos" in seen.reason


@pytest.mark.parametrize("suffix", ["U", "U1", "W", "0"])
def test_a_snapdragon_s24_is_taken(suffix: str) -> None:
    seen = recognise(props(PHONE_KINDS["galaxy_s24"], model=f"SM-S921{suffix}"))
    assert (seen.soc, seen.label) == (SOCS["SM8650"], "Galaxy S24")


def test_the_chipset_decides_not_the_model_name() -> None:
    kind = PHONE_KINDS["galaxy_s24"]
    assert recognise(props(kind, part="s5e9945")).soc is None  # a Snapdragon's model number on an Exynos
    assert recognise(props(kind, model="SM-S921B")).soc == SOCS["SM8650"]  # and the other way round
    assert recognise({"ro.soc.model": "SM8450", "ro.product.model": "SM-S711B"}).label == "Galaxy S23 FE"


def test_without_a_chipset_the_reason_names_the_platform() -> None:
    seen = recognise({"ro.product.model": "SM-S921B", "ro.board.platform": "erd9945"})
    assert seen.soc is None
    assert "erd9945" in seen.reason
    assert "Exynos" in seen.reason
    assert recognise({}).label == "unknown phone"


def test_an_unknown_model_is_called_by_its_number() -> None:
    assert recognise({"ro.soc.model": "SM8650", "ro.product.model": "XQ-EC72"}).label == "XQ-EC72"


@settings(deadline=None)
@given(st.sampled_from(sorted(SOCS)), st.text(alphabet="ABCP-", max_size=4))
def test_a_suffix_of_letters_never_changes_the_generation(name: str, suffix: str) -> None:
    soc = recognise({"ro.soc.model": name + suffix}).soc
    assert soc is not None
    assert soc == SOCS[name]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["ro.soc.model", "ro.product.model", "ro.hardware"]), st.text(max_size=20)))
def test_recognise_answers_anything(found: dict[str, str]) -> None:
    seen = recognise(found)
    assert seen.reason
    assert seen.label
    if seen.soc:
        assert found["ro.soc.model"].strip().upper().startswith(seen.soc.name)


def test_find_soc() -> None:
    assert find_soc("SM8650").arch == 75
    with pytest.raises(ConfigError, match="SM8650") as caught:
        find_soc("SM865")
    assert "SM865'" in caught.value.what
    with pytest.raises(ConfigError, match="SM8650"):
        find_soc("sm8650")
    with pytest.raises(ConfigError, match="known: QCM6490"):
        find_soc("banana")


def test_the_core_needs_neither_torch_nor_pytest() -> None:
    code = (
        "import sys, harness.soc, harness.config, harness.inventory, harness.models, harness.matrix, harness.gates\n"
        "print([name for name in ('torch', 'pytest', 'executorch') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=True)
    assert run.stdout.strip() == "[]"
