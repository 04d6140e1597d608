"""Dask and Ray tried on what a farm needs: in an environment that has the engine, `engine_trial.py --engine dask|ray`.

Prints JSON: weight of the dependency, start-up, placement by resources, a lost worker, TLS. Nothing of htpfarm is
imported, so that the environment can hold the engine alone. docs/engine.md has the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LIMIT_S = 120.0
NEED, WHOLE = 6, 8
"""Units of memory that a compile takes, and that the compile host has: two never fit at once."""


def weight(name: str) -> dict[str, object]:
    """A package with all it needs: how many packages, and how many MB (10^6 bytes) they take installed."""
    found: dict[str, importlib.metadata.Distribution] = {}
    left = [name]
    while left:
        key = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if key in found:
            continue
        try:
            found[key] = importlib.metadata.distribution(key)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or Python
        needs = [line for line in found[key].requires or () if "extra ==" not in line]
        left += [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in needs]
    size = sum(
        path.stat().st_size
        for one in found.values()
        for file in one.files or ()
        if (path := Path(str(one.locate_file(file)))).is_file()
    )
    return {"packages": len(found), "megabytes": round(size / 1e6, 1), "version": found[name].version}


def hold(seconds: float) -> tuple[float, float, int]:
    """A task: when it began and ended, and the process that ran it."""
    began = time.time()
    time.sleep(seconds)
    return began, time.time(), os.getppid()


def own_address() -> str:
    """The address that this computer has towards others, which Ray prefers to the loopback's; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(one.getsockname()[0])


def certificates(folder: Path) -> dict[str, Path]:
    """A CA and a certificate for this computer's addresses, by openssl."""
    paths = {name: folder / f"{name}.pem" for name in ("ca", "cakey", "cert", "key")}
    names = folder / "names.cnf"
    names.write_text(f"subjectAltName=IP:127.0.0.1,IP:{own_address()},DNS:localhost,DNS:{socket.gethostname()}\n")
    request = folder / "request.pem"
    own = ["-newkey", "rsa:2048", "-nodes"]
    for arguments in (
        ["req", "-x509", *own, "-keyout", paths["cakey"], "-out", paths["ca"], "-days", "2", "-subj", "/CN=trial"],
        ["req", *own, "-keyout", paths["key"], "-out", request, "-subj", "/CN=127.0.0.1"],
        [
            *("x509", "-req", "-in", request, "-CA", paths["ca"], "-CAkey", paths["cakey"], "-CAcreateserial"),
            *("-out", paths["cert"], "-days", "2", "-extfile", names),
        ],
    ):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=LIMIT_S)
    return paths


def free_port() -> int:
    """A port of the loopback that nobody has now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def rss_mb(pids: list[int]) -> float:
    """Resident memory of processes and their children, MB (2^20), shared pages counted each time."""
    import psutil

    members = {p.pid: p for pid in pids for p in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))}
    return round(sum(p.memory_info().rss for p in members.values()) / (1 << 20), 1)


def tries(code: str, environment: dict[str, str], limit_s: float) -> str:
    """What a client in a process of its own comes to: `connected`, `refused` or `no answer in N s`."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **environment},
            timeout=limit_s,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {limit_s:.0f} s"
    return "connected" if done.returncode == 0 else "refused: " + (done.stderr.strip().splitlines() or [""])[-1][:160]


@contextlib.contextmanager
def started(commands: list[list[str]]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are ended in any case, by their numbers."""
    running = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        for command in commands
    ]
    try:
        yield running
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=LIMIT_S)


def judge(
    submit: Callable[[dict[str, float], float], Any],
    result: Callable[[Any], tuple[float, float, int]],
    phone_host: int | None,
) -> dict[str, object]:
    """Placement: two tasks that need 6 of 8 units of memory, and one that needs a phone."""
    first, second = (submit({"memory": NEED}, 1.0) for _ in range(2))
    (a0, a1, _), (b0, b1, _) = result(first), result(second)
    where = {result(submit({"phone:s24": 1}, 0.0))[2] for _ in range(5)}
    return {
        "compiles_apart": a1 <= b0 or b1 <= a0,
        "phone_tasks_on": len(where),
        "on_the_phones_host": phone_host is None or where == {phone_host},
    }


def try_dask() -> dict[str, object]:
    """Scheduler and workers are processes of the stock command lines; no nanny."""
    from distributed import Client

    def commands(port: int, *tls: str) -> list[list[str]]:
        scheme = "tls" if tls else "tcp"
        address = f"{scheme}://127.0.0.1:{port}"
        run = [sys.executable, "-m"]
        worker = [*run, "distributed.cli.dask_worker", address, "--no-nanny", "--nthreads", "4", "--no-dashboard"]
        scheduler = [*run, "distributed.cli.dask_scheduler", "--host", address, "--no-dashboard"]
        return [
            [*scheduler, *tls],
            [*worker, "--resources", f"memory={WHOLE}", *tls],
            [*worker, "--resources", "phone:s24=1", *tls],
        ]

    found: dict[str, object] = {**weight("distributed")}
    port, began = free_port(), time.monotonic()
    with started(commands(port)) as running, Client(f"tcp://127.0.0.1:{port}", timeout=LIMIT_S) as client:
        client.wait_for_workers(2, timeout=LIMIT_S)
        found["start_s"] = round(time.monotonic() - began, 1)
        found["idle_rss_mb"] = rss_mb([process.pid for process in running])

        def submit(resources: dict[str, float], seconds: float) -> Any:
            return client.submit(hold, seconds, resources=resources, pure=False, retries=0)

        found |= judge(submit, lambda future: future.result(timeout=LIMIT_S), os.getpid())
        lost = submit({"phone:s24": 1}, 300.0)
        time.sleep(2)
        killed = time.monotonic()
        os.kill(running[2].pid, signal.SIGKILL)
        while len(client.nthreads()) > 1 and time.monotonic() - killed < LIMIT_S:
            time.sleep(0.05)
        found["loss_known_s"] = round(time.monotonic() - killed, 2)
        lost.cancel()
    with tempfile.TemporaryDirectory() as folder:
        paths = certificates(Path(folder))
        flags = ("--tls-ca-file", paths["ca"], "--tls-cert", paths["cert"], "--tls-key", paths["key"])
        port = free_port()
        connect = "from distributed import Client, Security; Client({!r}, timeout=10, security={}).nthreads()"
        secret = (
            f"Security(tls_ca_file={str(paths['ca'])!r}, tls_client_cert={str(paths['cert'])!r}, "
            f"tls_client_key={str(paths['key'])!r}, require_encryption=True)"
        )
        with started(commands(port, *map(str, flags))):
            time.sleep(5)
            found["tls_client"] = tries(connect.format(f"tls://127.0.0.1:{port}", secret), {}, 40)
            found["plain_client"] = tries(connect.format(f"tcp://127.0.0.1:{port}", "None"), {}, 40)
    return found


def try_ray() -> dict[str, object]:
    """A head and two further nodes, as `ray.cluster_utils.Cluster` starts them: real raylets on one computer."""
    import psutil
    import ray
    from ray.cluster_utils import Cluster
    from ray.exceptions import RayError

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    found: dict[str, object] = {**weight("ray")}
    began = time.monotonic()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=4, resources={"memory_units": WHOLE})
    phones = cluster.add_node(num_cpus=4, resources={"phone:s24": 1})
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes(LIMIT_S)
    found["start_s"] = round(time.monotonic() - began, 1)
    found["idle_rss_mb"] = rss_mb([p.pid for p in psutil.Process().children()])
    remote = ray.remote(hold)

    def submit(resources: dict[str, float], seconds: float) -> Any:
        named = {("memory_units" if name == "memory" else name): amount for name, amount in resources.items()}
        return remote.options(resources=named, num_cpus=0.01, max_retries=0).remote(seconds)

    raylet = next(p for kind, found_ in phones.all_processes.items() if kind == "raylet" for p in found_).process.pid
    found |= judge(submit, lambda ref: ray.get(ref, timeout=LIMIT_S), raylet)
    lost = submit({"phone:s24": 1}, 300.0)
    time.sleep(3)
    tree = [raylet, *(p.pid for p in psutil.Process(raylet).children(recursive=True))]
    killed = time.monotonic()
    for pid in tree:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    try:
        ray.get(lost, timeout=LIMIT_S)
        found["loss_said_as"] = "a result"
    except RayError as error:
        found["loss_said_as"] = type(error).__name__
    found["loss_known_s"] = round(time.monotonic() - killed, 2)
    ray.shutdown()
    cluster.shutdown()
    with tempfile.TemporaryDirectory() as folder:
        paths = certificates(Path(folder))
        tls = {"RAY_USE_TLS": "1", "RAY_TLS_SERVER_CERT": str(paths["cert"]), "RAY_TLS_SERVER_KEY": str(paths["key"])}
        tls["RAY_TLS_CA_CERT"] = str(paths["ca"])
        port = free_port()
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port", str(port)]
        server = subprocess.Popen(
            [*command, "--include-dashboard=false", "--num-cpus", "1", "--disable-usage-stats"],
            env={**os.environ, **tls, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            time.sleep(15)
            connect = f"import ray; ray.init(address='127.0.0.1:{port}', log_to_driver=False); ray.nodes()"
            found["tls_client"] = tries(connect, tls, 60)
            found["plain_client"] = tries(connect, {"RAY_USE_TLS": "0"}, 60)
        finally:
            members = [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]
            for member in members:
                with contextlib.suppress(psutil.Error):
                    member.kill()
            server.wait(timeout=LIMIT_S)
    return found


def main() -> int:
    """Prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("dask", "ray"), required=True)
    engine = parser.parse_args().engine
    print(json.dumps({"engine": engine, **{"dask": try_dask, "ray": try_ray}[engine]()}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
