"""Write one student's feedback: a single HTML page that needs nothing else and can run nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from grader import plot
from grader.cells import cells
from grader.disclose import Item, check_items, provisos, unmeasured
from grader.gradebook import best_score
from grader.marks import UNMARKED, Marking
from grader.render import known, page, perplexity
from grader.types import Check, Grade, PerplexityScore, Status

STATUS_WORDS = {
    Status.GRADED: "Graded",
    Status.MISSING: "Nothing handed in",
    Status.INVALID_NOTEBOOK: "Not a readable notebook",
    Status.RUNTIME_ERROR: "A cell raised an error",
    Status.TIMED_OUT: "Ran out of time",
    Status.MEMORY_EXCEEDED: "Ran out of memory",
    Status.KERNEL_DIED: "The notebook's process died",
    Status.PROTOCOL_VIOLATION: "Refused",
    Status.HELD_FOR_REVIEW: "A person will look at this",
    Status.NEEDS_REGRADE: "Not graded yet",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The checks of one part of the notebook."""

    title: str
    items: tuple[Item, ...]

    @property
    def points(self) -> float:
        return sum(item.points for item in self.items)

    @property
    def max_points(self) -> float:
        return sum(item.max_points for item in self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLine:
    """One model's held-out perplexity, as its student may see it."""

    model: str
    points: float
    max_points: float
    reason: str  # why there is no perplexity
    nats_per_char: float | None
    ci_low: float | None
    ci_high: float | None

    @property
    def perplexity(self) -> float | None:
        return perplexity(self.nats_per_char)

    @property
    def bits_per_char(self) -> float | None:
        return None if self.nats_per_char is None else self.nats_per_char / math.log(2)

    @property
    def interval(self) -> tuple[float, float] | None:
        """In perplexity; None if unknown."""
        low, high = perplexity(self.ci_low), perplexity(self.ci_high)
        return None if low is None or high is None else (low, high)


def feedback_html(
    grade: Grade,
    checks: Sequence[Check],
    *,
    assignment_title: str,
    duedate: str = "",
    marking: Marking = UNMARKED,
    show_notebook: bool = True,
) -> str:
    """The page for the student of this grade; what it may tell is decided in `grader.disclose`.

    Flags are not on it. A grade without a score shows why, and no points that could be read as one.
    """
    standing = marking.of(grade)
    unknown = standing.score is None
    items = [] if unknown else check_items(grade, checks)
    lines = [] if unknown else [_line(score) for score in grade.perplexities]
    measured = [
        value for line in lines for value in (line.nats_per_char, line.ci_low, line.ci_high) if value is not None
    ]
    best = None if unknown else best_score(grade)
    return page(
        "feedback.html",
        grade=grade,
        standing=standing,
        marked=() if unknown else standing.items,
        title=assignment_title,
        duedate=duedate,
        status=STATUS_WORDS[grade.status],
        weaker=provisos([grade]),
        our_fault=grade.status is Status.NEEDS_REGRADE,
        unknown=unknown,
        share=0.0 if standing.max_score <= 0 else _share(standing.counts or 0.0, standing.max_score),
        sections=_sections(items),
        passed=sum(item.passed for item in items),
        items=items,
        failed=[item for item in items if not item.passed],
        lines=lines,
        axis=plot.axis(measured) if measured else None,
        best=_line(best) if best else None,
        cells=cells(grade.notebook_json) if show_notebook else [],
    )


def _sections(items: Sequence[Item]) -> list[Section]:
    """Neighbours of one section together, in the order of the assignment."""
    return [Section(title=title, items=tuple(group)) for title, group in groupby(items, key=lambda item: item.section)]


def _line(score: PerplexityScore) -> ModelLine:
    return ModelLine(
        model=score.model,
        points=score.points,
        max_points=score.max_points,
        reason=unmeasured(score),
        nats_per_char=known(score.nats_per_char),
        ci_low=known(score.ci_low),
        ci_high=known(score.ci_high),
    )


def _share(score: float, max_score: float) -> float:
    return round(100 * min(max(score / max_score, 0.0), 1.0), 1)
