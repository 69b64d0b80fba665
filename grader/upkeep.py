"""Whether a gradebook is well, what of it can be mended, and a copy of it that is safe to take while it is written.

A check only reads. What it finds wrong and can be made again from nothing (a trigger, a view, an index) is mended in
place; a file that SQLite cannot read as a whole is replaced by one with what could be read (`salvage.py`).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from grader.database import expected_schema, plain_faults, refuse_newer, schema_of
from grader.errors import InfrastructureError, UsageError
from grader.outputs import missing_files
from grader.salvage import adding_up, salvage
from grader.types import Status

MENDED_IN_PLACE = ("trigger", "view", "index")  # they hold no data of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is not as it should be, and what becomes of it with `--repair`."""

    what: str
    repair: str = ""  # what `--repair` does about it; empty: nothing
    damaged: bool = False  # the file cannot be read as a whole


def check(path: Path, *, busy: bool = False) -> list[Problem]:
    """All that is wrong with a gradebook; `busy`: a batch is writing to it just now. Nothing is changed.

    Raises:
        UsageError: there is none, or it is no gradebook.
        InfrastructureError: nothing of it can be read.
    """
    if not path.exists():
        raise UsageError(f"There is no gradebook at {path}: name the results folder of `grader grade`.")
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
            found += _contents(connection)
    if not damage:
        found += [Problem(what=f"{file} is missing: {how}") for file, how in _files(path)]
    return found


def repair(path: Path) -> list[str]:
    """Mend what `check` finds and can be mended; sentences that say what was done, and what was lost.

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
        connection.execute("COMMIT")
        if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0 and wal:
            done.append("What a killed process had left beside the gradebook was moved into it.")
    return done


def back_up(path: Path, copy: Path) -> None:
    """Copy a gradebook, also while a batch writes to it: the copy is whole, tried, and as of one moment.

    It appears under its name when it is whole; an earlier copy of that name stays until then.

    Raises:
        UsageError: there is no gradebook, or the copy would take its place.
        InfrastructureError: the gradebook is damaged, or the disk refuses.
    """
    if not path.exists():
        raise UsageError(f"There is no gradebook at {path}: name the results folder of `grader grade`.")
    if copy.exists() and copy.samefile(path):
        raise UsageError(f"{copy} is the gradebook itself: name another file for its copy.")
    if not copy.parent.is_dir():
        raise UsageError(f"{copy.parent} is no folder: make it, or name another file for the copy.")
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


def _contents(connection: sqlite3.Connection) -> Iterator[Problem]:
    """Rows that contradict each other."""
    for table, rowid, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        yield Problem(what=f"Row {rowid} of {table} refers to a row of {parent} that is not there.")
    for grade_id, student in adding_up(connection, wrong=True):
        yield Problem(what=f"The parts of grade {grade_id} ({student}) do not add up to its score.")
    # The same submission graded twice by the same key, with no other grade of the student's between: a regrade has
    # another key, and what was handed in again as it was before has another submission's grade between; what was
    # withdrawn has `needs_regrade` between.
    twice = connection.execute(
        "SELECT id, student_id FROM (SELECT grades.id, submissions.student_id, submission_id, key, status,"
        "   lag(key) OVER each AS last_key,"
        "   lag(status) OVER each AS last_status,"
        "   lag(submission_id) OVER each AS last_submission"
        " FROM grades JOIN submissions ON submissions.id = submission_id"
        " WINDOW each AS (PARTITION BY submissions.student_id ORDER BY grades.id))"
        " WHERE key = last_key AND submission_id = last_submission AND ? NOT IN (status, last_status) ORDER BY id",
        (Status.NEEDS_REGRADE.value,),
    )
    for grade_id, student in twice:
        yield Problem(what=f"Grade {grade_id} ({student}) repeats the one before: same submission, same key.")


def _files(path: Path) -> list[tuple[Path, str]]:
    """Files of the results folder that the latest grades have and that are not there."""
    with _reading(path) as connection:
        rows = connection.execute(
            "SELECT submissions.student_id, sha256, status, max(grades.id) FROM grades"
            " JOIN submissions ON submissions.id = submission_id GROUP BY submissions.student_id ORDER BY 1"
        ).fetchall()
    latest = [(student, sha256, Status(status)) for student, sha256, status, _ in rows if status in set(Status)]
    return missing_files(path.parent, latest)
