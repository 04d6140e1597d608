"""The gates' minimal graphs, quantised by ExecuTorch's own quantizer: with the feature, and the control without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from executorch.backends.qualcomm.quantizer.custom_annotation import annotate_kv_8bit
from executorch.backends.qualcomm.quantizer.quantizer import QnnQuantizer, QuantDtype
from executorch.backends.qualcomm.serialization.qc_schema import QnnExecuTorchBackendType, _soc_info_table
from executorch.backends.qualcomm.utils.utils import get_soc_to_chipset_map
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from harness.gates import FAULTY_ROWS
from harness.target import Target

DIM, HEADS, TOKENS = 64, 2, 8
BLOCK = 32
"""Input channels a block: upstream's most frequent size."""


@dataclass(frozen=True)
class Graph:
    """A quantised graph, or two that share weights, ready to be lowered.

    Attributes:
        modules: by method name.
        inputs: example inputs by method name.
        target: whose compile options it is lowered with.
        refused: chipsets for which ExecuTorch's quantizer has a rule against it; empty: it has no such rule.
        loads: whether the `.pte` is loaded in the simulator afterwards.
        runs: whether it is run there too, and held against the quantised graph in torch.
    """

    modules: Mapping[str, torch.nn.Module]
    inputs: Mapping[str, tuple[torch.Tensor, ...]]
    target: Target
    refused: frozenset[str] = field(default_factory=frozenset)
    loads: bool = False
    runs: bool = False


class _Pointwise(nn.Module):
    """A linear layer as upstream's model has it: a 1x1 convolution [1, C, 1, N] → [1, C, 1, N]."""

    def __init__(self, channels: int = DIM) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.proj(x)
        return result


class _Attend(nn.Module):
    """Queries [1, N, H, D] times keys: the cache's [1, H, D, C] and the new ones [1, H, D, N]."""

    def forward(self, queries: torch.Tensor, past: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return torch.matmul(queries.transpose(1, 2), torch.cat([past, new], dim=-1))


class _MaskedSoftmax(nn.Module):
    """What upstream's attention does when masked softmax is on: blocked columns fall 20 below the least score."""

    def forward(self, mask: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        least = torch.amin(scores, dim=-1, keepdim=True)
        return torch.softmax(torch.where(mask == 0, scores, least - 20), dim=-1)


class _AddedMask(nn.Module):
    """What it does else."""

    def forward(self, mask: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.softmax(scores + mask, dim=-1)


class _Rotate(nn.Module):
    """A matmul with a constant [D, D]: a normalised Hadamard matrix (Sylvester's), or another orthogonal one."""

    weight: torch.Tensor

    def __init__(self, hadamard: bool) -> None:
        super().__init__()
        matrix = torch.ones(1, 1)
        while matrix.shape[0] < DIM:
            matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
        matrix = matrix / DIM**0.5
        self.register_buffer("weight", matrix if hadamard else torch.linalg.qr(torch.randn(DIM, DIM)).Q)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.matmul(x, self.weight)


class _Cap(nn.Module):
    """Capped logits, as upstream's model has them for gemma2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / 30.0) * 30.0


class _Embed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(32, DIM)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.table(tokens)
        return result


class _RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(DIM, eps=1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm(x)
        return result


class _LayerNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm(x)
        return result


class _Asked(QnnQuantizer):  # type: ignore[misc]
    """ExecuTorch's quantizer, asked for every chipset what its rules say of the annotated graph.

    Its own `validate` asks them only where Qualcomm's op-info library is installed, for one chipset, and raises.
    """

    def __init__(self) -> None:
        super().__init__(backend=QnnExecuTorchBackendType.kHtpBackend)
        self.refused: set[str] = set()

    def validate(self, model: torch.fx.GraphModule) -> None:
        rules = [(node, self._rules_map[node.target]) for node in model.graph.nodes if node.target in self._rules_map]
        for name, chipset in get_soc_to_chipset_map().items():
            info = _soc_info_table.get(chipset)
            if info and not all(rule.validate_fn(node, [], info) for node, rule in rules):
                self.refused.add(name)


def _quantise(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    dtype: QuantDtype,
    *,
    blocks: Mapping[str, tuple[int, ...]] | None = None,
    annotations: tuple[Callable[[torch.fx.GraphModule], None], ...] = (),
    embedding_per_channel: bool = False,
) -> tuple[torch.nn.Module, frozenset[str]]:
    """The graph quantised post training, its example the calibration; and the chipsets that rules forbid it for."""
    quantizer = _Asked()
    quantizer.set_default_quant_config(
        dtype,
        is_qat=False,
        is_conv_per_channel=True,
        is_linear_per_channel=True,
        is_embedding_per_channel=embedding_per_channel,
    )
    quantizer.add_custom_quant_annotations(annotations)
    if blocks:
        quantizer.set_block_size_map(dict(blocks))
    prepared = prepare_pt2e(torch.export.export(module.eval(), inputs, strict=True).module(), quantizer)
    prepared(*inputs)
    return convert_pt2e(prepared), frozenset(quantizer.refused)


def _single(module: nn.Module, inputs: tuple[torch.Tensor, ...], dtype: QuantDtype, **more: Any) -> Graph:
    quantised, refused = _quantise(module, inputs, dtype, **more)
    return Graph({"forward": quantised}, {"forward": inputs}, Target.SIM, refused)


def _capped(rows: int) -> Graph:
    return replace(_single(_Cap(), (20 * torch.randn(1, rows, DIM),), QuantDtype.use_16a8w), runs=True)


def _two_lengths(target: Target, *, loads: bool) -> Graph:
    """One layer for one token and for a block of them, as decode and prefill are."""
    layer = _Pointwise(8 * DIM)
    inputs = {"kv_forward": (torch.randn(1, 8 * DIM, 1, 1),), "prefill_forward": (torch.randn(1, 8 * DIM, 1, TOKENS),)}
    modules = {name: _quantise(layer, each, QuantDtype.use_16a8w)[0] for name, each in inputs.items()}
    return Graph(modules, inputs, target, loads=loads)


def _mask() -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.zeros(1, 1, 1, DIM)
    mask[..., DIM // 2 :] = -65535.0
    return mask, torch.randn(1, HEADS, 1, DIM)


def _heads() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    past, new = torch.randn(1, HEADS, DIM, 3 * TOKENS), torch.randn(1, HEADS, DIM, TOKENS)
    return torch.randn(1, TOKENS, HEADS, DIM), past, new


def _rows() -> tuple[torch.Tensor]:
    return (torch.randn(1, TOKENS, DIM),)


def _pixels() -> tuple[torch.Tensor]:
    return (torch.randn(1, DIM, 1, TOKENS),)


def _tokens() -> tuple[torch.Tensor]:
    return (torch.arange(TOKENS, dtype=torch.int32)[None],)


_BLOCKS = {"conv2d": (1, BLOCK, 1, 1)}
_16A4W, _16A8W = QuantDtype.use_16a4w, QuantDtype.use_16a8w

GRAPHS: Mapping[str, tuple[Callable[[], Graph], Callable[[], Graph]]] = {
    "lpbq": (
        lambda: _single(_Pointwise(), _pixels(), QuantDtype.use_16a4w_block, blocks=_BLOCKS),
        lambda: _single(_Pointwise(), _pixels(), _16A4W),
    ),
    "kv16": (
        # Upstream's annotator makes the second input of a 16-bit matmul 16 bits wide.
        lambda: _single(_Attend(), _heads(), _16A4W),
        lambda: _single(_Attend(), _heads(), _16A4W, annotations=(annotate_kv_8bit,)),
    ),
    "layernorm": (
        lambda: _single(_LayerNorm(), _rows(), _16A4W),
        lambda: _single(_RmsNorm(), _rows(), _16A4W),
    ),
    "weight_sharing": (
        lambda: _two_lengths(Target.ANDROID, loads=False),
        lambda: _two_lengths(Target.SIM, loads=False),
    ),
    "masked_softmax": (
        lambda: _single(_MaskedSoftmax(), _mask(), _16A8W),
        lambda: _single(_AddedMask(), _mask(), _16A8W),
    ),
    "hadamard": (
        lambda: _single(_Rotate(hadamard=True), _rows(), _16A8W),
        lambda: _single(_Rotate(hadamard=False), _rows(), QuantDtype.use_8a8w),
    ),
    "embedding": (
        lambda: _single(_Embed(), _tokens(), _16A8W, embedding_per_channel=True),
        lambda: _single(_Embed(), _tokens(), _16A8W),
    ),
    "softcap16": (
        lambda: _capped(FAULTY_ROWS),
        lambda: _capped(FAULTY_ROWS + 1),
    ),
    "simulator": (
        lambda: _two_lengths(Target.ANDROID, loads=True),
        lambda: _two_lengths(Target.SIM, loads=True),
    ),
}
"""Gate → the graph with its feature, and the control. Seed before calling: weights and inputs are random."""

MUST_DELEGATE = {"hadamard": "qnn_custom.hadamard_transform.default"}
"""Gate → an op that must be among the delegated ones: without it something else was compiled in the feature's place."""
