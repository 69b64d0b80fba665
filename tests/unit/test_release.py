"""Release: students get what they need, the same bytes each time, and never a line of a solution."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest
import yaml

from grader.errors import AssignmentError, UsageError
from grader.release import release

MASTER = '''# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown] id="intro"
# # Homework

# %% id="setup"
import math
import os
scale = 2

# %% id="double"
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    import math, os, sys
    secret_result = scale * x  # the trick

    return secret_result
    ### END SOLUTION


class Thing:
    def value(self):
        ### BEGIN SOLUTION
        return self.stored_value + scale
        ### END SOLUTION

# %% id="hidden"
### BEGIN HIDDEN TESTS
assert double(21) == 42
### END HIDDEN TESTS

# %% id="magic"
# %matplotlib inline
### BEGIN SOLUTION
outcome = double(scale)
### END SOLUTION

# %% id="check"
assert double(1) == 2
### BEGIN HIDDEN TESTS
assert double(-1) == -2
### END HIDDEN TESTS

# %% [markdown] id="essay"
# Why?
#
# ### BEGIN SOLUTION
# Because the gradient vanishes.
# ### END SOLUTION

# %% id="empty"

'''

CHECKS = '''"""Checks of one function."""

import helpers
import pytest

### BEGIN HIDDEN TESTS
import oracle
### END HIDDEN TESTS


@pytest.mark.check("double.example")
def test_example(student):
    """Twice three is six."""
    helpers.equal(student.double(3), 6)


### BEGIN HIDDEN TESTS


@pytest.mark.check("double")
def test_hidden(student, rng):
    assert student.double(5) == oracle.double(5)
### END HIDDEN TESTS
'''

HELPERS = """def equal(a, b):
    assert a == b


### BEGIN HIDDEN TESTS
SECRET_CASES = [1, 2, 3]
### END HIDDEN TESTS
"""

ASSIGNMENT = {
    "name": "hw",
    "title": "Homeworké",
    "seed": 123456,
    "duedate": "2024-02-02",
    "corpus": "tiny",
    "guest": "checks/stubs.py",
    "checks": [
        {"id": "double", "title": "d", "points": 2.0, "hidden": True, "hint": "secret hint"},
        {"id": "double.example", "title": "d", "points": 1.0, "hidden": False, "hint": ""},
        {"id": "unsaid", "title": "d", "points": 1.0},
    ],
    "limits": {"check_wall_s": 10.0},
    "profiles": [
        {"name": "smoke", "train_chars": None, "seed": 7, "curves": [{"model": "rnn", "target": 1.7}]},
    ],
    "notes": "for staff only",
}


@pytest.fixture
def staff(tmp_path: Path) -> Path:
    files = {
        "homework.py": MASTER,
        "assignment.yaml": yaml.safe_dump(ASSIGNMENT),
        "checks/test_double.py": CHECKS,
        "checks/test_all_hidden.py": "### BEGIN HIDDEN TESTS\ndef test_x(): pass\n### END HIDDEN TESTS\n",
        "checks/helpers.py": HELPERS,
        "checks/unused.py": "only_for = 'hidden tests'\n",
        "checks/oracle.py": "def double(x):\n    return x + x\n",
        "checks/stubs.py": "notebook = {}\n\n\n\n\ndef stub():\n    return notebook\n",
        "student/README.md": "# Read me\n",
        "student/requirements.txt": "mxnet==1.9.1\n",
        "student/private.txt": "not for students",
    }
    for name, text in files.items():
        (tmp_path / "staff" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "staff" / name).write_text(text, encoding="utf-8")
    return tmp_path / "staff"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def cells(out: Path) -> dict[str, str]:
    nb = nbformat.read(out / "homework.ipynb", as_version=4)
    nbformat.validate(nb)
    return {cell.id: cell.source for cell in nb.cells}


def change(staff: Path, name: str, old: str, new: str) -> None:
    text = (staff / name).read_text(encoding="utf-8")
    assert old in text
    (staff / name).write_text(text.replace(old, new), encoding="utf-8")


def refusal(staff: Path, out: Path) -> str:
    with pytest.raises(AssignmentError) as caught:
        release(staff, out)
    assert not out.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- what students get


def test_students_get_these_files_and_nothing_else(staff: Path, out: Path) -> None:
    """No master, no oracle, no wholly hidden test, no helper that only hidden tests use."""
    changed = release(staff, out)
    expected = [
        "README.md",
        "assignment.yaml",
        "checks/helpers.py",
        "checks/stubs.py",
        "checks/test_double.py",
        "homework.ipynb",
        "requirements.txt",
    ]
    assert sorted(contents(out)) == expected
    assert changed == [out / name for name in expected]


def test_solutions_become_stubs_that_are_python(staff: Path, out: Path) -> None:
    """Each solution is replaced at its own indentation; ids stay; cells of nothing but hidden tests vanish."""
    release(staff, out)
    found = cells(out)
    assert list(found) == ["intro", "setup", "double", "magic", "check", "essay", "empty"]
    assert found["double"] == (
        'def double(x):\n    """Twice x."""\n    # YOUR CODE HERE\n    raise NotImplementedError\n\n\n'
        "class Thing:\n    def value(self):\n        # YOUR CODE HERE\n        raise NotImplementedError"
    )
    ast.parse(found["double"])
    assert found["magic"] == "%matplotlib inline\n# YOUR CODE HERE\nraise NotImplementedError"
    assert found["check"] == "assert double(1) == 2"
    assert found["essay"] == "Why?\n\nYOUR ANSWER HERE"


def test_nothing_hidden_is_in_any_released_file(staff: Path, out: Path) -> None:
    """Words that occur in solutions, hidden tests and staff's settings only are nowhere in the student folder."""
    release(staff, out)
    everything = b"\n".join(contents(out).values()).decode()
    for word in (
        *("secret", "stored_value", "vanishes", "oracle", "test_hidden", "SECRET_CASES", "BEGIN", "END "),
        *("123456", "curves", "unsaid", "for staff only", "1.7", "-1"),
    ):
        assert word not in everything, word


def test_visible_checks_stand_on_their_own(staff: Path, out: Path) -> None:
    """What is left of a check file is valid Python with the imports that its visible tests use."""
    release(staff, out)
    source = (out / "checks/test_double.py").read_text(encoding="utf-8")
    assert "import helpers\nimport pytest\n" in source
    assert source.endswith("helpers.equal(student.double(3), 6)\n")
    assert "\n\n\n\n" not in source
    assert (out / "checks/stubs.py").read_bytes() == (staff / "checks/stubs.py").read_bytes()


def test_students_yaml_has_listed_keys_and_visible_checks(staff: Path, out: Path) -> None:
    """Seed, credit curves, hidden checks and staff's notes stay with staff; a check is hidden unless it says not."""
    release(staff, out)
    assert yaml.safe_load((out / "assignment.yaml").read_text(encoding="utf-8")) == {
        **{key: ASSIGNMENT[key] for key in ("name", "title", "duedate", "corpus", "guest", "limits")},
        "checks": [ASSIGNMENT["checks"][1]],
        "profiles": [{"name": "smoke", "train_chars": None}],
    }


def test_readme_and_requirements_are_optional(staff: Path, out: Path) -> None:
    """A staff folder without a student subfolder can be released."""
    for path in (staff / "student").iterdir():
        path.unlink()
    release(staff, out)
    assert not (out / "README.md").exists()


# ---------------------------------------------------------------- again


def test_second_release_changes_nothing(staff: Path, out: Path) -> None:
    """Releasing twice gives the same bytes and touches no file."""
    release(staff, out)
    before = contents(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert release(staff, out) == []
    assert release(staff, out, check=True) == []
    assert contents(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times


def test_stale_checks_go_and_students_files_stay(staff: Path, out: Path) -> None:
    """A check that staff took back disappears; what else lies in the folder is not ours to touch."""
    release(staff, out)
    (out / "data").mkdir()
    (out / "data/train.txt").write_text("mine")
    (out / "checks/notes.txt").write_text("mine")
    (out / "checks/test_old.py").write_text("def test_old(): pass")
    change(staff, "student/README.md", "Read me", "Read me again")
    assert release(staff, out) == [out / "README.md", out / "checks/test_old.py"]
    assert not (out / "checks/test_old.py").exists()
    assert (out / "data/train.txt").exists()
    assert (out / "checks/notes.txt").exists()
    assert not list(out.glob(".release-*"))


def test_check_tells_what_would_change_and_writes_nothing(staff: Path, out: Path) -> None:
    """A test can prove that the committed student folder is the current one."""
    assert len(release(staff, out, check=True)) == 7
    assert not out.exists()
    release(staff, out)
    (out / "checks/test_old.py").write_text("")
    (out / "homework.ipynb").write_text("edited by hand")
    before = contents(out)
    assert release(staff, out, check=True) == [out / "checks/test_old.py", out / "homework.ipynb"]
    assert contents(out) == before


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("    return secret_result\n    ### END SOLUTION\n", "    return secret_result\n", "begins within"),
        ("    ### BEGIN SOLUTION\n    import math", "    import math", "END SOLUTION without its BEGIN"),
        ("    secret_result =", "    ### BEGIN SOLUTION\n    secret_result =", "begins within"),
        ("    secret_result =", "    ### BEGIN HIDDEN TESTS\n    secret_result =", "begins within"),
        ("return secret_result\n    ### END SOLUTION", "pass\n    ### END HIDDEN TESTS", "END HIDDEN TESTS without"),
        ("outcome = double(scale)\n### END SOLUTION", "outcome = double(scale)", "has no END SOLUTION"),
        ("outcome = double(scale)\n### END SOLUTION", "### END SOLUTIONS", "is not one of the markers"),
        ("### BEGIN HIDDEN TESTS\nassert double(-1)", "### begin hidden tests\nassert double(-1)", "not one of"),
        ("### BEGIN HIDDEN TESTS\nassert double(-1)", "# BEGIN HIDDEN\nassert double(-1)", "not one of"),
    ],
)
def test_broken_markers_are_refused(staff: Path, out: Path, old: str, new: str, problem: str) -> None:
    """Unbalanced, nested or misspelt markers would show a solution: they are named by file, cell and line."""
    change(staff, "homework.py", old, new)
    message = refusal(staff, out)
    assert problem in message
    assert "homework.py, cell '" in message
    assert ", line " in message


@pytest.mark.parametrize(
    ("name", "old", "new", "place"),
    [
        ("homework.py", "assert double(1) == 2", "secret_result = scale*x", "cell 'check'"),
        ("homework.py", "assert double(1) == 2", "# secret_result = scale * x", "cell 'check'"),
        ("homework.py", "assert double(1) == 2", "def f():\n    return secret_result", "cell 'check'"),
        (
            "homework.py",
            "# # Homework",
            "# Try `secret_result = scale * x`:\n#\n#     secret_result = scale * x",
            "intro",
        ),
        ("homework.py", "# # Homework", "# * `secret_result = scale * x`", "cell 'intro'"),
        ("homework.py", "# # Homework", "# > Because the gradient vanishes.", "cell 'intro'"),
        (
            "checks/test_double.py",
            "helpers.equal(",
            "# secret_result = scale * x  # leak\n    helpers.equal(",
            "test_double",
        ),
        ("checks/stubs.py", "notebook = {}", "notebook = {}\n# secret_result = scale * x", "stubs.py, line 2"),
        ("student/README.md", "# Read me", "    secret_result = scale * x", "README.md, line 1"),
    ],
)
def test_surviving_solution_line_is_refused(staff: Path, out: Path, name: str, old: str, new: str, place: str) -> None:
    """A solution's line that was copied into another cell, a test, a text or a comment stops the release."""
    change(staff, name, old, new)
    message = refusal(staff, out)
    assert place in message
    assert "homework.py, cell '" in message


def test_common_lines_may_occur_elsewhere(staff: Path, out: Path) -> None:
    """What every program says is no secret: imports anywhere, and short statements outside the notebook."""
    change(staff, "homework.py", "assert double(1) == 2", "import math, os, sys\nfor secret_result in []: pass")
    change(
        staff,
        "checks/stubs.py",
        "    return notebook",
        "    import math, os, sys\n    secret_result = 3\n    return secret_result",
    )
    release(staff, out)


def test_stub_that_is_not_python_is_refused(staff: Path, out: Path) -> None:
    """A region that takes half a statement with it is found before students are."""
    change(staff, "homework.py", "outcome = double(scale)\n", "outcome = (\n")
    change(staff, "homework.py", '### END SOLUTION\n\n# %% id="check"', '### END SOLUTION\n)\n\n# %% id="check"')
    assert "cell 'magic', as released, line" in refusal(staff, out)


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("checks/test_double.py", "import helpers\n", "import helpers\nimport oracle\n", "it imports oracle"),
        ("checks/helpers.py", "def equal", "from oracle import double\n\n\ndef equal", "it imports oracle"),
        ("checks/test_double.py", "(3), 6)", "(3), CASES[0])", "'CASES' is defined nowhere"),
        ("checks/helpers.py", "assert a == b", "assert a in SECRET_CASES", "'SECRET_CASES' is defined nowhere"),
        (
            "checks/helpers.py",
            "    assert a == b\n",
            "### BEGIN HIDDEN TESTS\n    x\n### END HIDDEN TESTS\n",
            "not valid",
        ),
        ("checks/stubs.py", "notebook = {}", "### BEGIN HIDDEN TESTS\n### END HIDDEN TESTS", "released whole"),
        ("checks/test_double.py", "### END HIDDEN TESTS\n\n\n@", "\n\n@", "begins within"),
    ],
)
def test_checks_that_students_could_not_run_are_refused(
    staff: Path, out: Path, name: str, old: str, new: str, problem: str
) -> None:
    """A visible test must not need the oracle, nor a name that stays in a hidden region."""
    change(staff, name, old, new)
    message = refusal(staff, out)
    assert problem in message
    assert name in message


@pytest.mark.parametrize(
    ("text", "problem"),
    [("- a", "must be a mapping"), ("a: [", "not valid YAML"), ("checks: {a: 1}", "list of mappings")],
)
def test_broken_assignment_yaml_is_refused(staff: Path, out: Path, text: str, problem: str) -> None:
    """A settings file that cannot be read is named."""
    (staff / "assignment.yaml").write_text(text, encoding="utf-8")
    assert problem in refusal(staff, out)


def test_missing_or_unreadable_staff_files_are_named(staff: Path, out: Path) -> None:
    """No half release from half a staff folder."""
    (staff / "assignment.yaml").unlink()
    assert "assignment.yaml cannot be read" in refusal(staff, out)
    (staff / "assignment.yaml").write_bytes(b"a: \xff")
    assert "not UTF-8" in refusal(staff, out)
    (staff / "homework.py").unlink()
    assert "homework.py cannot be read" in refusal(staff, out)


def test_invalid_notebook_is_refused(staff: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook that Jupyter would complain about is not released."""

    def invalid(nb: nbformat.NotebookNode) -> str:
        nb.cells[0].cell_type = "nonsense"
        nbformat.validate(nb)
        return ""

    monkeypatch.setattr("grader.release.to_json", invalid)
    assert "the released notebook would be invalid" in refusal(staff, out)


def test_unusable_target_is_the_callers_mistake(staff: Path, tmp_path: Path) -> None:
    """The staff folder is never written over, and a file is no folder."""
    before = contents(staff)
    with pytest.raises(UsageError, match="must not be the staff folder"):
        release(staff, staff)
    assert contents(staff) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        release(staff, tmp_path / "file")
