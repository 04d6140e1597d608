"""The database: opened, brought to this version's schema, and filled from runs' folders.

An import is one transaction: all of a run or nothing. Importing a run again brings what was written since, and counts
nothing twice. Writers take turns: SQLite's write lock is asked for at the start of a transaction and waited for;
PostgreSQL has an advisory lock a run.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, delete, event, func, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError

from harness.errors import ConfigError, InfraError
from harness.history.rows import Rows, run_rows
from harness.history.schema import records, results, runs, sessions
from harness.paths import REPOSITORY

HISTORY = "history.sqlite"
BUSY_S = 120.0
"""How long a writer waits for others. An import of a run takes a second or two."""
_MIGRATIONS = Path(__file__).resolve().parent / "migrations"
_MIGRATION_LOCK = 0x687470  # any number that is always the same
_AT_ONCE = 5000


@dataclass(frozen=True)
class Imported:
    """What one import did.

    Attributes:
        run: the run's id.
        records: lines of the run in the history now.
        added: of them, those that this import brought.
        cells: planned cells.
        sessions: rows of sessions.
    """

    run: str
    records: int
    added: int
    cells: int
    sessions: int


def default_url(reports: Path = REPOSITORY / "reports") -> str:
    """`$HTPFARM_HISTORY`, else the SQLite file among the runs."""
    return os.environ.get("HTPFARM_HISTORY") or f"sqlite:///{reports.absolute() / HISTORY}"


class History:
    """One database. Made anew in each process; safe beside other writers and readers."""

    def __init__(self, url: str | None = None, *, busy_s: float = BUSY_S) -> None:
        """Opens the database, makes it if need be, and brings it to this version's schema.

        Args:
            url: as SQLAlchemy reads it (`sqlite:///FILE`, `postgresql://USER@HOST/NAME`), or a path; None for
                `default_url()`.
            busy_s: how long to wait for other writers, seconds.

        Raises:
            ConfigError: the URL is none, its driver is not installed, or the database is a newer version's.
            InfraError: the database cannot be reached, or other writers kept it for `busy_s` seconds.
        """
        self.url = _normal(url or default_url())
        self._busy_s = busy_s
        self.engine = _engine(self.url, busy_s)
        self._migrate()

    def close(self) -> None:
        """Closes the connections."""
        self.engine.dispose()

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees one state of the database and waits for no writer."""
        with self._named_errors(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes: committed as a whole when the block ends, or not at all."""
        with self._named_errors(), self.engine.connect() as plain:
            connection = plain.execution_options(htpfarm_writes=True)
            with connection.begin():
                yield connection

    def import_run(self, folder: Path) -> Imported:
        """Takes a run's records in, or what of them is new.

        Args:
            folder: the run's folder, with `records.jsonl`; the run may be going on.

        Raises:
            ConfigError: the folder has no records, or other ones than the history has of a run of that id.
            InfraError: the database failed.
        """
        rows = run_rows(folder)
        with self.writing() as connection:
            return self._write(connection, rows)

    def import_runs(self, folders: Iterable[Path]) -> Iterator[Imported]:
        """Takes several runs in, each in a transaction of its own, so that none waits for the others."""
        for folder in folders:
            yield self.import_run(folder)

    def _write(self, connection: Connection, rows: Rows) -> Imported:
        run = rows.run["run"]
        if self.engine.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK, zlib.crc32(run.encode()) >> 1)))
        known = connection.execute(select(func.count(), func.max(records.c.line)).where(records.c.run == run)).one()
        before, last = int(known[0]), int(known[1] or 0)
        if before:
            self._check_same(connection, rows, last)
        insert = _insert(self.engine)
        values = {key: value for key, value in rows.run.items() if key != "run"}
        connection.execute(insert(runs).values(rows.run).on_conflict_do_update(index_elements=["run"], set_=values))
        _fill(connection, insert(records).on_conflict_do_nothing(), rows.records_after(last))
        # What a run comes to changes as it goes on, so it is made anew from all of it.
        for table, made in ((results, rows.results), (sessions, rows.sessions)):
            if before:
                connection.execute(delete(table).where(table.c.run == run))
            _fill(connection, insert(table), made)
        count = int(
            connection.execute(select(func.count()).select_from(records).where(records.c.run == run)).scalar_one()
        )
        return Imported(run, count, count - before, len(rows.results), len(rows.sessions))

    def _check_same(self, connection: Connection, rows: Rows, last: int) -> None:
        kept: str = connection.execute(
            select(records.c.body).where(records.c.run == rows.run["run"], records.c.line == last)
        ).scalar_one()
        if rows.body(last) != kept:
            raise ConfigError(
                f"line {last} of the run is not what the history has of run {rows.run['run']}",
                where=rows.run["folder"],
                remedy="two runs have one id, or records were changed: `htpfarm history forget RUN`, then import again",
            )

    def forget(self, run: str) -> bool:
        """Removes a run; False when there is none of that id."""
        with self.writing() as connection:
            for table in (sessions, results, records):
                connection.execute(delete(table).where(table.c.run == run))
            return connection.execute(delete(runs).where(runs.c.run == run)).rowcount > 0

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        head = ScriptDirectory.from_config(config).get_current_head()
        with self.reading() as connection:
            if MigrationContext.configure(connection).get_current_revision() == head:
                return
        with self.writing() as connection:
            if self.engine.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            current = MigrationContext.configure(connection).get_current_revision()
            known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
            if current is not None and current not in known:
                raise ConfigError(
                    f"the history has schema {current}, which this version of htpfarm does not know",
                    where=_shown(self.url),
                    remedy="use the htpfarm that wrote it or a newer one, or another file",
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except DatabaseError as error:
            raise InfraError(
                f"the history's database failed: {str(error.orig).strip()}",
                where=_shown(self.url),
                remedy="is it reachable, is the disk full, does another program keep it locked?",
            ) from error


def _fill(connection: Connection, statement: Any, rows: Sequence[dict[str, Any]]) -> None:
    for start in range(0, len(rows), _AT_ONCE):
        connection.execute(statement, list(rows[start : start + _AT_ONCE]))


def _insert(engine: Engine) -> Any:
    return postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert


def _normal(url: str) -> str:
    if "://" not in url:
        return f"sqlite:///{Path(url).absolute()}"
    name, _, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if name in ("postgres", "postgresql") else url


def _shown(url: str) -> str:
    return make_url(url).render_as_string(hide_password=True)


def _engine(url: str, busy_s: float) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            if parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            engine = create_engine(parsed, connect_args={"timeout": busy_s})
            _prepare_sqlite(engine, busy_s)
            return engine
        if parsed.get_backend_name() == "postgresql":
            return create_engine(parsed, connect_args={"connect_timeout": 10}, isolation_level="READ COMMITTED")
    except ArgumentError as error:
        raise ConfigError(f"no URL of a database: {error}", where="history") from error
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigError(
            f"the database's driver is missing: {error}", where="history", remedy="pip install 'htpfarm[postgres]'"
        ) from error
    raise ConfigError(
        f"{parsed.get_backend_name()} is no database the history can live in",
        where="history",
        remedy="use sqlite:///FILE or postgresql://USER@HOST/NAME",
    )


def _prepare_sqlite(engine: Engine, busy_s: float) -> None:
    """Write-ahead log, so that readers and a writer do not wait for each other; the write lock taken at once.

    Python's sqlite3 would begin a transaction by itself, and as a reader's, which fails rather than waits when it comes
    to write; SQLAlchemy's documentation gives these two events for it.
    """

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(busy_s * 1000)}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = NORMAL")  # with a WAL: sound after a crash, at most the last run is lost
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("htpfarm_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def check_sound(history: History) -> str:
    """`ok`, or what the database's own check finds (SQLite's `integrity_check`); PostgreSQL vouches for itself."""
    with history.reading() as connection:
        if history.engine.dialect.name != "sqlite":
            return "ok"
        return str(connection.execute(text("PRAGMA integrity_check")).scalar_one())


def as_json(value: object) -> str:
    """JSON with sorted keys, for the columns that hold it."""
    return json.dumps(value, sort_keys=True)
