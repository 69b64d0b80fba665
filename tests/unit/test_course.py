"""grader.course: a course folder, its secret and its roster."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from grader.config import load_assignment
from grader.course import make_course, read_roster
from grader.errors import AssignmentError, UsageError
from grader.types import Person
from tests.small import folder_with


@pytest.fixture
def course(tmp_path: Path) -> Path:
    (tmp_path / "given").mkdir()
    make_course(tmp_path / "course", folder_with(tmp_path / "given"))
    return tmp_path / "course"


def test_a_course_is_its_assignment_with_a_seed_of_its_own(tmp_path: Path, course: Path) -> None:
    """Checks and points are the same; the seed is new each time, and long."""
    given = load_assignment(tmp_path / "given")
    made = load_assignment(course)
    assert (made.checks, made.profiles) == (given.checks, given.profiles)
    assert (made.has_secret, given.has_secret) == (True, False)
    make_course(tmp_path / "other", tmp_path / "given")
    seeds = {given.seed, made.seed, load_assignment(tmp_path / "other").seed}
    assert len(seeds) == 3
    assert max(seeds) > 2**100
    assert (course / "assignment.yaml").read_text().count("seed:") == 1


def test_a_lost_secret_is_not_replaced_by_a_guess(course: Path) -> None:
    """A clone without the secret grades nothing: it would be on texts that anybody can draw."""
    (course / "secret").unlink()
    with pytest.raises(AssignmentError, match="put back the one that its grades were given with"):
        load_assignment(course)


def test_the_secret_is_for_its_owner_only(course: Path) -> None:
    """It is written so, git leaves it out, and a secret that others may read is none."""
    assert stat.S_IMODE((course / "secret").stat().st_mode) == 0o600
    assert (course / ".gitignore").read_text() == "secret\n"
    (course / "secret").chmod(0o640)
    with pytest.raises(AssignmentError, match="chmod 600"):
        load_assignment(course)


@pytest.mark.parametrize("text", ["", "7\n", "xyz" * 20])
def test_a_damaged_secret_is_not_replaced_by_another_draw(course: Path, text: str) -> None:
    (course / "secret").write_text(text)
    with pytest.raises(AssignmentError, match="32 hexadecimal digits"):
        load_assignment(course)


def test_nothing_that_is_there_is_overwritten(course: Path) -> None:
    """The secret of a course decides its grades: a second `init` must not change it."""
    before = (course / "secret").read_text()
    with pytest.raises(UsageError, match="not empty, and nothing was changed"):
        make_course(course, course)
    assert (course / "secret").read_text() == before


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be made"):
        make_course(tmp_path / "file" / "course", folder_with(tmp_path))


def test_a_roster_gives_names(course: Path) -> None:
    """Columns may be fewer, in another order, or nbgrader's; Excel's byte order mark is no part of a name."""
    (course / "roster.csv").write_text("\ufeffid,email,first_name,last_name\nada,a@b.c,Ada,Lovelace\nbob,,,\n,,,\n")
    roster = load_assignment(course).roster
    assert roster == {"ada": Person(last_name="Lovelace", first_name="Ada", email="a@b.c"), "bob": Person()}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name\nada\n", "column names, by commas, one of them student_id"),
        ("student_id;email\nada;\n", "column names, by commas, one of them student_id"),
        ("", "column names, by commas, one of them student_id"),
        ("student_id\n../../ada\n", "line 2 has the student_id '../../ada'"),
        ("student_id\n..\n", "line 2 has the student_id"),
        ('student_id\n"a\x1b"\n', "line 2 has the student_id"),
        ("student_id\nada\nADA\n", "line 3 lists 'ADA' twice"),
        ("student_id\nada\nbob\nada\n", "line 4 lists 'ada' twice"),
        ("student_id,email\nada,\n,x@y.z\n", "line 3 has the student_id ''"),
        ("student_id\n\xff", "cannot be read as CSV"),
    ],
)
def test_a_roster_that_is_none_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    """With the line that is wrong: a student who is left out would not be missed."""
    (tmp_path / "roster.csv").write_text(text, encoding="latin-1")
    with pytest.raises(AssignmentError, match=problem):
        read_roster(tmp_path)
