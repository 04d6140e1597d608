"""Whatever comes: the device side of ADB and devices.yaml, with inputs nobody meant.

A few hundred cases each in an ordinary run; HTPFARM_FUZZ=10000 in a nightly one:

    HTPFARM_FUZZ=10000 pytest tests/host/test_fuzz.py
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from pathlib import Path

import yaml
from events import HANG_S
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harness.errors import ConfigError
from harness.inventory import load_inventory
from harness.rack.connection import READ_LIMIT, Connection, Service, ServiceRefusedError, Stream
from harness.rack.protocol import (
    MAX_PAYLOAD,
    VERSION,
    Command,
    Frame,
    ProtocolError,
    ShellDecoder,
    decode_header,
    encode,
    parse_features,
)
from harness.rack.services import open_service

CASES = int(os.environ.get("HTPFARM_FUZZ", "100"))
fuzz = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
LIMIT_S = HANG_S
"""A connection that outlives what was sent on it by this much hangs, which is as bad as crashing."""

words = st.integers(0, 2**32 - 1)
payloads = st.one_of(st.binary(max_size=300), st.text(max_size=60).map(lambda s: s.encode("utf-8", "surrogatepass")))


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message: well formed, or with one word, or the length, that is not what it should be; or just bytes."""
    kind = draw(st.sampled_from(["good", "good", "good", "word", "length", "noise"]))
    if kind == "noise":
        return draw(st.binary(max_size=80))
    command = draw(st.sampled_from(list(Command)))
    data = encode(Frame(command, draw(st.one_of(st.integers(0, 3), words)), draw(st.integers(0, 3)), draw(payloads)))
    if kind == "good":
        return data
    fields = list(struct.unpack("<6I", data[:24]))
    fields[3 if kind == "length" else draw(st.integers(0, 5))] = draw(words)
    return struct.pack("<6I", *fields) + data[24:]


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """What a host might send on one connection; most begin as a host does."""
    opening = encode(
        Frame(Command.CNXN, VERSION, draw(st.sampled_from([4096, MAX_PAYLOAD])), b"host::features=shell_v2")
    )
    start = opening if draw(st.booleans()) else b""
    destination = draw(
        st.one_of(st.sampled_from(["echo:", "slow:", "shell,v2:x", "sync:", "\0"]), st.text(max_size=40))
    )
    first = encode(
        Frame(Command.OPEN, draw(st.integers(0, 3)), 0, destination.encode("utf-8", "surrogatepass") + b"\0")
    )
    return start + first + b"".join(draw(st.lists(messages(), max_size=8)))


async def echo(stream: Stream) -> None:
    while data := await stream.read():
        await stream.write(data)


async def opener(destination: str) -> Service:
    if not destination.startswith(("echo", "slow", "shell")):
        raise ServiceRefusedError(destination)
    return echo


class Complaints(list):  # type: ignore[type-arg]
    """What asyncio would have printed as "exception was never retrieved", and connections that ended in a traceback."""


async def talk(data: bytes) -> Complaints:
    complaints = Complaints()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    done = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await Connection(reader, writer, banner=b"device::", opener=opener).serve()
        except Exception as error:  # serve() never raises for what the other side does
            complaints.append(error)
        finally:
            done.set()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=READ_LIMIT)
    try:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        writer.write(data)
        if writer.can_write_eof():
            writer.write_eof()
        async with asyncio.timeout(LIMIT_S):
            while await reader.read(65536):
                pass
            await done.wait()
        writer.close()
    except ConnectionError:
        async with asyncio.timeout(LIMIT_S):
            await done.wait()
    finally:
        server.close()
    return complaints


@fuzz
@given(conversations())
@example(b"")
@example(b"\0" * 24)
def test_no_conversation_crashes_or_hangs_a_phone(data: bytes) -> None:
    assert not asyncio.run(talk(data))


@fuzz
@given(st.binary(max_size=64))
def test_headers_are_read_or_refused(data: bytes) -> None:
    try:
        header = decode_header(data)
    except ProtocolError:
        return
    assert header.length <= MAX_PAYLOAD


@fuzz
@given(st.binary(max_size=200), st.lists(st.integers(1, 50), max_size=8))
def test_shell_packets_come_out_the_same_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    whole = b"".join(piece for _, piece in ShellDecoder().feed(data))
    decoder, parts, rest = ShellDecoder(), b"", data
    for cut in cuts:
        parts += b"".join(piece for _, piece in decoder.feed(rest[:cut]))
        rest = rest[cut:]
    parts += b"".join(piece for _, piece in decoder.feed(rest))
    assert parts == whole


@fuzz
@given(st.binary(max_size=120))
def test_any_banner_has_features_or_none(banner: bytes) -> None:
    assert all(parse_features(banner))


class NoView:
    """A view that starts nothing: only what is opened matters here."""

    running, fallback = True, False

    def shell(self, command: str, *, terminal: str = "") -> object:
        return command, terminal

    def sync(self) -> object:
        return None


@fuzz
@given(st.text(max_size=80))
@example("shell,v2,pty,TERM=:")
@example("tcp:99999999999999999999")
@example("localabstract:\udcff")
def test_every_destination_is_opened_or_refused(destination: str) -> None:
    async def one() -> None:
        with contextlib.suppress(ServiceRefusedError):
            await open_service(destination, NoView(), lambda: None)  # type: ignore[arg-type]

    asyncio.run(one())


# --- devices.yaml

KEYS = """
version adb host port phones racks name serial virtual soc rack labels capabilities priority limits hot_above_c
cool_below_c storage_mb power_cycle faults kind rate after_s count seconds match seed x
"""
keys = st.sampled_from(KEYS.split())
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["a", "s24", "galaxy_s24", "SM8650", "R3CX", "127.0.0.1:5555", "hot", "reboot", 1, 5037, "east"]),
    st.dates(),
    st.binary(max_size=4),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=6)),
    max_leaves=20,
)
phone = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b", "A B"])},
    optional={
        "virtual": st.one_of(st.just("galaxy_s24"), leaves),
        "serial": st.one_of(st.just("R3"), leaves),
        "soc": leaves,
        "rack": st.one_of(st.just("east"), leaves),
        "labels": trees,
        "limits": st.dictionaries(st.sampled_from(["hot_above_c", "cool_below_c", "storage_mb"]), leaves, max_size=3),
        "faults": st.lists(
            st.fixed_dictionaries({"kind": st.sampled_from(["hot", "pest"])}, optional={"rate": leaves})
        ),
        "power_cycle": trees,
    },
)
inventories = st.one_of(
    trees,
    st.fixed_dictionaries(
        {"version": st.sampled_from([1, 1, 1, 2, "1"]), "phones": st.lists(phone, max_size=4)},
        optional={"adb": trees, "racks": st.lists(st.fixed_dictionaries({"name": st.just("east")}), max_size=2)},
    ),
)


def read(text: bytes, folder: Path) -> None:
    path = folder / "devices.yaml"
    path.write_bytes(text)
    refusal: ConfigError | None = None
    try:
        inventory = load_inventory(path)
    except ConfigError as error:
        refusal = error
    if refusal is not None:
        assert str(path) in str(refusal)
        return
    assert inventory.phones
    assert len({p.name for p in inventory.phones}) == len(inventory.phones)


@fuzz
@given(tree=inventories)
def test_any_tree_is_an_inventory_or_refused(tree: object, tmp_path_factory: object) -> None:
    read(yaml.safe_dump(tree).encode(), folder_of(tmp_path_factory))


@fuzz
@given(text=st.one_of(st.binary(max_size=120), st.text("{}[]:,-&*!|>'\"%@` \n\tabc01?#", max_size=80).map(str.encode)))
@example(text=b"&a [*a]")
@example(text=b"version: 1\nphones: &p [*p]\n")
@example(text=b"? {a: b}\n: c\n")
@example(text=b"version: 1\nphones:\n  - {name: a, serial: !!python/object/apply:os.system [true]}\n")
@example(text=b"\xff\xfe")
@example(text=b"[" * 3000)
@example(text=b"version: 1\n" + b"a: &a [x,x,x,x,x,x,x,x]\n" + b"b: &b [*a,*a,*a,*a,*a,*a,*a,*a]\n")
def test_any_text_is_an_inventory_or_refused(text: bytes, tmp_path_factory: object) -> None:
    read(text, folder_of(tmp_path_factory))


_folders: list[Path] = []


def folder_of(factory: object) -> Path:
    """One folder for all cases of this process."""
    if not _folders:
        _folders.append(factory.mktemp("fuzz"))  # type: ignore[attr-defined]
    return _folders[0]
