"""Checkpoints in every format give the same tensors; what is damaged, another model's or a bomb is refused by name."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sample_models import make_model

from harness.build.cache import locate
from harness.build.checkpoint import checkpoint_files, interleave, load_state_dict
from harness.build.families import FAMILIES, expected_shapes, family_of
from harness.build.materials import tokenizer_file
from harness.errors import BuildError, ConfigError, HarnessError
from harness.model_file import Mode
from harness.models import Checkpoint, ModelSpec, load_models, select
from harness.paths import MODELS
from harness.soc import find_soc
from harness.target import Target

ROWS = load_models(MODELS)
ONE_OF_EACH = {
    family.name: next(row.name for row in ROWS.values() if row.decoder in family.decoders and row.name != "tiny_llama")
    for family in FAMILIES
}
LAYER = "model.layers.1.self_attn.q_proj.weight"
FILE = "model.safetensors"


@pytest.fixture(scope="module")
def twins() -> dict[str, ModelSpec]:
    """A twin of each family."""
    chosen = {f"{row}_twin": family for family, row in ONE_OF_EACH.items()}
    return {chosen[spec.name]: spec for spec in select(ROWS, list(chosen))}


@pytest.fixture
def llama(twins: dict[str, ModelSpec], tmp_path: Path) -> ModelSpec:
    return copy(twins["llama"], tmp_path)


@pytest.fixture
def qwen(twins: dict[str, ModelSpec], tmp_path: Path) -> ModelSpec:
    return copy(twins["qwen3"], tmp_path)


def copy(spec: ModelSpec, folder: Path) -> ModelSpec:
    """The same model in a folder of its own, to spoil."""
    target = folder / spec.folder.name
    shutil.copytree(spec.folder, target)
    return replace(spec, file=target / spec.file.name, checkpoint=replace(spec.checkpoint, path=target))


def stored(spec: ModelSpec, kind: str, path: Path) -> ModelSpec:
    return replace(spec, checkpoint=Checkpoint(kind, path))


def tensors(spec: ModelSpec) -> dict[str, torch.Tensor]:
    return dict(load_file(spec.folder / FILE))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def refused(spec: ModelSpec) -> str:
    with pytest.raises(HarnessError) as caught:
        load_state_dict(spec)
    assert caught.value.where
    return str(caught.value)


def change_config(spec: ModelSpec, change: Callable[[dict[str, Any]], object]) -> None:
    path = spec.folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


# What is loaded.


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_every_family_gives_what_the_static_llama_loads(family: str, twins: dict[str, ModelSpec]) -> None:
    """Whether the numbers are right is in test_twins.py."""
    state = load_state_dict(twins[family])
    assert {name: tuple(t.shape) for name, t in state.items()} == expected_shapes(twins[family].params)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_a_tied_output_layer_is_the_table_before_it_is_scaled(twins: dict[str, ModelSpec]) -> None:
    state = load_state_dict(twins["gemma"])
    factor = twins["gemma"].params.embedding_scale_factor
    assert torch.equal(state["output.weight"] * factor, state["tok_embeddings.weight"])
    state = load_state_dict(twins["llama"])
    assert state["output.weight"] is state["tok_embeddings.weight"]  # memory and file hold it once


def test_a_copy_of_a_tied_output_layer_is_not_looked_at(llama: ModelSpec) -> None:
    before, saved = load_state_dict(llama), tensors(llama)
    save_file({**saved, "lm_head.weight": torch.zeros_like(saved["model.embed_tokens.weight"])}, llama.folder / FILE)
    assert same(load_state_dict(llama), before)


def test_an_untied_output_layer_must_be_there(twins: dict[str, ModelSpec], tmp_path: Path) -> None:
    spec = copy(twins["glm"], tmp_path)
    saved = tensors(spec)
    output = saved.pop("lm_head.weight")
    assert torch.equal(load_state_dict(spec)["output.weight"], output)
    save_file(saved, spec.folder / FILE)
    assert "missing: lm_head.weight" in refused(spec)


def test_norms_with_one_and_rotary_rows(twins: dict[str, ModelSpec]) -> None:
    gemma, llama, qwen = twins["gemma3"], twins["llama"], twins["qwen3"]
    name = "model.layers.0.self_attn.q_norm.weight"
    assert torch.equal(load_state_dict(gemma)["layers.0.attention.q_norm_fn.weight"], tensors(gemma)[name] + 1)
    assert torch.equal(load_state_dict(qwen)["layers.0.attention.q_norm_fn.weight"], tensors(qwen)[name])
    assert torch.equal(load_state_dict(qwen)["layers.1.attention.wq.weight"], tensors(qwen)[LAYER])
    heads = llama.params.n_heads
    assert torch.equal(load_state_dict(llama)["layers.1.attention.wq.weight"], interleave(tensors(llama)[LAYER], heads))


def test_interleave_puts_halves_into_pairs() -> None:
    rows = torch.arange(8)
    assert interleave(rows, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert interleave(rows[:, None] * torch.ones(1, 3), 1)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_longropes_factor_is_in_the_rotated_rows_alone(twins: dict[str, ModelSpec]) -> None:
    spec = twins["phi3"]
    params = spec.params
    fused = tensors(spec)["model.layers.0.self_attn.qkv_proj.weight"]
    loaded = load_state_dict(spec)["layers.0.attention.wk.weight"]
    start = params.n_heads * params.head_width
    key = fused[start : start + params.n_kv_heads * params.head_width].view(params.n_kv_heads, params.head_width, -1)
    ratio = (loaded.view(key.shape) / key).mean(dim=(0, 2))
    rotated = int(params.head_width * 0.75)
    assert torch.allclose(ratio[:rotated], torch.tensor((17 / 12) ** 0.5))
    assert torch.equal(ratio[rotated:], torch.ones(params.head_width - rotated))


def test_codegens_blocks(twins: dict[str, ModelSpec]) -> None:
    spec = twins["codegen"]
    fused = tensors(spec)["transformer.h.0.attn.qkv_proj.weight"]
    state = load_state_dict(spec)
    # Of 384 rows in 4 blocks, each has 32 of q, then 32 of v, then 32 of k.
    assert torch.equal(state["layers.0.attention.wq.weight"][32:64], fused[96:128])
    assert torch.equal(state["layers.0.attention.wv.weight"][:32], fused[32:64])
    assert torch.equal(state["layers.0.attention.wk.weight"][96:], fused[-32:])
    eight = load_state_dict(replace(spec, checkpoint=replace(spec.checkpoint, qkv_blocks=8)))
    assert torch.equal(eight["layers.0.attention.wq.weight"][16:32], fused[48:64])
    with pytest.raises(ConfigError, match="how many blocks") as caught:
        load_state_dict(replace(spec, checkpoint=replace(spec.checkpoint, qkv_blocks=None)))
    assert "qkv_blocks: 8" in caught.value.remedy


# Formats.


def shard(spec: ModelSpec, suffix: str = ".safetensors", count: int = 3) -> Path:
    """Cuts the one file into several and writes their index."""
    saved = sorted(tensors(spec).items())
    (spec.folder / FILE).unlink()
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    files = {f"{stem}-{i + 1:05}-of-{count:05}{suffix}": dict(saved[i::count]) for i in range(count)}
    for name, part in files.items():
        if suffix == ".safetensors":
            save_file(part, spec.folder / name)
        else:
            torch.save(part, spec.folder / name)
    index = spec.folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": {key: name for name, part in files.items() for key in part}}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards(qwen: ModelSpec, suffix: str) -> None:
    before = load_state_dict(qwen)
    shard(qwen, suffix)
    assert same(load_state_dict(qwen), before)


@pytest.mark.parametrize("zipped", [True, False])
def test_one_bin(qwen: ModelSpec, zipped: bool) -> None:
    before = load_state_dict(qwen)
    torch.save(tensors(qwen), qwen.folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    (qwen.folder / FILE).unlink()
    assert same(load_state_dict(qwen), before)


def test_half_precision_is_widened(qwen: ModelSpec) -> None:
    save_file({name: tensor.bfloat16() for name, tensor in tensors(qwen).items()}, qwen.folder / FILE)
    state = load_state_dict(qwen)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert torch.equal(state["layers.1.attention.wq.weight"], tensors(qwen)[LAYER].float())


def meta_folder(spec: ModelSpec, parts: int = 1) -> Path:
    """The model as Meta publishes one: its own names, cut along the dimensions that model parallelism cuts."""
    folder = spec.folder.parent / "meta"
    folder.mkdir()
    columns = ("wo.weight", "w2.weight", "tok_embeddings.weight")
    state = load_state_dict(spec)
    for number in range(parts):
        part = {
            name: tensor
            if tensor.dim() == 1
            else tensor.chunk(parts, dim=1 if name.endswith(columns) else 0)[number].clone()
            for name, tensor in state.items()
        }
        torch.save({**part, "rope.freqs": torch.ones(4)}, folder / f"consolidated.{number:02}.pth")
    described = {**spec.params.model_args(), "vocab_size": -1, "ffn_dim_multiplier": 1.5}
    (folder / "params.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_metas_format(llama: ModelSpec, parts: int) -> None:
    before = load_state_dict(llama)
    assert same(load_state_dict(stored(llama, "meta", meta_folder(llama, parts))), before)


def test_metas_params_are_compared(llama: ModelSpec) -> None:
    folder = meta_folder(llama)
    described = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps(described | {"rope_theta": 10000.0, "n_heads": 8}))
    message = refused(stored(llama, "meta", folder))
    assert f"n_heads is 8, the model's file has {llama.params.n_heads}" in message
    assert "rope_theta is 10000.0" in message


def test_a_part_of_metas_that_does_not_fit(llama: ModelSpec) -> None:
    folder = meta_folder(llama, 2)
    (folder / "consolidated.01.pth").unlink()
    assert "tok_embeddings.weight in consolidated.00.pth is [512, 64]" in refused(stored(llama, "meta", folder))


def llama2c_file(spec: ModelSpec, **model_args: Any) -> Path:
    path = spec.folder.parent / "stories.pt"
    state = {f"_orig_mod.{name}": tensor for name, tensor in load_state_dict(spec).items()}
    torch.save({"model": state, "optimizer": {"state": {}}, "model_args": model_args, "iter_num": 7}, path)
    return path


def test_llama2cs_format(llama: ModelSpec) -> None:
    before = load_state_dict(llama)
    assert same(load_state_dict(stored(llama, "llama2c", llama2c_file(llama, dim=llama.params.dim))), before)
    assert "dim is 288, the model's file has 128" in refused(stored(llama, "llama2c", llama2c_file(llama, dim=288)))


def test_gguf(llama: ModelSpec) -> None:
    gguf = pytest.importorskip("gguf")
    params = llama.params
    names = {
        "attention.wq": "attn_q",
        "attention.wk": "attn_k",
        "attention.wv": "attn_v",
        "attention.wo": "attn_output",
    }
    names |= {"feed_forward.w1": "ffn_gate", "feed_forward.w2": "ffn_down", "feed_forward.w3": "ffn_up"}
    names |= {"attention_norm": "attn_norm", "ffn_norm": "ffn_norm"}
    path = llama.folder.parent / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(params.dim)
    writer.add_block_count(params.n_layers)
    writer.add_feed_forward_length(params.ffn_width)
    writer.add_head_count(params.n_heads)
    writer.add_head_count_kv(params.n_kv_heads)
    writer.add_layer_norm_rms_eps(params.norm_eps)
    writer.add_rope_freq_base(params.rope_theta)
    writer.add_vocab_size(params.vocab_size)
    before = load_state_dict(llama)
    for name, tensor in before.items():
        stem = name.removesuffix(".weight")
        number, _, part = stem.removeprefix("layers.").partition(".")
        top = {"tok_embeddings": "token_embd", "norm": "output_norm", "output": "output"}.get(stem)
        # Rotary rows are interleaved in a GGUF file, as in Meta's format.
        writer.add_tensor(f"{top}.weight" if top else f"blk.{number}.{names[part]}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    spec = stored(llama, "gguf", path)
    assert same(load_state_dict(spec), before)
    other = params.model_copy(update={"rope_theta": 10000.0})
    assert "rope_theta is 500000.0" in refused(replace(spec, params=other))
    path.write_bytes(path.read_bytes()[:100_000])
    assert "no GGUF file that transformers can read" in refused(spec)


def test_the_tokenizer_lies_with_the_weights(llama: ModelSpec, tmp_path: Path) -> None:
    assert tokenizer_file(llama, tmp_path) == llama.folder / "tokenizer.json"
    (llama.folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"the tokenizer of .* is not there"):
        tokenizer_file(llama, tmp_path)


def test_a_key_knows_every_file(qwen: ModelSpec) -> None:
    def key() -> str:
        return locate(qwen, Mode.KV, find_soc("SM8650"), Target.SIM, qwen.lengths, {}).key

    shard(qwen)
    keys = {key()}
    files = checkpoint_files(qwen)
    assert [path.name for path in files] == sorted(
        ["config.json", "tokenizer.json", "model.safetensors.index.json"]
        + [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    )
    for path in files:
        path.write_bytes(path.read_bytes() + b" ")
        keys.add(key())
    assert len(keys) == len(files) + 1


# What is refused: damaged.


@pytest.mark.parametrize("keep", [0, 7, 20, 1000])
def test_a_file_that_ends_in_its_header(qwen: ModelSpec, keep: int) -> None:
    path = qwen.folder / FILE
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path}: this is no checkpoint" in refused(qwen)


def test_a_truncated_file_names_the_first_tensor_that_is_not_whole(qwen: ModelSpec) -> None:
    path = qwen.folder / FILE
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    spans = {k: v["data_offsets"] for k, v in json.loads(data[8 : 8 + length]).items() if k != "__metadata__"}
    start, end = spans[LAYER]
    path.write_bytes(data[: 8 + length + (start + end) // 2])
    assert f"{path}: the file is truncated: {LAYER} ends at byte {8 + length + end}" in refused(qwen)


def test_a_truncated_shard(qwen: ModelSpec) -> None:
    shard(qwen)
    path = qwen.folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path}: the file is truncated" in refused(qwen)


@pytest.mark.parametrize("what", [b'"F32"', b'"shape":[', b"data_offsets"])
def test_a_damaged_header(qwen: ModelSpec, what: bytes) -> None:
    path = qwen.folder / FILE
    data = bytearray(path.read_bytes())
    at = data.index(what) + len(what) // 2
    data[at] ^= 0x15
    path.write_bytes(bytes(data))
    assert str(path) in refused(qwen)


def test_a_header_that_claims_to_be_huge(qwen: ModelSpec) -> None:
    (qwen.folder / FILE).write_bytes(struct.pack("<Q", 1 << 60) + b"{}" * 100)
    assert "header should be" in refused(qwen)


@pytest.mark.parametrize("keep", [0, 3, 1000, 300_000])
def test_a_truncated_pickle(llama: ModelSpec, keep: int) -> None:
    path = llama2c_file(llama)
    path.write_bytes(path.read_bytes()[:keep])
    message = refused(stored(llama, "llama2c", path))
    assert f"{path}: this is no checkpoint" in message
    assert "weights_only=False" not in message


def test_numbers_that_are_none(qwen: ModelSpec) -> None:
    saved = tensors(qwen)
    saved[LAYER][3, 5] = float("nan")
    save_file(saved, qwen.folder / FILE)
    assert f"{LAYER} in {FILE} holds what is no number (layers.1.attention.wq.weight)" in refused(qwen)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda weights: weights.popitem(), "is not in"),
        (lambda weights: weights.update(extra="lost.safetensors"), "lost.safetensors: a file that the index names"),
        (lambda weights: weights.update(extra="../../elsewhere.safetensors"), "is no file name"),
        (lambda weights: weights.update({LAYER: "model-00003-of-00003.safetensors"}), f"{LAYER} is not in model-00003"),
        (lambda weights: weights.update(extra=7), "7 is no file name"),
        (lambda weights: weights.clear(), "weight_map is empty"),
    ],
)
def test_a_wrong_index(qwen: ModelSpec, spoil: Callable[[dict[str, Any]], object], words: str) -> None:
    index = shard(qwen)
    described = json.loads(index.read_text())
    assert described["weight_map"][LAYER] != "model-00003-of-00003.safetensors"
    spoil(described["weight_map"])
    index.write_text(json.dumps(described))
    if words == "is not in":
        assert load_state_dict(qwen)  # a tensor that only its file names is there all the same
    else:
        assert words in refused(qwen)


def test_a_tensor_in_two_files(qwen: ModelSpec) -> None:
    shutil.copy(qwen.folder / FILE, qwen.folder / "more.safetensors")
    assert "is there twice, also in" in refused(qwen)


# What is refused: another model's.


def test_missing_and_surplus_tensors_are_named_with_their_file(qwen: ModelSpec) -> None:
    saved = tensors(qwen)
    saved["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(256)
    saved["visual.patch_embed.weight"] = torch.zeros(3)
    del saved[LAYER], saved["model.norm.weight"]
    save_file(saved, qwen.folder / FILE)
    message = refused(qwen)
    assert f"missing: {LAYER}" in message
    assert "missing: model.norm.weight" in message
    assert f"not a part of this architecture: model.layers.0.self_attn.q_proj.bias in {FILE}" in message
    assert f"not a part of this architecture: visual.patch_embed.weight in {FILE}" in message


def test_a_wrong_shape_is_named_with_its_file(qwen: ModelSpec) -> None:
    saved = tensors(qwen)
    saved[LAYER] = saved[LAYER][:-1].clone()
    save_file(saved, qwen.folder / FILE)
    words = f"{LAYER} in {FILE} is [255, 128] for layers.1.attention.wq.weight, expected [256, 128]"
    assert words in refused(qwen)


def test_a_fused_tensor_of_a_wrong_shape(twins: dict[str, ModelSpec], tmp_path: Path) -> None:
    spec = copy(twins["phi3"], tmp_path)
    saved = tensors(spec)
    name = "model.layers.2.self_attn.qkv_proj.weight"
    saved[name] = saved[name][:-8].clone()
    save_file(saved, spec.folder / FILE)
    assert f"{name} in {FILE} is [56, 128] for layers.2.attention.wv.weight, expected [64, 128]" in refused(spec)


def test_a_long_list_is_cut(qwen: ModelSpec) -> None:
    saved = {name: tensor for name, tensor in tensors(qwen).items() if ".layers." not in name}
    save_file(saved, qwen.folder / FILE)
    assert "missing: and 14 more" in refused(qwen)


def test_weights_of_another_family(twins: dict[str, ModelSpec], qwen: ModelSpec) -> None:
    message = refused(replace(qwen, checkpoint=twins["llama"].checkpoint))
    assert "model_type is llama, the model's decoder takes qwen3" in message
    # Without the description the tensors tell.
    for name in ("q_norm", "k_norm"):
        shutil.copy(twins["llama"].folder / FILE, qwen.folder / FILE)
        assert f"missing: model.layers.0.self_attn.{name}.weight" in refused(qwen)


def test_a_decoder_that_is_not_known(qwen: ModelSpec) -> None:
    with pytest.raises(ConfigError, match="gemma4-e2b"):
        load_state_dict(replace(qwen, decoder="gemma4-e2b"))


def test_a_folder_without_its_description(qwen: ModelSpec) -> None:
    (qwen.folder / "config.json").unlink()
    assert "config.json is not there" in refused(qwen)
    (qwen.folder / "config.json").write_text("[1, 2")
    assert "no description of a checkpoint" in refused(qwen)


WRONG = [
    ("qwen3", "hidden_size", 256, "hidden_size is 256, the model's file has dim 128"),
    ("qwen3", "rms_norm_eps", 1e-5, "norm_eps 1e-06"),
    ("qwen3", "head_dim", 32, "head_dim 64"),
    ("qwen3", "rope_parameters.rope_theta", 10000.0, "rope_theta 1000000.0"),
    ("qwen3", "attention_bias", True, "attention_qkv_bias False"),
    ("qwen3", "hidden_act", "gelu", "act_fn silu"),
    ("qwen3", "rope_parameters.rope_type", "yarn", "scaling is yarn"),
    ("qwen3", "vocab_size", 513, "vocab_size 512"),
    ("llama", "rope_parameters", {"rope_type": "llama3", "factor": 8.0}, "scaling is llama3's by 8.0"),
    ("codegen", "rotary_dim", 32, "rotary_dim 16"),
    ("codegen", "n_inner", 256, "hidden_dim 512"),
    ("gemma2", "final_logit_softcapping", 20.0, "final_logit_softcapping 30.0"),
    ("gemma3", "rope_parameters.sliding_attention.rope_theta", 20000.0, "local_rope_theta 10000.0"),
    ("gemma3", "sliding_window", 512, "sliding_window is 512"),
    ("gemma3", "layer_types", ["full_attention"] * 2, "layer_types is"),
    ("gemma3", "query_pre_attn_scalar", 128, "query_pre_attn_scalar is 128"),
    ("glm", "rope_parameters.partial_rotary_factor", 0.5, "partial_rotary_factor 1.0"),
    ("granite", "embedding_multiplier", 1.0, "embedding_multiplier 12.0"),
    ("granite", "attention_multiplier", 0.5, "attention_multiplier 0.03125"),
    ("granite", "residual_multiplier", 1.0, "residual_multiplier 0.22"),
    ("granite", "logits_scaling", 1.0, "logits_scaling 8.0"),
    ("phi3", "original_max_position_embeddings", 8192, "original_max_position_embeddings 4096"),
    ("phi3", "rope_parameters.short_factor", [1.0, 1.1], "short_factor is not all 1"),
    ("phi3", "rope_parameters.attention_factor", 1.5, "attention_factor is 1.5"),
    ("smollm3", "no_rope_layers", [1, 0, 1, 0], "no_rope_layers is [1, 0, 1, 0]"),
]


@pytest.mark.parametrize(("family", "place", "value", "words"), WRONG)
def test_a_description_that_contradicts_the_models_file(
    family: str, place: str, value: object, words: str, twins: dict[str, ModelSpec], tmp_path: Path
) -> None:
    spec = copy(twins[family], tmp_path)

    def change(config: dict[str, Any]) -> None:
        *parents, last = place.split(".")
        for parent in parents:
            config = config[parent]
        config[last] = value

    load_state_dict(spec)
    change_config(spec, change)
    message = refused(spec)
    assert words in message
    assert f"set params in {spec.file.name}" in message


def test_what_a_description_leaves_out_is_not_compared(twins: dict[str, ModelSpec], tmp_path: Path) -> None:
    for family in ("llama", "qwen3", "gemma3"):
        spec = copy(twins[family], tmp_path)
        (spec.folder / "config.json").write_text("{}")
        assert load_state_dict(spec)


def test_names_of_older_transformers(twins: dict[str, ModelSpec], tmp_path: Path) -> None:
    spec = copy(twins["phi3"], tmp_path)

    def older(config: dict[str, Any]) -> None:
        rope = config.pop("rope_parameters")
        config["rope_scaling"] = {"type": "longrope", "short_factor": rope["short_factor"]}
        config["rope_theta"], config["partial_rotary_factor"] = rope["rope_theta"], rope["partial_rotary_factor"]

    change_config(spec, older)
    load_state_dict(spec)
    change_config(spec, lambda config: config.update(partial_rotary_factor=0.5))
    assert "partial_rotary_factor is 0.5" in refused(spec)


# What is refused: a bomb.


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def write_pickle(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))


def write_new_pickle(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=5))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, write_pickle, write_new_pickle], ids=["zip", "pickle2", "pickle5"])
@pytest.mark.parametrize("kind", ["huggingface", "meta", "meta_file", "llama2c"])
def test_a_pickle_bomb_does_not_go_off(
    llama: ModelSpec, tmp_path: Path, kind: str, write: Callable[[object, Path], None]
) -> None:
    marker = tmp_path / "went_off"
    bomb = {"config": Bomb(marker), "model": {"tok_embeddings.weight": torch.zeros(2, 2)}}
    with (tmp_path / "proof").open("wb") as stream:
        pickle.dump(bomb, stream)
    pickle.loads((tmp_path / "proof").read_bytes())
    assert marker.exists()  # it is a real one
    marker.unlink()
    folder = llama.folder.parent / "bombs"
    folder.mkdir()
    name = {"huggingface": "pytorch_model.bin", "meta": "consolidated.00.pth"}.get(kind, "stories.pt")
    path = folder / name
    write(bomb, path)
    shutil.copy(llama.folder / "config.json", folder)
    whole = path if kind in ("meta_file", "llama2c") else folder
    message = refused(stored(llama, kind.removesuffix("_file"), whole))
    assert not marker.exists()
    assert str(path) in message
    assert "nothing of it was run" in message
    assert "it refers to posix.system" in message or write is write_new_pickle
    assert "weights_only=False" not in message


def test_a_bomb_under_the_name_of_safetensors(qwen: ModelSpec, tmp_path: Path) -> None:
    marker = tmp_path / "went_off"
    for write in (torch.save, write_pickle):
        write({LAYER: Bomb(marker)}, qwen.folder / FILE)
        assert "its safetensors header cannot be read" in refused(qwen)
    assert not marker.exists()


def test_what_is_no_state_dict(llama: ModelSpec) -> None:
    path = llama.folder.parent / "odd.pt"
    torch.save([torch.zeros(1)], path)
    assert "no checkpoint but a list" in refused(stored(llama, "llama2c", path))
    torch.save({"tok_embeddings.weight": "text", "epoch": 3}, path)
    assert "epoch, tok_embeddings.weight are no tensors" in refused(stored(llama, "llama2c", path))


def test_errors_of_a_file_are_build_errors(tmp_path: Path) -> None:
    spec = make_model(tmp_path)  # its checkpoint is an empty file
    with pytest.raises(BuildError, match="no checkpoint") as caught:
        load_state_dict(spec)
    assert caught.value.where == str(tmp_path / "tiny.pt")


def test_every_rows_family_is_known() -> None:
    for row in ROWS.values():
        assert family_of(row.decoder).decoders
