"""How near the scheduler comes to the best possible makespan, and what planning costs.

    python benchmarks/makespan.py [--cells 10000] [--seed 0] [--json]

Cells take log-normal times (median 60 s, sigma 1) on simulated phones of three SoC classes. For 4, 16 and 100 phones,
with and without artifacts to come from the compiler, the makespan is compared with the lower bound: the longest cell,
or a class's work over its phones. Planning 10,000 cells on 1,000 phones is timed, and the cost of planning as the
number of cells and of phones grows. The exit status is 1 if a bound of BOUND or LIMIT_S is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time

from harness.schedule.jobs import Job, Slot, lower_bound
from harness.schedule.simulate import simulate

BOUND = 1.05
LIMIT_S = 2.0
SOCS = ("SM8550", "SM8650", "SM8750")
# Phones as a lab would have them: twice as many of the middle one.
SHARE = (1, 2, 1)


def rack(count: int) -> list[Slot]:
    """`count` phones, spread over the SoCs by SHARE."""
    pattern = [soc for soc, share in zip(SOCS, SHARE, strict=True) for _ in range(share)]
    return [Slot(f"phone{i:04}", pattern[i % len(pattern)]) for i in range(count)]


def work(count: int, seed: int, sigma: float = 1.0) -> list[Job]:
    """`count` cells: models × modes × SoCs with log-normal times, work in proportion to the phones."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    jobs = []
    for number in range(count):
        (soc,) = rng.choices(SOCS, SHARE)
        model = rng.randrange(40)
        jobs.append(Job(f"cell{number:06}", soc, 60.0 * rng.lognormvariate(0.0, sigma), f"{model}-{soc}"))
    return jobs


def off(jobs: list[Job], seed: int) -> dict[str, float]:
    """True times that differ from the estimates by about 20%."""
    rng = random.Random(seed + 1)  # noqa: S311 - no secret
    return {job.id: job.seconds * rng.lognormvariate(0.0, 0.2) for job in jobs}


def measure(cells: int, phones: int, seed: int, *, exact: bool) -> dict[str, float | str]:
    """One row: makespan over bound, the time planning took, how often a cell found its artifact on the phone."""
    jobs, slots = work(cells, seed), rack(phones)
    seconds = None if exact else off(jobs, seed)
    # Processor time, since other work may share the machine; without the pauses in which Python walks through all
    # objects of the benchmark itself, which grow with the square of its size.
    gc.collect()
    gc.disable()
    start = time.process_time()
    found = simulate(jobs, slots, seconds=seconds, seed=seed)
    took = time.process_time() - start
    gc.enable()
    assert len({p.job for p in found.placements}) == cells
    artifact = {job.id: job.artifact for job in jobs}
    pushes = len({(p.phone, artifact[p.job]) for p in found.placements})
    bound = lower_bound(jobs, slots, seconds)
    return {
        "cells": cells,
        "phones": phones,
        "estimates": "exact" if exact else "20% off",
        "makespan_s": round(found.makespan, 1),
        "bound_s": round(bound, 1),
        "ratio": round(found.makespan / bound, 4),
        "artifact_there": round(1 - pushes / cells, 4),
        "planning_s": round(took, 3),
    }


def main() -> int:
    """Runs it all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [
        measure(arguments.cells, phones, arguments.seed, exact=exact)
        for phones in (4, 16, 100, 1000)
        for exact in (True, False)
    ]
    growth = [measure(cells, 100, arguments.seed, exact=True) for cells in (10_000, 20_000, 40_000, 80_000)]
    wider = [measure(10_000, phones, arguments.seed, exact=True) for phones in (1000, 2000, 4000)]
    judged = [row for row in rows if int(row["phones"]) <= 100]
    good = all(float(row["ratio"]) <= BOUND for row in judged) and all(
        float(row["planning_s"]) < LIMIT_S for row in rows
    )
    if arguments.json:
        print(json.dumps({"good": good, "rows": rows, "growth": growth, "wider": wider}, indent=2))
        return 0 if good else 1
    for row in rows:
        print(
            f"{row['phones']:>5} phones, estimates {row['estimates']:>7}: {row['makespan_s']:>9.1f} s against "
            f"{row['bound_s']:>9.1f} s: ratio {row['ratio']:.4f}; artifact there {row['artifact_there']:.1%}; "
            f"planned in {row['planning_s']:.3f} s"
        )
    for name, found in (("cells", growth), ("phones", wider)):
        base = float(found[0]["planning_s"]) / float(found[0][name])
        for row in found:
            per = float(row["planning_s"]) / float(row[name]) / base
            print(f"{row[name]:>6} {name}: {row['planning_s']:.3f} s, {per:.2f} times the first one's cost for each")
    print("good" if good else f"MISSED: ratio over {BOUND} or planning over {LIMIT_S:g} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
