"""Whether a gradebook is well, what of it can be mended, and a copy of it that is safe to take while it is written.

A check only reads. What it finds wrong and can be made again from nothing (a trigger, a view, an index) is mended in
place; a file that SQLite cannot read as a whole is replaced by one with what could be read (`salvage.py`).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from grader.database import (
    expected_schema,
    make_engine,
    migrations,
    reading,
    refuse_empty,
    refuse_newer,
    schema_of,
    writing,
)
from grader.errors import InfrastructureError, UsageError
from grader.faults import plain_faults
from grader.migrations import mysql, postgresql
from grader.outputs import missing_files, students_shown
from grader.place import shown
from grader.salvage import Salvaged, adding_up, salvage
from grader.tables import METADATA, MYSQL, RECKON
from grader.types import Status

# By kind, name and words of what a server's gradebook has; a trigger that is switched off has other words.
SERVER_OBJECTS = {
    "postgresql": {
        "trigger": "SELECT tgname, pg_get_triggerdef(oid, true) ||"
        " CASE WHEN tgenabled IN ('O', 'A') THEN '' ELSE '!' END"
        " FROM pg_trigger WHERE NOT tgisinternal AND pg_table_is_visible(tgrelid)",
        "function": "SELECT proname, prosrc FROM pg_proc WHERE pg_function_is_visible(oid)",
    },
    "mysql": {
        "trigger": "SELECT trigger_name, action_statement FROM information_schema.triggers"
        " WHERE trigger_schema = database()"
    },
}
RECKONED_AGAIN = "What counts was reckoned again, for {number} students otherwise than before."
VIEWS = {"latest", "attempts", "judged", "reckoned", "counting"}  # of what counts; the first schemas had others
MENDED_IN_PLACE = ("trigger", "view", "index")  # they hold no data of their own

Query = Callable[[str], Iterable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is not as it should be, and what becomes of it with `--repair`."""

    what: str
    repair: str = ""  # what `--repair` does about it; empty: nothing
    damaged: bool = False  # the file cannot be read as a whole


def check(path: Path, out: Path | None = None, *, busy: bool = False) -> list[Problem]:
    """All that is wrong with a gradebook and the files of its results folder (the file's own, if none is given).

    `busy`: a batch is writing to it just now. Nothing is changed.

    Raises:
        UsageError: there is none, or it is no gradebook.
        InfrastructureError: nothing of it can be read.
    """
    if not path.exists():
        raise UsageError(f"There is no gradebook at {path}: name the results folder of `grader grade`.")
    refuse_empty(path)
    wal, found = _wal(path), []
    if not busy and wal:
        left = f"{wal} was left behind by a process that was killed; nothing is lost."
        found.append(Problem(what=left, repair="its pages are moved in"))
    with plain_faults(path), _reading(path) as connection:
        revision = _revision(connection, path)
        damage = _damage(connection)
        found += damage
        if not damage:
            found += _schema(connection, revision)
            for table, rowid, parent, _ in connection.execute("PRAGMA foreign_key_check"):
                found.append(_orphan(rowid, table, parent))
            found += _contents(connection.execute)
            if {name for _, name in schema_of(connection)} >= VIEWS:
                found += _stale(connection.execute)
            found += _files(connection.execute, out or path.parent)
    return found


def check_server(url: sa.URL, out: Path) -> list[Problem]:
    """All that is wrong with a gradebook on a server and the files of its results folder; nothing is changed.

    Whether the server can read its own disk is for its own tools to say, and of a view only that it is there.

    Raises:
        UsageError: there is no gradebook, or a newer grader's.
        InfrastructureError: the server cannot be reached.
    """
    with plain_faults(url), reading(make_engine(url, 30.0)) as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
        if revision is None:
            raise UsageError(f"There is no gradebook in {shown(url)}: name the results folder of `grader grade`.")
        refuse_newer(url, revision)
        if revision != ScriptDirectory.from_config(migrations()).get_current_head():
            older = f"The schema {revision} is of an earlier grader: any command that grades or marks upgrades it."
            return [Problem(what=older)]
        found = [*_server_schema(connection), *_orphans(connection)]
        found += _contents(connection.exec_driver_sql)
        if set(sa.inspect(connection).get_view_names()) >= VIEWS:
            found += _stale(connection.exec_driver_sql)
        found += _files(connection.exec_driver_sql, out)
    return found


def repair(path: Path) -> Salvaged:
    """Mend what `check` finds and can be mended; say what was done, and what was lost.

    Raises:
        InfrastructureError: the disk refuses, or nothing of the file can be read; it stays as it was.
    """
    problems = check(path)
    if any(problem.damaged for problem in problems):
        with plain_faults(path):
            return salvage(path)
    done, wal = [], _wal(path)
    with plain_faults(path), closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        expected, there = expected_schema(_revision(connection, path)), schema_of(connection)
        for (kind, name), sql in _in_order(expected):
            if kind in MENDED_IN_PLACE and there.get((kind, name)) != sql:
                connection.execute(f'DROP {kind} IF EXISTS "{name}"')
                connection.execute(sql)
                done.append(f"The {kind} {name} was made again.")
        if ("table", "standings") in there and (stale := list(_stale(connection.execute))):
            connection.execute(RECKON)
            done.append(RECKONED_AGAIN.format(number=len(stale)))
        connection.execute("COMMIT")
        if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0 and wal:
            done.append("What a killed process had left beside the gradebook was moved into it.")
    return Salvaged(done=done)


def repair_server(url: sa.URL) -> list[str]:
    """Reckon what counts again, if that is wrong: all else on a server is mended by its own tools, or from a backup.

    Raises:
        UsageError, InfrastructureError: as `check_server`.
    """
    with plain_faults(url), writing(make_engine(url, 30.0), 30.0) as connection:
        if not set(sa.inspect(connection).get_view_names()) >= VIEWS:
            return []
        stale = list(_stale(connection.exec_driver_sql))
        if stale:
            connection.exec_driver_sql(RECKON)
        return [RECKONED_AGAIN.format(number=len(stale))] if stale else []


def back_up(path: Path, copy: Path) -> None:
    """Copy a gradebook, also while a batch writes to it: the copy is whole, tried, and as of one moment.

    It appears under its name when it is whole; an earlier copy of that name stays until then.

    Raises:
        UsageError: there is no gradebook, or the copy would take its place, or that of what is no gradebook.
        InfrastructureError: the gradebook is damaged, or the disk refuses.
    """
    if not path.exists():
        raise UsageError(f"There is no gradebook at {path}: name the results folder of `grader grade`.")
    refuse_empty(path)
    if copy.exists() and copy.samefile(path):
        raise UsageError(f"{copy} is the gradebook itself: name another file for its copy.")
    if not copy.parent.is_dir():
        raise UsageError(f"{copy.parent} is no folder: make it, or name another file for the copy.")
    if copy.exists() and not _is_gradebook(copy):
        raise UsageError(f"{copy} is there and is no gradebook, and was left as it is: name another file for the copy.")
    beside = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")
    try:
        with plain_faults(path), _reading(path) as source:
            _revision(source, path)
            with plain_faults(copy), closing(sqlite3.connect(beside)) as target:
                source.backup(target, pages=-1)
                target.execute("PRAGMA journal_mode = DELETE")  # the copy is one file
                verdict = target.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise InfrastructureError(
                f"{path} is damaged ({verdict}), and {copy} was not written: `grader db check` says more."
            )
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(copy)
    except OSError as error:
        raise InfrastructureError(f"{copy} could not be written: {error.strerror}.") from error
    finally:
        for left in (beside, beside.with_name(f"{beside.name}-journal")):
            with suppress(OSError):
                left.unlink(missing_ok=True)


def _wal(path: Path) -> Path | None:
    """The file with what was not moved into the gradebook yet; None if there is none."""
    wal = path.with_name(f"{path.name}-wal")
    return wal if wal.exists() and wal.stat().st_size else None


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that changes nothing, a left WAL included."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)) as connection:
        yield connection


def _revision(connection: sqlite3.Connection, path: Path) -> str:
    """The revision of the schema. Raises UsageError if this is no gradebook, or a newer grader's."""
    try:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        row = None
    if row is None:
        raise UsageError(f"{path} is a database of another program, not a gradebook: name another file.")
    refuse_newer(path, str(row[0]))
    return str(row[0])


def _is_gradebook(path: Path) -> bool:
    """Whether a file is a gradebook that this grader knows."""
    try:
        with _reading(path) as connection:
            _revision(connection, path)
    except (sqlite3.Error, UsageError):
        return False
    return True


def _damage(connection: sqlite3.Connection) -> list[Problem]:
    """What SQLite cannot read, or reads in two ways."""
    with_repair = "what can be read is copied into a new file, and the damaged one is kept"
    try:
        said = [row[0] for row in connection.execute("PRAGMA integrity_check(20)")]
    except sqlite3.DatabaseError as error:
        said = [str(error)]
    return [
        Problem(what=f"SQLite: {' '.join(line.split())}.", repair=with_repair, damaged=True)
        for line in said
        if line != "ok"
    ]


def _schema(connection: sqlite3.Connection, revision: str) -> Iterator[Problem]:
    """Tables, triggers, views and indexes that are missing or are others than the migrations make."""
    there = schema_of(connection)
    for (kind, name), sql in _in_order(expected_schema(revision)):
        if there.get((kind, name)) != sql:
            how = "is missing" if (kind, name) not in there else "is not as the grader makes it"
            yield Problem(
                what=f"The {kind} {name} {how}.", repair="it is made again" if kind in MENDED_IN_PLACE else ""
            )


def _in_order(schema: dict[tuple[str, str], str]) -> list[tuple[tuple[str, str], str]]:
    """Tables first, and views in the order of the migrations, in which each is made after those it reads."""
    return sorted(schema.items(), key=lambda item: item[0][0] != "table")


def _server_schema(connection: sa.Connection) -> Iterator[Problem]:
    """Tables, columns, indexes and views that are missing; triggers and functions that are missing, off or others."""
    kind = "mysql" if connection.dialect.name in MYSQL else connection.dialect.name
    views = set(sa.inspect(connection).get_view_names())
    yield from _tables(connection, exact=kind in SERVER_OBJECTS)
    there: dict[tuple[str, str], str] = {("view", name): "" for name in views}
    for what, query in SERVER_OBJECTS.get(kind, {}).items():
        there |= {(what, row[0]): row[1] for row in connection.exec_driver_sql(query)}
    makers = {"postgresql": postgresql.made, "mysql": mysql.made}
    made = makers[kind](METADATA.tables) if kind in makers else {}
    for (what, name), words in (made | {("view", name): "" for name in (*VIEWS, "best")}).items():
        if (what, name) not in there:
            yield Problem(what=f"The {what} {name} is missing.")
        elif words and there[what, name] != words:
            yield Problem(what=f"The {what} {name} is not as the grader makes it, or is switched off.")


def _tables(connection: sa.Connection, *, exact: bool) -> Iterator[Problem]:
    """What differs, by Alembic; of a kind of database that we do not know only what is missing, which is sure."""
    if not exact:
        for table in sorted(set(METADATA.tables) - set(sa.inspect(connection).get_table_names())):
            yield Problem(what=f"The table {table} is missing.")
        return
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    for difference in compare_metadata(context, METADATA):
        for verb, *rest in difference if isinstance(difference, list) else [difference]:
            if verb.startswith("modify"):
                yield Problem(what=f"The column {rest[2]} of {rest[1]} is not as the grader makes it.")
            elif verb.startswith("add"):  # what is there and not ours is another's business
                name = getattr(rest[-1], "name", None) or getattr(rest[-1], "table", "")
                yield Problem(what=f"The {verb.removeprefix('add_')} {name} is missing.")


def _orphans(connection: sa.Connection) -> Iterator[Problem]:
    """Rows that refer to nothing, which somebody with more rights than we have could make."""
    for table in METADATA.sorted_tables:
        for key in table.foreign_keys:
            known = sa.select(key.column).where(key.column == key.parent).correlate(table)
            lost = sa.select(next(iter(table.primary_key))).where(~sa.exists(known)).order_by(sa.literal_column("1"))
            for row in connection.execute(lost):
                yield _orphan(row[0], table.name, key.column.table.name)


def _orphan(row: int, table: str, parent: str) -> Problem:
    return Problem(what=f"Row {row} of {table} refers to a row of {parent} that is not there.")


def _contents(execute: Query) -> Iterator[Problem]:
    """Rows that contradict each other."""
    for grade_id, student in adding_up(execute, wrong=True):
        yield Problem(what=f"The parts of grade {grade_id} ({student}) do not add up to its score.")
    # The same submission graded twice by the same key, with no other grade of the student's between: a regrade has
    # another key, and what was handed in again as it was before has another submission's grade between; what was
    # withdrawn has `needs_regrade` between.
    each = "OVER (PARTITION BY submissions.student_id ORDER BY grades.id)"
    twice = execute(
        f"SELECT id, student_id FROM (SELECT grades.id, submissions.student_id, submission_id, grades.key AS its_key,"
        f"   status, lag(grades.key) {each} AS last_key, lag(status) {each} AS last_status,"
        f"   lag(submission_id) {each} AS last_submission"
        "  FROM grades JOIN submissions ON submissions.id = submission_id) pairs"
        " WHERE its_key = last_key AND submission_id = last_submission"
        " AND 'needs_regrade' NOT IN (status, last_status) ORDER BY id"
    )
    for grade_id, student in twice:
        yield Problem(what=f"Grade {grade_id} ({student}) repeats the one before: same submission, same key.")


def _stale(execute: Query) -> Iterator[Problem]:
    """Students of whom the view `counting` says otherwise than their grades and the rules."""
    values = ("grade_id", "attempt", "late_days", "late_penalty")
    differs = " OR ".join(f"counting.{value} != reckoned.{value}" for value in values)
    rows = execute(
        "SELECT reckoned.student_id FROM reckoned LEFT JOIN counting ON counting.student_id = reckoned.student_id"
        f" WHERE counting.grade_id IS NULL OR {differs} ORDER BY 1"
    )
    for (student,) in rows:
        yield Problem(what=f"What counts of {student} is not what the rules say.", repair="it is reckoned again")


def _files(execute: Query, out: Path) -> Iterator[Problem]:
    """Files of the results folder that the latest grades have and that are not there, and students without a grade."""
    query = (
        "SELECT submissions.student_id, sha256, status FROM grades JOIN submissions ON submissions.id = submission_id"
        " WHERE grades.id IN (SELECT max(grades.id) FROM grades JOIN submissions ON submissions.id = submission_id"
        " GROUP BY submissions.student_id) ORDER BY 1"
    )
    rows = list(execute(query))
    if gone := sorted(students_shown(out) - {student for student, *_ in rows}):
        yield Problem(
            what=f"There are pages in {out} and no grades any more of {', '.join(gone)}: put a backup in the "
            "gradebook's place, or run the `grader grade` command of this folder again."
        )
    latest = [(student, sha256, Status(status)) for student, sha256, status in rows if status in set(Status)]
    for file, how in missing_files(out, latest):
        yield Problem(what=f"{file} is missing: {how}")
