"""What a worker of pytest-xdist does with the tests it is sent: one at a time, and nothing ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import xdist.remote

from harness.conduct import distribute as module
from harness.conduct.distribute import one_at_a_time


class Channel:
    """xdist's channel to its main process, here to the test."""

    gateway = SimpleNamespace(execmodel=threading)

    def __init__(self, commands: Sequence[object]) -> None:
        self.commands = commands
        self.events: list[tuple[str, dict[str, object]]] = []

    def setcallback(self, callback: Callable[[object], None], endmarker: object) -> None:
        for command in (*self.commands, endmarker):
            callback(command)

    def send(self, event: tuple[str, dict[str, object]]) -> None:
        self.events.append(event)


@dataclass
class Session:
    """pytest's session as far as a worker's loop sees it; each test takes a second and a half."""

    items: list[str]
    stop_after: str = ""
    reason: str = "shouldstop"
    shouldfail: bool = False
    shouldstop: bool = False
    ran: list[tuple[str, str | None]] = field(default_factory=list)
    now: float = 100.0

    @property
    def config(self) -> Session:
        return self

    hook = config

    def pytest_runtest_protocol(self, *, item: str, nextitem: str | None) -> None:
        self.ran.append((item, nextitem))
        self.now += 1.5
        if item == self.stop_after:
            setattr(self, self.reason, True)

    def perf_counter(self) -> float:
        return self.now


def worked(session: Session, commands: Sequence[object], monkeypatch: pytest.MonkeyPatch) -> Channel:
    config = SimpleNamespace(
        workerinput={"testrunuid": "1"},
        option=SimpleNamespace(debug=False),
        pluginmanager=SimpleNamespace(register=lambda _: None),
    )
    channel = Channel(commands)
    interactor = xdist.remote.WorkerInteractor(config, channel)  # type: ignore[arg-type]
    monkeypatch.setattr(module, "time", session)
    one_at_a_time(session, interactor)  # type: ignore[arg-type]
    return channel


def run_tests(*indices: int) -> tuple[str, dict[str, list[int]]]:
    return "runtests", {"indices": list(indices)}


def test_a_worker_runs_what_it_is_told_to_and_says_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(["x", "y", "z"])
    channel = worked(session, [run_tests(2), run_tests(0)], monkeypatch)
    assert session.ran == [("z", "x"), ("x", "y")]  # some test follows: fixtures wider than a test are kept
    assert channel.events == [
        ("runtest_protocol_complete", {"item_index": 2, "duration": 1.5}),
        ("runtest_protocol_complete", {"item_index": 0, "duration": 1.5}),
    ]


@pytest.mark.parametrize(("items", "following"), [(["x"], None), (["x", "y"], "y")])
def test_after_the_only_test_nothing_follows(
    items: list[str], following: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(items)
    worked(session, [run_tests(0)], monkeypatch)
    assert session.ran == [("x", following)]


@pytest.mark.parametrize("reason", ["shouldstop", "shouldfail"])
def test_a_worker_that_shall_stop_begins_no_other_test(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(["x", "y"], stop_after="x", reason=reason)
    channel = worked(session, [run_tests(0, 1)], monkeypatch)
    assert session.ran == [("x", "y")]
    assert len(channel.events) == 1


def test_a_test_knows_its_place_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[int] = []
    made: list[xdist.remote.WorkerInteractor] = []
    build = xdist.remote.WorkerInteractor.__init__

    def kept(self: xdist.remote.WorkerInteractor, *arguments: object) -> None:
        made.append(self)
        build(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(xdist.remote.WorkerInteractor, "__init__", kept)
    session = Session(["x", "y"])
    run = session.pytest_runtest_protocol
    session.pytest_runtest_protocol = lambda **more: (places.append(made[0].item_index), run(**more))[1]  # type: ignore[method-assign]
    worked(session, [run_tests(1, 0)], monkeypatch)
    assert places == [1, 0]  # which xdist's report of the test names
