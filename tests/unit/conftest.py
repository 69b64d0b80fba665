"""What the tests share that look at the answers of runners."""

from __future__ import annotations

from pathlib import Path

import pytest

from grader.bench import Bench, set_up
from grader.config import load_assignment
from grader.executors import Attempt, attempt
from tests.small import course_in
from tests.unit.records import NOBODY


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """An assignment with one check."""
    course: Path = course_in(tmp_path_factory.mktemp("course"), {})
    assignment = load_assignment(course / "assignment")
    return set_up(assignment, assignment.profile("smoke"), "none", str(course / "text.txt"))


@pytest.fixture(scope="module")
def honest(bench: Bench) -> Attempt:
    """Of somebody who handed in nothing, which no sandbox is needed for."""
    return attempt(NOBODY, bench)
