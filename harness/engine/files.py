"""Folders of files on their way from host to host: listed with their hashes, in pieces, put in place in one step."""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from harness.errors import InfraError
from harness.files import sync

PIECE_BYTES = 32 << 20


@dataclass(frozen=True)
class FileFacts:
    """A file of a folder: its path in it (with `/`), its size in bytes, the SHA-256 of its content."""

    path: str
    bytes: int
    sha256: str


def file_facts(root: Path, paths: Iterable[Path]) -> tuple[FileFacts, ...]:
    """Of files below a folder, by path."""
    return tuple(
        FileFacts(path.relative_to(root).as_posix(), path.stat().st_size, _sha256(path)) for path in sorted(paths)
    )


def listing(folder: Path) -> tuple[FileFacts, ...]:
    """All files below a folder, by path; empty where there is none."""
    return file_facts(folder, (path for path in folder.rglob("*") if path.is_file()))


def _sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256_once(str(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _sha256_once(path: str, _size: int, _mtime_ns: int) -> str:
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def holds(folder: Path, files: Sequence[FileFacts]) -> bool:
    """Whether a folder has these files with that content."""
    return all(_holds(folder, file) for file in files)


def _holds(folder: Path, file: FileFacts) -> bool:
    path = folder / file.path
    return path.is_file() and path.stat().st_size == file.bytes and _sha256(path) == file.sha256


def pieces(files: Sequence[FileFacts], size: int = PIECE_BYTES) -> list[tuple[FileFacts, int, int]]:
    """Each file in pieces: file, offset and length in bytes; an empty file is one empty piece. Pure."""
    return [
        (file, offset, min(size, file.bytes - offset))
        for file in files
        for offset in range(0, max(1, file.bytes), size)
    ]


def inside(root: Path, path: str) -> Path:
    """A path below a folder, given with `/`.

    Raises:
        InfraError: it leads out of it.
    """
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts:
        raise InfraError(f"{path!r} leads out of the folder that files are sent to", where=str(root))
    return root / parts


def read_piece(path: Path, offset: int, length: int) -> bytes:
    """Bytes of a file."""
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(length)


def write_piece(path: Path, offset: int, data: bytes) -> None:
    """Bytes into a file, which is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if path.exists() else "w+b") as stream:
        stream.seek(offset)
        stream.write(data)


def put_in_place(scratch: Path, target: Path, files: Sequence[FileFacts]) -> None:
    """Makes a folder that has come in pieces the target, in one step, if its content is right. One there stays.

    Raises:
        InfraError: something was changed on the way; names it. Nothing is left of what came.
    """
    try:
        for file in files:
            if not _holds(scratch, file):
                raise InfraError(
                    f"{file.path} came otherwise than it was sent", where=str(target), remedy="look at both disks"
                )
            sync(scratch / file.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():  # else another one was faster
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def merge_into(scratch: Path, target: Path, files: Sequence[FileFacts]) -> None:
    """Moves files that have come in pieces into a folder that may have others.

    Raises:
        InfraError: something was changed on the way; nothing is left of what came.
    """
    try:
        if not holds(scratch, files):
            raise InfraError("files came otherwise than they were sent", where=str(target))
        for file in files:
            (target / file.path).parent.mkdir(parents=True, exist_ok=True)
            (scratch / file.path).replace(target / file.path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class Bundle:
    """Files that go together to a place below a host's cache folder.

    Attributes:
        place: as `artifacts/tiny_llama-kv-SM8650-sim-0123456789abcdef`: two bundles of one place have one content.
        files: what it holds.
        sources: path in the bundle → where the file is here.
    """

    place: str
    files: tuple[FileFacts, ...]
    sources: Mapping[str, str]


def bundle(place: str, folder: Path) -> Bundle:
    """A whole folder."""
    files = listing(folder)
    return Bundle(place, files, {file.path: str(folder / file.path) for file in files})


def bundle_of_file(kind: str, path: Path, name: str) -> Bundle:
    """One file, under a name; its place is named by its content."""
    (facts,) = file_facts(path.parent, [path])
    return Bundle(f"{kind}/{facts.sha256[:32]}", (FileFacts(name, facts.bytes, facts.sha256),), {name: str(path)})


def bundle_by_content(kind: str, folder: Path) -> Bundle:
    """A whole folder whose place is named by its content."""
    whole = bundle("", folder)
    digest = hashlib.sha256(repr(whole.files).encode()).hexdigest()[:32]
    return Bundle(f"{kind}/{digest}", whole.files, whole.sources)
