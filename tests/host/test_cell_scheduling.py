"""Which worker and which phone a cell goes to, and when: our scheduling alone, its poller moved by hand.

test_distribute.py has it under the real pytest-xdist.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.conduct import distribute as module
from harness.conduct.distribute import CellScheduling, assigned_phone, assignment_file
from harness.schedule.jobs import Job, Slot
from harness.schedule.scheduler import Scheduler

FREE = "tests/test_it.py::test_without_a_phone"


def test_id(cell: str) -> str:
    return f"tests/test_it.py::test_cell[{cell}]"


test_id.__test__ = False  # type: ignore[attr-defined]


class Poll:
    """The poller's time: it looks once for each `tick`."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._go = threading.Semaphore(0)
        self._there = threading.Semaphore(0)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._there.release()
        self._go.acquire()

    def wait(self) -> None:
        """Until it has looked and sleeps."""
        assert self._there.acquire(timeout=30), "the poller does not look"

    def go(self) -> None:
        """Wakes it."""
        self._go.release()

    def tick(self) -> None:
        """Lets it look once more."""
        self.go()
        self.wait()


@pytest.fixture
def poll(monkeypatch: pytest.MonkeyPatch) -> Iterator[Poll]:
    made = Poll()
    monkeypatch.setattr(module, "time", made)
    yield made
    monkeypatch.setattr(CellScheduling, "has_pending", False)  # whatever is left to do
    made.go()
    for thread in pollers():
        thread.join(timeout=30)


@dataclass(eq=False)
class Worker:
    """What a scheduling sees of xdist's worker: the tests it was sent, by name."""

    collection: list[str]
    sent: list[str] = field(default_factory=list)
    shutting_down: bool = False
    dead: bool = False

    def send_runtest_some(self, indices: Sequence[int]) -> None:
        if self.dead:
            raise OSError("cannot send (already closed?)")
        self.sent += [self.collection[index] for index in indices]


@dataclass
class Run:
    """A scheduling with its workers, and what it asked."""

    scheduling: CellScheduling
    workers: list[Worker]
    folder: Path
    asked: list[str]

    def all_sent(self) -> list[str]:
        """Cells and other tests that any worker was sent."""
        return [test for sent in self.sent() for test in sent]

    def sent(self) -> list[list[str]]:
        """Cells and other tests that each worker was sent, without the file's name."""
        return [[test.partition("::")[2] for test in worker.sent] for worker in self.workers]

    def finish(self, worker: int) -> None:
        one = self.workers[worker]
        self.scheduling.mark_test_complete(one, one.collection.index(one.sent[-1]))  # type: ignore[arg-type]

    def phone(self, cell: str) -> str | None:
        return assigned_phone(self.folder, cell)


@pytest.fixture
def start(tmp_path: Path, poll: Poll) -> Callable[..., Run]:
    """Starts a run of these jobs on these phones with so many workers, the tests without a phone last."""

    def begin(
        jobs: Sequence[Job],
        phones: str | Sequence[Slot] = "a",
        workers: int = 1,
        *,
        others: Sequence[str] = (),
        ready: Mapping[str, bool] | None = None,
        **more: object,
    ) -> Run:
        tests = [*(test_id(job.id) for job in jobs), *others]
        # Each worker has its own order: a test is sent by its place in the worker's.
        made = [Worker(tests[number:] + tests[:number]) for number in range(workers)]
        asked: list[str] = []

        def is_ready(key: str) -> bool:
            assert key, "nothing is built for such a job"
            asked.append(key)
            return (ready or {})[key]

        slots = [Slot(name, "S") for name in phones] if isinstance(phones, str) else phones
        keyed = {job.id: job for job in jobs}
        folder = tmp_path / "run"  # which the first assignment makes
        scheduling = CellScheduling(keyed, slots, folder, workers=workers, ready=is_ready, **more)  # type: ignore[arg-type]
        run = Run(scheduling, made, folder, asked)
        for worker in made:
            scheduling.add_node(worker)  # type: ignore[arg-type]
        for worker in made:
            scheduling.add_node_collection(worker, worker.collection)  # type: ignore[arg-type]
        scheduling.schedule()
        poll.wait()
        return run

    return begin


def pollers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "htpfarm-schedule"]


def jobs(*cells: str, artifact: str = "") -> list[Job]:
    """Cells, the first the longest."""
    return [Job(cell, "S", 100.0 - number, artifact) for number, cell in enumerate(cells)]


def test_a_free_worker_gets_tests_without_a_phone_first_and_then_the_longest_cell_for_a_free_phone(
    start: Callable[..., Run], poll: Poll
) -> None:
    run = start(jobs("c0", "c1", "c2"), "ab", workers=2, others=[FREE])
    assert run.sent() == [["test_without_a_phone"], ["test_cell[c0]"]]
    assert (run.phone("c0"), run.phone("c1")) == ("a", None)
    run.finish(0)
    assert run.sent()[0] == ["test_without_a_phone", "test_cell[c1]"]
    assert run.phone("c1") == "b"
    run.finish(1)
    assert run.sent()[1] == ["test_cell[c0]", "test_cell[c2]"]
    assert run.phone("c2") == "a"
    run.finish(0)
    assert run.scheduling.has_pending
    assert not run.scheduling.tests_finished
    run.finish(1)
    assert not run.scheduling.has_pending
    assert run.scheduling.tests_finished
    assert [len(worker.sent) for worker in run.workers] == [2, 2]
    assert assignment_file(run.folder, "c0") == run.folder / "assigned" / "c0"


def test_a_phone_has_one_cell_at_a_time_however_many_workers_there_are(start: Callable[..., Run]) -> None:
    run = start(jobs("c0", "c1"), "a", workers=3)
    assert run.sent() == [["test_cell[c0]"], [], []]
    run.finish(0)
    assert run.sent() == [["test_cell[c0]", "test_cell[c1]"], [], []]


def test_the_phone_of_the_higher_priority_is_given_work_first(start: Callable[..., Run]) -> None:
    run = start(jobs("c0", "c1"), [Slot("a", "S"), Slot("b", "S", priority=2)], workers=1)
    assert run.phone("c0") == "b"


def test_more_tests_without_a_phone_than_workers_wait_for_one(start: Callable[..., Run]) -> None:
    others = [f"{FREE}{number}" for number in range(3)]
    run = start([], "a", workers=2, others=others)
    assert run.sent() == [["test_without_a_phone0"], ["test_without_a_phone1"]]
    run.finish(1)
    assert run.sent()[1] == ["test_without_a_phone1", "test_without_a_phone2"]
    run.finish(1)
    assert run.scheduling.has_pending  # the first one still runs
    run.finish(0)
    assert run.scheduling.tests_finished


@pytest.mark.parametrize("seed", [None, 3])
def test_equal_cells_are_ordered_by_the_seed(start: Callable[..., Run], seed: int | None) -> None:
    equal = [Job(f"c{number}", "S", 1.0) for number in range(8)]

    def first(seed: int) -> str:
        job = Scheduler(equal, [Slot("a", "S")], seed=seed).take("a")
        assert job
        return test_id(job.id)

    assert len({first(0), first(1), first(3)}) == 3
    assert start(equal, **({} if seed is None else {"seed": seed})).workers[0].sent == [first(seed or 0)]


def test_a_cell_that_no_phone_can_run_is_the_planners_mistake(tmp_path: Path) -> None:
    job = Job("c0", "T", 1.0)
    scheduling = CellScheduling({"c0": job}, [Slot("a", "S")], tmp_path, workers=1, ready=lambda _: True)
    worker = Worker([test_id("c0")])
    scheduling.add_node(worker)  # type: ignore[arg-type]
    scheduling.add_node_collection(worker, worker.collection)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="c0 was planned for no phone"):
        scheduling.schedule()


def test_nobody_said_where_a_cell_shall_run(tmp_path: Path) -> None:
    assert assigned_phone(tmp_path, "c0") is None


# --- builds


def test_a_cell_waits_for_its_build_and_goes_at_the_next_look(start: Callable[..., Run], poll: Poll) -> None:
    ready = {"k": False, "l": True, "m": False}
    run = start([*jobs("late", artifact="k"), *jobs("now", artifact="l"), *jobs("none")], "ab", 2, ready=ready)
    assert sorted(run.all_sent()) == ["test_cell[none]", "test_cell[now]"]
    run.finish(0)
    run.finish(1)
    assert run.scheduling.has_pending
    assert not run.scheduling.tests_finished
    poll.tick()
    assert len(run.all_sent()) == 2
    ready["k"] = True
    poll.tick()
    assert "test_cell[late]" in run.all_sent()
    assert poll.slept == [0.2] * 3
    asked = run.asked.count("k")
    poll.tick()
    assert run.asked.count("k") == asked  # it has ended: nobody asks again
    assert set(run.asked) == {"k", "l"}


def test_the_poller_ends_with_the_last_test_and_keeps_no_process_alive(start: Callable[..., Run], poll: Poll) -> None:
    run = start(jobs("c0"))
    (thread,) = pollers()
    assert thread.daemon
    run.finish(0)
    poll.go()
    thread.join(timeout=30)
    assert not thread.is_alive()


def test_a_run_that_goes_on_is_not_begun_again(start: Callable[..., Run]) -> None:
    run = start(jobs("c0", "c1"), "a", workers=1)
    run.scheduling.schedule()
    run.finish(0)
    assert run.sent() == [["test_cell[c0]", "test_cell[c1]"]]
    run.finish(0)
    run.scheduling.schedule()
    assert run.scheduling.tests_finished


# --- phones


def test_a_phone_that_may_not_be_used_gets_nothing_until_it_may(start: Callable[..., Run], poll: Poll) -> None:
    hot = {"a"}
    run = start(jobs("c0", "c1"), "ab", workers=2, usable=lambda name: name not in hot)
    assert (run.phone("c0"), run.phone("c1")) == ("b", None)
    poll.tick()
    assert run.phone("c1") is None
    hot.clear()
    poll.tick()
    assert run.phone("c1") == "a"


def test_a_lost_phone_gets_nothing_though_it_might_be_used(start: Callable[..., Run]) -> None:
    run = start(jobs("c0", "c1"), "ab", workers=2, lost=lambda name: name == "a", usable=lambda _: True)
    assert (run.phone("c0"), run.phone("c1")) == ("b", None)
    run.finish(0)
    assert run.phone("c1") == "b"


def test_cells_that_only_lost_phones_could_run_are_sent_without_one(start: Callable[..., Run]) -> None:
    lost: set[str] = set()
    slots = [Slot("a", "S"), Slot("b", "T")]
    cells = [*jobs("c0", "c1", "c2"), Job("d0", "T", 1.0)]
    run = start(cells, slots, workers=2, lost=lambda name: name in lost)
    assert run.sent() == [["test_cell[c0]"], ["test_cell[d0]"]]
    lost.add("a")
    run.finish(1)
    assert run.sent()[1] == ["test_cell[d0]", "test_cell[c1]"]
    run.finish(0)
    assert run.sent()[0] == ["test_cell[c0]", "test_cell[c2]"]
    assert [run.phone(cell) for cell in ("c0", "c1", "c2", "d0")] == ["a", None, None, "b"]
    run.finish(0)
    run.finish(1)
    assert run.scheduling.tests_finished


def test_phones_are_looked_at_only_while_a_worker_and_a_cell_wait(start: Callable[..., Run], poll: Poll) -> None:
    looks: list[str] = []
    run = start(jobs("c0", "c1"), "ab", workers=1, lost=lambda name: looks.append(name) is not None)
    assert run.sent() == [["test_cell[c0]"]]
    looks.clear()
    poll.tick()
    assert looks == []  # no worker
    run.finish(0)
    assert looks == ["a", "b"]
    looks.clear()
    run.finish(0)
    assert looks == []  # no cell


# --- workers


def empty(tmp_path: Path, workers: int) -> CellScheduling:
    return CellScheduling({}, [], tmp_path, workers=workers, ready=lambda _: True)


def test_collection_is_complete_when_all_workers_that_live_have_said_theirs(tmp_path: Path) -> None:
    scheduling, workers = empty(tmp_path, 3), [Worker([FREE]) for _ in range(3)]
    for worker in workers:
        scheduling.add_node(worker)  # type: ignore[arg-type]
    assert scheduling.nodes == workers
    for worker in workers[:2]:
        assert not scheduling.collection_is_completed
        scheduling.add_node_collection(worker, worker.collection)  # type: ignore[arg-type]
    assert not scheduling.collection_is_completed
    assert scheduling.remove_node(workers[2]) is None  # type: ignore[arg-type]
    assert scheduling.collection_is_completed
    assert scheduling.nodes == workers[:2]
    scheduling.remove_node(workers[1])  # type: ignore[arg-type]
    assert scheduling.collection_is_completed


def test_what_a_dead_worker_collected_does_not_count_for_another_one(tmp_path: Path) -> None:
    scheduling, workers = empty(tmp_path, 3), [Worker([FREE]) for _ in range(3)]
    for worker in workers:
        scheduling.add_node(worker)  # type: ignore[arg-type]
    scheduling.add_node_collection(workers[0], [FREE])  # type: ignore[arg-type]
    scheduling.remove_node(workers[0])  # type: ignore[arg-type]
    scheduling.add_node_collection(workers[1], [FREE])  # type: ignore[arg-type]
    assert not scheduling.collection_is_completed
    scheduling.add_node_collection(workers[2], [FREE])  # type: ignore[arg-type]
    assert scheduling.collection_is_completed


def test_a_run_without_workers_has_collected_nothing(tmp_path: Path) -> None:
    scheduling, worker = empty(tmp_path, 1), Worker([FREE])
    scheduling.add_node(worker)  # type: ignore[arg-type]
    assert scheduling.remove_node(worker) is None  # type: ignore[arg-type]
    assert scheduling.remove_node(worker) is None  # type: ignore[arg-type] # a second time
    assert not scheduling.collection_is_completed


def test_more_workers_than_asked_for_are_not_waited_for(tmp_path: Path) -> None:
    scheduling, workers = empty(tmp_path, 2), [Worker([FREE]) for _ in range(4)]
    for worker in workers:
        scheduling.add_node(worker)  # type: ignore[arg-type]
    scheduling.remove_node(workers[0])  # type: ignore[arg-type]
    for worker in workers[1:3]:
        scheduling.add_node_collection(worker, [FREE])  # type: ignore[arg-type]
    assert scheduling.collection_is_completed


def test_nothing_is_finished_before_it_has_begun(tmp_path: Path) -> None:
    scheduling = empty(tmp_path, 1)
    assert not scheduling.tests_finished
    assert not scheduling.has_pending
    worker = Worker([FREE])
    scheduling.add_node(worker)  # type: ignore[arg-type]
    scheduling.remove_node(worker)  # type: ignore[arg-type]
    assert not scheduling.tests_finished


def test_a_worker_that_dies_names_its_test_and_frees_its_phone(start: Callable[..., Run]) -> None:
    run = start(jobs("c0", "c1", "c2"), "a", workers=2)
    assert run.scheduling.remove_node(run.workers[0]) == test_id("c0")  # type: ignore[arg-type]
    assert run.workers[1].sent == [test_id("c1")]  # c0 is over: xdist reports it
    assert run.scheduling.nodes == [run.workers[1]]
    run.finish(1)
    run.finish(1)
    assert run.workers[1].sent == [test_id("c1"), test_id("c2")]
    assert run.scheduling.tests_finished


def test_a_worker_that_dies_in_a_test_without_a_phone_frees_none(start: Callable[..., Run]) -> None:
    run = start(jobs("c0", "c1"), "a", workers=2, others=[FREE])
    assert run.sent() == [["test_without_a_phone"], ["test_cell[c0]"]]
    assert run.scheduling.remove_node(run.workers[0]) == FREE  # type: ignore[arg-type]
    run.finish(1)
    assert run.workers[1].sent == [test_id("c0"), test_id("c1")]


def test_that_an_idle_workers_test_is_over_once_more_changes_nothing(start: Callable[..., Run]) -> None:
    run = start(jobs("c0", "c1"), "a", workers=2)
    run.scheduling.mark_test_complete(run.workers[1], 0)  # type: ignore[arg-type]
    assert run.sent() == [["test_cell[c0]"], []]
    run.finish(0)
    assert run.all_sent() == ["test_cell[c0]", "test_cell[c1]"]


def test_a_new_worker_is_sent_tests_when_it_has_collected(start: Callable[..., Run], poll: Poll) -> None:
    run = start(jobs("c0", "c1"), "ab", workers=1)
    late = Worker(run.workers[0].collection)
    run.scheduling.add_node(late)  # type: ignore[arg-type]
    poll.tick()
    assert late.sent == []
    run.scheduling.add_node_collection(late, late.collection)  # type: ignore[arg-type]
    run.scheduling.schedule()
    assert late.sent == [test_id("c1")]


def test_a_worker_that_is_shutting_down_is_sent_nothing(start: Callable[..., Run]) -> None:
    run = start(jobs("c0", "c1"), "a", workers=2)
    run.workers[0].shutting_down = True
    run.finish(0)
    assert run.sent() == [["test_cell[c0]"], ["test_cell[c1]"]]


def test_a_test_that_no_worker_is_left_for_is_not_over(start: Callable[..., Run]) -> None:
    run = start([], "a", workers=1, others=[FREE, f"{FREE}2"])
    run.workers[0].shutting_down = True
    run.finish(0)
    assert run.scheduling.has_pending
    assert not run.scheduling.tests_finished


def test_the_poller_outlives_a_worker_that_is_just_dying(start: Callable[..., Run], poll: Poll) -> None:
    ready = {"k": False, "l": False}
    run = start([*jobs("c0", artifact="k"), *jobs("c1", artifact="l")], "a", workers=2, ready=ready)
    run.workers[0].dead = True
    ready["k"] = True
    poll.tick()
    assert run.scheduling.remove_node(run.workers[0]) == test_id("c0")  # type: ignore[arg-type]
    ready["l"] = True
    poll.tick()
    assert run.workers[1].sent == [test_id("c1")]


def test_what_a_worker_holds_cannot_be_taken_back(tmp_path: Path) -> None:
    scheduling, worker = empty(tmp_path, 1), Worker([FREE])
    with pytest.raises(NotImplementedError):
        scheduling.mark_test_pending(FREE)
    with pytest.raises(NotImplementedError):
        scheduling.remove_pending_tests_from_node(worker, [0])  # type: ignore[arg-type]
