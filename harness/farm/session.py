"""One session: a fresh runner process on one phone, in a folder of its own that is gone afterwards."""

from __future__ import annotations

import hashlib
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from harness.errors import ConfigError, InfraError
from harness.farm.connect import COMMAND_SECONDS, PhoneLink, ShellResult
from harness.farm.deploy import DeployReport
from harness.farm.identity import boot_id
from harness.farm.moments import Arrivals, Moments, round_trips
from harness.farm.observer import Observer, parse_observers
from harness.farm.payload import PayloadFile
from harness.farm.recover import end_session
from harness.farm.shell import AdbLost, AdbTimeout
from harness.farm.workspace import PID_FILE, RECORD_PID, RUN

PULL_TRIES = 2
SIGKILLED = 128 + 9
RETURN_SECONDS = 3 * COMMAND_SECONDS
"""How long a phone that was lost may take to come back: a boot."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class SessionSpec:
    """What to run.

    Attributes:
        run_id: the run it belongs to.
        number: tells sessions of one run apart.
        runner: name of the program among the deployed files.
        flags: its arguments; files are named as they are called in the payload and `inputs`, without folders.
        outputs: files it is expected to write, by name, in its folder.
        inputs: small files for this session alone; sent every time.
        env: variables for it; LD_LIBRARY_PATH and ADSP_LIBRARY_PATH are set to the session's folder before.
        timeout_s: for the runner, in seconds.
    """

    run_id: str
    number: int
    runner: str
    flags: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    inputs: tuple[PayloadFile, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 600.0


@dataclass(frozen=True)
class SessionResult:
    """What came of it; `failures.classify` says what that means.

    Attributes:
        exit_status: None if the runner was ended at its time limit or lost in a reboot.
        stdout: the runner's; likewise stderr.
        observer: its last record, or None if it made none.
        files: name → file on this host, for each output that is there and not empty.
        missing: expected outputs that are not.
        boot_id_before: the phone's boot when it started.
        boot_id_after: and when it was over.
        seconds: from start to end of the runner, on the host's clock.
        timed_out: whether it was ended at its time limit.
        command: the line that ran on the phone.
        killed: what Android's low-memory killer said of the runner, if that ended it.
        moments: when the lines of its log arrived that say how far it is.
        round_trips: milliseconds that commands took which do nothing, some before the runner and some after it; none
            where it did not end by itself.
    """

    exit_status: int | None
    stdout: str
    stderr: str
    observer: Observer | None
    files: Mapping[str, Path]
    missing: tuple[str, ...]
    boot_id_before: str
    boot_id_after: str
    seconds: float
    timed_out: bool
    command: str
    killed: str = ""
    moments: Moments = field(default_factory=Moments)
    round_trips: tuple[float, ...] = ()


def prompt_flags(prompts: Sequence[str]) -> tuple[str, ...]:
    """`--prompt X` for each turn: qnn_llama_runner sees no other form (with `--prompt=X` it runs nothing and exits 0).

    Raises:
        ConfigError: no prompt, or an empty one.
    """
    if not prompts or not all(prompts):
        raise ConfigError("a runner without a prompt generates nothing", remedy="give at least one prompt, none empty")
    return tuple(word for prompt in prompts for word in ("--prompt", prompt))


def session_folder(spec: SessionSpec) -> str:
    """The session's folder on the phone."""
    if not _ID.fullmatch(spec.run_id):
        raise ConfigError(f"{spec.run_id!r} cannot be a run's id", remedy="use letters, digits, dots, _ and -")
    return f"{RUN}/{spec.run_id}-{spec.number}"


def session_command(spec: SessionSpec) -> str:
    """The line that runs the session's program in its folder. Pure."""
    folder = session_folder(spec)
    # One folder for both paths: the DSP's loader takes ADSP_LIBRARY_PATH as a single path.
    env = {"LD_LIBRARY_PATH": folder, "ADSP_LIBRARY_PATH": folder, **spec.env}
    exports = "".join(f"export {name}={shlex.quote(value)}; " for name, value in env.items())
    program = shlex.join([f"{folder}/{spec.runner}", *spec.flags])
    return f"cd {shlex.quote(folder)} || exit 126; {RECORD_PID}; {exports}exec {program}"


def run_session(
    link: PhoneLink,
    deployed: DeployReport,
    spec: SessionSpec,
    into: Path,
    *,
    return_s: float = RETURN_SECONDS,
) -> SessionResult:
    """Runs the program once and fetches what it wrote. Whatever happens, nothing of it is left running on the phone.

    Args:
        link: the phone; leased by the caller.
        deployed: the files it holds; each appears in the session's folder under its name.
        spec: what to run.
        into: folder on this host for the outputs; made if need be.
        return_s: how long to wait for a phone that is lost meanwhile.

    Returns:
        The result, also when the runner failed, ran into its time limit, or the phone rebooted.

    Raises:
        InfraError: the phone does not answer or does not come back, its connection was lost without a reboot, or it
            never began to run what it was told to.
    """
    command = session_command(spec)
    folder = session_folder(spec)
    before = boot_id(link)
    over = False
    try:
        prepare_folder(link, deployed, spec)
        trips = round_trips(link)
        arrivals = Arrivals()
        ran = _run(link, command, spec.timeout_s, arrivals)
        seconds = time.monotonic() - arrivals.started
        after = boot_id_when_back(link, return_s)
        if after == before and (isinstance(ran, AdbLost) or (isinstance(ran, AdbTimeout) and not _began(link, folder))):
            raise ran
        killed = low_memory_kill(link, folder) if isinstance(ran, ShellResult) and ran.exit_status == SIGKILLED else ""
        trips = (*trips, *round_trips(link)) if isinstance(ran, ShellResult) else ()
        files = _fetch(link, folder, spec.outputs, into)
        end_session(link, folder)
        over = True
    finally:
        if not over:
            with suppress(InfraError):  # the first error counts; the next holder of the phone sweeps again
                end_session(link, folder)
    status = ran.exit_status if isinstance(ran, ShellResult) else None
    observers = parse_observers(ran.stdout)
    return SessionResult(
        exit_status=status,
        stdout=ran.stdout,
        stderr=ran.stderr,
        observer=observers[-1] if observers else None,
        files=files,
        missing=tuple(name for name in spec.outputs if name not in files),
        boot_id_before=before,
        boot_id_after=after,
        seconds=seconds,
        timed_out=isinstance(ran, AdbTimeout),
        command=command,
        killed=killed,
        moments=arrivals.moments,
        round_trips=trips,
    )


def _began(link: PhoneLink, folder: str) -> bool:
    """Whether a session's program was started at all: a shell that hangs is not a runner that hangs."""
    return link.shell(["test", "-s", f"{folder}/{PID_FILE}"]).exit_status == 0


def low_memory_kill(link: PhoneLink, folder: str) -> str:
    """The line in which Android's lmkd says that it ended a session's process; empty if it does not.

    Raises:
        InfraError: the phone does not answer.
    """
    pid = shlex.quote(f"{folder}/{PID_FILE}")
    line = f'read -r pid rest < {pid} && logcat -d -s lowmemorykiller | grep -F "($pid)" | tail -n 1'
    return link.shell(line).stdout.strip()


def prepare_folder(link: PhoneLink, deployed: DeployReport, spec: SessionSpec) -> None:
    """Makes the session's folder, with the deployed files and the session's inputs in it and nothing else.

    Raises:
        ConfigError: the runner is not among the deployed files.
        InfraError: the phone does not answer, or an input does not arrive.
    """
    if spec.runner not in deployed.store:
        raise ConfigError(f"{spec.runner} is not among the deployed files", remedy="deploy the payload first")
    folder = session_folder(spec)
    end_session(link, folder)  # a session of the same name cannot leave its outputs to this one
    # Links and not copies; symbolic, since Android forbids its shell to make hard ones.
    links = "".join(f" && ln -s {shlex.join([path, f'{folder}/{name}'])}" for name, path in deployed.store.items())
    link.must(f"mkdir -p {shlex.quote(folder)}{links}")
    for file in spec.inputs:
        link.push(file.path, f"{folder}/{file.name}")


def _run(link: PhoneLink, command: str, timeout_s: float, arrivals: Arrivals) -> ShellResult | AdbTimeout | AdbLost:
    try:
        return link.shell(command, timeout_s=timeout_s, watch=arrivals.see)
    except (AdbTimeout, AdbLost) as error:
        return error


def boot_id_when_back(link: PhoneLink, return_s: float) -> str:
    """The boot id, after waiting for a phone that reboots: a runner may end just before adb is lost.

    Raises:
        InfraError: it does not answer within `return_s` seconds.
    """
    deadline = time.monotonic() + return_s
    while True:
        try:
            return boot_id(link)
        except InfraError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(min(0.5, max(0.0, deadline - time.monotonic())))


def _fetch(link: PhoneLink, folder: str, outputs: Sequence[str], into: Path) -> dict[str, Path]:
    """Fetches those outputs that are there and not empty; a name may lie in a folder below the session's."""
    if bad := [name for name in outputs if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]:
        raise ConfigError("outputs must lie in the session's folder", evidence=", ".join(bad))
    line = "".join(
        f"[ -f {path} ] && [ -s {path} ] && echo {number} $(sha256sum {path}); "
        for number, path in enumerate(shlex.quote(f"{folder}/{name}") for name in outputs)
    )
    found = {}
    for said in link.must(line + "true").stdout.splitlines():
        number, sha256, *_ = said.split()
        name = outputs[int(number)]
        local = into / name
        local.parent.mkdir(parents=True, exist_ok=True)
        _pull_whole(link, f"{folder}/{name}", local, sha256)
        found[name] = local
    return found


def _pull_whole(link: PhoneLink, remote: str, local: Path, sha256: str) -> None:
    """adb checks nothing of what it pulls: a byte that arrives wrong would be the model's fault."""
    for _ in range(PULL_TRIES):
        link.pull(remote, local)
        with local.open("rb") as file:
            arrived = hashlib.file_digest(file, "sha256").hexdigest()
        if arrived == sha256:
            return
    raise InfraError(
        "a file arrived damaged",
        where=f"{link.serial}: {remote}",
        remedy="check the cable and the USB hub",
        evidence=f"sha256 on the phone {sha256}, here {arrived}",
    )
