"""PyTorch's benchmark records, version 3: what its dashboards read. An exporter only; nothing here is ever uploaded.

The models are written from the published definition of the table (pytorch/test-infra, "How to integrate with PyTorch
OSS benchmark database"): a record a metric, raw values, times in ms, `extra_info` maps strings to strings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from harness.errors import FailureClass
from harness.results.records import SampleRecord, Status
from harness.results.summary import CellSummary, RunSummary

FAILURE = "FAILURE_REPORT"
_UPSTREAM = "pytorch/executorch"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Benchmark(_Part):
    """What was run."""

    name: str = Field(min_length=1)
    mode: str
    dtype: str
    extra_info: dict[str, str] = {}


class Model(_Part):
    """On which model."""

    name: str = Field(min_length=1)
    type: str
    backend: str
    origins: list[str] = []
    extra_info: dict[str, str] = {}


class Metric(_Part):
    """What came out: raw values, never only their mean."""

    name: str = Field(min_length=1)
    benchmark_values: list[FiniteFloat] = Field(min_length=1)
    target_value: FiniteFloat = 0.0
    extra_info: dict[str, str] = {}


class Runner(_Part):
    """Where."""

    name: str
    type: str
    cpu_info: str = ""
    cpu_count: int = 0
    avail_mem_in_gb: int = 0
    extra_info: dict[str, str] = {}


class Input(_Part):
    """With what."""

    dtype: str = ""
    extra_info: dict[str, str] = {}


class Dependency(_Part):
    """On what it stands."""

    repo: str = ""
    branch: str = ""
    sha: str = ""
    version: str = ""
    extra_info: dict[str, str] = {}


class BenchmarkRecord(_Part):
    """One record: one metric."""

    benchmark: Benchmark
    model: Model
    metric: Metric
    runners: list[Runner] = Field(min_length=1)
    inputs: dict[str, Input] = {}
    dependencies: dict[str, Dependency] = {}


def pytorch_records(summary: RunSummary) -> list[BenchmarkRecord]:
    """The records of a run; a cell that failed has a FAILURE_REPORT, one that did not run has none."""
    return [_record(summary, cell, metric) for cell in summary.cells for metric in _metrics(cell)]


def render_pytorch(summary: RunSummary) -> str:
    """The records as a JSON list, as the upload action takes it."""
    return json.dumps([record.model_dump() for record in pytorch_records(summary)], indent=1) + "\n"


def _metrics(cell: CellSummary) -> Iterator[Metric]:
    if cell.status in (Status.FAILED, Status.ERROR):
        kind = "GIT_JOB" if cell.failure_class is FailureClass.BUILD else "DEVICE_JOB"
        said = {"failure_type": kind, "failure_class": cell.failure_class or "", "reason": cell.reason[:1000]}
        yield Metric(name=FAILURE, benchmark_values=[0.0], extra_info=said)
    # Speeds that contradict the host's clock are no measurement: who reads these does not see how the cell ended.
    samples = () if cell.failure_class is FailureClass.INVALID else cell.samples
    named = (
        ("token_per_sec", [sample.decode_tok_s for sample in samples]),
        ("prefill_token_per_sec", [sample.prefill_tok_s for sample in samples]),
        ("median_ttft_ms", [sample.ttft_ms for sample in samples]),
        ("model_load_time(ms)", [sample.load_ms for sample in samples]),
    )
    sessions = {"sessions": _sessions(samples), "phone": ",".join(cell.phones)}
    for name, values in named:
        if good := _finite(values):
            yield Metric(name=name, benchmark_values=good, extra_info=sessions)
    for record in cell.perplexities:
        if good := _finite([record.word_ppl]):
            scored = {"context_len": str(record.context_len), "tokens": str(record.tokens)}
            said = {"ground": record.ground, "graph": record.graph, **scored}
            yield Metric(name="word_perplexity", benchmark_values=good, extra_info=said)


def _record(summary: RunSummary, cell: CellSummary, metric: Metric) -> BenchmarkRecord:
    run, plan = summary.run, cell.plan
    lengths = plan.lengths
    return BenchmarkRecord(
        benchmark=Benchmark(
            name="htpfarm",
            mode=plan.mode,
            dtype=plan.recipe,
            extra_info={"run": run.id, "cell": cell.id, "target": run.target.value, "status": cell.status},
        ),
        # A simulator's rate must not be taken for a phone's: it is another backend.
        model=Model(name=plan.model, type="OSS model", backend="qnn-sim" if summary.is_sim else "qnn"),
        metric=metric,
        runners=[
            Runner(
                name=cell.phones[-1] if cell.phones else plan.phone or plan.soc,
                type=f"sim-{plan.soc}" if summary.is_sim else plan.soc,
                cpu_info=plan.soc,
                extra_info={"soc": plan.soc, "htp_arch": f"V{plan.arch}", "host": run.host},
            )
        ],
        inputs={
            "prompt": Input(
                extra_info={"max_seq_len": str(lengths.max_seq_len), "prefill_ar_len": str(lengths.prefill_ar_len)}
            )
        },
        dependencies={
            name: Dependency(repo=_UPSTREAM if name == "executorch" else "", version=value)
            for name, value in run.toolchain.items()
        },
    )


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _sessions(samples: Iterable[SampleRecord]) -> str:
    return str(len({(sample.serial, sample.session) for sample in samples}))
