"""Log-likelihoods of given tokens: what perplexity and multiple-choice tasks are computed from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from harness.errors import ConfigError
from harness.runtime.program import KV_GRAPH, PREFILL_GRAPH, ProgramInfo
from harness.runtime.sampling import dequantise, log_softmax
from harness.runtime.session import Session
from harness.text.windows import Window

GraphChoice = Literal["kv", "prefill"]


@dataclass(frozen=True)
class WindowScore:
    """Scores of one window.

    Attributes:
        logprobs: natural log-probability of each target token.
        greedy: whether each target token was the most likely one (lowest id of equals).
        steps: executions of the graph.
        seconds: spent in these executions, all else left out.
    """

    logprobs: tuple[float, ...]
    greedy: tuple[bool, ...]
    steps: int
    seconds: float


@dataclass(frozen=True)
class ScoreRequest:
    """Windows, and the graph to score them with: token by token (`kv`), or in blocks of AR (`prefill`)."""

    windows: tuple[Window, ...]
    graph: GraphChoice


def score(session: Session, windows: Sequence[Window], graph: GraphChoice) -> list[WindowScore]:
    """Scores each window from an empty cache; the session is empty afterwards.

    Raises:
        ConfigError: a window does not fit, or the program has no such graph.
    """
    check_windows(session.info, windows, graph)
    chosen = session.info.graphs[KV_GRAPH if graph == "kv" else PREFILL_GRAPH]
    results = []
    for window in windows:
        session.rewind(0)
        rows: list[npt.NDArray[np.float64]] = []
        hits: list[bool] = []
        steps = 0

        def take(raw: npt.NDArray[np.generic], window: Window = window, rows: Any = rows, hits: Any = hits) -> None:
            nonlocal steps
            steps += 1
            first = len(hits)
            logprobs, greedy = score_rows(raw, window.targets[first : first + len(raw)], session.info)
            rows.append(logprobs)
            hits.extend(greedy)

        before = session.run_seconds
        session.feed(window.inputs, graph=chosen, keep=False, on_rows=take)
        seconds = session.run_seconds - before
        results.append(WindowScore(tuple(float(x) for x in np.concatenate(rows)), tuple(hits), steps, seconds))
    session.rewind(0)
    return results


def logits(session: Session, tokens: Sequence[int], graph: GraphChoice, last: int) -> npt.NDArray[np.generic]:
    """Raw logits [last,V] after the `last` tokens, from an empty cache, which it leaves. Errors as `score`."""
    check_windows(session.info, [Window(tuple(tokens), tuple(tokens))], graph)
    rows: list[npt.NDArray[np.generic]] = []
    session.rewind(0)
    chosen = session.info.graphs[KV_GRAPH if graph == "kv" else PREFILL_GRAPH]
    session.feed(tokens, graph=chosen, keep=False, on_rows=lambda raw: rows.append(raw.copy()))
    session.rewind(0)
    return np.concatenate(rows)[-last:]


def score_rows(
    raw: npt.NDArray[np.generic], targets: Sequence[int], info: ProgramInfo
) -> tuple[npt.NDArray[np.float64], list[bool]]:
    """Log-probability of each row's target, and whether it was the most likely token. `raw`: logits [n,V]."""
    wanted = np.asarray(targets)
    logits = log_softmax(dequantise(raw, info.logits_scale, info.logits_zero_point))
    logprobs = np.take_along_axis(logits, wanted[:, None], axis=1)[:, 0]
    return logprobs, [bool(hit) for hit in raw.argmax(axis=1) == wanted]


def check_windows(info: ProgramInfo, windows: Sequence[Window], graph: GraphChoice) -> None:
    """Refuses windows that cannot be scored; errors as in `score`."""
    if graph == "prefill" and info.prefill is None:
        raise ConfigError(
            "this .pte has no prefill_forward to score with", where=str(info.path), remedy='score with graph "kv"'
        )
    if graph == "kv" and info.kv.ar_len != 1:
        raise ConfigError(
            f"kv_forward takes {info.kv.ar_len} tokens at once (lookahead) and cannot score token by token",
            where=str(info.path),
            remedy='score with graph "prefill"',
        )
    for number, window in enumerate(windows):
        where = f"windows[{number}]"
        if len(window.inputs) != len(window.targets) or not 1 <= len(window.inputs) <= info.context_len:
            raise ConfigError(
                f"{len(window.inputs)} input and {len(window.targets)} target tokens: they must be equal, "
                f"from 1 to the context of {info.context_len}",
                where=where,
            )
        if bad := [token for token in (*window.inputs, *window.targets) if not 0 <= token < info.vocab]:
            raise ConfigError(f"token {bad[0]} is outside the vocabulary of {info.vocab}", where=where)


def read_request(path: Path) -> ScoreRequest:
    """Reads `{"windows": [{"input": […], "target": […]}], "graph": "kv" | "prefill"}`.

    Raises:
        ConfigError: unreadable or of another form.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"no score request: {type(error).__name__}: {error}", where=str(path)) from None
    return parse_request(data, str(path))


def parse_request(data: Any, where: str) -> ScoreRequest:
    """The form that `read_request` describes.

    Raises:
        ConfigError: it has another form.
    """
    try:
        graph = data.get("graph", "kv")
        if graph not in ("kv", "prefill"):
            raise ValueError(f'graph is {graph!r}, not "kv" or "prefill"')
        windows = tuple(Window(token_ids(w["input"]), token_ids(w["target"])) for w in data["windows"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"no score request: {type(error).__name__}: {error}",
            where=where,
            remedy='expected {"windows": [{"input": [ids], "target": [ids]}], "graph": "kv" or "prefill"}',
        ) from None
    return ScoreRequest(windows, graph)


def request_json(windows: Sequence[Window], graph: GraphChoice) -> dict[str, Any]:
    """What `parse_request` takes."""
    return {"graph": graph, "windows": [{"input": list(w.inputs), "target": list(w.targets)} for w in windows]}


def parse_scores(data: Sequence[Any]) -> list[WindowScore]:
    """The `windows` of `result_json`. Raises KeyError, TypeError or ValueError for another form."""
    return [
        WindowScore(
            tuple(float(value) for value in window["logprobs"]),
            tuple(bool(value) for value in window["greedy"]),
            int(window["steps"]),
            float(window["seconds"]),
        )
        for window in data
    ]


def result_json(results: Sequence[WindowScore], graph: GraphChoice) -> dict[str, Any]:
    """What `--x_score_output` holds."""
    return {
        "graph": graph,
        "windows": [
            {"logprobs": list(r.logprobs), "greedy": list(r.greedy), "steps": r.steps, "seconds": r.seconds}
            for r in results
        ],
        "tokens": sum(len(r.logprobs) for r in results),
        "steps": sum(r.steps for r in results),
        "seconds": sum(r.seconds for r in results),
    }


def token_ids(values: Any) -> tuple[int, ...]:
    """A JSON list of whole numbers. Raises TypeError for anything else."""
    if not isinstance(values, list) or any(isinstance(v, bool) or not isinstance(v, int) for v in values):
        raise TypeError("token ids must be a list of whole numbers")
    return tuple(values)
