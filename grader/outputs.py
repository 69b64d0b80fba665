"""Lays out the results folder: a page and a results.json for each student, the class's grades and leaderboard.

The notebooks that are kept, as handed in and as they ran, lie in folders whose names begin with a dot: intake looks
into none of those, wherever the results folder lies.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from grader.bench import Bench
from grader.corpus import write_whole
from grader.curves import Panel, curves_html, panels
from grader.disclose import provisos
from grader.errors import InfrastructureError, SubmissionError, UsageError
from grader.export import gradescope_results, write_canvas_csv, write_grades_csv, write_moodle_csv, write_results
from grader.feedback import feedback_html
from grader.intake import read_with_params
from grader.leaderboard import Baseline, Row, leaderboard_csv, leaderboard_html, rows
from grader.marks import Marking
from grader.types import Assignment, Grade, Status, Submission

BASELINES = "baselines.json"
CURVES = "curves.html"
SUBMISSIONS = ".submissions"
EXECUTED = ".executed"

log = logging.getLogger(__name__)


def keep_submission(out: Path, submission: Submission) -> None:
    """Keep a notebook as it was handed in, and the weights beside it, under its hash, once.

    Raises:
        InfrastructureError: the disk refuses. A file that cannot be read any more, or is too large to be graded, is
            left out with a warning: its grade says so itself.
    """
    kept = kept_submission(out, submission.sha256)
    if not submission.path or kept.exists():
        return
    try:
        data, params = read_with_params(submission)
    except (SubmissionError, InfrastructureError) as error:
        log.warning("The notebook of %s is not kept: %s", submission.student_id, error)
        return
    for model, weights in params.items():
        _write(kept.with_suffix("") / f"{model}.params", weights)
    _write(kept, data)


def kept_submission(out: Path, sha256: str) -> Path:
    """Where `keep_submission` puts the notebook with this hash."""
    return out / SUBMISSIONS / f"{sha256}.ipynb"


def kept_params(out: Path, sha256: str) -> dict[str, str]:
    """By model, where `keep_submission` has put the weights that were handed in with it."""
    folder = kept_submission(out, sha256).with_suffix("")
    return {path.stem: str(path) for path in sorted(folder.glob("*.params"))}


def submission_of(out: Path, grade: Grade) -> Submission | None:
    """What was handed in for a grade, as the results folder keeps it; None if it does not."""
    path, sha256 = kept_submission(out, grade.submission_sha256), grade.submission_sha256
    if grade.status is not Status.MISSING and not path.exists():
        return None
    return Submission(
        student_id=grade.student_id,
        path="" if grade.status is Status.MISSING else str(path),
        sha256=sha256,
        submitted_at=grade.submitted_at,
        params=kept_params(out, sha256),
    )


def write_student(out: Path, grade: Grade, assignment: Assignment, marking: Marking) -> None:
    """One student's feedback page and Gradescope file. Raises InfrastructureError if the disk refuses.

    A grade that comes from the gradebook has no executed notebook; the page shows the one kept when it was graded.
    """
    if grade.notebook_json:
        write_executed(out, grade)
    else:
        grade = replace(grade, notebook_json=executed(out, grade))
    html = feedback_html(grade, assignment.checks, assignment_title=assignment.title, marking=marking)
    write_text(_page(out, grade), html)
    write_results(_results_path(out, grade), gradescope_results(grade, assignment.checks, marking=marking))


def write_class(
    out: Path, grades: Sequence[Grade], assignment: Assignment, baselines: Sequence[Baseline], marking: Marking
) -> None:
    """The leaderboard as CSV and as a page, and all that `write_grades` writes. Raises InfrastructureError."""
    write_text(out / BASELINES, json.dumps([asdict(line) for line in baselines]) + "\n")
    board, open_board = (board_rows(out, grades, assignment, open_class=one) for one in (False, True))
    write_text(out / "leaderboard.csv", leaderboard_csv(board))
    write_text(out / "leaderboard-open.csv", leaderboard_csv(open_board))
    write_text(out / "leaderboard.html", leaderboard_html(board, open_board, assignment_title=assignment.title))
    write_grades(out, grades, assignment, marking)


def write_grades(out: Path, grades: Sequence[Grade], assignment: Assignment, marking: Marking) -> None:
    """grades.csv, canvas.csv, moodle.csv, and each student's files that do not say what the gradebook says.

    Those are the students who were marked since, whose page was deleted, or where a kill came between a record and
    its page. Raises InfrastructureError if the disk refuses.
    """
    name, possible = assignment.name, max((marking.of(grade).possible for grade in grades), default=0.0)
    path, people, duedate = out / "grades.csv", assignment.roster, assignment.duedate
    write_grades_csv(path, grades, assignment=name, duedate=duedate, marking=marking, people=people)
    write_canvas_csv(out / "canvas.csv", grades, assignment=name, max_score=possible, marking=marking, people=people)
    write_moodle_csv(out / "moodle.csv", grades, marking=marking, people=people)
    for grade in grades:
        results = gradescope_results(grade, assignment.checks, marking=marking)
        if not _page(out, grade).exists() or _read_json(_results_path(out, grade)) != results:
            write_student(out, grade, assignment, marking)


def missing_files(out: Path, latest: Iterable[tuple[str, str, Status]]) -> list[tuple[Path, str]]:
    """Files that should lie here for the latest grades (student, sha256, status), and how to have each again."""
    again = "the `grader grade` command of this folder writes it again."
    found = [(out / name, again) for name in ("grades.csv", "leaderboard.csv", "leaderboard.html")]
    for student, sha256, status in latest:
        found += [(_student_file(out, *kind, student), again) for kind in (("feedback", ".html"), ("results", ".json"))]
        if status is not Status.MISSING:
            found.append((kept_submission(out, sha256), f"hand in the notebook of {student} once more, to keep it."))
    return [(path, how) for path, how in found if not path.exists()]


def students_shown(out: Path) -> set[str]:
    """Whoever has a page or a results.json here."""
    return {path.stem for pattern in ("feedback/*.html", "results/*.json") for path in out.glob(pattern)}


def work_of(out: Path, grade: Grade) -> Path:
    """Where a person reads the work: the feedback page if it shows the notebook as it ran, else what was handed in."""
    return _page(out, grade) if executed(out, grade) else kept_submission(out, grade.submission_sha256)


def _page(out: Path, grade: Grade) -> Path:
    return _student_file(out, "feedback", ".html", grade.student_id)


def _results_path(out: Path, grade: Grade) -> Path:
    return _student_file(out, "results", ".json", grade.student_id)


def _student_file(out: Path, folder: str, suffix: str, student: str) -> Path:
    return out / folder / f"{student}{suffix}"


def _executed_path(out: Path, grade: Grade) -> Path:
    return out / EXECUTED / f"{grade.student_id}.json"


def write_executed(out: Path, grade: Grade) -> None:
    """Keep the notebook as it ran. Raises InfrastructureError if the disk refuses."""
    write_text(_executed_path(out, grade), json.dumps({"key": grade.key, "notebook_json": grade.notebook_json}))


def executed(out: Path, grade: Grade) -> str:
    """The notebook as it ran for this very grade; empty if it is not there: it is for showing only."""
    kept = _read_json(_executed_path(out, grade))
    return str(kept["notebook_json"]) if isinstance(kept, dict) and kept.get("key") == grade.key else ""


def _read_json(path: Path) -> Any:
    """What a file of ours holds; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def board_rows(
    out: Path, grades: Sequence[Grade], assignment: Assignment, *, names: bool = False, open_class: bool = False
) -> list[Row]:
    """The leaderboard of a results folder, or that of its open class, with baselines; `names` is for staff."""
    path = out / BASELINES
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        lines = [Baseline(**{**line, "block_nats": tuple(line["block_nats"])}) for line in known]
    except (ValueError, TypeError, KeyError):
        raise UsageError(f"{path} is damaged: delete it, and `grader grade` with -o {out} writes it again.") from None
    return rows(grades, lines, salt=str(assignment.seed), names=names, open_class=open_class)


def write_curves(out: Path, bench: Bench, grades: Sequence[Grade]) -> list[Panel]:
    """The credit curves of a profile, with the scores of those who were measured on the same texts, as a page."""
    alike = [grade for grade in grades if grade.data_sha256 == bench.split.sha256]
    drawn = panels(bench.profile.curves, bench.yardsticks, alike)
    text = curves_html(drawn, bench.assignment.title, bench.profile.name, provisos(alike))
    write_text(out / CURVES, text)
    return drawn


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises InfrastructureError if the disk refuses."""
    _write(path, text.encode("utf-8"))


def _write(path: Path, data: bytes) -> None:
    try:
        write_whole(path, data)
    except OSError as error:
        raise InfrastructureError(
            f"{path} could not be written: {error.strerror}. Make room, or choose another folder with -o."
        ) from error
