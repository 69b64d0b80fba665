"""`grader mark`, by the real command: what waits is listed, a mark reaches every file, and stays through regrades."""

from __future__ import annotations

import csv
import fcntl
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from grader.cli import common
from grader.config import load_assignment
from grader.gradebook import Gradebook
from grader.marks import Marking
from grader.outputs import kept_submission, write_class
from grader.place import GRADEBOOK
from grader.types import Grade, Status
from tests.conftest import notebook_of
from tests.small import CHECK, folder_with

ROOT = Path(__file__).parents[1]
MANUAL = [
    {"id": "essay", "title": "The essay", "section": "Part 5", "points": 6, "guide": "SECRET: look for the gap."},
    {"id": "poem", "title": "The poem", "points": 4},
]


def grader(course: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "grader.cli", *arguments]
    options = ["-o", str(course / "out"), "--assignment", str(course / "assignment")]
    return subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)


def grade(course: Path) -> str:
    done = grader(
        course, "grade", str(course / "submitted"), "--profile", "smoke", "--corpus-file", str(course / "text.txt")
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def mark(course: Path, *arguments: str) -> str:
    done = grader(course, "mark", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cells(course: Path, sheet: str, column: str) -> list[str]:
    """A column of a CSV in the results folder, by student."""
    with (course / "out" / f"{sheet}.csv").open(newline="") as file:
        return [row[column] for row in csv.DictReader(file)]


def a_small_grade(student: str, status: Status = Status.GRADED, score: float | None = 2.0) -> Grade:
    return Grade(
        student_id=student,
        submission_sha256="ab" * 32,
        submitted_at="2026-03-01T10:00:00+00:00",
        status=status,
        message="",
        score=score,
        max_score=2.0,
        checks=(),
        perplexities=(),
        flags=(),
        key="k",
        seed=None,
        grader_version="0.1.0",
        data_sha256="cd" * 32,
        profile="smoke",
        sandbox="bubblewrap",
        wall_time_s=1.0,
        graded_at="2026-03-01T11:00:00+00:00",
    )


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """An assignment with one check and two items for a person, and a results folder with three students' grades."""
    (tmp_path / "assignment").mkdir()
    assignment = load_assignment(folder_with(tmp_path / "assignment", curves=False, manual=MANUAL))
    grades = [a_small_grade("ada"), a_small_grade("bob"), a_small_grade("cy", Status.MISSING, 0.0)]
    (tmp_path / "out").mkdir()
    with Gradebook.open(tmp_path / "out" / GRADEBOOK) as book:
        run = book.begin_run(command="grade", profile="smoke", started_at="2026-03-01T09:00:00+00:00")
        for one in grades:
            book.add(run, one)
        write_class(tmp_path / "out", book.latest(), assignment, [], Marking(items=assignment.manual))
    return tmp_path


def test_what_waits_is_listed_with_where_to_read_it(course: Path) -> None:
    """Student, item, points and section in a line for each, what to look for, and the command that enters one."""
    said = mark(course)
    lines = [" ".join(line.split()) for line in said.splitlines()]
    work = kept_submission(course / "out", "ab" * 32)
    assert lines[:4] == [
        f"ada essay 6 points Part 5 {work}",
        f"bob essay 6 points Part 5 {work}",
        f"ada poem 4 points {work}",
        f"bob poem 4 points {work}",
    ]
    assert "SECRET: look for the gap." in said
    assert "grader mark STUDENT ITEM POINTS --comment TEXT -o" in said


def test_a_mark_reaches_every_file_and_leaves_the_list(course: Path) -> None:
    """Page, results.json and the three sheets say it at once; the guide is in none of them."""
    assert "ada: essay 4.5/6" in mark(course, "ada", "essay", "4.5", "--comment", "Well <b>put</b>.")
    assert "3 to mark" in mark(course)
    assert cells(course, "canvas", "hw") == ["12.0", "", "", "0.0"]
    mark(course, "ada", "poem", "0")
    assert cells(course, "grades", "score") == ["6.5", "2.0", "0.0"]
    assert cells(course, "grades", "max_score") == ["12.0", "2.0", "12.0"]
    assert cells(course, "canvas", "hw") == ["12.0", "6.5", "", "0.0"]
    assert cells(course, "moodle", "Grade") == ["6.5", "", "0.0"]
    results = json.loads((course / "out" / "results" / "ada.json").read_text())
    assert (results["score"], [test["score"] for test in results["tests"]]) == (6.5, [4.5, 0.0])
    page = (course / "out" / "feedback" / "ada.html").read_text()
    assert "Well &lt;b&gt;put&lt;/b&gt;." in page
    for path in (course / "out").rglob("*.*"):
        assert path.is_dir() or b"SECRET" not in path.read_bytes()
    with Gradebook.open(course / "out" / GRADEBOOK) as book:
        [essay, _] = book.marks().values()
    assert (essay.points, essay.comment, essay.submission_sha256) == (4.5, "Well <b>put</b>.", "ab" * 32)
    assert essay.marked_by
    assert essay.marked_at.endswith("+00:00")


def test_when_all_is_marked_the_list_says_so(course: Path) -> None:
    """Nothing is left, and no guide is printed."""
    for student in ("ada", "bob"):
        for item in ("essay", "poem"):
            mark(course, student, item, "1")
    assert mark(course) == "nothing waits for a mark\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["eve", "essay", "3"], "there is no student 'eve' in"),
        (["ada", "novel", "3"], "there is no item 'novel' to mark: choose one of essay, poem."),
        (["ada", "f", "3"], "there is no item 'f' to mark"),
        (["ada", "essay", "three"], "the points 'three' are no number: give essay from 0 to 6"),
        (["ada", "essay", "-1"], "-1 points cannot be given: essay has from 0 to 6."),
        (["ada", "essay", "6.5"], "6.5 points cannot be given: essay has from 0 to 6."),
        (["ada", "essay", "nan"], "the points 'nan' are no number"),
        (["ada", "essay"], "give STUDENT, ITEM and POINTS"),
        (["--comment", "fine"], "give STUDENT, ITEM and POINTS"),
        (["ada", "essay", "3", "4"], "unexpected extra argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_entered_gets_one_sentence(course: Path, arguments: list[str], sentence: str) -> None:
    """Exit code 2, one line that says what was expected, and no mark on record."""
    done = grader(course, "mark", *arguments)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    with Gradebook.open(course / "out" / GRADEBOOK) as book:
        assert book.marks() == {}


def test_an_assignment_without_such_items_has_nothing_to_mark(course: Path) -> None:
    """The list is empty, and what is typed for an item is refused."""
    folder_with(course / "assignment", curves=False)
    assert mark(course) == "nothing waits for a mark\n"
    done = grader(course, "mark", "ada", "essay", "3")
    assert done.returncode == 2
    assert "there is no item 'essay' to mark" in done.stderr


def test_nobody_marks_while_a_batch_writes(course: Path) -> None:
    """Two writers of one results folder would undo each other's files; reading the list is free."""
    with (course / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = grader(course, "mark", "ada", "essay", "3")
        assert done.returncode == 2
        assert "is writing to" in done.stderr
        assert "4 to mark" in mark(course)


def test_a_marker_without_a_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container a user id may have no name; the mark is taken all the same."""

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(common.getpass, "getuser", nameless)
    assert common.login_name() == "unknown"


def test_marks_stay_when_a_class_is_graded_again(course: Path) -> None:
    """A changed check, then another notebook: marks count all along, pages keep cells, an old mark is listed."""
    letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz ", k=180_000)
    (course / "text.txt").write_text("".join(letters))
    (course / "assignment" / "checks" / "test_f.py").write_text(CHECK)
    folder_with(course / "assignment", corpus="time-machine", curves=False, manual=MANUAL)
    notebook = course / "submitted" / "ada" / "homework.ipynb"
    notebook.parent.mkdir(parents=True)
    (course / "submitted" / "bob").mkdir()
    first = notebook_of("print('a line of mine')\ndef f(x): return x + x")
    notebook.write_bytes(first)
    page = course / "out" / "feedback" / "ada.html"
    for path in (course / "out").iterdir():
        if path.is_file():
            path.unlink()

    said = grade(course)
    assert "2 to be marked by a person" in said
    assert f"grader mark -o {course / 'out'}\n" in said
    assert str(page) in mark(course)
    mark(course, "ada", "essay", "4.5")
    mark(course, "ada", "poem", "4")
    assert "a line of mine" in page.read_text()
    assert cells(course, "canvas", "hw") == ["12.0", "10.5", "0.0"]

    (course / "assignment" / "checks" / "test_f.py").write_text(CHECK.replace("== 4", "== 5"))
    said = grade(course)
    assert "to be marked" not in said
    assert "8.5/12" in said
    assert cells(course, "canvas", "hw") == ["12.0", "8.5", "0.0"]
    assert "a line of mine" in page.read_text()

    notebook.write_bytes(notebook_of("print('another line')\ndef f(x): return 5"))
    assert "2 to be marked by a person" in grade(course)
    assert cells(course, "canvas", "hw") == ["12.0", "10.5", "0.0"]
    assert "marked on an earlier submission: 4.5" in mark(course)
    assert "another line" in page.read_text()
    assert len(list((course / "out" / ".submissions").iterdir())) == 2
    mark(course, "ada", "essay", "6")
    assert "marked on an earlier submission: 4.5" not in mark(course)
    assert "a line of mine" not in page.read_text()
    assert cells(course, "grades", "score") == ["12.0", "0.0"]
