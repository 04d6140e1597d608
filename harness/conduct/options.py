"""What `pytest -m device` was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.build.calibration import MODELS_OWN, CalibrationChoice
from harness.conduct.plan import Choice, read_choice
from harness.evaluate.choice import EvalChoice
from harness.farm.select import ANY_PHONE, Wish
from harness.inventory import Inventory


@dataclass(frozen=True)
class Options:
    """What a run was asked for; all strings as given on the command line.

    Attributes:
        lengths: fields of `Lengths` that replace each model's own.
        evaluation: the `--eval-…` options.
        calibration: the `--calib-…` options.
        wish: which of the rack's phones.
        any_phone: a cell runs once on any phone of its SoC, instead of once on each.
        strict_memory: what is likely not to compile here for lack of memory is refused, instead of warned of.
        ab: the two sides of a run of A against B, base and candidate: environments, or folders of `.pte` files.
        ab_build_folders, ab_sdks: the two sides' builds for Android and QNN SDKs, for real phones; None: each side's
            own, else the run's.
        ab_tokens: tokens that a timed session of it generates; None for each model's own.
        resume: folder of an interrupted run to go on with; None for a new run.
        engine: address of an engine whose hosts' phones take the place of `rack`'s; None: none.
        engine_tls: folder with the certificates for it.
    """

    rack: Path
    models: str
    modes: str | None
    socs: str | None
    pte: Path | None
    compile_only: bool
    reports: Path
    lengths: dict[str, int] = field(default_factory=dict)
    evaluation: EvalChoice = field(default_factory=EvalChoice)
    calibration: CalibrationChoice = MODELS_OWN
    wish: Wish = ANY_PHONE
    any_phone: bool = False
    strict_memory: bool = False
    ab: tuple[Path, Path] | None = None
    ab_tokens: int | None = None
    ab_build_folders: tuple[Path, Path] | None = None
    ab_sdks: tuple[Path, Path] | None = None
    resume: Path | None = None
    engine: str | None = None
    engine_tls: Path | None = None

    @property
    def phones_from(self) -> str:
        """Where the phones stand: the rack's file, or the engine."""
        return self.engine or str(self.rack)

    def choice(self, inventory: Inventory | None = None) -> Choice:
        """The selections, read and checked; of `inventory`'s phones, where it is given."""
        choice = read_choice(
            self.rack,
            self.models,
            self.modes,
            self.socs,
            lengths=self.lengths,
            calibration=self.calibration,
            wish=self.wish,
            inventory=inventory,
        )
        return replace(choice, each_phone=not self.any_phone)
