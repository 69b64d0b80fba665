"""What a gradebook in MySQL or MariaDB has beside its tables and views: triggers, in the words of both.

They change no row back and hide none: TRUNCATE, which asks no trigger there, needs the right to drop tables.
"""

from __future__ import annotations

from collections.abc import Iterable

from grader.tables import RECKON_COLUMNS

_REFUSE = "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT"
_KEPT = f"INSERT INTO standings ({RECKON_COLUMNS}) SELECT {RECKON_COLUMNS} FROM reckoned"

BODIES = {
    "grades_of_their_student BEFORE INSERT ON grades": (
        "IF NEW.student_id != (SELECT student_id FROM submissions WHERE id = NEW.submission_id) THEN "
        f"{_REFUSE} = 'a grade is of the student who handed in'; END IF"
    ),
    "grades_stand AFTER INSERT ON grades": f"{_KEPT} WHERE student_id = NEW.student_id",
    "rules_stand AFTER INSERT ON rules": _KEPT,
}


def triggers(tables: Iterable[str]) -> dict[str, str]:
    """By name, time and table, the body of each trigger."""
    return BODIES | {
        f"{table}_no_{verb.lower()} BEFORE {verb} ON {table}": (
            f"{_REFUSE} = 'the gradebook only grows: no {verb} on {table}'"
        )
        for table in tables
        for verb in ("UPDATE", "DELETE")
    }


def statements(tables: Iterable[str]) -> list[str]:
    return [f"CREATE TRIGGER {head} FOR EACH ROW {body}" for head, body in triggers(tables).items()]


def made(tables: Iterable[str]) -> dict[tuple[str, str], str]:
    """By kind and name, the words of all triggers, as the server gives them back."""
    return {("trigger", head.split()[0]): body for head, body in triggers(tables).items()}
