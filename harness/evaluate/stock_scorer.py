"""A phone's kv graph through the stock qnn_llama_runner: a process a window, and its logits dumped and fetched.

Slow (each process loads the model) and heavy (vocabulary × 2 bytes a token come over the cable), but it asks nothing of
the runner that ExecuTorch's own does not do. Two traps of it, from `runner.cpp` and `prompt_processor.cpp`: it needs a
seq_len beyond the prompt, so a window takes one input less than the context; and the dump holds the prompt's rows
first, then those of what it generates, which here is nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.errors import ConfigError, ProductError
from harness.evaluate.phone_scorer import STEP_LIMIT_S, Progress
from harness.farm.connect import PhoneLink
from harness.farm.deploy import DeployReport
from harness.farm.failures import classify, error_of
from harness.farm.payload import Payload, PayloadFile
from harness.farm.session import SessionSpec, run_session
from harness.runtime.program import ProgramInfo
from harness.runtime.sampling import greedy
from harness.runtime.score import LegScore, WindowScore, check_windows, score_rows, top_rows
from harness.text.windows import Window

START_LIMIT_S = 120.0
_LOGITS = "logits.raw"


@dataclass(frozen=True)
class _Run:
    """Raw logits [n,V] of one process, and the seconds the prompt took."""

    logits: npt.NDArray[np.generic]
    seconds: float


class StockScorer:
    """The kv graph of a kv or hybrid .pte on a phone.

    Args:
        link: the phone; leased by the caller.
        deployed: the files it holds; see `deploy`.
        payload: which of them is what.
        info: of the .pte: its encodings turn the dump into logits.
        run_id: the run it belongs to; each process has a session of its own, numbered from `first_session`.
        decoder_version: qnn_llama_runner's `--decoder_model_version`.
        first_session: see above.
        progress: told after each window.

    Raises:
        ConfigError: the kv graph takes several tokens at once (lookahead), of which the runner would fill one alone.
    """

    def __init__(
        self,
        link: PhoneLink,
        deployed: DeployReport,
        payload: Payload,
        info: ProgramInfo,
        *,
        run_id: str,
        decoder_version: str,
        first_session: int = 0,
        progress: Progress | None = None,
    ) -> None:
        check_windows(info, (), "kv")
        self._link = link
        self._deployed = deployed
        self._payload = payload
        self._info = info
        self._run_id = run_id
        self._version = decoder_version
        self._number = first_session
        self._progress = progress or (lambda _done, _total: None)

    @property
    def context(self) -> int:
        """See `Scorer`; one less than the .pte's, see above."""
        return self._info.context_len - 1

    @property
    def vocab(self) -> int:
        """See `Scorer`."""
        return self._info.vocab

    def score(self, windows: Sequence[Window]) -> list[WindowScore]:
        """See `Scorer`; `seconds` is the runner's own time for the prompt, in whole ms.

        Raises:
            ConfigError: a window does not fit.
            HarnessError: of the class of the session's failure.
        """
        check_windows(replace(self._info, context_len=self.context), windows, "kv")
        results = []
        for window in windows:
            run = self._run(window.inputs, len(window.inputs) + 1)
            logprobs, hits = score_rows(run.logits[: len(window.inputs)], window.targets, self._info)
            results.append(WindowScore(tuple(float(x) for x in logprobs), tuple(hits), len(window.inputs), run.seconds))
            self._progress(len(results), len(windows))
        return results

    def walk(self, inputs: Sequence[int], targets: Sequence[int]) -> LegScore:
        """The rows after each input, from an empty cache; errors as in `score`."""
        check_windows(replace(self._info, context_len=self.context), [Window(tuple(inputs), tuple(targets))], "kv")
        run = self._run(inputs, len(inputs) + 1)
        raw = run.logits[: len(inputs)]
        logprobs, _ = score_rows(raw, targets, self._info)
        each = tuple(float(x) for x in logprobs)
        return LegScore(each, top_rows(raw, self._info), len(inputs), run.seconds)

    def generate(self, prompt: Sequence[int], max_new: int, stop: Collection[int]) -> list[int]:
        """See `Scorer`; ends where the context does, and at the stop tokens that the runner knows by itself.

        Raises:
            ConfigError: the prompt does not fit.
            HarnessError: of the class of the session's failure.
        """
        check_windows(replace(self._info, context_len=self.context), [Window(tuple(prompt), tuple(prompt))], "kv")
        if max_new < 1:
            raise ConfigError(f"{max_new} tokens to generate", where="max_new", remedy="ask for at least one")
        run = self._run(prompt, min(len(prompt) + max_new, self._info.context_len))
        tokens = [greedy(row) for row in run.logits[len(prompt) - 1 :]][:max_new]
        ends = [number for number, token in enumerate(tokens) if token in stop]
        return tokens[: ends[0] + 1] if ends else tokens

    def _run(self, prompt: Sequence[int], seq_len: int) -> _Run:
        """One process; its dump begins with a row for each of the prompt's tokens."""
        with tempfile.TemporaryDirectory(prefix="htpfarm-") as folder:
            tokens = Path(folder) / "prompt.raw"
            np.asarray(prompt, dtype="<u8").tofile(tokens)
            spec = self._spec(PayloadFile(tokens, tokens.name), seq_len)
            self._number += 1
            result = run_session(self._link, self._deployed, spec, Path(folder) / "out")
            if failure := classify(result):
                raise error_of(failure, f"{self._link.serial}: {spec.runner}")
            logits = np.fromfile(result.files[_LOGITS], dtype=self._info.kv.logits.dtype)
        rows, rest = divmod(len(logits), self._info.vocab)
        if rest or rows < len(prompt):
            raise ProductError(
                f"the runner dumped {len(logits)} logits for {len(prompt)} tokens of {self._info.vocab}",
                where=f"{self._link.serial}: {spec.runner}",
                evidence=result.stderr[-2000:],
            )
        if not np.isfinite(logits).all():
            raise ProductError(
                "the runner dumped logits that are no numbers",
                where=f"{self._link.serial}: {spec.runner}",
                remedy="look at what the runner computes: a NaN spreads",
            )
        assert result.observer is not None, "classify() refuses a session without one"
        seconds = (result.observer.prompt_eval_end_ms - result.observer.inference_start_ms) / 1000
        return _Run(logits.reshape(rows, -1), seconds)

    def _spec(self, tokens: PayloadFile, seq_len: int) -> SessionSpec:
        flags = (
            *("--model_path", self._payload.model, "--tokenizer_path", self._payload.tokenizer),
            *("--decoder_model_version", self._version, "--eval_mode", "0", "--temperature", "0"),
            *("--tokenized_prompt", tokens.name, "--seq_len", str(seq_len), "--dump_logits_path", _LOGITS),
            *("--output_path", "outputs.txt", "--performance_output_path", "inference_speed.txt"),
        )
        return SessionSpec(
            run_id=self._run_id,
            number=self._number,
            runner=self._payload.runner,
            flags=flags,
            outputs=("outputs.txt", "inference_speed.txt", _LOGITS),
            inputs=(tokens,),
            timeout_s=START_LIMIT_S + STEP_LIMIT_S * seq_len,
        )
