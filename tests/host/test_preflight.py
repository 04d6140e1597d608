"""What compiling is expected to take: estimates, concerns, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.build.builder import lowering_error
from harness.build.families import weight_count
from harness.build.preflight import (
    CONTEXT_LIMIT,
    FITTED_UP_TO,
    concerns,
    context_bytes,
    estimate,
    graphs,
    more_shards,
    refuse,
    shards_needed,
)
from harness.errors import EnvError
from harness.matrix import cells
from harness.model_file import Mode
from harness.models import load_models
from harness.paths import MODELS
from harness.soc import find_soc

ROWS = load_models(MODELS)
ALL = tuple(Mode)


def test_graphs_that_are_exported() -> None:
    assert [graphs({Mode.KV}), graphs({Mode.HYBRID}), graphs({Mode.KV, Mode.HYBRID})] == [2, 3, 3]
    assert [graphs({Mode.LOOKAHEAD}), graphs(ALL)] == [4, 4]


def test_more_weights_and_more_graphs_take_more() -> None:
    for row in ROWS.values():
        found = [estimate(row, modes).memory_mb for modes in ({Mode.KV}, {Mode.HYBRID}, ALL)]
        assert found == sorted(found)
    small, large = (estimate(ROWS[name], {Mode.KV}).memory_mb for name in ("smollm2_135m", "llama3_2_1b_instruct"))
    assert small < large / 3


def test_far_beyond_the_fit_the_models_file_counts() -> None:
    row = ROWS["llama3_2_1b_instruct"]
    assert row.host is not None
    found = estimate(row, {Mode.HYBRID})
    assert found.memory_mb >= row.host.hybrid.memory_gb * 1024
    assert found.hours == row.host.hybrid.hours
    small = ROWS["smollm2_135m"]
    assert small.host is not None
    claim = small.host.model_copy(update={"kv": small.host.kv.model_copy(update={"memory_gb": 900})})
    fitted = estimate(replace(small, host=claim), {Mode.KV})
    assert weight_count(small.params) < FITTED_UP_TO
    assert fitted.memory_mb < 20_000


def test_what_does_not_fit_is_named_with_what_would() -> None:
    row = ROWS["llama3_2_1b_instruct"]
    group = cells([row], None, [find_soc("SM8650"), find_soc("SM8750")])
    (concern,) = concerns(group, 45 * 1024)
    assert concern.where == "llama3_2_1b_instruct (hybrid, kv, lookahead)"
    assert "about 80 GB and 4 h" in concern.what
    assert "45 GB are free" in concern.what
    assert "--modes kv" in concern.remedy
    (worse,) = concerns(group, 24 * 1024)
    assert "a larger machine" in worse.remedy
    assert concerns(group, 900 * 1024) == ()
    assert concerns([], 0) == ()
    with pytest.raises(EnvError, match="1 builds are likely to fail: compiling takes about 80 GB") as caught:
        refuse([worse])
    assert "--strict-memory" in caught.value.remedy
    refuse([])


def test_every_row_keeps_its_contexts_below_the_limit_as_upstream_cuts_it() -> None:
    assert {name: context_bytes(row) for name, row in ROWS.items() if context_bytes(row) > CONTEXT_LIMIT} == {}


def test_a_context_beyond_the_limit_says_how_many_shards() -> None:
    row = replace(ROWS["smollm3_3b"], shards=1)
    wide = replace(row, recipe=row.recipe.model_copy(update={"weights": "16a8w"}))
    assert context_bytes(wide) > context_bytes(row)
    size = int(2.5 * CONTEXT_LIMIT)
    assert shards_needed(size, 1) == 3
    assert shards_needed(size, 4) == 12
    big = replace(wide, params=wide.params.model_copy(update={"n_layers": 120}))
    found = concerns(cells([big], [Mode.KV], [find_soc("SM8650")]), 10_000_000)
    assert [f"set shards: {shards_needed(context_bytes(big), 1)} in" in concern.remedy for concern in found] == [True]


def test_the_advice_to_shard_has_the_number_that_fits() -> None:
    model = replace(ROWS["llama3_2_1b_instruct"], shards=1)
    assert "set shards: 2 in llama3_2_1b_instruct.yaml (now 1; a context is estimated at" in more_shards(model)
    seen = more_shards(model, (1 << 20, int(2.5 * CONTEXT_LIMIT)))
    assert seen.startswith("set shards: 3 in")
    assert "its largest context has 10.74 GB" in seen
    # What failed with some shards is never advised the same number, nor more than there are layers.
    assert more_shards(replace(model, shards=4), (5,)).startswith("set shards: 5 in")
    layers = model.params.n_layers
    assert "a shard for each layer already" in more_shards(replace(model, shards=layers), (5 * CONTEXT_LIMIT,))


def test_a_build_that_ran_into_the_compilers_limit_is_told_the_number_of_shards(tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    model = replace(ROWS["llama3_2_1b_instruct"], shards=1)
    log.write_text("fine\n[ERROR] estimated allocation of 2500000 KB > 2097152 KB\nTraceback\n")
    error = lowering_error("x-kv-SM8650", str(log), model)
    assert "2 GB limit" in error.what
    assert "set shards: 2 in llama3_2_1b_instruct.yaml" in error.remedy
    assert str(log) in error.remedy
    assert "2097152" in error.evidence
    log.write_text("something new\n")
    error = lowering_error("x-kv-SM8650", str(log), model)
    assert (error.what, error.remedy, error.evidence) == ("lowering failed", f"read {log}", "something new")
