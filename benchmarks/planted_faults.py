"""Plants faults in the runner, in the build and on the phone, and says which check of a cell catches each.

    python benchmarks/planted_faults.py [--kinds runner,build,phone] [--only NAME,NAME] [--models tiny_llama,…]
        [--modes kv,hybrid,lookahead] [--ways ours,stock] [--modules kept,none] [--quick] [--repeat-clean 10]
        [--work DIR] [--resume] [--no-memory] [--no-battery] [--json FILE] [--markdown FILE] [--list]

Cells run as they do in a run, on a virtual phone of this program's own, and leave records; what is said of a fault is
what the cell's checks said there. What the fault changes is measured: an unchanged runner is asked the same requests,
and where the cell neither fails nor sees a change, both are asked more (`faults/battery.py`). Executions that the
simulator has done before are remembered (`faults/memo.py`), but for faults of speeds.

Exit status 1: a fault that changes a token, a score by more than 0.5%, or a number of steps passes every check; the
unchanged product fails; or a fault could not be planted.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from faults import report
from faults.battery import battery
from faults.build import Builds
from faults.catalog import FAULTS
from faults.cells import OURS, STOCK, Place, Rack, rack
from faults.fault import ALL_MODES, Fault, PlantError
from faults.report import CLEAN, Row
from faults.tap import FOLDER, Words, effect

from harness.models import ModelSpec

KINDS = ("runner", "build", "phone")


class Campaign:
    """What is known while faults are planted: sound runs, and rows so far."""

    def __init__(self, place_of_work: Rack, *, memory: bool, more: bool, done: Sequence[Row]) -> None:
        self.rack, self.memory, self.more = place_of_work, memory, more
        self.builds = Builds(place_of_work)
        self.rows = list(done)
        self._sound: dict[Place, Words] = {}
        self._good: set[Place] = set()
        self._heard: dict[Place, Path] = {}
        self._battery: dict[tuple[str, str], Words] = {}
        self._log = place_of_work.work / "rows.jsonl"

    def has(self, fault: str, place: Place) -> bool:
        """Whether there is a row."""
        return any(row.fault == fault and row.place == place.title and not row.problem for row in self.rows)

    def clean(self, place: Place, label: str = "") -> None:
        """The unchanged product, as a run has it."""
        ran = self.rack.run(place, None, label=f"clean{label}", product=True, memory=False)
        self._add(Row(CLEAN, "the unchanged product", "clean", place.title, ran.outcome, ran.failure_class, ran.reason,
                      ran.checks, seconds=ran.seconds, problem=ran.problem))  # fmt: skip

    def sound(self, place: Place) -> Words:
        """What a sound runner says in this cell, by way of the same launcher."""
        if place not in self._sound:
            ran = self.rack.run(place, None, label="sound", memory=self.memory)
            self._heard[place] = self.rack.heard
            self._sound[place] = ran.words
            if ran.passed:
                self._good.add(place)
            self._add(Row(CLEAN, "a sound runner", "clean", place.title, ran.outcome, ran.failure_class, ran.reason,
                          ran.checks, seconds=ran.seconds, cpu_s=ran.words.cpu_s, problem=ran.problem))  # fmt: skip
        return self._sound[place]

    def plant(self, fault: Fault, place: Place) -> None:
        """One fault in one cell."""
        sound = self.sound(place)
        try:
            settings = self._settings(fault, place)
            built = self.builds.faulty(fault, place) if fault.kind == "build" else None
        except PlantError as error:
            self._add(Row(fault.name, fault.what, fault.kind, place.title, "", "", "", problem=str(error)))
            return
        ran = self.rack.run(
            place,
            None if fault.kind == "build" else fault,
            artifact=built,
            settings=settings,
            label=fault.name,
            memory=self.memory and not fault.speed,
        )
        found = effect(ran.words, sound)
        problem = ran.problem or ("" if place in self._good else "a sound runner fails here, too")
        matters, beyond, strikes = found.matters, "", ran.words.strikes
        if self.more and ran.passed and not (matters or ran.problem or fault.speed):
            more = self._beyond(fault, place, settings)
            others = effect(more, self._sound_battery(place))
            matters, beyond = others.matters, others.words()
            strikes += more.strikes
        if fault.reference:
            change = self.builds.change_of_reference(fault, place)
            matters, beyond = matters or abs(change) > 0.005, f"perplexity of the reference {change:+.2%}"
        exempt = "speed alone" if fault.speed else "it is another model" if fault.both else fault.outside
        self._add(Row(fault.name, fault.what, fault.kind, place.title, ran.outcome, ran.failure_class, ran.reason,
                      ran.checks, found.words(), matters, beyond, strikes, ran.seconds, round(ran.words.cpu_s, 1),
                      problem, exempt))  # fmt: skip

    def _beyond(self, fault: Fault, place: Place, settings: dict[str, str]) -> Words:
        cell, artifact = self.rack.stored(place)
        planted = fault.name
        if fault.kind == "build":
            artifact, planted = self.builds.faulty(fault, place), ""
        more = {"stock": place.way == STOCK, "sound": fault.kind == "runner"}
        return battery(cell, artifact, planted, settings, self._memory_file, **more)

    def _sound_battery(self, place: Place) -> Words:
        key = place.model, place.mode
        if key not in self._battery:
            self._battery[key] = battery(*self.rack.stored(place), "", {}, self._memory_file)
        return self._battery[key]

    @property
    def _memory_file(self) -> Path | None:
        return self.rack.root / FOLDER / "memory.sqlite" if self.memory else None

    def _settings(self, fault: Fault, place: Place) -> dict[str, str]:
        """What a fault is told: other files, and what a sound runner said."""
        if fault.name == "scores_of_a_good_run":
            return {"HTPFARM_FAULT_GOOD": str(self._heard[place])}
        return self.builds.others(fault, place) if fault.kind == "phone" else {}

    def _add(self, row: Row) -> None:
        self.rows = [r for r in self.rows if (r.fault, r.place) != (row.fault, row.place) or r.fault == CLEAN]
        self.rows.append(row)
        report.append(row, self._log)
        by = f" by {row.by()}" if row.caught else ""
        also = f" ({row.beyond} beyond the cell)" if row.beyond else ""
        said = f"{row.place}: {row.fault}: {row.word}{by}; changes {row.changes}{also}; {row.strikes} strikes"
        problem = f"; {row.problem}" if row.problem else ""
        print(f"{time.strftime('%H:%M:%S')} {said}; {row.seconds:.0f} s{problem}", flush=True)


def matters_in(fault: Fault, model: ModelSpec) -> bool:
    """Whether a model has what a fault needs."""
    return {
        "": True,
        "window": model.params.sliding_window is not None,
        "lpbq": model.needs.lpbq,
        "shards": model.shards > 1,
        "template": model.instruct,
    }[fault.needs]


def chosen(arguments: argparse.Namespace, specs: dict[str, ModelSpec]) -> Iterator[tuple[Fault, Place]]:
    """Faults and cells that were asked for, in order: all of a cell's one after the other."""
    only = list(filter(None, arguments.only.split(",")))
    if unknown := set(only) - set(FAULTS):
        raise SystemExit(f"no such fault: {', '.join(sorted(unknown))}; see --list")
    kinds, modes = arguments.kinds.split(","), arguments.modes.split(",")
    for model in arguments.models.split(","):
        for mode in modes:
            for way in arguments.ways.split(","):
                for module in arguments.modules.split(","):
                    place = Place(model, mode, way, module == "kept")
                    for fault in [FAULTS[name] for name in only] or list(FAULTS.values()):
                        first = next((m for m in fault.modes if m in modes), None)
                        wanted = bool(only) or fault.kind in kinds
                        fits = mode in fault.modes and way in fault.ways and matters_in(fault, specs[model])
                        if wanted and fits and (mode == first or not arguments.quick):
                            yield fault, place


def run(arguments: argparse.Namespace, work: Path) -> int:
    """Runs all that was asked for; returns the exit status."""
    log = work / "rows.jsonl"
    if not arguments.resume:
        log.unlink(missing_ok=True)
    before = [row for row in report.read(log) if row.fault != CLEAN]  # the product is run again in any case
    with rack(work) as lab:
        models, modes = arguments.models.split(","), arguments.modes.split(",")
        lab.artifacts(models, modes)
        specs = {model: lab.stored(Place(model, modes[0]))[0].model for model in models}
        campaign = Campaign(lab, memory=not arguments.no_memory, more=not arguments.no_battery, done=before)
        for model in models:
            for mode in modes:
                for way in arguments.ways.split(","):
                    for module in arguments.modules.split(","):
                        for number in range(arguments.repeat_clean):
                            campaign.clean(Place(model, mode, way, module == "kept"), f"-{number}")
        if not arguments.clean_only:
            for fault, place in chosen(arguments, specs):
                if not (arguments.resume and campaign.has(fault.name, place)):
                    campaign.plant(fault, place)
    rows = campaign.rows
    if arguments.json:
        report.write(rows, arguments.json)
    if arguments.markdown:
        command = " ".join(["python benchmarks/planted_faults.py", *arguments.told])
        arguments.markdown.write_text(report.markdown(rows, command))
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.word] = counts.get(row.word, 0) + 1
    print("; ".join(f"{count} {word}" for word, count in sorted(counts.items())))
    for row in rows:
        if row.wrong:
            print(f"{row.word}: {row.fault} in {row.place}: {row.problem or row.reason or row.changes} {row.beyond}")
    return int(any(row.wrong for row in rows))


def main() -> int:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--only", default="", help="names of faults, comma-separated; see --list")
    parser.add_argument("--models", default="tiny_llama")
    parser.add_argument("--modes", default=",".join(ALL_MODES))
    parser.add_argument("--ways", default=OURS, help=f"{OURS}: our runner; {STOCK}: the stock runner's path")
    parser.add_argument("--modules", default="kept", help="kept, none: whether QDQ's module lies with the reference")
    parser.add_argument("--quick", action="store_true", help="each fault in one mode alone")
    parser.add_argument("--repeat-clean", type=int, default=0, help="how often the unchanged product is run")
    parser.add_argument("--clean-only", action="store_true", help="nothing but that")
    parser.add_argument("--work", type=Path, help="folder to work in and to leave; builds in it are used again")
    parser.add_argument("--resume", action="store_true", help="with --work: what has a row there is not run again")
    parser.add_argument("--no-memory", action="store_true", help="the simulator computes all, each time")
    parser.add_argument("--no-battery", action="store_true", help="nothing is asked beyond what the cells ask")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--list", action="store_true", help="the faults, and no more")
    arguments = parser.parse_args()
    arguments.told = sys.argv[1:]
    if arguments.list:
        for fault in FAULTS.values():
            print(f"{fault.kind:7} {fault.name:32} {', '.join(fault.modes):23} {fault.what}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the rack is ended
    with tempfile.TemporaryDirectory(prefix="htpfarm-faults-") as name:
        work = (arguments.work or Path(name)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        return run(arguments, work)


if __name__ == "__main__":
    sys.exit(main())
