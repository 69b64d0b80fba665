"""What grading again would change: by check, with points; and publishing it makes no submission a later one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from records import a_grade

from grader.bench import Bench, set_up
from grader.config import load_assignment
from grader.gradebook import Gradebook
from grader.marks import UNMARKED
from grader.regrade import Change, publish, regrade_csv
from grader.types import CheckResult, Grade, Outcome, PerplexityScore, Rules, Status
from tests.small import folder_with


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "assignment").mkdir()
    assignment = load_assignment(folder_with(tmp_path / "assignment", corpus="time-machine", curves=False))
    (tmp_path / "text.txt").write_text("".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz ", k=180_000)))
    return set_up(assignment, assignment.profile("smoke"), "none", str(tmp_path / "text.txt"))


def check(name: str, outcome: Outcome, points: float) -> CheckResult:
    return CheckResult(check_id=name, outcome=outcome, points=points, max_points=2.0)


def small(score: float | None, *checks: CheckResult, **changes: object) -> Grade:
    return a_grade(score=score, checks=checks, perplexities=(), flags=(), **changes)


def test_only_what_came_out_otherwise_is_named() -> None:
    """A check that is new, one that is gone, one with another outcome, one worth more; not the one as before."""
    same = check("same", Outcome.PASSED, 2.0)
    model = PerplexityScore(model="rnn", outcome=Outcome.PASSED, points=1.0, max_points=4.0)
    before = small(
        4.0, same, check("gone", Outcome.PASSED, 1.0), check("f", Outcome.FAILED, 0.0), check("g", Outcome.PASSED, 1.0)
    )
    after = small(
        7.0, same, check("f", Outcome.PASSED, 2.0), check("g", Outcome.PASSED, 1.5), check("new", Outcome.RAISED, 0.0)
    )
    changed = Change(before=before, after=after)
    assert changed.points == 3.0
    assert [(item.name, item.outcome_before, item.outcome_after, item.change) for item in changed.items] == [
        ("f", "FAILED", "PASSED", 2.0),
        ("g", "PASSED", "PASSED", 0.5),
        ("new", "", "RAISED", 0.0),
        ("gone", "PASSED", "", -1.0),
    ]
    assert [item.name for item in Change(before=small(1.0), after=a_grade(perplexities=(model,), checks=())).items] == [
        "perplexity: rnn"
    ]
    assert Change(before=before, after=before).items == ()


def test_unknown_is_no_change_of_points() -> None:
    """A fault of ours, before or after, is neither a gain nor a loss; its cells are empty."""
    unknown = small(None, status=Status.NEEDS_REGRADE)
    assert Change(before=small(2.0), after=unknown).points is None
    assert (
        regrade_csv([Change(before=small(2.0), after=unknown)])
        .splitlines()[1]
        .startswith("ada,2.0,,,graded,needs_regrade,")
    )


def test_a_regrade_makes_no_submission_a_later_one(tmp_path: Path, bench: Bench) -> None:
    """The best counts and is graded again: it counts with its new points, and the latest is still the latest."""
    first, last = small(9.0, key="a", submission_sha256="aa" * 32), small(5.0, key="b", submission_sha256="bb" * 32)
    after, rules = small(8.0, key="a2", submission_sha256="aa" * 32), Rules(counts="best")
    with Gradebook.open(tmp_path / "g.sqlite") as book:
        run = book.begin_run(command="grade", profile="smoke", started_at="t")
        for grade in (first, last):
            book.add(run, grade)
        assert book.counting(rules) == [first]
        assert publish(tmp_path, book, [Change(before=first, after=after)], bench, UNMARKED, started_at="t") == 1
        assert (book.counting(rules), book.latest()) == ([after], [last])


def test_what_is_unknown_or_as_before_is_not_published(tmp_path: Path, bench: Bench) -> None:
    """A fault of ours takes nobody's grade away; a fault before is mended even under the same key."""
    real, unknown = small(9.0), small(None, status=Status.NEEDS_REGRADE)
    with Gradebook.open(tmp_path / "g.sqlite") as book:
        run = book.begin_run(command="grade", profile="smoke", started_at="t")
        book.add(run, unknown)
        for change, count in ((Change(before=unknown, after=real), 1), (Change(before=real, after=real), 0)):
            assert publish(tmp_path, book, [change], bench, UNMARKED, started_at="t") == count
        assert publish(tmp_path, book, [Change(before=real, after=unknown)], bench, UNMARKED, started_at="t") == 0
        assert book.latest() == [real]
