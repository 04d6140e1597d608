"""Runs cells on phones from one process: a thread a phone, each asking the scheduler what to do next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from harness.schedule.jobs import Job, Slot
from harness.schedule.scheduler import Scheduler

POLL_S = 0.1


class FarmLoop:
    """Runs every job once. `run_one` carries a job out on the phone named, and raises nothing."""

    def __init__(
        self,
        jobs: Sequence[Job],
        slots: Sequence[Slot],
        run_one: Callable[[Job, str], None],
        *,
        usable: Callable[[str], bool] = lambda _: True,
        lost: Callable[[str], bool] = lambda _: False,
        ready: Callable[[str], bool] = lambda _: True,
        seed: int = 0,
    ) -> None:
        """
        Args:
            jobs: what to run.
            slots: the phones.
            run_one: see above.
            usable: whether a phone may be given work now.
            lost: whether a phone will not be usable in this run any more.
            ready: whether an artifact's build has ended.
            seed: the scheduler's.
        """
        self._slots, self._run_one = list(slots), run_one
        self._usable, self._lost, self._ready = usable, lost, ready
        keys = sorted({job.artifact for job in jobs if job.artifact})
        self._blocked = [key for key in keys if not ready(key)]
        self._scheduler = Scheduler(jobs, slots, ready={*keys, ""}.difference(self._blocked), seed=seed)
        self._changed = threading.Condition()

    def run(self) -> tuple[Job, ...]:
        """Returns when all jobs are over: those that no phone is left for, which have not run."""
        threads = [
            threading.Thread(target=self._work, args=(slot.name,), name=f"phone-{slot.name}", daemon=True)
            for slot in self._slots
        ]
        for thread in threads:
            thread.start()
        stranded: list[Job] = []
        while True:
            # Asked outside the lock: these look at files.
            built = [key for key in self._blocked if self._ready(key)]
            lost = [slot.name for slot in self._slots if self._lost(slot.name)]
            with self._changed:
                for key in built:
                    self._blocked.remove(key)
                    self._scheduler.make_ready(key)
                stranded += self._scheduler.withdraw_stranded(lost)
                self._changed.notify_all()
                if self._scheduler.open == 0:
                    break
                self._changed.wait(POLL_S)
        for thread in threads:
            thread.join()
        return tuple(stranded)

    def _work(self, phone: str) -> None:
        while True:
            allowed = self._usable(phone) and not self._lost(phone)
            with self._changed:
                self._scheduler.set_usable(phone, allowed)
                if self._scheduler.open == 0:
                    return
                job = self._scheduler.take(phone)
                if job is None:
                    self._changed.wait(POLL_S)
                    continue
            self._run_one(job, phone)
            with self._changed:
                self._scheduler.finish(job.id)
                self._changed.notify_all()
