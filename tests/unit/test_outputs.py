"""The results folder: what is kept, what is written again, and that nothing in it is taken for a submission."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from records import ITEMS, a_grade, a_mark, marking

from grader import outputs
from grader.config import load_assignment
from grader.errors import InfrastructureError
from grader.intake import collect
from grader.outputs import keep_submission, kept_submission, work_of, write_class, write_grades, write_student
from grader.types import Assignment, Grade, Status, Submission
from tests.conftest import notebook_of
from tests.small import folder_with

NOTEBOOK = notebook_of("print('a line of their own')").decode()


@pytest.fixture
def assignment(tmp_path: Path) -> Assignment:
    folder = tmp_path / "assignment"
    folder.mkdir()
    entries = [
        {"id": item.id, "title": item.title, "points": item.points, "section": item.section, "guide": item.guide}
        for item in ITEMS
    ]
    return load_assignment(folder_with(folder, manual=entries))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def page(out: Path, student: str = "ada") -> str:
    return (out / "feedback" / f"{student}.html").read_text()


def results(out: Path, student: str = "ada") -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "results" / f"{student}.json").read_text())
    return found


def recorded(grade: Grade) -> Grade:
    """The grade as the gradebook gives it back: without its notebook."""
    return a_grade(grade.student_id, key=grade.key, score=grade.score)


def files(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


# --- marks ---


def test_a_mark_comes_to_the_page_and_the_cells_stay(out: Path, assignment: Assignment) -> None:
    """The page that is written again after a mark still shows the notebook as it ran."""
    grade = a_grade(score=62.5, notebook_json=NOTEBOOK)
    write_student(out, grade, assignment, marking())
    assert "a line of their own" in page(out)
    write_grades(out, [recorded(grade)], assignment, marking(a_mark(comment="Well put.")))
    assert "Well put." in page(out)
    assert "a line of their own" in page(out)
    assert results(out)["score"] == 67.0
    assert "67.0" in (out / "grades.csv").read_text()


def test_every_sheet_knows_the_marks(out: Path, assignment: Assignment) -> None:
    """A fully marked grade is final everywhere, and Canvas's points possible include what a person gives."""
    write_class(out, [a_grade(score=62.5)], assignment, [], marking(a_mark(), a_mark("poem", 4.0)))
    for name in ("grades.csv", "canvas.csv", "moodle.csv"):
        assert "71.0" in (out / name).read_text()
        assert "110.0" in (out / name).read_text()
    assert results(out)["score"] == 71.0


def test_points_possible_do_not_shrink_while_marks_are_missing(out: Path, assignment: Assignment) -> None:
    """What an assignment is out of does not depend on how far the marking has come."""
    write_class(out, [a_grade(score=62.5)], assignment, [], marking())
    assert "    Points Possible,,,,,110.0" in (out / "canvas.csv").read_text()


def test_nothing_is_written_again_without_a_reason(out: Path, assignment: Assignment) -> None:
    """A second round over the same grades and marks touches no student's file."""
    grade = a_grade(notebook_json=NOTEBOOK)
    write_student(out, grade, assignment, marking(a_mark()))
    before = files(out)
    write_grades(out, [recorded(a_grade())], assignment, marking(a_mark()))
    after = files(out)
    assert {path: after[path] for path in before} == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda out: (out / "feedback" / "ada.html").unlink(),
        lambda out: (out / "results" / "ada.json").unlink(),
        lambda out: (out / "results" / "ada.json").write_text('{"score": 10'),
    ],
    ids=["page gone", "results gone", "half a file"],
)
def test_what_is_gone_comes_back(out: Path, assignment: Assignment, damage: Callable[[Path], None]) -> None:
    """With the cells of the notebook, and the marks."""
    write_student(out, a_grade(score=62.5, notebook_json=NOTEBOOK), assignment, marking(a_mark()))
    whole = (page(out), results(out))
    damage(out)
    write_grades(out, [a_grade(score=62.5)], assignment, marking(a_mark()))
    assert (page(out), results(out)) == whole


def test_cells_of_another_run_are_not_shown(out: Path, assignment: Assignment) -> None:
    """A page of a grade shows the notebook that ran for this grade, or none."""
    write_student(out, a_grade(notebook_json=NOTEBOOK), assignment, marking())
    write_student(out, a_grade(key="k2"), assignment, marking())
    assert "a line of their own" not in page(out)
    write_student(out, a_grade(), assignment, marking())
    assert "a line of their own" in page(out)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "k1"'], ids=["empty", "half", "a list", "cut"])
def test_a_damaged_copy_costs_the_cells_only(out: Path, assignment: Assignment, text: str) -> None:
    """The page is written without them."""
    write_student(out, a_grade(notebook_json=NOTEBOOK), assignment, marking())
    (out / ".executed" / "ada.json").write_text(text)
    write_student(out, a_grade(), assignment, marking())
    assert "a line of their own" not in page(out)
    assert "Graded" in page(out)


def test_a_lost_regrade_hides_no_earlier_grade(out: Path, assignment: Assignment) -> None:
    """The page that told of a fault of ours gives way to the grade that counts, cells included."""
    write_student(out, a_grade(score=62.5, notebook_json=NOTEBOOK), assignment, marking())
    write_student(out, a_grade(status=Status.NEEDS_REGRADE, score=None, key="k2"), assignment, marking())
    assert "No score yet" in page(out)
    write_grades(out, [a_grade(score=62.5)], assignment, marking())
    assert "62.5" in page(out)
    assert "a line of their own" in page(out)


def test_a_killed_writer_leaves_the_earlier_page(
    out: Path, assignment: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between any two files, the next round ends in the same files."""
    grade = a_grade(score=62.5, notebook_json=NOTEBOOK)
    write_student(out, grade, assignment, marking())

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    marks = marking(a_mark())
    for step in ("write_results", "write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(outputs, step, killed)
            with pytest.raises(KeyboardInterrupt):
                write_grades(out, [recorded(grade)], assignment, marks)
        assert "a line of their own" in page(out)
    write_grades(out, [recorded(grade)], assignment, marks)
    assert results(out)["score"] == 67.0
    assert "67" in page(out)
    assert "a line of their own" in page(out)


def test_the_work_is_read_where_it_ran(out: Path, assignment: Assignment) -> None:
    """A marker is sent to the page with the notebook as it ran; where nothing ran, to what was handed in."""
    write_student(out, a_grade(notebook_json=NOTEBOOK), assignment, marking())
    assert work_of(out, a_grade()) == out / "feedback" / "ada.html"
    assert work_of(out, a_grade(key="k2")) == kept_submission(out, a_grade().submission_sha256)


# --- submissions ---


def submission(path: Path) -> Submission:
    return collect(path, path.parent / "work")[0]


def test_a_notebook_is_kept_as_it_was_handed_in(tmp_path: Path, out: Path) -> None:
    """Under the hash of its bytes, and still there when the student hands in another."""
    path = tmp_path / "ada.ipynb"
    for text in ("first", "second"):
        path.write_text(text)
        keep_submission(out, submission(path))
        before = files(out)
        keep_submission(out, submission(path))
        assert files(out) == before
    kept = {file.name: file.read_text() for file in (out / ".submissions").iterdir()}
    assert kept == {f"{hashlib.sha256(text.encode()).hexdigest()}.ipynb": text for text in ("first", "second")}
    assert kept_submission(out, hashlib.sha256(b"first").hexdigest()).read_text() == "first"


def test_nothing_handed_in_is_nothing_to_keep(out: Path) -> None:
    """A missing submission leaves no file."""
    keep_submission(out, Submission(student_id="ada", path="", sha256=hashlib.sha256().hexdigest(), submitted_at=""))
    assert not out.exists()


def test_a_file_that_changed_meanwhile_is_not_kept_as_another(tmp_path: Path, out: Path) -> None:
    """Gone, changed or too large: the batch goes on, and no wrong bytes lie under the hash."""
    path = tmp_path / "ada.ipynb"
    path.write_text("first")
    collected = submission(path)
    path.write_text("second")
    keep_submission(out, collected)
    path.unlink()
    keep_submission(out, collected)
    assert not out.exists()


@pytest.mark.parametrize("name", [".submissions", "feedback", ".executed"])
def test_a_disk_that_refuses_is_a_fault_of_ours(tmp_path: Path, out: Path, assignment: Assignment, name: str) -> None:
    """One sentence that names the file; no half file is left."""
    out.mkdir()
    (out / name).write_text("in the way")
    path = tmp_path / "ada.ipynb"
    path.write_text("first")
    with pytest.raises(InfrastructureError, match="could not be written"):  # noqa: PT012
        keep_submission(out, submission(path))
        write_student(out, a_grade(notebook_json=NOTEBOOK), assignment, marking())


@pytest.mark.parametrize(
    ("handed_in", "results_folder"),
    [("submissions", "."), ("class", "class"), ("class", "class/out"), ("class", ".")],
)
def test_what_is_kept_is_nobodys_submission(
    tmp_path: Path, assignment: Assignment, handed_in: str, results_folder: str
) -> None:
    """Wherever the results folder lies, the same command again collects the same students."""
    folder, out = tmp_path / "course" / handed_in, tmp_path / "course" / results_folder
    folder.mkdir(parents=True)
    for student in ("ada", "bob"):
        (folder / f"{student}.ipynb").write_text(student)
    first = collect(folder, out / "submissions", exclude=out)
    assert [one.student_id for one in first] == ["ada", "bob"]
    for one in first:
        keep_submission(out, one)
        write_student(out, a_grade(one.student_id, notebook_json=NOTEBOOK), assignment, marking())
    assert collect(folder, out / "submissions", exclude=out) == first
