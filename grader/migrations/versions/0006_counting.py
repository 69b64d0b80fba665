"""Which grade of a student counts: the rules of a course, and views of the latest, the best and the counting grade."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from grader.migrations import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Students by jumping from each to the next in an index, and for each the end of an index: no grade but these is read.
LATEST = """CREATE VIEW latest AS
WITH RECURSIVE students(student_id) AS (
    SELECT min(student_id) FROM grades
    UNION ALL
    SELECT (SELECT min(student_id) FROM grades WHERE student_id > students.student_id) FROM students
    WHERE students.student_id IS NOT NULL
)
SELECT student_id, coalesce(
    (SELECT max(id) FROM grades WHERE grades.student_id = students.student_id AND status != 'needs_regrade'),
    (SELECT max(id) FROM grades WHERE grades.student_id = students.student_id)
) AS grade_id
FROM students WHERE student_id IS NOT NULL"""

# One row for each student and notebook that has a real grade. The same notebook graded again, or handed in again, is
# the same attempt, of the time when it was first handed in; to hand in nothing is none. A fault of ours uses none up.
ATTEMPTS = """CREATE VIEW attempts AS
SELECT student_id, sha256, submitted_at, grade_id,
    sum(handed_in) OVER (PARTITION BY student_id ORDER BY first_id) AS attempt
FROM (
    SELECT submissions.student_id, sha256, min(submitted_at) AS submitted_at, min(grades.id) AS first_id,
        max(grades.id) AS grade_id, max(status != 'missing') AS handed_in
    FROM grades JOIN submissions ON submissions.id = submission_id
    WHERE status != 'needs_regrade' GROUP BY submissions.student_id, sha256
)"""

# Each attempt under the rules that hold: how many days it is late, begun ones as whole, and the share that this costs.
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
        SELECT attempts.*, strftime('%s', submitted_at) - strftime('%s', due) AS late_s, most, counts,
            grace_minutes, penalty_per_day, max_days
        FROM attempts JOIN rules ON rules.id = (SELECT max(id) FROM rules)
    ) AS attempts WHERE most IS NULL OR attempt <= most
)"""

BEST = """CREATE VIEW best AS
SELECT student_id, grade_id, attempt, late_days, late_penalty FROM (
    SELECT *, row_number() OVER (
        PARTITION BY student_id ORDER BY score * (1 - late_penalty) DESC, grade_id DESC
    ) AS place FROM judged
) WHERE place = 1"""

COUNTING = """CREATE VIEW counting AS
SELECT student_id, grade_id, attempt, late_days, late_penalty FROM (
    SELECT *, row_number() OVER (
        PARTITION BY student_id
        ORDER BY CASE counts WHEN 'best' THEN score * (1 - late_penalty) END DESC, grade_id DESC
    ) AS place FROM judged
) WHERE place = 1
UNION ALL
SELECT latest.student_id, grade_id, 0, 0, 0.0 FROM latest JOIN grades ON grades.id = grade_id
WHERE status = 'needs_regrade'"""


def grows_only(table: str, verb: str) -> str:
    return (
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, 'the gradebook only grows: no {verb} on {table}'); END"
    )


def upgrade() -> None:
    op.create_table(
        "rules",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("most", sa.Integer, nullable=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("counts", "due")),
        *(sa.Column(name, sa.Double, nullable=False) for name in ("grace_minutes", "penalty_per_day")),
        sa.Column("max_days", sa.Integer, nullable=True),
    )
    if op.get_context().dialect.name == "postgresql":
        _postgresql()
        return
    for verb in ("UPDATE", "DELETE"):
        op.execute(grows_only("rules", verb))
    op.execute("INSERT INTO rules (counts, due, grace_minutes, penalty_per_day) VALUES ('latest', '', 0, 0)")
    # whose grade it is stands in the grade, too: one index then leads from a student to the latest grade
    op.add_column("grades", sa.Column("student_id", sa.Text, nullable=False, server_default=""))
    op.execute("DROP TRIGGER grades_no_update")
    op.execute("UPDATE grades SET student_id = (SELECT student_id FROM submissions WHERE id = submission_id)")
    op.execute(grows_only("grades", "UPDATE"))
    op.execute(
        "CREATE TRIGGER grades_of_their_student BEFORE INSERT ON grades "
        "WHEN NEW.student_id != (SELECT student_id FROM submissions WHERE id = NEW.submission_id) "
        "BEGIN SELECT RAISE(ABORT, 'a grade is of the student who handed in'); END"
    )
    op.create_index("grades_by_student", "grades", ["student_id"])
    real = sa.text("status != 'needs_regrade'")
    op.create_index("real_grades_by_student", "grades", ["student_id"], sqlite_where=real)
    op.create_index("real_grades_by_submission", "grades", ["submission_id", "status"], sqlite_where=real)
    for view in (LATEST, ATTEMPTS, JUDGED, BEST, COUNTING):
        op.execute(view)


def _postgresql() -> None:
    """The same; there is no grade of an earlier schema to fill in, as the first of these gradebooks had this one."""
    refuse = (*postgresql.grows_only("rules"), postgresql.OF_THEIR_STUDENT, postgresql.GRADES_OF_THEIR_STUDENT)
    op.execute("INSERT INTO rules (counts, due, grace_minutes, penalty_per_day) VALUES ('latest', '', 0, 0)")
    op.add_column("grades", sa.Column("student_id", sa.Text, nullable=False, server_default=""))
    op.create_index("grades_by_student", "grades", ["student_id"])
    real = sa.text("status != 'needs_regrade'")
    op.create_index("real_grades_by_student", "grades", ["student_id"], postgresql_where=real)
    op.create_index("real_grades_by_submission", "grades", ["submission_id", "status"], postgresql_where=real)
    for statement in (*refuse, postgresql.SECONDS, *postgresql.VIEWS):
        op.execute(statement)
