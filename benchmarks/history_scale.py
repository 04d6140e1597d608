"""The history's cost: runs of 10 thousand, 100 thousand and 1 million records imported, and the matrix drawn from them.

    python benchmarks/history_scale.py [--records 10000 100000 1000000] [--url URL] [--writers]

Each size has a database of its own. Runs have 100 cells of 20 records each, a mix as `pytest -m device` writes them.
The matrix is drawn as a lab does, by `htpfarm matrix` with all its files; its time has the start of Python in it.
`--writers` also lets two processes import the same and different runs at once and counts what arrived. Memory is the
peak resident size, of the process that imports and of the one that draws.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from harness.history.query import Choice, session_values, standings
from harness.history.store import History, check_sound
from harness.history.trend import trends
from harness.model_file import Lengths
from harness.results.records import (
    ArtifactRecord,
    CheckRecord,
    DeployRecord,
    Graph,
    Ground,
    OutcomeRecord,
    PerplexityRecord,
    PlanEntry,
    Record,
    RunInfo,
    SampleRecord,
    Status,
    TtftRecord,
    encode,
)
from harness.results.store import RECORDS
from harness.target import Target

CELLS = 100
PER_CELL = 20
START = datetime(2024, 1, 1, tzinfo=UTC)


def cell_records(number: int, run: int) -> list[Record]:
    """20 records of a cell: 6 samples, 6 of the TTFT curve, 4 perplexities, and what frames them."""
    soc, arch = (("SM8550", 73), ("SM8650", 75), ("SM8750", 79))[number % 3]
    mode = ("kv", "hybrid")[number // 3 % 2]
    cell = f"model{number // 6:02d}-{mode}-{soc}"
    phone, serial = f"phone{number % 3}", f"R3CX{number % 3:04d}"
    slower = 1 + 0.002 * ((run * 7 + number) % 11)
    graph: Graph = "kv" if mode == "kv" else "prefill"
    grounds: list[tuple[Ground, Graph]] = [("FP", "full"), ("QDQ", "full"), ("PHONE", "kv"), ("PHONE", graph)]
    plan = PlanEntry(cell, f"model{number // 6:02d}", mode, soc, arch, "upstream", None, Lengths(1024, 128), "run")
    failed = (run + number) % 97 == 0
    return [
        plan,
        ArtifactRecord(cell, "3f9c0a", f"cache/{cell}.pte", 123_456_789, True, 0.1, {"lower": 64.0}, 2311.0),
        DeployRecord(cell, phone, (), ("model.pte",), 0, 0.2),
        *(
            SampleRecord(
                cell, phone, serial, soc, Target.SIM, session, "Tell me of gravity", 12, 63, " and it was good" * 4,
                900.0, 40.0 * slower + session, 300.0 / slower, 20.0 / slower - 0.01 * session, 812.0,
                {"temperature": 0.0, "seed": 0}, {"prompt_tokens": 12},
            )
            for session in range(6)
        ),
        *(
            TtftRecord(cell, phone, serial, Target.SIM, graph, 128, 128 * blocks, blocks, 40.0 * blocks * slower)
            for blocks in range(1, 6)
        ),
        *(PerplexityRecord(cell, ground, on, 512, 300, 1300.0 + number, 1024, 4, 2.0) for ground, on in grounds),
        CheckRecord(cell, "phone_vs_qdq_ppl", not failed, 0.003, 0.02, "+0.3% (bound ±2%)"),
        OutcomeRecord(cell, Status.FAILED if failed else Status.PASSED, seconds=30.0, phone=phone),
    ]  # fmt: skip


def write_run(reports: Path, number: int) -> Path:
    """A run's folder, a night after the one before."""
    started = START + timedelta(days=number)
    name = f"{started:%Y%m%d-%H%M%S}-{number:04x}"
    folder = reports / name
    folder.mkdir(parents=True)
    info = RunInfo(
        name, started.isoformat(), ("pytest",), "lab", "0.1.0", {"executorch": "1.5.1"}, "lab.yaml", Target.SIM
    )
    every: list[Record] = [info]
    for cell in range(CELLS):
        every += cell_records(cell, number)
    lines = [
        encode(record, name, (started + timedelta(milliseconds=100 * place)).isoformat(timespec="milliseconds"))
        for place, record in enumerate(every)
    ]
    (folder / RECORDS).write_bytes(b"".join(lines))
    return folder


def rss_mb() -> float:
    """Peak resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(url: str, reports: Path, wanted: int) -> dict[str, float]:
    """Imports `wanted` records and asks the matrix; runs in a process of its own."""
    count, spent, number, before = 0, 0.0, 0, rss_mb()
    with History(url) as history:
        while count < wanted:
            folder = write_run(reports, number)
            start = time.monotonic()
            count += history.import_run(folder).added
            spent += time.monotonic() - start
            (folder / RECORDS).unlink()
            number += 1
        start = time.monotonic()
        matrix = standings(history)
        matrix_s = time.monotonic() - start
        start = time.monotonic()
        cell = matrix[0].latest.cell
        course = trends(session_values(history, Choice((cell,), metrics=("decode_tok_s",))))
        trend_s = time.monotonic() - start
        assert len(matrix) == CELLS
        assert len(course[0].values) == number
    return {
        "records": count,
        "runs": number,
        "import_s": round(spent, 2),
        "per_s": round(count / spent),
        "matrix_s": round(matrix_s, 3),
        "trend_s": round(trend_s, 3),
        "rss_mb": round(rss_mb()),
        "rss_before_mb": round(before),
    }


def draw_matrix(url: str, folder: Path) -> dict[str, float]:
    """`htpfarm matrix` of a history as HTML, Markdown and CSV: seconds, peak memory in MB, and cells drawn."""
    files = {name: folder / f"matrix.{name}" for name in ("html", "markdown", "csv")}
    options = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    argv = [sys.executable, "-m", "harness.cli", "matrix", "--history", url, "--reports", str(folder), *options]
    start = time.monotonic()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    took = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, argv
    with files["csv"].open(encoding="utf-8", newline="") as rows:
        drawn = sum(row["state"] != "not tried" for row in csv.DictReader(rows))
    assert drawn == CELLS, drawn
    return {"drawn_s": round(took, 2), "drawn_mb": round(used.ru_maxrss / 1024)}


def _import(url: str, folders: list[Path]) -> None:
    with History(url) as history:
        list(history.import_runs(folders))


def two_writers(url: str, reports: Path) -> dict[str, int]:
    """Two processes at once, each with ten runs, four of them the same ones."""
    folders = [write_run(reports, number) for number in range(16)]
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_import, args=(url, part)) for part in (folders[:10], folders[6:])]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    with History(url) as history:
        assert check_sound(history) == "ok"
        # Imported once more, nothing is new: nothing was lost, and nothing counted twice.
        again = list(history.import_runs(folders))
    assert sum(one.added for one in again) == 0
    return {"runs": len(again), "records": sum(one.records for one in again)}


def main() -> int:
    """Prints a row a size, and what two writers left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--url", help="of an empty PostgreSQL database; default: SQLite files")
    parser.add_argument("--writers", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="htpfarm-history-") as name:
        scratch = Path(name)
        for wanted in arguments.records:
            file = scratch / f"{wanted}.sqlite"
            context = multiprocessing.get_context("spawn")
            with context.Pool(1) as pool:
                got = pool.apply(measure, (arguments.url or f"sqlite:///{file}", scratch / str(wanted), wanted))
            got |= draw_matrix(arguments.url or f"sqlite:///{file}", scratch)
            got |= {"file_mb": round(file.stat().st_size / 1e6)} if file.exists() else {}
            file.unlink(missing_ok=True)
            print(json.dumps(got), flush=True)
        if arguments.writers:
            url = arguments.url or f"sqlite:///{scratch / 'two.sqlite'}"
            print("two writers:", json.dumps(two_writers(url, scratch / "two")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
