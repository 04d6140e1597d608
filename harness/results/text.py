"""How numbers and foreign text are shown, the same in the table, the page and the Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

NONE = "-"
"""Shown where there is no number."""

# C0 controls except tab and newline, and DEL, as their visible pictures; C1, bidirectional overrides and the
# noncharacters that XML forbids as U+FFFD.
_VISIBLE = (
    {code: 0x2400 + code for code in range(32) if code not in (9, 10)}
    | {0x7F: 0x2421}
    | dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFFFE, 0xFFFF], 0xFFFD)
)


def visible(text: str) -> str:
    """The text without what moves a cursor or reorders a line: model text and logs can hold anything."""
    clean = text.replace("\r\n", "\n").translate(_VISIBLE)
    return clean.encode("utf-8", "backslashreplace").decode("utf-8")


def number(value: float | None) -> str:
    """Three or four digits that matter: 12340, 123, 12.3, 1.23, 0.123, 1.23e+07."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        return f"{value:.2e}"
    return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"


def perplexity(value: float | None) -> str:
    """One digit more than `number`, since what is looked for is a few percent: 12.34, 123.4, 1234."""
    if value is None or not math.isfinite(value) or value >= 1e6:
        return number(value)
    return f"{value:.{0 if value >= 1000 else 1 if value >= 100 else 2}f}"


def count(value: float | None) -> str:
    """A count or the median of counts: 24, 23.5."""
    return NONE if value is None else f"{value:g}"


def change(new: float, old: float) -> str:
    """How much more `new` is than `old`: +1.23 %."""
    if not (math.isfinite(new) and math.isfinite(old) and old > 0):
        return NONE
    return f"{100 * (new / old - 1):+.2f} %"


def size(count: int) -> str:
    """Bytes in the unit that suits: 3.4 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{number(value)} {unit}"
        value /= 1000
    return f"{number(value)} GB"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits: 0.12 s, 42 s, 3 min 05 s, 2 h 03 min."""
    if seconds < 60:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def clock(iso: str) -> str:
    """An ISO time in UTC as people read it: 2026-01-02 03:04:05 UTC; as it is, when it is no such time."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?(?:Z|\+00:00)", iso)
    return f"{match[1]} {match[2]} UTC" if match else iso


def joined(parts: Iterable[str]) -> str:
    """The parts with commas, or NONE."""
    return ", ".join(parts) or NONE
