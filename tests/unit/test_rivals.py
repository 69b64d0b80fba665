"""The comparison with other graders is fair: every tool is given the same cells, checks and points."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
import pytest

from grader.config import load_assignment
from grader.errors import InfrastructureError, UsageError
from tests.rivals import counted, notebooks
from tests.rivals.__main__ import require_fair

COPIES = 3
LAST_CELL = len(notebooks.CELLS) + 1


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    notebooks.for_grader(folder / "grader", COPIES)
    notebooks.for_nbgrader(folder / "nbgrader", COPIES)
    notebooks.for_otter(folder / "otter", COPIES)
    return folder


def paths_of(classes: Path, student: str) -> list[Path]:
    """The same student's notebook for each tool; nbgrader's has its tests after the student's cells."""
    submitted = [classes / tool / "submitted" for tool in ("grader", "nbgrader", "otter")]
    endings = (f"{student}/homework.ipynb", f"{student}/{notebooks.HOMEWORK}/homework.ipynb", f"{student}.ipynb")
    return [folder / ending for folder, ending in zip(submitted, endings, strict=True)]


def cells_of(path: Path) -> list[str]:
    return [cell["source"] for cell in nbformat.read(path, as_version=4)["cells"]]


@pytest.mark.parametrize("number", range(COPIES))
def test_every_tool_runs_the_same_cells(classes: Path, number: int) -> None:
    """A student's notebook is valid and has the same code for each tool; only the first student's is wrong."""
    paths = paths_of(classes, notebooks.students(COPIES)[number])
    for path in paths:
        nbformat.validate(nbformat.read(path, as_version=4))
        assert tuple(cells_of(path)[:LAST_CELL]) == notebooks.solution(number)
    assert (notebooks.solution(number) != notebooks.solution(1)) == (number == 0)


def test_every_tool_asks_the_same_checks_for_the_same_points(classes: Path) -> None:
    """Twelve assertions, word for word, in a file of checks, in cells of nbgrader's, in files of otter's."""
    assignment = load_assignment(classes / "grader" / "assignment")
    ours = (classes / "grader" / "assignment" / "checks" / "test_homework.py").read_text()
    source = classes / "nbgrader" / "source" / notebooks.HOMEWORK / "homework.ipynb"
    cells = nbformat.read(source, as_version=4)["cells"][LAST_CELL:]
    assert len(assignment.checks) == len(cells) == len(notebooks.ASKED) == 12
    for check, cell, asked in zip(assignment.checks, cells, notebooks.ASKED, strict=True):
        otters = (classes / "otter" / "tests" / f"{asked.id}.py").read_text()
        assert all(asked.source in text for text in (ours, cell["source"], otters))
        assert cell["metadata"]["nbgrader"]["points"] == check.points == asked.points
        assert f"\npoints = {asked.points}\n" in otters


def test_two_patterns_name_each_student_once() -> None:
    """nbgrader's two processes grade a half of the class each."""
    names = notebooks.students(16)
    assert sorted(name[0] for name in names) == ["a"] * 8 + ["b"] * 8
    assert len(set(names)) == 16


def test_other_points_end_the_comparison() -> None:
    """A tool that does not see the mistake, or leaves a student out, is not compared."""
    right = notebooks.expected(COPIES)
    require_fair("tool", right, COPIES)
    blind = dict.fromkeys(right, float(notebooks.ALL_POINTS))
    with pytest.raises(InfrastructureError, match=r"tool gave a000 78\.0 points where 55\.0 are right"):
        require_fair("tool", blind, COPIES)
    with pytest.raises(InfrastructureError, match="tool gave b001 None points"):
        require_fair("tool", {name: points for name, points in right.items() if name != "b001"}, COPIES)


def test_cpu_time_of_what_is_detached_is_counted(tmp_path: Path) -> None:
    """A process that has left its session and whose parent ignores how it ends is counted and waited for."""
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    detach = "import signal, subprocess, sys\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    detach += f"subprocess.Popen([sys.executable, '-c', {burn!r}], start_new_session=True)"
    started = time.monotonic()
    try:
        cost = counted.run([[[sys.executable, "-c", detach]]], tmp_path, {})
    except UsageError as error:
        pytest.skip(str(error))
    assert cost.cpu_s >= 0.5
    assert cost.wall_s <= time.monotonic() - started


def test_a_command_that_fails_says_so(tmp_path: Path) -> None:
    """No figure comes of a tool that did not grade: its last words are shown."""
    try:
        with pytest.raises(InfrastructureError, match="ended with 3: no such assignment"):
            counted.run([[["/bin/sh", "-c", "echo no such assignment; exit 3"]]], tmp_path, {})
    except UsageError as error:
        pytest.skip(str(error))
