"""What the migrations say to PostgreSQL where SQLite's words are its own: triggers, and the views of what counts.

Released migrations use this: what stands here is added to and not changed.
"""

from __future__ import annotations

from collections.abc import Iterable

ONLY_GROWS = """CREATE FUNCTION only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'the gradebook only grows: no % on %', TG_OP, TG_TABLE_NAME; END
$$"""


def grows_only(table: str) -> list[str]:
    """A trigger for each way in which a row could change or go; for the whole statement, TRUNCATE included."""
    return [
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        "FOR EACH STATEMENT EXECUTE FUNCTION only_grows()"
        for verb in ("UPDATE", "DELETE", "TRUNCATE")
    ]


OF_THEIR_STUDENT = """CREATE FUNCTION of_their_student() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.student_id != (SELECT student_id FROM submissions WHERE id = NEW.submission_id) THEN
        RAISE EXCEPTION 'a grade is of the student who handed in';
    END IF;
    RETURN NEW;
END
$$"""

GRADES_OF_THEIR_STUDENT = (
    "CREATE TRIGGER grades_of_their_student BEFORE INSERT ON grades FOR EACH ROW EXECUTE FUNCTION of_their_student()"
)

# As SQLite's strftime('%s', ...): without a zone it is UTC, and what is no time is null.
SECONDS = r"""CREATE FUNCTION seconds_of(moment text) RETURNS bigint LANGUAGE plpgsql STABLE SET timezone = 'UTC' AS $$
BEGIN
    IF moment !~ '^\d{4}-\d\d-\d\d([T ]\d\d|$)' THEN RETURN NULL; END IF;
    RETURN floor(extract(epoch FROM CAST(moment AS timestamptz)));
EXCEPTION WHEN data_exception THEN RETURN NULL;
END
$$"""

LATEST = """CREATE VIEW latest AS
WITH RECURSIVE students(student_id) AS (
    SELECT min(student_id) FROM grades
    UNION ALL
    SELECT (SELECT min(grades.student_id) FROM grades WHERE grades.student_id > students.student_id) FROM students
    WHERE students.student_id IS NOT NULL
)
SELECT student_id, coalesce(
    (SELECT max(id) FROM grades WHERE grades.student_id = students.student_id AND status != 'needs_regrade'),
    (SELECT max(id) FROM grades WHERE grades.student_id = students.student_id)
) AS grade_id
FROM students WHERE student_id IS NOT NULL"""

ATTEMPTS = """CREATE VIEW attempts AS
SELECT student_id, sha256, submitted_at, grade_id,
    CAST(sum(handed_in) OVER (PARTITION BY student_id ORDER BY first_id) AS integer) AS attempt
FROM (
    SELECT submissions.student_id, sha256, min(submitted_at COLLATE "C") AS submitted_at, min(grades.id) AS first_id,
        max(grades.id) AS grade_id, max(CASE WHEN status != 'missing' THEN 1 ELSE 0 END) AS handed_in
    FROM grades JOIN submissions ON submissions.id = submission_id
    WHERE status != 'needs_regrade' GROUP BY submissions.student_id, sha256
) AS notebooks"""

JUDGED = """CREATE VIEW judged AS
SELECT student_id, grade_id, attempt, late_days, counts,
    CASE
        WHEN max_days < late_days THEN 1.0
        ELSE least(1.0, late_days * penalty_per_day)
    END AS late_penalty,
    (SELECT score FROM grades WHERE grades.id = grade_id) AS score
FROM (
    SELECT student_id, grade_id, attempt, counts, penalty_per_day, max_days,
        CAST(CASE
            WHEN late_s > grace_minutes * 60 THEN (late_s + 86399) / 86400
            ELSE 0
        END AS integer) AS late_days
    FROM (
        SELECT student_id, grade_id, attempt, seconds_of(submitted_at) - seconds_of(due) AS late_s, most, counts,
            grace_minutes, penalty_per_day, max_days
        FROM attempts JOIN rules ON rules.id = (SELECT max(id) FROM rules)
    ) AS ruled WHERE most IS NULL OR attempt <= most
) AS late"""

BEST = """CREATE VIEW best AS
SELECT student_id, grade_id, attempt, late_days, late_penalty FROM (
    SELECT judged.*, row_number() OVER (
        PARTITION BY student_id ORDER BY score * (1 - late_penalty) DESC NULLS LAST, grade_id DESC
    ) AS place FROM judged
) AS placed WHERE place = 1"""

COUNTING = """CREATE VIEW counting AS
SELECT student_id, grade_id, attempt, late_days, late_penalty FROM (
    SELECT judged.*, row_number() OVER (
        PARTITION BY student_id
        ORDER BY CASE counts WHEN 'best' THEN score * (1 - late_penalty) END DESC NULLS LAST, grade_id DESC
    ) AS place FROM judged
) AS placed WHERE place = 1
UNION ALL
SELECT latest.student_id, grade_id, 0, 0, 0.0 FROM latest JOIN grades ON grades.id = grade_id
WHERE status = 'needs_regrade'"""

VIEWS = (LATEST, ATTEMPTS, JUDGED, BEST, COUNTING)


# From schema 0008 on lateness is a difference of numbers, and what counts of each student is kept as it changes.
ATTEMPTS_0008 = ATTEMPTS.replace("submitted_at, grade_id,", "submitted_at, submitted_s, grade_id,").replace(
    " AS submitted_at, min(",
    " AS submitted_at,\n        min(coalesce(submitted_s, seconds_of(submitted_at))) AS submitted_s, min(",
)
JUDGED_0008 = JUDGED.replace(
    "seconds_of(submitted_at) - seconds_of(due)", "submitted_s - coalesce(due_s, seconds_of(due))"
)
RECKONED = """CREATE VIEW reckoned AS
SELECT student_id, grade_id, attempt, late_days, late_penalty FROM (
    SELECT judged.*, row_number() OVER (
        PARTITION BY student_id
        ORDER BY CASE counts WHEN 'best' THEN score * (1 - late_penalty) END DESC NULLS LAST, grade_id DESC
    ) AS place FROM judged
) AS placed WHERE place = 1
UNION ALL
SELECT student_id, max(id), 0, 0, 0.0 FROM grades GROUP BY student_id HAVING bool_and(status = 'needs_regrade')"""
COUNTING_0008 = """CREATE VIEW counting AS
SELECT standings.student_id, standings.grade_id, attempt, late_days, late_penalty
FROM latest JOIN standings ON standings.id = (
    SELECT max(id) FROM standings WHERE standings.student_id = latest.student_id
)"""
VIEWS_0008 = (ATTEMPTS_0008, JUDGED_0008, BEST, RECKONED, COUNTING_0008)

_KEPT = "INSERT INTO standings (student_id, grade_id, attempt, late_days, late_penalty) SELECT * FROM reckoned"
STAND = (
    f"""CREATE FUNCTION student_stands() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN {_KEPT} WHERE student_id = NEW.student_id; RETURN NULL; END
$$""",
    f"""CREATE FUNCTION all_stand() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN {_KEPT}; RETURN NULL; END
$$""",
    "CREATE TRIGGER grades_stand AFTER INSERT ON grades FOR EACH ROW EXECUTE FUNCTION student_stands()",
    "CREATE TRIGGER rules_stand AFTER INSERT ON rules FOR EACH STATEMENT EXECUTE FUNCTION all_stand()",
)


def made(tables: Iterable[str]) -> dict[tuple[str, str], str]:
    """By kind and name, the words of all the triggers and functions of these tables.

    PostgreSQL gives back a trigger as it was written and a function's body, and rewrites a view.
    """
    triggers = [GRADES_OF_THEIR_STUDENT, *STAND[2:], *(one for table in tables for one in grows_only(table))]
    found = {("trigger", statement.split()[2]): statement for statement in triggers}
    for statement in (ONLY_GROWS, OF_THEIR_STUDENT, SECONDS, *STAND[:2]):
        found["function", statement.split()[2].partition("(")[0]] = statement.split("$$")[1]
    return found
