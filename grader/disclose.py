"""What a student may see of a grade: the one allow-list that every page and export for students goes through.

Shown of every check: its name, purpose, points, outcome and hint, and the sentence that assignment.yaml has for a
mistake that was recognised. What was observed is shown for visible checks only: it has inputs and values in it. Nor do
the words of an exception pass that a model raised while it was scored: by then it had been shown held-out text, and
could have put it there. Flags are questions for staff, and stay.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from grader.types import Check, CheckResult, Grade, Outcome, PerplexityScore

WORDS = {
    Outcome.PASSED: "passed",
    Outcome.FAILED: "failed",
    Outcome.RAISED: "raised an error",
    Outcome.MISSING: "not found",
    Outcome.TIMED_OUT: "timed out",
    Outcome.MEMORY_EXCEEDED: "out of memory",
    Outcome.GPU_MEMORY_EXCEEDED: "out of GPU memory",
    Outcome.OUTPUT_EXCEEDED: "too much output",
    Outcome.KERNEL_DIED: "kernel died",
    Outcome.PROTOCOL_VIOLATION: "refused",
    Outcome.NOT_RUN: "not run",
}
# Of a grade with `checkpoint`, on every report.
WEAKER_PROMISE = (
    "Weights could be handed in with the notebook: nothing shows that those scored here were not trained on the "
    "held-out text."
)
# Of a grade with `cpu_instead`, on every report.
CPU_INSTEAD = (
    "This scale of the homework is meant for a GPU, and notebooks were run on the CPU, by choice of the instructor: "
    "within the same limits on time, models could learn less."
)
_UNKNOWN = "What came back is not right, and it is none of the mistakes that this check knows by name."
# What can be said of an outcome without a word from the notebook's process.
_SENTENCES = {
    Outcome.MISSING: "The name is not defined when the notebook has run, or the part is still the stub.",
    Outcome.TIMED_OUT: "The code was still running when the check's time was up: look for a loop that does not end.",
    Outcome.MEMORY_EXCEEDED: "The code ran out of memory.",
    Outcome.GPU_MEMORY_EXCEEDED: "The code ran out of GPU memory: try smaller batches, or fewer steps at once.",
    Outcome.KERNEL_DIED: "The notebook's process ended while this check ran.",
    Outcome.PROTOCOL_VIOLATION: "What came back from the notebook's process could not be read.",
}
# Exceptions whose names are no words of the student's; MXNet's own is one of them.
_EXCEPTIONS = {name for name, value in vars(builtins).items() if isinstance(value, type)} | {"MXNetError"}
_UNMEASURED = {
    Outcome.PASSED: "",
    Outcome.FAILED: "The model's scores could not be used: they must be finite, one for each character.",
    Outcome.RAISED: "The model raised an error while it was being scored.",
    Outcome.MISSING: "The notebook defines no such model.",
    Outcome.TIMED_OUT: "Time ran out before the model was scored.",
    Outcome.MEMORY_EXCEEDED: "Memory ran out before the model was scored.",
    Outcome.GPU_MEMORY_EXCEEDED: "GPU memory ran out before the model was scored.",
    Outcome.OUTPUT_EXCEEDED: "The notebook wrote too much output before the model was scored.",
    Outcome.KERNEL_DIED: "The notebook's process ended before the model was scored.",
    Outcome.PROTOCOL_VIOLATION: "What the notebook's process sent was not a model's scores.",
}


class _Recorded(Protocol):
    """A grade, or a row that is made of one."""

    @property
    def checkpoint(self) -> bool: ...

    @property
    def cpu_instead(self) -> bool: ...


def provisos(records: Iterable[_Recorded]) -> list[str]:
    """What every report says of the way in which some of its grades came about."""
    known = list(records)
    said = [WEAKER_PROMISE] if any(record.checkpoint for record in known) else []
    return said + ([CPU_INSTEAD] if any(record.cpu_instead for record in known) else [])


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One line of a student's feedback."""

    anchor: str  # of its line on a page
    title: str
    section: str
    outcome: Outcome
    points: float
    max_points: float
    hidden: bool
    purpose: str = ""
    observed: str = ""  # with values; empty for a hidden check
    diagnosis: str = ""  # the mistake in a sentence without values, if it was recognised
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
    return [_item(number, result, known.get(result.check_id)) for number, result in enumerate(ordered, 1)]


def _item(number: int, result: CheckResult, check: Check | None) -> Item:
    hidden = check is None or check.hidden
    passed, ran = result.outcome is Outcome.PASSED, result.outcome is not Outcome.NOT_RUN
    return Item(
        anchor=f"check-{number}",
        title=(check.title if check else "") or result.check_id,
        section=check.section if check else "",
        outcome=result.outcome,
        points=result.points,
        max_points=result.max_points,
        hidden=hidden,
        purpose=check.purpose if check else "",
        observed="" if hidden or passed else result.message,
        diagnosis="" if passed or not hidden else _diagnosis(result, check),
        hint=check.hint if check and ran and not passed else "",  # no fault was seen if not run
    )


def _diagnosis(result: CheckResult, check: Check | None) -> str:
    """What a student may know about a failure of a hidden check: nothing in it comes from the notebook's process."""
    if check and result.mistake in check.mistakes:
        return check.mistakes[result.mistake]
    if result.outcome is Outcome.RAISED:
        name = result.mistake if result.mistake in _EXCEPTIONS else "an exception"
        return f"The code raised {name} for inputs of the check."
    if result.outcome is Outcome.FAILED:
        return _UNKNOWN if check and check.mistakes else ""
    return _SENTENCES.get(result.outcome, "")


def unmeasured(score: PerplexityScore) -> str:
    """Why this model has no perplexity, in our words; empty if it has one."""
    if score.outcome is Outcome.NOT_RUN:
        return score.message  # written by the grader before the model saw a character
    return _UNMEASURED[score.outcome]
