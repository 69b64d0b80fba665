"""One small homework and a class that hands it in, in the format of each tool: the same cells, checks and points."""

from __future__ import annotations

import random
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from grader.benchmark import specimen
from tests.small import LIMITS, folder_with

CELLS = specimen.CELLS[:3]  # all but the function that is called
FUNCTIONS = """def predict(x):
    return model(nd.array(x).reshape((1, 4, 27))).sum().asnumpy()

def onehot(x, size):
    return nd.one_hot(nd.array(x), size).asnumpy()

def softmax(x):
    return nd.softmax(nd.array(x)).asnumpy()

def clipped(x, theta):
    x = nd.array(x)
    return (x * min(1, theta / x.norm().asscalar())).asnumpy()
"""
WRONG = FUNCTIONS.replace("x * min(1, theta / x.norm().asscalar())", "x")  # never scales
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
KERNEL |= {"language_info": {"name": "python"}}
HOMEWORK = "hw"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One check: what it calls of the notebook, and the assertion, which is the same text for every tool."""

    id: str
    function: str
    points: int
    source: str


def _asked() -> tuple[Asked, ...]:
    sources = {
        "predict": (
            "assert predict(np.ones((4, 27), np.float32)).shape == (1,)",
            "assert np.isfinite(predict(np.zeros((4, 27), np.float32))).all()",
            "assert predict(np.ones((4, 27), np.float32)) == predict(np.ones((4, 27), np.float32))",
        ),
        "onehot": (
            "assert onehot(np.array([0, 2]), 3).tolist() == [[1, 0, 0], [0, 0, 1]]",
            "assert onehot(np.arange(27), 27).sum() == 27",
            "assert onehot(np.array([[1], [0]]), 2).shape == (2, 1, 2)",
        ),
        "softmax": (
            "assert np.allclose(softmax(np.array([[1.0, 1.0]])), 0.5)",
            "assert np.allclose(softmax(np.random.rand(5, 27)).sum(1), 1)",
            "assert np.allclose(softmax(np.array([[0.0, np.log(3)]])), [[0.25, 0.75]])",
        ),
        "clipped": (
            "assert np.allclose(clipped(np.array([3.0, 4.0]), 10), [3, 4])",
            "assert np.allclose(clipped(np.array([3.0, 4.0]), 1), [0.6, 0.8])",
            "assert np.allclose(clipped(np.full(4, 2.0), 2), 1)",
        ),
    }
    pairs = [(name, source) for name, three in sources.items() for source in three]
    return tuple(
        Asked(id=f"{name}_{number % 3}", function=name, points=number + 1, source=source)
        for number, (name, source) in enumerate(pairs)
    )


ASKED = _asked()
ALL_POINTS = sum(check.points for check in ASKED)
LOST_BY_WRONG = sum(check.points for check in ASKED if check.id in ("clipped_1", "clipped_2"))


def students(copies: int) -> list[str]:
    """Half of them begin with a, half with b, so that a pattern names a half of the class."""
    return [f"{'ab'[number % 2]}{number:03}" for number in range(copies)]


def expected(copies: int) -> dict[str, float]:
    """The points of each student: the first hands in what is wrong, the others what is right."""
    return {name: float(ALL_POINTS - LOST_BY_WRONG * (not i)) for i, name in enumerate(students(copies))}


def solution(number: int) -> tuple[str, ...]:
    """The cells that a student wrote."""
    return (*CELLS, FUNCTIONS if number else WRONG)


def script(number: int) -> str:
    """The same cells and checks as a program: a check that fails ends nothing."""
    checks = (f"try:\n    {check.source}\nexcept AssertionError:\n    pass" for check in ASKED)
    return "\n".join((*solution(number), "import numpy as np", *checks))


# ---------------------------------------------------------------- this grader


def for_grader(folder: Path, copies: int) -> None:
    """`assignment/`, `text.txt` and `submitted/`, as `grader grade` reads them; no model is scored."""
    (folder / "assignment").mkdir(parents=True)
    names = [{"id": c.id, "title": c.id, "points": c.points, "hidden": True, "hint": "Look."} for c in ASKED]
    limits = {**LIMITS, "check_wall_s": 10}
    folder_with(folder / "assignment", corpus="time-machine", curves=False, checks=names, limits=limits)
    tests = ["import numpy as np\nimport pytest\n"]
    for check in ASKED:
        body = textwrap.indent(f"{check.function} = student.{check.function}\n{check.source}", "    ")
        tests.append(f"\n\n@pytest.mark.check({check.id!r})\ndef test_{check.id}(student):\n{body}\n")
    (folder / "assignment" / "checks" / "test_homework.py").write_text("".join(tests))
    letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz ", k=180_000)
    (folder / "text.txt").write_text("".join(letters))
    for number, name in enumerate(students(copies)):
        _write(folder / "submitted" / name / "homework.ipynb", [_cell(source) for source in solution(number)])


# ---------------------------------------------------------------- nbgrader


def for_nbgrader(folder: Path, copies: int) -> None:
    """`source/` for `nbgrader generate_assignment`, and `submitted/` for `nbgrader autograde`."""
    tests = [_nbgrader_cell(f"import numpy as np\n{check.source}", check.id, points=check.points) for check in ASKED]
    for path, number in [
        (folder / "source" / HOMEWORK, 1),
        *((folder / "submitted" / name / HOMEWORK, i) for i, name in enumerate(students(copies))),
    ]:
        *given, written = solution(number)
        cells = [*(_cell(source) for source in given), _nbgrader_cell(written, "functions")]
        _write(path / "homework.ipynb", cells + tests)


def _nbgrader_cell(source: str, name: str, *, points: int | None = None) -> Any:
    """An answer, or for points an autograder-test cell, which `autograde` writes anew from the source."""
    is_test = points is not None
    about = {"grade": is_test, "grade_id": name, "locked": is_test, "solution": not is_test, "task": False}
    about |= {"schema_version": 3, **({"points": points} if is_test else {})}
    return _cell(source, nbgrader=about)


# ---------------------------------------------------------------- otter-grader


def for_otter(folder: Path, copies: int) -> None:
    """`tests/` and `otter_config.json` for `otter generate`, and `submitted/` for `otter run`.

    The tests are of otter's exception-based format, whose functions take what they need of the notebook by name.
    """
    (folder / "tests").mkdir(parents=True)
    (folder / "otter_config.json").write_text('{"pdf": false, "show_hidden": true}\n')
    for check in ASKED:
        (folder / "tests" / f"{check.id}.py").write_text(
            "import numpy as np\nfrom otter.test_files import test_case\n\n"
            f"OK_FORMAT = False\nname = {check.id!r}\npoints = {check.points}\n\n\n"
            f"@test_case(points={check.points}, hidden=True)\n"
            f"def test_{check.id}({check.function}):\n    {check.source}\n"
        )
    for number, name in enumerate(students(copies)):
        _write(folder / "submitted" / f"{name}.ipynb", [_cell(source) for source in solution(number)])


def _cell(source: str, **metadata: Any) -> Any:
    return nbformat.v4.new_code_cell(source, metadata=metadata)


def _write(path: Path, cells: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # the same in every copy
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), path)
