"""The schema in words of SQLAlchemy, for every database but SQLite and PostgreSQL, whose migrations have their own.

None of these has a gradebook of an earlier schema, so it is made as a whole and stamped with the newest revision.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic.ddl.impl import DefaultImpl
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from grader.migrations import mysql
from grader.place import KNOWN
from grader.tables import COUNTING, GRADES, METADATA, MYSQL, RULES, STANDINGS, SUBMISSIONS

VERSION = "alembic_version"
PLACE = ("student_id", "grade_id", "attempt", "late_days", "late_penalty")
_REAL = GRADES.c.status != "needs_regrade"


def _view(name: str, *columns: str) -> Any:
    return sa.table(name, *(sa.column(column) for column in columns)).c


def _latest() -> sa.Select[Any]:
    newest = sa.func.coalesce(sa.func.max(sa.case((_REAL, GRADES.c.id))), sa.func.max(GRADES.c.id))
    return sa.select(GRADES.c.student_id, newest.label("grade_id")).group_by(GRADES.c.student_id)


def _attempts() -> sa.Select[Any]:
    handed_in = sa.case((GRADES.c.status != "missing", 1), else_=0)
    one = (
        sa.select(
            *(SUBMISSIONS.c[name] for name in ("student_id", "sha256")),
            *(sa.func.min(SUBMISSIONS.c[name]).label(name) for name in ("submitted_at", "submitted_s")),
            sa.func.min(GRADES.c.id).label("first_id"),
            sa.func.max(GRADES.c.id).label("grade_id"),
            sa.func.max(handed_in).label("handed_in"),
        )
        .select_from(GRADES.join(SUBMISSIONS))
        .where(_REAL)
        .group_by(SUBMISSIONS.c.student_id, SUBMISSIONS.c.sha256)
        .subquery("notebooks")
        .c
    )
    number = sa.func.sum(one.handed_in).over(partition_by=one.student_id, order_by=one.first_id)
    names = ("student_id", "sha256", "submitted_at", "submitted_s", "grade_id")
    return sa.select(*(one[name] for name in names), sa.cast(number, sa.Integer).label("attempt"))


def _judged() -> sa.Select[Any]:
    attempt, rule = _view("attempts", "student_id", "grade_id", "attempt", "submitted_s"), RULES.c
    late_s = attempt.submitted_s - rule.due_s
    begun = sa.func.floor((late_s + 86399) / sa.literal_column("86400e0", sa.Double))
    late_days = sa.case((late_s > rule.grace_minutes * 60, begun), else_=0)
    last = sa.select(sa.func.max(RULES.alias("others").c.id)).scalar_subquery()
    known = (attempt.student_id, attempt.grade_id, attempt.attempt, rule.counts, rule.penalty_per_day, rule.max_days)
    late = (
        sa.select(*known, sa.cast(late_days, sa.Integer).label("late_days"))
        .where(rule.id == last, sa.or_(rule.most.is_(None), attempt.attempt <= rule.most))
        .subquery("late")
        .c
    )
    whole, cost = sa.literal_column("1e0", sa.Double), late.late_days * late.penalty_per_day
    penalty = sa.case((late.max_days < late.late_days, whole), (cost > whole, whole), else_=cost)
    columns = (late.student_id, late.grade_id, late.attempt, late.late_days, late.counts)
    return sa.select(*columns, penalty.label("late_penalty"), GRADES.c.score).where(GRADES.c.id == late.grade_id)


def _first(*, of_best: bool) -> sa.Select[Any]:
    """Of each student the attempt with the most points, or, if the rules say so or it is not `of_best`, the latest."""
    judged = _view("judged", *PLACE, "counts", "score")
    points = judged.score * (1 - judged.late_penalty)
    worth = points if of_best else sa.case((judged.counts == "best", points))
    order = (sa.case((worth.is_(None), 1), else_=0), worth.desc(), judged.grade_id.desc())
    place = sa.func.row_number().over(partition_by=judged.student_id, order_by=order).label("place")
    placed = sa.select(*(judged[name] for name in PLACE), place).subquery("placed").c
    return sa.select(*(placed[name] for name in PLACE)).where(placed.place == 1)


def _reckoned() -> sa.CompoundSelect[Any]:
    nothing: list[sa.ColumnElement[Any]] = [
        sa.literal_column(zero).label(name) for zero, name in zip(("0", "0", "0e0"), PLACE[2:], strict=True)
    ]
    lost = sa.select(GRADES.c.student_id, sa.func.max(GRADES.c.id), *nothing).group_by(GRADES.c.student_id)
    return sa.union_all(_first(of_best=False), lost.having(sa.func.max(sa.case((_REAL, 1), else_=0)) == 0))


def _counting(kept: bool) -> sa.Select[Any]:
    """What is reckoned, at once where triggers do not keep it."""
    if not kept:
        return sa.select(*_view("reckoned", *PLACE))
    newest = sa.select(sa.func.max(STANDINGS.c.id).label("id")).group_by(STANDINGS.c.student_id).subquery("newest")
    return sa.select(*(STANDINGS.c[name] for name in PLACE)).where(STANDINGS.c.id == newest.c.id)


def views(dialect: sa.Dialect) -> dict[str, str]:
    """By name, in the order in which they read each other, the SELECT of each view."""
    made = {"latest": _latest(), "attempts": _attempts(), "judged": _judged(), "best": _first(of_best=True)}
    queries = made | {"reckoned": _reckoned(), COUNTING.name: _counting(dialect.name in KNOWN)}
    literal = {"literal_binds": True}
    return {name: str(query.compile(dialect=dialect, compile_kwargs=literal)) for name, query in queries.items()}


def tables(dialect: sa.Dialect) -> list[sa.Table]:
    """Those of the gradebook; the grader numbers their rows where we do not know how the database would."""
    if dialect.name in MYSQL:
        return METADATA.sorted_tables
    copies = sa.MetaData()
    for table in METADATA.sorted_tables:
        for column in table.to_metadata(copies).primary_key:
            column.autoincrement = False
    return copies.sorted_tables


def make(connection: sa.Connection, script: ScriptDirectory) -> None:
    """Tables, indexes, views and triggers, and last of all the revision: until it is there, nothing is kept here.

    What an earlier attempt left that was interrupted is taken away first. MySQL cannot make all of it at once.
    """
    quote = connection.dialect.identifier_preparer.quote
    context = MigrationContext.configure(connection)
    _clear(connection)
    context.stamp(script, "base")  # an empty table of revisions: whoever comes now knows whose the others are
    for table in tables(connection.dialect):
        connection.execute(sa.schema.CreateTable(table))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            columns = ", ".join(quote(column.name) for column in index.columns)
            connection.exec_driver_sql(f"CREATE INDEX {index.name} ON {table.name} ({columns})")
    for name, query in views(connection.dialect).items():
        connection.exec_driver_sql(f"CREATE VIEW {name} AS {query}")
    row = {"id": 1, "counts": "latest", "due": "", "grace_minutes": 0.0, "penalty_per_day": 0.0}
    connection.execute(sa.insert(sa.table("rules", *(sa.column(c.name, c.type) for c in RULES.c))).values(row))
    if connection.dialect.name in MYSQL:
        for statement in mysql.statements(METADATA.tables):
            connection.exec_driver_sql(statement)
    context.stamp(script, "head")


def _clear(connection: sa.Connection) -> None:
    there = sa.inspect(connection)
    for kind, ours, names in (
        ("VIEW", views(connection.dialect), there.get_view_names()),
        ("TABLE", (table.name for table in METADATA.sorted_tables), there.get_table_names()),
    ):
        for name in reversed([name for name in ours if name in names]):
            connection.exec_driver_sql(f"DROP {kind} {name}")


def holds_rows(connection: sa.Connection) -> bool:
    """Whether anything stands in the tables that are there but what `make` puts into them."""
    known = set(sa.inspect(connection).get_table_names())
    kept = (table for table in METADATA.sorted_tables if table.name in known and table is not RULES)
    return any(connection.execute(sa.select(sa.literal(1)).select_from(one).limit(1)).first() for one in kept)


def introduce(dialect: sa.Dialect) -> None:
    """Alembic refuses a kind of database that it has not heard of, also where its own words would do."""
    try:
        DefaultImpl.get_by_dialect(dialect)
    except KeyError:
        type(f"Any_{dialect.name}", (DefaultImpl,), {"__dialect__": dialect.name})
