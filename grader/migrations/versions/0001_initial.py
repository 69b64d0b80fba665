"""The append-only tables of the gradebook."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from grader.migrations.postgresql import ONLY_GROWS, grows_only

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = ("runs", "submissions", "grades", "check_results", "perplexity_scores", "flags")


def text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def number(name: str, *, unknown: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=unknown)


def key() -> sa.Column[int]:
    return sa.Column("id", sa.Integer, primary_key=True)


def refers(name: str, table: str, *, primary: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, sa.ForeignKey(f"{table}.id"), primary_key=primary, nullable=False)


def part_of_a_grade() -> tuple[sa.Column[int], sa.Column[int]]:
    return refers("grade_id", "grades", primary=True), sa.Column("position", sa.Integer, primary_key=True)


def upgrade() -> None:
    op.create_table("runs", key(), text("command"), text("profile"), text("started_at"))
    op.create_table(
        "submissions",
        key(),
        text("student_id"),
        text("sha256"),
        text("submitted_at"),
        sa.UniqueConstraint("student_id", "sha256", "submitted_at", name="one_row_a_submission"),
    )
    op.create_table(
        "grades",
        key(),
        refers("run_id", "runs"),
        refers("submission_id", "submissions"),
        text("status"),
        text("message"),
        number("score", unknown=True),
        number("max_score"),
        text("key"),
        text("grader_version"),
        text("data_sha256"),
        text("profile"),
        text("sandbox"),
        number("wall_time_s"),
        text("graded_at"),
    )
    op.create_index("grades_by_key", "grades", ["key"])
    op.create_index("grades_by_submission", "grades", ["submission_id"])
    op.create_table(
        "check_results",
        *part_of_a_grade(),
        text("check_id"),
        text("outcome"),
        number("points"),
        number("max_points"),
        text("message"),
        number("wall_time_s"),
    )
    op.create_table(
        "perplexity_scores",
        *part_of_a_grade(),
        text("model"),
        text("outcome"),
        number("points"),
        number("max_points"),
        text("message"),
        number("nats_per_char", unknown=True),
        number("ci_low", unknown=True),
        number("ci_high", unknown=True),
        sa.Column("num_chars", sa.Integer, nullable=False),
        text("block_nats"),
        text("test_block_nats"),
    )
    op.create_table("flags", *part_of_a_grade(), text("kind"), text("model"), text("evidence"))
    if op.get_context().dialect.name == "postgresql":
        for statement in (ONLY_GROWS, *(one for table in TABLES for one in grows_only(table))):
            op.execute(statement)
        return
    for table in TABLES:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, 'the gradebook only grows: no {verb} on {table}'); END"
            )
