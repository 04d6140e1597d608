from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import ConfigError
from harness.inventory import load_inventory
from harness.paths import REPOSITORY
from harness.soc import PHONE_KINDS, SOCS

REAL = "version: 1\nphones:\n  - name: a\n    serial: R3CX\n"


def load(tmp_path: Path, text: str):
    path = tmp_path / "devices.yaml"
    path.write_text(text)
    return load_inventory(path)


def test_the_rack_as_shipped() -> None:
    rack = load_inventory(REPOSITORY / "devices.yaml")
    assert [(phone.name, phone.soc and phone.soc.name) for phone in rack.phones] == [
        ("s23", "SM8550"),
        ("s24", "SM8650"),
        ("oneplus12", "SM8650"),
        ("s25", "SM8750"),
    ]
    assert all(phone.virtual and phone.serial is None for phone in rack.phones)
    assert (rack.adb_host, rack.adb_port) == ("127.0.0.1", 5037)


def test_real_and_virtual_phones_keep_their_order(tmp_path: Path) -> None:
    rack = load(
        tmp_path,
        "version: 1\nadb: {host: lab, port: 6000}\nphones:\n"
        "  - {name: z, serial: '0123456789', soc: SM8750}\n"
        "  - {name: b, serial: '192.168.1.5:5555'}\n"
        "  - {name: a, virtual: galaxy_s24_exynos}\n",
    )
    z, b, a = rack.phones
    assert (rack.adb_host, rack.adb_port) == ("lab", 6000)
    assert (z.name, z.serial, z.virtual, z.soc) == ("z", "0123456789", None, SOCS["SM8750"])
    assert (b.serial, b.soc) == ("192.168.1.5:5555", None)
    assert (a.virtual, a.soc, a.serial) == (PHONE_KINDS["galaxy_s24_exynos"], None, None)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (REAL + "  - name: a\n    serial: X\n", 5, ["phones[1].name", "already the name of phones[0]"]),
        (REAL + "  - name: b\n    serial: R3CX\n", 6, ["phones[1].serial", "already the serial of phones[0]"]),
        (REAL + "    soc: SM8651\n", 5, ["phones[0].soc", "unknown SoC 'SM8651'", "did you mean", "SM8650"]),
        (REAL + "  - name: b\n    virtual: galaxy_s32\n", 6, ["phones[1].virtual", "galaxy_s23"]),
        (REAL + "    virtual: galaxy_s23\n", 3, ["phones[0]", "exactly one", "both"]),
        (REAL + "  - name: b\n", 5, ["phones[1]", "exactly one", "neither"]),
        (REAL + "  - name: b\n    virtual: galaxy_s23\n    soc: SM8650\n", 7, ["phones[1].soc", "remove this key"]),
        (REAL + "  - serial: X\n", 5, ["phones[1].name", "missing"]),
        (REAL + "  - name: b\n    serail: X\n", 6, ["phones[1].serail", "did you mean serial?"]),
        (REAL + "  - name: B!\n    serial: X\n", 5, ["phones[1].name", "pattern"]),
        (REAL + "  - name: b\n    serial: 1234567\n", 6, ["phones[1].serial", "must be text", "quotes"]),
        (REAL + "  - name: b\n    serial: -s; reboot\n", 6, ["phones[1].serial", "pattern"]),
        (REAL + "  - name: b\n    serial: [\n", 7, ["not valid YAML"]),
        ("version: 2\nphones: []\n", 1, ["version"]),
        ("version: 1\nphones: []\n", 2, ["phones", "at least 1"]),
        ("version: 1\nadb: {port: 70000}\n" + REAL[11:], 2, ["adb.port", "65535"]),
    ],
)
def test_mistakes_have_their_line(tmp_path: Path, text: str, line: int, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert f"devices.yaml:{line}: " in message, message
    for word in words:
        assert word in message


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, REAL + "    soc: nope\n  - {name: a, virtual: nope}\n")
    message = str(caught.value)
    assert "3 problems" in message
    for place in ("devices.yaml:5: phones[0].soc", "devices.yaml:6: phones[1].name", "devices.yaml:6: phones[1].virt"):
        assert place in message
