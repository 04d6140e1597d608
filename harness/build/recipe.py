"""How a model is quantised: upstream's recipe for its decoder, or a named one from the model's YAML."""

from __future__ import annotations

from typing import Any

import torch
from executorch.backends.qualcomm.quantizer.custom_annotation import annotate_kv_8bit
from executorch.backends.qualcomm.quantizer.quant_recipe import QuantGranularity, QuantRecipe
from executorch.backends.qualcomm.quantizer.quantizer import QuantDtype
from executorch.examples.qualcomm.oss_scripts.llama.static_llm_quant_recipe import StaticLLMQuantRecipe
from torchao.quantization.pt2e import MinMaxObserver

from harness.model_file import Recipe
from harness.models import ModelSpec


def config_for(spec: ModelSpec, upstream: Any) -> Any:
    """Upstream's model config with the YAML's recipe and shards in place of its own, where the YAML has them."""
    changes: dict[str, Any] = {"num_sharding": spec.shards}
    if spec.recipe.weights or spec.recipe.kv_bits:
        changes["quant_recipe"] = _recipe_class(spec.recipe, spec.kv_bits)
    # Upstream's configs are frozen dataclasses whose fields are class attributes: a subclass is the way to vary one.
    return type(f"{type(upstream).__name__}ForHtpfarm", (type(upstream),), changes)()


def _recipe_class(recipe: Recipe, kv_bits: int) -> type[StaticLLMQuantRecipe]:
    weights = recipe.weights or "16a4w"
    dtype = {"16a4w": QuantDtype.use_16a4w, "16a8w": QuantDtype.use_16a8w, "lpbq": QuantDtype.use_16a4w_block}[weights]
    extra = {"extra_kwargs": {"block_size": (1, recipe.block_size or 32, 1, 1)}} if weights == "lpbq" else {}

    class NamedRecipe(StaticLLMQuantRecipe):  # type: ignore[misc]
        """16-bit activations, `weights` for the convolutions, 8-bit weights for the output layer."""

        default_quant_dtype = dtype

        def __init__(self, verbose: bool = False) -> None:
            super().__init__()
            common = {"act_observer": MinMaxObserver}
            self.recipe = QuantRecipe(dtype, False, granularity=QuantGranularity.PER_TENSOR, verbose=verbose, **common)
            self.recipe.add_node_target(
                {torch.ops.aten.conv2d.default},
                dtype,
                False,
                granularity=QuantGranularity.PER_BLOCK if weights == "lpbq" else QuantGranularity.PER_CHANNEL,
                **common,
                **extra,
            ).add_regex(
                {r"output\.conv"},
                QuantDtype.use_16a8w,
                False,
                granularity=QuantGranularity.PER_CHANNEL,
                **common,
            )
            if kv_bits == 8:
                self.recipe.custom_quant_annotations.append(annotate_kv_8bit)

    return NamedRecipe
