from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from events import HANG_S
from sample_run import BROKEN, GOOD, LOST, OLD, UNRUN, planned, records, run_info, sample, write_run

from harness.errors import ConfigError
from harness.results import (
    OutcomeRecord,
    RawRecord,
    RecordWriter,
    SampleRecord,
    Status,
    load_run,
    new_run_folder,
    new_run_id,
    read_records,
)
from harness.results.records import encode
from harness.results.store import read_entries


def test_run_id_and_folder(tmp_path: Path) -> None:
    assert re.fullmatch(r"20260102-030405-[0-9a-f]{4}", new_run_id(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)))
    folders = [new_run_folder(tmp_path / "reports") for _ in range(20)]
    assert len(set(folders)) == 20
    assert all(folder.is_dir() for folder in folders)
    assert RecordWriter(folders[0]).run == folders[0].name


def test_importing_the_core_of_results_loads_no_heavy_module() -> None:
    heavy = {"torch", "pytest", "rich", "jinja2", "pandas"}
    code = f"import sys, harness.results, harness.results.summary; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_appended_is_read_in_order(tmp_path: Path) -> None:
    path = write_run(tmp_path) / "records.jsonl"
    assert read_records(path) == records()
    entries = read_entries(path)
    assert all(datetime.fromisoformat(entry.time).utcoffset() is not None for entry in entries)
    assert {entry.run for entry in entries} == {run_info().id}


def test_a_run_with_records_is_appended_to(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    before = (folder / "records.jsonl").read_bytes()
    RecordWriter(folder).append(run_info())
    RecordWriter(folder).append(OutcomeRecord(UNRUN, Status.PASSED))
    assert (folder / "records.jsonl").read_bytes().startswith(before)
    data = load_run(folder)
    assert data.run == run_info()
    assert data.resumed == (run_info(),)
    assert data.outcomes[UNRUN].status is Status.PASSED


def _append_many(folder: Path, worker: int, count: int, start: threading.Barrier) -> None:
    writer = RecordWriter(folder)
    start.wait(HANG_S)
    for index in range(count):
        # Longer than a page and than a pipe's atomic size, and of differing length.
        writer.append(sample(f"w{worker}", index, text=f"{worker}" * (3000 + 2500 * (index % 4))))


def test_four_processes_at_once_lose_and_mix_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(4)
    workers = [context.Process(target=_append_many, args=(tmp_path, worker, 25, start)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(HANG_S)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    found = read_records(tmp_path / "records.jsonl")
    assert len(found) == 100
    assert (tmp_path / "records.jsonl").read_bytes().count(b"\n") == 100
    for worker in range(4):
        own = [record for record in found if isinstance(record, SampleRecord) and record.cell == f"w{worker}"]
        assert [record.session for record in own] == list(range(25))
        assert all(set(record.text) == {str(worker)} for record in own)


def test_threads_of_one_process_too(tmp_path: Path) -> None:
    start = threading.Barrier(4)
    threads = [threading.Thread(target=_append_many, args=(tmp_path, worker, 20, start)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    assert (
        len([record for record in read_records(tmp_path / "records.jsonl") if isinstance(record, SampleRecord)]) == 80
    )


@pytest.mark.parametrize("cut", [1, 2, 40, 300])
def test_a_last_line_cut_short_is_left_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "records.jsonl"
    whole = b"".join(encode(record, "r") for record in records())
    path.write_bytes(whole[:-cut])
    # Cut by one, only the newline is missing: that record is whole.
    assert read_records(path) == (records() if cut == 1 else records()[:-1])


def test_cut_inside_a_character_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(encode(run_info(), "r") + '{"record": "é'.encode()[:-1])
    assert read_records(path) == [run_info()]


@pytest.mark.parametrize("cut", [1, 40])
def test_writing_goes_on_after_a_line_cut_short(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "records.jsonl"
    whole = b"".join(encode(record, "r") for record in records())
    path.write_bytes(whole[:-cut])
    RecordWriter(tmp_path).append(sample(GOOD))
    kept = records() if cut == 1 else records()[:-1]
    assert read_records(path) == [*kept, sample(GOOD)]
    torn = tmp_path / "records.torn"
    last = encode(records()[-1], "r")
    if cut == 1:
        assert not torn.exists()
    else:
        # Equal but for the time it was written.
        assert torn.read_bytes().startswith(last[:20])
        assert torn.read_bytes() == whole[whole[:-1].rfind(b"\n") + 1 : -cut] + b"\n"
    for line in path.read_bytes().splitlines():
        json.loads(line)


def test_a_torn_first_line_longer_than_one_read(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"record": "' + b"x" * 200_000)
    RecordWriter(tmp_path).append(run_info())
    assert read_records(path) == [run_info()]
    assert (tmp_path / "records.torn").stat().st_size == 200_013


def test_a_bad_line_in_the_middle_hides_nothing_after_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [encode(record, "r") for record in records()]
    lines[3:3] = [b'{"record": "sam\n', b"\n", b'{"record": "power", "schema": 9, "watts": 3}\n']
    (folder / "records.jsonl").write_bytes(b"".join(lines))
    found = read_records(folder / "records.jsonl")
    assert [record for record in found if not isinstance(record, RawRecord)] == records()
    assert [raw.line for raw in load_run(folder).raw] == [4, 6]


_WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from sample_run import run_info, sample
from harness.results import RecordWriter
writer = RecordWriter(Path({folder!r}))
writer.append(run_info())
for index in range(1_000_000):
    writer.append(sample("c", index, text="x" * 50_000))
    print(index, flush=True)
"""


@pytest.mark.parametrize("after", [0, 3, 17])
def test_kill_9_leaves_every_record_so_far(tmp_path: Path, after: int) -> None:
    folder = tmp_path / "run"
    code = _WRITER.format(tests=str(Path(__file__).parent), folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = -1
        while said < after:
            line = process.stdout.readline()
            assert line, "the writer ended before it was killed"
            said = int(line)
        time.sleep(0.001 * after)
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split()
        said = max([said, *map(int, rest)])
    finally:
        process.kill()
        process.wait(HANG_S)
    assert process.returncode == -signal.SIGKILL
    data = load_run(folder)
    sessions = [record.session for record in data.samples["c"]]
    # All that it said it had written, and at most the one after that.
    assert sessions in (list(range(said + 1)), list(range(said + 2)))
    assert all(len(record.text) == 50_000 for record in data.samples["c"])
    assert data.raw == ()
    RecordWriter(folder).append(OutcomeRecord("c", Status.PASSED))
    assert load_run(folder).outcomes["c"].status is Status.PASSED


def test_load_run(tmp_path: Path) -> None:
    data = load_run(write_run(tmp_path))
    assert data.run == run_info()
    assert [entry.cell for entry in data.plan] == [GOOD, BROKEN, LOST, OLD, UNRUN]
    assert len(data.samples[GOOD]) == 2
    assert len(data.perplexities[GOOD]) == 4
    assert data.artifacts[BROKEN].reused
    assert data.deploys[GOOD][0].pushed == ("model.pte",)
    assert {cell: outcome.status for cell, outcome in data.outcomes.items()} == {
        GOOD: Status.PASSED,
        BROKEN: Status.FAILED,
        LOST: Status.ERROR,
    }
    assert data.raw == ()
    assert data.last_time


def test_the_last_outcome_and_plan_of_a_cell_count(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    RecordWriter(folder).append(OutcomeRecord(BROKEN, Status.PASSED))
    RecordWriter(folder).append(planned(BROKEN, 73, skip=True))
    data = load_run(folder)
    assert data.outcomes[BROKEN].status is Status.PASSED
    assert [entry.cell for entry in data.plan] == [GOOD, BROKEN, LOST, OLD, UNRUN]
    assert data.plan[1].verdict == "skip"


@pytest.mark.parametrize("content", [None, b"", b'{"record": "run", "sch', encode(sample(GOOD), "r")])
def test_a_folder_without_a_run_is_refused_with_a_remedy(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "records.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=r"records\.jsonl") as caught:
        load_run(tmp_path)
    assert caught.value.remedy
