"""Block scales of LPBQ as the HTP has them: 4 bits each, times one float a channel.

Upstream's converted graph keeps a float scale for every block, and rounds it only on the way to QNN
(`backends/qualcomm/builders/node_visitor.py`, make_qnn_per_block_config, ExecuTorch 1.5.1). A QDQ reference that
does not is another function than the one that is compiled: a twin's logits on the phone were 23 dB from it.
"""

from __future__ import annotations

from functools import reduce

import torch

_STEPS = 16
_DEQUANTISE = torch.ops.torchao.dequantize_affine  # registered by torchao, which upstream imports


def lowered_scales(scales: torch.Tensor) -> torch.Tensor:
    """Scales [channels, blocks, …] as they are lowered: whole multiples, 1 to 16, of a channel's largest over 16."""
    flat = scales.reshape(scales.shape[0], -1)
    step = flat.amax(dim=-1, keepdim=True) / _STEPS
    return (torch.clamp(torch.round(flat / step), 1, _STEPS) * step).reshape(scales.shape)


def round_block_scales(module: torch.fx.GraphModule) -> int:
    """Gives a converted graph the block scales that it will be lowered with, in place; returns how many layers had any.

    The weights' codes stay: they are folded already, as they are when the graph is lowered.
    """
    names = {
        node.args[2].target
        for node in module.graph.nodes
        if node.op == "call_function" and node.target in (_DEQUANTISE, _DEQUANTISE.default)
    }
    for name in sorted(names):
        scales = reduce(getattr, name.split("."), module)
        assert isinstance(scales, torch.Tensor)
        with torch.no_grad():
            scales.copy_(lowered_scales(scales))
    return len(names)
