"""Two rack hosts in network namespaces and a compile host on one engine; one rack host is lost in the middle of a run.

    python benchmarks/two_hosts.py [--loss kill|cut|none] [--cells 40] [--seconds 2] [--real]

Needs root. Cells sleep on virtual phones (real adb, leases, deploys, sessions, records; see sleeping_cells.py), unless
`--real`: then it is `pytest -m device --engine` with the tiny model, compiled by the compile host where its cache lacks
it. `kill` ends every process of the host with SIGKILL; `cut` takes its network away. Prints JSON; the exit status is 1
if a cell has no outcome, two, or another than PASSED, or a record that was written is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from sleeping_cells import SCRIPT

from harness.build.cache import Artifact
from harness.conduct.attempt import Attempt
from harness.conduct.farm_loop import FarmLoop
from harness.conduct.live import LiveLog
from harness.engine.cells import RemoteCells, Watch
from harness.engine.driver import Engine
from harness.errors import HarnessError
from harness.evaluate.choice import EvalChoice
from harness.farm.deploy import deploy
from harness.farm.failures import Failure, classify
from harness.farm.payload import RUNNER, PayloadFile
from harness.farm.session import SessionSpec, run_session
from harness.matrix import Cell
from harness.model_file import Mode
from harness.models import load_models
from harness.paths import MODELS, REPOSITORY, cache_root
from harness.results import DeployRecord, OutcomeRecord, RecordWriter, RunInfo, load_run, read_records, utc_now
from harness.schedule.jobs import Job, Slot
from harness.soc import find_soc
from harness.target import Target

PORT = 8786
LIMIT_S = 300.0
SOC = "SM8650"


def sleep_on_phone(attempt: Attempt) -> Failure | None:
    """An attempt that sleeps on its phone as many seconds as its recipe's name says (`s2.5-007`), or as that says for
    the first host's phones (`s2.5_600-007`).
    """
    folder = attempt.bench.folder
    (folder / "runner.sh").write_text(SCRIPT)
    (folder / "input.json").write_text("{}")
    payload = [PayloadFile(folder / "runner.sh", RUNNER, executable=True)]
    done = deploy(attempt.phone.link, payload)
    name = attempt.phone.phone.name
    attempt.bench.record(DeployRecord(attempt.cell.id, name, done.pushed, done.reused, done.bytes, 0.0))
    attempt.say("sleeping")
    seconds = attempt.cell.recipe.removeprefix("s").partition("-")[0].split("_")[-1 if name.startswith("a") else 0]
    spec = SessionSpec(
        f"{attempt.session_id}-{attempt.cell.recipe}",
        0,
        RUNNER,
        (seconds, "good"),
        outputs=("outputs.txt",),
        inputs=(PayloadFile(folder / "input.json", "input.json"),),
        timeout_s=3600,
    )
    return classify(run_session(attempt.phone.link, done, spec, attempt.folder(0)))


def ip(*arguments: str) -> str:
    """`ip`, which must succeed."""
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=LIMIT_S).stdout


@dataclass(frozen=True)
class Network:
    """A namespace joined to this one by a pair of veths: `10.<net>.<number>.1` here, `.2` there."""

    name: str
    net: int
    number: int

    @property
    def here(self) -> str:
        """This end's address."""
        return f"10.{self.net}.{self.number}.1"

    @property
    def link(self) -> str:
        """This end's name."""
        return f"{self.name}h"

    def pids(self) -> list[int]:
        """Every process in it."""
        return [int(word) for word in ip("netns", "pids", self.name).split()]

    def kill(self) -> int:
        """Ends every process in it, by its number, until there is none; returns how many."""
        killed: set[int] = set()
        deadline = time.monotonic() + LIMIT_S
        while (left := self.pids()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed.update(left)
            time.sleep(0.05)
        return len(killed)

    def cut(self) -> None:
        """Takes its network away."""
        ip("link", "set", self.link, "down")


def permitted() -> str:
    """Why namespaces cannot be made here; empty: they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with networks(1):
            return ""
    except (subprocess.SubprocessError, OSError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
        return f"network namespaces are not permitted here: {error} {said}".strip()


@contextmanager
def networks(count: int) -> Iterator[list[Network]]:
    """Namespaces, taken away in any case, with every process in them."""
    tag = os.getpid() % 10000
    made: list[Network] = []
    try:
        for number in range(1, count + 1):
            one = Network(f"htp{tag}n{number}", 64 + os.getpid() % 64, number)
            ip("netns", "add", one.name)
            made.append(one)
            inside = f"{one.name}p"
            ip("link", "add", one.link, "type", "veth", "peer", "name", inside)
            ip("link", "set", inside, "netns", one.name)
            ip("address", "add", f"{one.here}/24", "dev", one.link)
            ip("link", "set", one.link, "up")
            ip("-n", one.name, "address", "add", f"{one.here[:-1]}2/24", "dev", inside)
            ip("-n", one.name, "link", "set", inside, "up")
            ip("-n", one.name, "link", "set", "lo", "up")
            ip("-n", one.name, "route", "add", "default", "via", one.here)
        yield made
    finally:
        for one in made:
            one.kill()
            ip("netns", "delete", one.name)
            with contextlib.suppress(subprocess.CalledProcessError):  # goes with its other end
                ip("link", "delete", one.link)


def rack_file(folder: Path, names: Sequence[str]) -> Path:
    """A rack of virtual phones with the same SoC."""
    path = folder / f"{'-'.join(names)}.yaml"
    phones = "".join(f"  - {{name: {name}, virtual: galaxy_s24}}\n" for name in names)
    path.write_text(f"version: 1\nphones:\n{phones}")
    return path


@contextmanager
def process(folder: Path, name: str, *arguments: str, network: Network | None = None, cache: Path) -> Iterator[Path]:
    """`htpfarm engine …` with a cache folder of its own, in a namespace or here; yields its log. Ended in any case."""
    log = folder / f"{name}.log"
    into = ["ip", "netns", "exec", network.name] if network else []
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with log.open("w") as stream:
        running = subprocess.Popen(
            [*into, sys.executable, "-m", "harness.cli", "engine", *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "HTPFARM_CACHE": str(cache), "PYTHONPATH": path},
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        try:
            yield log
        finally:
            running.terminate()
            try:
                running.wait(timeout=LIMIT_S)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait(timeout=30)


def said(log: Path, words: str) -> None:
    """Waits until a process has said something.

    Raises:
        TimeoutError: it did not.
    """
    deadline = time.monotonic() + LIMIT_S
    while words not in (text := log.read_text() if log.exists() else ""):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {words!r} in {log}: {text}")
        time.sleep(0.1)


def listeners(port: int) -> list[int]:
    """Processes of this user that listen on a port of this computer."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ports = {one.laddr.port for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN}
            found += [process.pid] if port in ports else []
    return found


@contextmanager
def two_hosts(folder: Path, phones: int, compile_cache: Path, lost_after: float = 30.0) -> Iterator[list[Network]]:
    """The engine, its two rack hosts (`a0`, `a1`, …; `b0`, …) and its compile host; yields the rack hosts' networks."""
    with contextlib.ExitStack() as stack:
        nets = stack.enter_context(networks(2))
        address = f"{nets[0].here}:{PORT}"
        serve = ("serve", "--host", nets[0].here, "--port", str(PORT), "--lost-after", str(lost_after))
        said(stack.enter_context(process(folder, "serve", *serve, cache=folder / "serve")), "serves")
        logs = [stack.enter_context(process(folder, "compile", "join", address, "--compile", cache=compile_cache))]
        for net, letter in zip(nets, "ab", strict=True):
            rack = rack_file(folder, [f"{letter}{number}" for number in range(phones)])
            arguments = ("join", address, "--rack", str(rack), "--name", f"host-{letter}")
            cache = folder / f"cache-{letter}"
            logs.append(stack.enter_context(process(folder, f"host-{letter}", *arguments, network=net, cache=cache)))
        for log in logs:
            said(log, "has joined")
        yield nets


@dataclass
class Lost:
    """When the host was lost, and what there was then."""

    at: float = 0.0
    records: bytes = b""
    outcomes: int = 0
    processes: int = 0


def lose(network: Network, how: str, folder: Path) -> Lost:
    """Loses a host now."""
    records = (folder / "records.jsonl").read_bytes()
    lost = Lost(time.monotonic(), records, len(load_run(folder).outcomes))
    if how == "kill":
        lost.processes = network.kill()
    elif how == "cut":
        network.cut()
    return lost


def sleeping(
    folder: Path,
    address: str,
    cells: int,
    seconds: float,
    network: Network | None,
    how: str,
    held_s: float | None = None,
) -> dict[str, object]:
    """A run of sleeping cells; the host of `network` is lost when a third of them is done and a cell runs on it.

    Args:
        held_s: cells on the first host sleep so long, so that one runs there whenever it is lost.
    """
    run = folder / "run"
    writer, log = RecordWriter(run), LiveLog(run)
    writer.append(RunInfo(run.name, utc_now(), tuple(sys.argv), platform.node(), "", {}, address, Target.SIM))
    (folder / "none.pte").write_bytes(b"nothing" * 1000)
    (folder / "reference").mkdir()
    (folder / "reference" / "reference.json").write_text("{}")
    artifact = Artifact("given", folder / "none.pte", folder / "reference", {})
    engine = Engine(address)
    engine.admit()
    watch = Watch(engine)
    watch.start()
    phones = sorted(engine.phones_now())
    model = load_models(MODELS)["tiny_llama"]
    sleep = f"s{seconds:g}" + (f"_{held_s:g}" if held_s else "")
    every = [Cell(model, Mode.KV, find_soc(SOC), model.lengths, f"{sleep}-{number:03}") for number in range(cells)]
    of = {cell.id: cell for cell in every}
    farm = RemoteCells(
        engine,
        run_id=run.name,
        folder=run,
        target=Target.SIM,
        evaluation=EvalChoice(),
        record=writer.append,
        say=log.say,
        priority={},
        attempts_before={},
        attempt="two_hosts:sleep_on_phone",
    )
    lost: list[Lost] = []

    def run_one(job: Job, phone: str) -> None:
        outcome = farm.run_cell(of[job.id], artifact, phones, phone)
        done = len(load_run(run).outcomes)
        if (
            network is not None
            and how != "none"
            and not lost
            and done >= cells // 3
            and outcome.phone
            and outcome.phone.startswith("b")
        ):
            lost.append(Lost())  # another thread may come here at the same time
            # `a` goes: this cell was on `b`, and cells run on `a`.
            lost[0] = lose(network, how, run)

    began = time.monotonic()
    jobs = [Job(cell.id, SOC, seconds) for cell in every]
    slots = [Slot(name, SOC) for name in phones]
    stranded = FarmLoop(jobs, slots, run_one, usable=watch.usable, lost=watch.lost).run()
    took = time.monotonic() - began
    watch.stop()
    engine.close()
    return {**judge(run, set(of), lost[0] if lost else None), "stranded": len(stranded), "seconds": round(took, 1)}


def judge(run: Path, planned: set[str], lost: Lost | None) -> dict[str, object]:
    """What a run came to."""
    data = load_run(run)
    outcomes = Counter(r.cell for r in read_records(run / "records.jsonl") if isinstance(r, OutcomeRecord))
    again = {cell: outcome.attempts for cell, outcome in data.outcomes.items() if outcome.attempts > 1}
    found: dict[str, object] = {
        "planned": len(planned),
        "outcomes": dict(Counter(str(outcome.status) for outcome in data.outcomes.values())),
        "without": sorted(planned - set(outcomes)),
        "twice": sorted(cell for cell, count in outcomes.items() if count > 1),
        "tried_again": again,
        "phones": dict(Counter(str(outcome.phone) for outcome in data.outcomes.values())),
        "not_understood": len(data.raw),
    }
    if lost is not None:
        whole = (run / "records.jsonl").read_bytes().startswith(lost.records)
        found |= {"records_kept": whole, "outcomes_before": lost.outcomes, "processes_killed": lost.processes}
    return found


def good(found: dict[str, object]) -> bool:
    """Whether the run ended complete and right."""
    return (
        found["outcomes"] == {"PASSED": found["planned"]}
        and not found["without"]
        and not found["twice"]
        and not found["not_understood"]
        and found.get("records_kept", True) is True
    )


def real(folder: Path, address: str, network: Network, how: str) -> dict[str, object]:
    """`pytest -m device --engine` with the tiny model; host `a` is lost while a cell of its runs."""
    reports, cache = folder / "reports", folder / "driver"
    arguments = ["--engine", address, "--any-phone", "--socs", SOC, "-n", "auto", "--eval-tokens", "32"]
    began = time.monotonic()
    with (folder / "pytest.log").open("w") as stream:
        pytest = subprocess.Popen(
            [
                *(sys.executable, "-m", "pytest", "-m", "device", "-p", "no:cacheprovider"),
                *(*arguments, "--reports", str(reports)),
            ],
            cwd=REPOSITORY,
            env={**os.environ, "HTPFARM_CACHE": str(cache)},
            stdout=stream,
            stderr=stream,
        )
        lost = None
        try:
            deadline = time.monotonic() + 1800
            while pytest.poll() is None and time.monotonic() < deadline:
                time.sleep(0.2)
                live = "".join(path.read_text() for path in reports.glob("*/live.log"))
                if how != "none" and lost is None and " a0 " in live and "prompt 2/2" in live.partition(" a0 ")[2]:
                    (run,) = (path for path in reports.iterdir() if path.is_dir())
                    lost = lose(network, how, run)
            status = pytest.wait(timeout=1)
        finally:
            if pytest.poll() is None:
                pytest.kill()
                pytest.wait(timeout=30)
    (run,) = (path for path in reports.iterdir() if path.is_dir())
    planned = {entry.cell for entry in load_run(run).plan}
    return {**judge(run, planned, lost), "exit_status": status, "seconds": round(time.monotonic() - began, 1)}


def main() -> int:
    """Prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loss", choices=("kill", "cut", "none"), default="kill")
    parser.add_argument("--cells", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=2.0, help="that a cell sleeps")
    parser.add_argument("--phones", type=int, default=2, help="of each host")
    parser.add_argument("--lost-after", type=float, default=5.0)
    parser.add_argument("--real", action="store_true")
    given = parser.parse_args()
    if why := permitted():
        print(why, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        phones = 1 if given.real else given.phones
        with two_hosts(folder, phones, cache_root(), given.lost_after) as nets:
            address = f"{nets[0].here}:{PORT}"
            if given.real:
                found = real(folder, address, nets[0], given.loss)
                print((folder / "pytest.log").read_text(), file=sys.stderr)
            else:
                os.environ["HTPFARM_CACHE"] = str(folder / "driver")
                try:
                    found = sleeping(folder, address, given.cells, given.seconds, nets[0], given.loss)
                except HarnessError as error:
                    print(error, file=sys.stderr)
                    return 1
                print((folder / "run" / "live.log").read_text()[-4000:], file=sys.stderr)
    print(json.dumps(found, indent=2))
    return 0 if good(found) else 1


if __name__ == "__main__":
    sys.exit(main())
