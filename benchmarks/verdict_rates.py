"""How often the shipped verdicts are wrong: false alarms and slowdowns found, simulated with the functions themselves.

    python benchmarks/verdict_rates.py [--runs 2000] [--figure docs/verdict_rates.svg]

A session's noise is normal on the logarithm; a share of its variance is common to both sessions of a pair (the phone's
temperature, a background job), and cancels. A session is the median of five iterations with a noise of 1% each. A run
compares 200 cells: five ABBA pairs, three more where the first five are neither OK nor IMPROVED, then false discovery
control over the 200.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.verdicts import (
    RULES,
    Better,
    Judgement,
    control_discoveries,
    judge_against_history,
    judge_extended,
    log_ratios,
    slowdown_p_values,
)

CELLS = 200
ITERATIONS = 5
ITERATION_SD = 0.01
BLOCK = 100  # runs at once: bounds the memory


@dataclass(frozen=True)
class Condition:
    """What is simulated: SD of a session, share of its variance common to a pair, and the cells that are slower.

    Attributes:
        noisy: every so many-th cell has three times the noise; 0 for none.
    """

    name: str
    sd: float
    shared: float
    slow: int = 0
    slowdown: float = 0.0
    noisy: int = 0


@dataclass(frozen=True)
class Rates:
    """Shares: of unchanged cells called REGRESSED, of runs with any such, of slower cells found; pairs a cell."""

    false_cell: float
    false_run: float
    found: float
    alone: float
    pairs: float


def sessions(rng: np.random.Generator, runs: int, case: Condition) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Medians of the sessions of base and candidate, tokens a second: `[runs, CELLS, pairs]` each."""
    pairs = RULES.first + RULES.more
    shape = (runs, CELLS, pairs)
    scale = np.ones((1, CELLS, 1))
    if case.noisy:
        scale[:, 1 :: case.noisy] = 3  # the slower cell, which is the first, is a quiet one
    common = rng.normal(0, case.sd * np.sqrt(case.shared), shape)

    def side(slower: float) -> NDArray[np.float64]:
        own = rng.normal(0, case.sd * np.sqrt(1 - case.shared), shape)
        inside = np.median(rng.normal(0, ITERATION_SD, (*shape, ITERATIONS)), axis=-1)
        speed = np.exp(scale * (common + own) + inside)
        speed[:, : case.slow] *= 1 - slower
        return 20 * speed

    return side(0), side(case.slowdown)


def rates(rng: np.random.Generator, runs: int, case: Condition) -> Rates:
    """What the shipped functions say of so many runs."""
    totals: list[tuple[float, ...]] = []
    for _ in range(max(1, runs // BLOCK)):
        base, candidate = sessions(rng, BLOCK, case)
        d = log_ratios(base, candidate, Better.HIGHER)
        alone, pairs, found = judge_extended(d, Better.HIGHER)
        kept = np.array(
            [
                control_discoveries(alone[run], slowdown_p_values(found.mean[run], found.sd[run], pairs[run]))
                for run in range(BLOCK)
            ]
        )
        regressed = kept == Judgement.REGRESSED
        wrong = regressed[:, case.slow :]
        totals.append(
            (
                wrong.mean(),
                wrong.any(axis=1).mean(),
                regressed[:, : case.slow].mean() if case.slow else np.nan,
                (alone == Judgement.REGRESSED)[:, case.slow :].mean(),
                pairs.mean(),
            )
        )
    return Rates(*(float(value) for value in np.mean(totals, axis=0)))


def history_rates(rng: np.random.Generator, runs: int, sd: float, slowdown: float, length: int) -> float:
    """Share of sessions called REGRESSED against a history of `length` sessions without a change."""
    called = 0
    for _ in range(runs):
        history = 20 * np.exp(rng.normal(0, sd, length))
        value = 20 * (1 - slowdown) * float(np.exp(rng.normal(0, sd)))
        called += judge_against_history(value, history.tolist(), Better.HIGHER)[0] is Judgement.REGRESSED
    return called / runs


def cases() -> Iterator[Condition]:
    """What is printed, the claims first."""
    for slow, name in ((1, "one cell of 200 slower by 5%"), (20, "20 cells of 200 slower by 5%")):
        yield Condition(f"3% noise, 80% shared; {name}", 0.03, 0.8, slow, 0.05)
    yield Condition("3% noise, none shared; one slower by 5%", 0.03, 0.0, 1, 0.05)
    yield Condition("1% noise, 80% shared; one slower by 5%", 0.01, 0.8, 1, 0.05)
    yield Condition("6% noise, 80% shared; one slower by 5%", 0.06, 0.8, 1, 0.05)
    yield Condition("10% noise, none shared; nothing changed", 0.10, 0.0)
    yield Condition("3% and 9% noise by turns, 80% shared; one by 5%", 0.03, 0.8, 1, 0.05, noisy=2)
    yield Condition("3%, one in ten 9% noise, 80% shared; one by 5%", 0.03, 0.8, 1, 0.05, noisy=10)


def draw(path: Path, rng: np.random.Generator, runs: int) -> None:
    """The share of slowdowns found, by their size: one cell of 200 slower."""
    slowdowns = np.array([0, 0.01, 0.02, 0.025, 0.03, 0.035, 0.04, 0.045, 0.05, 0.06, 0.07, 0.08, 0.10, 0.12])
    lines = {
        "3% noise, 80% shared": (0.03, 0.8),
        "3% noise, none shared": (0.03, 0.0),
        "6% noise, 80% shared": (0.06, 0.8),
    }
    curves = {}
    for name, (sd, shared) in lines.items():
        curves[name] = [rates(rng, runs, Condition(name, sd, shared, 1, float(size))).found for size in slowdowns]
    path.write_text(svg(slowdowns.tolist(), curves), encoding="utf-8")


def svg(sizes: list[float], curves: dict[str, list[float]]) -> str:
    """A small chart, drawn by hand so that no plotting library is needed; follows the page's light or dark."""
    width, height, left, top, right, bottom = 640, 360, 56, 16, 24, 56
    inner_w, inner_h = width - left - right, height - top - bottom

    def at(x: float, y: float) -> str:
        return f"{left + inner_w * x / max(sizes):.1f},{top + inner_h * (1 - y):.1f}"

    colours = ("#0b6fbf", "#c2410c", "#6b7280")
    dashes = ("", "7 4", "2 3")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="Share of slowdowns found, by their size" font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 0.9, 1):
        y = top + inner_h * (1 - share)
        stroke = "#9ca3af" if share == 0.9 else "#e5e7eb"
        parts.append(f'<path d="M{left} {y:.1f}H{width - right}" stroke="{stroke}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#374151">{share:.0%}</text>')
    for size in (0, 0.02, 0.03, 0.05, 0.08, 0.10, 0.12):
        x = left + inner_w * size / max(sizes)
        parts.append(
            f'<text x="{x:.1f}" y="{height - bottom + 20}" text-anchor="middle" fill="#374151">{size:.0%}</text>'
        )
    parts.append(
        f'<text x="{left + inner_w / 2}" y="{height - 12}" text-anchor="middle" fill="#374151">'
        "one cell of 200 slower by; called REGRESSED after false discovery control</text>"
    )
    for number, (name, values) in enumerate(curves.items()):
        points = " ".join(at(size, value) for size, value in zip(sizes, values, strict=True))
        style = f'stroke="{colours[number]}" stroke-width="2" stroke-dasharray="{dashes[number]}"'
        parts.append(f'<polyline points="{points}" fill="none" {style}/>')
        y = top + 20 + 20 * number
        parts.append(f'<path d="M{left + 12} {y}h28" {style}/>')
        parts.append(f'<text x="{left + 48}" y="{y + 4}" fill="#111827">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> int:
    """Prints a row a condition; exit status 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000, help="runs of 200 cells for each condition")
    parser.add_argument("--figure", type=Path, help="draw the share found, by the slowdown's size")
    parser.add_argument("--seed", type=int, default=20261124)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    start = time.monotonic()
    print(f"alpha {RULES.alpha}, ok_alpha {RULES.ok_alpha}, q {RULES.q}, margin {RULES.margin:.0%}, "
          f"{RULES.first} pairs and {RULES.more} more, {arguments.runs} runs of {CELLS} cells")  # fmt: skip
    print(f"{'':<50}{'false/cell':>11}{'alone':>9}{'false/run':>11}{'found':>8}{'pairs':>7}")
    first: Rates | None = None
    for case in cases():
        got = rates(rng, arguments.runs, case)
        first = first or got
        found = "" if np.isnan(got.found) else f"{got.found:.1%}"
        print(f"{case.name:<50}{got.false_cell:>11.4%}{got.alone:>9.3%}{got.false_run:>11.2%}{found:>8}"
              f"{got.pairs:>7.2f}", flush=True)  # fmt: skip
    for length in (10, 30):
        wrong = history_rates(rng, 5 * arguments.runs, 0.03, 0, length)
        found_share = history_rates(rng, 5 * arguments.runs, 0.03, 0.12, length)
        print(f"against {length} sessions of history, 3% noise: {wrong:.2%} false, {found_share:.1%} of 12% found")
    if arguments.figure:
        draw(arguments.figure, rng, max(BLOCK, arguments.runs // 4))
        print(arguments.figure)
    print(f"{time.monotonic() - start:.0f} s")
    assert first is not None
    holds = first.false_cell <= 0.01 and first.false_run <= 0.05 and first.found >= 0.90
    print("claims hold: " + ("yes" if holds else "NO"))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
