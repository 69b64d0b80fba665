"""What counts of each student, kept as it changes: 1,000 students are read at once, however many grades they have."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from grader.migrations import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# Times, and their seconds; an earlier grader that has the gradebook open meanwhile knows none, and they are worked out.
TEXTS = (("submissions", "submitted_at", "submitted_s"), ("rules", "due", "due_s"))
# To find the last row of a student, PostgreSQL goes through all rows from their end unless an index leads to it.
INDEXES = {"grades_by_student": None, "real_grades_by_student": sa.text("status != 'needs_regrade'")}

ATTEMPTS = """CREATE VIEW attempts AS
SELECT student_id, sha256, submitted_at, submitted_s, grade_id,
    sum(handed_in) OVER (PARTITION BY student_id ORDER BY first_id) AS attempt
FROM (
    SELECT submissions.student_id, sha256, min(submitted_at) AS submitted_at,
        min(coalesce(submitted_s, CAST(strftime('%s', submitted_at) AS INTEGER))) AS submitted_s,
        min(grades.id) AS first_id, max(grades.id) AS grade_id, max(status != 'missing') AS handed_in
    FROM grades JOIN submissions ON submissions.id = submission_id
    WHERE status != 'needs_regrade' GROUP BY submissions.student_id, sha256
)"""

JUDGED = """CREATE VIEW judged AS
SELECT student_id, grade_id, attempt, late_days, counts,
    CASE
        WHEN max_days < late_days THEN 1.0
        ELSE min(1.0, late_days * penalty_per_day)
    END AS late_penalty,
    (SELECT score FROM grades WHERE id = grade_id) AS score
FROM (
    SELECT attempts.*, counts, penalty_per_day, max_days,
        CASE
            WHEN late_s > grace_minutes * 60 THEN (late_s + 86399) / 86400
            ELSE 0
        END AS late_days
    FROM (
        SELECT attempts.*, submitted_s - coalesce(due_s, CAST(strftime('%s', due) AS INTEGER)) AS late_s,
            most, counts, grace_minutes, penalty_per_day, max_days
        FROM attempts JOIN rules ON rules.id = (SELECT max(id) FROM rules)
    ) AS attempts WHERE most IS NULL OR attempt <= most
)"""

BEST = """CREATE VIEW best AS
SELECT student_id, grade_id, attempt, late_days, late_penalty FROM (
    SELECT *, row_number() OVER (
        PARTITION BY student_id ORDER BY score * (1 - late_penalty) DESC, grade_id DESC
    ) AS place FROM judged
) WHERE place = 1"""

# What counts of each student, from all attempts; whoever has no real grade has the last fault of ours.
RECKONED = """CREATE VIEW reckoned AS
SELECT student_id, grade_id, attempt, late_days, late_penalty FROM (
    SELECT *, row_number() OVER (
        PARTITION BY student_id
        ORDER BY CASE counts WHEN 'best' THEN score * (1 - late_penalty) END DESC, grade_id DESC
    ) AS place FROM judged
) WHERE place = 1
UNION ALL
SELECT student_id, max(id), 0, 0, 0.0 FROM grades GROUP BY student_id HAVING max(status != 'needs_regrade') = 0"""

# The same, as it was reckoned when the student's last grade, or the last rules, came in.
COUNTING = """CREATE VIEW counting AS
SELECT standings.student_id, standings.grade_id, attempt, late_days, late_penalty
FROM latest JOIN standings ON standings.id = (
    SELECT max(id) FROM standings WHERE standings.student_id = latest.student_id
)"""

KEPT = "INSERT INTO standings (student_id, grade_id, attempt, late_days, late_penalty) SELECT * FROM reckoned"
STAND = (
    f"CREATE TRIGGER grades_stand AFTER INSERT ON grades BEGIN {KEPT} WHERE student_id = NEW.student_id; END",
    f"CREATE TRIGGER rules_stand AFTER INSERT ON rules BEGIN {KEPT}; END",
)


def grows_only(table: str, verb: str) -> str:
    return (
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, 'the gradebook only grows: no {verb} on {table}'); END"
    )


def upgrade() -> None:
    server = op.get_context().dialect.name == "postgresql"
    for view in ("counting", "best", "judged", "attempts"):
        op.execute(f"DROP VIEW {view}")
    for table, text, seconds in TEXTS:
        op.add_column(table, sa.Column(seconds, sa.BigInteger, nullable=True))
        known = f"seconds_of({text})" if server else f"CAST(strftime('%s', {text}) AS INTEGER)"
        _once(table, f"UPDATE {table} SET {seconds} = {known}", server)
    op.create_table(
        "standings",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("student_id", sa.Text, nullable=False),
        sa.Column("grade_id", sa.Integer, sa.ForeignKey("grades.id"), nullable=False),
        *(sa.Column(name, sa.Integer, nullable=False) for name in ("attempt", "late_days")),
        sa.Column("late_penalty", sa.Double, nullable=False),
    )
    op.create_index("standings_by_student", "standings", ["student_id", "id"])
    for name, where in INDEXES.items():
        op.drop_index(name, "grades")
        op.create_index(name, "grades", ["student_id", "id"], sqlite_where=where, postgresql_where=where)
    if server:
        views, rest = postgresql.VIEWS_0008, (*postgresql.grows_only("standings"), *postgresql.STAND)
    else:
        views = (ATTEMPTS, JUDGED, BEST, RECKONED, COUNTING)
        rest = (grows_only("standings", "UPDATE"), grows_only("standings", "DELETE"), *STAND)
    for statement in (*views, KEPT, *rest):
        op.execute(statement)


def _once(table: str, statement: str, server: bool) -> None:
    """What the trigger of a table refuses otherwise."""
    if server:
        op.execute(f"ALTER TABLE {table} DISABLE TRIGGER {table}_no_update")
        op.execute(statement)
        op.execute(f"ALTER TABLE {table} ENABLE TRIGGER {table}_no_update")
        return
    op.execute(f"DROP TRIGGER {table}_no_update")
    op.execute(statement)
    op.execute(grows_only(table, "UPDATE"))
