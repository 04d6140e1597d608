"""LPBQ's block scales: as upstream's lowering rounds them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torchao.quantization.quant_primitives import dequantize_affine

from harness.build.lpbq import lowered_scales, round_block_scales


@given(st.lists(st.lists(st.floats(1e-6, 1e3), min_size=3, max_size=3), min_size=1, max_size=5))
def test_scales_are_whole_multiples_of_a_sixteenth_of_the_channels_largest(rows: list[list[float]]) -> None:
    scales = torch.tensor(rows)[:, :, None, None]
    found = lowered_scales(scales)
    assert found.shape == scales.shape
    steps = scales.amax(dim=1, keepdim=True) / 16
    multiples = found / steps
    assert torch.allclose(multiples, multiples.round(), atol=1e-4)
    assert float(multiples.min()) >= 0.9999
    assert torch.allclose(found.amax(dim=1), scales.amax(dim=1))
    # A block is off by half a step at most, but for those that were smaller than one.
    assert bool(((found - scales).abs() <= steps * 0.5001).logical_or(scales < steps).all())
    assert torch.allclose(lowered_scales(found), found)


class _Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.tensor([[[[7]], [[-7]]]], dtype=torch.int8))
        self.register_buffer("scale", torch.tensor([[[[1.0]], [[0.09]]]]))
        self.register_buffer("zero", torch.zeros(1, 2, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = dequantize_affine(self.codes, (1, 1, 1, 1), self.scale, self.zero, torch.int8, -7, 7)
        return torch.nn.functional.conv2d(x, weights)


def test_a_graph_computes_with_the_rounded_scales() -> None:
    x = torch.tensor([[[[1.0]], [[1.0]]]])
    graph = torch.export.export(_Layer(), (x,), strict=True).module()
    assert float(graph(x)) == torch.tensor(7 - 7 * 0.09)
    assert round_block_scales(graph) == 1
    assert float(graph(x)) == 7 - 7 / 16
