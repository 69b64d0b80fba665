"""What assignment.yaml says of attempts and lateness, and what that comes to.

The gradebook's views decide the same by the rules that are recorded in it; here it is for rules that are not.
"""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Any

from grader.errors import AssignmentError
from grader.types import Rules

ATTEMPTS = ("count", "counts")
LATE = ("due", "grace_minutes", "penalty_per_day", "max_days")


def read_rules(path: Path, raw: dict[str, Any], duedate: str) -> Rules:
    """The entries `attempts` and `late`, taken out of `raw`; where `late` names no time, `duedate` is due.

    Raises:
        AssignmentError: names the entry that is wrong, and what was expected.
    """
    attempts, late = (_mapping(path, raw, name, known) for name, known in (("attempts", ATTEMPTS), ("late", LATE)))
    counts = attempts.get("counts", "latest")
    if counts not in ("latest", "best"):
        raise AssignmentError(f"{path}: `attempts: counts` is {counts!r}; expected latest or best.")
    rules = {"most": _whole(path, "attempts: count", attempts.get("count"), least=1), "counts": counts}
    if not late:
        return Rules(**rules)
    due = _moment(path, late.get("due", duedate))
    if "due" in late and duedate and _moment(path, duedate) != due:
        raise AssignmentError(f"{path}: `late: due` is {due} and `duedate` is {duedate}; name one of them only.")
    share = _number(path, "late: penalty_per_day", late.get("penalty_per_day", 0))
    if share > 1:
        raise AssignmentError(f"{path}: `late: penalty_per_day` is {share:g}; expected a share from 0 to 1, as in 0.1.")
    return Rules(
        **rules,
        due=due,
        grace_minutes=_number(path, "late: grace_minutes", late.get("grace_minutes", 0)),
        penalty_per_day=share,
        max_days=_whole(path, "late: max_days", late.get("max_days"), least=0),
    )


def lateness(rules: Rules, due_s: int | None, submitted_s: int | None) -> tuple[int, float]:
    """The begun days that something was late, and the share of the score that they cost; without a time, none.

    Both times are in seconds since 1970; `due_s` is that of `rules.due`.
    """
    if due_s is None or submitted_s is None:
        return 0, 0.0
    late_s = submitted_s - due_s
    days = -(-late_s // 86400) if late_s > rules.grace_minutes * 60 else 0
    if rules.max_days is not None and days > rules.max_days:
        return days, 1.0
    return days, min(1.0, days * rules.penalty_per_day)


def rank(rules: Rules, score: float | None, late_penalty: float) -> float:
    """What decides which of a student's attempts counts; of equals it is the later one."""
    return 0.0 if rules.counts == "latest" else (score or 0.0) * (1 - late_penalty)


def _mapping(path: Path, raw: dict[str, Any], name: str, known: tuple[str, ...]) -> dict[str, Any]:
    found = raw.pop(name, {})
    if not isinstance(found, dict) or set(found) - set(known):
        raise AssignmentError(f"{path}: `{name}` should be a mapping with {', '.join(known)}, each of them optional.")
    return found


def _moment(path: Path, value: Any) -> str:
    """A time with a time zone, as ISO 8601; YAML makes a datetime of one that is not in quotes."""
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value.replace("Z", "+00:00"))
    except (ValueError, AttributeError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise AssignmentError(
            f"{path}: lateness needs a time with a time zone in `late: due` or `duedate`, as in "
            f'"2026-03-02T23:59:00+01:00"; it is {str(value)!r}.'
        )
    return moment.isoformat()


def _number(path: Path, name: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise AssignmentError(f"{path}: `{name}` is {value!r}; expected a number, 0 or more.")
    return float(value)


def _whole(path: Path, name: str, value: Any, *, least: int) -> int | None:
    if value is not None and (type(value) is not int or value < least):
        raise AssignmentError(
            f"{path}: `{name}` is {value!r}; expected a whole number from {least}, or null for no limit."
        )
    return value
