"""What numbers come to: REGRESSED, OK, IMPROVED, INCONCLUSIVE or INVALID. Pure functions of arrays; no I/O.

Speed is judged by sessions: a session is one fresh process of the runner on one phone, and the unit of noise.
Iterations inside a session are not independent, so a session counts once, by its median. `benchmarks/verdict_rates.py`
simulates these very functions, and the numbers in `Rules` come from it.
"""

from harness.verdicts.bound import Bound, judge_against_history, prediction_bound
from harness.verdicts.declared import Declared, judge_declared
from harness.verdicts.discovery import control_discoveries, slowdown_p_values
from harness.verdicts.greedy import TextComparison, compare_greedy
from harness.verdicts.paired import (
    Interval,
    abba,
    interval,
    judge,
    judge_extended,
    log_margin,
    log_ratios,
    wants_more,
)
from harness.verdicts.perplexity import Document, PerplexityComparison, compare_perplexity
from harness.verdicts.rules import RULES, Better, Judgement, Rules
from harness.verdicts.sessions import session_medians
from harness.verdicts.validity import differences, invalid_reasons

__all__ = [
    "RULES",
    "Better",
    "Bound",
    "Declared",
    "Document",
    "Interval",
    "Judgement",
    "PerplexityComparison",
    "Rules",
    "TextComparison",
    "abba",
    "compare_greedy",
    "compare_perplexity",
    "control_discoveries",
    "differences",
    "interval",
    "invalid_reasons",
    "judge",
    "judge_against_history",
    "judge_declared",
    "judge_extended",
    "log_margin",
    "log_ratios",
    "prediction_bound",
    "session_medians",
    "slowdown_p_values",
    "wants_more",
]
