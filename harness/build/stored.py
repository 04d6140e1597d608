"""Tensors in files, without running anything that the files say: safetensors, torch's zip files, sharded or not.

Files are mapped into memory, not read: a tensor's bytes are touched when it is loaded. Pickles are opened by torch's
restricted unpickler (`weights_only=True`), which builds tensors and plain containers and refuses everything else.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from harness.errors import BuildError

_HEADER_LIMIT = 100_000_000  # as safetensors' own
_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        name: as the file has it.
        file: that it lies in.
        shape: its dimensions.
        load: gives the tensor, in the file's dtype, backed by the file.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]

    def __str__(self) -> str:
        return f"{self.name} in {self.file.name}"


def read_safetensors(path: Path) -> dict[str, Stored]:
    """All tensors of a safetensors file by name.

    Raises:
        BuildError: it is damaged or ends early; names the first tensor that is not there in full.
    """
    _check_safetensors(path)
    try:
        # Kept open by the loaders below.
        file: Any = safe_open(path, framework="pt")
        return {
            name: Stored(name, path, tuple(file.get_slice(name).get_shape()), _loader(file, name))
            for name in file.keys()  # noqa: SIM118 (it is no mapping)
        }
    except (SafetensorError, OSError, ValueError) as error:
        raise BuildError("this is no checkpoint", where=str(path), evidence=str(error)) from error


def _loader(file: Any, name: str) -> Callable[[], torch.Tensor]:
    return lambda: file.get_tensor(name)


def _check_safetensors(path: Path) -> None:
    """The header against the file's size: the library itself only says that something does not fit."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
            if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
                raise ValueError(f"its header should be {length} bytes long, the file has {size}")
            header = json.loads(stream.read(length))
        spans = {
            name: (entry["dtype"], entry["shape"], *map(int, entry["data_offsets"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, struct.error, RecursionError) as error:
        raise BuildError(
            "this is no checkpoint: its safetensors header cannot be read", where=str(path), evidence=repr(error)
        ) from error
    there = size - 8 - length
    for name, (dtype, shape, start, end) in sorted(spans.items(), key=lambda item: item[1][2:]):
        if end > there:
            raise BuildError(
                f"the file is truncated: {name} ends at byte {8 + length + end}, the file at {size}",
                where=str(path),
                remedy="download it again",
            )
        if end - start != math.prod(shape) * _BYTES.get(dtype, 0):
            raise BuildError(
                f"the header is damaged: {name} is {dtype} {shape} in {end - start} bytes",
                where=str(path),
                remedy="download it again",
            )


def read_torch(path: Path) -> dict[str, Any]:
    """What a torch file holds: a mapping of names to tensors and plain values, its tensors mapped into memory.

    Raises:
        BuildError: it is damaged, or would run code when loaded; nothing of it is run.
    """
    try:
        try:
            loaded = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        except RuntimeError as error:
            # Before torch 1.6 a file was no zip file and cannot be mapped.
            if "mmap can only be used" not in str(error):
                raise
            loaded = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        # Torch's own message advises to load it nevertheless.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        wants = f"it refers to {found[1]}" if found else "torch's restricted unpickler does not know what is in it"
        raise BuildError(
            f"this is no checkpoint: {wants}; nothing of it was run",
            where=str(path),
            remedy="take the weights from their publisher, as safetensors where there are any",
        ) from error
    except Exception as error:  # torch's readers raise whatever a damaged file makes them stumble over
        raise BuildError(
            "this is no checkpoint: it is damaged, truncated or of another kind",
            where=str(path),
            remedy="download it again",
            evidence=str(error).splitlines()[0] if str(error) else repr(error),
        ) from error
    if not isinstance(loaded, Mapping) or not all(isinstance(key, str) for key in loaded):
        raise BuildError(f"this is no checkpoint but a {type(loaded).__name__}", where=str(path))
    return dict(loaded)


def torch_tensors(path: Path, loaded: Mapping[str, Any]) -> dict[str, Stored]:
    """The tensors among what `read_torch` gave.

    Raises:
        BuildError: something else is among them.
    """
    others = sorted(name for name, value in loaded.items() if not isinstance(value, torch.Tensor))
    if others:
        raise BuildError(f"this is no state dict: {', '.join(others[:5])} are no tensors", where=str(path))
    return {name: Stored(name, path, tuple(value.shape), _constant(value)) for name, value in loaded.items()}


def _constant(value: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: value


def read_folder(files: tuple[Path, ...], index: Path | None) -> dict[str, Stored]:
    """All tensors of a Hugging Face folder by name.

    Args:
        files: safetensors or .bin files.
        index: the `*.index.json` that says which file has which tensor, where there is one.

    Raises:
        BuildError: a file that is damaged, that the index names and is not there, or lacks a tensor; a tensor that is
            there twice.
    """
    named = _index(index) if index is not None else {}
    if index is not None:
        files = tuple(sorted(index.with_name(name) for name in set(named.values())))
    found: dict[str, Stored] = {}
    for path in files:
        if not path.is_file():
            raise BuildError(
                "a file that the index names is not there", where=str(path), remedy="download the rest of it"
            )
        tensors = read_safetensors(path) if path.suffix == ".safetensors" else torch_tensors(path, read_torch(path))
        for name, tensor in tensors.items():
            if name in found:
                raise BuildError(f"{name} is there twice, also in {found[name].file.name}", where=str(path))
            found[name] = tensor
    for name, file in named.items():
        if name not in found or found[name].file.name != file:
            raise BuildError(f"{name} is not in {file}, where the index has it", where=str(index))
    return found


def _index(path: Path) -> dict[str, str]:
    try:
        named = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(named, dict) or not named:
            raise ValueError("weight_map is empty")
        for name in named.values():
            # A name that leads out of the folder is no file of this checkpoint.
            if not isinstance(name, str) or Path(name).name != name:
                raise ValueError(f"{name!r} is no file name")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BuildError("the index cannot be read", where=str(path), evidence=repr(error)) from error
    return named
