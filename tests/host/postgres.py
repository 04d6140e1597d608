"""A PostgreSQL server for tests: that of `$HTPFARM_TEST_POSTGRES`, else one of its own from Debian's package."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from events import HANG_S
from sqlalchemy import create_engine, text


def programs() -> Path | None:
    """The folder of `initdb` and `postgres`; None where they are not installed."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if found := shutil.which("postgres"):
        places.insert(0, Path(found).resolve().parent)
    return next((place for place in places if (place / "initdb").is_file()), None)


@contextmanager
def server() -> Iterator[str | None]:
    """URL of a server where databases may be made; None where there is none."""
    if given := os.environ.get("HTPFARM_TEST_POSTGRES"):
        yield given
        return
    place = programs()
    if place is None:
        yield None
        return
    # A path of its own and a short one: a socket's name has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="htpfarm-pg-", dir="/tmp") as name:
        folder = Path(name)
        # PostgreSQL refuses to run as root.
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
        if user:
            shutil.chown(folder, 65534, 65534)
        data, log = folder / "data", folder / "log"
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": name}
        init = [*user, str(place / "initdb"), "-D", str(data), "-U", "test", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(init, check=True, capture_output=True, timeout=HANG_S, env=environment, cwd=folder)
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        control = [*user, str(place / "pg_ctl"), "-D", str(data), "-w", "-t", "300"]
        subprocess.run(
            [*control, "-l", str(log), "-o", options, "start"],
            check=True, stdout=subprocess.DEVNULL, timeout=HANG_S, env=environment, cwd=folder,
        )  # fmt: skip
        pid = int((data / "postmaster.pid").read_text().split()[0])
        try:
            yield f"postgresql://test@/postgres?host={folder}"
        finally:
            subprocess.run(
                [*control, "-m", "immediate", "stop"],
                check=False, capture_output=True, timeout=HANG_S, env=environment, cwd=folder,
            )  # fmt: skip
            psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=HANG_S)


def new_database(url: str) -> str:
    """Makes an empty database on the server; its URL."""
    name = f"htpfarm_{secrets.token_hex(4)}"
    base = url.replace("postgresql://", "postgresql+psycopg://", 1)
    engine = create_engine(base, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    head, _, query = url.partition("?")
    return f"{head.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")
