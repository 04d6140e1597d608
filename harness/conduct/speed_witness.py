"""The runner's word on times against this host's clock. Pure.

A runner says when its prompt began, when the first token was there and when the last one was; this host sees the lines
of its log arrive that say the same (`harness.farm.moments`). The phone's clock is another one, so that only durations
compare. What adb may add to a line's way is measured on the same link at the same time: `TRIPS` times the slowest of
some commands that do nothing, and `ROUNDING_MS`; clocks may run apart by `RELATIVE`. A busy machine slows those
commands as it slows the lines, and the runner's times as well, so that what is judged does not depend on it.

A duration that the host saw to be no longer than what adb explains is too short to witness: any shorter claim would
pass, and only one that is too long is found. Of what has no line of its own (the load of the model; all of it, where a
runner does not log) the host knows only that it took no longer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.errors import FailureClass
from harness.farm.moments import Claim
from harness.farm.observer import Observer
from harness.farm.session import SessionResult
from harness.results.records import CheckRecord, Status

CHECK = "speed_vs_host_clock"
TRIPS = 2.0
ROUNDING_MS = 5.0
"""The runner counts whole milliseconds; a line is written a moment after the clock is read."""
RELATIVE = 0.01
_SAME = 1e-3
"""Rates that come of the same numbers are printed with six digits."""


@dataclass(frozen=True)
class Witnessed:
    """What a session or a runner that stays said of times, and what the host saw.

    Attributes:
        claims: each duration.
        contradictions: where the runner's own words do not agree, in words.
    """

    claims: tuple[Claim, ...] = ()
    contradictions: tuple[str, ...] = ()


def explained_ms(claim: Claim) -> float:
    """How far the two clocks may be apart."""
    return TRIPS * claim.adb_ms + ROUNDING_MS + RELATIVE * claim.host_ms


def contradicts(claim: Claim) -> bool:
    """Whether the claim is beyond what adb explains: too long, or too short where the host saw that."""
    beyond = claim.claimed_ms - claim.host_ms
    return not (beyond if claim.at_most else abs(beyond)) <= explained_ms(claim)


def too_short(claim: Claim) -> bool:
    """Whether adb explains as much as the host saw: any shorter claim passes then."""
    return explained_ms(claim) >= claim.host_ms


def session_witness(number: int, result: SessionResult) -> Witnessed:
    """Of a session that counts.

    Args:
        number: of the session, for words.
        result: what came of it.
    """
    observer, moments = result.observer, result.moments
    assert observer is not None, "classify() refuses a session without one"
    place, adb, life = f"of session {number}", max(result.round_trips, default=0.0), result.seconds * 1000
    begins, first, ends = moments.begins, moments.first_token, moments.ends
    ttft, decode = observer.ttft_ms, observer.inference_end_ms - observer.prompt_eval_end_ms
    prefill = observer.prompt_eval_end_ms - observer.inference_start_ms
    claims = [Claim("process", place, observer.load_ms + prefill + decode, life, adb, at_most=True)]
    if begins is not None:
        claims.append(Claim("load", place, observer.load_ms, begins, adb, at_most=True))
    if begins is not None and first is not None:
        claims.append(Claim("TTFT", place, ttft, first - begins, adb))
        if prefill != ttft:  # both runners read the clock once for the two
            claims.append(Claim("prefill", place, prefill, first - begins, adb))
    if first is not None and ends is not None:
        claims.append(Claim("decode", place, decode, ends - first, adb))
    elif begins is not None and ends is not None:
        claims.append(Claim("generation", place, prefill + decode, ends - begins, adb))
    speed = result.files.get("inference_speed.txt")
    written = speed.read_text(encoding="utf-8", errors="replace") if speed else None
    return Witnessed(tuple(claims), tuple(f"{words} {place}" for words in _contradictions(observer, written)))


def speed_check(cell: str, witnessed: Sequence[Witnessed], *, logs: bool = True) -> CheckRecord:
    """All of a cell's times: INVALID where one contradicts the host's clock, NOT_JUDGED where none was witnessed.

    Args:
        cell: its id.
        witnessed: of each session, and of the runner that stays.
        logs: whether the runner is known to log what the host waits for (ours does); one that does not is judged by
            the life of its process, which says only that its times are not too long.

    Returns:
        The check; `value` is how far the claim is off that comes nearest to what is explained, or goes furthest beyond,
        as a share of the host's time, and `bound` what is explained there.
    """
    claims = [claim for one in witnessed for claim in one.claims]
    words = [text for one in witnessed for text in one.contradictions]
    seen = [claim for claim in claims if not claim.at_most]
    bad = sorted((claim for claim in claims if contradicts(claim)), key=_strain, reverse=True)
    worst = max(seen or claims, key=_strain, default=None) if not bad else bad[0]
    value = None if worst is None else _share(abs(worst.claimed_ms - worst.host_ms), worst)
    bound = None if worst is None else _share(explained_ms(worst), worst)
    if bad or words:
        text = "; ".join([*words, *map(_contradiction, bad[:3])])
        text += f"; {len(bad) - 3} more" if len(bad) > 3 else ""
        return CheckRecord(cell, CHECK, False, value, bound, text, FailureClass.INVALID.value)
    if not claims or (logs and not seen):
        text = "the runner logged none of the lines that say how far it is: no clock but its own saw its times"
        return CheckRecord(cell, CHECK, False, value, bound, text, FailureClass.NOT_JUDGED.value)
    return CheckRecord(cell, CHECK, True, value, bound, _agreement(seen), Status.PASSED.value)


def _agreement(seen: Sequence[Claim]) -> str:
    if not seen:
        return "the runner's log did not come: its times are not longer than its process's life, and may be too short"
    worst = max(seen, key=_strain)
    text = (
        f"{len(seen)} times as this computer's clock saw them; furthest off: {worst.what} {worst.place}, "
        f"{worst.claimed_ms:.0f} ms where {worst.host_ms:.0f} ms went by (adb and clocks explain "
        f"{explained_ms(worst):.0f} ms)"
    )
    if short := [claim for claim in seen if too_short(claim)]:
        text += f"; {len(short)} too short to witness, and only known not to be longer"
    return text


def _contradiction(claim: Claim) -> str:
    off = claim.claimed_ms - claim.host_ms
    return (
        f"the runner's {claim.what} {claim.place} is {claim.claimed_ms:.0f} ms where {claim.host_ms:.0f} ms went by on "
        f"this computer's clock: {abs(off):.0f} ms {'more' if off > 0 else 'less'}, and adb and clocks explain "
        f"{explained_ms(claim):.0f} ms"
    )


def _contradictions(observer: Observer, written: str | None) -> Iterator[str]:
    """Rates that the runner states beside the times that they come of."""
    total = observer.inference_end_ms - observer.inference_start_ms
    whole = observer.generated_tokens * 1000 / total if total > 0 and observer.generated_tokens else None
    for name, rate, of_times in (
        ("prefill_token_per_sec", observer.stated_prefill_tok_s, observer.prefill_tok_s),
        ("decode_token_per_sec", observer.stated_decode_tok_s, observer.decode_tok_s),
        ("inference_speed.txt", None if written is None else _number(written), whole or observer.prefill_tok_s),
    ):
        if rate is not None and of_times is not None and not math.isclose(rate, of_times, rel_tol=_SAME):
            yield f"the runner's {name} is {rate:g} tok/s, its times and tokens come to {of_times:g}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _strain(claim: Claim) -> float:
    """How much of what is explained a claim takes up; more than 1 where it contradicts."""
    beyond = claim.claimed_ms - claim.host_ms
    return (beyond if claim.at_most else abs(beyond)) / explained_ms(claim)


def _share(ms: float, claim: Claim) -> float | None:
    return ms / claim.host_ms if claim.host_ms > 0 else None
