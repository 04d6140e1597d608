"""Virtual phones through the stock adb and a real adb server: what a user of a real phone relies on."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import adbutils
import pytest
from events import HANG_S, NEVER_S, until
from rack_support import Adb, commands_naming, running_rack

from harness.rack import manage
from harness.rack.phone import tell
from harness.rack.record import RackState
from harness.rack.state import PhoneState, read_state, write_state
from harness.soc import PHONE_KINDS

TMP = "/data/local/tmp"


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RackState]:
    """Never the plain fallback: these tests kill what a phone runs."""
    ok, why = manage.namespace_support()
    if not ok:
        pytest.skip(f"virtual phones cannot have namespaces here: {why}")
    with running_rack(tmp_path_factory.mktemp("rack"), 4, plain=False) as state:
        yield state


@pytest.fixture
def phone(rack: RackState) -> Adb:
    return Adb(rack, rack.phones[0])


@pytest.fixture
def other(rack: RackState) -> Adb:
    return Adb(rack, rack.phones[1])


def digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def make_tree(folder: Path, files: int) -> dict[str, str]:
    """Files of many sizes, modes and times; returns relative path to hash."""
    generator, hashes = random.Random(files), {}
    for number in range(files):
        file = folder / f"d{number % 13}" / f"e{number % 7}" / f"file {number}'s.bin"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(generator.randbytes(generator.randrange(0, 9000)))
        file.chmod(0o755 if number % 2 else 0o644)
        os.utime(file, (1_500_000_000 + number, 1_500_000_000 + number))
        hashes[str(file.relative_to(folder))] = digest(file)
    return hashes


def test_devices_lists_every_phone_with_its_model(rack: RackState, phone: Adb) -> None:
    lines = phone.out("devices", "-l").splitlines()[1:]
    for entry in rack.phones:
        kind = PHONE_KINDS[entry.kind]
        (line,) = [line for line in lines if line.startswith(f"{entry.serial} ")]
        assert f" device product:{kind.device} model:{kind.model.replace('-', '_')} device:{kind.device}" in line
    assert phone.out("get-state") == "device"


def test_features_are_those_claimed_and_no_others(phone: Adb) -> None:
    claimed = set(phone.out("features").split())
    assert claimed == {
        "shell_v2",
        "stat_v2",
        "ls_v2",
        "sendrecv_v2",
        "fixed_push_mkdir",
        "fixed_push_symlink_timestamp",
    }


@pytest.mark.parametrize("status", [0, 3, 255])
def test_shell_returns_status_and_both_outputs_apart(phone: Adb, status: int) -> None:
    done = phone.run("shell", f"echo out; echo err >&2; exit {status}")
    assert (done.returncode, done.stdout, done.stderr) == (status, b"out\n", b"err\n")


def test_an_unknown_command_is_127_and_a_killed_one_128_plus_its_signal(phone: Adb) -> None:
    missing = phone.run("shell", "no_such_command")
    assert missing.returncode == 127
    assert b"not found" in missing.stderr
    assert phone.run("shell", "kill -9 $$").returncode == 137


def test_stdin_reaches_the_command_whole_and_ends(phone: Adb) -> None:
    body = os.urandom(3_000_000)
    done = phone.run("shell", "sha256sum; echo end", stdin=body)
    assert done.stdout.decode() == f"{hashlib.sha256(body).hexdigest()}  -\nend\n"


def test_a_command_that_ignores_its_stdin_still_ends(phone: Adb) -> None:
    assert phone.run("shell", "exit 4", stdin=os.urandom(3_000_000)).returncode == 4


def test_a_shell_without_a_command_runs_what_it_is_given(phone: Adb) -> None:
    done = phone.run("shell", stdin=b"cd /data/local\npwd\nexit 9\n")
    assert (done.returncode, done.stdout) == (9, b"/data/local\n")


def test_a_shell_on_a_terminal_has_one(phone: Adb) -> None:
    done = phone.run("shell", "-tt", "test -t 0 && test -t 1 && stty -a; exit 6")
    assert done.returncode == 6
    assert b"columns" in done.stdout


def test_a_shell_without_the_protocol_has_no_status_but_all_output(phone: Adb) -> None:
    done = phone.run("shell", "-x", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout) == (0, b"out\nerr\n")


def test_exec_out_is_binary_clean(phone: Adb) -> None:
    assert phone.run("exec-out", "printf 'a\\r\\n\\0b\\377'").stdout == b"a\r\n\0b\xff"


def test_much_output_arrives_whole(phone: Adb) -> None:
    done = phone.run("exec-out", f"dd if=/dev/zero bs=1M count=64 2>{TMP}/dd.log")
    assert len(done.stdout) == 64 * 1024 * 1024
    assert not done.stdout.strip(b"\0")


def test_a_large_file_goes_and_comes_back_the_same(phone: Adb, tmp_path: Path) -> None:
    big, back = tmp_path / "big", tmp_path / "back"
    big.write_bytes(os.urandom(100 * 1024 * 1024))
    os.utime(big, (1_600_000_000, 1_600_000_000))
    phone.out("push", str(big), f"{TMP}/big")
    assert phone.shell(f"sha256sum < {TMP}/big").split()[0] == digest(big)
    phone.out("pull", "-a", f"{TMP}/big", str(back))
    assert digest(back) == digest(big)
    assert back.stat().st_mtime == 1_600_000_000
    phone.shell(f"rm {TMP}/big")


def test_a_tree_of_a_thousand_files_goes_and_comes_back_the_same(phone: Adb, tmp_path: Path) -> None:
    tree, back = tmp_path / "tree", tmp_path / "back"
    hashes = make_tree(tree, 1000)
    (tree / "link").symlink_to("d1")
    phone.out("push", str(tree), TMP)
    assert phone.shell(f"find {TMP}/tree -type f | wc -l") == "1000"
    assert phone.shell(f"readlink {TMP}/tree/link") == "d1"
    phone.out("pull", "-a", f"{TMP}/tree", str(back))
    assert {name: digest(back / name) for name in hashes} == hashes
    sent = {name: (tree / name).stat() for name in hashes}
    got = {name: (back / name).stat() for name in hashes}
    assert {name: info.st_mtime for name, info in got.items()} == {name: info.st_mtime for name, info in sent.items()}
    assert {bool(got[name].st_mode & 0o100) == bool(sent[name].st_mode & 0o100) for name in hashes} == {True}
    phone.shell(f"rm -r {TMP}/tree")


def test_push_marks_modes_as_adbd_does(phone: Adb, tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.write_text("#!/bin/sh\necho it runs\n")
    file.chmod(0o750)
    phone.out("push", str(file), f"{TMP}/program")
    assert phone.shell(f"stat -c %a {TMP}/program; {TMP}/program") == "777\nit runs"


def test_only_what_a_phone_may_write_can_be_written(phone: Adb, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    refused = phone.run("push", str(file), "/system/bin/file")
    assert refused.returncode == 1
    assert b"Read-only file system" in refused.stdout + refused.stderr
    for place in ("/", "/etc", "/usr", "/system/bin", "/sys/class", str(Path(__file__).parent)):
        assert phone.run("shell", f"touch '{place}/made-by-test'").returncode != 0, place
    assert phone.run("pull", "/data/none", str(tmp_path)).returncode == 1


def test_a_link_out_of_the_tree_leads_into_the_phone_not_the_host(phone: Adb, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("host's own")
    phone.shell(f"ln -sf {secret} {TMP}/link; mkdir -p /tmp/x")
    assert phone.run("pull", f"{TMP}/link", str(tmp_path / "got")).returncode == 1


def test_properties_are_the_phones(rack: RackState, phone: Adb, other: Adb) -> None:
    for adb in (phone, other):
        kind = PHONE_KINDS[adb.phone.kind]
        shown = dict(re.findall(r"^\[(.+?)\]: \[(.*)\]$", adb.shell("getprop"), re.MULTILINE))
        wanted = {
            "ro.product.model": kind.model,
            "ro.product.device": kind.device,
            "ro.product.manufacturer": kind.manufacturer,
            "ro.product.brand": kind.brand,
            "ro.soc.model": kind.soc,
            "ro.soc.manufacturer": kind.soc_manufacturer,
            "ro.board.platform": kind.platform,
            "ro.product.cpu.abi": "arm64-v8a",
            "sys.boot_completed": "1",
            "ro.htpfarm.virtual": "1",
        }
        assert {key: shown[key] for key in wanted} == wanted
        assert adb.shell("getprop ro.soc.model") == kind.soc
        assert shown["ro.boot.bootid"] == adb.shell("cat /proc/sys/kernel/random/boot_id")
    assert phone.shell("getprop ro.serialno") != other.shell("getprop ro.serialno")


def test_setprop_sets_what_may_be_set(phone: Adb) -> None:
    assert phone.shell("setprop debug.test 'a b'; getprop debug.test; getprop debug.none dflt") == "a b\ndflt"
    assert phone.run("shell", "setprop ro.soc.model SM9999").returncode == 1
    assert phone.shell("getprop ro.soc.model") == PHONE_KINDS[phone.phone.kind].soc


def test_battery_and_heat_follow_the_state_files(phone: Adb) -> None:
    root = Path(phone.phone.root)
    state = PhoneState(41, 38.5, "Discharging", False, 3, {"cpu-0-0": 71.5, "skin-therm": 47.25}, 1024)
    write_state(root, state)
    assert read_state(root).zones["skin-therm"] == 47.25
    battery = phone.shell("dumpsys battery")
    for line in ("  level: 41", "  temperature: 385", "  status: 3", "  USB powered: false"):
        assert line in battery.splitlines()
    heat = phone.shell("dumpsys thermalservice")
    assert "Thermal Status: 3" in heat.splitlines()
    assert "\tTemperature{mValue=47.250, mType=3, mName=skin-therm, mStatus=3}" in heat.splitlines()
    assert phone.shell("cat /sys/class/thermal/thermal_zone0/type /sys/class/thermal/thermal_zone0/temp") == (
        "cpu-0-0\n71500"
    )
    assert phone.shell("df /data | tail -1").split()[3] == "1024"
    write_state(root, PhoneState())
    assert int(phone.shell("df /data | tail -1").split()[3]) > 1024


def test_logcat_shows_clears_and_filters(phone: Adb) -> None:
    phone.shell("log -t test -p e broken pipe; log -t else fine")
    assert "E test: broken pipe" in phone.shell("logcat -d")
    only = phone.shell("logcat -d -s test").splitlines()
    assert len(only) == 2
    assert only[1].endswith("E test: broken pipe")
    phone.shell("logcat -c")
    assert "broken" not in phone.shell("logcat -d")


def test_processes_can_be_listed_and_killed_and_are_the_phones_own(phone: Adb, other: Adb) -> None:
    phone.shell(f"cp /bin/sleep {TMP}/napper; {TMP}/napper 300 </dev/null >/dev/null 2>&1 &")
    pid = until(lambda: phone.run("shell", "pidof napper").stdout.decode().strip())
    assert int(pid) < 100_000
    assert re.search(rf"^ *{pid} .*napper 300$", phone.shell("ps -A -o pid,args"), re.MULTILINE)
    assert "napper" not in other.shell("ps -A -o args")
    phone.shell(f"kill -9 {pid}")
    assert phone.run("shell", "pidof napper").returncode == 1


def test_a_command_sees_its_host_go(phone: Adb) -> None:
    """As on a phone: output to a closed stream ends the command; a silent one would live on."""
    adb = subprocess.Popen(phone.argv("shell", f"echo $$ > {TMP}/pid; while :; do echo x; sleep 0.05; done"))
    try:
        pid = until(lambda: phone.run("shell", f"cat {TMP}/pid").stdout.decode().strip())
    finally:
        adb.kill()
        adb.wait(HANG_S)
    until(lambda: phone.run("shell", f"kill -0 {pid}").returncode != 0)


def test_reboot_changes_the_boot_id_ends_processes_and_keeps_data(other: Adb) -> None:
    before = other.shell("cat /proc/sys/kernel/random/boot_id")
    nap = f"sleep 987.{os.getpid()}"
    other.shell(f"echo kept > {TMP}/kept; setprop debug.gone 1; {nap} </dev/null >/dev/null 2>&1 &")
    waiting = subprocess.Popen(other.argv("shell", "sleep 600"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: nap in other.shell("ps -A -o args"))
    assert commands_naming(nap)
    serialno = other.shell("getprop ro.serialno")
    other.out("reboot")
    assert waiting.wait(HANG_S) != 0
    until(lambda: boot_id(other) not in ("", before))
    other.out("wait-for-device")
    after = boot_id(other)
    assert other.shell("getprop ro.boot.bootid") == after
    assert not commands_naming(nap)  # on the whole host, not only in the phone's new view
    assert other.shell(f"cat {TMP}/kept; getprop debug.gone; getprop ro.serialno") == f"kept\n\n{serialno}"
    other.shell("while [ $(getprop sys.boot_completed) != 1 ]; do sleep 0.1; done")


def boot_id(adb: Adb) -> str:
    """Empty while the phone is away."""
    return adb.run("shell", "cat /proc/sys/kernel/random/boot_id").stdout.decode().strip()


def test_reboot_from_the_phones_own_shell(other: Adb) -> None:
    before = boot_id(other)
    assert other.run("shell", "reboot").returncode != 0
    until(lambda: boot_id(other) not in ("", before))


def test_a_phone_whose_first_process_dies_boots_again(other: Adb) -> None:
    before = boot_id(other)
    (inner,) = [p for p in _holders(Path(other.phone.root)) if _parent(p) in _holders(Path(other.phone.root))]
    os.kill(inner, signal.SIGKILL)
    until(lambda: boot_id(other) not in ("", before))
    assert "process 1 died" in other.shell("logcat -d")


def test_a_phone_can_drop_its_connections_and_be_away(other: Adb) -> None:
    before = boot_id(other)
    napping = other.shell("sleep 777 </dev/null >/dev/null 2>&1 & echo $!")
    waiting = subprocess.Popen(other.argv("shell", "cat"), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    tell(Path(other.phone.root), "nonsense\ndrop")
    assert waiting.wait(HANG_S) != 0
    assert waiting.stdin is not None
    waiting.stdin.close()
    until(lambda: boot_id(other) == before)
    tell(Path(other.phone.root), f"away {NEVER_S}")
    until(lambda: other.run("get-state").returncode != 0)
    tell(Path(other.phone.root), "back")
    until(lambda: boot_id(other) == before)
    assert "sleep 777" in other.shell("ps -A -o args")
    other.shell(f"kill {napping}")


def _holders(root: Path) -> list[int]:
    """Processes that hold the namespaces of the phone at `root`, by their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                if b"holder.py" in line and f'"{root}"'.encode() in line:
                    found.append(int(entry.name))
    return found


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("service", ["tcp", "localabstract"])
def test_forwards_reach_a_program_of_the_phone(phone: Adb, service: str, tmp_path: Path) -> None:
    server = tmp_path / "echo.py"
    server.write_text(
        "import socket, sys\n"
        "kind = sys.argv[1]\n"
        "s = socket.socket(socket.AF_INET if kind == 'tcp' else socket.AF_UNIX)\n"
        "s.bind(('127.0.0.1', 0) if kind == 'tcp' else '\\0htpfarm-test-%d' % __import__('os').getpid())\n"
        "s.listen()\n"
        "print(s.getsockname()[1] if kind == 'tcp' else s.getsockname()[1:].decode(), flush=True)\n"
        "c, _ = s.accept()\n"
        "while data := c.recv(65536):\n"
        "    c.sendall(data.upper())\n"
    )
    phone.out("push", str(server), f"{TMP}/echo.py")
    running = subprocess.Popen(
        phone.argv("shell", f"{sys.executable} {TMP}/echo.py {service}"), stdout=subprocess.PIPE, text=True
    )
    try:
        assert running.stdout is not None
        address = running.stdout.readline().strip()
        local = phone.out("forward", "tcp:0", f"{service}:{address}")
        with socket.create_connection(("127.0.0.1", int(local)), timeout=HANG_S) as client:
            body = b"abc" * 100_000
            with ThreadPoolExecutor(1) as pool:
                sending = pool.submit(client.sendall, body)
                got = b""
                while len(got) < len(body):
                    got += client.recv(65536)
                sending.result(HANG_S)
        assert got == body.upper()
        assert running.wait(HANG_S) == 0
        refused = phone.out("forward", "tcp:0", f"{service}:{'1' if service == 'tcp' else 'nobody'}")
        with socket.create_connection(("127.0.0.1", int(refused)), timeout=HANG_S) as client:
            assert client.recv(1) == b""
    finally:
        running.kill()
        running.communicate()
        phone.out("forward", "--remove-all")


def test_two_clients_at_once_do_not_wait_for_each_other(phone: Adb) -> None:
    phone.shell(f"rm -f {TMP}/gate; mkfifo {TMP}/gate")
    blocked = subprocess.Popen(phone.argv("shell", f"cat {TMP}/gate"), stdout=subprocess.PIPE)
    try:
        phone.shell(f"echo through > {TMP}/gate")
        assert blocked.communicate(timeout=HANG_S)[0] == b"through\n"
    finally:
        blocked.kill()
        blocked.communicate()


def test_four_phones_at_once_neither_block_nor_mix(rack: RackState, tmp_path: Path) -> None:
    hashes = make_tree(tmp_path / "tree", 60)

    def work(number: int) -> str:
        adb = Adb(rack, rack.phones[number % 4])
        match number // 4 % 3:
            case 0:
                done = adb.run(
                    "shell", f"getprop ro.soc.model; sha256sum; exit {number}", stdin=bytes([number]) * 500_000
                )
                body = hashlib.sha256(bytes([number]) * 500_000).hexdigest()
                assert (done.returncode, done.stdout.decode()) == (
                    number,
                    f"{PHONE_KINDS[adb.phone.kind].soc}\n{body}  -\n",
                )
            case 1:
                adb.out("push", str(tmp_path / "tree"), f"{TMP}/many{number}")
                assert adb.shell(f"find {TMP}/many{number} -type f | wc -l") == "60"
            case 2:
                back = tmp_path / f"back{number}"
                adb.out("push", str(tmp_path / "tree"), f"{TMP}/both{number}")
                adb.out("pull", f"{TMP}/both{number}", str(back))
                assert {name: digest(back / name) for name in hashes} == hashes
        return "done"

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(work, range(36), timeout=2 * HANG_S)) == ["done"] * 36


def test_adbutils_gets_along_with_it(rack: RackState, phone: Adb, tmp_path: Path) -> None:
    device = adbutils.AdbClient(rack.adb_host, rack.adb_port).device(phone.phone.serial)
    assert device.prop.model == PHONE_KINDS[phone.phone.kind].model
    result = device.shell2("echo a; exit 7", v2=True)
    assert (result.returncode, result.stdout) == (7, "a\n")
    file = tmp_path / "f"
    file.write_bytes(os.urandom(200_000))
    device.sync.push(str(file), f"{TMP}/f")
    assert device.sync.stat(f"{TMP}/f").size == 200_000
    assert device.sync.read_bytes(f"{TMP}/f") == file.read_bytes()


def test_the_runner_has_its_environment_whatever_the_caller_sets(phone: Adb) -> None:
    script = phone.shell("cat /system/bin/htpfarm-runner")
    assert "export PYTHONPATH=" in script
    assert f"export HTPFARM_PHONE_SOC={PHONE_KINDS[phone.phone.kind].soc}" in script


def test_uptime_is_the_phones(phone: Adb) -> None:
    assert re.search(r" up \d+ min, .*load average: ", phone.shell("uptime"))
    assert time.time() - int(phone.shell("cat /system/etc/htpfarm/boot_epoch")) < 3600
