"""A gradebook as a database: opened, brought to the newest schema, written by one at a time, its faults one sentence.

It is a file of SQLite, or lies in another database. What these do differently stands here and in the migrations: of
SQLite, PostgreSQL and MySQL (MariaDB) we know how; of any other kind what SQLAlchemy knows.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

from grader.errors import GraderError, InfrastructureError, UsageError
from grader.faults import LOCKED, one_line, plain_faults
from grader.migrations import anywhere
from grader.place import EXAMPLE, KNOWN, Place, shown
from grader.tables import METADATA, MYSQL

WRITERS = 7_205_759_403  # of the lock that one writer at a time holds in its database
MYSQL_WRITERS = (
    "concat('grader ', left(sha2(database(), 256), 40))"  # the same; there a lock is one of the whole server
)
HAVE_MIGRATIONS = ("sqlite", "postgresql")  # from the first schema on
DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
DRIVERS_THAT_WAIT = ("postgresql", "postgresql+psycopg", "postgresql+psycopg2", "mysql+pymysql", "mariadb+pymysql")


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
    in_time = url.drivername in DRIVERS_THAT_WAIT
    try:
        engine = sa.create_engine(
            url, poolclass=sa.NullPool, connect_args={"connect_timeout": max(2, round(wait_s))} if in_time else {}
        )
    except NoSuchModuleError:
        raise UsageError(
            f"SQLAlchemy knows no driver {url.drivername!r}: install the package that has it, or write {EXAMPLE}."
        ) from None
    except ImportError as error:
        kind = "mysql" if url.get_backend_name() in MYSQL else "postgresql"
        have = f": pip install 'rnn-grader[{kind}]' has that of {DRIVERS[kind]}://"
        have = have if url.get_backend_name() in KNOWN else ""
        raise UsageError(f"The driver of {shown(url)} is not installed ({error}){have or ': install it'}.") from None
    except (TypeError, ValueError) as error:
        raise UsageError(_refused(url, error)) from error
    if engine.dialect.is_async:
        raise UsageError(f"{url.drivername!r} is a driver for asyncio, which cannot be used here: write {EXAMPLE}.")
    anywhere.introduce(engine.dialect)
    if engine.dialect.name in MYSQL:

        @sa.event.listens_for(engine, "connect")
        def _set_up(connection: Any, record: Any) -> None:
            with closing(connection.cursor()) as cursor:  # what does not fit is refused; a table has transactions
                cursor.execute("SET sql_mode = 'STRICT_ALL_TABLES', default_storage_engine = InnoDB")
                cursor.execute(f"SET lock_wait_timeout = {_whole(wait_s)}, innodb_lock_wait_timeout = {_whole(wait_s)}")

    return engine


def _whole(wait_s: float) -> int:
    return max(1, round(wait_s))


@contextmanager
def writing(engine: sa.Engine, wait_s: float) -> Iterator[sa.Connection]:
    """One transaction that holds the write lock from its start and so cannot lose it half-way.

    Of a kind of database that we do not know there is no lock: of two that write at once the later one is refused.
    """
    with engine.connect() as connection:
        if engine.dialect.name in MYSQL:  # held by the connection, not the transaction: it ends with the connection
            held = connection.exec_driver_sql(f"SELECT GET_LOCK({MYSQL_WRITERS}, {_whole(wait_s)})").scalar()
            if held != 1:
                raise InfrastructureError(LOCKED.format(path=shown(engine.url)))
            connection.rollback()  # what is read from here on is as of now
        elif engine.dialect.name == "postgresql":  # the same: not as of when the lock was asked for
            connection = connection.execution_options(isolation_level="READ COMMITTED")
        with connection.begin():
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            elif engine.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = {max(1, round(wait_s * 1000))}")
                if connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "off":
                    connection.exec_driver_sql("SET LOCAL synchronous_commit = on")  # it survives a power cut
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS})")
            yield connection


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction in which everything is read as of one moment.

    Of a kind of database that we do not know, as that usually reads: as no row is ever changed, what a row that is
    seen refers to is seen, too.
    """
    with engine.connect() as connection:
        if engine.dialect.name in ("postgresql", *MYSQL):
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN")
            yield connection


def require_server(url: sa.URL, wait_s: float = 30.0) -> None:
    """A server answers, lets us in, and its database can hold every text and tells one from another.

    Raises:
        UsageError: it does not let us in, there is no such database, or it holds texts in a way of its own.
        InfrastructureError: no server answers.
    """
    engine = make_engine(url, wait_s)
    if engine.dialect.name in MYSQL and not url.database:
        raise UsageError(f"{shown(url)} names no database: write it after the host.")
    with plain_faults(url):
        try:
            with engine.connect() as connection:
                _require_texts(connection, url)
        except (GraderError, SQLAlchemyError):
            raise
        except Exception as error:  # drivers have ways of their own to refuse an option, or to lack one
            raise UsageError(_refused(url, error)) from error


def _refused(url: sa.URL, error: Exception) -> str:
    said = one_line(str(error) or type(error).__name__, url).rstrip(".")
    return f"The driver of {shown(url)} cannot connect ({said}): correct its options."


def _require_texts(connection: sa.Connection, url: sa.URL) -> None:
    kind = connection.dialect.name
    if kind == "postgresql":
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
        if encoding != "UTF8":
            raise UsageError(
                f"The database {shown(url)} holds texts as {encoding}, which is not enough for every name: make one "
                "with `createdb --encoding UTF8 --template template0`."
            )
    elif kind in MYSQL:
        spoken = connection.exec_driver_sql("SELECT @@character_set_client").scalar()
        if spoken != "utf8mb4":
            raise UsageError(
                f"The connection to {shown(url)} speaks {spoken}, which is not enough for every name: write "
                "`?charset=utf8mb4`, or no charset."
            )
    elif connection.execute(sa.select(_same_text("a", "A"))).scalar():
        raise UsageError(f"{shown(url)} takes `a` and `A` for the same: make a database with a binary collation.")


def _same_text(one: str, other: str) -> sa.Case[int]:
    """1 if the database takes them for the same; not every one can select what is true."""
    return sa.case((sa.literal(one, sa.Unicode(1)) == sa.literal(other, sa.Unicode(1)), 1), else_=0)


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

    MySQL has none for a schema. There, and in databases that we do not know, it is made as a whole, and what an
    interrupted one left, in which nothing can be yet, is made anew.

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
        tables = sa.inspect(connection).get_table_names() if current is None else ()
        if tables and not unfinished(connection, tables):
            raise UsageError(f"{shown(place)} is a database of another program, not a gradebook: name another.")
        if current is None and not create:
            raise UsageError(f"There is no gradebook in {shown(place)}: grade first, or name the one that there is.")
        if current is None and engine.dialect.name not in HAVE_MIGRATIONS:
            anywhere.make(connection, ScriptDirectory.from_config(config))
            return
        config.attributes["connection"] = connection
        command.upgrade(config, revision)  # does nothing if another process was faster


def unfinished(connection: sa.Connection, tables: Sequence[str]) -> bool:
    """Whether these are all that an interrupted `make` left: ours, empty, with a table of revisions that has none."""
    ours = {*METADATA.tables, anywhere.VERSION}
    made_here = connection.dialect.name not in HAVE_MIGRATIONS and anywhere.VERSION in tables
    return made_here and ours.issuperset(tables) and not anywhere.holds_rows(connection)


def refuse_empty(path: Path) -> None:
    """Raises UsageError for a file without a byte, as a full disk or a kill leaves it: there may have been grades."""
    if path.stat().st_size == 0:
        raise UsageError(
            f"The gradebook {path} is empty (0 bytes): put a backup in its place, or run the `grader grade` command of "
            "this folder, which begins it anew."
        )


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
