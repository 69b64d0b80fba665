"""assignment.yaml is read strictly: a mistake in it is one sentence that names the file and the entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from grader.config import load_assignment
from grader.errors import AssignmentError
from tests.small import LIMITS, folder_with

ROOT = Path(__file__).parents[2]


def test_a_good_folder_is_read(tmp_path: Path) -> None:
    """Whole numbers serve as points and seconds, and what a profile does not say comes from the assignment."""
    assignment = load_assignment(folder_with(tmp_path))
    assert assignment.checks[0].points == 2.0
    assert assignment.profile("smoke").limits.check_wall_s == 2.0
    assert assignment.profile("smoke").curves[0].model == "rnn"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"title": None}, "lacks title"),
        ({"titel": "x"}, "unknown entry titel"),
        ({"checks": []}, "`checks` should be a list"),
        ({"checks": [{"id": "f"}]}, "check 'f' lacks"),
        ({"checks": [{"id": "f", "title": "F", "points": "2", "hidden": True, "hint": ""}]}, "expected float"),
        ({"checks": [{"id": "f", "title": "F", "points": -1, "hidden": True, "hint": ""}]}, "-1"),
        ({"checks": [{"id": "f", "title": "F", "points": 1, "hidden": True, "hint": ""}] * 2}, "more than once"),
        ({"limits": {**LIMITS, "memory": 1}}, "unknown entry memory"),
        ({"profiles": "smoke"}, "`profiles` should be a list"),
        ({"guest": "checks/nothing.py"}, "nothing.py"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_a_mistake_is_named(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    """Missing, unknown, mistyped and repeated entries are refused before anything is graded."""
    with pytest.raises(AssignmentError, match=sentence) as caught:
        load_assignment(folder_with(tmp_path, **changes))
    assert "assignment.yaml" in str(caught.value)


def test_a_curve_without_slope_is_refused(tmp_path: Path) -> None:
    """A target above its baseline would give points for being worse."""
    folder = folder_with(tmp_path)
    raw = yaml.safe_load((folder / "assignment.yaml").read_text())
    raw["profiles"][0]["curves"][0]["target_nats_per_char"] = 3.0
    (folder / "assignment.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(AssignmentError, match="target of curve 'rnn'"):
        load_assignment(folder)


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "\x00"], ids=["empty", "a list", "no YAML", "control"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    """Whatever the file holds, the error is a sentence about it."""
    (tmp_path / "assignment.yaml").write_text(text)
    with pytest.raises(AssignmentError, match=r"assignment\.yaml"):
        load_assignment(tmp_path)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    """The sentence says which option to use."""
    with pytest.raises(AssignmentError, match="--assignment"):
        load_assignment(tmp_path / "nowhere")


def test_identity_changes_with_a_check(tmp_path: Path) -> None:
    """A changed check file is another assignment: what was graded by the old one is graded again."""
    folder = folder_with(tmp_path)
    before = load_assignment(folder).sha256
    (folder / "checks" / "test_f.py").write_text("# changed")
    assert load_assignment(folder).sha256 != before


def test_the_homework_adds_up_to_100_points_in_every_profile() -> None:
    """Checks and perplexity together are worth 100, whichever profile grades."""
    assignment = load_assignment(ROOT / "reference")
    for profile in assignment.profiles:
        total = sum(check.points for check in assignment.checks) + sum(curve.points for curve in profile.curves)
        assert total == 100
