"""Write grades for other systems: Gradescope's results.json, and CSV for nbgrader, Canvas and Moodle.

Unknown is empty in all of them, never zero. Files appear whole or not at all, and the same grades give the
same bytes: nothing here depends on when, or in how many attempts, the grading ran.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from grader.disclose import Item, check_items, provisos, unmeasured
from grader.errors import InfrastructureError
from grader.gradebook import best_score
from grader.marks import UNMARKED, MarkedItem, Marking, Standing
from grader.render import decimals, no_formula, one_line, perplexity, plain
from grader.render import points as points_text
from grader.types import Check, Grade, Outcome, PerplexityScore, Person

GRADES_COLUMNS = (
    *("assignment", "duedate", "timestamp", "student_id", "last_name", "first_name", "email"),
    *("raw_score", "late_submission_penalty", "score", "max_score"),  # up to here nbgrader's own
    *("status", "perplexity", "grader_version", "data_sha256"),
)
CANVAS_COLUMNS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")
MOODLE_COLUMNS = (
    *("Identifier", "Full name", "Email address", "Status", "Grade", "Maximum Grade"),
    *("Grade can be changed", "Last modified (submission)", "Last modified (grade)", "Feedback comments"),
)
_OUTPUT_LIMIT = 10_000


NOBODY = Person()


def gradescope_results(
    grade: Grade,
    checks: Sequence[Check],
    *,
    marking: Marking = UNMARKED,
    visibility: str = "visible",
    stdout_visibility: str = "hidden",
) -> dict[str, Any]:
    """One grade as Gradescope's results.json.

    Hidden checks have visibility `visible` there: Gradescope hides a student's total as soon as one test is
    hidden or not yet published, and a hidden check shows its name, points, outcome and hint anyway. Its
    inputs and expected values stay out of sight because they are not in the file (see `grader.disclose`).

    An item that a person marked is a test like the others; one that still waits is named in the output only, and
    counts in no number.

    A grade without a score gives `ungraded_results`. The grader's standard output stays with staff.
    """
    standing = marking.of(grade)
    if standing.score is None:
        return ungraded_results(grade.message, extra_data=_extra(grade))
    tests = [_check_test(item) for item in check_items(grade, checks)]
    tests += [_perplexity_test(score) for score in grade.perplexities if not score.is_open]
    tests += [_mark_test(item) for item in standing.items if not item.waiting]
    for number, test in enumerate(tests, start=1):
        test["number"] = str(number)
    output = [one_line(grade.message)] if grade.message else ["All cells ran."]
    if grade.sandbox == "none":
        output.append("Warning: this was graded without a sandbox, by the instructor's choice.")
    output += [standing.late] if standing.late else []
    output += provisos([grade])
    output += _waiting(standing)
    best = best_score(grade)
    value = perplexity(best.nats_per_char) if best else None
    return _results(
        output,
        score=standing.counts,
        execution_time=round(grade.wall_time_s),
        visibility=visibility,
        stdout_visibility=stdout_visibility,
        extra_data=_extra(grade),
        tests=tests,
        leaderboard=[] if value is None else [{"name": "perplexity", "value": round(value, 4), "order": "asc"}],
    )


def ungraded_results(message: str, *, extra_data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A results.json that says why there is no grade, and holds no number that could be taken for one.

    Gradescope's format wants a score at the top or on the tests. A file with neither is reported there as an
    autograder run that failed: the submission stays without a score until staff run the autograder again,
    where a written score, even 0, would count.
    """
    said = one_line(message) or "A fault of the grader's kept this submission from being graded."
    return _results([said, "This is no zero: nothing was lost, and staff can grade it again."], extra_data=extra_data)


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write results.json whole or not at all.

    Raises:
        InfrastructureError: the file cannot be written, or holds NaN or infinity, which are no JSON.
    """
    try:
        text = json.dumps(results, allow_nan=False, indent=2) + "\n"
    except ValueError as error:
        raise InfrastructureError(f"{path} was not written, a value in it is not finite: {error}.") from error
    _write(path, text)


def write_grades_csv(
    path: Path,
    grades: Iterable[Grade],
    *,
    assignment: str,
    duedate: str = "",
    marking: Marking = UNMARKED,
    people: Mapping[str, Person] | None = None,
    penalties: Mapping[str, float] | None = None,
) -> None:
    """nbgrader's columns, then status, best held-out perplexity, grader version and data; by student id.

    score = max(0, raw_score − late_submission_penalty), as nbgrader has it; both are empty where unknown. The penalty
    is what the rules of the course make of it, `penalties` (points, by student) if it is in there. What
    still waits for a person's mark is left out of the scores and of max_score alike.
    """
    rows = []
    for grade in _by_student(grades):
        person, best, standing = (people or {}).get(grade.student_id, NOBODY), best_score(grade), marking.of(grade)
        raw, penalty = standing.score, (penalties or {}).get(grade.student_id, standing.penalty)
        who = (grade.student_id, person.last_name, person.first_name, person.email)
        score = None if raw is None else max(0.0, raw - penalty)
        points = (
            _number(raw),
            _number(None if raw is None else penalty),
            _number(score),
            _number(standing.max_score),
        )
        value = _number(perplexity(best.nats_per_char) if best else None, digits=6)
        ours = (grade.status.value, value, grade.grader_version, grade.data_sha256)
        rows.append([*_texts(assignment, duedate, grade.submitted_at, *who), *points, *_texts(*ours)])
    _write_csv(path, GRADES_COLUMNS, rows)


def write_canvas_csv(
    path: Path,
    grades: Iterable[Grade],
    *,
    assignment: str,
    max_score: float,
    assignment_id: str = "",
    marking: Marking = UNMARKED,
    people: Mapping[str, Person] | None = None,
    penalties: Mapping[str, float] | None = None,
) -> None:
    """Canvas's gradebook import: one column for the assignment, points possible in the second row.

    `assignment_id` is Canvas's number of the assignment; without one, Canvas asks which assignment is meant.
    What Canvas imports is final: a grade of which a part still waits for a mark is empty.
    """
    title = f"{assignment} ({assignment_id})" if assignment_id else assignment
    rows = [["    Points Possible", "", "", "", "", _number(max_score)]]
    for grade in _by_student(grades):
        person = (people or {}).get(grade.student_id, NOBODY)
        name = ", ".join(filter(None, (person.last_name, person.first_name))) or grade.student_id
        who = _texts(name, person.lms_id, "", grade.student_id, person.section)
        rows.append([*who, _number(_final(marking.of(grade), penalties))])
    _write_csv(path, (*CANVAS_COLUMNS, *_texts(title)), rows)


def write_moodle_csv(
    path: Path,
    grades: Iterable[Grade],
    *,
    marking: Marking = UNMARKED,
    people: Mapping[str, Person] | None = None,
    penalties: Mapping[str, float] | None = None,
) -> None:
    """Moodle's offline grading worksheet. An empty grade leaves what Moodle has as it is.

    A grade of which a part still waits for a mark is empty, and the comments say so.
    """
    rows = []
    for grade in _by_student(grades):
        person = (people or {}).get(grade.student_id, NOBODY)
        name = " ".join(filter(None, (person.first_name, person.last_name))) or grade.student_id
        who = _texts(person.lms_id or grade.student_id, name, person.email, grade.status.value)
        standing = marking.of(grade)
        points = (_number(_final(standing, penalties)), _number(standing.possible))
        rows.append([*who, *points, "Yes", *_texts(grade.submitted_at, "", _comments(standing))])
    _write_csv(path, MOODLE_COLUMNS, rows)


def _results(output: Sequence[str], **values: Any) -> dict[str, Any]:
    """The frame of a results.json; every format is plain text, so that nothing in it is ever markup."""
    found = {name: value for name, value in values.items() if value not in (None, [])}
    return {
        "output": "\n".join(output),
        "output_format": "text",
        "test_output_format": "text",
        "test_name_format": "text",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "extra_data": {},
        "tests": [],
    } | found


def _check_test(item: Item) -> dict[str, Any]:
    lines = [item.word.capitalize()]
    lines += [plain(text, _OUTPUT_LIMIT) for text in (item.observed, item.diagnosis) if text]
    lines += [f"Hint: {plain(item.hint, _OUTPUT_LIMIT)}"] if item.hint else []
    kind = "hidden check" if item.hidden else "visible check"
    tags = [tag for tag in (one_line(item.section), kind) if tag]
    return _test(item.title, item.points, item.max_points, item.passed, lines, tags)


def _perplexity_test(score: PerplexityScore) -> dict[str, Any]:
    lines = [reason] if (reason := one_line(unmeasured(score))) else []
    value = perplexity(score.nats_per_char)
    if score.nats_per_char is not None and value is not None:
        bits = score.nats_per_char / math.log(2)
        nats = f"{score.nats_per_char:.4f} nats/char, {bits:.4f} bits/char"
        lines.append(f"Held-out perplexity {decimals(value)} ({nats}).")
        low, high = perplexity(score.ci_low), perplexity(score.ci_high)
        if low is not None and high is not None:
            lines.append(f"95 % interval: {decimals(low)} to {decimals(high)}.")
    measured = score.outcome is Outcome.PASSED and value is not None
    title = f"Held-out perplexity: {score.model}"
    return _test(title, score.points, score.max_points, measured and score.points > 0, lines, ["perplexity"])


def _mark_test(item: MarkedItem) -> dict[str, Any]:
    lines = [item.word.capitalize()]
    lines += ["This mark was given to an earlier submission."] if item.earlier else []
    lines += [plain(item.comment, _OUTPUT_LIMIT)] if item.comment else []
    tags = [tag for tag in (one_line(item.section), "marked by a person") if tag]
    return _test(item.title, item.points or 0.0, item.max_points, bool(item.points), lines, tags)


def _waiting(standing: Standing) -> list[str]:
    """One sentence on what has no mark yet, or nothing."""
    names = [f"{one_line(item.title)} ({points_text(item.max_points)} points)" for item in standing.waiting]
    return [f"Waiting for a mark: {', '.join(names)}."] if names else []


def _comments(standing: Standing) -> str:
    """What a person wrote, or why there is no grade yet, in one line."""
    said = [standing.grade.message]
    if standing.score is not None:
        for item in standing.items:
            if not item.waiting:
                of = f"{points_text(item.points)} of {points_text(item.max_points)} points"
                said.append(f"{item.title}: {of}. {item.comment}")
        said += [standing.late]
        said += provisos([standing.grade])
        said += _waiting(standing)
    return " ".join(filter(None, (one_line(text, 2000) for text in said)))


def _test(
    title: str, points: float, max_points: float, passed: bool, lines: Sequence[str], tags: Sequence[str]
) -> dict[str, Any]:
    return {
        "score": points,
        "max_score": max_points,
        "status": "passed" if passed else "failed",
        "name": one_line(title),
        "name_format": "text",
        "number": "",
        "output": "\n".join(lines),
        "output_format": "text",
        "tags": list(tags),
        "visibility": "visible",
        "extra_data": {},
    }


def _extra(grade: Grade) -> dict[str, Any]:
    names = ("grader_version", "data_sha256", "profile", "sandbox", "key", "submission_sha256")
    return {"status": grade.status.value} | {name: getattr(grade, name) for name in names}


def _by_student(grades: Iterable[Grade]) -> list[Grade]:
    return sorted(grades, key=lambda grade: grade.student_id)


def _final(standing: Standing, penalties: Mapping[str, float] | None) -> float | None:
    score = standing.final
    penalty = (penalties or {}).get(standing.grade.student_id, standing.penalty)
    return None if score is None else max(0.0, score - penalty)


def _number(number: float | None, *, digits: int = 4) -> str:
    """Rounded so that the last bits of a sum do not show; empty if unknown."""
    return "" if number is None else str(round(float(number), digits))


def _texts(*values: str) -> list[str]:
    return list(map(no_formula, values))


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    _write(path, text.getvalue())


def _write(path: Path, text: str) -> None:
    """Beside the target, then moved over it: a reader sees the old file or the new one, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise InfrastructureError(f"{path} could not be written ({error.strerror}): nothing was changed.") from error
