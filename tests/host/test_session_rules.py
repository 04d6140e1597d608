"""What a session makes of its runner's end: lost, late, rebooted, killed; and what it fetches, of a near phone."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from farm_rack import OBSERVER, OWN, session
from lease_support import Clock
from near_phone import Loss, NearPhone, near_phone

from harness.errors import ConfigError, InfraError
from harness.farm import session as module
from harness.farm.connect import COMMAND_SECONDS
from harness.farm.deploy import DeployReport, deploy
from harness.farm.moments import BEGINS, ENDS, ROUND_TRIPS, Moments
from harness.farm.payload import PayloadFile
from harness.farm.session import (
    SessionSpec,
    boot_id_when_back,
    prompt_flags,
    run_session,
    session_command,
    session_folder,
)
from harness.farm.shell import AdbFailure, AdbLost, AdbTimeout
from harness.farm.workspace import END_SESSION, RUN

FOLDER = f"{RUN}/test{OWN}-1"


@pytest.fixture
def link(tmp_path: Path) -> NearPhone:
    return near_phone(tmp_path / "phone")


def runner(link: NearPhone, script: str) -> DeployReport:
    """Deploys a runner of these lines."""
    path = link.root / "runner.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    return deploy(link, [PayloadFile(path, "qnn_llama_runner", executable=True)])


def ends(link: NearPhone) -> int:
    """How often a session was ended."""
    return sum(line.startswith(END_SESSION) for line, _ in link.asked)


# --- what is asked for


@pytest.mark.parametrize("name", ["a", "7", "A.b_c-d", "20260102-030405-abcd"])
def test_a_run_is_named_by_letters_digits_and_a_few_signs(name: str) -> None:
    assert session_folder(SessionSpec(name, 12, "r", ())) == f"/data/local/tmp/htpfarm/run/{name}-12"


@pytest.mark.parametrize("name", ["", ".a", "-a", "_a", "a b", "a/b", "..", "a\n"])
def test_other_names_of_runs_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a run's id"):
        session_folder(SessionSpec(name, 1, "r", ()))


def test_the_command_goes_to_its_folder_says_who_it_is_and_sets_what_it_was_told_to() -> None:
    spec = SessionSpec("r", 2, "run", ("--prompt", "a b"), env={"ADSP_LIBRARY_PATH": "/x;/y", "V": "1 2"})
    before, _, after = session_command(spec).partition("; echo ${20}; }; ")
    assert before.startswith("cd /data/local/tmp/htpfarm/run/r-2 || exit 126; start_of()")
    assert after.partition("> pid; ")[2] == (
        "export LD_LIBRARY_PATH=/data/local/tmp/htpfarm/run/r-2; export ADSP_LIBRARY_PATH='/x;/y'; export V='1 2'; "
        "exec /data/local/tmp/htpfarm/run/r-2/run --prompt 'a b'"
    )
    assert "export ADSP_LIBRARY_PATH=/data/local/tmp/htpfarm/run/r-2; exec" in session_command(replace(spec, env={}))


@pytest.mark.parametrize("prompts", [[], [""], ["a", ""], ["", "a"]])
def test_an_empty_prompt_is_refused_wherever_it_stands(prompts: list[str]) -> None:
    with pytest.raises(ConfigError, match="generates nothing"):
        prompt_flags(prompts)


def test_a_runner_has_ten_minutes_and_nothing_more_unless_told_otherwise(link: NearPhone, tmp_path: Path) -> None:
    deployed = runner(link, "env > said; set > more; echo $#")
    result = run_session(link, deployed, SessionSpec("test", 1, "qnn_llama_runner", ()), tmp_path / "out")
    assert [limit for line, limit in link.asked if "exec " in line and line.startswith("cd ")] == [600.0]
    assert (result.stdout, dict(result.files), result.missing) == ("0\n", {}, ())
    assert link.sent == ["push runner.sh"]


def test_a_runner_that_was_not_deployed_is_refused_before_anything_is_done(link: NearPhone, tmp_path: Path) -> None:
    deployed = runner(link, "true")
    with pytest.raises(ConfigError, match="other is not among the deployed files"):
        run_session(link, deployed, replace(session(1), runner="other"), tmp_path / "out")
    assert not link.place(FOLDER).exists()


# --- a session that ends


def test_a_session_is_all_that_its_runner_said_and_wrote(link: NearPhone, tmp_path: Path) -> None:
    late = OBSERVER.replace('"prompt_tokens":10', '"prompt_tokens":11')
    script = f"echo out; cat in.json; echo err >&2; echo text > outputs.txt; echo '{OBSERVER}'; echo '{late}'; exit 3"
    (tmp_path / "in").write_text("{}\n")
    inputs = (PayloadFile(tmp_path / "in", "in.json"),)
    spec = replace(session(1, "--flag", outputs=("outputs.txt", "none.txt")), inputs=inputs)
    began = time.monotonic()
    result = run_session(link, runner(link, script), spec, tmp_path / "out")
    assert 0 < result.seconds <= time.monotonic() - began
    assert result.exit_status == 3
    assert result.stdout.splitlines() == ["out", "{}", OBSERVER, late]
    assert result.stderr == "err\n"
    assert result.observer
    assert result.observer.prompt_tokens == 11  # the last generation's
    assert {name: path.read_text() for name, path in result.files.items()} == {"outputs.txt": "text\n"}
    assert result.files["outputs.txt"] == tmp_path / "out" / "outputs.txt"
    assert result.missing == ("none.txt",)
    assert (result.boot_id_before, result.boot_id_after) == ("boot-1", "boot-1")
    assert (result.timed_out, result.killed) == (False, "")
    assert len(result.round_trips) == 2 * ROUND_TRIPS  # before it and after it
    assert min(result.round_trips) > 0
    assert result.moments == Moments()
    assert result.command == session_command(spec)
    assert not link.place(FOLDER).exists()
    assert ends(link) == 2  # before it, whatever had its name, and it


def test_a_session_has_its_own_files_and_none_of_an_earlier_one_of_its_name(link: NearPhone, tmp_path: Path) -> None:
    old = link.place(FOLDER)
    old.mkdir(parents=True)
    (old / "outputs.txt").write_text("of yesterday")
    deployed = runner(link, "ls > there.txt; readlink qnn_llama_runner >> there.txt")
    result = run_session(link, deployed, session(1, outputs=("outputs.txt", "there.txt")), tmp_path / "out")
    assert result.missing == ("outputs.txt",)
    assert result.observer is None
    there = result.files["there.txt"].read_text().splitlines()
    assert there == ["pid", "qnn_llama_runner", "there.txt", link.here(deployed.store["qnn_llama_runner"])]


def test_empty_outputs_are_missing_and_those_in_folders_are_fetched_into_folders(
    link: NearPhone, tmp_path: Path
) -> None:
    script = "mkdir -p a/b; echo x > a/b/c.txt; : > empty.txt; mkdir folder.txt; echo y > 'a b;c.txt'; echo z > d"
    outputs = ("empty.txt", "a b;c.txt", "folder.txt", "a/b/c.txt", "d")
    result = run_session(link, runner(link, script), session(1, outputs=outputs), tmp_path / "out" / "deep")
    found = {name: path.read_text() for name, path in result.files.items()}
    assert found == {"a b;c.txt": "y\n", "a/b/c.txt": "x\n", "d": "z\n"}
    assert result.files["a/b/c.txt"] == tmp_path / "out" / "deep" / "a" / "b" / "c.txt"
    assert result.missing == ("empty.txt", "folder.txt")


@pytest.mark.parametrize("bad", ["/etc/passwd", "../x", "a/../../x"])
def test_outputs_outside_of_the_sessions_folder_are_refused_and_nothing_stays(
    link: NearPhone, tmp_path: Path, bad: str
) -> None:
    with pytest.raises(ConfigError, match="must lie in the session's folder") as caught:
        run_session(link, runner(link, "echo x > ok"), session(1, outputs=("ok", bad)), tmp_path / "out")
    assert caught.value.evidence == bad
    assert not link.place(FOLDER).exists()


@pytest.mark.parametrize(("times", "pulls"), [(0, 1), (1, 2), (2, 2)])
def test_an_output_that_arrives_damaged_is_fetched_once_more(
    link: NearPhone, tmp_path: Path, times: int, pulls: int
) -> None:
    def spoil(word: str, end: Path) -> None:
        if word == "pull" and link.sent.count("pull outputs.txt") <= times:
            end.write_text("texT\n")

    link.on_way.append(spoil)
    deployed, spec = runner(link, "echo text > outputs.txt"), session(1, outputs=("outputs.txt",))
    if times < 2:
        result = run_session(link, deployed, spec, tmp_path / "out")
        assert result.files["outputs.txt"].read_text() == "text\n"
    else:
        with pytest.raises(InfraError, match="a file arrived damaged") as caught:
            run_session(link, deployed, spec, tmp_path / "out")
        assert caught.value.where == f"near: {FOLDER}/outputs.txt"
        assert "cable" in caught.value.remedy
        on_phone, _, here = caught.value.evidence.partition(", here ")
        assert on_phone.startswith("sha256 on the phone ")
        assert len(here) == 64
        assert not link.place(FOLDER).exists()
    assert link.sent.count("pull outputs.txt") == pulls


# --- a session that does not


def test_a_runner_that_is_late_is_ended_and_what_it_wrote_is_fetched(link: NearPhone, tmp_path: Path) -> None:
    deployed = runner(link, "echo started; echo oops >&2; echo x > outputs.txt; exec sleep 307")
    link.losses.append(Loss("exec ", link.place(FOLDER) / "outputs.txt"))
    result = run_session(link, deployed, session(1, outputs=("outputs.txt",)), tmp_path / "out")
    assert (result.exit_status, result.timed_out) == (None, True)
    assert (result.stdout, result.stderr) == ("started\n", "oops\n")
    assert result.files["outputs.txt"].read_text() == "x\n"
    assert result.round_trips == ()  # nothing is measured by a runner that did not end
    assert not link.place(FOLDER).exists()
    assert not running("sleep 307")


def test_the_lines_of_a_runners_log_are_timed_from_the_command_on(link: NearPhone, tmp_path: Path) -> None:
    script = f"echo '{BEGINS.decode()} 7' >&2; echo '{ENDS.decode()}'"  # the second one on another stream
    result = run_session(link, runner(link, script), session(1), tmp_path / "out")
    assert result.moments.begins
    assert 0 < result.moments.begins <= result.seconds * 1000
    assert result.moments == Moments(begins=result.moments.begins)


def running(command: str) -> list[str]:
    """Processes of this computer with exactly this command line."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode().strip())
        except OSError:
            continue
    return [line for line in lines if line == command]


def lost(word: str, error: type[AdbFailure]):  # type: ignore[no-untyped-def]
    """Commands with this word are lost before they start."""

    def see(line: str) -> None:
        if word in line and line.startswith("cd "):
            raise error("lost", serial="near", command=line, stdout="said", stderr="so")

    return see


@pytest.mark.parametrize("error", [AdbTimeout, AdbLost])
def test_what_is_lost_before_its_runner_began_is_infrastructure(
    link: NearPhone, tmp_path: Path, error: type[AdbFailure]
) -> None:
    link.before.append(lost("exec ", error))
    with pytest.raises(error, match="lost"):
        run_session(link, runner(link, "true"), session(1), tmp_path / "out")
    assert not link.place(FOLDER).exists()
    assert ends(link) == 2


def test_a_connection_that_is_lost_while_the_runner_runs_is_infrastructure_and_leaves_nothing(
    link: NearPhone, tmp_path: Path
) -> None:
    deployed = runner(link, "echo x > outputs.txt; exec sleep 308")
    link.losses.append(Loss("exec ", link.place(FOLDER) / "outputs.txt", AdbLost))
    with pytest.raises(AdbLost, match="lost"):
        run_session(link, deployed, session(1, outputs=("outputs.txt",)), tmp_path / "out")
    assert not link.place(FOLDER).exists()
    assert not running("sleep 308")
    assert "pull outputs.txt" not in link.sent


@pytest.mark.parametrize("error", [AdbTimeout, AdbLost])
def test_what_is_lost_in_a_reboot_is_a_result(link: NearPhone, tmp_path: Path, error: type[AdbFailure]) -> None:
    def reboots(line: str) -> None:
        if "exec " in line and line.startswith("cd "):
            (link.root / "boot_id").write_text("boot-2\n")
            raise error("lost", serial="near", command=line, stdout=OBSERVER, stderr="so")

    link.before.append(reboots)
    result = run_session(link, runner(link, "true"), session(1, outputs=("outputs.txt",)), tmp_path / "out")
    assert (result.boot_id_before, result.boot_id_after) == ("boot-1", "boot-2")
    assert (result.exit_status, result.timed_out) == (None, error is AdbTimeout)
    assert (result.stdout, result.stderr, result.missing) == (OBSERVER, "so", ("outputs.txt",))


def test_an_error_while_it_is_cleaned_up_does_not_hide_the_first(link: NearPhone, tmp_path: Path) -> None:
    def gone(line: str) -> None:
        if "exec " in line and line.startswith("cd "):
            link.before.append(lost_for_good)
            raise AdbLost("the first", serial="near", command=line)

    def lost_for_good(line: str) -> None:
        if line.startswith(END_SESSION):
            raise AdbLost("the second", serial="near", command=line)

    link.before.append(gone)
    with pytest.raises(AdbLost, match="the first"):
        run_session(link, runner(link, "true"), session(1), tmp_path / "out")


def test_that_a_session_cannot_be_ended_is_an_error_of_its_own(link: NearPhone, tmp_path: Path) -> None:
    deployed = runner(link, "true")

    def refuses(line: str) -> None:
        if line.startswith(END_SESSION) and ends(link) > 1:
            raise AdbLost("no end", serial="near", command=line)

    link.before.append(refuses)
    with pytest.raises(AdbLost, match="no end"):
        run_session(link, deployed, session(1), tmp_path / "out")


# --- Android's low-memory killer


@pytest.mark.parametrize(
    ("signal", "log", "killed"),
    [
        (9, "Kill 'qnn' ($PID), old\nKill 'qnn' ($PID), new\nKill 'x' (1$PID)", "Kill 'qnn' ($PID), new"),
        (9, "Kill 'x' (1$PID), uid 7", ""),
        (9, "", ""),
        (6, "Kill 'qnn' ($PID), new", ""),
        (0, "Kill 'qnn' ($PID), new", ""),
    ],
)
def test_a_killed_runner_was_killed_by_android_if_its_log_names_the_process(
    link: NearPhone, tmp_path: Path, signal: int, log: str, killed: str
) -> None:
    end = f"kill -{signal} $$" if signal else "true"
    lines = "".join(f'echo "{line}"; ' for line in log.replace("$PID", "$$").splitlines())
    deployed = runner(link, f"{{ {lines} true; }} > $PHONE/logcat; echo $$ > pid.txt; {end}")
    result = run_session(link, deployed, session(1, outputs=("pid.txt",)), tmp_path / "out")
    assert result.exit_status == (128 + signal if signal else 0)
    assert result.killed == killed.replace("$PID", result.files["pid.txt"].read_text().strip())


# --- a phone that is away


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def away(link: NearPhone, clock: Clock, until: float) -> list[float]:
    """The phone does not tell its boot before `until`; returns when it was asked."""
    asked: list[float] = []

    def silent(line: str) -> None:
        asked.append(clock.now - 1000.0)
        if clock.now < until:
            raise AdbLost("away", serial="near", command=line)

    link.before.append(silent)
    return asked


def test_a_phone_that_is_away_is_asked_twice_a_second_and_once_more_at_the_end(link: NearPhone, clock: Clock) -> None:
    asked = away(link, clock, 2000.0)
    with pytest.raises(AdbLost, match="away"):
        boot_id_when_back(link, 1.2)
    assert asked == pytest.approx([0.0, 0.5, 1.0, 1.2])
    asked.clear()
    clock.now = 1000.0
    with pytest.raises(AdbLost, match="away"):
        boot_id_when_back(link, 0.0)
    assert asked == [0.0]
    clock.now = 1999.8
    assert boot_id_when_back(link, 60.0) == "boot-1"
    assert clock.now == pytest.approx(2000.3)


def test_time_that_passes_between_two_looks_at_the_clock_is_no_negative_sleep(link: NearPhone, clock: Clock) -> None:
    away(link, clock, 2000.0)
    look = clock.monotonic

    def ticking() -> float:
        clock.now += 0.01
        return look()

    clock.monotonic = ticking  # type: ignore[method-assign]
    slept: list[float] = []
    clock.sleep = slept.append  # type: ignore[method-assign]
    with pytest.raises(AdbLost, match="away"):
        boot_id_when_back(link, 0.015)
    assert slept == [0.0]


def test_a_lost_phone_may_take_three_commands_time_to_come_back(link: NearPhone, tmp_path: Path, clock: Clock) -> None:
    deployed = runner(link, "true")

    def gone(line: str) -> None:
        if "exec " in line and line.startswith("cd "):
            away(link, clock, 1e9)
            raise AdbLost("lost", serial="near", command=line)

    link.before.append(gone)
    with pytest.raises(AdbLost, match="away"):
        run_session(link, deployed, session(1), tmp_path / "out")
    assert clock.now - 1000.0 == pytest.approx(3 * COMMAND_SECONDS)
    link.before.clear()
    clock.now = 1000.0
    link.before.append(gone)
    with pytest.raises(AdbLost, match="away"):
        run_session(link, deployed, session(1), tmp_path / "out", return_s=1.0)
    assert clock.now - 1000.0 == pytest.approx(1.0)
