"""Deployment and sessions on a virtual phone: real adb, real processes; the runner alone is a stand-in script."""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import farm_rack
import pytest
from farm_rack import GOOD_RUNNER, HANGING_RUNNER, OBSERVER, deploy_runner, link_to, processes, session

from harness.errors import ConfigError, EnvError, FailureClass, InfraError
from harness.farm.connect import AdbServer, PhoneLink
from harness.farm.deploy import deploy, free_bytes
from harness.farm.failures import classify
from harness.farm.identity import attach, boot_id, identify, survey
from harness.farm.lease import Owner, acquire
from harness.farm.moments import BEGINS, ENDS, FIRST_TOKEN, ROUND_TRIPS, Moments
from harness.farm.payload import PayloadFile, sim_payload
from harness.farm.recover import leased, sweep
from harness.farm.session import SessionSpec, prompt_flags, run_session
from harness.farm.shell import AdbFailure, AdbLost, AdbTimeout
from harness.farm.workspace import BOOT_ID, RECORD_PID, RUN, START_OF, STORE
from harness.inventory import Inventory, Phone, load_inventory
from harness.paths import REPOSITORY
from harness.rack.manage import RackState
from harness.soc import PHONE_KINDS, SOCS


@pytest.fixture(scope="module", params=[None, pytest.param(True, id="plain", marks=pytest.mark.slow)])
def rack(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[RackState]:
    kinds = {"s24": "galaxy_s24", "exynos": "galaxy_s24_exynos"}
    with farm_rack.running_rack(tmp_path_factory.mktemp("rack"), kinds, plain=request.param) as state:
        yield state


@pytest.fixture
def link(rack: RackState) -> Iterator[PhoneLink]:
    phone = link_to(rack, "s24")
    phone.wait_ready(30)
    yield phone
    phone.wait_ready(30)
    sweep(phone)
    phone.must(["rm", "-rf", STORE])
    assert phone.must(f"ls {RUN} 2>/dev/null | wc -l").stdout.strip() == "0"


def test_shell_tells_status_and_streams_apart_and_quotes(link: PhoneLink) -> None:
    text = "a b'c\"$HOME`x`\n;é"
    result = link.shell(["printf", "%s", text])
    assert (result.exit_status, result.stdout, result.stderr) == (0, text, "")
    result = link.shell('echo "$V"; echo bad >&2; cat; exit 7', env={"V": text})
    assert (result.exit_status, result.stdout, result.stderr) == (7, f"{text}\n", "bad\n")
    assert link.shell("kill -9 $$").exit_status == 137
    assert len(link.shell("head -c 3000000 /dev/zero").stdout) == 3_000_000


def test_a_failed_command_says_all(link: PhoneLink) -> None:
    with pytest.raises(AdbFailure) as caught:
        link.must("echo why >&2; exit 3")
    error = caught.value
    assert (error.serial, error.exit_status, error.stderr) == (link.serial, 3, "why\n")
    assert "exit 3" in str(error)
    assert "exit status 3" in str(error)


def test_the_time_limit_holds_for_a_command_that_keeps_printing(link: PhoneLink) -> None:
    with pytest.raises(AdbTimeout) as caught:
        link.shell("while :; do echo on; sleep 0.05; done", timeout_s=0.5)
    assert caught.value.stdout.startswith("on\n")
    for line in processes(link, "while :"):
        link.shell(["kill", "-9", line.split()[1]])  # it may just have ended by itself: nobody reads what it prints


def test_no_phone_and_no_server() -> None:
    with pytest.raises(InfraError, match="no adb server answers"):
        AdbServer("127.0.0.1", 1).link("x").shell("true")


def test_an_unknown_serial(rack: RackState, tmp_path: Path) -> None:
    link = AdbServer(rack.adb_host, rack.adb_port).link("nosuch")
    with pytest.raises(InfraError, match="not there"):
        link.wait_ready(0)
    with pytest.raises(AdbFailure, match="not there"):
        link.shell("true")
    (tmp_path / "f").write_text("x")
    with pytest.raises(AdbFailure) as caught:
        link.push(tmp_path / "f", "/data/local/tmp/f")
    assert "nosuch" in caught.value.stderr


def test_a_session_says_when_its_lines_arrived_and_what_adb_takes(link: PhoneLink, tmp_path: Path) -> None:
    lines = [words.decode() for words in (BEGINS, FIRST_TOKEN, ENDS)]
    script = "#!/bin/sh\n" + "".join(f"echo 'I 00:00 executorch:x.cpp:1] {line} 3' >&2; sleep 0.2\n" for line in lines)
    result = run_session(link, deploy_runner(link, tmp_path, script), session(1), tmp_path)
    seen = result.moments
    assert seen.begins is not None
    assert seen.first_token is not None
    assert seen.ends is not None
    assert 0 < seen.begins < seen.first_token < seen.ends < result.seconds * 1000
    assert len(result.round_trips) == 2 * ROUND_TRIPS
    assert min(result.round_trips) > 0
    # Half a line, and what only standard output holds, is not seen.
    script = f"#!/bin/sh\necho '{lines[0]}'\nprintf '{lines[2]}' >&2\n"
    assert run_session(link, deploy_runner(link, tmp_path, script), session(2), tmp_path).moments == Moments()


def test_identify(rack: RackState, link: PhoneLink) -> None:
    found = identify(link)
    assert (found.model, found.label, found.soc) == ("SM-S921U", "Galaxy S24", SOCS["SM8650"])
    assert found.virtual
    assert found.boot_id == boot_id(link)
    exynos = identify(link_to(rack, "exynos"))
    assert exynos.soc is None
    assert "Exynos" in exynos.reason


def test_attach_takes_virtual_and_serial_phones_and_refuses_wrong_labels(rack: RackState, tmp_path: Path) -> None:
    serial = link_to(rack, "s24").serial
    path = tmp_path / "devices.yaml"

    def with_soc(soc: str) -> Inventory:
        path.write_text(
            f"version: 1\nadb: {{host: 127.0.0.1, port: {rack.adb_port}}}\nphones:\n"
            f"  - {{name: exynos, virtual: galaxy_s24_exynos}}\n  - {{name: lab, serial: '{serial}'{soc}}}\n"
            "  - {name: gone, serial: R3CX}\n"
        )
        return load_inventory(path)

    found = survey(with_soc(", soc: SM8650"), rack)
    assert [(a.phone.name, a.identity.soc and a.identity.soc.name) for a in found.attached] == [
        ("exynos", None),
        ("lab", "SM8650"),
    ]
    assert [(phone.name, error.failure_class) for phone, error in found.refused] == [("gone", FailureClass.INFRA)]
    assert [a.phone.name for a in survey(with_soc(""), rack).attached] == ["exynos", "lab"]
    with pytest.raises(ConfigError) as caught:
        attach(with_soc(", soc: SM8750"), rack)
    assert str(path) in caught.value.where
    assert "lab" in caught.value.where
    assert "SM8650" in caught.value.remedy
    with pytest.raises(InfraError, match="not running"):
        attach(with_soc(""), None)


def test_a_virtual_phone_of_another_kind_is_refused(rack: RackState) -> None:
    phone = Phone("s24", None, PHONE_KINDS["galaxy_s25"], SOCS["SM8750"])
    with pytest.raises(ConfigError, match="SM8750"):
        attach(Inventory(Path("devices.yaml"), "127.0.0.1", 5037, (phone,)), rack)


def files(folder: Path) -> list[PayloadFile]:
    (folder / "m.pte").write_bytes(bytes(range(256)) * 5000)
    (folder / "tok").write_bytes(b"tokens")
    (folder / "r").write_text("#!/bin/sh\n")
    return [
        PayloadFile(folder / "m.pte", "m.pte"),
        PayloadFile(folder / "tok", "tok"),
        PayloadFile(folder / "r", "r", True),
    ]


def test_a_second_deployment_sends_nothing(link: PhoneLink, tmp_path: Path) -> None:
    first = deploy(link, files(tmp_path))
    assert (first.pushed, first.reused) == (("m.pte", "tok", "r"), ())
    second = deploy(link, files(tmp_path))
    assert (second.pushed, second.reused, second.bytes) == ((), ("m.pte", "tok", "r"), 0)
    assert second.store == first.store
    modes = link.must(["stat", "-c", "%a", *first.store.values()]).stdout.split()
    assert modes == ["644", "644", "755"]
    link.pull(first.store["m.pte"], tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "m.pte").read_bytes()
    (tmp_path / "tok").write_bytes(b"tokenS")
    again = [PayloadFile(tmp_path / "m.pte", "m.pte"), PayloadFile(tmp_path / "tok", "tok")]
    third = deploy(link, again)
    assert (third.pushed, third.bytes) == (("tok",), 6)
    assert third.store["tok"] != first.store["tok"]


@pytest.mark.parametrize(
    "damage",
    [
        "printf x | dd of={} bs=1 conv=notrunc 2>/dev/null",  # same size
        "echo more >> {}",
        "rm {}",
        "rm $(dirname {})/.m.pte.ok",
        "echo 0 > $(dirname {})/.m.pte.ok",
    ],
)
def test_a_damaged_store_is_mended(link: PhoneLink, tmp_path: Path, damage: str) -> None:
    first = deploy(link, files(tmp_path))
    link.must(damage.format(first.store["m.pte"]))
    assert deploy(link, files(tmp_path)).pushed == ("m.pte",)
    link.pull(first.store["m.pte"], tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "m.pte").read_bytes()
    assert deploy(link, files(tmp_path)).pushed == ()


def test_damage_that_keeps_the_time_is_found_when_asked(link: PhoneLink, tmp_path: Path) -> None:
    first = deploy(link, files(tmp_path))
    path = first.store["m.pte"]
    link.must(
        f"touch -r {path} {path}.t; printf x | dd of={path} bs=1 conv=notrunc 2>/dev/null; touch -r {path}.t {path}"
    )
    assert deploy(link, files(tmp_path)).pushed == ()
    assert deploy(link, files(tmp_path), verify=True).pushed == ("m.pte",)


def test_a_file_damaged_on_the_way_is_never_taken(
    link: PhoneLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link is real; what it sends is changed after the host hashed it, once or always."""
    send, bad = PhoneLink.push, [1]

    def push(self: PhoneLink, local: Path, remote: str, **more: float) -> None:
        if bad.pop() if bad else False:
            (tmp_path / "other").write_bytes(local.read_bytes() + b"!")
            local = tmp_path / "other"
        send(self, local, remote, **more)

    monkeypatch.setattr(PhoneLink, "push", push)
    deployed = deploy(link, files(tmp_path))
    link.pull(deployed.store["m.pte"], tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "m.pte").read_bytes()
    link.must(["rm", "-rf", STORE])
    bad[:] = [1] * 9
    with pytest.raises(InfraError, match="arrived damaged"):
        deploy(link, files(tmp_path))
    assert link.must(f"find {STORE} -type f | wc -l").stdout.strip() == "0"


def test_full_storage_is_told_before_anything_is_sent(rack: RackState, link: PhoneLink, tmp_path: Path) -> None:
    (phone,) = (phone for phone in rack.phones if phone.name == "s24")
    told = Path(phone.root) / "system/etc/htpfarm/data_free_kib"
    told.write_text(f"{64 * 1024}\n")
    try:
        assert free_bytes(link) == 64 * 2**20
        with pytest.raises(EnvError, match=r"storage full: 1 MiB to push and 64 MiB to spare, but 64 MiB free"):
            deploy(link, files(tmp_path))
        assert link.must(f"ls {STORE} 2>/dev/null | wc -l").stdout.strip() == "0"
    finally:
        told.unlink()
    deploy(link, files(tmp_path))


def test_deployment_refuses_what_cannot_be(link: PhoneLink, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        deploy(link, [PayloadFile(tmp_path / "no", "no")])
    with pytest.raises(ConfigError, match="same name"):
        deploy(link, [files(tmp_path)[0], files(tmp_path)[0]])
    with pytest.raises(ConfigError, match="cannot name"):
        PayloadFile(tmp_path, "../x")


def test_a_good_session(link: PhoneLink, tmp_path: Path) -> None:
    deployed = deploy_runner(link, tmp_path, GOOD_RUNNER)
    (tmp_path / "in").write_text('{"a": 1}')
    prompts = ['it\'s a "test" $(exit 1)', "--odd"]
    spec = SessionSpec(
        "run",
        1,
        "qnn_llama_runner",
        prompt_flags(prompts),
        outputs=("outputs.txt", "inference_speed.txt"),
        inputs=(PayloadFile(tmp_path / "in", "input.json"),),
        timeout_s=30,
    )
    result = run_session(link, deployed, spec, tmp_path / "out")
    assert classify(result) is None
    assert result.exit_status == 0
    assert result.files["outputs.txt"].read_text() == f'--prompt {prompts[0]} --prompt --odd\n{{"a": 1}}'
    assert result.files["inference_speed.txt"].read_text() == "12.5\n"
    assert result.stderr.startswith("ADSP /")
    assert result.stderr.endswith(f"{RUN}/run-1\n")
    assert result.observer
    assert result.observer.ttft_ms == 120
    assert result.boot_id_before == result.boot_id_after == boot_id(link)
    assert link.shell(["ls", f"{RUN}/run-1"]).exit_status != 0


@pytest.mark.parametrize(
    ("script", "failure", "words"),
    [
        ("echo hello > outputs.txt; exit 0", FailureClass.PRODUCT, "no PyTorchObserver"),
        (f"echo '{OBSERVER}'; exit 0", FailureClass.PRODUCT, "wrote no outputs.txt"),
        (f"echo '{OBSERVER}'; : > outputs.txt", FailureClass.PRODUCT, "wrote no outputs.txt"),
        (f"echo '{OBSERVER}'; echo x > outputs.txt; kill -6 $$", FailureClass.PRODUCT, "SIGABRT"),
        ("echo 'Failed to load skel, error: 1008' >&2; exit 0", FailureClass.CONFIG, "skel library"),
        ("exec /no/such/program", FailureClass.PRODUCT, "127"),
    ],
)
def test_sessions_that_do_not_count(
    link: PhoneLink, tmp_path: Path, script: str, failure: FailureClass, words: str
) -> None:
    deployed = deploy_runner(link, tmp_path, f"#!/bin/sh\n{script}\n")
    found = classify(run_session(link, deployed, session(1, outputs=("outputs.txt",)), tmp_path / "out"))
    assert found
    assert found.failure_class is failure
    assert words in found.reason


def test_the_time_limit_ends_the_runner_and_its_children_on_the_phone(link: PhoneLink, tmp_path: Path) -> None:
    deployed = deploy_runner(link, tmp_path, HANGING_RUNNER)
    seen: list[list[str]] = [[]]

    def watch() -> None:
        # Until the runner and its child are there: how soon that is depends on the machine.
        for _ in range(40):
            if len(seen[0]) < 2:
                seen[0] = processes(link, "sleep 30")
                time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = run_session(link, deployed, session(2, timeout_s=6), tmp_path / "out")
    watcher.join()
    assert len(seen[0]) == 2
    assert result.timed_out
    assert result.exit_status is None
    assert result.stdout == "started\n"
    assert processes(link, "sleep 30") == []
    assert processes(link, "test-2/qnn_llama_runner") == []  # without namespaces other racks' runners are seen too
    found = classify(result)
    assert found
    assert found.failure_class is FailureClass.PRODUCT
    assert "still running" in found.reason


def test_a_reboot_in_a_session_is_a_crash(link: PhoneLink, tmp_path: Path) -> None:
    deployed = deploy_runner(link, tmp_path, "#!/bin/sh\necho going\nreboot\nsleep 60\n")
    result = run_session(link, deployed, session(3), tmp_path / "out", return_s=60)
    assert result.boot_id_before != result.boot_id_after
    found = classify(result)
    assert found
    assert found.failure_class is FailureClass.CRASH
    assert deploy_runner(link, tmp_path, "#!/bin/sh\necho going\nreboot\nsleep 60\n").pushed == ()


def test_a_lost_connection_is_infrastructure_and_leaves_nothing(
    rack: RackState, link: PhoneLink, tmp_path: Path
) -> None:
    deployed = deploy_runner(link, tmp_path, HANGING_RUNNER)
    (phone,) = (phone for phone in rack.phones if phone.name == "s24")
    pull_cable = threading.Timer(0.7, lambda: (Path(phone.root) / "dev/htpfarm-control").write_text("drop"))
    pull_cable.start()
    with pytest.raises(AdbLost):
        run_session(link, deployed, session(4), tmp_path / "out", return_s=60)
    assert processes(link, "sleep 30") == []


GONE = f"{RECORD_PID}; cd /; exec sleep 304"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


DYING = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from farm_rack import HANGING_RUNNER, deploy_runner, session
from harness.farm.connect import AdbServer
from harness.farm.lease import Owner
from harness.farm.recover import leased
from harness.farm.session import run_session
link = AdbServer("127.0.0.1", int(sys.argv[2])).link(sys.argv[3])
folder = Path(sys.argv[4])
with leased(link, Owner.this_process("dying"), lease_dir=folder / "leases"):
    run_session(link, deploy_runner(link, folder, HANGING_RUNNER), session(5, timeout_s=60), folder)
"""


def test_what_a_killed_run_left_is_swept(rack: RackState, link: PhoneLink, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", DYING, str(Path(__file__).parent), str(rack.adb_port), link.serial, str(tmp_path)]
    with subprocess.Popen(argv, cwd=REPOSITORY) as process:
        wait_for(lambda: len(processes(link, "sleep 30")) == 2)
        with pytest.raises(InfraError, match="no phone is free"):
            acquire(link.serial, Owner.this_process("next"), lease_dir=tmp_path / "leases")
        process.kill()
    assert len(processes(link, "sleep 30")) == 2, "the runner outlives its host, as on a phone"
    # Strangers that have the number of a pid file, but not its start or its boot, must live.
    link.must(
        f"{START_OF} mkdir -p {RUN}/old-1 {RUN}/old-2; cd /data; nohup sleep 303 >/dev/null 2>&1 & "
        f"echo $! 1 $(cat {BOOT_ID}) > {RUN}/old-1/pid; echo $! $(start_of $!) x > {RUN}/old-2/pid"
    )
    # A recorded process that has left its folder must not.
    link.must(f"mkdir {RUN}/old-3; (cd {RUN}/old-3; exec sh -c {shlex.quote(GONE)}) >/dev/null 2>&1 &")
    wait_for(lambda: len(processes(link, "sleep 304")) == 1)
    link.must(f"mkdir -p {STORE}/0; echo x > {STORE}/0/.m.1.part; echo y > {STORE}/0/keep")
    with leased(link, Owner.this_process("next"), lease_dir=tmp_path / "leases") as (lease, report):
        assert lease.held
    assert len(report.killed) == 4  # the script and its two children, and the one that left
    removed = {path[path.index(RUN.removesuffix("/run")) :] for path in report.removed}
    assert removed == {*(f"{RUN}/old-{n}" for n in (1, 2, 3)), f"{RUN}/test-5", f"{STORE}/0/.m.1.part"}
    (stranger,) = processes(link, "sleep 30")
    assert "sleep 303" in stranger
    assert link.must(["cat", f"{STORE}/0/keep"]).stdout == "y\n"
    assert not sweep(link)
    link.must(["kill", stranger.split()[1]])


def test_the_launcher_reaches_the_phones_runner(link: PhoneLink, tmp_path: Path) -> None:
    (tmp_path / "m.pte").write_bytes(b"x")
    (tmp_path / "tok.bin").write_bytes(b"x")
    payload = sim_payload(tmp_path / "m.pte", tmp_path / "tok.bin", folder=tmp_path)
    deployed = deploy(link, payload.files)
    spec = SessionSpec("r", 1, payload.runner, ("--model_path", payload.model, "--prompt", "a b"), timeout_s=30)
    result = run_session(link, deployed, spec, tmp_path)
    assert (result.exit_status, result.stdout) == (0, "got --model_path m.pte --prompt a b\n")
