"""Starting and ending racks: idempotent, safe from several processes at once, and never a stranger's process."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from events import HANG_S, until
from rack_support import BOOT_DELAY, Adb, commands_naming, phones, running_rack
from rich.console import Console

from harness.errors import ConfigError, InfraError
from harness.paths import REPOSITORY
from harness.rack import cli, manage
from harness.rack.namespace import namespace_support, rewrite
from harness.rack.processes import ProcessRef, alive, reference
from harness.rack.record import read_record, record_file, write_record
from harness.soc import PHONE_KINDS


def gone(text: str) -> bool:
    return until(lambda: not commands_naming(text), f"the end of {text}")


def test_up_status_down(tmp_path: Path) -> None:
    folder = tmp_path / "rack"
    assert manage.status(folder) is None
    assert manage.down(folder) is False
    with running_rack(folder, 2) as state:
        assert [phone.name for phone in state.phones] == ["phone0", "phone1"]
        assert manage.status(folder) == state
        assert "rack.server" in " ".join(commands_naming(str(folder)))
        assert manage.down(folder) is True
        assert manage.status(folder) is None
        assert gone(str(folder))
        with pytest.raises(OSError):
            socket.create_connection((state.adb_host, state.adb_port), timeout=2)
        assert manage.down(folder) is False


def test_up_again_finds_the_same_rack_and_after_down_the_same_serials_and_data(tmp_path: Path) -> None:
    with running_rack(tmp_path, 2) as first:
        Adb(first, first.phones[0]).shell("echo kept > /data/local/tmp/kept")
        assert manage.up(phones(2), state_dir=tmp_path) == first
        fewer = manage.up(phones(1), state_dir=tmp_path)
        assert fewer == replace(first, phones=first.phones[:1])
        manage.down(tmp_path)
        second = manage.up(phones(2), state_dir=tmp_path, boot_delay=BOOT_DELAY)
        assert second.server_pid != first.server_pid
        assert (second.phones, second.adb_port) == (first.phones, first.adb_port)
        assert Adb(second, second.phones[0]).shell("cat /data/local/tmp/kept") == "kept"


def test_a_taken_port_is_left_to_its_owner(tmp_path: Path) -> None:
    with running_rack(tmp_path, 1) as first:
        manage.down(tmp_path)
        port = int(first.phones[0].serial.partition(":")[2])
        with socket.socket() as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            stranger.bind(("127.0.0.1", port))
            stranger.listen()
            second = manage.up(phones(1), state_dir=tmp_path)
            assert second.phones[0].serial != first.phones[0].serial
            assert Adb(second, second.phones[0]).shell("echo hi") == "hi"


def test_other_phones_are_refused_while_a_rack_runs(tmp_path: Path) -> None:
    with running_rack(tmp_path, 1) as state:
        with pytest.raises(ConfigError, match="rack down"):
            manage.up([("phone0", PHONE_KINDS["galaxy_s25"])], state_dir=tmp_path)
        with pytest.raises(ConfigError, match="phone1"):
            manage.up(phones(2), state_dir=tmp_path)
        assert manage.status(tmp_path) == state


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "é"])
def test_names_that_could_not_be_folders_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        manage.up([(name, PHONE_KINDS["galaxy_s23"])], state_dir=tmp_path)


def test_two_processes_that_start_it_at_once_get_one_rack(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from harness.rack import manage; from harness.soc import PHONE_KINDS;"
        "s = manage.up([('one', PHONE_KINDS['galaxy_s24'])], state_dir=Path(sys.argv[1]));"
        "print(s.server_pid, s.adb_pid)"
    )
    try:
        both = [
            subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        said = {process.communicate(timeout=HANG_S)[0] for process in both}
        assert [process.returncode for process in both] == [0, 0, 0]
        assert len(said) == 1
        assert len([line for line in commands_naming(str(tmp_path)) if "rack.server" in line]) == 1
    finally:
        manage.down(tmp_path)


def test_a_killed_server_takes_its_phones_along_and_up_recovers(tmp_path: Path) -> None:
    with running_rack(tmp_path, 2) as first:
        adb = Adb(first, first.phones[1])
        marker = f"54321.{os.getpid()}"
        adb.shell(f"echo kept > /data/local/tmp/kept; sleep {marker} </dev/null >/dev/null 2>&1 &")
        until(lambda: commands_naming(f"sleep {marker}"))
        os.kill(first.server_pid, signal.SIGKILL)
        assert gone(f"sleep {marker}")
        assert gone(f"{tmp_path}/phones")
        assert manage.status(tmp_path) is None
        second = manage.up(phones(2), state_dir=tmp_path)
        assert second.server_pid != first.server_pid
        assert second.phones == first.phones
        assert Adb(second, second.phones[1]).shell("cat /data/local/tmp/kept") == "kept"


def test_a_killed_adb_server_is_replaced(tmp_path: Path) -> None:
    with running_rack(tmp_path, 1) as first:
        os.kill(first.adb_pid, signal.SIGKILL)
        second = manage.up(phones(1), state_dir=tmp_path)
        assert second.adb_pid != first.adb_pid
        assert Adb(second, second.phones[0]).shell("echo hi") == "hi"


def test_down_leaves_a_process_that_merely_has_the_number(tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        with running_rack(tmp_path, 1):
            record = read_record(tmp_path)
            assert record is not None
            manage.down(tmp_path)
            real = reference(stranger.pid)
            write_record(tmp_path, replace(record, server=ProcessRef(real.pid, real.start - 1), adb=None))
            assert manage.status(tmp_path) is None
            assert manage.down(tmp_path) is False
            assert alive(real)
    finally:
        stranger.kill()
        stranger.wait(HANG_S)


def test_a_damaged_record_is_no_rack(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"adb_port": 1}', json.dumps({"adb_port": 1, "server": {"pid": 1}})):
        record_file(tmp_path).write_text(text)
        assert manage.status(tmp_path) is None


def test_a_rack_whose_folder_cannot_hold_a_phone_says_why(tmp_path: Path) -> None:
    (tmp_path / "phones").write_text("in the way")
    with pytest.raises(InfraError, match=r"server\.log"):
        manage.up(phones(1), state_dir=tmp_path)
    assert gone(str(tmp_path))


def test_adbs_own_kill_server_does_not_end_it(tmp_path: Path) -> None:
    with running_rack(tmp_path, 1) as state:
        adb = Adb(state, state.phones[0])
        adb.run("kill-server")
        assert adb.shell("echo alive") == "alive"


def test_the_user_keeps_their_adb_keys_to_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("ANDROID_USER_HOME", raising=False)
    with running_rack(tmp_path / "rack", 1):
        assert not (home / ".android").exists()


def test_the_runner_script_is_renewed_and_overrides_the_caller(tmp_path: Path) -> None:
    with running_rack(tmp_path, 1) as state:
        adb = Adb(state, state.phones[0])
        show = 'printf "%s|" "$LD_LIBRARY_PATH" "$HTPFARM_PHONE_SOC" "$@"'
        argv = ["/bin/sh", "-c", show, "runner"]
        env = {"LD_LIBRARY_PATH": "/lib of the host's own", "HTPFARM_PHONE_SOC": "wrong"}
        manage.up(phones(1), state_dir=tmp_path, runner_argv=argv, runner_env=env)
        said = adb.shell("cd /data/local/tmp && LD_LIBRARY_PATH=/vendor/lib64 htpfarm-runner --prompt 'two words'")
        assert said == "/lib of the host's own|SM8550|--prompt|two words|"
        python = [sys.executable, "-c", "import harness.errors, filelock; print('from the venv')"]
        manage.up(phones(1), state_dir=tmp_path, runner_argv=python)
        assert adb.shell("htpfarm-runner") == "from the venv"


def test_namespaces_are_probed_for_real() -> None:
    ok, why = namespace_support()
    assert ok == (why == "")


def test_where_namespaces_are_forbidden_the_probe_says_so() -> None:
    """Forbidden for real, in a user namespace whose limit of further ones is zero."""
    code = "from harness.rack.namespace import namespace_support; print(namespace_support())"
    limit = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    done = subprocess.run(
        ["unshare", "-r", "sh", "-c", limit, "sh", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    if done.returncode != 0:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    assert done.stdout.startswith("(False, 'unshare user, mount and pid namespaces: ")


def test_the_users_cache_can_be_read_on_a_phone_even_below_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTPFARM_CACHE", str(tmp_path))
    try:
        state = manage.up(phones(1))
        assert state.phones[0].root.startswith(f"{tmp_path}/rack/")
        (tmp_path / "libraries").mkdir()
        (tmp_path / "libraries/libQnnHtp.so").write_text("made after the phone had booted")
        adb = Adb(state, state.phones[0])
        assert adb.shell(f"cat {tmp_path}/libraries/libQnnHtp.so") == "made after the phone had booted"
        assert adb.run("shell", f"touch {tmp_path}/libraries/x").returncode != 0
    finally:
        manage.down()


def test_commands_are_rewritten_for_a_plain_phone() -> None:
    assert rewrite("cd /data/local/tmp && ls /system/bin /sdcard/x '/data'", "/r") == (
        "cd /r/data/local/tmp && ls /r/system/bin /r/data/media/0/x '/r/data'"
    )
    for untouched in ("ls /usr/data", "echo a/data", "/database", "/system.img", "/proc/cpuinfo", "x=/datax"):
        assert rewrite(untouched, "/r") == untouched


def test_a_plain_rack_works_without_namespaces(tmp_path: Path) -> None:
    with running_rack(tmp_path / "rack", 2, plain=True) as state:
        assert [phone.fallback for phone in state.phones] == [True, True]
        adb, other = (Adb(state, phone) for phone in state.phones)
        done = adb.run("shell", "cat > /data/local/tmp/f; echo err >&2; exit 3", stdin=b"body")
        assert (done.returncode, done.stderr) == (3, b"err\n")
        assert (Path(state.phones[0].root) / "data/local/tmp/f").read_bytes() == b"body"
        assert adb.shell("getprop ro.soc.model; dumpsys battery | grep level") == "SM8550\n  level: 100"
        assert other.run("shell", "cat /data/local/tmp/f").returncode == 1
        adb.out("pull", "/data/local/tmp/f", str(tmp_path / "f"))
        assert (tmp_path / "f").read_bytes() == b"body"
        before = adb.shell("cat /proc/sys/kernel/random/boot_id")
        waiting = subprocess.Popen(adb.argv("shell", f"sleep 600.{os.getpid()}"), stdout=subprocess.DEVNULL)
        until(lambda: commands_naming(f"sleep 600.{os.getpid()} "))
        adb.out("reboot")
        assert waiting.wait(HANG_S) != 0

        def booted() -> str:
            now = adb.run("shell", "cat /proc/sys/kernel/random/boot_id").stdout.decode().strip()
            return "" if now == before else now

        assert until(booted) == adb.shell("getprop ro.boot.bootid")


def test_the_command_line_shows_a_rack(tmp_path: Path) -> None:
    with running_rack(tmp_path, 1) as state:
        assert cli.cmd_status(state_dir=tmp_path) == state
        shown = json.loads(cli.to_json(state))
        assert shown["running"] is True
        assert shown["phones"][0]["serial"] == state.phones[0].serial
        console = Console(record=True, width=120, file=io.StringIO())
        cli.print_state(state, console)
        assert state.phones[0].serial in console.export_text()
        assert cli.cmd_down(state_dir=tmp_path) is True
    assert json.loads(cli.to_json(None)) == {"running": False}
