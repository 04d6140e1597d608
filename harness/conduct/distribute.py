"""pytest-xdist by our scheduler: a worker that is free gets the cell that a free phone should run now.

xdist's own schedulers commit each worker to a test ahead of the one it runs, since its workers start a test only when
they know the next (xdist 3.8, `remote.py`). A cell committed to a busy phone could wait there while another phone has
nothing to do. So the workers of a device run take one test at a time (`one_at_a_time`), and the controller decides at
the last moment (`CellScheduling`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.files import write_atomically
from harness.schedule.jobs import Job, Slot
from harness.schedule.scheduler import Scheduler

if TYPE_CHECKING:
    import pytest
    from xdist.workermanage import WorkerController

POLL_S = 0.2


def assignment_file(folder: Path, cell: str) -> Path:
    """Where the controller writes which phone a cell is meant for, in a run's folder."""
    return folder / "assigned" / cell


def assigned_phone(folder: Path, cell: str) -> str | None:
    """The phone a cell is meant for, by name; None if nobody said."""
    try:
        return assignment_file(folder, cell).read_text(encoding="utf-8")
    except OSError:
        return None


class CellScheduling:
    """xdist's `Scheduling` protocol over `Scheduler`. Called by xdist's main loop and by a thread that polls."""

    def __init__(
        self,
        jobs: Mapping[str, Job],
        slots: Sequence[Slot],
        folder: Path,
        *,
        workers: int,
        ready: Callable[[str], bool],
        usable: Callable[[str], bool] = lambda _: True,
        lost: Callable[[str], bool] = lambda _: False,
        seed: int = 0,
    ) -> None:
        """
        Args:
            jobs: cell id → its job; a test that has none needs no phone and goes to any worker.
            slots: the phones.
            folder: the run's: assignments are written there.
            workers: that xdist starts.
            ready: whether a key's build has ended, well or not.
            usable: whether a phone may be given work now.
            lost: whether a phone is gone, as far as is known now.
            seed: the scheduler's.
        """
        self._jobs, self._slots, self._folder = dict(jobs), list(slots), folder
        self._ready, self._usable, self._lost = ready, usable, lost
        self._seed = seed
        self._workers = workers
        self._lock = threading.RLock()
        self._collections: dict[WorkerController, list[str]] = {}
        self._nodes: dict[WorkerController, tuple[str, str | None] | None] = {}  # node → test and phone under way
        self._free_tests: list[str] = []
        self._busy: set[str] = set()
        self._artifacts: set[str] = set()
        self._test_of: dict[str, str] = {}
        self._scheduler: Scheduler | None = None
        self._poller: threading.Thread | None = None

    @property
    def nodes(self) -> list[WorkerController]:
        """The workers that live."""
        return list(self._nodes)

    @property
    def collection_is_completed(self) -> bool:
        """Whether all workers have said what they collected."""
        return len(self._collections) >= self._workers

    @property
    def tests_finished(self) -> bool:
        """Whether all tests are over."""
        return self._scheduler is not None and not self.has_pending

    @property
    def has_pending(self) -> bool:
        """Whether a test is not over."""
        with self._lock:
            running = any(work is not None for work in self._nodes.values())
            return running or bool(self._free_tests) or bool(self._scheduler and self._scheduler.open)

    def add_node(self, node: WorkerController) -> None:
        """A worker has started."""
        with self._lock:
            self._nodes[node] = None

    def add_node_collection(self, node: WorkerController, collection: Sequence[str]) -> None:
        """What a worker collected: the same in all, since all read one plan."""
        with self._lock:
            self._collections[node] = list(collection)

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:  # noqa: ARG002
        """A worker's test is over."""
        with self._lock:
            self._end(node)
            self._dispatch()

    def mark_test_pending(self, item: str) -> None:
        """Not used: this is for plugins that run a test again."""
        raise NotImplementedError

    def remove_pending_tests_from_node(self, node: WorkerController, indices: Sequence[int]) -> None:
        """Not used: a worker never holds a test it has not begun."""
        raise NotImplementedError

    def remove_node(self, node: WorkerController) -> str | None:
        """A worker is gone; returns the test it was at, if it died in one."""
        with self._lock:
            work = self._nodes.get(node)
            if work is not None:
                self._end(node)
            self._nodes.pop(node, None)
            self._collections.pop(node, None)
            self._workers = max(1, min(self._workers, len(self._nodes)))
            self._dispatch()
            return work[0] if work else None

    def schedule(self) -> None:
        """All workers are there, or one more: hands out what can run."""
        with self._lock:
            if self._scheduler is None:
                self._begin()
            self._dispatch()

    def _begin(self) -> None:
        tests = next(iter(self._collections.values()))
        jobs = []
        for test in tests:
            job = self._jobs.get(test.partition("[")[2].removesuffix("]"))
            if job is None:
                self._free_tests.append(test)
            else:
                jobs.append(job)
                self._test_of[job.id] = test
        built = {job.artifact for job in jobs if not job.artifact or self._ready(job.artifact)}
        self._artifacts = {job.artifact for job in jobs} - built
        self._scheduler = Scheduler(jobs, self._slots, ready=built, seed=self._seed)
        for job in self._scheduler.homeless():  # its test says so
            raise ValueError(f"{job.id} was planned for no phone")
        self._poller = threading.Thread(target=self._poll, name="htpfarm-schedule", daemon=True)
        self._poller.start()

    def _poll(self) -> None:
        """Gives idle phones work that becomes possible while no test ends."""
        while self.has_pending:
            # A worker that is just dying cannot be told anything; xdist's main loop hears of it.
            with self._lock, contextlib.suppress(OSError):
                self._dispatch()
            time.sleep(POLL_S)

    def _end(self, node: WorkerController) -> None:
        work = self._nodes[node]
        self._nodes[node] = None
        if work is not None and work[1] is not None:
            assert self._scheduler is not None
            test, phone = work
            self._busy.discard(work[1])
            for job_id in self._scheduler.running_on(str(phone)):
                if self._test_of[job_id] == test:
                    self._scheduler.finish(job_id)

    def _dispatch(self) -> None:
        scheduler = self._scheduler
        if scheduler is None:
            return
        for artifact in sorted(a for a in self._artifacts if self._ready(a)):
            self._artifacts.discard(artifact)
            scheduler.make_ready(artifact)
        idle = [n for n, work in self._nodes.items() if work is None and n in self._collections and not n.shutting_down]
        while idle and self._free_tests:
            self._send(idle.pop(0), self._free_tests.pop(0), None)
        if not idle or not scheduler.waiting:
            return
        # What no phone is left for is given to a worker all the same, which says so as the cell's outcome.
        lost = [slot.name for slot in self._slots if self._lost(slot.name)]
        if lost:
            self._free_tests += [self._test_of[job.id] for job in scheduler.withdraw_stranded(lost)]
            while idle and self._free_tests:
                self._send(idle.pop(0), self._free_tests.pop(0), None)
        for phone in scheduler.order_of_phones(slot.name for slot in self._slots if slot.name not in self._busy):
            scheduler.set_usable(phone, phone not in lost and self._usable(phone))
            if idle and (job := scheduler.take(phone)):
                self._busy.add(phone)
                write = assignment_file(self._folder, job.id)
                write.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(write, phone)
                self._send(idle.pop(0), self._test_of[job.id], phone)

    def _send(self, node: WorkerController, test: str, phone: str | None) -> None:
        self._nodes[node] = (test, phone)
        node.send_runtest_some([self._collections[node].index(test)])


def one_at_a_time(session: pytest.Session, interactor: Any) -> None:
    """A worker's loop: runs a test as soon as it is told to, and asks for nothing ahead.

    Args:
        session: the worker's.
        interactor: xdist's `WorkerInteractor`.
    """
    # A worker executes xdist's module from its source: what `xdist.remote` names here are other objects.
    shutdown = type(interactor).handle_command.__globals__["Marker"].SHUTDOWN
    items = session.items
    interactor.channel.setcallback(interactor.handle_command, endmarker=shutdown)
    while (index := interactor.torun.get()) is not shutdown:
        interactor.item_index = index
        # Some test follows or the session's end does: fixtures wider than a test are kept until then.
        following = items[(index + 1) % len(items)] if len(items) > 1 else None
        started = time.perf_counter()
        session.config.hook.pytest_runtest_protocol(item=items[index], nextitem=following)
        took = time.perf_counter() - started
        interactor.sendevent("runtest_protocol_complete", item_index=index, duration=took)
        if session.shouldfail or session.shouldstop:
            break
