"""The witness: what QDQ says of each token of a few texts, kept with the artifact so that a phone is judged by it.

A build computes it while the quantised module is in memory (`testify`), so that a model too large to keep its module is
judged as a small one is. It holds, for each place of the held-out text and of each prompt with QDQ's own greedy
continuation, the likeliest tokens and how far last-step rounding moves them in this model: the **spread**. An HTP
computes with integers what QDQ computes with rounded floats, so its values differ from QDQ's by roundings that fall to
the other side; the spread is what such roundings do, measured by letting every quantiser of QDQ round at random
(`harness.build.dither`). No phone is asked for it, so a bound in units of it is fixed before a phone is judged.

    witness.npz                  the rows, numpy arrays without pickles
    lookahead-N-W-G.json         the same algorithm as the runner's lookahead, on QDQ's logits
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import NotJudgedError
from harness.files import write_atomically
from harness.runtime.lookahead import Settings

FILE = "witness.npz"
COMPARED = 10
"""The likeliest tokens of each row over which spreads and deviations are taken."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WitnessText:
    """One text and what QDQ says of it. All arrays have a row an input.

    Attributes:
        prompt: tokens of it that are a prompt, the rest being QDQ's greedy continuation; 0 of held-out text.
        inputs: token ids that are fed, from an empty context.
        targets: what follows each of them.
        ids: the likeliest tokens [n,k], the most likely first.
        logprobs: their log-probabilities [n,k]; what is left to 1 is the mass of the rest.
        target_logprobs: log-probability of each target [n].
        spread: RMS by which random rounding moves the COMPARED likeliest log-probabilities [n], nats.
        target_spread: RMS by which it moves the target's [n], nats.
    """

    prompt: int
    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    ids: npt.NDArray[np.int64]
    logprobs: Floats
    target_logprobs: Floats
    spread: Floats
    target_spread: Floats

    @property
    def continuation(self) -> tuple[int, ...]:
        """QDQ's greedy tokens after the prompt; all targets of held-out text."""
        return self.targets[max(self.prompt - 1, 0) :]

    @property
    def rest(self) -> Floats:
        """The mass of all tokens that are not among `ids` [n]."""
        return np.asarray(np.clip(1 - np.exp(self.logprobs).sum(axis=1), 0, 1))


@dataclass(frozen=True)
class Witness:
    """All texts of a model: the held-out windows in order, then each prompt's.

    Attributes:
        held_out: windows of the held-out text; more of it than a cell scores at first.
        prompts: by their fed tokens.
    """

    held_out: tuple[WitnessText, ...]
    prompts: Mapping[tuple[int, ...], WitnessText]

    @property
    def typical_spread(self) -> float:
        """The median row's spread, nats."""
        return float(np.median(np.concatenate([text.spread for text in self.texts])))

    @property
    def texts(self) -> tuple[WitnessText, ...]:
        """Held-out windows, then prompts."""
        return (*self.held_out, *self.prompts.values())

    def save(self, folder: Path) -> None:
        """Writes FILE."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for number, text in enumerate(self.texts):
            for name in ("inputs", "targets", "ids"):
                arrays[f"{number}.{name}"] = np.asarray(getattr(text, name), dtype=np.int32)
            for name in ("logprobs", "target_logprobs", "spread", "target_spread"):
                arrays[f"{number}.{name}"] = np.asarray(getattr(text, name), dtype=np.float32)
        arrays["prompts"] = np.asarray([text.prompt for text in self.texts], dtype=np.int32)
        stream = io.BytesIO()
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
        (folder / FILE).write_bytes(stream.getvalue())


def load_witness(folder: Path) -> Witness:
    """Reads FILE of a reference folder.

    Raises:
        NotJudgedError: there is none, or it cannot be read.
    """
    path = folder / FILE
    remedy = "compile again: a build leaves the witness beside the reference (`htpfarm compile`)"
    if not path.is_file():
        raise NotJudgedError("the artifact has no witness: nothing says what QDQ says", where=str(path), remedy=remedy)
    try:
        with np.load(path, allow_pickle=False) as data:
            texts = [_text(data, number, int(prompt)) for number, prompt in enumerate(data["prompts"])]
    except (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise NotJudgedError(
            f"the witness cannot be read: {type(error).__name__}: {error}",
            where=str(path),
            remedy=f"remove it and {remedy}",
        ) from None
    held_out = tuple(text for text in texts if not text.prompt)
    return Witness(held_out, {text.inputs[: text.prompt]: text for text in texts if text.prompt})


def _text(data: Any, number: int, prompt: int) -> WitnessText:
    def tokens(name: str) -> tuple[int, ...]:
        return tuple(int(token) for token in data[f"{number}.{name}"])

    def floats(name: str) -> Floats:
        return np.asarray(data[f"{number}.{name}"], dtype=np.float64)

    return WitnessText(
        prompt,
        tokens("inputs"),
        tokens("targets"),
        np.asarray(data[f"{number}.ids"], dtype=np.int64),
        floats("logprobs"),
        floats("target_logprobs"),
        floats("spread"),
        floats("target_spread"),
    )


@dataclass(frozen=True)
class Guess:
    """A guessing row of a lookahead step under QDQ.

    Attributes:
        choice: the likeliest token after the row's path.
        gap: its log-probability less the second's, nats: of how much noise it is the choice.
    """

    choice: int
    gap: float


@dataclass(frozen=True)
class LookaheadWitness:
    """What lookahead does on QDQ's logits after one prompt.

    Attributes:
        steps: steps it takes.
        accepted: tokens beyond the first of a step.
        guesses: (generated tokens so far, path of the row from the current token on) → the row under QDQ.
    """

    steps: int
    accepted: int
    guesses: Mapping[tuple[int, tuple[int, ...]], Guess]


def lookahead_file(folder: Path, settings: Settings) -> Path:
    """Where the lookahead witness of some settings is."""
    return folder / f"lookahead-{settings.ngram}-{settings.window}-{settings.gcap}.json"


def save_lookahead(path: Path, found: Mapping[tuple[int, ...], LookaheadWitness]) -> None:
    """Writes a lookahead witness, at once: another build may read the folder. `found`: by the prompts' fed tokens."""
    data = [
        {
            "prompt": list(prompt),
            "steps": one.steps,
            "accepted": one.accepted,
            "guesses": [[done, list(row), g.choice, round(g.gap, 5)] for (done, row), g in one.guesses.items()],
        }
        for prompt, one in found.items()
    ]
    write_atomically(path, json.dumps(data))


def load_lookahead(folder: Path, settings: Settings) -> dict[tuple[int, ...], LookaheadWitness]:
    """Reads a lookahead witness: prompt's fed tokens → what QDQ does after it.

    Raises:
        NotJudgedError: there is none, or it cannot be read.
    """
    path = lookahead_file(folder, settings)
    try:
        return {tuple(one["prompt"]): _lookahead(one) for one in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotJudgedError(
            f"no witness of lookahead with {settings}: {type(error).__name__}: {error}",
            where=str(path),
            remedy="remove it and compile the lookahead cell again",
        ) from None


def _lookahead(data: Mapping[str, Any]) -> LookaheadWitness:
    rows: Sequence[Any] = data["guesses"]
    guesses = {(int(done), tuple(row)): Guess(int(choice), float(gap)) for done, row, choice, gap in rows}
    return LookaheadWitness(int(data["steps"]), int(data["accepted"]), guesses)
