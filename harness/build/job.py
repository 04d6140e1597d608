"""What one build worker is asked to do: plain data, written as JSON for the subprocess."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.build.calibration import CalibrationChoice, choice_from_json
from harness.model_file import Lengths, Mode
from harness.target import Target


@dataclass(frozen=True)
class Output:
    """One `.pte` to make: a mode for a SoC and a target, and the cache folder that receives it.

    `fingerprint` goes into its manifest: everything that could change the artifact.
    """

    mode: Mode
    soc: str
    target: Target
    key: str
    folder: Path
    fingerprint: dict[str, str]


@dataclass(frozen=True)
class BuildJob:
    """One model, prepared once (load, quantise, calibrate, export, decompose), then lowered for each output.

    Attributes:
        model_file: the model's YAML.
        lengths: sizes compiled in, in tokens.
        calibration: what the user asked to calibrate with.
        outputs: the artifacts still missing; kv and hybrid may be mixed: they share the decode graph.
        reference: cache folder for what does not depend on the SoC: float and QDQ scores, QDQ module, tokenizer.
        parallel: how many outputs are lowered at once.
        threads: intra-op threads of the shared half.
        failures: folder that receives the log of an output that failed.
    """

    model_file: Path
    lengths: Lengths
    calibration: CalibrationChoice
    outputs: tuple[Output, ...]
    reference: Path
    parallel: int
    threads: int
    failures: Path

    def to_json(self) -> str:
        """The job as JSON text."""
        return json.dumps(asdict(self), default=str, indent=1)

    @staticmethod
    def from_json(text: str) -> BuildJob:
        """The inverse of `to_json`."""
        raw = json.loads(text)
        outputs = tuple(
            Output(Mode(o["mode"]), o["soc"], Target(o["target"]), o["key"], Path(o["folder"]), o["fingerprint"])
            for o in raw["outputs"]
        )
        return BuildJob(
            Path(raw["model_file"]),
            Lengths(**raw["lengths"]),
            choice_from_json(raw["calibration"]),
            outputs,
            Path(raw["reference"]),
            raw["parallel"],
            raw["threads"],
            Path(raw["failures"]),
        )
