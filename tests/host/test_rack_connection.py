"""A host that speaks the protocol by hand: what the phone answers, what it refuses, and that it survives nonsense."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from events import HANG_S, until
from rack_support import Adb, Wire, running_rack

from harness.rack.protocol import (
    MAX_PAYLOAD,
    VERSION_WITH_CHECKSUM,
    Command,
    Frame,
    encode,
    parse_features,
)
from harness.rack.record import RackState


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RackState]:
    with running_rack(tmp_path_factory.mktemp("rack"), 1) as state:
        yield state


@pytest.fixture
def phone(rack: RackState) -> Iterator[Adb]:
    """The phone; whatever a test did to it, it must still work afterwards."""
    adb = Adb(rack, rack.phones[0])
    yield adb
    assert adb.shell("echo still here") == "still here"


def test_the_handshake(phone: Adb) -> None:
    with Wire(phone.phone) as wire:
        assert wire.banner.startswith(b"device::ro.product.name=dm1q;ro.product.model=SM-S911U;ro.product.device=dm1q;")
        assert "shell_v2" in parse_features(wire.banner)


def test_an_old_host_gets_checksums(phone: Adb) -> None:
    with Wire(phone.phone, version=VERSION_WITH_CHECKSUM) as wire:
        wire.send(Command.OPEN, 1, 0, b"exec:echo summed\0")
        opened = wire.receive()
        assert opened.command is Command.OKAY
        assert wire.receive() == Frame(Command.WRTE, opened.arg0, 1, b"summed\n")


def test_messages_before_cnxn_are_ignored(phone: Adb) -> None:
    with Wire(phone.phone, connect=False) as wire:
        wire.send(Command.OPEN, 1, 0, b"shell:echo x\0")
        wire.send(Command.WRTE, 1, 1, b"x")
        wire.send(Command.CNXN, 0x01000001, MAX_PAYLOAD, b"host::")
        assert wire.receive().command is Command.CNXN


@pytest.mark.parametrize(
    "service", ["nonsense:", "abb_exec:package", "jdwp:1", "tcp:1", "tcp:99999", "localabstract:", ""]
)
def test_a_service_it_does_not_have_is_closed_at_once(phone: Adb, service: str) -> None:
    with Wire(phone.phone) as wire:
        wire.send(Command.OPEN, 77, 0, service.encode() + b"\0")
        assert wire.receive() == Frame(Command.CLSE, 0, 77)
        wire.send(Command.OPEN, 78, 0, b"exec:echo next\0")
        assert wire.receive().command is Command.OKAY


def test_the_next_wrte_waits_for_okay_and_fits_maxdata(phone: Adb) -> None:
    with Wire(phone.phone, connect=False) as wire:
        wire.send(Command.CNXN, 0x01000001, 4096, b"host::")
        wire.receive()
        wire.send(Command.OPEN, 5, 0, b"exec:head -c 10000 /dev/zero\0")
        local = wire.receive().arg0
        first = wire.receive()
        assert (first.command, len(first.payload)) == (Command.WRTE, 4096)
        wire.socket.settimeout(0.5)
        with pytest.raises(TimeoutError):
            wire.receive()
        wire.socket.settimeout(HANG_S)
        sizes = [4096]
        while True:
            wire.send(Command.OKAY, 5, local)
            frame = wire.receive()
            if frame.command is Command.CLSE:
                break
            sizes.append(len(frame.payload))
        assert sum(sizes) == 10000
        assert max(sizes) == 4096


def test_a_second_wrte_without_okay_ends_the_connection(phone: Adb) -> None:
    with Wire(phone.phone) as wire:
        wire.send(Command.OPEN, 5, 0, b"exec:sleep 600\0")
        local = wire.receive().arg0
        # sleep reads nothing: its pipe takes the first megabyte, what comes next stays unacknowledged
        with contextlib.suppress(ConnectionError):
            for _ in range(4):
                wire.send(Command.WRTE, 5, local, bytes(MAX_PAYLOAD))
        assert wire.is_closed()


def test_frames_for_unknown_streams_are_ignored(phone: Adb) -> None:
    with Wire(phone.phone) as wire:
        for command in (Command.WRTE, Command.OKAY, Command.CLSE):
            wire.send(command, 1, 4242, b"")
        wire.send(Command.AUTH, 1, 0, b"token")
        wire.send(Command.OPEN, 9, 0, b"exec:echo alive\0")
        assert wire.receive().command is Command.OKAY
        assert wire.receive().payload == b"alive\n"


@pytest.mark.parametrize(
    "rubbish",
    [
        b"GET / HTTP/1.1\r\nHost: phone\r\n\r\n",
        bytes(24),
        b"\xff" * 100,
        struct.pack("<6I", Command.WRTE, 1, 1, 0xFFFFFFFF, 0, Command.WRTE ^ 0xFFFFFFFF),
        encode(Frame(Command.OPEN, 0, 0, b"shell:\0")),
        encode(Frame(Command.CNXN, 0x01000001, MAX_PAYLOAD, b"host::")),
        encode(Frame(Command.STLS, 1, 1)),
    ],
)
def test_rubbish_ends_its_own_connection_and_no_other(phone: Adb, rubbish: bytes) -> None:
    with Wire(phone.phone) as good, Wire(phone.phone) as bad:
        good.send(Command.OPEN, 1, 0, b"exec:cat\0")
        stream = good.receive().arg0
        bad.socket.sendall(rubbish)
        assert bad.is_closed()
        good.send(Command.WRTE, 1, stream, b"hello")
        assert {good.receive().command, good.receive().command} == {Command.OKAY, Command.WRTE}


def test_random_frames_do_not_hurt_the_phone(phone: Adb) -> None:
    generator = random.Random(7)
    services = [
        b"shell:",
        b"shell,v2,raw:cat",
        b"sync:",
        b"exec:echo x",
        b"tcp:1",
        b"shell,v2,pty:cat",
        b"\xff\xfe",
        b"sync",
    ]
    for _ in range(60):
        wire = Wire(phone.phone)
        try:
            for _ in range(20):
                command = (
                    generator.choice(list(Command))
                    if generator.random() < 0.3
                    else generator.choice([Command.OPEN, Command.WRTE, Command.OKAY, Command.CLSE])
                )
                payload = generator.choice(services) if command is Command.OPEN else generator.randbytes(60)
                wire.send(command, generator.randrange(6), generator.randrange(12), payload)
        except OSError:
            pass
        wire.reset()


def test_half_a_frame_and_then_silence_or_reset(phone: Adb) -> None:
    host, _, port = phone.phone.serial.partition(":")
    half = [socket.create_connection((host, int(port)), timeout=HANG_S) for _ in range(20)]
    for number, one in enumerate(half):
        one.sendall(encode(Frame(Command.CNXN, 0x01000001, MAX_PAYLOAD, b"host::"))[: number + 1])
    assert phone.shell("echo meanwhile") == "meanwhile"
    for one in half:
        one.close()


def test_descriptors_are_given_back(rack: RackState, phone: Adb) -> None:
    def open_files() -> int:
        return len(list(Path(f"/proc/{rack.server_pid}/fd").iterdir()))

    phone.shell("true")
    before = open_files()
    for number in range(20):
        phone.run("shell", "cat; exit 3", stdin=b"x" * number)
        phone.run("exec-out", "true")
        phone.run("ls", "/data/local/tmp")
        with Wire(phone.phone) as wire:
            wire.send(Command.OPEN, 1, 0, b"shell,v2,raw:cat\0")
            wire.receive()
    assert phone.shell("echo settled") == "settled"
    until(lambda: open_files() <= before + 6, "the end of what was opened")
