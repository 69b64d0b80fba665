"""Lays out the results folder: a page and a results.json for each student, the class's grades and leaderboard."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from grader.errors import InfrastructureError, UsageError
from grader.export import gradescope_results, write_canvas_csv, write_grades_csv, write_moodle_csv, write_results
from grader.feedback import feedback_html
from grader.leaderboard import Baseline, Row, leaderboard_csv, leaderboard_html, rows
from grader.types import Assignment, Grade

GRADEBOOK = "gradebook.sqlite"
BASELINES = "baselines.json"


def write_student(out: Path, grade: Grade, assignment: Assignment) -> None:
    """One student's feedback page and Gradescope file. Raises InfrastructureError if the disk refuses."""
    html = feedback_html(grade, assignment.checks, assignment_title=assignment.title)
    write_text(out / "feedback" / f"{grade.student_id}.html", html)
    results = out / "results" / f"{grade.student_id}.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    write_results(results, gradescope_results(grade, assignment.checks))


def write_class(out: Path, grades: Sequence[Grade], assignment: Assignment, baselines: Mapping[str, float]) -> None:
    """grades.csv, the leaderboard as CSV and as a page. Raises InfrastructureError if the disk refuses."""
    write_grades_csv(out / "grades.csv", grades, assignment=assignment.name, duedate=assignment.duedate)
    write_canvas_csv(out / "canvas.csv", grades, assignment=assignment.name, max_score=_max_score(grades))
    write_moodle_csv(out / "moodle.csv", grades)
    write_text(out / BASELINES, json.dumps(dict(baselines), indent=2) + "\n")
    board = board_rows(out, grades, assignment)
    write_text(out / "leaderboard.csv", leaderboard_csv(board))
    write_text(out / "leaderboard.html", leaderboard_html(board, assignment_title=assignment.title))
    for grade in grades:  # a page that was deleted comes back, without the cells of the notebook
        if not (out / "feedback" / f"{grade.student_id}.html").exists():
            write_student(out, grade, assignment)


def _max_score(grades: Sequence[Grade]) -> float:
    return max((grade.max_score for grade in grades), default=0.0)


def board_rows(out: Path, grades: Sequence[Grade], assignment: Assignment, *, names: bool = False) -> list[Row]:
    """The leaderboard of a results folder, with its baselines; `names` is for staff."""
    path = out / BASELINES
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        raise UsageError(f"{path} is damaged: delete it, and `grader grade` with -o {out} writes it again.") from None
    lines = [Baseline(name=name, nats_per_char=nats) for name, nats in known.items()]
    return rows(grades, lines, salt=str(assignment.seed), names=names)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises InfrastructureError if the disk refuses."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InfrastructureError(
            f"{path} could not be written: {error.strerror}. Make room, or choose another folder with -o."
        ) from error
