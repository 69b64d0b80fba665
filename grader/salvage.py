"""Copies what can still be read of a damaged gradebook into a new one: whole grades only, and says what was lost."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grader.database import make_engine, upgrade
from grader.errors import InfrastructureError
from grader.tables import RECKON

TABLES = ("runs", "submissions", "grades", "check_results", "perplexity_scores", "flags", "marks", "rules")
PARTS = ("check_results", "perplexity_scores", "flags")
GRADE_IDS = ("SELECT max(id) FROM grades", *(f"SELECT max(grade_id) FROM {table}" for table in (*PARTS, "standings")))
MARK_IDS = ("SELECT max(id) FROM marks",)
FURTHEST = 100_000  # rows in a gap that are tried one by one

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvaged:
    """What was done, and what of the gradebook is gone; that is empty if all of it was saved."""

    done: list[str]
    lost: str = ""


def salvage(path: Path) -> Salvaged:
    """Put a gradebook with all that can be read in the place of a damaged one, which is kept beside it.

    A grade of which a part was lost is left out, and is graded again by the same `grader grade`.

    Raises:
        InfrastructureError: nothing could be read, and the file is as it was.
        sqlite3.Error, OSError: the disk refuses, and the file is as it was.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _discard(fresh)
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)) as damaged:
            said, lost = _copy(damaged, fresh)
        kept = path.with_name(f"{path.stem}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}{path.suffix}")
        os.link(path, kept)  # until it is replaced, the gradebook has both names: at no moment is there none
        wal = path.with_name(f"{path.name}-wal")
        if wal.exists():
            shutil.copy2(wal, kept.with_name(f"{kept.name}-wal"))
            wal.unlink()  # else SQLite would put its pages into the new file
        path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
        fresh.replace(path)
    finally:
        _discard(fresh)
    return Salvaged(done=[*said, f"The damaged file is kept as {kept}."], lost=lost)


def adding_up(execute: Callable[[str], Iterable[Any]], *, wrong: bool) -> list[tuple[int, str]]:
    """Id and student of each grade whose parts add up to its score and are all there; or of each other one."""
    query = """
        WITH parts AS (
            SELECT grade_id, position, points, max_points FROM check_results
            UNION ALL SELECT grade_id, position, points, max_points FROM perplexity_scores
        ), sums AS (SELECT grade_id, sum(points) AS points, sum(max_points) AS most FROM parts GROUP BY grade_id),
        counts AS (
            SELECT grade_id, max(position) + 1 - count(*) AS gaps FROM check_results GROUP BY grade_id
            UNION ALL SELECT grade_id, max(position) + 1 - count(*) FROM perplexity_scores GROUP BY grade_id
            UNION ALL SELECT grade_id, max(position) + 1 - count(*) FROM flags GROUP BY grade_id
        ), holes AS (SELECT DISTINCT grade_id FROM counts WHERE gaps != 0)
        SELECT grades.id, submissions.student_id,
            CASE WHEN (score IS NULL OR abs(score - coalesce(sums.points, 0)) < 0.006)
            AND abs(max_score - coalesce(most, 0)) < 0.006 AND holes.grade_id IS NULL THEN 1 ELSE 0 END AS well
        FROM grades JOIN submissions ON submissions.id = submission_id
        LEFT JOIN sums ON sums.grade_id = grades.id LEFT JOIN holes ON holes.grade_id = grades.id ORDER BY grades.id
    """
    return [(grade_id, student) for grade_id, student, well in execute(query) if bool(well) != wrong]


def _copy(damaged: sqlite3.Connection, fresh: Path) -> tuple[list[str], str]:
    """Fill a new gradebook; sentences on what was done, and one on what was lost, empty if nothing was."""
    engine = make_engine(fresh, 1.0)
    revision = damaged.execute("SELECT version_num FROM alembic_version").fetchone()[0]
    upgrade(engine, fresh, revision)
    damaged.text_factory = lambda data: data.decode("utf-8", "backslashreplace")
    said = []
    with closing(sqlite3.connect(fresh, isolation_level=None)) as target:
        target.execute("BEGIN IMMEDIATE")
        triggers = target.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            target.execute(f"DROP TRIGGER {name}")
        copied, there = 0, {row[0] for row in target.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table in (name for name in TABLES if name in there):
            names = [row[1] for row in target.execute(f"PRAGMA table_info({table})")]
            columns, marks = ", ".join(names), ", ".join("?" * len(names))
            rows, lost = _readable(damaged, table, columns)
            target.execute(f"DELETE FROM {table}")  # what the migrations put there
            for row in rows:
                try:
                    target.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", row)
                    copied += 1
                except sqlite3.IntegrityError:  # damage within the row: a null where there is none, a key twice
                    lost = True
            if lost:
                said.append(f"Rows of {table} could not be read.")
        if not copied:
            raise InfrastructureError(
                "Nothing of the gradebook can be read, and it was left as it is: put a backup in its place."
            )
        said += _drop_torn(target)
        if "standings" in there:
            target.execute(RECKON)
        for _, sql in triggers:
            target.execute(sql)
        target.execute("COMMIT")
        saved = [target.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("grades", "marks")]
    engine.dispose()
    return _balance(saved, [_rows_before(damaged, GRADE_IDS), _rows_before(damaged, MARK_IDS)], said)


def _balance(saved: list[int], before: list[int], said: list[str]) -> tuple[list[str], str]:
    """How many of how many grades and marks are there still; `before` is what there were at least."""
    grades, marks = map(max, saved, before)
    if not said and saved == [grades, marks]:
        return [f"All {grades} grades and {marks} manual marks were copied into a new gradebook."], ""
    return said, (
        f"{saved[0]} of at least {grades} grades and {saved[1]} of at least {marks} manual marks could be saved: put a "
        "backup in the gradebook's place, or run the `grader grade` command of this folder again and enter the marks "
        "that are gone."
    )


def _rows_before(damaged: sqlite3.Connection, queries: Iterable[str]) -> int:
    """The largest id that can still be read: none is ever deleted, so that it is how many there were."""
    most = 0
    for query in queries:
        with suppress(sqlite3.DatabaseError):
            found = damaged.execute(query).fetchone()[0]
            most = max(most, found if isinstance(found, int) else 0)
    return most


def _readable(damaged: sqlite3.Connection, table: str, columns: str) -> tuple[list[Row], bool]:
    """The rows of a table that can be read, by rowid, and whether some could not.

    From the front up to the damage, from the back down to it, and what lies between row by row.
    """
    rows: dict[int, Row] = {}
    edges = {}
    for order in ("ASC", "DESC"):
        try:
            for rowid, *row in damaged.execute(f"SELECT rowid, {columns} FROM {table} ORDER BY rowid {order}"):
                rows[rowid] = tuple(row)
                edges[order] = rowid
            return [rows[rowid] for rowid in sorted(rows)], False
        except sqlite3.DatabaseError:
            continue
    first = edges.get("ASC", 0) + 1
    last = min(edges.get("DESC", first + FURTHEST), first + FURTHEST)
    for rowid in range(first, last):
        with suppress(sqlite3.DatabaseError):
            for row in damaged.execute(f"SELECT {columns} FROM {table} WHERE rowid = ?", (rowid,)):
                rows[rowid] = tuple(row)
    return [rows[rowid] for rowid in sorted(rows)], True


def _drop_torn(target: sqlite3.Connection) -> Iterator[str]:
    """Take out what refers to nothing, and grades that are not whole."""
    for table in PARTS:
        target.execute(f"DELETE FROM {table} WHERE grade_id NOT IN (SELECT id FROM grades)")
    orphans = target.execute(
        "SELECT count(*) FROM grades WHERE submission_id NOT IN (SELECT id FROM submissions)"
        " OR run_id NOT IN (SELECT id FROM runs)"
    ).fetchone()[0]
    torn = adding_up(target.execute, wrong=True)
    for condition, values in (
        ("submission_id NOT IN (SELECT id FROM submissions)", [()]),
        ("run_id NOT IN (SELECT id FROM runs)", [()]),
        ("id = ?", [(grade_id,) for grade_id, _ in torn]),
    ):
        for value in values:
            for table in PARTS:
                target.execute(
                    f"DELETE FROM {table} WHERE grade_id IN (SELECT id FROM grades WHERE {condition})", value
                )
            target.execute(f"DELETE FROM grades WHERE {condition}", value)
    if orphans:
        yield f"{orphans} grades were lost whose student or run could not be read."
    for grade_id, student in torn:
        yield f"Grade {grade_id} of {student} was left out, as a part of it was lost."


def _discard(path: Path) -> None:
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm", f"{path.name}-journal"):
        path.with_name(name).unlink(missing_ok=True)
