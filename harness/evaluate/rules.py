"""The bounds that a cell is judged by: fixed before the run, measured on right products, with a version.

Each is in units that a model brings with it (its spread, see `harness.build.witness`) or a plain ratio.
`docs/checks.md` has the noise that right products show, and the smallest planted fault that each bound catches;
`benchmarks/checks.py` writes it. Whoever changes a number here raises VERSION: it stands in every check's record.
"""

from __future__ import annotations

from dataclasses import dataclass

VERSION = 1
LIMIT_ROUNDS = 6
"""While a figure is not decided, as many tokens again are scored as before: in so many rounds with the first, 32 times
what is asked for, and no more than the witness has."""


@dataclass(frozen=True)
class CellRules:
    """What the phone's rows are held to. A row is the logits after one token.

    Attributes:
        noise: mean of the rows' deviations from QDQ in units of the spread, at most.
        cap: what one row counts for in that mean at most; NaN counts as NaN.
        row: the same of a single row, at most: one wrong place among many does not hide in their mean.
        gain: how far the factor between the phone's logits and QDQ's may be from 1.
        tie: where the phone and QDQ choose different tokens: gap of QDQ's log-probabilities in units of the spread, at
            most.
        sure: standard errors by which a figure must be within its bound, or beyond it, to be decided.
        floor: a row's spread is taken to be at least this share of the model's typical one: few replicas measure it,
            and a row that hardly moves by itself has noise all the same.
    """

    noise: float = 1.0
    cap: float = 3.0
    row: float = 10.0
    gain: float = 0.006
    tie: float = 8.0
    sure: float = 2.6
    floor: float = 1.0


RULES = CellRules()
