"""Attention masks of the Smart Mask scheme. Pure; numpy arrays of [AR,CL].

Row i is the i-th token of this step. Columns [0, CL−AR) are the cache, the last AR columns are this step's own tokens:
the cache never moves, the mask says which of its columns are valid. Algorithm: `masking_utils.py` and
`runner/kv_manager.cpp` of ExecuTorch's `examples/qualcomm/oss_scripts/llama`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


def mask_values(dtype: str) -> tuple[float, float]:
    """(attend, block) as the graph's quantised or float mask input wants them."""
    match dtype:
        case "uint16":
            return 65535, 0
        case "uint8":
            return 255, 0
        case "float16":
            return 0.0, -65504.0  # −65535 is not finite in half precision
        case "float32":
            return 0.0, -65535.0
        case _:
            raise ValueError(f"no graph has a mask of {dtype}")


def causal_map(ar_len: int) -> tuple[int, ...]:
    """Each row follows the one before it: [−1, 0, …, AR−2]."""
    return tuple(range(-1, ar_len - 1))


def init_mask(
    ar_len: int,
    context_len: int,
    n_past: int,
    dtype: str,
    attention_map: Sequence[int] | None = None,
    window: int | None = None,
    offsets: Sequence[int] | None = None,
) -> Array:
    """The mask of a step that follows `n_past` cached tokens.

    Args:
        ar_len, context_len: AR and CL.
        n_past: valid cache columns, at most CL−AR.
        dtype: of the graph's mask input.
        attention_map: for each row the row it follows, which must come before it, or −1 for the cache alone;
            default `causal_map`. Rows beyond its end attend to nothing but themselves.
        window: width of a sliding window; None for full attention.
        offsets: each row's position − n_past, for the window; default the row's number.
    """
    parents = causal_map(ar_len) if attention_map is None else tuple(attention_map)
    if not 0 <= n_past <= context_len - ar_len:
        raise ValueError(f"n_past {n_past} does not fit a cache of {context_len} − {ar_len} tokens")
    if len(parents) > ar_len or any(not -1 <= parent < row for row, parent in enumerate(parents)):
        raise ValueError(f"attention map {list(parents)}: each row must follow an earlier one or −1, {ar_len} at most")
    attend, block = mask_values(dtype)
    mask = np.full((ar_len, context_len), block, dtype=dtype)
    own = context_len - ar_len
    for row in range(ar_len):
        parent = parents[row] if row < len(parents) else None
        if parent is not None:
            if parent < 0:
                mask[row, :n_past] = attend
            else:
                mask[row] = mask[parent]
        mask[row, own + row] = attend
        if window is not None:
            places = range(ar_len) if offsets is None else offsets
            _cut(mask[row], n_past + places[row] + 1 - window, own, block)
            for earlier in range(row):
                # As masking_utils.py does; kv_manager.cpp leaves these open, which matters for a window below AR alone.
                if places[row] - places[earlier] >= window:
                    mask[row, own + earlier] = block
    return mask


def update_mask(
    mask: Array,
    n_past: int,
    n_update: int,
    window: int | None = None,
    offsets: Sequence[int] | None = None,
) -> None:
    """Makes the columns of `n_update` newly cached tokens valid for all rows, in place; arguments as in `init_mask`."""
    ar_len, context_len = mask.shape
    attend, block = mask_values(str(mask.dtype))
    mask[:, n_past : n_past + n_update] = attend
    if window is not None:
        for row in range(ar_len):
            offset = row if offsets is None else offsets[row]
            _cut(mask[row], n_past + n_update + offset + 1 - window, context_len - ar_len, block)


def _cut(row: Array, count: int, limit: int, block: float) -> None:
    """Blocks the first `count` columns, which a sliding window has left; never this step's own columns."""
    if count > 0:
        row[: min(count, limit)] = block
