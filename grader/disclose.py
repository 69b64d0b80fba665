"""What a student may see of a grade: the one allow-list that every page and export for students goes through.

Shown: the name, points, outcome and hint of every check; what was observed, for visible checks only. Nothing
else of a hidden check passes, nor do the words of an exception that a model raised while it was scored: by
then it had been shown held-out text, and could have put it there. Flags are questions for staff, and stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grader.types import Check, CheckResult, Grade, Outcome, PerplexityScore

WORDS = {
    Outcome.PASSED: "passed",
    Outcome.FAILED: "failed",
    Outcome.RAISED: "raised an error",
    Outcome.MISSING: "not found",
    Outcome.TIMED_OUT: "timed out",
    Outcome.MEMORY_EXCEEDED: "out of memory",
    Outcome.OUTPUT_EXCEEDED: "too much output",
    Outcome.KERNEL_DIED: "kernel died",
    Outcome.PROTOCOL_VIOLATION: "refused",
    Outcome.NOT_RUN: "not run",
}
_UNMEASURED = {
    Outcome.PASSED: "",
    Outcome.FAILED: "The model's scores could not be used: they must be finite, one for each character.",
    Outcome.RAISED: "The model raised an error while it was being scored.",
    Outcome.MISSING: "The notebook defines no such model.",
    Outcome.TIMED_OUT: "Time ran out before the model was scored.",
    Outcome.MEMORY_EXCEEDED: "Memory ran out before the model was scored.",
    Outcome.OUTPUT_EXCEEDED: "The notebook wrote too much output before the model was scored.",
    Outcome.KERNEL_DIED: "The notebook's process ended before the model was scored.",
    Outcome.PROTOCOL_VIOLATION: "What the notebook's process sent was not a model's scores.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One line of a student's feedback."""

    title: str
    section: str
    outcome: Outcome
    points: float
    max_points: float
    hidden: bool
    observed: str = ""
    hint: str = ""

    @property
    def passed(self) -> bool:
        return self.outcome is Outcome.PASSED

    @property
    def word(self) -> str:
        return WORDS[self.outcome]


def check_items(grade: Grade, checks: Sequence[Check]) -> list[Item]:
    """The checks of a grade as their student may see them, in the order of `checks`.

    A result whose check is not in `checks` is treated as hidden, and named by its id.
    """
    known = {check.id: check for check in checks}
    place = {check.id: number for number, check in enumerate(checks)}
    ordered = sorted(grade.checks, key=lambda result: place.get(result.check_id, len(place)))
    return [_item(result, known.get(result.check_id)) for result in ordered]


def _item(result: CheckResult, check: Check | None) -> Item:
    hidden = check is None or check.hidden
    passed, ran = result.outcome is Outcome.PASSED, result.outcome is not Outcome.NOT_RUN
    return Item(
        title=(check.title if check else "") or result.check_id,
        section=check.section if check else "",
        outcome=result.outcome,
        points=result.points,
        max_points=result.max_points,
        hidden=hidden,
        observed="" if hidden or passed else result.message,
        hint=check.hint if check and ran and not passed else "",  # no fault was seen if not run
    )


def unmeasured(score: PerplexityScore) -> str:
    """Why this model has no perplexity, in our words; empty if it has one."""
    if score.outcome is Outcome.NOT_RUN:
        return score.message  # written by the grader before the model saw a character
    return _UNMEASURED[score.outcome]
