"""What other systems read: their formats to the letter, no zero for the unknown, no formula, no half file."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from records import HOSTILE, a_grade, a_mark, marking

from grader.disclose import WEAKER_PROMISE
from grader.errors import InfrastructureError
from grader.export import (
    Person,
    gradescope_results,
    ungraded_results,
    write_canvas_csv,
    write_grades_csv,
    write_moodle_csv,
    write_results,
)
from grader.marks import Marking
from grader.types import Check, CheckResult, Grade, ManualItem, Outcome, PerplexityScore, Status

SECRET = "expected 41.5 for inputs 7, 8"
CHECKS = (
    Check(
        id="f.example",
        title="f on an example",
        points=1.0,
        hidden=False,
        hint="Look at the shapes.",
        section="1",
    ),
    Check(id="f", title="f", points=2.0, hidden=True, hint="Carry the state.", section="1"),
)
FAILED = (
    CheckResult(check_id="f", outcome=Outcome.FAILED, points=0.0, max_points=2.0, message=SECRET),
    CheckResult(
        check_id="f.example",
        outcome=Outcome.FAILED,
        points=0.0,
        max_points=1.0,
        message="\x1b[31mgot [3]\x1b[0m",
    ),
)
UNKNOWN = {
    "status": Status.NEEDS_REGRADE,
    "score": None,
    "checks": (),
    "perplexities": (),
    "message": "A worker died.",
}

TOP = {
    *("score", "execution_time", "output", "output_format", "test_output_format", "test_name_format"),
    *("visibility", "stdout_visibility", "extra_data", "tests", "leaderboard"),
}
TEST = {
    *("score", "max_score", "status", "name", "name_format", "number", "output", "output_format"),
    *("tags", "visibility", "extra_data"),
}
VISIBILITIES = {"hidden", "after_due_date", "after_published", "visible"}
FORMATS = {"text", "html", "simple_format", "md", "ansi"}


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def assert_gradescope(results: dict[str, Any]) -> None:
    """Gradescope's published format, key by key."""
    json.dumps(results, allow_nan=False)
    assert set(results) <= TOP
    assert results["visibility"] in VISIBILITIES
    assert results["stdout_visibility"] in VISIBILITIES
    assert {results[name] for name in results if name.endswith("_format")} <= FORMATS
    assert isinstance(results["extra_data"], dict)
    for test in results["tests"]:
        assert set(test) == TEST
        assert is_number(test["score"])
        assert is_number(test["max_score"])
        assert test["status"] in {"passed", "failed"}
        assert {test["name_format"], test["output_format"]} <= FORMATS
        assert test["visibility"] in VISIBILITIES
        assert all(isinstance(test[name], str) for name in ("name", "number", "output"))
        assert all(isinstance(tag, str) for tag in test["tags"])
    for entry in results.get("leaderboard", []):
        assert set(entry) == {"name", "value", "order"}
        assert is_number(entry["value"])


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def grades_csv(path: Path, *grades: Grade, **options: Any) -> list[dict[str, str]]:
    write_grades_csv(path, grades, assignment="hw8", **options)
    return read(path)


# --- Gradescope ---


def test_results_are_as_gradescope_specifies() -> None:
    """A full grade gives a score, a test for each check and model, and the best perplexity, ascending."""
    results = gradescope_results(a_grade(checks=FAILED, score=55.5), CHECKS)
    assert_gradescope(results)
    assert set(results) == TOP
    assert results["score"] == 55.5
    assert [test["number"] for test in results["tests"]] == ["1", "2", "3", "4"]
    assert [test["name"] for test in results["tests"][:2]] == ["f on an example", "f"]
    assert results["leaderboard"] == [
        {"name": "perplexity", "value": pytest.approx(math.exp(1.7), abs=1e-4), "order": "asc"}
    ]


def test_the_student_sees_a_total() -> None:
    """No test is hidden, because one hidden test would hide the student's total."""
    results = gradescope_results(a_grade(checks=FAILED), CHECKS)
    assert {test["visibility"] for test in results["tests"]} == {"visible"}
    assert results["visibility"] == "visible"
    assert results["stdout_visibility"] == "hidden"


def test_a_hidden_check_tells_its_hint_and_nothing_else() -> None:
    """What a hidden check observed is nowhere in the file; what a visible one did is, without colours."""
    results = gradescope_results(a_grade(checks=FAILED), CHECKS)
    assert SECRET not in json.dumps(results)
    visible, hidden = results["tests"][:2]
    assert hidden["output"] == "Failed\nHint: Carry the state."
    assert visible["output"] == "Failed\ngot [3]\nHint: Look at the shapes."


def test_a_result_of_an_unknown_check_counts_as_hidden() -> None:
    """A result whose check is no longer in the assignment shows its id and never what was observed."""
    results = gradescope_results(a_grade(checks=FAILED), ())
    assert SECRET not in json.dumps(results)
    assert {test["output"] for test in results["tests"][:2]} == {"Failed"}


def test_held_out_text_cannot_leave_by_an_exception() -> None:
    """A model that raises the characters it was shown finds its words left out."""
    score = PerplexityScore(
        model="lstm", outcome=Outcome.RAISED, points=0.0, max_points=4.0, message="ValueError: to be or not"
    )
    results = gradescope_results(a_grade(perplexities=(score,)), CHECKS)
    assert "to be or not" not in json.dumps(results)
    assert results["tests"][-1]["output"] == "The model raised an error while it was being scored."


def test_flags_are_not_in_the_students_file() -> None:
    """A flag is a question for staff."""
    assert "MEMORISED" not in json.dumps(gradescope_results(a_grade(), CHECKS))


def test_no_score_no_number() -> None:
    """A grade that could not be given holds no number anywhere that could be taken for a zero."""
    results = gradescope_results(a_grade(**UNKNOWN), CHECKS)
    assert_gradescope(results)
    assert "score" not in results
    assert results["tests"] == []
    assert "leaderboard" not in results
    assert results["output"].startswith("A worker died.\nThis is no zero")
    assert_gradescope(ungraded_results(""))


def test_an_unmeasured_model_gives_no_leaderboard_entry() -> None:
    """Without a measured model there is no perplexity to rank by, and the test says why."""
    score = PerplexityScore(model="rnn", outcome=Outcome.NOT_RUN, points=0.0, max_points=4.0, message="No time.")
    results = gradescope_results(a_grade(perplexities=(score,)), CHECKS)
    assert_gradescope(results)
    assert "leaderboard" not in results
    assert results["tests"][-1]["output"] == "No time."


def test_numbers_that_are_none_never_reach_the_file() -> None:
    """Perplexities beyond floats, NaN and infinity leave a valid file without that number."""
    for nats in (math.nan, math.inf, 1e6, None):
        score = PerplexityScore(
            model="m",
            outcome=Outcome.PASSED,
            points=0.0,
            max_points=4.0,
            nats_per_char=nats,
            ci_low=nats,
            ci_high=nats,
        )
        results = gradescope_results(a_grade(perplexities=(score,)), CHECKS)
        assert_gradescope(results)
        assert "leaderboard" not in results
    assert "score" not in gradescope_results(a_grade(score=math.nan), CHECKS)


def test_a_marked_item_is_a_test_and_a_waiting_one_a_sentence() -> None:
    """Points and comment of what a person marked count in the score; what waits is named, and has no number."""
    results = gradescope_results(a_grade(score=62.5), CHECKS, marking=marking(a_mark(points=4.5)))
    assert_gradescope(results)
    assert results["score"] == 67.0
    essay = results["tests"][-1]
    assert (essay["name"], essay["score"], essay["max_score"]) == ("The essay", 4.5, 6.0)
    assert (essay["status"], essay["output"]) == ("passed", "Marked\nWell put.")
    assert essay["tags"] == ["Part 5", "marked by a person"]
    assert essay["number"] == str(len(results["tests"]))
    assert "Waiting for a mark: The poem (4 points)." in results["output"].splitlines()
    assert "poem" not in json.dumps(results["tests"])


def test_when_all_is_marked_nothing_waits() -> None:
    """No sentence about waiting is left; a mark of zero is a zero, and one for an earlier submission says so."""
    marks = marking(a_mark(points=4.5, submission_sha256="ff" * 32), a_mark("poem", 0.0))
    results = gradescope_results(a_grade(score=62.5), CHECKS, marking=marks)
    assert_gradescope(results)
    assert "Waiting" not in results["output"]
    essay, poem = results["tests"][-2:]
    assert "given to an earlier submission" in essay["output"]
    assert (poem["score"], poem["status"]) == (0.0, "failed")


def test_a_lost_grade_has_no_score_by_a_mark() -> None:
    """What could not be graded stays without any number, marked or not."""
    results = gradescope_results(a_grade(**UNKNOWN), CHECKS, marking=marking(a_mark()))
    assert "score" not in results
    assert results["tests"] == []


@pytest.mark.parametrize("text", [*HOSTILE, "\ud800", "\u202eevil"])
def test_a_comment_is_plain_text(tmp_path: Path, text: str) -> None:
    """Terminal codes, control bytes and direction marks in a comment reach no file."""
    marks = marking(a_mark(comment=text))
    results = gradescope_results(a_grade(), CHECKS, marking=marks)
    assert_gradescope(results)
    write_moodle_csv(tmp_path / "m.csv", [a_grade()], marking=marks)
    for said in (results["tests"][-1]["output"], (tmp_path / "m.csv").read_text()):
        assert not set("\x1b\x00\u202e\ud800") & set(said)


def test_the_guide_of_who_marks_is_in_no_file(tmp_path: Path) -> None:
    """Students read these files."""
    marks = marking(a_mark())
    assert "SECRET" not in json.dumps(gradescope_results(a_grade(), CHECKS, marking=marks))
    write_moodle_csv(tmp_path / "m.csv", [a_grade()], marking=marks)
    assert "SECRET" not in (tmp_path / "m.csv").read_text()


def test_the_weaker_promise_is_said() -> None:
    """Where weights could be handed in, and only there."""
    assert WEAKER_PROMISE in gradescope_results(a_grade(checkpoint=True), CHECKS)["output"]
    assert WEAKER_PROMISE not in gradescope_results(a_grade(), CHECKS)["output"]


def test_no_sandbox_is_said() -> None:
    """Results of a run without a sandbox say so."""
    assert "without a sandbox" in gradescope_results(a_grade(sandbox="none"), CHECKS)["output"]
    assert "without a sandbox" not in gradescope_results(a_grade(), CHECKS)["output"]


def test_results_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """A value that JSON cannot hold leaves the earlier file as it was, and no litter beside it."""
    path = tmp_path / "results" / "results.json"
    write_results(path, ungraded_results("first"))
    with pytest.raises(InfrastructureError, match="not finite"):
        write_results(path, {"score": math.nan})
    assert json.loads(path.read_text())["output"].startswith("first")
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_a_place_that_cannot_be_written_is_said() -> None:
    """A folder that takes no files gives one sentence that names the file."""
    with pytest.raises(InfrastructureError, match=r"/proc/results.json could not be written"):
        write_results(Path("/proc/results.json"), ungraded_results("x"))


# --- CSV ---


def test_grades_csv_has_nbgraders_columns_first(tmp_path: Path) -> None:
    """nbgrader's columns in its order, then ours; numbers rounded, perplexity of the best model."""
    people = {"ada": Person(last_name="Lovelace", first_name="Ada", email="ada@example.org")}
    path = tmp_path / "grades.csv"
    [row] = grades_csv(path, a_grade(), duedate="2026-03-02T00:00:00Z", people=people, penalties={"ada": 0.1})
    header = path.read_text().splitlines()[0]
    assert header == (
        "assignment,duedate,timestamp,student_id,last_name,first_name,email,raw_score,late_submission_penalty,"
        "score,max_score,status,perplexity,grader_version,data_sha256"
    )
    assert row == {
        "assignment": "hw8",
        "duedate": "2026-03-02T00:00:00Z",
        "timestamp": "2026-03-01T10:00:00+00:00",
        "student_id": "ada",
        "last_name": "Lovelace",
        "first_name": "Ada",
        "email": "ada@example.org",
        "raw_score": "0.3",
        "late_submission_penalty": "0.1",
        "score": "0.2",
        "max_score": "100.0",
        "status": "graded",
        "perplexity": str(round(math.exp(1.7), 6)),
        "grader_version": "0.1.0",
        "data_sha256": "cd" * 32,
    }


def test_unknown_is_empty_and_zero_is_zero(tmp_path: Path) -> None:
    """A grade that is not known leaves its cells empty; a real zero is written as one."""
    missing = a_grade("bob", status=Status.MISSING, score=0.0, checks=(), perplexities=())
    rows = grades_csv(tmp_path / "g.csv", missing, a_grade("ada", **UNKNOWN), penalties={"ada": 5.0})
    assert [row["student_id"] for row in rows] == ["ada", "bob"]
    for name in ("raw_score", "late_submission_penalty", "score", "perplexity"):
        assert rows[0][name] == ""
    assert (rows[1]["raw_score"], rows[1]["score"], rows[1]["perplexity"]) == ("0.0", "0.0", "")


def test_a_penalty_never_goes_below_zero(tmp_path: Path) -> None:
    """A late penalty larger than the score leaves zero, as in nbgrader."""
    [row] = grades_csv(tmp_path / "g.csv", a_grade(score=3.0), penalties={"ada": 9.0})
    assert (row["raw_score"], row["score"]) == ("3.0", "0.0")


def test_the_same_grades_give_the_same_bytes(tmp_path: Path) -> None:
    """The order of grading, when it ran and how long it took leave no trace in grades.csv."""
    first = [a_grade("ada"), a_grade("bob")]
    again = [replace(grade, graded_at="2027-01-01", wall_time_s=99.0) for grade in reversed(first)]
    for name, grades in (("a", first), ("b", again)):
        write_grades_csv(tmp_path / f"{name}.csv", grades, assignment="hw8")
        write_canvas_csv(tmp_path / f"{name}.canvas", grades, assignment="hw8", max_score=100)
        write_moodle_csv(tmp_path / f"{name}.moodle", grades)
    for kind in ("csv", "canvas", "moodle"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_a_part_that_waits_is_neither_zero_nor_final(tmp_path: Path) -> None:
    """grades.csv has what is known; Canvas and Moodle, which import final grades, an empty cell until all is marked."""
    missing = a_grade("cy", status=Status.MISSING, score=0.0, checks=(), perplexities=())
    grades = [a_grade("ada", score=62.5), a_grade("bob", score=50.0), missing, a_grade("dee", **UNKNOWN)]
    marks = marking(a_mark(points=4.5), a_mark("poem", 4.0), a_mark(points=2.0, student_id="bob"))
    rows = grades_csv(tmp_path / "g.csv", *grades, marking=marks, penalties={"ada": 1.0})
    assert [(row["raw_score"], row["score"], row["max_score"]) for row in rows] == [
        ("71.0", "70.0", "110.0"),
        ("52.0", "52.0", "106.0"),
        ("0.0", "0.0", "110.0"),
        ("", "", "100.0"),
    ]
    write_canvas_csv(tmp_path / "c.csv", grades, assignment="hw8", max_score=110, marking=marks)
    assert [row["hw8"] for row in read(tmp_path / "c.csv")] == ["110.0", "71.0", "", "0.0", ""]
    write_moodle_csv(tmp_path / "m.csv", grades, marking=marks)
    moodle = read(tmp_path / "m.csv")
    assert [row["Grade"] for row in moodle] == ["71.0", "", "0.0", ""]
    assert {row["Maximum Grade"] for row in moodle} == {"110.0"}
    assert moodle[1]["Feedback comments"] == (
        "The essay: 2 of 6 points. Well put. Waiting for a mark: The poem (4 points)."
    )
    assert moodle[3]["Feedback comments"] == "A worker died."


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝"])
def test_formulas_are_text(tmp_path: Path, start: str) -> None:
    """A cell that a spreadsheet would run begins with an apostrophe, in every CSV and column of text."""
    bad = f'{start}cmd|" /C calc"!A0,x'
    grade = a_grade(bad, message=bad, submitted_at=bad, grader_version=bad)
    people = {bad: Person(last_name=bad, first_name=bad, email=bad, section=bad, lms_id=bad)}
    write_grades_csv(tmp_path / "g.csv", [grade], assignment=bad, duedate=bad, people=people)
    write_canvas_csv(tmp_path / "c.csv", [grade], assignment=bad, max_score=100, people=people)
    write_moodle_csv(tmp_path / "m.csv", [grade], people=people)
    item = ManualItem(id="essay", title=bad, points=6.0)
    mark = a_mark(student_id=bad, comment=bad)
    marks = Marking(items=(item,), marks={(bad, "essay"): mark})
    write_moodle_csv(tmp_path / "n.csv", [replace(grade, message="")], marking=marks)
    with (tmp_path / "n.csv").open(newline="") as file:
        assert not [cell for row in csv.reader(file) for cell in row if cell.startswith(start)]
    for name in ("g", "c", "m"):
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell.startswith(start)]
        assert f"'{bad}" in cells


def test_ids_with_commas_quotes_and_newlines_stay_one_cell(tmp_path: Path) -> None:
    """A student id is data, whatever separators it holds."""
    name = 'a,"b"\nc;d'
    [row] = grades_csv(tmp_path / "g.csv", a_grade(name))
    assert row["student_id"] == name


def test_canvas(tmp_path: Path) -> None:
    """Canvas's columns, the row of points possible, an empty cell for what is unknown."""
    people = {"ada": Person(last_name="Lovelace", first_name="Ada", lms_id="77", section="S1")}
    grades = [a_grade("bob", **UNKNOWN), a_grade("ada", score=88.25)]
    path = tmp_path / "canvas.csv"
    write_canvas_csv(path, grades, assignment="hw8", assignment_id="123", max_score=100, people=people)
    assert path.read_text().splitlines() == [
        "Student,ID,SIS User ID,SIS Login ID,Section,hw8 (123)",
        "    Points Possible,,,,,100.0",
        '"Lovelace, Ada",77,,ada,S1,88.25',
        "bob,,,bob,,",
    ]


def test_moodle(tmp_path: Path) -> None:
    """Moodle's grading worksheet, an empty grade for what is unknown and the reason beside it."""
    people = {"ada": Person(last_name="Lovelace", first_name="Ada", email="a@b.c", lms_id="Participant 9")}
    path = tmp_path / "moodle.csv"
    write_moodle_csv(path, [a_grade("ada", score=88.25), a_grade("bob", **UNKNOWN)], people=people)
    ada, bob = read(path)
    assert (ada["Identifier"], ada["Full name"], ada["Grade"]) == ("Participant 9", "Ada Lovelace", "88.25")
    assert (bob["Identifier"], bob["Grade"], bob["Feedback comments"]) == ("bob", "", "A worker died.")
