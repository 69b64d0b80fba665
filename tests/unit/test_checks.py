"""Verdicts: an exception is an outcome, a mistake of the check itself is ours, and no check touches another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grader.checks import run_checks
from grader.config import load_assignment
from grader.errors import AssignmentError, InfrastructureError
from grader.sandbox.bridge import SessionOver, StudentError
from grader.types import CheckResult, Outcome
from tests.small import folder_with

HEAD = "import pytest\nfrom pytest import mark\n"


def verdicts(tmp_path: Path, ids: str, **files: str) -> dict[str, CheckResult]:
    """Run the checks of these one-letter ids (upper case: visible) from files of this source."""
    checks = [{"id": one, "title": one, "points": 1, "hidden": one.islower(), "hint": ""} for one in ids]
    folder_with(tmp_path, checks=checks)
    for name, source in files.items():
        (tmp_path / "checks" / f"test_{name}.py").write_text(HEAD + source)
    results = run_checks(load_assignment(tmp_path), set(ids), Student(), seed=1)
    return {result.check_id: result for result in results}


class Student:
    """Does what it is told: raises the outcome of that name, or nothing."""

    def give_time(self, used_s: float | None) -> None:
        """Time never runs out."""

    def __getattr__(self, name: str) -> Any:
        def call(outcome: str = "") -> int:
            if outcome:
                raise (SessionOver if name == "end" else StudentError)(Outcome(outcome), f"it {name}s")
            return 1

        return call


def test_each_exception_is_its_outcome(tmp_path: Path) -> None:
    """A failed assertion is FAILED with its words; what the student's code did is the outcome the bridge names."""
    found = verdicts(
        tmp_path,
        "abcd",
        x="""
@mark.check("a")
def test_a(student): assert student.f() == 1
@mark.check("b")
def test_b(student): assert student.f() == 2, "one is not two"
@mark.check("c")
def test_c(student): student.f("RAISED")
@mark.check("d")
def test_d(student): student.f("MISSING")
""",
    )
    assert {one: result.outcome.value for one, result in found.items()} == {
        "a": "PASSED",
        "b": "FAILED",
        "c": "RAISED",
        "d": "MISSING",
    }
    assert found["b"].message == "one is not two"
    assert [found[one].points for one in "abcd"] == [1.0, 0.0, 0.0, 0.0]


def test_a_check_fails_when_one_of_its_tests_does_and_others_are_not_touched(tmp_path: Path) -> None:
    """Tests of a decided check are left out, at the end of a file too, and the next file runs as ever."""
    found = verdicts(
        tmp_path,
        "ab",
        x="""
@mark.check("a")
def test_1(student): assert False, "first"
@mark.check("a")
def test_2(student): assert False, "second"
""",
        y="""
@mark.check("b")
def test_b(student): pass
""",
    )
    assert (found["a"].outcome, found["a"].message) == (Outcome.FAILED, "first")
    assert found["b"].outcome is Outcome.PASSED


def test_when_the_session_ends_the_rest_stays_open(tmp_path: Path) -> None:
    """The check that ended it has its outcome; those behind it have none yet, so that a fresh process can be asked."""
    found = verdicts(
        tmp_path,
        "abc",
        x="""
@mark.check("a")
def test_a(student): pass
@mark.check("b")
def test_b(student): student.end("TIMED_OUT")
@mark.check("c")
def test_c(student): pass
""",
    )
    assert {one: result.outcome.value for one, result in found.items()} == {"a": "PASSED", "b": "TIMED_OUT"}


def test_visible_checks_run_before_hidden_ones(tmp_path: Path) -> None:
    """What a visible check observes is shown to the student: no code may have seen hidden inputs by then."""
    order = tmp_path / "order"
    note = f"    with open({str(order)!r}, 'a') as file: file.write"
    source = "\n".join(f'@mark.check("{one}")\ndef test_{one}(student):\n{note}("{one}")' for one in "aBcD")
    verdicts(tmp_path, "aBcD", x=source)
    assert order.read_text() == "BDac"


@pytest.mark.parametrize(
    "source",
    ["def test_a(student): 1 / 0", "def test_a(student, nosuch): pass", "def test_a(student): pytest.skip()"],
    ids=["breaks", "asks for a fixture that is not there", "skips"],
)
def test_a_check_that_breaks_is_our_fault(tmp_path: Path, source: str) -> None:
    """No student loses a point to a mistake in a check: there is no verdict at all."""
    with pytest.raises(InfrastructureError):
        verdicts(tmp_path, "a", x=f'@mark.check("a")\n{source}')


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ('@mark.check("z")\ndef test_a(student): pass', "names no check"),
        ("def test_a(student): pass", "names no check"),
        ("", "no test for the check 'a'"),
        ("def test_a(:", "SyntaxError"),
        ("import nosuchmodule", "nosuchmodule"),
    ],
    ids=["unknown check", "no check", "no test", "syntax", "import"],
)
def test_check_files_and_assignment_must_agree(tmp_path: Path, source: str, sentence: str) -> None:
    """A test without a check, a check without a test, a file that does not load: staff are told."""
    with pytest.raises(AssignmentError, match=sentence):
        verdicts(tmp_path, "a", x=source)


def test_a_check_that_never_ends_is_our_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a check is made to work on, its worker goes on with the next submission."""
    monkeypatch.setattr("grader.checks.STALLED_AFTER_S", 0.2)
    with pytest.raises(InfrastructureError, match=r"test_a: InfrastructureError: it was still at work"):
        verdicts(tmp_path, "a", x='@mark.check("a")\ndef test_a(student):\n    while True: pass\n')


def test_random_inputs_repeat_with_the_seed(tmp_path: Path) -> None:
    """The same submission meets the same inputs when it is graded again."""
    log = tmp_path / "log"
    note = f"    with open({str(log)!r}, 'a') as file: file.write"
    source = f'@mark.check("a")\ndef test_a(student, rng):\n{note}(f"{{rng.random()}} ")'
    for _ in range(2):
        verdicts(tmp_path, "a", x=source)
    first, second = log.read_text().split()
    assert first == second


def test_options_in_the_environment_change_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTEST_ADDOPTS of whoever runs the batch does not reach the checks."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "--maxfail=1 -k nothing")
    found = verdicts(tmp_path, "a", x='@mark.check("a")\ndef test_a(student): pass')
    assert found["a"].outcome is Outcome.PASSED


def test_a_folder_above_the_checks_changes_no_verdict(tmp_path: Path) -> None:
    """A conftest.py outside the checks is not read, and neither are the folders in which the assignment lies."""
    (tmp_path / "conftest.py").write_text("raise RuntimeError('read')")
    found = verdicts(tmp_path, "a", x='@mark.check("a")\ndef test_a(student): pass')
    assert found["a"].outcome is Outcome.PASSED
