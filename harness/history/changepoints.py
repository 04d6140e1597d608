"""Where a metric's level changed over its history: e-divisive means, by Apache Otava. Advisory, never a gate.

Otava pins its own numpy and scipy, so it may live in an environment of its own: `$HTPFARM_OTAVA` is that one's Python.
Without it, this interpreter is asked (`pip install 'htpfarm[changepoints]'`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence

from harness.history.trend import Trend

LEAST = 8
"""A series that is shorter has no level to change."""
_WINDOW, _P = 50, 0.001  # Otava's own defaults
_CODE = """
import json, sys
from otava.analysis import compute_change_points
asked = json.load(sys.stdin)
found = [compute_change_points(s, window_len=asked["window"], max_pvalue=asked["p"])[0] for s in asked["series"]]
json.dump([[int(point.index) for point in points] for points in found], sys.stdout)
"""


class UnavailableError(Exception):
    """Otava is not there, or failed; the message says which."""


def with_changes(trends: Sequence[Trend], timeout_s: float = 300) -> list[Trend]:
    """The trends with the times from which on each has another level.

    Raises:
        UnavailableError: change points cannot be looked for.
    """
    places = change_points([[value.value for value in trend.values] for trend in trends], timeout_s)
    return [
        dataclasses.replace(trend, changes=tuple(trend.values[place].time for place in found))
        for trend, found in zip(trends, places, strict=True)
    ]


def change_points(series: Sequence[Sequence[float]], timeout_s: float = 300) -> list[list[int]]:
    """Of each series the places from which on it has another level; none of one that is short or not finite.

    Raises:
        UnavailableError: Otava is not there, or failed.
    """
    fit = [number for number, values in enumerate(series) if len(values) >= LEAST and all(map(math.isfinite, values))]
    asked = {"window": _WINDOW, "p": _P, "series": [list(series[number]) for number in fit]}
    python = os.environ.get("HTPFARM_OTAVA", sys.executable)
    try:
        done = subprocess.run(
            [python, "-c", _CODE],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(str(error)) from error
    if "No module named 'otava'" in done.stderr:
        raise UnavailableError(
            f"{python} has no apache-otava; install it there, or let HTPFARM_OTAVA name a Python that has"
        )
    if done.returncode != 0:
        raise UnavailableError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "Otava failed")
    found: list[list[int]] = [[] for _ in series]
    for number, points in zip(fit, json.loads(done.stdout), strict=True):
        found[number] = points
    return found
