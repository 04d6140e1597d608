"""Twins: made when asked for, of every row, and the same function in transformers as in upstream's static Llama."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from events import HANG_S

from harness.build.families import FAMILIES, family_of
from harness.errors import ConfigError
from harness.model_file import Mode
from harness.models import ModelSpec, load_model, load_models, select
from harness.paths import MODELS
from harness.text.decoders import VERSIONS
from harness.text.templates import find_template, format_prompt
from harness.text.tokenizer import load_tokenizer
from harness.toolchain.environment import find_toolchain
from harness.twins import has_twin, twin_file
from harness.twins.parity import LEAST_DB, Parity, measure
from harness.twins.toy import contexts, toy
from harness.weights import find_weights

ROWS = load_models(MODELS)
NAMES = [row.name for row in ROWS.values() if has_twin(row)]


@pytest.fixture(scope="module")
def twins() -> dict[str, ModelSpec]:
    """All twins, by their row's name."""
    return {spec.name.removesuffix("_twin"): spec for spec in select(ROWS, ["all-twins"])}


def test_every_row_but_the_tiny_one_has_a_twin() -> None:
    assert sorted(ROWS) == sorted([*NAMES, "tiny_llama"])
    assert {family_of(ROWS[name].decoder).name for name in NAMES} == {family.name for family in FAMILIES}


def test_names(twins: dict[str, ModelSpec]) -> None:
    assert [spec.name for spec in twins.values()] == [f"{name}_twin" for name in sorted(NAMES)]
    assert [spec.name for spec in select(ROWS, ["qwen3_0_6b_twin", "tiny_llama"])] == ["qwen3_0_6b_twin", "tiny_llama"]
    assert [spec.name for spec in select(ROWS, ["tiny_llama", "all-twins"])][-1] == "tiny_llama"
    families = [family_of(spec.decoder).name for spec in select(ROWS, ["family-twins"])]
    assert sorted(families) == sorted(family.name for family in FAMILIES)
    assert not [spec for spec in select(ROWS, ["all"]) if spec.name.endswith("_twin")]
    with pytest.raises(ConfigError, match="tiny_llama is small enough"):
        select(ROWS, ["tiny_llama_twin"])
    for unknown in ("qwen9_twin", "all_twins", "most-twins"):
        with pytest.raises(ConfigError, match=f"unknown model '{unknown}'"):
            select(ROWS, [unknown])


def test_who_does_not_ask_pays_nothing(tmp_path: Path, twins: dict[str, ModelSpec]) -> None:
    """No torch, no file. Who asks again does not make them again."""
    code = (
        "import sys; from harness.models import load_models, select; from harness.paths import MODELS;"
        "select(load_models(MODELS), ['all']); assert 'harness.twins' not in sys.modules;"
        "assert len(select(load_models(MODELS), sys.argv[1:] or None)) > 10;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    away = {"HTPFARM_CACHE": str(tmp_path / "cache")}
    for arguments, change in (([], away), (["all-twins"], {})):
        subprocess.run([sys.executable, "-c", code, *arguments], env=os.environ | change, check=True, timeout=HANG_S)
    assert not (tmp_path / "cache").exists()


def test_a_changed_row_has_another_twin() -> None:
    row = ROWS["qwen3_0_6b"]
    bias = row.params.model_copy(update={"attention_qkv_bias": True})
    files = {twin_file(each) for each in (row, replace(row, params=bias), replace(row, modes=(Mode.KV,)))}
    assert len(files) == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_twin_is_its_row_at_toy_size(name: str, twins: dict[str, ModelSpec]) -> None:
    row, twin = ROWS[name], twins[name]
    for key in ("decoder", "instruct", "system_prompt", "recipe", "needs", "modes", "prompts"):
        assert getattr(twin, key) == getattr(row, key), key
    assert twin.bounds == row.bounds.model_copy(update={"qdq_vs_fp_ppl": 2.0})
    assert (twin.kv_bits, twin.lpbq) == (row.kv_bits, row.lpbq)
    large, small = row.params.model_args(), twin.params.model_args()
    # Upstream's graph has no soft cap on attention.
    assert set(small) == set(large) - {"attn_logit_softcapping"}
    assert set(small.get("layer_types", ())) == set(large.get("layer_types", ()))
    assert (small["n_kv_heads"] == small["n_heads"]) == (large["n_kv_heads"] == large["n_heads"])
    assert (small["n_kv_heads"] == 1) == (large["n_kv_heads"] == 1)
    interval = small.get("no_rope_layer_interval")
    assert interval is None or small["n_layers"] >= interval
    most = contexts(row.params.n_layers, row.shards)
    assert contexts(twin.params.n_layers, twin.shards) == min(most, twin.shards + (most > row.shards))
    assert sum(path.stat().st_size for path in find_weights(twin).files) < 6_000_000


def test_upstreams_count_of_contexts() -> None:
    """Llama 3B: 3 asked, 4 made."""
    assert [contexts(28, 3), contexts(18, 4), contexts(26, 4), contexts(32, 8), contexts(36, 4)] == [4, 5, 5, 8, 4]
    assert contexts(30, 1) == 1


def test_exceptions_for_layers_that_a_twin_has_not_are_left_out() -> None:
    row = ROWS["llama3_2_3b_instruct"]
    exceptions = [{"weights": "16a8w", "layers": numbers} for numbers in ([0, 20], [21])]
    recipe = type(row.recipe).model_validate({"name": "mixed", "exceptions": exceptions})
    assert [each.layers for each in toy(replace(row, recipe=recipe)).recipe.exceptions] == [(0,)]


@pytest.mark.parametrize("name", NAMES)
def test_a_twins_tokenizer_has_its_templates_pieces(name: str, twins: dict[str, ModelSpec]) -> None:
    spec = twins[name]
    path = find_weights(spec).tokenizer
    assert path is not None
    tokenizer = load_tokenizer(path)
    assert tokenizer.size == spec.params.vocab_size
    template = find_template(VERSIONS[spec.decoder])
    if spec.instruct:
        for piece in (*template.user, template.tail, template.stop or ""):
            if piece.strip().startswith("<"):
                assert tokenizer.special(piece.split(">")[0].strip() + ">") is not None, piece
    text = format_prompt(template, "In the café, 3 words: naïve.", "Be brief.")
    ids = tokenizer.encode(text, bos=False)
    assert max(ids) < spec.params.vocab_size
    pieces = b"".join(tokenizer.piece(before, token) for before, token in zip([-1, *ids[:-1]], ids, strict=True))
    assert pieces.decode().lstrip() == text


@pytest.fixture(scope="module")
def parity(twins: dict[str, ModelSpec]) -> dict[str, Parity]:
    return {found.name.removesuffix("_twin"): found for found in measure(list(twins.values()))}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_transformers_logits_are_the_static_models(name: str, parity: dict[str, Parity]) -> None:
    found = parity[name]
    assert found.sqnr_db >= LEAST_DB
    assert found.same > 0.98
    assert found.tokens == 128
    # Not degenerate: logits spread over nats, many tokens are chosen, and what came before matters.
    assert 1.5 < found.spread < 4
    assert found.distinct > 20
    assert found.repeats < 0.3
    assert found.context > 0.1


UPSTREAM = """
import json
from executorch.backends.qualcomm.quantizer.quant_recipe import QuantGranularity
from executorch.examples.qualcomm.oss_scripts.llama import SUPPORTED_LLM_MODELS
found = {}
for name, config in SUPPORTED_LLM_MODELS.items():
    recipe = config.quant_recipe(False)
    blocks = any(s.granularity == QuantGranularity.PER_BLOCK for s in recipe.recipe._strategies)
    found[name] = [config.repo_id, config.num_sharding, config.transform_weight, recipe.get_kv_io_bit_width(), blocks]
print("UPSTREAM " + json.dumps(found))
"""


@pytest.mark.slow
def test_rows_say_what_upstream_says() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UPSTREAM],
        env=find_toolchain().environment(),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("UPSTREAM ")] or [done.stderr[-3000:]]
    upstream = json.loads(line.removeprefix("UPSTREAM "))
    for row in ROWS.values():
        repo_id, shards, permutes, kv_bits, blocks = upstream[row.decoder]
        assert repo_id in (None, row.repo_id), row.name
        assert (row.shards, row.needs.kv_bits, row.needs.lpbq) == (shards, kv_bits, blocks), row.name
        family = family_of(row.decoder)
        # It permutes what Meta, or else Hugging Face itself, stores interleaved.
        assert permutes == (family.interleaves or family.name in ("codegen", "glm")), row.name
    covered = {decoder for family in FAMILIES for decoder in family.decoders}
    multimodal = {"granite_speech_3_3-2b", "internvl3_1b", "smolvlm_500m_instruct"}
    assert set(upstream) - covered == {*multimodal, "gemma4-e2b"}


def test_a_twin_can_be_read_again_from_its_file(twins: dict[str, ModelSpec]) -> None:
    for spec in twins.values():
        assert load_model(spec.file) == spec
