"""Files to a phone, each sent once: a store addressed by content, where a file counts when its marker says so.

The marker holds the file's sha256, size and modification time, and is written only after the phone itself has hashed
what arrived. So a push that was cut short, a file that someone changed, and a file lost in a crash are all sent again.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from harness.errors import ConfigError, EnvError, InfraError
from harness.farm.connect import COMMAND_SECONDS, PhoneLink
from harness.farm.payload import PayloadFile
from harness.farm.workspace import STORE

SPARE_BYTES = 64 * 1024 * 1024
"""Left free on the phone for outputs and for Android itself, which misbehaves on a full disk."""
_HASH_BYTES_PER_SECOND = 50_000_000
_ATTEMPTS = 2
_DAMAGED = 65  # the phone's own verdict, told from any other failure of the command


@dataclass(frozen=True)
class DeployReport:
    """What a deployment did.

    Attributes:
        pushed: names of the files that were sent.
        reused: names of the files the phone held.
        bytes: sent.
        seconds: taken in all.
        store: name → path on the phone, for all files.
    """

    pushed: tuple[str, ...]
    reused: tuple[str, ...]
    bytes: int
    seconds: float
    store: Mapping[str, str]


@dataclass(frozen=True)
class _Item:
    """A file with what identifies it: content, size in bytes, and its place on the phone."""

    file: PayloadFile
    sha256: str
    size: int

    @property
    def path(self) -> str:
        return f"{STORE}/{self.sha256[:16]}/{self.file.name}"

    @property
    def marker(self) -> str:
        return str(PurePosixPath(self.path).with_name(f".{self.file.name}.ok"))


def sha256_of(path: Path) -> str:
    """The file's sha256, in hexadecimal; remembered in this process while the file stays the same.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        stat = path.stat()
        return _sha256(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise ConfigError(f"a file to deploy cannot be read: {error.strerror}", where=str(path)) from error


@lru_cache(maxsize=1024)
def _sha256(path: Path, _inode: int, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def deploy(link: PhoneLink, files: Sequence[PayloadFile], *, verify: bool = False) -> DeployReport:
    """Makes the phone hold these files; sends only those it does not hold.

    Args:
        link: the phone; leased by the caller.
        files: what it shall hold.
        verify: let the phone hash what it holds as well, not only compare size and time.

    Raises:
        ConfigError: a file cannot be read, or two have one name.
        EnvError: the phone has too little free storage.
        InfraError: a file did not arrive whole.
    """
    started = time.monotonic()
    names = [file.name for file in files]
    if len(set(names)) != len(names):
        raise ConfigError("two files to deploy have the same name", evidence=", ".join(sorted(names)))
    items = [_Item(file, sha256_of(file.path), file.path.stat().st_size) for file in files]
    held = _held(link, items, verify)
    missing = [item for item in items if item.file.name not in held]
    if missing:
        _check_space(link, sum(item.size for item in missing))
    for item in missing:
        _push(link, item)
    return DeployReport(
        pushed=tuple(item.file.name for item in missing),
        reused=tuple(item.file.name for item in items if item.file.name in held),
        bytes=sum(item.size for item in missing),
        seconds=time.monotonic() - started,
        store={item.file.name: item.path for item in items},
    )


def free_bytes(link: PhoneLink) -> int:
    """Free storage where the harness keeps its files on the phone.

    Raises:
        InfraError: `df` says nothing that can be read.
    """
    said = link.must(["df", "-k", "/data/local/tmp"]).stdout
    # Counted from the use in percent: the name before it may hold blanks, and may stand on a line of its own.
    words = said.split("\n", 1)[-1].split()
    for index, word in enumerate(words):
        if word.endswith("%") and index and words[index - 1].isdigit():
            return int(words[index - 1]) * 1024
    raise InfraError("df does not say how much is free", where=link.serial, evidence=said)


def _check_space(link: PhoneLink, needed: int) -> None:
    free = free_bytes(link)
    if free < needed + SPARE_BYTES:
        raise EnvError(
            f"storage full: {_mib(needed)} to push and {_mib(SPARE_BYTES)} to spare, but {_mib(free)} free",
            where=link.serial,
            remedy=f"free storage on the phone; {STORE} holds files of earlier runs and can be removed",
        )


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


_STAMP = "stamp() { stat -c '%s %y' \"$1\" 2>/dev/null; }; "
_CHECK = _STAMP + 'held() { [ -f "$1" ] && [ "$(cat "$2" 2>/dev/null)" = "$3 $(stamp "$1")" ] && {more} echo "$4"; }; '
_HASH_TOO = 'sum=$(sha256sum "$1") && [ "${sum%% *}" = "$3" ] && '


def _held(link: PhoneLink, items: Sequence[_Item], verify: bool) -> set[str]:
    """Names of the files the phone holds whole."""
    line = _CHECK.replace("{more}", _HASH_TOO if verify else "")
    line += "".join(f"held {shlex.join([i.path, i.marker, i.sha256, str(n)])}; " for n, i in enumerate(items)) + "true"
    limit = COMMAND_SECONDS + (sum(item.size for item in items) / _HASH_BYTES_PER_SECOND if verify else 0)
    return {items[int(number)].file.name for number in link.must(line, timeout_s=limit).stdout.split()}


def _push(link: PhoneLink, item: _Item) -> None:
    folder = str(PurePosixPath(item.path).parent)
    part = f"{folder}/.{item.file.name}.{uuid.uuid4().hex[:8]}.part"
    # The marker goes first and comes last: at no moment does it vouch for a file it was not written for.
    seal = (
        _STAMP
        + f"part={shlex.quote(part)}; file={shlex.quote(item.path)}; ok={shlex.quote(item.marker)}; "
        + 'sum=$(sha256sum "$part") || exit 1; '
        + f'[ "${{sum%% *}}" = {item.sha256} ] || {{ echo "$sum"; exit {_DAMAGED}; }}; '
        + f'chmod {"755" if item.file.executable else "644"} "$part" && sync "$part" && rm -f "$ok" && '
        + f'mv -f "$part" "$file" && echo "{item.sha256} $(stamp "$file")" > "$ok.part" && mv -f "$ok.part" "$ok"'
    )
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            link.push(item.file.path, part)
            done = link.shell(seal, timeout_s=COMMAND_SECONDS + item.size / _HASH_BYTES_PER_SECOND)
        except InfraError:
            _remove(link, part)
            raise
        if done.exit_status == 0:
            return
        _remove(link, part)
        if done.exit_status != _DAMAGED or attempt == _ATTEMPTS:
            raise InfraError(
                "a file arrived damaged" if done.exit_status == _DAMAGED else "a pushed file could not be put in place",
                where=f"{link.serial}: {item.path}",
                remedy="check the cable and the phone's storage",
                evidence=f"expected sha256 {item.sha256}\n{done.stdout}{done.stderr}",
            )


def _remove(link: PhoneLink, path: str) -> None:
    with contextlib.suppress(InfraError):  # best effort: the next sweep removes it
        link.shell(["rm", "-f", path])
