"""Faults of the phone's storage: files that are not what was sent. Each is done once a cell, before the runner starts.

A file keeps its size and time where it can, as it does when storage goes bad: the harness sees no difference.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from faults.fault import Patch, fault

_PART = 1 << 12


def spoil(patch: Patch, flag: str, change: Callable[[bytearray], bytes | bytearray | None]) -> None:
    """Changes the file that a flag names, in its place; the cell's bench puts the sound one back."""

    def before(arguments: Sequence[str]) -> None:
        path = Path(arguments[list(arguments).index(flag) + 1]).resolve()
        done = patch.folder / "spoilt"
        patch.strike()
        if done.exists():
            return
        stat = path.stat()
        data = bytearray(path.read_bytes())
        other = change(data)
        path.chmod(0o644)
        path.write_bytes(data if other is None else other)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        done.write_text(str(path))

    patch.before_main.append(before)


def weights_of(data: bytearray) -> tuple[int, int]:
    """Where a program's segments lie, weights among them: from the extended header to the end."""
    if data[8:12] != b"eh00":
        return len(data) // 2, len(data)
    return int.from_bytes(data[24:32], "little"), len(data)


def flip(data: bytearray, start: int, end: int, parts: int, each: int = 1) -> None:
    """Flips bytes at evenly spread places between two."""
    for part in range(parts):
        at = start + (end - start) * (2 * part + 1) // (2 * parts)
        for offset in range(each):
            data[at + offset] ^= 0x55


@fault("64 bytes in the .pte's weights are flipped on the phone's storage", kind="phone")
def weights_flipped(patch: Patch) -> None:
    spoil(patch, "--model_path", lambda data: flip(data, *weights_of(data), 64))


@fault("one byte in the .pte's weights is flipped on the phone's storage", kind="phone")
def one_weight_flipped(patch: Patch) -> None:
    def change(data: bytearray) -> None:
        start, end = weights_of(data)
        data[start + (end - start) * 3 // 5] ^= 0x40

    spoil(patch, "--model_path", change)


@fault("a page of the .pte's weights is zero on the phone's storage", kind="phone")
def page_of_zeros(patch: Patch) -> None:
    def change(data: bytearray) -> None:
        start, end = weights_of(data)
        at = (start + (end - start) * 3 // 5) // _PART * _PART
        data[at : at + _PART] = bytes(_PART)

    spoil(patch, "--model_path", change)


@fault("bytes in the .pte's flatbuffer are flipped on the phone's storage", kind="phone")
def flatbuffer_flipped(patch: Patch) -> None:
    spoil(patch, "--model_path", lambda data: flip(data, 64, weights_of(data)[0], 16))


@fault("the .pte is cut short on the phone's storage", kind="phone")
def pte_cut(patch: Patch) -> None:
    spoil(patch, "--model_path", lambda data: data[: len(data) * 9 // 10])


def replaced(patch: Patch, flag: str, setting: str) -> None:
    """Puts another file in the place of the one that a flag names; `setting` names that file."""
    spoil(patch, flag, lambda _data: Path(patch.settings[setting]).read_bytes())


@fault("another model's .pte lies under the name", kind="phone")
def pte_of_another_model(patch: Patch) -> None:
    replaced(patch, "--model_path", "HTPFARM_FAULT_OTHER_MODEL")


@fault("another SoC's .pte lies under the name", kind="phone")
def pte_of_another_soc(patch: Patch) -> None:
    replaced(patch, "--model_path", "HTPFARM_FAULT_OTHER_SOC")


@fault("another mode's .pte lies under the name", kind="phone")
def pte_of_another_mode(patch: Patch) -> None:
    replaced(patch, "--model_path", "HTPFARM_FAULT_OTHER_MODE")


@fault("another model's tokenizer lies on the phone", kind="phone")
def tokenizer_of_another_model(patch: Patch) -> None:
    replaced(patch, "--tokenizer_path", "HTPFARM_FAULT_OTHER_TOKENIZER")


@fault("two pieces of the tokenizer are exchanged on the phone's storage", kind="phone")
def tokenizer_pieces_exchanged(patch: Patch) -> None:
    def change(data: bytearray) -> Any:
        # Of equal length, so that any format stays whole: in SentencePiece's and in JSON, pieces stand as they are.
        for first, second in ((b"ing", b"and"), (b"the", b"for"), (b"er", b"in")):
            if first in data and second in data:
                return (
                    data.replace(first, b"\0\0\0"[: len(first)])
                    .replace(second, first)
                    .replace(b"\0\0\0"[: len(first)], second)
                )
        raise ValueError("the tokenizer has none of the pieces that were to be exchanged")

    spoil(patch, "--tokenizer_path", change)


@fault("the tokenizer is cut short on the phone's storage", kind="phone")
def tokenizer_cut(patch: Patch) -> None:
    spoil(patch, "--tokenizer_path", lambda data: data[: len(data) // 2])
