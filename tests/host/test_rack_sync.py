"""The file sync service against adb's own layouts, without a network."""

from __future__ import annotations

import io
import os
import stat
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.rack.sync import DATA_MAX, SyncService


def ask(root: Path, requests: bytes) -> bytes:
    sink = io.BytesIO()
    SyncService(io.BytesIO(requests), sink, str(root)).serve()
    return sink.getvalue()


def request(ident: bytes, path: bytes) -> bytes:
    return ident + struct.pack("<I", len(path)) + path


def data(block: bytes) -> bytes:
    return b"DATA" + struct.pack("<I", len(block)) + block


def done(seconds: int) -> bytes:
    return b"DONE" + struct.pack("<I", seconds)


def failure(reply: bytes) -> str:
    assert reply[:4] == b"FAIL"
    (size,) = struct.unpack("<I", reply[4:8])
    return reply[8 : 8 + size].decode()


@pytest.mark.parametrize(("mode", "expected"), [(0o644, 0o666), (0o755, 0o777), (0o600, 0o666), (0o500, 0o555)])
def test_send_keeps_the_time_and_spreads_the_owners_bits(tmp_path: Path, mode: int, expected: int) -> None:
    sent = (
        request(b"SEND", b"/new/folder/file,%d" % (stat.S_IFREG | mode)) + data(b"ab") + data(b"c") + done(1234567890)
    )
    assert ask(tmp_path, sent) == b"OKAY" + bytes(4)
    file = tmp_path / "new/folder/file"
    assert file.read_bytes() == b"abc"
    assert stat.S_IMODE(file.stat().st_mode) == expected
    assert file.stat().st_mtime == 1234567890


def test_send_replaces_rather_than_overwrites(tmp_path: Path) -> None:
    (tmp_path / "program").write_text("old")
    with (tmp_path / "program").open() as running:
        ask(tmp_path, request(b"SEND", b"/program,33261") + data(b"new") + done(1))
        assert running.read() == "old"
    assert (tmp_path / "program").read_text() == "new"


def test_send_version_2_and_receive_give_the_same_bytes(tmp_path: Path) -> None:
    body = os.urandom(3 * DATA_MAX + 17)
    blocks = b"".join(data(body[i : i + DATA_MAX]) for i in range(0, len(body), DATA_MAX))
    sent = request(b"SND2", b"/f") + b"SND2" + struct.pack("<2I", 0o100644, 0) + blocks + done(7)
    received = request(b"RCV2", b"/f") + b"RCV2" + struct.pack("<I", 0)
    assert ask(tmp_path, sent + received) == b"OKAY" + bytes(4) + blocks + done(0)


def test_a_link_is_sent_as_a_link(tmp_path: Path) -> None:
    sent = request(b"SEND", b"/link,%d" % (stat.S_IFLNK | 0o777)) + data(b"target/of/link\0") + done(99)
    assert ask(tmp_path, sent) == b"OKAY" + bytes(4)
    assert (tmp_path / "link").readlink() == Path("target/of/link")
    assert (tmp_path / "link").lstat().st_mtime == 99


def test_stat_of_both_versions(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    os.utime(tmp_path / "f", (10, 20))
    info = (tmp_path / "f").stat()
    assert ask(tmp_path, request(b"STAT", b"/f")) == b"STAT" + struct.pack("<3I", info.st_mode, 5, 20)
    assert ask(tmp_path, request(b"STAT", b"/none")) == b"STAT" + bytes(12)
    reply = struct.unpack("<4sI2Q4IQ3q", ask(tmp_path, request(b"STA2", b"/f")))
    assert reply[:2] == (b"STA2", 0)
    assert (reply[4], reply[8], reply[9], reply[10]) == (info.st_mode, 5, 10, 20)
    missing = struct.unpack("<4sI2Q4IQ3q", ask(tmp_path, request(b"LST2", b"/none")))
    assert missing == (b"LST2", 2, *[0] * 10)


def test_lists_of_both_versions_name_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").mkdir()
    reply, names = ask(tmp_path, request(b"LIST", b"/")), []
    while reply[:4] == b"DENT":
        (size,) = struct.unpack("<I", reply[16:20])
        names.append(reply[20 : 20 + size])
        reply = reply[20 + size :]
    assert names == [b".", b"..", b"a", b"b"]
    assert reply == b"DONE" + bytes(16)
    assert ask(tmp_path, request(b"LIS2", b"/missing")) == b"DONE" + bytes(72)


def test_a_failed_send_eats_its_data_and_the_session_goes_on(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    sent = request(b"SEND", b"/folder,33188") + data(b"STAT") + data(b"x") + done(1)
    reply = ask(tmp_path, sent + request(b"STAT", b"/none"))
    assert "couldn't create file" in failure(reply)
    assert reply.endswith(b"STAT" + bytes(12))


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (request(b"WHAT", b"/"), "unknown command"),
        (b"STAT" + struct.pack("<I", 1025), "path too long"),
        (request(b"SEND", b"/no-mode"), "missing ,"),
        (request(b"SEND", b"/f,33188") + b"JUNK" + bytes(4), "invalid data message"),
        (request(b"SEND", b"/f,33188") + b"DATA" + struct.pack("<I", DATA_MAX + 1), "oversize"),
        (request(b"SND2", b"/f") + b"SND2" + struct.pack("<2I", 0o100644, 1), "unsupported"),
        (request(b"RECV", b"/none"), "No such file"),
        (request(b"STAT", b"/a\0b"), "NUL"),
    ],
)
def test_what_makes_no_sense_is_answered_with_a_reason(tmp_path: Path, sent: bytes, why: str) -> None:
    assert why in failure(ask(tmp_path, sent))


def test_a_plain_phones_paths_stay_below_its_tree(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    ask(root, request(b"SEND", b"/../../escaped,33188") + data(b"x") + done(1))
    assert (root / "escaped").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from([b"SEND", b"STAT", b"LIS2", b"DATA", b"DONE", b"SND2", b"QUIT", b"RECV"]),
            st.integers(0, 300).map(lambda n: struct.pack("<I", n)),
            st.sampled_from([b"/f,33188", b"/../x,41471", b"/l,41471"]),
        )
    )
)
def test_no_bytes_break_the_service_or_leave_its_tree(pieces: list[bytes]) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        root.mkdir()
        ask(root, b"".join(pieces))
        assert [entry.name for entry in Path(folder).iterdir()] == ["root"]
