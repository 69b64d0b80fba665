"""What grading again would change: by check, with points; and publishing it makes no submission a later one."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from records import a_grade

from grader.bench import Bench, set_up
from grader.config import load_assignment
from grader.gradebook import Gradebook
from grader.marks import UNMARKED
from grader.regrade import Change, Regraded, changes, publish, regrade_csv
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


def change(before: Grade, after: Grade) -> Change:
    return Change(before=UNMARKED.of(before), after=UNMARKED.of(after))


def published(out: Path, book: Gradebook, bench: Bench, rules: Rules, *new: Grade) -> list[Grade]:
    """Has these new grades published; those of which somebody was told."""
    told: list[Grade] = []
    by_notebook: Regraded = {(grade.student_id, grade.submission_sha256): grade for grade in new}
    found = changes(book.counting(rules), book.may_count(rules), by_notebook, rules, UNMARKED)
    count = publish(out, book, found, by_notebook, bench, UNMARKED, started_at="t", published=told.append)
    assert count == len(told)
    counts = {grade.student_id: grade for grade in book.counting(rules)}
    assert all(one.after.counts is None or one.after.grade == counts[one.student_id] for one in found)
    return told


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
    changed = change(before, after)
    assert changed.points == 3.0
    assert [(item.name, item.outcome_before, item.outcome_after, item.change) for item in changed.items] == [
        ("f", "FAILED", "PASSED", 2.0),
        ("g", "PASSED", "PASSED", 0.5),
        ("new", "", "RAISED", 0.0),
        ("gone", "PASSED", "", -1.0),
    ]
    assert [item.name for item in change(small(1.0), a_grade(perplexities=(model,), checks=())).items] == [
        "perplexity: rnn"
    ]
    assert change(before, before).items == ()


def test_unknown_is_no_change_of_points() -> None:
    """A fault of ours, before or after, is neither a gain nor a loss; its cells are empty."""
    unknown = small(None, status=Status.NEEDS_REGRADE)
    assert change(small(2.0), unknown).points is None
    assert regrade_csv([change(small(2.0), unknown)]).splitlines()[1].startswith("ada,2.0,,,graded,needs_regrade,")


def test_what_lateness_costs_is_a_reason() -> None:
    """It is taken off before and after, by itself or with a check; in the sheet, too."""
    f, late = check("f", Outcome.PASSED, 2.0), {"late_days": 2, "late_penalty": 0.2}
    one = change(small(2.0, f, **late), small(2.0, f, late_days=2, late_penalty=0.5))
    assert one.points == pytest.approx(-0.6)
    assert [(item.name, item.outcome_before, item.outcome_after) for item in one.items] == [("late", "-0.4", "-1")]
    assert regrade_csv([one]).splitlines()[1] == "ada,1.6,1.0,-0.6,graded,graded,late,-0.4,-1,-0.4,-1.0"
    gained = change(small(0.0, check("f", Outcome.FAILED, 0.0), **late), small(2.0, f, **late))
    assert (gained.points, [item.change for item in gained.items]) == (pytest.approx(1.6), [2.0, -0.4])


def attempt(notebook: str, score: float | None, key: str = "", **more: object) -> Grade:
    status = Status.NEEDS_REGRADE if score is None else Status.GRADED
    return small(score, key=key or notebook, submission_sha256=notebook * 32, status=status, **more)


BEST = Rules(counts="best")


def test_the_best_of_what_is_graded_again_counts(tmp_path: Path, bench: Bench) -> None:
    """The first was the best and fails now, the second passes now: nobody loses, whichever is looked at first."""
    with Gradebook.open(tmp_path / "g.sqlite") as book:
        book.add(
            book.begin_run(command="grade", profile="smoke", started_at="t"), attempt("aa", 2.0), attempt("bb", 0.0)
        )
        new = [attempt("aa", 0.0, "a2"), attempt("bb", 2.0, "b2")]
        by_notebook = {(grade.student_id, grade.submission_sha256): grade for grade in new}
        [one] = changes(book.counting(BEST), book.may_count(BEST), by_notebook, BEST, UNMARKED)
        assert (one.points, [item.name for item in one.items]) == (0.0, ["notebook"])
        assert published(tmp_path, book, bench, BEST, *new) == new
        assert [grade.key for grade in book.counting(BEST)] == ["b2"]


def test_a_best_that_nobody_knows_is_unknown(tmp_path: Path, bench: Bench) -> None:
    """One of two could not be graded, which may be the best: no gain, no loss; and nothing of it is published."""
    failed = attempt("aa", None, "a2")
    with Gradebook.open(tmp_path / "g.sqlite") as book:
        book.add(
            book.begin_run(command="grade", profile="smoke", started_at="t"), attempt("aa", 2.0), attempt("bb", 0.0)
        )
        [one] = changes(book.counting(BEST), book.may_count(BEST), {("ada", "aa" * 32): failed}, BEST, UNMARKED)
        assert one.points is None
        assert published(tmp_path, book, bench, BEST, failed) == []


@pytest.mark.parametrize("rules", [BEST, Rules(), Rules(most=2), Rules(counts="best", most=2)])
def test_a_regrade_makes_no_submission_a_later_one(tmp_path: Path, bench: Bench, rules: Rules) -> None:
    """Whichever counts and is graded again: it counts with its new points, and the order of attempts is as it was."""
    with Gradebook.open(tmp_path / "g.sqlite") as book:
        run = book.begin_run(command="grade", profile="smoke", started_at="t")
        book.add(run, attempt("aa", 9.0), attempt("bb", 9.0), attempt("cc", 5.0))
        published(tmp_path, book, bench, rules, *(replace(one, key=f"{one.key}2") for one in book.may_count(rules)[:1]))
        orders = {most: [one.submission_sha256[:2] for one in book.counting(Rules(most=most))] for most in (1, 2, None)}
        assert orders == {1: ["aa"], 2: ["bb"], None: ["cc"]}


def test_what_was_withdrawn_stays_withdrawn(tmp_path: Path, bench: Bench) -> None:
    """It stands later than what is graded again, and still has no score; graded again it has one, as late as it was."""
    rules = Rules(counts="best", due="2026-03-01T09:00:00+00:00", penalty_per_day=0.1)
    with Gradebook.open(tmp_path / "g.sqlite") as book:
        run = book.begin_run(command="grade", profile="smoke", started_at="t")
        book.add(run, attempt("aa", 1.0), attempt("bb", 2.0), attempt("bb", None))
        published(tmp_path, book, bench, rules, attempt("aa", 1.0, "a2"))
        assert [(grade.key, grade.score) for grade in book.latest()] == [("bb", None)]
        published(tmp_path, book, bench, rules, attempt("bb", 2.0, "b2"))
        assert [(one.key, one.late_days, one.late_penalty) for one in book.counting(rules)] == [("b2", 1, 0.1)]


def test_what_is_unknown_or_as_before_is_not_published(tmp_path: Path, bench: Bench) -> None:
    """A fault of ours takes nobody's grade away; a fault before is mended even under the same key."""
    real, unknown = small(9.0), small(None, status=Status.NEEDS_REGRADE)
    with Gradebook.open(tmp_path / "g.sqlite") as book:
        book.add(book.begin_run(command="grade", profile="smoke", started_at="t"), unknown)
        for new in ([real], [], [unknown]):
            assert published(tmp_path, book, bench, Rules(), *new) == [one for one in new if one is real]
        assert book.latest() == [real]
