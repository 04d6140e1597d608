"""What is sent to a phone and what is not, how much room that takes, what becomes of a file that arrives damaged."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
from near_phone import NearPhone, near_phone

from harness.errors import ConfigError, EnvError, InfraError
from harness.farm.connect import COMMAND_SECONDS
from harness.farm.deploy import SPARE_BYTES, deploy, free_bytes, sha256_of
from harness.farm.payload import PayloadFile
from harness.farm.shell import AdbFailure
from harness.farm.workspace import STORE

MIB = 2**20


@pytest.fixture
def link(tmp_path: Path) -> NearPhone:
    return near_phone(tmp_path / "phone")


def files(folder: Path) -> list[PayloadFile]:
    (folder / "m.pte").write_bytes(bytes(range(256)) * 4096)  # 1 MiB
    (folder / "run").write_text("#!/bin/sh\n")
    return [PayloadFile(folder / "m.pte", "m.pte"), PayloadFile(folder / "run", "run", executable=True)]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stored(link: NearPhone) -> list[str]:
    """All files in the phone's store, by name."""
    return sorted(path.name for path in link.place(STORE).rglob("*") if path.is_file())


def test_the_report_says_what_was_sent_what_was_there_and_where_all_lies(link: NearPhone, tmp_path: Path) -> None:
    model, runner = files(tmp_path)
    began = time.monotonic()
    first = deploy(link, [runner])
    assert 0 < first.seconds <= time.monotonic() - began
    assert (first.pushed, first.reused, first.bytes) == (("run",), (), 10)
    second = deploy(link, [model, runner])
    assert (second.pushed, second.reused, second.bytes) == (("m.pte",), ("run",), MIB)
    third = deploy(link, [runner, model])
    assert (third.pushed, third.reused, third.bytes) == ((), ("run", "m.pte"), 0)
    assert dict(third.store) == {
        "m.pte": f"{STORE}/{digest(model.path)[:16]}/m.pte",
        "run": f"{STORE}/{digest(runner.path)[:16]}/run",
    }
    assert link.sent == ["push run", "push m.pte"]
    assert [link.place(path).stat().st_mode & 0o777 for path in third.store.values()] == [0o755, 0o644]
    assert stored(link) == [".m.pte.ok", ".run.ok", "m.pte", "run"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda file, mark: file.write_bytes(b"x" * MIB),
        lambda file, mark: file.write_bytes(file.read_bytes()[:-1]),
        lambda file, mark: file.unlink(),
        lambda file, mark: mark.unlink(),
        lambda file, mark: mark.write_text(mark.read_text().replace(" ", "  ", 1)),
        lambda file, mark: mark.write_text("0" + mark.read_text()[1:]),
    ],
)
def test_a_file_counts_only_while_its_marker_vouches_for_it(link: NearPhone, tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    place = link.place(deploy(link, files(tmp_path)).store["m.pte"])
    damage(place, place.with_name(".m.pte.ok"))
    assert deploy(link, files(tmp_path)).pushed == ("m.pte",)
    assert place.read_bytes() == (tmp_path / "m.pte").read_bytes()
    assert deploy(link, files(tmp_path)).pushed == ()


def test_damage_that_keeps_size_and_time_is_found_only_where_the_phone_hashes_what_it_holds(
    link: NearPhone, tmp_path: Path
) -> None:
    place = link.place(deploy(link, files(tmp_path)).store["m.pte"])
    before = place.stat()
    place.write_bytes(b"x" * MIB)
    os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert deploy(link, files(tmp_path)).pushed == ()
    assert deploy(link, files(tmp_path), verify=True).pushed == ("m.pte",)
    assert deploy(link, files(tmp_path), verify=True).reused == ("m.pte", "run")


def test_hashing_on_the_phone_may_take_a_second_for_fifty_million_bytes(link: NearPhone, tmp_path: Path) -> None:
    made = []
    for number, size in enumerate((10_000_000, 15_000_000)):
        with (tmp_path / f"f{number}").open("wb") as file:
            file.truncate(size)
        made.append(PayloadFile(tmp_path / f"f{number}", f"f{number}"))

    def limits(word: str) -> list[float]:
        return [limit for line, limit in link.asked if word in line]

    deploy(link, made)
    assert limits("held ") == [COMMAND_SECONDS]
    assert limits("mv -f") == [COMMAND_SECONDS + 0.2, COMMAND_SECONDS + 0.3]
    link.asked.clear()
    deploy(link, made, verify=True)
    assert limits("held ") == [COMMAND_SECONDS + 0.5]


def test_a_hash_is_remembered_while_inode_size_and_time_stay(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"one")
    os.utime(file, ns=(0, 1000))
    assert sha256_of(file) == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"two")
    os.utime(file, ns=(0, 1000))
    assert sha256_of(file) == hashlib.sha256(b"one").hexdigest()  # nothing tells it apart
    os.utime(file, ns=(0, 1001))
    assert sha256_of(file) == hashlib.sha256(b"two").hexdigest()
    file.write_bytes(b"three")
    os.utime(file, ns=(0, 1001))
    assert sha256_of(file) == hashlib.sha256(b"three").hexdigest()
    (tmp_path / "g").write_bytes(b"other")
    os.utime(tmp_path / "g", ns=(0, 1001))
    (tmp_path / "g").rename(file)
    assert sha256_of(file) == hashlib.sha256(b"other").hexdigest()
    with pytest.raises(ConfigError, match="cannot be read: No such file") as caught:
        sha256_of(tmp_path / "none")
    assert caught.value.where == str(tmp_path / "none")


def test_two_files_of_one_name_are_refused_before_anything_is_asked(link: NearPhone, tmp_path: Path) -> None:
    model, runner = files(tmp_path)
    with pytest.raises(ConfigError, match="same name") as caught:
        deploy(link, [runner, model, PayloadFile(runner.path, "run")])
    assert caught.value.evidence == "m.pte, run, run"
    assert not link.asked


# --- room


def free(link: NearPhone, kib: int) -> None:
    (link.root / "df").write_text(f"/dev/fuse 9999999 1 {kib} 5% /data\n")


def test_64_mib_stay_free_beside_what_is_sent(link: NearPhone, tmp_path: Path) -> None:
    model, runner = files(tmp_path)
    free(link, 65 * 1024 - 1)
    with pytest.raises(EnvError, match="1 MiB to push and 64 MiB to spare, but 65 MiB free") as caught:
        deploy(link, [model])
    assert (caught.value.where, link.sent) == ("near", [])
    assert STORE in caught.value.remedy
    free(link, 65 * 1024)
    assert deploy(link, [model]).pushed == ("m.pte",)
    assert SPARE_BYTES == 64 * MIB
    free(link, 64 * 1024 + 1)  # what lies there already takes no more room
    assert deploy(link, [model, runner]).pushed == ("run",)
    free(link, 0)
    assert deploy(link, [model, runner]).pushed == ()


@pytest.mark.parametrize(
    ("said", "kib"),
    [
        ("/dev/fuse 100 50 2097152 5% /data\n", 2097152),
        ("/dev/block/by-name/a-very-long-name\n  100 50 2097152 5% /data\n", 2097152),
        ("my disk 7 100 50 42 5% /data/my 9\n", 42),
        ("disk% 100 50 42 5% /data\n", 42),
        ("overlay - - 42 5% /data\n", 42),
        ("/dev/fuse 100 50 42 5% /data\n/dev/other 100 50 43 6% /more\n", 42),
    ],
)
def test_df_is_read_from_its_percentage_back(link: NearPhone, said: str, kib: int) -> None:
    (link.root / "df").write_text(said)
    assert free_bytes(link) == kib * 1024


@pytest.mark.parametrize(
    "said", ["", "df: /data: Permission denied\n", "/dev/fuse - - - 5% /data\n", "50% full of 42\n"]
)
def test_what_df_does_not_say_is_infrastructure(link: NearPhone, said: str) -> None:
    (link.root / "df").write_text(said)
    with pytest.raises(InfraError, match="does not say how much is free") as caught:
        free_bytes(link)
    assert caught.value.where == "near"
    assert caught.value.evidence.endswith(said)


# --- damage on the way


def damages(link: NearPhone, times: int) -> None:
    """The first files that are pushed arrive with a byte more."""
    left = [times]

    def spoil(_word: str, end: Path) -> None:
        if left[0]:
            left[0] -= 1
            end.write_bytes(end.read_bytes() + b"!")

    link.on_way.append(spoil)


def test_a_file_that_arrives_damaged_is_sent_once_more(link: NearPhone, tmp_path: Path) -> None:
    damages(link, 1)
    place = link.place(deploy(link, files(tmp_path)[:1]).store["m.pte"])
    assert link.sent == ["push m.pte"] * 2
    assert place.read_bytes() == (tmp_path / "m.pte").read_bytes()
    assert stored(link) == [".m.pte.ok", "m.pte"]


def test_a_file_that_arrives_damaged_twice_is_infrastructure_and_leaves_nothing(
    link: NearPhone, tmp_path: Path
) -> None:
    damages(link, 2)
    with pytest.raises(InfraError, match="a file arrived damaged") as caught:
        deploy(link, files(tmp_path)[:1])
    whole, spoilt = (tmp_path / "m.pte").read_bytes(), hashlib.sha256()
    spoilt.update(whole + b"!")
    assert link.sent == ["push m.pte"] * 2
    assert stored(link) == []
    assert caught.value.where == f"near: {STORE}/{digest(tmp_path / 'm.pte')[:16]}/m.pte"
    expected, arrived = caught.value.evidence.splitlines()
    assert expected == f"expected sha256 {digest(tmp_path / 'm.pte')}"
    assert arrived.startswith(spoilt.hexdigest())


def test_a_file_that_cannot_be_put_in_place_is_not_sent_again(link: NearPhone, tmp_path: Path) -> None:
    tool = link.root / "bin" / "mv"
    tool.write_text("#!/bin/sh\necho read-only >&2; exit 1\n")
    tool.chmod(0o755)
    with pytest.raises(InfraError, match="could not be put in place") as caught:
        deploy(link, files(tmp_path)[:1])
    assert caught.value.evidence.endswith("\nread-only\n")
    assert link.sent == ["push m.pte"]
    assert stored(link) == []


def test_a_push_that_is_cut_short_leaves_no_part_of_the_file(link: NearPhone, tmp_path: Path) -> None:
    def cut(_word: str, end: Path) -> None:
        end.write_bytes(b"half")
        raise AdbFailure("adb push failed", serial="near", command="push")

    link.on_way.append(cut)
    with pytest.raises(AdbFailure, match="adb push failed"):
        deploy(link, files(tmp_path)[:1])
    assert link.sent == ["push m.pte"]
    assert stored(link) == []


def test_that_a_part_cannot_be_removed_hides_no_error(
    link: NearPhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phone that is lost in the middle of a push takes no `rm` either; the next sweep removes the part."""

    def cut(_word: str, end: Path) -> None:
        monkeypatch.setattr(NearPhone, "shell", gone)
        raise AdbFailure("adb push failed", serial="near", command="push")

    def gone(*_: object, **__: object) -> None:
        raise AdbFailure("the phone is gone", serial="near", command="rm")

    link.on_way.append(cut)
    with pytest.raises(AdbFailure, match="adb push failed"):
        deploy(link, files(tmp_path)[:1])
