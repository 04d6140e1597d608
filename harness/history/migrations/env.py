"""Alembic's entry: runs the migrations on the connection that `harness.history.store` hands over."""

from __future__ import annotations

from alembic import context

from harness.history.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,  # the caller's transaction holds all of it
)
context.run_migrations()
