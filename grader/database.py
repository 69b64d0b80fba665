"""A gradebook as a database: opened, brought to the newest schema, written by one at a time, its faults one sentence.

It is a file of SQLite, or lies on a PostgreSQL server. What the two do differently stands here and in the migrations.
"""

from __future__ import annotations

import re
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
from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

from grader.errors import GraderError, InfrastructureError, UsageError
from grader.place import EXAMPLE, PASSWORD, Place, shown

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

# The same of PostgreSQL: by the code of an error or, as a connection that fails has none, by its words.
SERVER_USAGE = {
    "password authentication failed": f"{{path}} refuses the password: give the right one in {PASSWORD}.",
    "no password supplied": f"{{path}} asks for a password: give it in {PASSWORD}.",
    "role .* (does not exist|not permitted)": "{path} does not let this user in ({said}): name another user.",
    "database .* does not exist": "There is no such database as {path}: make it first (`createdb`), or name another.",
    "invalid connection option": "{path} has an option that its driver does not know ({said}): correct it.",
    "42501": "The user of {path} may not do that ({said}): to grade, one must be able to make tables and to insert.",
}
SERVER_OURS = {
    "55P03": "The gradebook {path} stayed locked by another process: let that end, then run again.",
    "53100": "The disk of the gradebook {path} is full: make room on its server, then run the same command again.",
}
WRITERS = 7_205_759_403  # of the lock that one writer at a time holds in its database


def make_engine(place: Place, wait_s: float) -> sa.Engine:
    """An engine with nothing open between two uses: a fork or a kill finds nothing half done.

    Raises:
        UsageError: the URL names a driver that there is not.
    """
    if isinstance(place, sa.URL):
        return _server_engine(place, wait_s)
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(place)),
        poolclass=sa.NullPool,
        connect_args={"timeout": wait_s, "isolation_level": None},  # None: BEGIN is said by us, DDL included
    )

    @sa.event.listens_for(engine, "connect")
    def _set_up(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")  # a grade that was added survives a power cut

    return engine


def _server_engine(url: sa.URL, wait_s: float) -> sa.Engine:
    patience = {"connect_timeout": max(2, round(wait_s))} if url.get_driver_name().startswith("psycopg") else {}
    try:
        engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=patience)
    except NoSuchModuleError:
        raise UsageError(f"SQLAlchemy knows no driver {url.drivername!r}: write {EXAMPLE}.") from None
    except ImportError as error:
        raise UsageError(
            f"The driver of {shown(url)} is not installed ({error}): pip install 'rnn-grader[postgresql]' has psycopg."
        ) from None
    if engine.dialect.is_async:
        raise UsageError(f"{url.drivername!r} is a driver for asyncio, which cannot be used here: write {EXAMPLE}.")
    return engine


@contextmanager
def writing(engine: sa.Engine, wait_s: float) -> Iterator[sa.Connection]:
    """One transaction that holds the write lock from its start and so cannot lose it half-way."""
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {max(1, round(wait_s * 1000))}")
            if connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "off":
                connection.exec_driver_sql("SET LOCAL synchronous_commit = on")  # what was added survives a power cut
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS})")
        yield connection


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction in which everything is read as of one moment."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            with connection.begin():
                connection.exec_driver_sql("BEGIN")
                yield connection
        else:
            one_moment = connection.execution_options(isolation_level="REPEATABLE READ")
            with one_moment.begin():
                yield one_moment


def require_server(url: sa.URL, wait_s: float = 30.0) -> None:
    """A server answers, lets us in, and its database can hold every text.

    Raises:
        UsageError: it does not let us in, there is no such database, or it has an encoding of its own.
        InfrastructureError: no server answers.
    """
    with plain_faults(url), make_engine(url, wait_s).connect() as connection:
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if encoding != "UTF8":
        raise UsageError(
            f"The database {shown(url)} holds texts as {encoding}, which is not enough for every name: make one with "
            "`createdb --encoding UTF8 --template template0`."
        )


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


def upgrade(
    engine: sa.Engine, place: Place, revision: str = "head", *, wait_s: float = 30.0, create: bool = True
) -> None:
    """Bring the schema to the newest revision; every step and its version record in one transaction.

    Raises:
        UsageError: the database is another program's, or a newer grader's, or holds nothing and `create` is false.
    """
    config = migrations()
    head = ScriptDirectory.from_config(config).get_current_head()
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current == head:
        return
    if current is not None:
        refuse_newer(place, current)
    with writing(engine, wait_s) as connection:
        current = MigrationContext.configure(connection).get_current_revision()  # another process may have been faster
        if current is None and sa.inspect(connection).get_table_names():
            raise UsageError(f"{shown(place)} is a database of another program, not a gradebook: name another.")
        if current is None and not create:
            raise UsageError(f"There is no gradebook in {shown(place)}: grade first, or name the one that there is.")
        config.attributes["connection"] = connection
        command.upgrade(config, revision)  # does nothing if another process was faster


@contextmanager
def plain_faults(place: Place) -> Iterator[None]:
    """Say in one sentence what the database reports, and whose fault it is."""
    try:
        yield
    except GraderError:
        raise
    except (SQLAlchemyError, sqlite3.Error) as error:
        cause = getattr(error, "orig", None) or error
        said, usage, ours, check = str(cause), USAGE, OURS, "its disk"
        if isinstance(place, sa.URL):
            usage, ours, check = SERVER_USAGE, SERVER_OURS, "that its server runs and can be reached"
            said = _one_line(said, place)
        code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)  # psycopg; psycopg2
        for sentences, kind in ((usage, UsageError), (ours, InfrastructureError)):
            for part, sentence in sentences.items():
                if part == code or (code is None and re.search(part, said)):
                    raise kind(sentence.format(path=shown(place), said=said)) from error
        raise InfrastructureError(
            f"The gradebook {shown(place)} could not be used ({said}): check {check}, then run again."
        ) from error


def _one_line(said: str, url: sa.URL) -> str:
    """The first line of what a driver says, hints and context left out; never with the password in it."""
    first = said.strip().partition("\n")[0] or "no reason given"
    return first.replace(url.password, "***") if url.password else first


def refuse_newer(place: Place, revision: str) -> None:
    """Raises UsageError for a revision that no migration here makes."""
    script = ScriptDirectory.from_config(migrations())
    if revision not in {known.revision for known in script.walk_revisions()}:
        raise UsageError(
            f"The gradebook {shown(place)} was written by a newer grader (schema {revision}, known here: "
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
