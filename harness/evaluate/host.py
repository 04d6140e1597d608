"""The float model and QDQ on this computer, from the modules a build leaves: scores, and the judgement of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.build.reference import FP_FILE, QDQ_FILE, Reference, load_reference
from harness.errors import ConfigError
from harness.evaluate.grounds import GroundScore, score_text
from harness.evaluate.host_scorer import HostScorer, torch_threads
from harness.results.records import Ground
from harness.text.heldout import HeldOut, begins_with

FILES: dict[Ground, str] = {"FP": FP_FILE, "QDQ": QDQ_FILE}


class Host:
    """Loads a module when it is first asked for, and keeps those of one reference folder."""

    def __init__(self) -> None:
        self._folder = Path()
        self._modules: dict[Ground, HostScorer] = {}
        self._scores: dict[tuple[Ground, HeldOut], GroundScore] = {}
        self._logits: dict[tuple[int, ...], npt.NDArray[np.float64]] = {}

    def scorer(self, folder: Path, ground: Ground) -> HostScorer:
        """FP or QDQ of a reference folder.

        Raises:
            ConfigError: the folder has no such module: the model was too large to keep it.
        """
        if folder != self._folder:
            self._folder, self._modules, self._scores, self._logits = folder, {}, {}, {}
        if ground not in self._modules:
            path = folder / FILES[ground]
            if not path.is_file():
                raise ConfigError(
                    f"the {ground} module of this model was not kept when it was compiled",
                    where=str(path),
                    remedy="leave out --eval-tokens and --eval-tasks: the scores made at compile time are used then",
                )
            self._modules[ground] = HostScorer(path, load_reference(folder).sliding_window)
        return self._modules[ground]

    def keeps(self, folder: Path) -> bool:
        """Whether QDQ of a reference folder can be run: large models' modules are not kept."""
        return (folder / QDQ_FILE).is_file()

    def grounds(self, folder: Path, reference: Reference, text: HeldOut) -> tuple[GroundScore, GroundScore]:
        """FP's and QDQ's scores of a text: those made at compile time of it or of its beginning, else made now."""
        if begins_with(reference.held_out, text):
            made = (("FP", reference.fp_each[: text.tokens]), ("QDQ", reference.qdq_each[: text.tokens]))
            fp, qdq = (GroundScore(g, "full", each, text.words, reference.context) for g, each in made)  # type: ignore[arg-type]
            return fp, qdq
        return self._score(folder, "FP", text), self._score(folder, "QDQ", text)

    def logits(self, folder: Path, tokens: Sequence[int]) -> npt.NDArray[np.float64]:
        """QDQ's logits [len(tokens), vocab]; errors as in `scorer`."""
        module, key = self.scorer(folder, "QDQ").module, tuple(tokens)
        if key not in self._logits:  # the same for every SoC and mode
            with torch_threads(1):
                self._logits[key] = module.run(key).logits
        return self._logits[key]

    def _score(self, folder: Path, ground: Ground, text: HeldOut) -> GroundScore:
        scorer = self.scorer(folder, ground)
        if (ground, text) not in self._scores:
            self._scores[ground, text] = score_text(scorer, ground, "full", text)
        return self._scores[ground, text]
