"""The scheduler in simulated time: nothing lost, nothing twice, no phone idle beside work that fits it."""

from __future__ import annotations

import random
import threading

import pytest
from events import HANG_S
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.build.room import Room
from harness.schedule.compiles import Build, by_waiting_work, next_builds
from harness.schedule.estimates import DEFAULT_SECONDS, Estimates, Past
from harness.schedule.jobs import Job, Slot, lower_bound
from harness.schedule.scheduler import MAX_HELD, Scheduler
from harness.schedule.simulate import simulate

SOCS = ("SM8550", "SM8650")


def many(count: int, seed: int = 0, sigma: float = 1.0) -> list[Job]:
    rng = random.Random(seed)
    return [
        Job(f"c{i}", rng.choice(SOCS), 60 * rng.lognormvariate(0, sigma), f"{rng.choice(SOCS)}-{rng.randrange(5)}")
        for i in range(count)
    ]


def rack(count: int) -> list[Slot]:
    return [Slot(f"p{i}", SOCS[i % 2]) for i in range(count)]


@pytest.mark.parametrize("phones", [4, 16, 40])
def test_makespan_is_near_the_lower_bound(phones: int) -> None:
    jobs, slots = many(2000), rack(phones)
    found = simulate(jobs, slots)
    assert sorted(p.job for p in found.placements) == sorted(job.id for job in jobs)
    assert lower_bound(jobs, slots) <= found.makespan <= 1.05 * lower_bound(jobs, slots)


def test_the_bound_is_the_longest_cell_or_a_classs_share() -> None:
    slots = [*rack(4), Slot("q", "SM8750")]
    jobs = [Job("a", "SM8550", 30), Job("b", "SM8550", 10), Job("c", "SM8650", 7), Job("d", "SM8750", 5)]
    assert lower_bound(jobs, slots) == 30
    assert lower_bound(jobs, slots, {"a": 8, "b": 8, "c": 3, "d": 5}) == 8
    assert lower_bound([Job("a", "SM8550", 5, phone="p0"), Job("b", "SM8550", 6, phone="p0")], slots) == 11


def test_a_phone_runs_one_job_at_a_time_and_only_what_fits() -> None:
    jobs, slots = many(300), rack(5)
    soc = {slot.name: slot.soc for slot in slots}
    ends: dict[str, float] = {}
    for p in simulate(jobs, slots, cooling=lambda job, _: job.seconds / 10).placements:
        job = next(j for j in jobs if j.id == p.job)
        assert soc[p.phone] == job.soc
        assert p.start >= ends.get(p.phone, 0.0)
        ends[p.phone] = p.end


def test_while_one_phone_cools_another_runs() -> None:
    jobs = [Job(f"c{i}", "SM8650", 10.0) for i in range(20)]
    slots = [Slot("hot", "SM8650"), Slot("cool", "SM8650")]
    found = simulate(jobs, slots, cooling=lambda _, name: 1000.0 if name == "hot" else 0.0)
    assert sum(p.phone == "hot" for p in found.placements) == 1
    assert found.makespan == 190.0


def test_cells_start_when_their_artifact_is_ready_and_phones_run_others_until_then() -> None:
    jobs = [Job("late", "SM8650", 100, "a"), *(Job(f"c{i}", "SM8650", 10, "b") for i in range(6))]
    found = simulate(jobs, [Slot("p", "SM8650")], ready_at={"a": 25.0})
    starts = {p.job: p.start for p in found.placements}
    assert starts["late"] == 30.0  # the running cell ends first
    assert found.makespan == 160.0


def test_a_phone_gets_what_it_holds_while_much_is_left_and_the_longest_at_the_end() -> None:
    jobs = [Job(f"a{i}", "SM8650", 10, "A") for i in range(50)] + [Job(f"b{i}", "SM8650", 11, "B") for i in range(50)]
    scheduler = Scheduler(jobs, [Slot("x", "SM8650", holds=("A",)), Slot("y", "SM8650", holds=("B",))])
    taken = [(name, scheduler.take(name)) for name in ("x", "y", "x", "y")]
    assert [(name, job.artifact) for name, job in taken if job] == [("x", "A"), ("y", "B"), ("x", "A"), ("y", "B")]
    end = Scheduler([Job("a", "SM8650", 10, "A"), Job("b", "SM8650", 11, "B")], [Slot("x", "SM8650", holds=("A",))])
    job = end.take("x")
    assert job
    assert job.id == "b"


def test_a_cell_goes_to_the_phone_of_its_baseline() -> None:
    jobs = [Job(f"x{i}", "SM8650", 10, prefers="x") for i in range(20)]
    jobs += [Job(f"y{i}", "SM8650", 10, prefers="y") for i in range(20)] + [Job("z", "SM8650", 10)]
    found = simulate(jobs, [Slot("x", "SM8650"), Slot("y", "SM8650")])
    there = sum(p.job.startswith(p.phone) for p in found.placements)
    assert there >= 38
    assert found.makespan == 210.0


def test_pinned_cells_and_labels() -> None:
    slots = [Slot("p0", "SM8650", offers=frozenset({"12gb"})), Slot("p1", "SM8650")]
    jobs = [Job("pin", "SM8650", 5, phone="p1"), Job("big", "SM8650", 5, needs=frozenset({"12gb"}))]
    where = {p.job: p.phone for p in simulate(jobs, slots).placements}
    assert where == {"pin": "p1", "big": "p0"}
    stray = [Job("no", "SM8750", 1), Job("pinned", "SM8650", 1, phone="p9"), Job("w", "SM8550", 1, phone="p0")]
    assert {job.id for job in Scheduler([*jobs, *stray], slots).homeless()} == {"no", "pinned", "w"}


def test_a_job_given_back_goes_elsewhere_first_and_back_only_if_it_must() -> None:
    scheduler = Scheduler([Job("a", "SM8650", 5), Job("b", "SM8650", 1)], [Slot("x", "SM8650"), Slot("y", "SM8650")])
    assert scheduler.take("x") == Job("a", "SM8650", 5)
    scheduler.give_back("a")
    job = scheduler.take("x")
    assert job
    assert job.id == "b"  # not a again, on the phone where it failed
    job = scheduler.take("y")
    assert job
    assert job.id == "a"
    scheduler.give_back("a")
    scheduler.finish("b")
    assert scheduler.take("x") is not None  # it failed on both: any will do
    scheduler.finish("a")
    assert scheduler.open == 0


def test_a_phone_that_is_not_usable_gets_nothing_and_does_not_hold_a_job_back() -> None:
    scheduler = Scheduler([Job("a", "SM8650", 5)], [Slot("x", "SM8650"), Slot("y", "SM8650")])
    scheduler.take("x")
    scheduler.give_back("a")
    scheduler.set_usable("y", False)
    assert scheduler.take("y") is None
    assert scheduler.take("x") is not None  # y would be better, but is away


def test_priority_orders_free_phones() -> None:
    scheduler = Scheduler([], [Slot("a", "S", 1), Slot("b", "S", 5), Slot("c", "S", 1)])
    assert scheduler.order_of_phones(["c", "a", "b"]) == ["b", "a", "c"]


def test_an_artifact_that_cannot_be_built_ends_its_jobs() -> None:
    scheduler = Scheduler([Job("a", "S", 1, "k"), Job("b", "S", 1, "k")], [Slot("p", "S")], ready=[])
    assert scheduler.take("p") is None
    assert [job.id for job in scheduler.drop("k")] == ["a", "b"]
    assert scheduler.open == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 60))
def test_whatever_happens_every_job_ends_once_and_no_phone_idles_beside_work(
    seed: int, phones: int, count: int
) -> None:
    rng = random.Random(seed)
    slots = rack(phones)
    jobs = [
        Job(f"c{i}", rng.choice(SOCS[:phones]), rng.choice([0.0, 1.0, 5.0, 100.0]), rng.choice(["", "k", "l"]))
        for i in range(count)
    ]
    scheduler = Scheduler(jobs, slots, ready=[""], seed=seed)
    running: dict[str, Job] = {}
    finished: list[str] = []
    usable = {slot.name: True for slot in slots}
    artifacts = ["k", "l"]
    for _ in range(100_000):
        if not scheduler.open:
            break
        event = rng.random()
        if event < 0.1 and artifacts:
            scheduler.make_ready(artifacts.pop())
        elif event < 0.2:
            name = rng.choice(sorted(usable))
            usable[name] = not usable[name] if name not in running else usable[name]
            scheduler.set_usable(name, usable[name])
        elif event < 0.6 and running:
            name, job = rng.choice(sorted(running.items()))
            del running[name]
            if rng.random() < 0.3:
                scheduler.give_back(job.id)
            else:
                scheduler.finish(job.id)
                finished.append(job.id)
        for slot in slots:
            if slot.name not in running and (job := scheduler.take(slot.name)):
                assert usable[slot.name]
                assert job.soc == slot.soc
                running[slot.name] = job
        idle = [slot for slot in slots if slot.name not in running and usable[slot.name]]
        assert scheduler.waiting == 0 or not any(scheduler.take(slot.name) for slot in idle)
    assert sorted(finished) == sorted(job.id for job in jobs)


def test_the_same_seed_gives_the_same_plan_and_held_files_stay_few() -> None:
    jobs, slots = many(200), rack(4)
    assert simulate(jobs, slots, seed=3) == simulate(jobs, slots, seed=3)
    scheduler = Scheduler(jobs, slots)
    for number in range(100):
        scheduler.note_held("p0", f"k{number}")
    assert len(scheduler._held["p0"]) == MAX_HELD
    with pytest.raises(ValueError, match="same id"):
        Scheduler([jobs[0], jobs[0]], slots)


def test_builds_start_while_memory_lasts_and_feed_the_most_work_first() -> None:
    jobs = [Job("a", "S", 10, "small"), *(Job(f"b{i}", "S", 60, "big") for i in range(3))]
    order = by_waiting_work([Build("small", 10, 10), Build("big", 900, 20), Build("huge", 4000, 20)], jobs)
    assert [b.artifact for b in order] == ["big", "small", "huge"]
    started = next_builds(order, [], budget_mb=1000, workers=4)
    assert [b.artifact for b in started] == ["big", "small"]
    assert next_builds(order[2:], started, budget_mb=1000, workers=4) == ()
    assert [b.artifact for b in next_builds(order[2:], [], budget_mb=1000, workers=4)] == ["huge"]
    assert next_builds(order, [], budget_mb=10_000, workers=1) == order[:1]
    assert next_builds(order, started, budget_mb=10_000, workers=2) == ()


def test_estimates_fall_back_from_the_cell_to_its_like() -> None:
    past = [
        Past("tiny-kv-SM8650@s24", "tiny", "kv", 10),
        Past("tiny-kv-SM8650@s24", "tiny", "kv", 12),
        Past("tiny-kv-SM8650@s24", "tiny", "kv", 300),
        Past("tiny-hybrid-SM8550", "tiny", "hybrid", 40),
    ]
    known = Estimates(past)
    assert known.seconds("tiny-kv-SM8650@s24", "tiny", "kv") == 12
    assert known.seconds("tiny-kv-SM8650@oneplus12", "tiny", "kv") == 12
    assert known.seconds("tiny-hybrid-SM8750", "tiny", "hybrid") == 40
    assert known.seconds("other-kv-SM8750", "other", "kv") == 26
    assert Estimates().seconds("x", "y", "z") == DEFAULT_SECONDS


def test_builds_wait_for_room_and_all_get_it() -> None:
    room, stop = Room(1000, 3), threading.Event()
    pair = threading.Event()  # the first of the others waits for a second beside it
    lock, now, most = threading.Lock(), [0.0, 0], [0.0, 0]

    def build(number: int) -> None:
        one = Build(f"b{number}", 400 if number else 5000)  # the first is larger than all there is
        with room.taken(one, stop):
            with lock:
                if number:
                    now[0] += one.memory_mb
                now[1] += 1
                most[:] = [max(most[0], now[0]), max(most[1], now[1])]
            if now[1] == 2:
                pair.set()
            if number:
                assert pair.wait(HANG_S)
            with lock:
                if number:
                    now[0] -= one.memory_mb
                now[1] -= 1

    threads = [threading.Thread(target=build, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=HANG_S)
    assert most[0] == 800
    assert most[1] == 2  # never beside the large one, which runs alone
    stop.set()
    with room.taken(Build("x", 10**9), stop), room.taken(Build("y", 10**9), stop):
        pass
