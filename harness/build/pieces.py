"""Tensors as files have them → pieces in Meta's naming: renamed, cut apart or put together, still unread.

A piece knows its shape and where it comes from, so that a checkpoint can be refused before any of it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from harness.build.families import BUFFERS, Family, parts_of
from harness.build.stored import Stored
from harness.model_file import Params

_META_PREFIX = "_orig_mod."  # torch.compile's, in llama2.c's checkpoints


@dataclass(frozen=True)
class Piece:
    """One tensor that the static Llama loads.

    Attributes:
        name: in Meta's naming.
        origin: the stored tensor, as `name in file`.
        shape: its dimensions.
        load: gives it, in the file's dtype.
    """

    name: str
    origin: str
    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Renamed:
    """A checkpoint's pieces by their name, and the stored tensors that no model of the family has."""

    pieces: Mapping[str, Piece]
    surplus: tuple[str, ...]


def from_hugging_face(
    stored: Mapping[str, Stored], family: Family, params: Params, qkv_blocks: int | None = None
) -> Renamed:
    """Hugging Face's tensors in Meta's naming.

    Args:
        stored: by name.
        family: whose names they have.
        params: sizes by which fused tensors are cut; where they do not fit, the pieces' shapes will not either.
        qkv_blocks: for a tensor fused in blocks, how many.
    """
    pieces: dict[str, Piece] = {}
    surplus = []
    for tensor in sorted(stored.values(), key=lambda tensor: tensor.name):
        found = _hugging_face_pieces(tensor, family, params, qkv_blocks)
        if found is None:
            surplus.append(str(tensor))
        else:
            pieces.update((piece.name, piece) for piece in found)
    return Renamed(pieces, tuple(surplus))


def hugging_face_name(name: str, family: Family) -> str:
    """What Hugging Face calls the tensor that holds a piece; the piece's own name if the family has none."""
    stem, _, kind = name.rpartition(".")
    for theirs, ours in family.top.items():
        if stem == ours:
            return f"{theirs}.{kind}"
    number, _, part = stem.removeprefix("layers.").partition(".")
    names = {ours: theirs for theirs, ours in family.names.items()}
    names |= {ours: theirs for theirs, fused in family.fused.items() for ours in parts_of(fused)}
    return f"{family.layer}{number}.{names[part]}.{kind}" if part in names else name


def _hugging_face_pieces(
    tensor: Stored, family: Family, params: Params, qkv_blocks: int | None
) -> Iterable[Piece] | None:
    """The pieces that a stored tensor holds; none for a constant that is no weight; None for one that is unknown."""
    name = tensor.name
    if name.endswith(BUFFERS):
        return ()
    stem, _, kind = name.rpartition(".")
    if stem in family.top:
        return (_whole(tensor, f"{family.top[stem]}.{kind}"),)
    number, _, part = stem.removeprefix(family.layer).partition(".")
    if not stem.startswith(family.layer) or not number.isdigit():
        return None
    at = f"layers.{int(number)}."
    if part in family.names:
        return (_whole(tensor, f"{at}{family.names[part]}.{kind}"),)
    if part in family.fused:
        fused = family.fused[part]
        names = [f"{at}{ours}.{kind}" for ours in parts_of(fused)]
        if fused == "qkv_blocks":
            return _blocks(tensor, names, qkv_blocks or 1)
        query, key = params.n_heads * params.head_width, params.n_kv_heads * params.head_width
        return _cut(tensor, names, (query, key, key) if fused == "qkv" else (params.ffn_width, params.ffn_width))
    return None


def _whole(tensor: Stored, name: str) -> Piece:
    return Piece(name, str(tensor), tensor.shape, tensor.load)


def _cut(tensor: Stored, names: Sequence[str], rows: Sequence[int]) -> list[Piece]:
    """Consecutive rows; the last piece takes what is left, so that a wrong total shows in its shape."""
    pieces, start = [], 0
    for name, count in zip(names, rows, strict=True):
        end = tensor.shape[0] if name == names[-1] else start + count
        shape = (max(end - start, 0), *tensor.shape[1:])
        pieces.append(Piece(name, str(tensor), shape, _rows(tensor, start, end)))
        start = end
    return pieces


def _rows(tensor: Stored, start: int, end: int) -> Callable[[], torch.Tensor]:
    return lambda: tensor.load()[start:end]


def _blocks(tensor: Stored, names: Sequence[str], blocks: int) -> list[Piece]:
    """Rows [blocks × names × rest]: each block holds a part of each of them."""
    rows, *rest = tensor.shape
    if rows % (blocks * len(names)):
        return [Piece(name, str(tensor), (rows, *rest), tensor.load) for name in names]
    each = rows // len(names)

    def part(index: int) -> Callable[[], torch.Tensor]:
        return lambda: tensor.load().view(blocks, len(names), -1, *rest)[:, index].reshape(each, *rest)

    return [Piece(name, str(tensor), (each, *rest), part(index)) for index, name in enumerate(names)]


def from_meta(files: Sequence[Mapping[str, Stored]], expected: Mapping[str, tuple[int, ...]]) -> Renamed:
    """Tensors in Meta's naming, whose files may each hold a part of every tensor (model parallel).

    Args:
        files: one mapping of names for each file, in order.
        expected: names and shapes, which say along which dimension parts are to be put together.
    """
    parts: dict[str, list[Stored]] = {}
    for file in files:
        for name, tensor in file.items():
            parts.setdefault(name.replace(_META_PREFIX, ""), []).append(tensor)
    surplus = [
        str(tensors[0]) for name, tensors in parts.items() if name not in expected and not name.endswith(BUFFERS)
    ]
    pieces = {name: _together(name, tensors, expected[name]) for name, tensors in parts.items() if name in expected}
    return Renamed(pieces, tuple(surplus))


def _together(name: str, tensors: Sequence[Stored], expected: tuple[int, ...]) -> Piece:
    first = tensors[0]
    if len(tensors) == 1 or first.shape == expected:  # norms are in every file
        return _whole(first, name)
    origin = f"{first.name} in {first.file.name} and {len(tensors) - 1} more"
    for dim in range(len(first.shape)):
        if all(len(t.shape) == len(first.shape) for t in tensors):
            shape = (*first.shape[:dim], sum(t.shape[dim] for t in tensors), *first.shape[dim + 1 :])
            if shape == expected:
                return Piece(name, origin, shape, _joined(tensors, dim))
    return Piece(name, origin, first.shape, first.load)


def _joined(tensors: Sequence[Stored], dim: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.cat([tensor.load() for tensor in tensors], dim=dim)
