"""Whether two sides may be compared at all."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


def differences(
    base: Mapping[str, object], candidate: Mapping[str, object], may_differ: Collection[str] = ()
) -> list[str]:
    """Names whose values differ, or that one side lacks; without those that are under test.

    Args:
        base, candidate: a fingerprint or settings each.
        may_differ: names of what is under test.
    """
    names = sorted({*base, *candidate} - set(may_differ))
    return [name for name in names if base.get(name) != candidate.get(name)]


def invalid_reasons(
    base: Mapping[str, object],
    candidate: Mapping[str, object],
    base_tokens: Sequence[tuple[int, int]],
    candidate_tokens: Sequence[tuple[int, int]],
    *,
    may_differ: Collection[str] = (),
    throttled: Collection[str] = (),
) -> list[str]:
    """Why the speeds of two sides do not compare; empty when they do.

    Args:
        base, candidate: all that must agree (phone, clocks, settings, versions): name → value.
        base_tokens, candidate_tokens: prompt and generated tokens of each iteration.
        may_differ: names in them that are under test.
        throttled: sessions whose phone was throttled or too hot.
    """
    found = [
        f"{name} differs: {base.get(name, 'absent')} and {candidate.get(name, 'absent')}"
        for name in differences(base, candidate, may_differ)
    ]
    if throttled:
        found.append(f"throttled in {', '.join(sorted(throttled))}")
    if not base_tokens or not candidate_tokens:
        found.append("nothing was measured on one side")
    elif sorted(base_tokens) != sorted(candidate_tokens):
        counts = sorted({*base_tokens, *candidate_tokens})
        found.append("token counts differ: " + ", ".join(f"{prompt} in, {out} out" for prompt, out in counts))
    return found
