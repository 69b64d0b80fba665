"""Grades to test with."""

from __future__ import annotations

from dataclasses import replace

from grader.marks import Marking
from grader.types import CheckResult, Flag, Grade, ManualItem, Mark, Outcome, PerplexityScore, Status, Submission

NOBODY = Submission(student_id="ann", path="", sha256="0", submitted_at="2026-03-01T10:00:00+00:00")
HOSTILE = [
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "\x1b[31mred",
    "'; DROP TABLE grades; --",
    "a\x00b",
    "日本",
]


def a_grade(student_id: str = "ada", **changes: object) -> Grade:
    """A full grade: every kind of part, floats that are not round, unknowns that must stay unknown."""
    base = Grade(
        student_id=student_id,
        submission_sha256="ab" * 32,
        submitted_at="2026-03-01T10:00:00+00:00",
        status=Status.GRADED,
        message="",
        score=0.1 + 0.2,
        max_score=100.0,
        checks=tuple(
            CheckResult(
                check_id=f"c{i}",
                outcome=Outcome.PASSED,
                points=1 / 3,
                max_points=2.0,
                message="m",
                wall_time_s=0.7,
            )
            for i in range(12)
        ),
        perplexities=(
            PerplexityScore(
                model="gru",
                outcome=Outcome.PASSED,
                points=3.9,
                max_points=4.0,
                nats_per_char=1.7000000000000002,
                ci_low=1.6,
                ci_high=1.8,
                num_chars=20_000,
                block_nats=(1.1, 1.3000000000000003),
                test_block_nats=(5e-324,),
            ),
            PerplexityScore(model="rnn", outcome=Outcome.NOT_RUN, points=0.0, max_points=4.0, message="why"),
        ),
        flags=(Flag(kind="MEMORISED", model="gru", evidence="0.2 against 1.7 nats/char"),),
        key="k1",
        seed=7,
        grader_version="0.1.0",
        data_sha256="cd" * 32,
        profile="smoke",
        sandbox="bubblewrap",
        wall_time_s=12.25,
        graded_at="2026-03-01T11:00:00+00:00",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


ITEMS = (
    ManualItem(id="essay", title="The essay", points=6.0, section="Part 5", guide="SECRET: the gap"),
    ManualItem(id="poem", title="The poem", points=4.0),
)


def a_mark(item: str = "essay", points: float = 4.5, **changes: object) -> Mark:
    """A mark for the notebook of `a_grade`."""
    base = Mark(
        student_id="ada",
        item=item,
        points=points,
        comment="Well put.",
        submission_sha256="ab" * 32,
        marked_by="ta",
        marked_at="2026-03-02T09:00:00+00:00",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def marking(*marks: Mark) -> Marking:
    """ITEMS with these marks."""
    return Marking(items=ITEMS, marks={(mark.student_id, mark.item): mark for mark in marks})
