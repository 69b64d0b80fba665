"""Grades again what a results folder keeps, beside the gradebook, and says who would gain and who would lose by it.

The new grades lie in a gradebook of their own in a hidden folder of the results folder: nothing that counts changes
until they are published, and then nothing has to run again.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from grader.batch import grade_each
from grader.bench import Bench
from grader.gradebook import Gradebook
from grader.marks import Marking
from grader.outputs import executed, submission_of, write_executed, write_student
from grader.render import no_formula
from grader.types import Grade, Status

SHADOW = ".shadow"
REGRADE_CSV = "regrade.csv"
COLUMNS = (
    *("student_id", "before", "after", "change", "status_before", "status_after"),
    *("item", "outcome_before", "outcome_after", "points_before", "points_after"),
)
LEAST = 0.005  # points; what is less is rounding

Report = Callable[[Grade], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One check or model that came out otherwise; an outcome is empty where the assignment had or has no such thing."""

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
    """The grade of one student that counts, and what it would be."""

    before: Grade
    after: Grade  # the same grade if nothing that decides it changed

    @property
    def points(self) -> float | None:
        """Gained, or lost if negative; None if either score is unknown."""
        if self.before.score is None or self.after.score is None:
            return None
        change = self.after.score - self.before.score
        return change if abs(change) >= LEAST else 0.0

    @property
    def items(self) -> tuple[Item, ...]:
        """What came out otherwise, in the order of the assignment."""
        before, after = _outcomes(self.before), _outcomes(self.after)
        names = [*after, *(name for name in before if name not in after)]
        pairs = [(name, before.get(name, ("", 0.0)), after.get(name, ("", 0.0))) for name in names]
        return tuple(
            Item(name=name, outcome_before=old[0], outcome_after=new[0], points_before=old[1], points_after=new[1])
            for name, old, new in pairs
            if old[0] != new[0] or abs(old[1] - new[1]) >= LEAST
        )


def regrade(
    out: Path, counting: Sequence[Grade], bench: Bench, *, jobs: int, started_at: str, report: Report
) -> tuple[list[Change], list[Grade]]:
    """Grade in the shadow what decided otherwise; the changes by student, and the grades whose notebook is not kept.

    What the shadow holds under the same key is not graded again: a run that was stopped goes on where it stopped.

    Raises:
        Interrupted: after Ctrl-C, once the submissions in hand are finished and recorded.
    """
    found, lost, pending = {grade.student_id: grade for grade in counting}, [], []
    (out / SHADOW).mkdir(exist_ok=True)
    with Gradebook.open(out / SHADOW / "gradebook.sqlite") as shadow:
        for grade in counting:
            submission = submission_of(out, grade)
            if submission is None:
                lost.append(grade)
            elif grade.score is None or bench.key(submission) != grade.key:
                known = shadow.find(grade.student_id, bench.key(submission))
                if known:
                    found[grade.student_id] = known
                else:
                    pending.append(submission)
        run_id = shadow.begin_run(command="regrade", profile=bench.profile.name, started_at=started_at)

        def record(grade: Grade) -> None:
            write_executed(out / SHADOW, grade)
            shadow.add(run_id, grade)
            found[grade.student_id] = grade
            report(grade)

        grade_each(pending, bench, jobs=jobs, record=record)
    gone = {grade.student_id for grade in lost}
    changes = [Change(before=one, after=found[one.student_id]) for one in counting if one.student_id not in gone]
    return changes, lost


def publish(
    out: Path, book: Gradebook, changes: Iterable[Change], bench: Bench, marking: Marking, *, started_at: str
) -> int:
    """Append the new grades to the gradebook, each after its student's files; how many there were.

    A grade that a fault of ours prevented is left out. Where the grade that counts is not that of the latest
    submission, the latest one's is added once more after it: to be graded again makes no submission a later one.
    """
    latest = {grade.student_id: grade for grade in book.latest()}
    run_id = book.begin_run(command="regrade", profile=bench.profile.name, started_at=started_at)
    count = 0
    for change in changes:
        after = change.after
        if after.score is None or after is change.before:
            continue
        shown = replace(after, notebook_json=executed(out / SHADOW, after))
        write_student(out, shown, bench.assignment, marking)
        newest = latest[after.student_id]
        is_older = newest.submission_sha256 != after.submission_sha256 and newest.status is not Status.NEEDS_REGRADE
        book.add(run_id, after, *([newest] if is_older else []))  # both or none
        count += 1
    return count


def regrade_csv(changes: Iterable[Change]) -> str:
    """A row for each check and model that came out otherwise, and one for each student for whom none did."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for change in changes:
        before, after = change.before, change.after
        head = [no_formula(before.student_id), *map(_number, (before.score, after.score, change.points))]
        head += [before.status.value, after.status.value]
        for item in change.items:
            outcomes = (no_formula(item.name), item.outcome_before, item.outcome_after)
            writer.writerow([*head, *outcomes, _number(item.points_before), _number(item.points_after)])
        if not change.items:
            writer.writerow([*head, "", "", "", "", ""])
    return text.getvalue()


def _outcomes(grade: Grade) -> dict[str, tuple[str, float]]:
    """Outcome and points by check, and by model with `perplexity: ` before its name."""
    found = {check.check_id: (check.outcome.value, check.points) for check in grade.checks}
    return found | {f"perplexity: {one.model}": (one.outcome.value, one.points) for one in grade.perplexities}


def _number(number: float | None) -> str:
    return "" if number is None else str(round(number, 4))
