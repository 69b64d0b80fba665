"""Where a student stands: what the grader measured and what a person marked, put together in this one place.

A mark belongs to the student, not to one grade: it counts until another is given, however often the notebook is
graded again. An item without a mark is unknown, and unknown is not zero: it counts neither in the score nor in what
the score is out of. Only where nothing was handed in there is nothing to wait for: such an item has no points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from grader.errors import UsageError
from grader.render import known
from grader.render import points as points_text
from grader.types import Grade, ManualItem, Mark, Status

WAITING, MARKED, NOTHING = "waiting for a person", "marked", "nothing to mark"
NOTHING_HANDED_IN = (Status.MISSING, Status.INVALID_NOTEBOOK)


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkedItem:
    """One item as its student may see it; the guide for the person who marks is not in it."""

    id: str
    title: str
    section: str
    word: str  # WAITING, MARKED or NOTHING
    points: float | None  # None: it waits
    max_points: float
    comment: str = ""
    earlier: bool = False  # the mark was given to another notebook than the one that was graded last

    @property
    def waiting(self) -> bool:
        return self.points is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A grade, and the items that a person marks."""

    grade: Grade
    items: tuple[MarkedItem, ...]

    @property
    def waiting(self) -> tuple[MarkedItem, ...]:
        return tuple(item for item in self.items if item.waiting)

    @property
    def score(self) -> float | None:
        """Of what is known so far; None if the grade has no score."""
        score = known(self.grade.score)
        return None if score is None else round(score + sum(item.points or 0.0 for item in self.items), 4)

    @property
    def penalty(self) -> float:
        """The points that lateness costs, of what is known so far."""
        return round((self.score or 0.0) * self.grade.late_penalty, 4)

    @property
    def counts(self) -> float | None:
        """The score with the penalty taken off."""
        return None if self.score is None else round(max(0.0, self.score - self.penalty), 4)

    @property
    def late(self) -> str:
        """One sentence for its student; empty if nothing was late, or it costs nothing."""
        if not self.grade.late_penalty:
            return ""
        days = f"{self.grade.late_days} day{'s' if self.grade.late_days > 1 else ''} late"
        off = f"{points_text(self.penalty)} of {points_text(self.score)} points are taken off"
        return f"Handed in {days} (begun days count as whole): {off} ({self.grade.late_penalty:.0%})."

    @property
    def final(self) -> float | None:
        """The score once nothing waits any more; None until then."""
        return None if self.waiting else self.score

    @property
    def max_score(self) -> float:
        """What `score` is out of."""
        return round(self.grade.max_score + sum(item.max_points for item in self.items if not item.waiting), 4)

    @property
    def possible(self) -> float:
        """What the score will be out of once nothing waits."""
        return round(self.grade.max_score + sum(item.max_points for item in self.items), 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Marking:
    """The items of an assignment that a person marks, and the mark that counts for each student and item."""

    items: tuple[ManualItem, ...] = ()
    marks: Mapping[tuple[str, str], Mark] = field(default_factory=dict)

    def of(self, grade: Grade) -> Standing:
        """Where the student of this grade stands."""
        items = (_marked(item, grade, self.marks.get((grade.student_id, item.id))) for item in self.items)
        return Standing(grade=grade, items=tuple(items))

    def open(self, grades: Iterable[Grade]) -> list[tuple[Grade, MarkedItem]]:
        """What waits for a mark, or was marked on an earlier submission: item by item, then by student."""
        found = [(grade, item) for grade in grades for item in self.of(grade).items if item.waiting or item.earlier]
        place = {item.id: number for number, item in enumerate(self.items)}
        return sorted(found, key=lambda pair: (place[pair[1].id], pair[0].student_id))


UNMARKED = Marking()


def points_for(item: ManualItem, text: str) -> float:
    """The points that were typed for an item. Raises UsageError if they are no number or cannot be given."""
    most = points_text(item.points)
    try:
        points = float(text)
    except ValueError:
        points = math.nan
    if not math.isfinite(points):
        raise UsageError(f"the points {text!r} are no number: give {item.id} from 0 to {most}, as in 2.5.")
    if not 0 <= points <= item.points:
        raise UsageError(f"{text} points cannot be given: {item.id} has from 0 to {most}.")
    return points


def _marked(item: ManualItem, grade: Grade, mark: Mark | None) -> MarkedItem:
    if mark and mark.points > item.points:
        mark = None  # the item was worth more when it was marked: a person decides what that means now
    if mark:
        word, points, comment = MARKED, mark.points, mark.comment
    elif grade.status in NOTHING_HANDED_IN:
        word, points, comment = NOTHING, 0.0, ""
    else:
        word, points, comment = WAITING, None, ""
    return MarkedItem(
        id=item.id,
        title=item.title,
        section=item.section,
        word=word,
        points=points,
        max_points=item.points,
        comment=comment,
        earlier=mark is not None and mark.submission_sha256 != grade.submission_sha256,
    )
