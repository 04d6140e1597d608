"""How a model is quantised, in upstream's terms: its own recipe for the decoder, with what the model's YAML changes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from executorch.backends.qualcomm.quantizer.custom_annotation import annotate_kv_8bit
from executorch.backends.qualcomm.quantizer.quant_recipe import ByNameRegex, QuantGranularity, QuantRecipe
from executorch.backends.qualcomm.quantizer.quantizer import QuantDtype
from executorch.backends.qualcomm.utils.constants import QCOM_QUANT_ANNOTATION_KEY
from executorch.examples.qualcomm.oss_scripts.llama.static_llm_quant_recipe import StaticLLMQuantRecipe
from torchao.quantization.pt2e import MinMaxObserver

from harness.models import ModelSpec
from harness.recipes import BLOCK_SIZE, Weights, matching

_DTYPES = {"16a4w": QuantDtype.use_16a4w, "16a8w": QuantDtype.use_16a8w, "lpbq": QuantDtype.use_16a4w_block}
# Upstream's own recipes for stories110m and phi_4_mini make these 8 bits wide for their 8-bit KV cache.
_EIGHT_BIT = {QuantDtype.use_8a4w, QuantDtype.use_8a8w}
_HADAMARD = "qnn_custom.hadamard_transform"


def config_for(spec: ModelSpec, upstream: Any) -> Any:
    """Upstream's model config with the YAML's recipe and shards in place of its own, where the YAML has them.

    R1 and R2 are not among them: `harness.build.spinquant` has folded them into the weights by then.
    """
    recipe = spec.recipe
    asked = {
        "seq_mse_candidates": recipe.seq_mse_candidates,
        "masked_softmax": recipe.masked_softmax,
        "r3": recipe.spinquant.r3,
    }
    changes: dict[str, Any] = {"num_sharding": spec.shards}
    changes |= {key: value for key, value in asked.items() if value is not None}
    if recipe.replaces_quantiser:
        changes["quant_recipe"] = _recipe_class(spec, upstream.quant_recipe)
    # Upstream's configs are frozen dataclasses whose fields are class attributes: a subclass is the way to vary one.
    return type(f"{type(upstream).__name__}ForHtpfarm", (type(upstream),), changes)()


def _recipe_class(spec: ModelSpec, upstream: type[StaticLLMQuantRecipe]) -> type[StaticLLMQuantRecipe]:
    asked, kv_bits = spec.recipe, spec.kv_bits

    class NamedRecipe(upstream):  # type: ignore[misc]
        """The YAML's weights, or upstream's recipe; then the exceptions, then the KV cache."""

        default_quant_dtype = _DTYPES[asked.weights] if asked.weights else upstream.default_quant_dtype

        def __init__(self, verbose: bool = False) -> None:
            super().__init__(verbose)
            if asked.weights:
                self.recipe = _fresh(asked.weights, asked.block_size, verbose)
            if kv_bits == 16:
                _widen(self.recipe)
            for exception in asked.exceptions:
                _add(self.recipe, matching(exception, spec.params), exception.weights, exception.block_size)
            others = [each for each in self.recipe.custom_quant_annotations if each is not annotate_kv_8bit]
            self.recipe.custom_quant_annotations = [*others, kv_8bit] if kv_bits == 8 else others

        def get_kv_io_bit_width(self) -> int:
            return kv_bits

    return NamedRecipe


def _fresh(weights: Weights, block_size: int | None, verbose: bool) -> QuantRecipe:
    """16-bit activations, `weights` for every convolution, 8-bit weights for the output layer."""
    dtype = _DTYPES[weights]
    recipe = QuantRecipe(
        dtype, False, act_observer=MinMaxObserver, granularity=QuantGranularity.PER_TENSOR, verbose=verbose
    )
    recipe.add_node_target({torch.ops.aten.conv2d.default}, dtype, False, **_granularity(weights, block_size))
    _add(recipe, ("output",), "16a8w", None)
    return recipe


def _add(recipe: QuantRecipe, names: Iterable[str], weights: Weights, block_size: int | None) -> None:
    """Gives layers a strategy of their own; upstream asks the one added last first."""
    recipe.add_regex({_regex(name) for name in names}, _DTYPES[weights], False, **_granularity(weights, block_size))


def _regex(name: str) -> str:
    """Matches the convolution, and nothing else, that a linear layer has become in the exported graph.

    Seen there: `layers.0.attention.forward.__self__.wq_conv`, `output.conv`.
    """
    if name == "output":
        return r"^output\.conv$"
    parent, _, part = name.rpartition(".")
    return rf"^{re.escape(parent)}\.(?:.*\.)?{re.escape(part)}_conv$"


def _granularity(weights: Weights, block_size: int | None) -> dict[str, Any]:
    if weights != "lpbq":
        return {"act_observer": MinMaxObserver, "granularity": QuantGranularity.PER_CHANNEL}
    return {
        "act_observer": MinMaxObserver,
        "granularity": QuantGranularity.PER_BLOCK,
        "extra_kwargs": {"block_size": (1, block_size or BLOCK_SIZE, 1, 1)},
    }


def _widen(recipe: QuantRecipe) -> None:
    """Gives layers of upstream's with 8-bit activations 16-bit ones: what they write is a 16-bit KV cache now."""
    for strategy in list(recipe._strategies):
        if isinstance(strategy, ByNameRegex) and strategy.quant_dtype in _EIGHT_BIT:
            weights: Weights = "16a4w" if strategy.quant_dtype == QuantDtype.use_8a4w else "16a8w"
            recipe.add_regex(strategy.patterns, _DTYPES[weights], False, **_granularity(weights, None))


def kv_8bit(graph: torch.fx.GraphModule) -> None:
    """Upstream's `annotate_kv_8bit`, but keys are 16 bits wide until R3 has rotated them.

    Upstream's walks from the attention's matmul back to where the keys are made, and stops at the matmul that R3 once
    was. With QNN 2.47 or newer R3 is an op that it does not know: it goes on past it, and keys are rounded to 8 bits
    before the rotation that is there to make them fit.
    """
    found = ((node, node.meta.get(QCOM_QUANT_ANNOTATION_KEY)) for node in _ahead_of_r3(graph))
    # Copies: upstream writes into some of them.
    kept = [
        (node, dataclasses.replace(annotation, input_qspec_map=dict(annotation.input_qspec_map)))
        for node, annotation in found
        if annotation is not None
    ]
    annotate_kv_8bit(graph)
    for node, annotation in kept:
        node.meta[QCOM_QUANT_ANNOTATION_KEY] = annotation


def _ahead_of_r3(graph: torch.fx.GraphModule) -> Iterator[torch.fx.Node]:
    """The nodes between R3 and the convolution before it."""
    todo = [arg for node in graph.graph.nodes if _is_r3(node) for arg in node.all_input_nodes]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if node.op != "call_function":
            continue
        yield node
        if node.target is not torch.ops.aten.conv2d.default:
            new = [arg for arg in node.all_input_nodes if arg not in seen]
            seen.update(new)
            todo += new


def _is_r3(node: torch.fx.Node) -> bool:
    return str(node.target).startswith(_HADAMARD)
