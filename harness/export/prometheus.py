"""A run's numbers in Prometheus's text format, for node_exporter's textfile collector or a push gateway. Pure.

Names and units follow Prometheus's own advice ("Metric and label naming"): base units, no time stamps on samples. A
simulator's numbers are told by `target="sim"`, on every sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime

from harness.errors import FailureClass
from harness.results.summary import CellSummary, RunSummary
from harness.results.text import visible

_HELP = {
    "htpfarm_run_info": "The run that the other metrics are of.",
    "htpfarm_run_last_record_timestamp_seconds": "When the run's last record was written.",
    "htpfarm_cells": "Planned cells by how they ended.",
    "htpfarm_cell_status": "1 for the way a cell ended.",
    "htpfarm_cell_duration_seconds": "How long a cell took, all attempts.",
    "htpfarm_cell_ttft_seconds": "Time to first token, without the load: median over sessions.",
    "htpfarm_cell_load_seconds": "Model load time: median over sessions.",
    "htpfarm_cell_prefill_tokens_per_second": "Prefill rate: median over sessions.",
    "htpfarm_cell_decode_tokens_per_second": "Decode rate: median over sessions.",
    "htpfarm_cell_peak_memory_bytes": "The runner's peak resident memory: median over sessions.",
    "htpfarm_cell_word_perplexity": "Word perplexity of the held-out text's first tokens, as many as the label says.",
}

_Labels = dict[str, str]


def render_prometheus(summary: RunSummary) -> str:
    """All metrics of a run; each metric's samples stand together, as the format asks."""
    found: dict[str, list[str]] = {name: [] for name in _HELP}
    for name, labels, value in _samples(summary):
        found[name].append(f"{name}{_braces(labels)} {_number(value)}")
    lines: list[str] = []
    for name, samples in found.items():
        if samples:
            lines += [f"# HELP {name} {_HELP[name]}", f"# TYPE {name} gauge", *samples]
    return "\n".join(lines) + "\n"


def _samples(summary: RunSummary) -> Iterator[tuple[str, _Labels, float]]:
    run = summary.run
    target = {"target": run.target.value}
    info = {"run": run.id, "host": run.host, "version": run.harness_version}
    yield "htpfarm_run_info", target | info | {"verdict": summary.headline}, 1
    if (ended := _seconds(summary.last_time)) is not None:
        yield "htpfarm_run_last_record_timestamp_seconds", target, ended
    for status, count in summary.counts.items():
        yield "htpfarm_cells", target | {"status": status}, count
    for cell in summary.cells:
        yield from _cell(cell, target)


def _cell(cell: CellSummary, target: _Labels) -> Iterator[tuple[str, _Labels, float]]:
    plan = cell.plan
    labels = {
        "cell": cell.id,
        "model": plan.model,
        "mode": plan.mode,
        "recipe": plan.recipe,
        "soc": plan.soc,
        "phone": cell.phones[-1] if cell.phones else "",
        **target,
    }
    ending = {"status": cell.status, "failure_class": cell.failure_class or ""}
    yield "htpfarm_cell_status", labels | ending, 1
    yield "htpfarm_cell_duration_seconds", labels, cell.seconds
    for name, value, unit in (
        ("ttft_seconds", cell.ttft_ms, 1e-3),
        ("load_seconds", cell.load_ms, 1e-3),
        ("prefill_tokens_per_second", cell.prefill_tok_s, 1),
        ("decode_tokens_per_second", cell.decode_tok_s, 1),
        ("peak_memory_bytes", cell.peak_mb, 1e6),
    ):
        if value is not None and cell.failure_class is not FailureClass.INVALID:
            yield f"htpfarm_cell_{name}", labels, value * unit
    for record in cell.perplexities:
        where = {"ground": record.ground, "graph": record.graph, "tokens": str(record.tokens)}
        yield "htpfarm_cell_word_perplexity", labels | where, record.word_ppl


def _braces(labels: _Labels) -> str:
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return visible(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return f"{value:.9g}" if abs(value) < 1e9 else repr(float(value))


def _seconds(iso: str) -> float | None:
    try:
        return datetime.fromisoformat(iso).timestamp()
    except ValueError:
        return None
