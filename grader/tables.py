"""The gradebook's tables as its queries see them; the migrations make them, and a test compares the two."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from grader.place import KNOWN
from grader.types import storable

MYSQL = ("mysql", "mariadb")  # by which of the two a URL may call either


class _Held(sa.TypeDecorator[Any]):
    """Text as it is, compared character by character; of `length` characters at most, where an index needs an end."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, length: int | None = None) -> None:
        self.length = length
        super().__init__()

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        if dialect.name in MYSQL:  # a blank at the end is a character, too, which only these collations say
            said = "utf8mb4_nopad_bin" if getattr(dialect, "is_mariadb", False) else "utf8mb4_0900_bin"
            return mysql.VARCHAR(self.length, collation=said) if self.length else mysql.LONGTEXT(collation=said)
        if dialect.name in KNOWN:
            return super().load_dialect_impl(dialect)
        return sa.Unicode(self.length) if self.length else sa.UnicodeText()


class _Text(_Held):
    """Text that students had a hand in: a lone surrogate, which UTF-8 cannot hold, is kept as `\\udcff`.

    SQLite and MySQL keep everything else as it is; others may hold no NUL, which is kept there as `\\x00`. For Oracle
    an empty text is none, and so is kept as a blank.
    """

    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        if value is None:
            return None
        text = storable(value)
        if dialect.name == "oracle":
            text = text or " "
        return text if dialect.name in ("sqlite", *MYSQL) else text.replace("\0", "\\x00")

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> str | None:
        return "" if value == " " and dialect.name == "oracle" else value


class _Blocks(_Held):
    """Losses of blocks as JSON, which knows no infinity: a block of infinite loss is null."""

    cache_ok = True

    def process_bind_param(self, value: tuple[float, ...] | None, dialect: sa.Dialect) -> str:
        finite = [x if math.isfinite(x) else None for x in map(float, value or ())]
        return json.dumps(finite, allow_nan=False)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> tuple[float, ...]:
        return tuple(math.inf if x is None else float(x) for x in json.loads(value))


class _Names(_Held):
    """Texts by name as JSON; null if there are none, as in what an earlier grader wrote."""

    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        return json.dumps(dict(value)) if value else None

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> dict[str, str]:
        return {} if value is None else dict(json.loads(value))


def seconds_of(moment: str) -> int | None:
    """Seconds since 1970 of a time as text; without a zone it is UTC, and what is no time is None."""
    try:
        when = datetime.fromisoformat(moment.replace("Z", "+00:00"))
        return math.floor(when.replace(tzinfo=when.tzinfo or timezone.utc).timestamp())
    except (ValueError, OverflowError):
        return None


METADATA = sa.MetaData()


def _table(name: str, *columns: sa.schema.SchemaItem) -> sa.Table:
    return sa.Table(name, METADATA, *columns)


def _key() -> sa.Column[int]:
    return sa.Column("id", sa.Integer, primary_key=True)


LENGTHS = {  # of what is looked up, compared or unique; all three of a submission fit into one key of MySQL
    **{"student_id": 500, "sha256": 100, "submitted_at": 100},
    **{"status": 100, "key": 500, "item": 500, "mistake": 500, "counts": 100},
}


def _text(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, _Text(LENGTHS.get(name)), nullable=False) for name in names]


def _number(*names: str, unknown: bool = False) -> list[sa.Column[float]]:
    return [sa.Column(name, sa.Double, nullable=unknown) for name in names]


def _refers(name: str, table: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, sa.ForeignKey(f"{table}.id"), nullable=False)


def _part_of_a_grade() -> tuple[sa.Column[int], sa.Column[int]]:
    grade = sa.Column("grade_id", sa.Integer, sa.ForeignKey("grades.id"), primary_key=True, nullable=False)
    return grade, sa.Column("position", sa.Integer, primary_key=True)


_REAL = sa.text("status != 'needs_regrade'")
RUNS = _table("runs", _key(), *_text("command", "profile", "started_at"))
SUBMISSIONS = _table(
    "submissions",
    _key(),
    *_text("student_id", "sha256", "submitted_at"),
    sa.Column("submitted_s", sa.BigInteger),  # `seconds_of` it
    sa.UniqueConstraint("student_id", "sha256", "submitted_at", name="one_row_a_submission"),
)
GRADES = _table(
    "grades",
    _key(),
    _refers("run_id", "runs"),
    _refers("submission_id", "submissions"),
    *_text("status", "message"),
    *_number("score", unknown=True),
    *_number("max_score"),
    *_text("key", "grader_version", "data_sha256", "profile", "sandbox"),
    sa.Column("seed", sa.BigInteger),
    sa.Column("checkpoint", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("cpu_instead", sa.Boolean, nullable=False, server_default=sa.false()),
    *_number("wall_time_s"),
    *_text("graded_at"),
    sa.Column("key_parts", _Names),
    sa.Column(
        "student_id", _Text(LENGTHS["student_id"]), nullable=False, server_default=""
    ),  # as in its submission, for an index
    sa.Index("grades_by_key", "key"),
    sa.Index("grades_by_submission", "submission_id"),
    sa.Index("grades_by_student", "student_id", "id"),
    sa.Index("real_grades_by_student", "student_id", "id", sqlite_where=_REAL, postgresql_where=_REAL),
    sa.Index("real_grades_by_submission", "submission_id", "status", sqlite_where=_REAL, postgresql_where=_REAL),
)
CHECK_RESULTS = _table(
    "check_results",
    *_part_of_a_grade(),
    *_text("check_id", "outcome"),
    *_number("points", "max_points"),
    *_text("message"),
    sa.Column("mistake", _Text(LENGTHS["mistake"]), nullable=False, server_default=""),
    *_number("wall_time_s"),
)
PERPLEXITY_SCORES = _table(
    "perplexity_scores",
    *_part_of_a_grade(),
    *_text("model", "outcome"),
    *_number("points", "max_points"),
    *_text("message"),
    *_number("nats_per_char", "ci_low", "ci_high", unknown=True),
    sa.Column("num_chars", sa.Integer, nullable=False),
    sa.Column("block_nats", _Blocks, nullable=False),
    sa.Column("test_block_nats", _Blocks, nullable=False),
    *_number("reported", "weights_distance", "splice_gap", "splice_gap_error", unknown=True),
)
FLAGS = _table("flags", *_part_of_a_grade(), *_text("kind", "model", "evidence"))
MARKS = _table(
    "marks",
    _key(),
    *_text("student_id", "item"),
    *_number("points"),
    *_text("comment", "submission_sha256", "marked_by", "marked_at"),
    sa.Index("marks_by_student", "student_id"),
)

# What a course says of attempts and lateness; the last row holds.
RULES = _table(
    "rules",
    _key(),
    sa.Column("most", sa.Integer),
    *_text("counts", "due"),
    *_number("grace_minutes", "penalty_per_day"),
    sa.Column("max_days", sa.Integer),
    sa.Column("due_s", sa.BigInteger),
)
# What counted of a student after each grade and each change of the rules; the last row holds. Triggers add to it.
STANDINGS = _table(
    "standings",
    _key(),
    *_text("student_id"),
    _refers("grade_id", "grades"),
    *(sa.Column(name, sa.Integer, nullable=False) for name in ("attempt", "late_days")),
    *_number("late_penalty"),
    sa.Index("standings_by_student", "student_id", "id"),
)
RECKON_COLUMNS = "student_id, grade_id, attempt, late_days, late_penalty"
RECKON = f"INSERT INTO standings ({RECKON_COLUMNS}) SELECT {RECKON_COLUMNS} FROM reckoned"
# Views: tables to a query only.
LATEST = sa.table("latest", sa.column("student_id", _Text()), sa.column("grade_id", sa.Integer))
ATTEMPTS = sa.table(
    "attempts",
    *(sa.column("student_id", _Text()), sa.column("grade_id", sa.Integer)),
    *(sa.column("attempt", sa.Integer), sa.column("submitted_s", sa.BigInteger)),
)
COUNTING = sa.table(
    "counting",
    *(sa.column("student_id", _Text()), sa.column("grade_id", sa.Integer)),
    *(sa.column("late_days", sa.Integer), sa.column("late_penalty", sa.Double)),
)
