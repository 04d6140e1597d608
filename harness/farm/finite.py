"""What a runner says may not be NaN or infinite: such a number compares with nothing, and nothing may pass by it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from harness.errors import ProductError

_REMEDY = "look at what the runner computes there: a NaN spreads, so look at what comes before it, too"


def not_finite(value: Any) -> Iterator[tuple[str, float]]:
    """The place (`windows.0.logprobs.3`) and value of each number in a JSON value that is NaN or infinite, in order."""
    if isinstance(value, float):
        if not math.isfinite(value):
            yield "", value
        return
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        for place, number in not_finite(item):
            yield f"{key}.{place}" if place else str(key), number


def refuse_not_finite(value: Any, where: str) -> None:
    """Nothing, where every number is finite.

    Raises:
        ProductError: one is not; names the first, and how many there are.
    """
    found = list(not_finite(value))
    if not found:
        return
    place, number = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    raise ProductError(f"the runner says {number:g} for {place or 'it'}{more}", where=where, remedy=_REMEDY)


def finite_json(text: str, where: str) -> Any:
    """What a runner wrote as JSON.

    Raises:
        ProductError: it is not JSON, or holds a number that is NaN or infinite.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProductError(f"the runner wrote what is not JSON: {error}", where=where) from None
    refuse_not_finite(value, where)
    return value
