"""Faults of the build, planted in a build worker; and the artifacts that such workers make.

Most are in the phone's graphs alone: the reference that judges them is the sound build's. Those of a *reference* are
the other way round: the `.pte` is sound. Those in *both* make another model, of which only the float model can say that
quantisation went wrong, and nothing that the weights did.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults.fault import HYBRID, KV, Fault, Patch, PlantError, fault

if TYPE_CHECKING:  # this module is imported in runners, too, which do without
    from faults.cells import Place, Rack
    from harness.build.cache import Artifact
    from harness.matrix import Cell

WORKER = "harness.build.worker"
UPSTREAM = "harness.build.upstream"
LLAMA = "executorch.examples.qualcomm.oss_scripts.llama.model.static_llama"
WRAPPERS = "executorch.examples.qualcomm.oss_scripts.llama.wrappers.llm_wrappers"
ONE = (KV,)
_LIMIT_S = 3600.0


# Weights


def change_weights(patch: Patch, change: Callable[[dict[str, Any], Any], None]) -> None:
    """Changes a checkpoint after it is read; `change`: tensors by Meta's names, and the model."""

    @patch.around("harness.build.checkpoint", "load_state_dict")
    def load(original: Any, spec: Any, *rest: Any, **more: Any) -> Any:
        tensors = {name: tensor.clone() for name, tensor in original(spec, *rest, **more).items()}
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        change(tensors, spec)
        if all(bool((tensors[name] == old).all()) for name, old in before.items()):
            raise PlantError("no weight has changed")
        patch.strike()
        return tensors


def middle(spec: Any) -> str:
    """Prefix of the names of the middle layer's weights."""
    return f"layers.{spec.params.n_layers // 2}."


@fault("the sign of one weight is flipped", "build", modes=ONE)
def weight_sign(patch: Patch) -> None:
    def change(tensors: dict[str, Any], spec: Any) -> None:
        flat = tensors[middle(spec) + "attention.wo.weight"].view(-1)
        flat[flat.abs().argmax()] *= -1

    change_weights(patch, change)


@fault("the signs of one row of weights are flipped", "build", modes=ONE)
def row_of_signs(patch: Patch) -> None:
    def change(tensors: dict[str, Any], spec: Any) -> None:
        weight = tensors[middle(spec) + "feed_forward.w2.weight"]
        weight[weight.abs().sum(1).argmax()] *= -1

    change_weights(patch, change)


@fault("one head's weights are zero", "build", modes=ONE)
def head_of_zeros(patch: Patch) -> None:
    def change(tensors: dict[str, Any], spec: Any) -> None:
        width = spec.params.head_width
        tensors[middle(spec) + "attention.wo.weight"][:, width : 2 * width] = 0

    change_weights(patch, change)


@fault("one layer's w2 is not transposed", "build", modes=ONE)
def w2_not_transposed(patch: Patch) -> None:
    def change(tensors: dict[str, Any], spec: Any) -> None:
        weight = tensors[middle(spec) + "feed_forward.w2.weight"]
        weight.copy_(weight.t().contiguous().view(weight.shape))

    change_weights(patch, change)


@fault("the gate and the value of one layer's feed-forward are exchanged", "build", modes=ONE)
def gate_exchanged(patch: Patch) -> None:
    def change(tensors: dict[str, Any], spec: Any) -> None:
        names = [middle(spec) + f"feed_forward.{name}.weight" for name in ("w1", "w3")]
        tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]

    change_weights(patch, change)


@fault("two layers' weights are exchanged", "build", modes=ONE)
def layers_of_weights_exchanged(patch: Patch) -> None:
    def change(tensors: dict[str, Any], spec: Any) -> None:
        last = spec.params.n_layers - 1
        for name in [name for name in tensors if name.startswith("layers.0.")]:
            other = name.replace("layers.0.", f"layers.{last}.")
            if other in tensors and tensors[other].shape == tensors[name].shape:
                tensors[name], tensors[other] = tensors[other], tensors[name]

    change_weights(patch, change)


@fault("one layer's queries and keys have RoPE's pairs in the other order", "build", modes=ONE)
def rope_pairs(patch: Patch) -> None:
    def change(tensors: dict[str, Any], spec: Any) -> None:
        width = spec.params.head_width
        for name in ("wq", "wk"):
            weight = tensors[middle(spec) + f"attention.{name}.weight"]
            heads = weight.shape[0] // width
            moved = weight.view(heads, width // 2, 2, -1).transpose(1, 2).reshape(weight.shape)
            weight.copy_(moved)

    change_weights(patch, change)


@fault("one layer's norm has no weights", "build", modes=ONE)
def norm_of_ones(patch: Patch) -> None:
    def change(tensors: dict[str, Any], spec: Any) -> None:
        weight = tensors[middle(spec) + "attention_norm.weight"]
        weight.fill_(float(weight.mean()))

    change_weights(patch, change)


@fault("weights have noise of 3%", "build", modes=ONE)
def weights_noisy(patch: Patch) -> None:
    change_weights(patch, lambda tensors, _spec: add_noise(tensors, 0.03))


@fault("the weights are another model's of the same sizes", "build", modes=ONE)
def weights_of_another_model(patch: Patch) -> None:
    change_weights(patch, lambda tensors, _spec: add_noise(tensors, 0.5))


def add_noise(tensors: dict[str, Any], share: float) -> None:
    """To every matrix, of a share of its own size; the same each time."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for name in sorted(tensors):
        if tensors[name].dim() == 2 and name.startswith("layers."):
            noise = torch.randn(tensors[name].shape, generator=generator).to(tensors[name].dtype)
            tensors[name] += noise * tensors[name].std() * share


# Sizes and the graph


def change_params(patch: Patch, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes what upstream is told of the architecture."""

    @patch.around("harness.toolchain.mends", "write_params")
    def write(original: Any, params: Mapping[str, Any], *rest: Any) -> Any:
        other = dict(params)
        change(other)
        if other == dict(params):
            raise PlantError("no parameter has changed")
        patch.strike()
        return original(other, *rest)


@fault("RoPE's base is 50 times as large", "build", modes=ONE)
def rope_base(patch: Patch) -> None:
    change_params(patch, lambda params: params.update(rope_theta=params["rope_theta"] * 50))


@fault("RoPE's base is 2% larger", "build", modes=ONE)
def rope_base_slightly(patch: Patch) -> None:
    change_params(patch, lambda params: params.update(rope_theta=params["rope_theta"] * 1.02))


@fault("the norms' epsilon is 0.01", "build", modes=ONE)
def norm_epsilon(patch: Patch) -> None:
    change_params(patch, lambda params: params.update(norm_eps=1e-2))


@fault("one layer's residual is dropped", "build", modes=ONE)
def residual_dropped(patch: Patch) -> None:
    @patch.around(LLAMA, "LlamaDecoderLayer.__init__")
    def init(original: Any, layer: Any, layer_idx: int, config: Any, *rest: Any, **more: Any) -> None:
        original(layer, layer_idx, config, *rest, **more)
        layer.drops = layer_idx == config.n_layers // 2

    @patch.around(LLAMA, "LlamaDecoderLayer.forward")
    def forward(original: Any, layer: Any, x: Any, *rest: Any, **more: Any) -> Any:
        output, *caches = original(layer, x, *rest, **more)
        return (output - x if layer.drops else output, *caches)

    patch.strike()


# Encodings


def change_graph(patch: Patch, change: Callable[[Any], int], graph: str = "") -> None:
    """Changes a quantised graph just before it is exported; `change` says how much it has changed."""

    @patch.around(UPSTREAM, "to_edge")
    def to_edge(original: Any, decoder: Any, name: str, *rest: Any, **more: Any) -> Any:
        if graph in ("", name):
            if not change(decoder.decoder):
                raise PlantError(f"{name} has nothing of what was to be changed")
            decoder.decoder.recompile()
            patch.strike()
        return original(decoder, name, *rest, **more)


def per_tensor(module: Any) -> list[Any]:
    """Nodes that quantise or dequantise an activation, in order."""
    return [n for n in module.graph.nodes if n.op == "call_function" and "quantize_per_tensor" in str(n.target)]


def quantisers(module: Any) -> list[Any]:
    """Those of `per_tensor` that quantise."""
    return [node for node in per_tensor(module) if "dequantize" not in str(node.target)]


def reencode(node: Any, scale: float, zero_point: Any = None) -> None:
    """Gives a quantiser, and all that undo it, another scale."""
    for one in (node, *(user for user in node.users if user in per_tensor(node.graph.owning_module))):
        rest = one.args[3:]
        one.args = (one.args[0], scale, one.args[2] if zero_point is None else zero_point, *rest)


@fault("the scale of one activation is half of what it should be", "build", modes=ONE)
def activation_scale(patch: Patch) -> None:
    change_graph(patch, halve_one_scale)


def halve_one_scale(module: Any) -> int:
    """Of the activation in the middle of the graph: its larger values saturate."""
    found = quantisers(module)
    node = found[len(found) // 2]
    reencode(node, node.args[1] / 2)
    return 1


@fault("activations of two layers have each other's encodings", "build", modes=ONE)
def encodings_of_another_layer(patch: Patch) -> None:
    def change(module: Any) -> int:
        layers: dict[str, list[Any]] = {"0": [], "1": []}
        for node in quantisers(module):
            stack = str(node.args[0].meta.get("nn_module_stack", "")) if hasattr(node.args[0], "meta") else ""
            for number, nodes in layers.items():
                if f"layers.{number}" in stack or f"layers_{number}" in stack or f"layers[{number}]" in stack:
                    nodes.append(node)
        pairs = [(a, b) for a, b in zip(*layers.values(), strict=False) if str(a.target) == str(b.target)]
        pairs = [(a, b) for a, b in pairs if a.args[3:] == b.args[3:]]
        for a, b in pairs:
            first, second = a.args[1:3], b.args[1:3]
            reencode(a, *second)
            reencode(b, *first)
        return len(pairs)

    change_graph(patch, change)


@fault("the KV cache is read with a scale 10% too large", "build", modes=ONE)
def kv_encodings(patch: Patch) -> None:
    def change(module: Any) -> int:
        # Caches are the inputs of which there is one a layer, of the same shape.
        inputs = [(n, tuple(n.meta["val"].shape)) for n in module.graph.nodes if n.op == "placeholder"]
        shapes = [shape for _, shape in inputs]
        count = 0
        for node in [node for node, shape in inputs if shapes.count(shape) > 2]:
            for user in [user for user in node.users if user in quantisers(module)]:
                count += 1
                reencode(user, user.args[1] * 1.1)
        return count

    change_graph(patch, change)


def weight_scales(module: Any) -> list[Any]:
    """Tensors of scales of quantised weights, by channel or by block, in order."""
    names: dict[str, Any] = {}
    for node in module.graph.nodes:
        if node.op == "call_function" and ("dequantize_per_channel" in str(node.target) or _affine(node)):
            place = node.args[1] if "per_channel" in str(node.target) else node.args[2]
            names.setdefault(str(place.target), place)
    found = []
    for name in names:
        tensor = module
        for part in name.split("."):
            tensor = getattr(tensor, part)
        found.append(tensor)
    return found


def _affine(node: Any) -> bool:
    return "dequantize_affine" in str(node.target)


def scale_weights(factor: float, channels: slice) -> Callable[[Any], int]:
    """Changes the scales of some channels of the weights in the middle."""

    def change(module: Any) -> int:
        import torch

        scales = weight_scales(module)
        if not scales:
            return 0
        with torch.no_grad():
            scales[len(scales) // 2][channels] *= factor
        return 1

    return change


@fault("the scales of one layer's weights are 5% too large", "build", modes=ONE)
def weight_scale(patch: Patch) -> None:
    change_graph(patch, scale_weights(1.05, slice(None)))


@fault("the scale of one channel of weights is twice as large", "build", modes=ONE)
def weight_scale_of_a_channel(patch: Patch) -> None:
    change_graph(patch, scale_weights(2.0, slice(3, 4)))


@fault("in prefill's graph alone, the scales of one layer's weights are 10% too large", "build", modes=(HYBRID,))
def weight_scale_in_prefill(patch: Patch) -> None:
    change_graph(patch, scale_weights(1.1, slice(None)), "prefill_forward")


@fault("LPBQ's blocks are off by one in every layer", "build", modes=ONE, needs="lpbq")
def lpbq_blocks_off(patch: Patch) -> None:
    def change(module: Any) -> int:
        import torch

        count = 0
        for scales in weight_scales(module):
            if scales.dim() > 1 and scales.shape[1] > 1:
                count += 1
                with torch.no_grad():
                    scales.copy_(torch.roll(scales, 1, dims=1))
        return count

    change_graph(patch, change)


@fault("the scale that the .pte names for its logits is 2% too large", "build", modes=ONE)
def logits_scale_said(patch: Patch) -> None:
    @patch.around(UPSTREAM, "lower")
    def lower(original: Any, graphs: Any, metadata: dict[str, Any], *rest: Any, **more: Any) -> Any:
        if "get_logits_scale" not in metadata:
            raise PlantError("the metadata name no scale of logits")
        patch.strike()
        scale = metadata["get_logits_scale"] * 1.02
        return original(graphs, {**metadata, "get_logits_scale": scale}, *rest, **more)


def calibrate_with(patch: Patch, change: Callable[[list[list[int]]], list[list[int]]]) -> None:
    """Calibrates with another text."""

    @patch.around("harness.build.score", "prepare_text")
    def prepare(original: Any, *arguments: Any, **more: Any) -> Any:
        text = original(*arguments, **more)
        patch.strike()
        return replace(text, calibration=change(text.calibration))


@fault("calibrated with one token over and over", "build", modes=ONE)
def calibrated_with_one_token(patch: Patch) -> None:
    calibrate_with(patch, lambda texts: [[text[min(5, len(text) - 1)]] * len(text) for text in texts])


@fault("calibrated with the text backwards", "build", modes=ONE)
def calibrated_backwards(patch: Patch) -> None:
    calibrate_with(patch, lambda texts: [text[::-1] for text in texts])


# The reference, while the .pte is sound


@fault("the reference is of other weights: stale", "build", modes=ONE, reference=True)
def reference_of_other_weights(patch: Patch) -> None:
    weights_noisy(patch)


@fault("the reference is of another recipe", "build", modes=ONE, reference=True)
def reference_of_another_recipe(patch: Patch) -> None:
    @patch.around("harness.models", "load_model")
    def load(original: Any, *arguments: Any, **more: Any) -> Any:
        spec = original(*arguments, **more)
        patch.strike()
        other = "16a8w" if spec.recipe.weights != "16a8w" else "16a4w"
        return replace(spec, recipe=spec.recipe.model_copy(update={"weights": other, "block_size": None}))


@fault("the reference was calibrated with one token over and over", "build", modes=ONE, reference=True)
def reference_calibrated_otherwise(patch: Patch) -> None:
    calibrated_with_one_token(patch)


# The phone's graphs and the reference alike


@fault("an activation's scale is halved before all graphs get it", "build", modes=ONE, both=True)
def scale_in_both(patch: Patch) -> None:
    first = True

    @patch.around(WRAPPERS, "HybridTextDecoder._encoding_override")
    def override(original: Any, decoders: Any, quantised: Any, *rest: Any, **more: Any) -> Any:
        nonlocal first
        if first:
            first = False
            halve_one_scale(quantised)
            quantised.recompile()
            patch.strike()
        return original(decoders, quantised, *rest, **more)


@fault("one head's weights are zero in all graphs", "build", modes=ONE, both=True)
def head_in_both(patch: Patch) -> None:
    head_of_zeros(patch)


@fault("RoPE's base is 50 times as large in all graphs", "build", modes=ONE, both=True)
def rope_base_in_both(patch: Patch) -> None:
    rope_base(patch)


# Artifacts


@dataclass
class Builds:
    """Faulty artifacts, each made once and kept in the folder that the rack works in."""

    rack: Rack

    def faulty(self, wanted: Fault, place: Place) -> Artifact:
        """The artifact that a build with the fault makes.

        Raises:
            PlantError: the build failed: the fault was not planted, or no graph can be compiled with it.
        """
        cell, sound = self.rack.stored(place)
        _, kept = self.rack.stored(replace(place, module=True))
        folder = self.rack.work / "builds" / f"{kept.folder.name}-{wanted.name}"
        own = folder / "reference"
        if not (folder / "model.pte").is_file():
            self._build(wanted, cell, kept, folder, own if wanted.reference or wanted.both else kept.reference)
        pte = sound.pte if wanted.reference else folder / "model.pte"
        reference = sound.reference
        if wanted.reference or wanted.both:
            reference = own if place.module else self.rack.without_module(own)
        return replace(sound, key=f"planted-{wanted.name}", pte=pte, reference=reference)

    def change_of_reference(self, wanted: Fault, place: Place) -> float:
        """How far a faulty reference's perplexity under QDQ is from the sound one's."""
        from harness.build.reference import load_reference

        other = load_reference(self.faulty(wanted, place).reference)
        sound = load_reference(self.rack.stored(place)[1].reference)
        count = len(sound.qdq_each)
        return math.expm1((sum(sound.qdq_each) - sum(other.qdq_each)) / count)

    def _build(self, wanted: Fault, cell: Cell, sound: Artifact, folder: Path, reference: Path) -> None:
        from faults.cells import runner_environment
        from harness.build.calibration import MODELS_OWN
        from harness.build.job import BuildJob, Output
        from harness.target import Target
        from harness.toolchain.environment import find_toolchain

        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        logs = folder.with_name(f"{folder.name}-logs")
        logs.mkdir(exist_ok=True)
        scratch = folder.with_name(f"{folder.name}-new")
        shutil.rmtree(scratch, ignore_errors=True)
        if reference == folder / "reference":
            reference = scratch.with_name(f"{folder.name}-reference")
            shutil.rmtree(reference, ignore_errors=True)
        output = Output(cell.mode, cell.soc.name, Target.SIM, wanted.name, scratch, sound.fingerprint)
        job = BuildJob(
            Path(cell.model.file), cell.lengths, MODELS_OWN, (output,), reference, parallel=1, threads=1, failures=logs
        )
        file = logs / "job.json"
        file.write_text(job.to_json())
        environment = find_toolchain().environment()
        environment["PYTHONPATH"] = os.pathsep.join(
            [runner_environment()["PYTHONPATH"], environment.get("PYTHONPATH", "")]
        )
        environment |= {"HTPFARM_FAULT": wanted.name, "HTPFARM_TAP": str(logs), "OMP_WAIT_POLICY": "passive"}
        with (logs / "log.txt").open("wb") as log:
            command = [str(find_toolchain().python), "-m", "faults.build_worker", str(file)]
            done = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=_LIMIT_S, check=False)
        if done.returncode or not (logs / "struck").exists() or not (scratch / "model.pte").is_file():
            raise PlantError(f"{wanted.name} was not built (exit status {done.returncode}): see {logs}/log.txt")
        if reference != sound.reference:
            reference.rename(scratch / "reference")
        scratch.rename(folder)

    def others(self, wanted: Fault, place: Place) -> dict[str, str]:
        """What faults of the phone put in a file's place."""
        from faults.fault import CATALOG

        found: dict[str, str] = {}
        if wanted.name == "pte_of_another_model":
            found["HTPFARM_FAULT_OTHER_MODEL"] = str(self._other(CATALOG.faults["weights_of_another_model"], place))
        if wanted.name == "pte_of_another_mode":
            other = {"kv": "lookahead", "hybrid": "kv", "lookahead": "hybrid"}[place.mode]
            found["HTPFARM_FAULT_OTHER_MODE"] = str(self.rack.artifact(place.model, other).pte)
        if wanted.name == "pte_of_another_soc":
            found["HTPFARM_FAULT_OTHER_SOC"] = str(self.rack.artifact(place.model, place.mode, "SM8550").pte)
        if wanted.name == "tokenizer_of_another_model":
            found["HTPFARM_FAULT_OTHER_TOKENIZER"] = str(self.rack.other_tokenizer(place.model))
        return found

    def _other(self, wanted: Fault, place: Place) -> Path:
        return self.faulty(wanted, place).pte
