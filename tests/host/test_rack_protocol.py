"""The wire format: what is written is read back, and what is no message is refused with one kind of error."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.rack.protocol import (
    HEADER_SIZE,
    MAX_PAYLOAD,
    Command,
    Frame,
    ProtocolError,
    ShellDecoder,
    ShellId,
    decode_header,
    decode_payload,
    encode,
    encode_banner,
    encode_shell,
    parse_features,
)

WORDS = st.integers(0, 0xFFFFFFFF)
FRAMES = st.builds(Frame, st.sampled_from(Command), WORDS, WORDS, st.binary(max_size=4096))


@given(FRAMES, st.booleans())
def test_a_frame_comes_back_as_it_was(frame: Frame, with_checksum: bool) -> None:
    data = encode(frame, with_checksum=with_checksum)
    header = decode_header(data[:HEADER_SIZE])
    assert decode_payload(header, data[HEADER_SIZE:], with_checksum=with_checksum) == frame


def test_the_layout_is_adbs() -> None:
    data = encode(Frame(Command.CNXN, 0x01000000, 4096, b"host::"), with_checksum=True)
    assert data == b"CNXN" + bytes.fromhex("00000001 00100000 06000000") + struct.pack("<I", sum(b"host::")) + (
        bytes(255 - b for b in b"CNXN") + b"host::"
    )


@given(st.binary(max_size=64))
def test_no_bytes_raise_anything_but_a_protocol_error(data: bytes) -> None:
    try:
        header = decode_header(data)
    except ProtocolError:
        return
    assert data[:4] == struct.pack("<I", header.command)


@given(FRAMES, st.integers(0, 3), st.integers(1, 255))
def test_a_damaged_command_is_refused(frame: Frame, place: int, flip: int) -> None:
    data = bytearray(encode(frame)[:HEADER_SIZE])
    data[place] ^= flip
    with pytest.raises(ProtocolError):
        decode_header(bytes(data))


@given(st.binary(min_size=1, max_size=512), st.data())
def test_a_damaged_payload_is_refused_where_checksums_are_used(payload: bytes, data: st.DataObject) -> None:
    whole = encode(Frame(Command.WRTE, 1, 2, payload), with_checksum=True)
    header, place = decode_header(whole[:HEADER_SIZE]), data.draw(st.integers(0, len(payload) - 1))
    damaged = bytearray(payload)
    damaged[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ProtocolError, match="checksum"):
        decode_payload(header, bytes(damaged), with_checksum=True)


def test_a_payload_over_the_limit_is_refused_both_ways() -> None:
    with pytest.raises(ProtocolError, match="over the limit"):
        encode(Frame(Command.WRTE, 1, 2, bytes(MAX_PAYLOAD + 1)))
    header = struct.pack("<6I", Command.WRTE, 1, 2, MAX_PAYLOAD + 1, 0, Command.WRTE ^ 0xFFFFFFFF)
    with pytest.raises(ProtocolError, match="the limit is"):
        decode_header(header)


def test_a_short_payload_is_refused() -> None:
    header = decode_header(encode(Frame(Command.WRTE, 1, 2, b"four"))[:HEADER_SIZE])
    with pytest.raises(ProtocolError, match="announced 4"):
        decode_payload(header, b"thr")


def test_the_banner_says_what_adb_reads() -> None:
    banner = encode_banner({"ro.product.model": "Pixel; evil=1"}, ["shell_v2", "stat_v2"])
    assert banner == b"device::ro.product.model=Pixel_ evil_1;features=shell_v2,stat_v2"
    assert parse_features(banner) == {"shell_v2", "stat_v2"}


@given(st.binary(max_size=200))
def test_any_banner_can_be_read(banner: bytes) -> None:
    assert all(parse_features(banner))


PACKETS = st.lists(st.tuples(st.sampled_from(ShellId), st.binary(max_size=60)), max_size=8)


@given(PACKETS, st.lists(st.integers(1, 40), min_size=1))
def test_shell_packets_survive_any_cut(packets: list[tuple[ShellId, bytes]], cuts: list[int]) -> None:
    data = b"".join(encode_shell(kind, body) for kind, body in packets)
    decoder, seen, place, turn = ShellDecoder(), [], 0, 0
    while place < len(data):
        step = cuts[turn % len(cuts)]
        seen += list(decoder.feed(data[place : place + step]))
        place, turn = place + step, turn + 1
    stdin = b"".join(body for kind, body in packets if kind == ShellId.STDIN)
    assert b"".join(body for kind, body in seen if kind == ShellId.STDIN) == stdin
    others = [(int(kind), body) for kind, body in packets if kind != ShellId.STDIN]
    assert [(kind, body) for kind, body in seen if kind != ShellId.STDIN] == others


@given(st.binary(max_size=2000))
def test_no_bytes_break_the_shell_decoder_or_fill_memory(data: bytes) -> None:
    decoder = ShellDecoder()
    assert sum(len(piece) for _, piece in decoder.feed(data)) <= len(data)
