"""`htpfarm watch`: the board from records and live log, and the page over real HTTP while a run's folder grows."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browser import browser, overflows, page, serious
from events import HANG_S, until
from sample_run import BROKEN, EVIL, GOOD, OLD, UNRUN, artifact, planned, records, run_info, sample

from harness.conduct.live import LiveLog
from harness.errors import FailureClass
from harness.results import OutcomeRecord, RecordWriter, Status
from harness.results.board import RUNNING, WAITING, Board, Tail


def _begin(folder: Path) -> tuple[RecordWriter, LiveLog]:
    writer = RecordWriter(folder)
    for record in (run_info(), planned(GOOD, 75), planned(BROKEN, 73), planned(OLD, 69, skip=True), planned(UNRUN, 79)):
        writer.append(record)
    return writer, LiveLog(folder)


def test_a_cell_goes_from_waiting_to_its_outcome(tmp_path: Path) -> None:
    writer, live = _begin(tmp_path)
    board, tail = Board(), Tail(tmp_path)
    assert tail.read(board)
    assert not tail.read(board)
    assert [place.status for place in board.cells.values()] == [WAITING, WAITING, "SKIPPED", WAITING]
    assert board.verdict == "3 of 4 cells to go: 1 skipped"

    live.say("build", "tiny_llama (hybrid): load …")
    live.say("", f"{GOOD}: waiting for its artifact")
    writer.append(artifact(GOOD))
    live.say("s24", f"{GOOD}: prompt 1/2")
    tail.read(board)
    place, phone = board.cells[GOOD], board.phones["s24"]
    assert (place.status, place.phone, place.doing, place.built) == (RUNNING, "s24", "prompt 1/2", True)
    assert (phone.cell, phone.doing, board.build) == (GOOD, "prompt 1/2", "tiny_llama (hybrid): load …")

    writer.append(sample(GOOD, raw={"vitals": {"after": {"celsius": 38.25}}}))
    writer.append(OutcomeRecord(GOOD, Status.PASSED, phone="s24"))
    live.say("s24", f"{GOOD}: PASSED after 12 s")
    tail.read(board)
    assert (place.status, place.decode_tok_s) == ("PASSED", 3.71)
    assert (phone.cell, phone.celsius, phone.done) == ("", 38.25, 1)


def test_a_retry_shows_the_phone_it_goes_to(tmp_path: Path) -> None:
    writer, live = _begin(tmp_path)
    board, tail = Board(), Tail(tmp_path)
    live.say("s23", f"{BROKEN}: deploying")
    live.say("s23", f"{BROKEN}: INFRA: phone lost; trying again")
    live.say("spare", f"{BROKEN}: deploying")
    writer.append(OutcomeRecord(BROKEN, Status.FAILED, FailureClass.PRODUCT, "wrong", phone="spare"))
    tail.read(board)
    tail.read(board)
    assert (board.cells[BROKEN].phone, board.cells[BROKEN].failure_class) == ("spare", "PRODUCT")
    assert board.counts["FAILED"] == 1


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    board, tail = Board(), Tail(tmp_path / "later")
    assert not tail.read(board)
    _begin(tmp_path / "later")
    whole = (tmp_path / "later" / "records.jsonl").read_bytes()
    (tmp_path / "later" / "records.jsonl").write_bytes(whole[:-10])
    tail.read(board)
    assert UNRUN not in board.cells
    (tmp_path / "later" / "records.jsonl").write_bytes(whole)
    tail.read(board)
    assert UNRUN in board.cells


def test_the_board_is_strict_json_whatever_is_in_the_records(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path)
    for record in records():
        writer.append(record)
    writer.append(sample(UNRUN, decode_tok_s=float("inf"), ttft_ms=float("nan"), raw={"vitals": 3}))
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"record": "future", "schema": 9}\nnot json\n')
    board = Board()
    Tail(tmp_path).read(board)
    data = json.loads(json.dumps(board.as_data(), allow_nan=False))
    found = {cell["id"]: cell for cell in data["cells"]}
    assert (found[UNRUN]["decode_tok_s"], found[UNRUN]["ttft_ms"]) == (None, None)
    assert {cell["status"] for cell in data["cells"]} == {"PASSED", "FAILED", "ERROR", "SKIPPED", WAITING}


@dataclass
class Server:
    """`htpfarm watch` in a process of its own."""

    folder: Path
    port: int

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_S)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode()
        finally:
            connection.close()

    def events(self) -> Iterator[dict[str, Any]]:
        """Each state that is sent, as long as it is read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_S)
        connection.request("GET", "/events")
        answer = connection.getresponse()
        assert answer.getheader("content-type", "").startswith("text/event-stream")
        try:
            while line := answer.readline():
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])
        finally:
            connection.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server over a run that has begun; its address is what it prints."""
    folder = tmp_path_factory.mktemp("reports") / "20260102-030405-abcd"
    _begin(folder)
    command = [sys.executable, "-m", "harness.cli", "watch", "--port", "0", "--reports", str(folder.parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert str(folder) in line
        port = int(line.split(":")[2].split("/")[0])
        made = Server(folder, port)

        def answers() -> bool:
            with suppress(OSError):
                return made.ask("/state")[0] == 200
            return False

        until(answers)
        yield made
    finally:
        process.terminate()
        process.wait(timeout=HANG_S)


def test_the_page_fills_up_and_survives_a_reload_in_a_browser(server: Server) -> None:
    live = LiveLog(server.folder)
    with browser() as opened, page(opened, f"http://127.0.0.1:{server.port}/") as found:
        found.get_by_role("heading", name="3 of 4 cells to go").wait_for()
        live.say("s24", f"{GOOD}: prompt 1/2")
        found.locator("#phones li.busy", has_text=GOOD).wait_for()
        assert found.locator(f"td[title='{GOOD}']").inner_text().startswith("▶")
        found.reload()
        found.locator("#phones li.busy", has_text=GOOD).wait_for()
        assert serious(found) == []
        RecordWriter(server.folder).append(OutcomeRecord(UNRUN, Status.FAILED, FailureClass.PRODUCT, EVIL, phone="s25"))
        found.locator("td.failed").wait_for()
        assert found.locator("script").count() == 1
        found.set_viewport_size({"width": 375, "height": 812})
        assert overflows(found) <= 0


def test_events_follow_the_folder(server: Server) -> None:
    events = server.events()
    first = next(events)
    assert first["run"] == run_info().id
    RecordWriter(server.folder).append(sample(GOOD, decode_tok_s=5.5))
    for state in events:
        found = {cell["id"]: cell for cell in state["cells"]}
        if found[GOOD]["decode_tok_s"] == 5.5:
            break
    events.close()
    assert json.loads(server.ask("/state")[2])["cells"] == state["cells"]


def test_it_only_reads_and_only_for_this_machine(server: Server) -> None:
    before = {path: path.read_bytes() for path in server.folder.iterdir()}
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert server.ask("/state", method)[0] == 405
    assert server.ask("/../../etc/passwd")[0] == 404
    assert server.ask("/records.jsonl")[0] == 404
    assert server.ask("/state", Host="evil.example")[0] == 400
    status, headers, _ = server.ask("/")
    assert status == 200
    assert "script-src 'self'" in headers["content-security-policy"]
    assert {path: path.read_bytes() for path in server.folder.iterdir()} == before


def test_the_verb_refuses_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from harness.cli import main

    assert main(["watch", "--reports", str(tmp_path)]) == 2
    assert "start one" in capsys.readouterr().err
    assert main(["watch", str(tmp_path / "none")]) == 2
    _begin(tmp_path / "20260102-030405-abcd")
    capsys.readouterr()
    assert main(["watch", "--reports", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"].startswith("3 of 4")
