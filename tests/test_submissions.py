"""Every example submission is graded for real, and comes to exactly what its expect.yaml says."""

from __future__ import annotations

import csv
import ctypes
import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from grader.config import load_assignment
from grader.gradebook import Gradebook
from grader.types import Grade
from tests.submissions.build import build_class, expectation, names

ROOT = Path(__file__).parents[1]
PR_SET_CHILD_SUBREAPER = 36
pytestmark = pytest.mark.slow


def run_grader(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "grader.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def mine() -> set[int]:
    """Processes of this one that are no part of the batch; from here on its orphans become children of this one."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory, mine: set[int]) -> Path:
    """The results folder of the whole class."""
    folder = tmp_path_factory.mktemp("class")
    build_class(folder / "submitted")
    done = run_grader("grade", folder / "submitted", "-o", folder / "out", "--profile", "smoke", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.fixture(scope="module")
def grades(graded: Path) -> dict[str, Grade]:
    with Gradebook.open(graded / "gradebook.sqlite", create=False) as book:
        return {grade.student_id: grade for grade in book.latest()}


@pytest.mark.parametrize("name", names())
def test_a_submission_loses_what_it_should_and_nothing_else(name: str, grades: dict[str, Grade]) -> None:
    """Status, flags and the points of every check and model are as expected."""
    expected, grade = expectation(name), grades[name]
    lost = expected["lost"]
    verdicts = {check.check_id: check for check in grade.checks}
    verdicts |= {f"perplexity.{score.model}": score for score in grade.perplexities}
    found = {
        one: verdict.outcome.value
        for one, verdict in verdicts.items()
        if verdict.outcome.value != "PASSED" or verdict.points < verdict.max_points
    }
    if "*" in lost:
        lost = dict.fromkeys(verdicts, lost["*"]) | {one: outcome for one, outcome in lost.items() if one != "*"}
    assert found == lost
    assert grade.status.value == expected["status"]
    assert {flag.kind for flag in grade.flags} == set(expected.get("flags", []))
    assert grade.score == pytest.approx(sum(v.max_points for one, v in verdicts.items() if one not in lost))


def test_the_reference_gets_every_point(grades: dict[str, Grade]) -> None:
    """100 of 100 points in profile smoke."""
    assert (grades["reference"].score, grades["reference"].max_score) == (100.0, 100.0)


def test_the_same_command_again_grades_nothing_and_changes_no_grade(graded: Path) -> None:
    """A finished batch, run again, takes what it has: grades.csv stays the same, byte for byte."""
    before = (graded / "grades.csv").read_bytes()
    done = run_grader("grade", graded.parent / "submitted", "-o", graded, "--profile", "smoke")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already graded") == len(names())
    assert (graded / "grades.csv").read_bytes() == before


def test_every_student_has_a_page_and_a_results_file(graded: Path) -> None:
    """Nobody is left out of the feedback, of Gradescope's files, of the CSV or of the leaderboard."""
    assert {path.stem for path in (graded / "feedback").glob("*.html")} == set(names())
    for name in names():
        results = json.loads((graded / "results" / f"{name}.json").read_text())
        assert 0 <= results["score"] <= 100
    rows = list(csv.DictReader((graded / "grades.csv").read_text().splitlines()))
    assert [row["student_id"] for row in rows] == names()
    board = list(csv.DictReader((graded / "leaderboard.csv").read_text().splitlines()))
    assert len([row for row in board if row["status"] != "baseline"]) == len(names())


def test_no_page_shows_a_hidden_check_or_held_out_text(graded: Path) -> None:
    """The pages quote no line of a hidden check and no passage of the held-out text."""
    from grader.bench import set_up

    assignment = load_assignment(ROOT / "reference")
    held_out = set_up(assignment, assignment.profile("smoke"), "none").split.held_out
    passages = [held_out[i : i + 60] for i in range(0, len(held_out) - 60, 200)]
    for path in [*(graded / "feedback").iterdir(), *(graded / "results").iterdir()]:
        text = path.read_text(encoding="utf-8")
        assert "oracle." not in text
        assert not [passage for passage in passages if passage in text]


def test_nothing_is_left_running(graded: Path, mine: set[int]) -> None:
    """After the batch no sandbox and no kernel is alive: orphans would have become children of this process."""
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if child.pid not in mine and child.status() != psutil.STATUS_ZOMBIE]
