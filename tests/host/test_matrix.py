from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_models import make_model

from harness.errors import ConfigError
from harness.inventory import Phone, load_inventory
from harness.matrix import Cell, Lengths, Mode, cells, cells_for_rack, parse_modes, parse_socs
from harness.models import ModelSpec
from harness.paths import REPOSITORY
from harness.soc import SOCS


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[ModelSpec]:
    folder = tmp_path_factory.mktemp("models")
    return [
        make_model(folder, "tiny"),
        make_model(folder, "tiny_2", modes=["kv", "hybrid", "lookahead"], lengths={"max_seq_len": 256}),
        make_model(folder, "light", recipe={"name": "kv8", "kv_bits": 8}),
    ]


def test_ids(models: list[ModelSpec]) -> None:
    tiny, _, light = models
    soc, lengths = SOCS["SM8650"], Lengths(128, 32)
    assert Cell(tiny, Mode.KV, soc, lengths).id == "tiny-kv-SM8650"
    assert Cell(tiny, Mode.KV, soc, lengths, phone="s24").id == "tiny-kv-SM8650@s24"
    assert Cell(light, Mode.HYBRID, soc, lengths, "kv8").id == "light-hybrid-SM8650-kv8"
    assert Cell(light, Mode.HYBRID, soc, lengths, "kv8", "s24").id == "light-hybrid-SM8650-kv8@s24"


def test_each_model_in_its_own_modes(models: list[ModelSpec]) -> None:
    assert [cell.id for cell in cells(models, None, [SOCS["SM8750"], SOCS["SM8550"]])] == [
        "light-hybrid-SM8550-kv8",
        "light-hybrid-SM8750-kv8",
        "light-kv-SM8550-kv8",
        "light-kv-SM8750-kv8",
        "tiny-hybrid-SM8550",
        "tiny-hybrid-SM8750",
        "tiny-kv-SM8550",
        "tiny-kv-SM8750",
        "tiny_2-hybrid-SM8550",
        "tiny_2-hybrid-SM8750",
        "tiny_2-kv-SM8550",
        "tiny_2-kv-SM8750",
        "tiny_2-lookahead-SM8550",
        "tiny_2-lookahead-SM8750",
    ]


def test_an_asked_mode_is_kept_for_the_gates(models: list[ModelSpec]) -> None:
    assert [cell.id for cell in cells(models[:1], [Mode.LOOKAHEAD], [SOCS["SM8650"]])] == ["tiny-lookahead-SM8650"]


def test_lengths_are_the_models_unless_given(models: list[ModelSpec]) -> None:
    soc = [SOCS["SM8650"]]
    assert {cell.lengths for cell in cells(models[1:2], None, soc)} == {Lengths(256, 32)}
    assert {cell.lengths for cell in cells(models, None, soc, Lengths(64, 16))} == {Lengths(64, 16)}


def test_the_shipped_rack_gives_eight_cells_for_the_tiny_model(models: list[ModelSpec]) -> None:
    rack = load_inventory(REPOSITORY / "devices.yaml")
    assert [cell.id for cell in cells_for_rack(models[:1], None, rack.phones)] == [
        "tiny-hybrid-SM8550",
        "tiny-hybrid-SM8650@oneplus12",
        "tiny-hybrid-SM8650@s24",
        "tiny-hybrid-SM8750",
        "tiny-kv-SM8550",
        "tiny-kv-SM8650@oneplus12",
        "tiny-kv-SM8650@s24",
        "tiny-kv-SM8750",
    ]


def test_a_rack_is_filtered_by_soc(models: list[ModelSpec]) -> None:
    rack = load_inventory(REPOSITORY / "devices.yaml")
    chosen = cells_for_rack(models[:1], [Mode.KV], rack.phones, parse_socs("SM8650,SM8450"))
    assert [cell.id for cell in chosen] == ["tiny-kv-SM8650@oneplus12", "tiny-kv-SM8650@s24"]


def test_a_phone_without_a_soc_gets_no_cell(models: list[ModelSpec]) -> None:
    phones = [Phone("a", "X", None, SOCS["SM8650"]), Phone("b", "Y", None, None)]
    assert [cell.id for cell in cells_for_rack(models[:1], [Mode.KV], phones)] == ["tiny-kv-SM8650"]
    assert cells_for_rack(models, None, []) == ()


def test_a_cell_of_a_rack_has_all_of_its_parts(models: list[ModelSpec]) -> None:
    phones = [Phone("b", "X", None, SOCS["SM8650"]), Phone("a", "Y", None, SOCS["SM8650"])]
    _, _, light = models
    soc = SOCS["SM8650"]
    assert cells_for_rack([light], [Mode.KV], phones, lengths=Lengths(64, 16)) == (
        Cell(light, Mode.KV, soc, Lengths(64, 16), "kv8", "a"),
        Cell(light, Mode.KV, soc, Lengths(64, 16), "kv8", "b"),
    )
    assert cells_for_rack([light], [Mode.KV], phones[:1]) == (Cell(light, Mode.KV, soc, light.lengths, "kv8"),)
    assert cells([light], [Mode.KV], [soc]) == (Cell(light, Mode.KV, soc, light.lengths, "kv8", None),)


def test_where_any_phone_will_do_there_is_a_cell_for_each_soc(models: list[ModelSpec]) -> None:
    names = {"a": "SM8650", "b": "SM8550", "c": "SM8650"}
    phones = [Phone(name, None, None, SOCS[soc]) for name, soc in names.items()] + [Phone("d", None, None, None)]
    found = cells_for_rack(models[:1], [Mode.KV], phones, lengths=Lengths(64, 16), each=False)
    assert [(cell.id, cell.phone, cell.lengths) for cell in found] == [
        ("tiny-kv-SM8550", None, Lengths(64, 16)),
        ("tiny-kv-SM8650", None, Lengths(64, 16)),
    ]
    chosen = cells_for_rack(models[:1], [Mode.KV], phones, [SOCS["SM8650"]], each=False)
    assert [cell.id for cell in chosen] == ["tiny-kv-SM8650"]
    pinned = cells_for_rack(models[:1], [Mode.KV], phones)
    assert [cell.id for cell in pinned] == ["tiny-kv-SM8550", "tiny-kv-SM8650@a", "tiny-kv-SM8650@c"]
    # A phone is pinned where the chosen rack has several: one that the filter leaves out is none of them.
    assert [cell.id for cell in cells_for_rack(models[:1], [Mode.KV], phones, [SOCS["SM8550"]])] == ["tiny-kv-SM8550"]
    assert cells_for_rack(models[:1], [Mode.KV], phones, []) == ()


def test_what_can_be_gone_through_only_once_is_enough(models: list[ModelSpec]) -> None:
    chosen = [SOCS["SM8650"], SOCS["SM8550"]]
    assert cells(iter(models), None, iter(chosen)) == cells(models, None, chosen)
    phones = [Phone(name, None, None, SOCS[soc]) for name, soc in (("a", "SM8650"), ("b", "SM8550"))]
    found = cells_for_rack(iter(models), None, iter(phones), reversed(chosen))
    assert found == cells_for_rack(models, None, phones)


def test_pinned_cells_sort_by_their_id_whatever_the_racks_order(models: list[ModelSpec]) -> None:
    phones = [Phone(name, None, None, SOCS["SM8650"]) for name in ("z", "m", "a")]
    ids = [cell.id for cell in cells_for_rack(models, [Mode.KV], phones)]
    assert ids == [
        f"{stem}@{name}" for stem in ("light-kv-SM8650-kv8", "tiny-kv-SM8650", "tiny_2-kv-SM8650") for name in "amz"
    ]


socs = st.lists(st.sampled_from(sorted(SOCS.values())), max_size=6)
modes = st.none() | st.lists(st.sampled_from(list(Mode)), min_size=1)


@settings(deadline=None)
@given(data=st.data(), chosen=socs, wanted=modes)
def test_ids_are_unique_sorted_and_do_not_depend_on_order(
    models: list[ModelSpec], data: st.DataObject, chosen: list, wanted: list[Mode] | None
) -> None:
    found = cells(models, wanted, chosen)
    ids = [cell.id for cell in found]
    assert ids == sorted(set(ids))
    expected = sum(len(set(wanted) if wanted else model.modes) for model in models) * len(set(chosen))
    assert len(ids) == expected
    shuffled = data.draw(st.permutations(models)), data.draw(st.permutations(chosen))
    assert cells(shuffled[0], wanted, shuffled[1]) == found


@settings(deadline=None)
@given(data=st.data(), chosen=socs, wanted=modes)
def test_a_rack_runs_every_model_and_mode_on_every_phone(
    models: list[ModelSpec], data: st.DataObject, chosen: list, wanted: list[Mode] | None
) -> None:
    phones = [Phone(f"p{number}", None, None, soc) for number, soc in enumerate(chosen)]
    found = cells_for_rack(models, wanted, phones)
    ids = [cell.id for cell in found]
    assert ids == sorted(set(ids))
    for phone in phones:
        mine = [cell for cell in found if cell.soc == phone.soc and cell.phone in (None, phone.name)]
        assert len(mine) == sum(len(set(wanted) if wanted else model.modes) for model in models)
        alone = chosen.count(phone.soc) == 1
        assert all((cell.phone is None) == alone for cell in mine)
    assert cells_for_rack(models, wanted, data.draw(st.permutations(phones))) == found


def test_parse() -> None:
    assert parse_modes("hybrid, kv,hybrid") == (Mode.HYBRID, Mode.KV)
    assert parse_modes(" kv ,") == (Mode.KV,)
    assert parse_modes("all") == tuple(Mode)
    assert parse_modes("all,all") == tuple(Mode)
    assert parse_socs("SM8650,SM8550") == (SOCS["SM8650"], SOCS["SM8550"])
    assert parse_socs("all") == tuple(SOCS.values())


@pytest.mark.parametrize("text", ["", " , "])
def test_parse_nothing(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--modes: no mode given\n.*known: kv, hybrid, lookahead"):
        parse_modes(text)
    with pytest.raises(ConfigError, match=r"--socs: no SoC given\n.*known: QCM6490, QCS9100, .*SXR2330P"):
        parse_socs(text)
    with pytest.raises(ConfigError, match=r"^devices.yaml: no mode given"):
        parse_modes(text, where="devices.yaml")
    with pytest.raises(ConfigError, match=r"^devices.yaml: no SoC given"):
        parse_socs(text, where="devices.yaml")


def test_parse_unknown() -> None:
    with pytest.raises(ConfigError, match=r"--modes: unknown mode 'hybird'\n.*did you mean hybrid"):
        parse_modes("kv,hybird")
    with pytest.raises(ConfigError, match=r"--socs: unknown SoC 'sm8650'\n.*did you mean SM8650"):
        parse_socs("sm8650")
    with pytest.raises(ConfigError, match="known: hybrid, kv, lookahead"):
        parse_modes("zzz")
    with pytest.raises(ConfigError, match="unknown mode 'all'"):
        parse_modes("kv,all")
    with pytest.raises(ConfigError, match=r"^devices.yaml: unknown mode 'x'"):
        parse_modes("x", where="devices.yaml")
    with pytest.raises(ConfigError, match=r"^devices.yaml: unknown SoC 'x'"):
        parse_socs("x", where="devices.yaml")
