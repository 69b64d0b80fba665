"""assignment.yaml is read strictly: a mistake in it is one sentence that names the file and the entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from grader.config import load_assignment
from grader.errors import AssignmentError
from grader.release import student_files, student_yaml
from grader.types import ManualItem, Runtime
from tests.small import LIMITS, folder_with

ROOT = Path(__file__).parents[2]


def test_a_good_folder_is_read(tmp_path: Path) -> None:
    """Whole numbers serve as points and seconds, and what a profile does not say comes from the assignment."""
    assignment = load_assignment(folder_with(tmp_path))
    assert assignment.checks[0].points == 2.0
    assert assignment.profile("smoke").limits.check_wall_s == 2.0
    assert assignment.profile("smoke").curves[0].model == "rnn"


def test_what_a_person_marks_is_read(tmp_path: Path) -> None:
    """Items keep their order; section and guide may be left out; an assignment may have none of them."""
    assert load_assignment(folder_with(tmp_path)).manual == ()
    essay = {"id": "essay", "title": "E", "points": 6, "section": "5", "guide": "Look for the gap."}
    assignment = load_assignment(folder_with(tmp_path, manual=[essay, {"id": "a", "title": "A", "points": 0.5}]))
    assert assignment.manual == (ManualItem(**{**essay, "points": 6.0}), ManualItem(id="a", title="A", points=0.5))


def test_models_are_trained_in_the_sandbox_unless_the_course_says_otherwise(tmp_path: Path) -> None:
    """Without a word, and in the reference, no weights are taken from anybody."""
    assert load_assignment(folder_with(tmp_path)).score == "retrain"
    assert load_assignment(ROOT / "reference").score == "retrain"
    assert load_assignment(folder_with(tmp_path, score="checkpoint")).score == "checkpoint"


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
        ({"manual": []}, "`manual` should be a list"),
        ({"manual": "essay"}, "`manual` should be a list"),
        ({"manual": [{"id": "essay", "title": "E"}]}, "manual item 'essay' lacks points"),
        ({"manual": [{"id": "essay", "title": "E", "points": 1, "hint": "x"}]}, "unknown entry hint"),
        ({"manual": [{"id": "essay", "title": "E", "points": "1"}]}, "expected float"),
        ({"manual": [{"id": 7, "title": "E", "points": 1}]}, "expected str"),
        ({"manual": [{"id": "essay", "title": "E", "points": 0}]}, "expected more than none"),
        ({"manual": [{"id": "essay", "title": "E", "points": -1}]}, "expected more than none"),
        ({"manual": [{"id": "essay", "title": "E", "points": float("nan")}]}, "expected more than none"),
        ({"manual": [{"id": "essay", "title": "E", "points": float("inf")}]}, "expected more than none"),
        ({"manual": [{"id": "essay", "title": "E", "points": 1}] * 2}, "'essay' more than once"),
        ({"manual": [{"id": "f", "title": "E", "points": 1}]}, "check or manual item 'f' more than once"),
        ({"limits": {**LIMITS, "memory": 1}}, "unknown entry memory"),
        ({"profiles": "smoke"}, "`profiles` should be a list"),
        ({"guest": "checks/nothing.py"}, "nothing.py"),
        ({"runtime": "python3"}, "`runtime` should be a mapping"),
        ({"runtime": {"python": "python3"}}, "'python3'; expected the whole path"),
        ({"runtime": {"pyhton": "/usr/bin/python3"}}, "runtime has the unknown entry pyhton"),
        ({"runtime": {"slots_per_gpu": 0}}, "`slots_per_gpu` is 0"),
        ({"score": "submitted"}, "`score` is 'submitted'; expected retrain .* or checkpoint"),
        ({"score": ["checkpoint"]}, r"`score` is \['checkpoint'\]; expected retrain"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_a_mistake_is_named(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    """Missing, unknown, mistyped and repeated entries are refused before anything is graded."""
    with pytest.raises(AssignmentError, match=sentence) as caught:
        load_assignment(folder_with(tmp_path, **changes))
    assert "assignment.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("credit", "problem"),
    [
        ([[2.0, 0], [2.8, 4]], "from \\[2, 0\\] to \\[2.8, 4\\] the nats/char should fall"),
        ([[2.8, 0], [2.8, 4]], "the nats/char should fall"),
        ([[2.8, 0], [2.0, 4], [1.9, 3]], "from \\[2, 4\\] to \\[1.9, 3\\] .* the points should not"),
        ([[2.8, 1], [2.0, 4]], "begin with 0 points"),
        ([[2.8, 0], [2.0, 0]], "end with all"),
        ([[2.8, 0]], "two or more pairs"),
        ([[2.8, 0], [2.0]], "two or more pairs"),
        (None, "two or more pairs"),
        ([[2.8, 0], [2.0, float("nan")]], "no number"),
        ([[2.8, 0], [2.0, "4"]], "no number"),
    ],
    ids=str,
)
def test_a_curve_that_is_none_is_refused(tmp_path: Path, credit: Any, problem: str) -> None:
    """It should be complete, from no points to all, and never give a better model fewer."""
    folder = folder_with(tmp_path)
    raw = yaml.safe_load((folder / "assignment.yaml").read_text())
    raw["profiles"][0]["curves"][0]["credit"] = credit
    (folder / "assignment.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(AssignmentError, match=f"profile 'smoke': curve 'rnn'.*{problem}"):
        load_assignment(folder)


@pytest.mark.parametrize(
    "other", [{"model": "gru", "credit": [[2, 0], [1, 4]]}, {"model": "rnn", "credit": [[2, 0], [1, 3]]}]
)
def test_profiles_that_give_other_points_are_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    """Who is graded on a GPU can have the same points for the same models as everybody."""
    folder = folder_with(tmp_path)
    raw = yaml.safe_load((folder / "assignment.yaml").read_text())
    raw["profiles"].append({**raw["profiles"][0], "name": "gpu", "curves": [other]})
    (folder / "assignment.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(AssignmentError, match=r"in profile 'gpu' and with .* in 'smoke'; they should agree"):
        load_assignment(folder)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"curves": None}, "`curves` should be a list"),
        ({"curves": ["rnn"]}, "`curves` should be a list"),
        ({"limits": None}, "`limits` should be a mapping"),
        ({"lanes": 0}, "`lanes` is 0"),
        ({"curves": [{"model": "rnn", "credit": [[10**400, 0], [1, 4]]}]}, "no number"),
    ],
    ids=("no curves", "curves of names", "no limits", "no lanes", "a huge number"),
)
def test_a_profile_that_is_none_is_refused(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    """Whatever stands there, the sentence names the profile and what was expected."""
    folder = folder_with(tmp_path)
    raw = yaml.safe_load((folder / "assignment.yaml").read_text())
    raw["profiles"][0] |= changes
    (folder / "assignment.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(AssignmentError, match=f"profile 'smoke'.*{problem}"):
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
    before = load_assignment(folder).checks_sha256
    (folder / "checks" / "test_f.py").write_text("# changed")
    assert load_assignment(folder).checks_sha256 != before


def test_the_homework_adds_up_to_100_points_in_every_profile() -> None:
    """Checks and perplexity together are worth 100, whichever profile grades."""
    assignment = load_assignment(ROOT / "reference")
    for profile in assignment.profiles:
        total = sum(check.points for check in assignment.checks) + sum(curve.points for curve in profile.curves)
        assert total == 100


def test_a_person_gives_ten_points_on_top() -> None:
    """Both items say where to look and what to look for."""
    items = load_assignment(ROOT / "reference").manual
    assert {item.id: item.points for item in items} == {"report.discussion": 6, "sample_text.discussion": 4}
    assert all(item.section and item.guide for item in items)


def test_students_do_not_get_what_a_person_looks_for() -> None:
    """No file of the release holds an item that a person marks, or a line of its guide."""
    files = [data.decode() for data in student_files(ROOT / "reference").values()]
    for item in load_assignment(ROOT / "reference").manual:
        assert not [text for text in files if item.id in text or item.guide[:40] in text]


def test_a_profile_says_what_it_runs_on(tmp_path: Path) -> None:
    """The CPU and the grader's own interpreter, unless the assignment or the profile names others."""
    folder = folder_with(tmp_path)
    assert load_assignment(folder).profile("smoke").runtime == Runtime()
    assert load_assignment(folder).profile("smoke").device == "cpu"
    raw = yaml.safe_load((folder / "assignment.yaml").read_text())
    raw["runtime"] = {"python": "/opt/all/bin/python"}
    own = {"device": "gpu", "runtime": {"python": "/opt/gpu/bin/python", "slots_per_gpu": 2}}
    raw["profiles"].append({**raw["profiles"][0], "name": "gpu", **own})
    read = load_assignment(folder_with(tmp_path, **raw))
    assert read.profile("smoke").runtime == Runtime(python="/opt/all/bin/python")
    assert read.profile("gpu").runtime == Runtime(python="/opt/gpu/bin/python", slots_per_gpu=2)
    assert read.profile("gpu").device == "gpu"
    raw["profiles"][1]["device"] = "tpu"
    with pytest.raises(AssignmentError, match="`device` is 'tpu'; expected cpu or gpu"):
        load_assignment(folder_with(tmp_path, **raw))


def test_students_get_no_word_of_our_machines(tmp_path: Path) -> None:
    """Which device and interpreter grading has is not released: `grader check` runs where the student is."""
    raw = yaml.safe_load((ROOT / "reference" / "assignment.yaml").read_text())
    assert any(profile.get("device") == "gpu" for profile in raw["profiles"])
    shown = yaml.safe_load(student_yaml(folder_with(tmp_path, **raw) / "assignment.yaml"))
    assert not any({"device", "runtime"} & set(profile) for profile in shown["profiles"])
