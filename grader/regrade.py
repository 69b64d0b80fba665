"""Grades again what a results folder keeps, beside the gradebook, and says who would gain and who would lose by it.

The new grades lie in a gradebook of their own in a hidden folder of the results folder: nothing that counts changes
until they are published, and then nothing has to run again. Where the best attempt counts, all that may count are
graded again: which is the best may be another then.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from grader.audit import SHARE
from grader.batch import Event, Watch, grade_each
from grader.bench import Bench
from grader.executors import Workers
from grader.gradebook import Gradebook
from grader.marks import Marking, Standing
from grader.outputs import executed, submission_of, write_executed, write_student
from grader.render import no_formula
from grader.rules import lateness, rank
from grader.tables import seconds_of
from grader.types import Grade, Rules, Status, Submission

SHADOW = ".shadow"
REGRADE_CSV = "regrade.csv"
COLUMNS = (
    *("student_id", "before", "after", "change", "status_before", "status_after"),
    *("item", "outcome_before", "outcome_after", "points_before", "points_after"),
)
LEAST = 0.005  # points; what is less is rounding

Regraded = Mapping[tuple[str, str], Grade]  # by student and notebook


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One reason: a check or model that came out otherwise, what lateness costs, or that another notebook counts.

    An outcome is empty where the assignment had or has no such thing.
    """

    name: str
    outcome_before: str
    outcome_after: str
    points_before: float
    points_after: float

    @property
    def change(self) -> float:
        return self.points_after - self.points_before


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Where one student stands by what counts, marks and lateness included, and by what would count."""

    before: Standing
    after: Standing

    @property
    def student_id(self) -> str:
        return self.before.grade.student_id

    @property
    def points(self) -> float | None:
        """Gained, or lost if negative; None if either score is unknown."""
        if self.before.counts is None or self.after.counts is None:
            return None
        change = self.after.counts - self.before.counts
        return change if abs(change) >= LEAST else 0.0

    @property
    def items(self) -> tuple[Item, ...]:
        """What came out otherwise: checks and models in the order of the assignment, then lateness."""
        before, after = _outcomes(self.before), _outcomes(self.after)
        names = [*after, *(name for name in before if name not in after)]
        pairs = [(name, before.get(name, ("", 0.0)), after.get(name, ("", 0.0))) for name in names]
        return tuple(
            Item(name=name, outcome_before=old[0], outcome_after=new[0], points_before=old[1], points_after=new[1])
            for name, old, new in pairs
            if old[0] != new[0] or abs(old[1] - new[1]) >= LEAST
        )


def regrade(
    out: Path,
    grades: Iterable[Grade],
    bench: Bench,
    *,
    hired: Callable[[int], Workers],
    started_at: str,
    watch: Watch,
    audit: float = SHARE,
) -> Regraded:
    """Grade in the shadow what would be decided otherwise now, with workers for so many notebooks; the new grades.

    What the shadow holds under the same key is not graded again: a run that was stopped goes on where it stopped. A
    grade whose notebook the results folder does not keep is left as it is.

    Raises:
        Interrupted: after Ctrl-C, once the submissions in hand are finished and recorded.
    """
    new, pending = dict[tuple[str, str], Grade](), list[Submission]()
    (out / SHADOW).mkdir(exist_ok=True)
    with Gradebook.open(out / SHADOW / "gradebook.sqlite") as shadow:
        for grade in grades:
            submission = submission_of(out, grade)
            if submission is None:
                continue
            is_same = grade.score is not None and bench.key(submission) == grade.key
            known = grade if is_same else shadow.find(grade.student_id, bench.key(submission))
            if known is None:
                pending.append(submission)
                continue
            if not is_same:
                new[_notebook(grade)] = known
            watch(Event(kind="known", student_id=grade.student_id, grade=known))
        run_id = shadow.begin_run(command="regrade", profile=bench.profile.name, started_at=started_at)

        def record(grade: Grade) -> None:
            write_executed(_beside(out, grade), grade)
            shadow.add(run_id, grade)
            new[_notebook(grade)] = grade

        for some in _rounds(pending):
            grade_each(some, bench, workers=hired(len(some)), record=record, watch=watch, audit=audit)
    return new


def changes(
    before: Iterable[Grade], may_count: Iterable[Grade], new: Regraded, rules: Rules, marking: Marking
) -> list[Change]:
    """By student, what counts before, and what would count by the rules of all that may, the new grades among them.

    Where one of these could not be graded, it is what would count: nobody knows whether it is the best.
    """
    graded: dict[str, list[Grade]] = {}
    for old in may_count:
        days, penalty = _lateness(old, rules)
        grade = replace(new.get(_notebook(old), old), late_days=days, late_penalty=penalty)
        graded.setdefault(old.student_id, []).append(grade)
    return [Change(before=marking.of(one), after=marking.of(_chosen(graded[one.student_id], rules))) for one in before]


def publish(
    out: Path,
    book: Gradebook,
    changes: Iterable[Change],
    new: Regraded,
    bench: Bench,
    marking: Marking,
    *,
    started_at: str,
    published: Callable[[Grade], None],
) -> int:
    """Append the new grades to the gradebook, after the files of each student whom they decide; how many there were.

    A grade that a fault of ours prevented is left out. `published` is told of each one that is recorded.
    """
    by_student: dict[str, dict[str, Grade]] = {}
    for (student_id, sha256), grade in new.items():
        if grade.score is not None:
            by_student.setdefault(student_id, {})[sha256] = grade
    run_id = book.begin_run(command="regrade", profile=bench.profile.name, started_at=started_at)
    for change in changes:
        mine, counts = by_student.get(change.student_id, {}), change.after.grade
        if counts.submission_sha256 in mine:
            shown = replace(counts, notebook_json=executed(_beside(out, counts), counts))
            write_student(out, shown, bench.assignment, marking)
        if mine:
            book.add(run_id, *_in_their_order(book.history(change.student_id), mine))  # all or none
        for grade in mine.values():
            published(grade)
    return sum(map(len, by_student.values()))


def regrade_csv(changes: Iterable[Change]) -> str:
    """A row for each check and model that came out otherwise, and one for each student for whom none did."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for change in changes:
        before, after = change.before, change.after
        head = [no_formula(change.student_id), *map(_number, (before.counts, after.counts, change.points))]
        head += [before.grade.status.value, after.grade.status.value]
        for item in change.items:
            outcomes = (no_formula(item.name), item.outcome_before, item.outcome_after)
            writer.writerow([*head, *outcomes, _number(item.points_before), _number(item.points_after)])
        if not change.items:
            writer.writerow([*head, "", "", "", "", ""])
    return text.getvalue()


def _notebook(grade: Grade) -> tuple[str, str]:
    return grade.student_id, grade.submission_sha256


def _beside(out: Path, grade: Grade) -> Path:
    """Where the notebook as it ran for this grade is kept in the shadow: a student may have several there."""
    return out / SHADOW / grade.key


def _rounds(submissions: Iterable[Submission]) -> list[list[Submission]]:
    """All of them, each student once at most in a round: a batch tells submissions apart by their students."""
    rounds: list[list[Submission]] = []
    seen: Counter[str] = Counter()
    for submission in submissions:
        if seen[submission.student_id] == len(rounds):
            rounds.append([])
        rounds[seen[submission.student_id]].append(submission)
        seen[submission.student_id] += 1
    return rounds


def _lateness(grade: Grade, rules: Rules) -> tuple[int, float]:
    """As the gradebook has it; worked out for what a fault of ours hit, of which the gradebook reckons none."""
    if grade.score is not None:
        return grade.late_days, grade.late_penalty
    return lateness(rules, seconds_of(rules.due), seconds_of(grade.submitted_at))


def _chosen(grades: Sequence[Grade], rules: Rules) -> Grade:
    """The one that counts of a student's grades, which are in their order."""

    def worth(place: int) -> tuple[float, int]:
        grade = grades[place]
        return math.inf if grade.score is None else rank(rules, grade.score, grade.late_penalty), place

    return grades[max(range(len(grades)), key=worth)]


def _in_their_order(history: Iterable[Grade], new: Mapping[str, Grade]) -> list[Grade]:
    """What to add to a student's history for the new grades, by notebook: also once more what stands later than they.

    To be graded again makes no submission a later one. What was withdrawn stays so.
    """
    standing: dict[str, list[Grade]] = {}
    for grade in history:
        sha256 = grade.submission_sha256
        if grade.status is not Status.NEEDS_REGRADE:
            standing.pop(sha256, None)  # it stands where it was graded last
            standing[sha256] = [grade]
        elif [held.key for held in standing.get(sha256, [])] == [grade.key]:
            standing[sha256].append(grade)
    rows: list[Grade] = []
    for sha256 in [*standing, *(sha256 for sha256 in new if sha256 not in standing)]:
        if sha256 in new:
            rows.append(new[sha256])
        elif rows:
            rows += standing[sha256]
    return rows


def _outcomes(standing: Standing) -> dict[str, tuple[str, float]]:
    """Outcome and points by check, by model with `perplexity: ` before its name, of lateness, and of the notebook."""
    grade, late = standing.grade, -standing.penalty or 0.0
    found = {check.check_id: (check.outcome.value, check.points) for check in grade.checks}
    found |= {f"perplexity: {one.model}": (one.outcome.value, one.points) for one in grade.perplexities}
    return found | {"late": (f"{late:g}", late), "notebook": (grade.submission_sha256[:12], 0.0)}


def _number(number: float | None) -> str:
    return "" if number is None else str(round(number, 4))
