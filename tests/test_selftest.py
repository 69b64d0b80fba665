"""The matrix that tests the checks: it sees a survivor, a bystander, a false alarm; the checks stand up to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from grader.bench import Bench, set_up
from grader.config import load_assignment
from grader.errors import AssignmentError, UsageError
from grader.selftest import Alarms, Trial, read_matrix, run_matrix, run_seeds, small
from grader.variants import Variant
from tests.small import LIMITS, folder_with

ROOT = Path(__file__).parents[1]
MASTER = '# %% id="f"\ndef f(x):\n    return x + 1\n\n# %% id="g"\ndef g(x):\n    return 2 * x\n'
CHECKS = """
import pytest
class Known(AssertionError):
    mistake = "less"
@pytest.mark.check("f")
def test_f(student):
    if student.f(1) == 0:
        raise Known
    assert student.f(1) == 2
@pytest.mark.check("g")
def test_g(student, rng):
    x = int(rng.integers(1, 100))
    assert student.g(x) == 2 * x
"""


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """An assignment with two functions and a check for each."""
    check = {"title": "t", "points": 1, "hidden": True, "hint": "h", "mistakes": {"less": "One less, not one more."}}
    limits = {**LIMITS, "check_wall_s": 5}
    folder = folder_with(tmp_path, checks=[{"id": "f", **check}, {"id": "g", **check}], limits=limits)
    (folder / "homework.py").write_text(MASTER)
    (folder / "checks" / "test_it.py").write_text(CHECKS)
    for name in ("mutants", "solutions"):
        (folder / name).mkdir()
    write(folder / "solutions", {"name": "same", "about": "the master"})
    return folder


def write(folder: Path, *entries: dict[str, object]) -> None:
    (folder / "all.yaml").write_text(yaml.safe_dump(list(entries)))


def matrix(course: Path) -> list[Variant]:
    return read_matrix(course / "mutants", course / "solutions", load_assignment(course))


def bench_of(folder: Path, tier: str) -> Bench:
    assignment = load_assignment(folder)
    return set_up(assignment, small(assignment.profile("smoke")), tier)


def trials(course: Path, tier: str) -> dict[str, Trial]:
    found: list[Trial] = []
    run_matrix(matrix(course), bench_of(course, tier), jobs=2, report=found.append)
    return {trial.variant.name.split(".")[1]: trial for trial in found}


def test_the_matrix_sees_what_is_wrong_with_checks(course: Path, tier: str) -> None:
    """A mutant that survives, one that takes a bystander along, a wrong name for a mistake, a false alarm."""
    f, g = {"f": {"x + 1": "x - 1"}}, {"g": {"2 * x": "3 * x"}}
    write(
        course / "mutants",
        {"name": "good", "about": "f", "change": f, "fails": ["f"], "mistake": "less"},
        {"name": "survivor", "about": "nothing", "change": {"f": {"x + 1": "1 + x"}}, "fails": ["f"]},
        {"name": "bystander", "about": "both", "change": {**f, **g}, "fails": ["f"]},
        {"name": "unnamed", "about": "g", "change": g, "fails": ["g"], "mistake": "less"},
    )
    write(
        course / "solutions",
        {"name": "same", "about": "the master"},
        {"name": "wrong", "about": "no solution", "change": g},
    )
    problems = {name: trial.problem for name, trial in trials(course, tier).items()}
    assert problems == {
        "good": "",
        "survivor": "not noticed by f",
        "bystander": "bystander g",
        "unnamed": "the mistake should be called less, not nothing",
        "same": "",
        "wrong": "false alarm: g",
    }


def test_seeds_are_run_on_correct_solutions(course: Path, tier: str) -> None:
    """Each seed is one run of all checks; a wrong solution fails under those inputs that show it."""
    write(course / "mutants", {"name": "m", "about": "f", "change": {"f": "f = None"}, "fails": ["f"]})
    write(
        course / "solutions",
        {"name": "same", "about": "the master"},
        {"name": "often", "about": "wrong for odd numbers", "change": {"g": {"2 * x": "2 * x + x % 2"}}},
    )
    correct = [variant for variant in matrix(course) if not variant.fails]
    found: list[Alarms] = []
    run_seeds(correct, bench_of(course, tier), range(30), jobs=2, report=found.append)
    failures = {
        name: [one for part in found if part.name == name for one in part.failures]
        for name in ("all.same", "all.often")
    }
    assert failures["all.same"] == []
    assert 4 < len(failures["all.often"]) < 26  # about half of the inputs are odd
    assert sum(len(part.seconds) for part in found) == 60


@pytest.mark.parametrize(
    ("mutant", "words"),
    [
        ({"name": "m", "about": "a"}, "at least one check"),
        ({"name": "m", "about": "a", "fails": ["h"]}, "'h'"),
    ],
)
def test_a_mutant_must_name_checks_that_exist(course: Path, mutant: dict[str, object], words: str) -> None:
    """A typo in `fails` would make a mutant that no check has to notice."""
    write(course / "mutants", mutant)
    with pytest.raises(AssignmentError, match=words):
        matrix(course)


def test_an_empty_folder_is_no_matrix(course: Path) -> None:
    """Nothing tested must not look like nothing wrong."""
    with pytest.raises(UsageError, match=r"no \.yaml files"):
        matrix(course)


@pytest.fixture(scope="module")
def reference_trials(tier: str) -> dict[str, Trial]:
    """One mutant for each function and all that a correct solution may look like, on the homework's own checks."""
    variants = read_matrix(ROOT / "tests/mutants", ROOT / "tests/solutions", load_assignment(ROOT / "reference"))
    first = {variant.name.split(".")[0]: variant for variant in reversed(variants) if variant.fails}
    chosen = [*first.values(), *[variant for variant in variants if not variant.fails][:4]]
    found: list[Trial] = []
    run_matrix(chosen, bench_of(ROOT / "reference", tier), jobs=2, report=found.append)
    assert len(found) == len(chosen)
    return {trial.variant.name: trial for trial in found}


@pytest.mark.slow
def test_the_homework_s_checks_stand_up_to_a_part_of_their_matrix(reference_trials: dict[str, Trial]) -> None:
    """The first mutant of each file, and some correct solutions; `grader selftest` runs them all."""
    assert {name: trial.problem for name, trial in reference_trials.items() if trial.problem} == {}


def test_the_matrix_is_as_large_as_it_is_said_to_be() -> None:
    """At least 100 mutants and 16 correct solutions, each with a name of its own, and every hidden check has one."""
    assignment = load_assignment(ROOT / "reference")
    variants = read_matrix(ROOT / "tests/mutants", ROOT / "tests/solutions", assignment)
    assert len({variant.name for variant in variants}) == len(variants)
    assert sum(bool(variant.fails) for variant in variants) >= 100
    assert sum(not variant.fails for variant in variants) >= 16
    tested = {check for variant in variants for check in variant.fails}
    assert {check.id for check in assignment.checks} - tested == set()
