"""Which of a student's submissions counts, and what lateness costs: by the views, for every history and every rule."""

from __future__ import annotations

import math
import random
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from records import a_grade

from grader.config import load_assignment
from grader.errors import AssignmentError
from grader.export import gradescope_results, write_canvas_csv, write_grades_csv
from grader.feedback import feedback_html
from grader.gradebook import Gradebook
from grader.types import Check, Grade, Rules, Status
from tests.small import folder_with

DUE = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Gradebook]:
    with Gradebook.open(tmp_path / "gradebook.db") as opened:
        yield opened


def grade(submission: str, score: float | None, late: timedelta = timedelta(), **changes: Any) -> Grade:
    """A grade for a notebook that was handed in so long after it was due."""
    status = Status.NEEDS_REGRADE if score is None else Status.GRADED
    when = (DUE + late).isoformat()
    known = {"submission_sha256": submission, "submitted_at": when, "score": score, "status": status, "key": submission}
    return a_grade(**{**known, **changes})


def add(book: Gradebook, *grades: Grade) -> None:
    run = book.begin_run(command="grade", profile="smoke", started_at="t")
    for one in grades:
        book.add(run, one)


def seen(book: Gradebook, rules: Rules) -> list[Grade]:
    """What counts by rules, the same before they are recorded, of which nothing is, and after."""
    recorded, found = book.recorded_rules(), book.counting(rules)
    assert book.recorded_rules() == recorded
    book.record_rules(rules)
    assert book.counting(rules) == found
    return found


def counted(book: Gradebook, **rules: Any) -> tuple[float | None, int, float]:
    """Score, days late and penalty of the one student's grade that counts."""
    [one] = seen(book, Rules(**rules))
    return one.score, one.late_days, one.late_penalty


HOURS = timedelta(hours=1)
LATE = {"due": DUE.isoformat(), "penalty_per_day": 0.1}


def test_without_rules_the_latest_counts(book: Gradebook) -> None:
    """As it always was: nothing is late, every attempt counts, a fault of ours shadows nothing."""
    add(book, grade("a", 9.0), grade("b", 5.0, 99 * HOURS), grade("c", None))
    assert counted(book) == (5.0, 0, 0.0)
    assert book.counting(Rules()) == book.latest()


def test_the_best_can_count(book: Gradebook) -> None:
    """Most points first; of equals the later; a regrade takes the place of what the same notebook had before."""
    add(book, grade("a", 9.0), grade("b", 5.0))
    assert counted(book, counts="best")[0] == 9.0
    add(book, grade("a", 4.0, key="a2"))
    assert counted(book, counts="best")[0] == 5.0
    add(book, grade("c", None))
    assert counted(book, counts="best")[0] == 5.0


def test_what_an_earlier_grader_adds_meanwhile_is_as_late_as_it_is(
    book: Gradebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows no seconds, and has the gradebook open while a later one upgrades it."""
    monkeypatch.setattr("grader.gradebook.seconds_of", lambda moment: None)
    add(book, grade("a", 9.0, 25 * HOURS))
    book.record_rules(Rules(**LATE))
    monkeypatch.undo()
    assert counted(book, **LATE) == (9.0, 2, 0.2)
    add(book, grade("a", 8.0, 25 * HOURS, key="a2"))
    assert counted(book, **LATE) == (8.0, 2, 0.2)


def test_attempts_beyond_the_limit_are_recorded_and_do_not_count(book: Gradebook) -> None:
    """The third of two is on record, and counts only when the limit is lifted."""
    add(book, grade("a", 1.0), grade("b", 2.0), grade("c", 3.0))
    assert counted(book, most=2)[0] == 2.0
    assert counted(book, most=2, counts="best")[0] == 2.0
    assert counted(book)[0] == 3.0


def test_what_is_no_attempt(book: Gradebook) -> None:
    """Nothing handed in, a fault of ours, a regrade, the same notebook once more: none of them uses one up."""
    nothing = grade("-", 0.0, status=Status.MISSING, submitted_at="")
    again = (grade("a", 1.0, key="a2"), grade("a", 1.0, HOURS, key="a3"))
    add(book, nothing, grade("x", None), grade("a", 1.0), *again, grade("b", 2.0), grade("c", 3.0))
    assert counted(book, most=1)[0] == 1.0
    assert counted(book, most=2)[0] == 2.0


def test_only_a_fault_of_ours_is_still_there(book: Gradebook) -> None:
    """A student without any real grade is unknown under every rule, and not left out."""
    add(book, grade("a", None))
    for rules in ({}, {"most": 1}, {"counts": "best"}, LATE):
        assert counted(book, **rules) == (None, 0, 0.0)


@pytest.mark.parametrize(
    ("late", "days", "penalty"),
    [
        (-HOURS, 0, 0.0),
        (timedelta(), 0, 0.0),
        (timedelta(minutes=30), 0, 0.0),
        (timedelta(minutes=30, seconds=1), 1, 0.1),
        (24 * HOURS, 1, 0.1),
        (timedelta(days=1, seconds=1), 2, 0.2),
        (timedelta(days=3), 3, 0.3),
        (timedelta(days=3, seconds=1), 4, 1.0),
    ],
)
def test_begun_days_count_as_whole_after_the_grace(book: Gradebook, late: timedelta, days: int, penalty: float) -> None:
    """Within the grace nothing is late; after it the time from `due` on counts; beyond `max_days` all is lost."""
    add(book, grade("a", 9.0, late))
    score, late_days, late_penalty = counted(book, **LATE, grace_minutes=30, max_days=3)
    assert (score, late_days, late_penalty) == (9.0, days, pytest.approx(penalty))


def test_time_zones(book: Gradebook) -> None:
    """An hour is an hour, whatever zone the times are written in."""
    add(book, grade("a", 9.0, submitted_at="2026-03-01T13:00:00+01:00"))
    assert counted(book, due="2026-03-01T12:00:00+00:00", penalty_per_day=0.1)[1] == 0
    assert counted(book, due="2026-03-01T12:59:00+01:00", penalty_per_day=0.1)[1] == 1


def test_the_best_is_the_best_after_lateness(book: Gradebook) -> None:
    """A late notebook that is a little better does not replace the one in time."""
    add(book, grade("a", 8.0), grade("b", 8.5, HOURS))
    assert counted(book, **LATE, counts="best") == (8.0, 0, 0.0)
    assert counted(book, **LATE) == (8.5, 1, pytest.approx(0.1))


def test_a_notebook_is_as_late_as_when_it_was_first_handed_in(book: Gradebook) -> None:
    """A copied folder has new times on the same files: nobody is late by that."""
    add(book, grade("a", 8.0), grade("a", 8.0, 99 * HOURS, key="k2"))
    assert counted(book, **LATE) == (8.0, 0, 0.0)


def expected(history: list[Grade], rules: Rules) -> tuple[str, int, float]:
    """The same, said in Python: key, days late and penalty of the grade that counts."""
    real = [one for one in history if one.status is not Status.NEEDS_REGRADE]
    notebooks = list(dict.fromkeys(one.submission_sha256 for one in real))
    judged = []
    for number, notebook in enumerate(notebooks, start=1):
        mine = [one for one in real if one.submission_sha256 == notebook]
        late_s = (min(datetime.fromisoformat(one.submitted_at) for one in mine) - DUE).total_seconds()
        days = math.ceil(late_s / 86400) if rules.due and late_s > rules.grace_minutes * 60 else 0
        gone = rules.max_days is not None and days > rules.max_days
        penalty = 1.0 if gone else min(1.0, days * rules.penalty_per_day)
        if rules.most is None or number <= rules.most:
            judged.append((mine[-1], days, penalty))
    if not judged:
        return history[-1].key, 0, 0.0
    places = {one.key: place for place, one in enumerate(history)}

    def rank(entry: tuple[Grade, int, float]) -> tuple[float, int]:
        one, _, penalty = entry
        return ((one.score or 0.0) * (1 - penalty) if rules.counts == "best" else 0.0), places[one.key]

    one, days, penalty = max(judged, key=rank)
    return one.key, days, penalty


def test_any_history_under_any_rule(tmp_path: Path) -> None:
    """Forty random histories of one class agree with the rules as they are said in Python."""
    dice = random.Random(3)
    with Gradebook.open(tmp_path / "g.db") as book:
        histories: dict[str, list[Grade]] = {}
        for number in range(40):
            for place in range(dice.randint(1, 7)):
                score = None if dice.random() < 0.2 else float(dice.randint(0, 4))
                late = timedelta(seconds=dice.randint(-200_000, 400_000))
                key = f"{number}.{place}"
                one = grade(dice.choice("abcd"), score, late, key=key, student_id=f"s{number:02d}")
                histories.setdefault(one.student_id, []).append(one)
        add(book, *(one for history in histories.values() for one in history))
        for _ in range(12):
            rules = Rules(
                most=dice.choice([None, 1, 2]),
                counts=dice.choice(["latest", "best"]),
                due=dice.choice(["", DUE.isoformat()]),
                grace_minutes=dice.choice([0.0, 600.0]),
                penalty_per_day=dice.choice([0.25, 0.5]),
                max_days=dice.choice([None, 2]),
            )
            found = {one.student_id: (one.key, one.late_days, one.late_penalty) for one in seen(book, rules)}
            assert found == {student: expected(history, rules) for student, history in histories.items()}, rules


def test_what_counts_is_right_after_every_grade(tmp_path: Path) -> None:
    """Under rules that stay, each grade that comes in, of whichever student, changes what counts of this one only."""
    dice = random.Random(7)
    rules = Rules(most=3, counts="best", due=DUE.isoformat(), penalty_per_day=0.25, max_days=3)
    with Gradebook.open(tmp_path / "g.db") as book:
        book.record_rules(rules)
        histories: dict[str, list[Grade]] = {}
        for number in range(60):
            score = None if dice.random() < 0.3 else float(dice.randint(0, 4))
            late = timedelta(seconds=dice.randint(-200_000, 400_000))
            one = grade(dice.choice("abcd"), score, late, key=str(number), student_id=f"s{dice.randint(0, 5)}")
            histories.setdefault(one.student_id, []).append(one)
            add(book, one)
            found = {one.student_id: (one.key, one.late_days, one.late_penalty) for one in book.counting(rules)}
            assert found == {student: expected(history, rules) for student, history in histories.items()}


def test_what_counts_is_right_after_two_write_at_once(tmp_path: Path) -> None:
    """Two gradebooks open on one file, each adding grades of the same student: the best of both counts."""
    path, best = tmp_path / "g.db", Rules(counts="best")

    def write(name: str, scores: Iterable[float]) -> None:
        with Gradebook.open(path) as mine:
            add(mine, *(grade(f"{name}{score}", score) for score in scores))

    with Gradebook.open(path) as book:
        book.record_rules(best)
        writers = [Thread(target=write, args=("a", [5.0, 9.0, 1.0])), Thread(target=write, args=("b", [2.0, 8.0, 3.0]))]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert [one.score for one in book.counting(best)] == [9.0]
        assert len(book.history("ada")) == 6


def test_everybody_sees_the_same_in_the_view(book: Gradebook) -> None:
    """What another program reads from `counting` is what the grader reads; the rules are recorded once."""
    add(book, grade("a", 8.0), grade("b", 2.0, HOURS))
    for rules in (Rules(), Rules(counts="best", **LATE), Rules(counts="best", **LATE)):
        book.record_rules(rules)
        [one] = book.counting(rules)
        with closing(sqlite3.connect(book.place)) as raw:
            query = "SELECT key, late_days, late_penalty FROM counting JOIN grades ON grades.id = grade_id"
            assert raw.execute(query).fetchall() == [(one.key, one.late_days, one.late_penalty)]
    with closing(sqlite3.connect(book.place)) as raw:
        assert raw.execute("SELECT count(*) FROM rules").fetchone() == (2,)
        assert raw.execute("SELECT grades.score FROM best JOIN grades ON grades.id = grade_id").fetchall() == [(8.0,)]


def test_every_attempt_that_may_count(book: Gradebook) -> None:
    """The newest grade of each notebook within the limit if the best counts, as late as it is; else what counts."""
    add(book, grade("a", 1.0), grade("b", None), grade("b", 2.0, HOURS), grade("c", 9.0), grade("a", 3.0, key="a2"))
    add(book, grade("x", None, student_id="bob"))
    best = book.may_count(Rules(counts="best", most=2, **LATE))
    assert [(one.student_id, one.key, one.late_days) for one in best] == [
        ("ada", "b", 1),
        ("ada", "a2", 0),
        ("bob", "x", 0),
    ]
    assert [one.key for one in book.may_count(Rules(most=2))] == ["a2", "x"]
    add(book, grade("b", None))
    withdrawn = book.may_count(Rules(counts="best"))
    assert [(one.key, one.score) for one in withdrawn] == [("b", None), ("c", 9.0), ("a2", 3.0), ("x", None)]


def test_a_grade_cannot_be_given_to_somebody_else(book: Gradebook) -> None:
    """The student that a grade names is the one who handed in what was graded."""
    add(book, grade("a", 8.0))
    with closing(sqlite3.connect(book.place)) as raw:
        columns = [row[1] for row in raw.execute("PRAGMA table_info(grades)")]
        others = ", ".join(name for name in columns if name not in ("id", "student_id"))
        with pytest.raises(sqlite3.IntegrityError, match="the student who handed in"):
            raw.execute(f"INSERT INTO grades ({others}, student_id) SELECT {others}, 'eve' FROM grades")


# --- what is written ---


def test_a_penalty_is_in_every_file_that_carries_a_grade(tmp_path: Path) -> None:
    """grades.csv has it in its own column; Gradescope's score, Canvas's column and the page have it taken off."""
    late = a_grade(score=80.0, late_days=2, late_penalty=0.2)
    write_grades_csv(tmp_path / "g.csv", [late], assignment="hw")
    row = dict(zip(*(line.split(",") for line in (tmp_path / "g.csv").read_text().splitlines()), strict=True))
    names = ("raw_score", "late_submission_penalty", "score", "max_score")
    assert [row[name] for name in names] == ["80.0", "16.0", "64.0", "100.0"]
    write_canvas_csv(tmp_path / "c.csv", [late], assignment="hw", max_score=100.0)
    assert (tmp_path / "c.csv").read_text().splitlines()[-1].endswith(",64.0")
    checks = [Check(id=one.check_id, title="T", points=2.0, hidden=False, hint="") for one in late.checks]
    sentence = "Handed in 2 days late (begun days count as whole): 16 of 80 points are taken off (20%)."
    results = gradescope_results(late, checks)
    assert (results["score"], sentence in results["output"]) == (64.0, True)
    page = feedback_html(late, checks, assignment_title="hw")
    assert sentence in page
    assert '<p class="score">64 <small>' in page


def test_without_rules_no_file_mentions_lateness() -> None:
    """A grade that nothing was taken off says nothing of it."""
    assert "late" not in gradescope_results(a_grade(), [])["output"]
    assert "Handed in" not in feedback_html(a_grade(), [], assignment_title="hw")


# --- what assignment.yaml says ---


def test_rules_are_read(tmp_path: Path) -> None:
    """Without a word nothing changes; `duedate` is due if `late` does not say; YAML's own times are understood."""
    assert load_assignment(folder_with(tmp_path)).rules == Rules()
    attempts = {"count": 3, "counts": "best"}
    assert load_assignment(folder_with(tmp_path, attempts=attempts)).rules == Rules(most=3, counts="best")
    late = {"grace_minutes": 15, "penalty_per_day": 0.1, "max_days": 3}
    rules = Rules(due="2026-03-01T12:00:00+00:00", grace_minutes=15.0, penalty_per_day=0.1, max_days=3)
    for due in (DUE, "2026-03-01T12:00:00Z", "2026-03-01T12:00:00+00:00"):
        loaded = load_assignment(folder_with(tmp_path, late=late | {"due": due}))
        assert (loaded.rules, loaded.duedate) == (rules, rules.due)
    assert load_assignment(folder_with(tmp_path, late=late, duedate="2026-03-01T12:00:00Z")).rules == rules
    assert load_assignment(folder_with(tmp_path, duedate="2026-03-01T12:00:00Z")).rules == Rules()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attempts": 3}, "`attempts` should be a mapping with count, counts"),
        ({"attempts": {"most": 3}}, "`attempts` should be a mapping with count, counts"),
        ({"attempts": {"count": 0}}, "`attempts: count` is 0; expected a whole number from 1"),
        ({"attempts": {"count": True}}, "`attempts: count` is True"),
        ({"attempts": {"counts": "first"}}, "`attempts: counts` is 'first'; expected latest or best"),
        ({"late": {"penalty_per_day": 0.1}}, "lateness needs a time with a time zone"),
        ({"late": {"due": "2026-03-01T12:00:00"}}, "lateness needs a time with a time zone"),
        ({"late": {"due": "tomorrow"}}, "it is 'tomorrow'"),
        ({"late": {"due": "2026-03-01T12:00:00Z", "penalty_per_day": 10}}, "is 10; expected a share from 0 to 1"),
        ({"late": {"due": "2026-03-01T12:00:00Z", "grace_minutes": -1}}, "`late: grace_minutes` is -1"),
        ({"late": {"due": "2026-03-01T12:00:00Z", "max_days": 1.5}}, "`late: max_days` is 1.5"),
        ({"late": {"due": "2026-03-01T12:00:00Z"}, "duedate": "2026-03-02T12:00:00Z"}, "name one of them only"),
    ],
)
def test_a_mistake_in_the_rules_is_one_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    """It names the file, the entry, and what was expected."""
    with pytest.raises(AssignmentError, match=r"assignment\.yaml") as refused:
        load_assignment(folder_with(tmp_path, **changes))
    assert sentence in str(refused.value)
