"""A reader of FlatBuffers tables, bounds-checked, for the few fields of a `.pte` that the harness needs.

ExecuTorch's own readers import its whole exporter (seconds, and hundreds of MB) or hand the file to C++ that may abort
on a damaged one; a runner process that starts several times a minute can afford neither. Format:
https://flatbuffers.dev/internals/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass


class MalformedError(ValueError):
    """The bytes are no such FlatBuffer, or end too early."""


def read(data: bytes | memoryview, pos: int, fmt: str) -> int | float:
    """One little-endian scalar. Raises MalformedError outside the buffer."""
    if pos < 0 or pos + struct.calcsize(fmt) > len(data):
        raise MalformedError(f"offset {pos} lies outside the {len(data)} bytes there are")
    value: int | float = struct.unpack_from("<" + fmt, data, pos)[0]
    return value


@dataclass(frozen=True)
class Table:
    """A table at `pos` of `data`; fields are numbered as in the schema, from 0 (a union takes two numbers)."""

    data: bytes | memoryview
    pos: int

    def _field(self, index: int) -> int:
        """Absolute position of the field's value, 0 when it is absent."""
        vtable = self.pos - int(read(self.data, self.pos, "i"))
        slot = 4 + 2 * index
        if slot >= int(read(self.data, vtable, "H")):
            return 0
        offset = int(read(self.data, vtable + slot, "H"))
        return self.pos + offset if offset else 0

    def _follow(self, pos: int) -> int:
        return pos + int(read(self.data, pos, "I"))

    def integer(self, index: int, fmt: str = "i", default: int = 0) -> int:
        """A scalar field by its `struct` letter."""
        pos = self._field(index)
        return int(read(self.data, pos, fmt)) if pos else default

    def number(self, index: int) -> float:
        """A `double` field."""
        pos = self._field(index)
        return float(read(self.data, pos, "d")) if pos else 0.0

    def table(self, index: int) -> Table | None:
        """A table field."""
        pos = self._field(index)
        return Table(self.data, self._follow(pos)) if pos else None

    def blob(self, index: int) -> bytes:
        """A `string` or `[ubyte]` field; empty when absent."""
        start, count = self._vector(index)
        if start + count > len(self.data):
            raise MalformedError(f"{count} bytes at {start} reach past the end")
        return bytes(self.data[start : start + count])

    def text(self, index: int) -> str:
        """A `string` field."""
        return self.blob(index).decode("utf-8", errors="replace")

    def integers(self, index: int, fmt: str = "i") -> tuple[int, ...]:
        """A vector of scalars."""
        start, count = self._vector(index)
        size = struct.calcsize(fmt)
        if start + count * size > len(self.data):
            raise MalformedError(f"{count} items at {start} reach past the end")
        return tuple(int(read(self.data, start + i * size, fmt)) for i in range(count))

    def tables(self, index: int) -> Iterator[Table]:
        """A vector of tables."""
        start, count = self._vector(index)
        for i in range(count):
            yield Table(self.data, self._follow(start + 4 * i))

    def _vector(self, index: int) -> tuple[int, int]:
        pos = self._field(index)
        if not pos:
            return 0, 0
        start = self._follow(pos)
        return start + 4, int(read(self.data, start, "I"))


def root(data: bytes | memoryview) -> Table:
    """The root table."""
    return Table(data, int(read(data, 0, "I")))
