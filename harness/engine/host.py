"""What a host of the engine does when a driver asks: says who it is, takes and gives files. It runs in its worker.

Functions marked `answering` are called through `Connection.ask`; they answer with plain data.
"""

from __future__ import annotations

import asyncio
import functools
import shutil
import threading
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec

from harness.engine.facts import HostReport, own_identity, phone_data
from harness.engine.files import FileFacts, holds, inside, listing, merge_into, put_in_place, read_piece, write_piece
from harness.errors import HarnessError, InfraError
from harness.evaluate.host import Host as Grounds
from harness.farm.health import HealthBook
from harness.farm.identity import AttachedPhone
from harness.paths import cache_root

P = ParamSpec("P")


@dataclass
class Here:
    """This process as a host.

    Attributes:
        name: what people call it.
        phones: name → each that answers, with the SoC that it reports.
        refused: name → why a phone is not offered.
        memory_mb: for compiling; 0: nothing is compiled here.
        grounds: one a thread: judging texts is not made for several at once.
    """

    name: str
    phones: dict[str, AttachedPhone] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    memory_mb: float = 0.0
    grounds: threading.local = field(default_factory=threading.local)

    def judge(self) -> Grounds:
        """The float model and QDQ for this thread."""
        if not hasattr(self.grounds, "host"):
            self.grounds.host = Grounds()
        found: Grounds = self.grounds.host
        return found


_here: list[Here] = []


def be(here: Here) -> None:
    """Makes this process that host."""
    _here[:] = [here]


def here() -> Here:
    """This process as a host.

    Raises:
        InfraError: it is a worker of somebody else's.
    """
    if not _here:
        raise InfraError("this worker is no host of htpfarm", remedy="start it with `htpfarm engine join`")
    return _here[0]


def scratch_root() -> Path:
    """Where attempts on this host leave their files until the driver has them."""
    return cache_root() / "engine" / "runs"


def answering(function: Callable[P, Any]) -> Callable[P, Coroutine[Any, Any, dict[str, Any]]]:
    """Has a function run in a thread, beside the worker's loop, and turns what it raises into data."""

    @functools.wraps(function)
    async def answer(*arguments: P.args, **named: P.kwargs) -> dict[str, Any]:
        try:
            return {"value": await asyncio.to_thread(function, *arguments, **named)}
        except HarnessError as error:
            return {"error": error.to_data()}
        except OSError as error:
            return {"error": InfraError(f"{error.strerror or error}", where=str(error.filename or "")).to_data()}

    return answer


@answering
def report() -> dict[str, Any] | None:
    """Who this host is, as `HostReport`; None of a worker that is none of ours."""
    if not _here:
        return None
    one = here()
    phones = tuple(phone_data(phone.phone) for phone in one.phones.values())
    return HostReport(one.name, "", own_identity(), phones, one.refused, one.memory_mb).to_data()


@answering
def missing(place: str, files: tuple[FileFacts, ...], sources: dict[str, str]) -> str:
    """Where a bundle is on this host; empty: nowhere.

    It may be in the cache, made here or sent before: a place is named by its content and filled in one step, but for a
    reference's witness of lookahead, which comes when a lookahead cell needs it. Or, where host and driver share a file
    system, it may be where the driver has it.
    """
    target = inside(cache_root(), place)
    if all((target / file.path).is_file() for file in files):
        return str(target)
    folders = {Path(source).parents[len(Path(path).parts) - 1] for path, source in sources.items()}
    if len(folders) == 1 and holds(folder := folders.pop(), files):
        return str(folder)
    return ""


@answering
def take_piece(place: str, token: str, path: str, offset: int, data: bytes) -> None:
    """A piece of a file of a bundle."""
    write_piece(inside(_coming(place, token), path), offset, data)


@answering
def took_all(place: str, token: str, files: tuple[FileFacts, ...]) -> str:
    """Puts a bundle in place that has come; returns where. What is there and has fewer files gets those it lacks."""
    target = inside(cache_root(), place)
    (merge_into if target.is_dir() else put_in_place)(_coming(place, token), target, files)
    return str(target)


def _coming(place: str, token: str) -> Path:
    target = inside(cache_root(), place)
    return target.with_name(f".{target.name}.{inside(Path(), token).name}")


@answering
def files_at(place: str) -> tuple[FileFacts, ...]:
    """The files of a folder below the cache folder."""
    return listing(inside(cache_root(), place))


@answering
def give_piece(place: str, path: str, offset: int, length: int) -> bytes:
    """A piece of a file below the cache folder."""
    return read_piece(inside(inside(cache_root(), place), path), offset, length)


@answering
def forget(token: str) -> None:
    """The driver has the files of an attempt."""
    shutil.rmtree(inside(scratch_root(), token), ignore_errors=True)


def state_of_phones(_worker: object = None) -> dict[str, Any]:
    """What a driver needs to know each moment: phone → why it is of no use now. Goes with each heartbeat."""
    book = HealthBook()
    trouble: dict[str, str] = {}
    for name, phone in (_here[0].phones if _here else {}).items():
        serial = phone.link.serial
        if not (state := book.state(serial)).usable:
            trouble[name] = f"{state}: {book.cause(serial) or 'no cause noted'}"
        elif book.just_hot(serial):
            trouble[name] = "cooling down"
    return {"trouble": trouble}


def new_token() -> str:
    """Names something that happens once."""
    return uuid.uuid4().hex
