"""Records of a run, what they come to, and the reports made of them. Importing it loads neither rich nor jinja."""

from harness.results.frame import read_frame
from harness.results.records import (
    ArtifactRecord,
    CheckRecord,
    ComparisonRecord,
    DeployRecord,
    OutcomeRecord,
    PerplexityRecord,
    PlanEntry,
    RawRecord,
    Record,
    RunInfo,
    SampleRecord,
    Status,
    TaskRecord,
    TtftRecord,
    plan_entry,
    utc_now,
)
from harness.results.store import RecordWriter, RunData, load_run, new_run_folder, new_run_id, read_records

__all__ = [
    "ArtifactRecord",
    "CheckRecord",
    "ComparisonRecord",
    "DeployRecord",
    "OutcomeRecord",
    "PerplexityRecord",
    "PlanEntry",
    "RawRecord",
    "Record",
    "RecordWriter",
    "RunData",
    "RunInfo",
    "SampleRecord",
    "Status",
    "TaskRecord",
    "TtftRecord",
    "load_run",
    "new_run_folder",
    "new_run_id",
    "plan_entry",
    "read_frame",
    "read_records",
    "utc_now",
]
