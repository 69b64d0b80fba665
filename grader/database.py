"""A gradebook's file as a database: opened, brought to the newest schema, and its faults said in one sentence."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import SQLAlchemyError

from grader.errors import GraderError, InfrastructureError, UsageError

# What SQLite says, and the sentence that we make of it; `{path}` is the file.
USAGE = {
    "file is not a database": "{path} is not a gradebook (no SQLite database): name another file.",
    "unable to open database": "The gradebook {path} cannot be opened: its folder must exist, writable.",
    "readonly database": "The gradebook {path} cannot be written: make it and its folder writable.",
}
OURS = {
    "locked": "The gradebook {path} stayed locked by another process: let that end, then run again.",
    "malformed": "The gradebook {path} is damaged: `grader db check` with --repair keeps the file and saves what "
    "can be read of it; or put a backup in its place. Then run again.",
    "disk is full": "The disk of the gradebook {path} is full: make room, then run the same command again.",
}


def make_engine(path: Path, wait_s: float) -> sa.Engine:
    """An engine with no open file between two uses: a fork or a kill finds nothing half done."""
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        poolclass=sa.NullPool,
        connect_args={"timeout": wait_s, "isolation_level": None},  # None: BEGIN is said by us, DDL included
    )

    @sa.event.listens_for(engine, "connect")
    def _set_up(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")  # a grade that was added survives a power cut

    return engine


def use_wal(engine: sa.Engine, wait_s: float) -> None:
    """Readers and the writer side by side. The switch ignores the busy timeout, hence the loop."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with engine.connect() as connection:
                if connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal":
                    connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            return
        except SQLAlchemyError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", "grader:migrations")  # the folder beside this module, wherever installed
    config.set_main_option("path_separator", "os")
    return config


def upgrade(engine: sa.Engine, path: Path, revision: str = "head") -> None:
    """Bring the schema to the newest revision; every step and its version record in one transaction.

    Raises:
        UsageError: the file is another program's, or a newer grader's.
    """
    config = migrations()
    head = ScriptDirectory.from_config(config).get_current_head()
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        strange = current is None and sa.inspect(connection).get_table_names()
    if current == head:
        return
    if current is not None:
        refuse_newer(path, current)
    if strange:
        raise UsageError(f"{path} is a database of another program, not a gradebook: name another file.")
    with engine.begin() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        config.attributes["connection"] = connection
        command.upgrade(config, revision)  # does nothing if another process was faster


@contextmanager
def plain_faults(path: Path) -> Iterator[None]:
    """Say in one sentence what SQLite reports, and whose fault it is."""
    try:
        yield
    except GraderError:
        raise
    except (SQLAlchemyError, sqlite3.Error) as error:
        said = str(getattr(error, "orig", None) or error)
        for part, sentence in USAGE.items():
            if part in said:
                raise UsageError(sentence.format(path=path)) from error
        for part, sentence in OURS.items():
            if part in said:
                raise InfrastructureError(sentence.format(path=path)) from error
        raise InfrastructureError(
            f"The gradebook {path} could not be used ({said}): check its disk, then run again."
        ) from error


def refuse_newer(path: Path, revision: str) -> None:
    """Raises UsageError for a revision that no migration here makes."""
    script = ScriptDirectory.from_config(migrations())
    if revision not in {known.revision for known in script.walk_revisions()}:
        raise UsageError(
            f"The gradebook {path} was written by a newer grader (schema {revision}, known here: "
            f"{script.get_current_head()}): upgrade the grader."
        )


def expected_schema(revision: str = "head") -> dict[tuple[str, str], str]:
    """By kind (table, index, trigger, view) and name, the SQL of all that a gradebook of this revision has."""
    with tempfile.TemporaryDirectory(prefix="schema-") as scratch:
        path = Path(scratch, "empty.sqlite")
        engine = make_engine(path, 1.0)
        upgrade(engine, path, revision)
        with engine.connect() as connection:
            return schema_of(connection.connection.dbapi_connection)


def schema_of(connection: Any) -> dict[tuple[str, str], str]:
    """The same of an open file; what SQLite makes by itself is left out."""
    rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {(kind, name): sql for kind, name, sql in rows}
