"""The first tables"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("run", sa.String(), nullable=False),
        sa.Column("started", sa.String(), nullable=False),
        sa.Column("ended", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("harness_version", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("rack", sa.Text(), nullable=False),
        sa.Column("command", sa.Text(), nullable=False),
        sa.Column("toolchain", sa.Text(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("headline", sa.String(), nullable=False),
        sa.Column("imported", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("run"),
    )
    op.create_index("runs_started", "runs", ["started"], unique=False)
    op.create_table(
        "records",
        sa.Column("run", sa.String(), nullable=False),
        sa.Column("line", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("cell", sa.String(), nullable=True),
        sa.Column("time", sa.String(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.run"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "line"),
    )
    op.create_table(
        "results",
        sa.Column("run", sa.String(), nullable=False),
        sa.Column("cell", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("mode", sa.String(), nullable=False),
        sa.Column("soc", sa.String(), nullable=False),
        sa.Column("arch", sa.Integer(), nullable=False),
        sa.Column("recipe", sa.String(), nullable=False),
        sa.Column("phone", sa.String(), nullable=True),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("failure_class", sa.String(), nullable=True),
        sa.Column("gate", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("remedy", sa.Text(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("pte_bytes", sa.BigInteger(), nullable=True),
        sa.Column("ended", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.run"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "cell"),
    )
    op.create_index("results_cell_ended", "results", ["cell", "ended"], unique=False)
    op.create_index("results_status_cell", "results", ["status", "cell", "ended"], unique=False)
    op.create_table(
        "sessions",
        sa.Column("run", sa.String(), nullable=False),
        sa.Column("cell", sa.String(), nullable=False),
        sa.Column("metric", sa.String(), nullable=False),
        sa.Column("session", sa.String(), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("iterations", sa.Integer(), nullable=False),
        sa.Column("phone", sa.String(), nullable=False),
        sa.Column("serial", sa.String(), nullable=False),
        sa.Column("time", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.run"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "cell", "metric", "session"),
    )
    op.create_index("sessions_cell_metric_time", "sessions", ["cell", "metric", "time"], unique=False)
    op.create_index("sessions_phone_metric_time", "sessions", ["phone", "metric", "time"], unique=False)
