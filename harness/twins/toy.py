"""A row's architecture at toy size: what makes it different stays, what makes it large goes. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from harness.model_file import Lengths, Params
from harness.models import ModelSpec
from harness.recipes import LayerException, Recipe

# Multiples of 64, the largest block of upstream's LPBQ recipes.
DIM, FFN_WIDTH, HEADS = 128, 256, 4
VOCABULARY = 512
SENTENCEPIECE_VOCABULARY = 1024  # the shipped tokenizer's
WINDOW = 24
MAX_SEQ_LEN, PREFILL_AR_LEN = 128, 32
_MOST_SHARDS = 4


@dataclass(frozen=True)
class Toy:
    """What a twin has in place of its row's.

    Attributes:
        params: the architecture.
        shards: asked of upstream; as many more contexts come out as of the row's.
        recipe: the row's, without exceptions for layers that are not there.
        lengths: a short context; lookahead's settings are the row's.
    """

    params: Params
    shards: int
    recipe: Recipe
    lengths: Lengths


def toy(row: ModelSpec) -> Toy:
    """The toy size of a row."""
    large = row.params
    shards = min(row.shards, _MOST_SHARDS)
    kinds = 4 if large.no_rope_layer_interval else 2
    # Upstream cuts every int(layers / shards) layers: a remainder makes one context more.
    layers = max(kinds, shards + (contexts(large.n_layers, row.shards) > row.shards)) if shards > 1 else kinds
    kv_heads = HEADS if large.n_kv_heads == large.n_heads else 1 if large.n_kv_heads == 1 else HEADS // 2
    # Where heads are together wider or narrower than the residual stream, a twin's are wider.
    usual = large.head_dim is None or large.head_dim * large.n_heads == large.dim
    head_dim = DIM // HEADS if usual else 2 * DIM // HEADS
    changes: dict[str, Any] = {
        "dim": DIM,
        "n_layers": layers,
        "n_heads": HEADS,
        "n_kv_heads": kv_heads,
        "head_dim": None if large.head_dim is None else head_dim,
        "hidden_dim": 4 * DIM if large.model_architecture == "CodeGenModel" else FFN_WIDTH,
        "vocab_size": SENTENCEPIECE_VOCABULARY if row.tokenizer.kind == "sentencepiece" else VOCABULARY,
        # Upstream's graph leaves it out; see harness/twins/config.py.
        "attn_logit_softcapping": None,
        "multiple_of": None,
        "ffn_dim_multiplier": None,
    }
    if large.embedding_scale_factor is not None and _is_root(large):
        changes["embedding_scale_factor"] = math.sqrt(DIM)
    if large.attention_multiplier is not None:
        changes["attention_multiplier"] = large.attention_multiplier * large.head_width / head_dim
    if large.sliding_window is not None:
        changes["sliding_window"] = WINDOW
    if large.layer_types is not None:
        kinds_there = list(dict.fromkeys(large.layer_types))
        changes["layer_types"] = tuple(kinds_there[number % len(kinds_there)] for number in range(layers))
    given = {**large.model_args(), **changes}
    params = Params.model_validate({key: value for key, value in given.items() if value is not None})
    lengths = replace(row.lengths, max_seq_len=MAX_SEQ_LEN, prefill_ar_len=PREFILL_AR_LEN)
    return Toy(params, shards, _fitting(row.recipe, layers), lengths)


def contexts(layers: int, shards: int) -> int:
    """Contexts that upstream makes of a model, as `get_split_graph_pass` cuts it (ExecuTorch, model_sharding.py)."""
    return len(range(0, layers, layers // shards)) if shards > 1 else 1


def _is_root(params: Params) -> bool:
    return math.isclose(params.embedding_scale_factor or 1.0, math.sqrt(params.dim), rel_tol=1e-6)


def _fitting(recipe: Recipe, layers: int) -> Recipe:
    kept = []
    for exception in recipe.exceptions:
        if exception.layers is None:
            kept.append(exception)
        elif numbers := tuple(number for number in exception.layers if number < layers):
            kept.append(LayerException.model_validate({**exception.model_dump(exclude_none=True), "layers": numbers}))
    return recipe.model_copy(update={"exceptions": tuple(kept)})
