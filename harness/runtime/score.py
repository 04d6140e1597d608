"""Log-likelihoods of given tokens: what perplexity, tasks and the comparison with QDQ are computed from.

A `Window` is scored from an empty cache through one graph. A walk of `Leg`s goes through several: it shows what one
graph makes of a cache that another one filled, or that was rewound.
"""

from __future__ import annotations

import json
import math
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
TOP = 32
"""Most likely tokens of a row that are reported."""


@dataclass(frozen=True)
class TopRows:
    """The most likely tokens after each of n places.

    Attributes:
        ids: token ids [n,k] int64, the most likely first, of equals the lowest id.
        logprobs: their natural log-probabilities [n,k] float64.
    """

    ids: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, places: slice) -> TopRows:
        return TopRows(self.ids[places], self.logprobs[places])


@dataclass(frozen=True)
class Leg:
    """A part of a walk through a text.

    Attributes:
        keep: tokens of what was fed before that stay in the cache; the rest is forgotten first.
        graph: which graph takes the inputs: `prefill` in blocks, `kv` a token a step (in lookahead: in blocks too).
        inputs: token ids that are fed.
        targets: what follows each input and is scored; none where the leg only leads to the next one.
    """

    keep: int
    graph: GraphChoice
    inputs: tuple[int, ...]
    targets: tuple[int, ...] = ()


@dataclass(frozen=True)
class LegScore:
    """What a graph made of a leg.

    Attributes:
        logprobs: natural log-probability of each target; empty of a leg without targets.
        top: the likeliest tokens after each input; no rows of a leg without targets.
        steps: executions of the graph.
        seconds: spent in them.
    """

    logprobs: tuple[float, ...]
    top: TopRows
    steps: int
    seconds: float


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


def walk(session: Session, legs: Sequence[Leg]) -> list[LegScore]:
    """Walks through a text leg by leg, from an empty cache; the session is empty afterwards.

    Raises:
        ConfigError: a leg does not fit what is in the cache, or the program has no such graph.
    """
    check_legs(session.info, legs)
    session.rewind(0)
    results = []
    for number, leg in enumerate(legs):
        results.append(_walk_leg(session, leg, f"legs[{number}]"))
    session.rewind(0)
    return results


def _walk_leg(session: Session, leg: Leg, where: str) -> LegScore:
    info = session.info
    if leg.keep > session.cache.n_valid:
        raise ConfigError(
            f"{leg.keep} tokens are to stay, but the cache holds {session.cache.n_valid}",
            where=where,
            remedy="begin again (keep 0) after a leg that went to the context's end",
        )
    session.rewind(leg.keep)
    logprobs: list[float] = []
    tops: list[TopRows] = []
    steps, first = 0, 0

    def take(raw: npt.NDArray[np.generic]) -> None:
        nonlocal steps, first
        steps += 1
        if leg.targets:
            targets = leg.targets[first : first + len(raw)]
            values = log_softmax(dequantise(raw, info.logits_scale, info.logits_zero_point))
            logprobs.extend(float(x) for x in np.take_along_axis(values, np.asarray(targets)[:, None], axis=1)[:, 0])
            tops.append(_top(raw, values))
        first += len(raw)

    before = session.run_seconds
    fits = leg.keep + len(leg.inputs) <= session.limit
    chosen = info.graphs[KV_GRAPH if leg.graph == "kv" else PREFILL_GRAPH]
    session.feed(leg.inputs, graph=chosen, keep=fits, on_rows=take)
    return LegScore(tuple(logprobs), join_rows(tops), steps, session.run_seconds - before)


def top_rows(raw: npt.NDArray[np.generic], info: ProgramInfo) -> TopRows:
    """The likeliest tokens of each row of raw logits [n,V]."""
    return _top(raw, log_softmax(dequantise(raw, info.logits_scale, info.logits_zero_point)))


def join_rows(parts: Sequence[TopRows]) -> TopRows:
    """Rows one after the other."""
    if not parts:
        return TopRows(np.empty((0, 0), dtype=np.int64), np.empty((0, 0)))
    return TopRows(np.concatenate([part.ids for part in parts]), np.concatenate([part.logprobs for part in parts]))


def likeliest(values: npt.NDArray[np.generic], count: int = TOP) -> npt.NDArray[np.int64]:
    """Indices [n,count] of the largest values of each row [n,V], the largest first, of equals the lowest index."""
    worst_first = -np.asarray(values, dtype=np.float64)
    found = np.sort(np.argpartition(worst_first, count - 1, axis=-1)[:, :count], axis=-1)
    order = np.argsort(np.take_along_axis(worst_first, found, axis=-1), axis=-1, kind="stable")
    return np.asarray(np.take_along_axis(found, order, axis=-1), dtype=np.int64)


def _top(raw: npt.NDArray[np.generic], values: npt.NDArray[np.float64]) -> TopRows:
    ids = likeliest(raw, min(TOP, raw.shape[-1]))
    return TopRows(ids, np.take_along_axis(values, ids, axis=-1))


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


def check_legs(info: ProgramInfo, legs: Sequence[Leg]) -> None:
    """Refuses legs that no walk can take; errors as in `walk`."""
    if not legs:
        raise ConfigError("a walk without a leg", where="legs", remedy="give at least one")
    for number, leg in enumerate(legs):
        where = f"legs[{number}]"
        if leg.graph == "prefill" and info.prefill is None:
            raise ConfigError("this .pte has no prefill_forward", where=where, remedy='walk with graph "kv"')
        if not leg.inputs or leg.keep < 0 or leg.keep + len(leg.inputs) > info.context_len:
            raise ConfigError(
                f"{len(leg.inputs)} tokens after {leg.keep}: a leg has at least one, and the context holds "
                f"{info.context_len}",
                where=where,
            )
        if leg.targets and len(leg.targets) != len(leg.inputs):
            raise ConfigError(f"{len(leg.inputs)} inputs and {len(leg.targets)} targets must be equal", where=where)
        if bad := [token for token in (*leg.inputs, *leg.targets) if not 0 <= token < info.vocab]:
            raise ConfigError(f"token {bad[0]} is outside the vocabulary of {info.vocab}", where=where)


def parse_legs(data: Any) -> tuple[Leg, ...]:
    """Of a request: `[{"keep", "graph": "kv" | "prefill", "input": [ids], "target": [ids]}]`.

    Raises:
        ConfigError: it has another form.
    """
    try:
        legs = []
        for leg in data:
            if leg["graph"] not in ("kv", "prefill") or type(leg["keep"]) is not int:
                raise ValueError('graph is "kv" or "prefill", keep a whole number')
            legs.append(Leg(leg["keep"], leg["graph"], token_ids(leg["input"]), token_ids(leg.get("target", []))))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"no walk: {type(error).__name__}: {error}",
            where="legs",
            remedy='expected [{"keep": 0, "graph": "kv" or "prefill", "input": [ids], "target": [ids]}]',
        ) from None
    return tuple(legs)


def legs_json(legs: Sequence[Leg]) -> list[dict[str, Any]]:
    """What `parse_legs` takes."""
    return [
        {"keep": leg.keep, "graph": leg.graph, "input": list(leg.inputs), "target": list(leg.targets)} for leg in legs
    ]


def rows_json(rows: TopRows) -> dict[str, Any]:
    """What `parse_rows` takes: log-probabilities to a millionth of a nat."""
    return {"ids": rows.ids.tolist(), "logprobs": np.round(rows.logprobs, 6).tolist()}


def parse_rows(data: Any) -> TopRows:
    """Of `rows_json`. Raises KeyError, TypeError or ValueError for another form, and for what is no finite number."""
    ids, logprobs = np.asarray(data["ids"], dtype=np.int64), np.asarray(data["logprobs"], dtype=np.float64)
    if not len(ids) and not len(logprobs):
        return join_rows([])
    if ids.ndim != 2 or not ids.shape[1] or ids.shape != logprobs.shape:
        raise ValueError(f"ids of {ids.shape} and log-probabilities of {logprobs.shape}")
    if not np.isfinite(logprobs).all():
        raise ValueError("a log-probability that is no finite number")
    return TopRows(ids, logprobs)


def walk_json(results: Sequence[LegScore]) -> list[dict[str, Any]]:
    """What `parse_walk` takes."""
    return [
        {"logprobs": list(r.logprobs), "top": rows_json(r.top), "steps": r.steps, "seconds": r.seconds} for r in results
    ]


def parse_walk(data: Sequence[Any]) -> list[LegScore]:
    """Of `walk_json`. Raises KeyError, TypeError or ValueError for another form, and for what is no finite number."""
    return [
        LegScore(
            _finite(leg["logprobs"]), parse_rows(leg["top"]), int(leg["steps"]), _finite([float(leg["seconds"])])[0]
        )
        for leg in data
    ]


def _finite(values: Sequence[Any]) -> tuple[float, ...]:
    """Raises ValueError for what is no finite number: a runner's NaN is a fault, and no score."""
    numbers = tuple(float(value) for value in values)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("a number that is not finite")
    return numbers


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
    """Of `result_json`'s windows. Raises KeyError, TypeError or ValueError for another form or what is not finite."""
    return [
        WindowScore(
            _finite(window["logprobs"]),
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
