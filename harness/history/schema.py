"""The tables. A change here needs a migration in `migrations/versions`; a test compares the two.

Times are ISO 8601 in UTC as in records, so that they sort as text; records' bodies are their lines, as written.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()

runs = Table(
    "runs",
    metadata,
    Column("run", String, primary_key=True),
    Column("started", String, nullable=False),
    Column("ended", String, nullable=False),
    Column("host", String, nullable=False),
    Column("harness_version", String, nullable=False),
    Column("target", String, nullable=False),
    Column("rack", Text, nullable=False),
    Column("command", Text, nullable=False),  # JSON list
    Column("toolchain", Text, nullable=False),  # JSON object
    Column("folder", Text, nullable=False),
    Column("headline", String, nullable=False),
    Column("imported", String, nullable=False),
    Index("runs_started", "started"),
)
"""A row a run."""

records = Table(
    "records",
    metadata,
    Column("run", String, ForeignKey("runs.run", ondelete="CASCADE"), primary_key=True),
    Column("line", Integer, primary_key=True, autoincrement=False),
    Column("kind", String, nullable=False),
    Column("cell", String),
    Column("time", String, nullable=False),
    Column("body", Text, nullable=False),
)
"""A row a line of `records.jsonl`, also of a line this version does not understand (kind `raw`)."""

results = Table(
    "results",
    metadata,
    Column("run", String, ForeignKey("runs.run", ondelete="CASCADE"), primary_key=True),
    Column("cell", String, primary_key=True),
    Column("model", String, nullable=False),
    Column("mode", String, nullable=False),
    Column("soc", String, nullable=False),
    Column("arch", Integer, nullable=False),
    Column("recipe", String, nullable=False),
    Column("phone", String),
    Column("target", String, nullable=False),
    Column("status", String, nullable=False),
    Column("failure_class", String),
    Column("gate", String, nullable=False),
    Column("reason", Text, nullable=False),
    Column("remedy", Text, nullable=False),
    Column("evidence", Text, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("pte_bytes", BigInteger),
    Column("ended", String, nullable=False),
    Index("results_cell_ended", "cell", "ended"),
    Index("results_status_cell", "status", "cell", "ended"),
)
"""A row a planned cell of a run: how it ended."""

sessions = Table(
    "sessions",
    metadata,
    Column("run", String, ForeignKey("runs.run", ondelete="CASCADE"), primary_key=True),
    Column("cell", String, primary_key=True),
    Column("metric", String, primary_key=True),
    Column("session", String, primary_key=True),
    Column("value", Float, nullable=False),
    Column("iterations", Integer, nullable=False),
    Column("phone", String, nullable=False),
    Column("serial", String, nullable=False),
    Column("time", String, nullable=False),
    Index("sessions_cell_metric_time", "cell", "metric", "time"),
    Index("sessions_phone_metric_time", "phone", "metric", "time"),
)
"""A row a session and metric of a cell's last attempt: the median over its iterations. A perplexity or a task's metric
is a session of its own."""
