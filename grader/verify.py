"""Whether a grade that a worker sent can be what grading that submission came to, and whether two can both be.

A worker may be another version of the grader, may mix up two submissions, or add up wrongly. All that follows from
other parts of a grade is worked out again here. The verdicts and the losses themselves are taken as they are, unless
another worker's are compared with them (`audit.py`). That every part is of its declared type is looked at first: what
reads a grade later relies on that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from grader.bench import Bench
from grader.executors import Attempt, time_limit_s
from grader.perplexity import credit
from grader.pipeline import flags_of
from grader.types import CheckResult, Grade, Outcome, PerplexityScore, Status, Submission

CLOSE = 1e-6  # of a mean over some thousand numbers, on two machines
NO_GRADE = "it is not made as a grade is"
SAME_NATS = 0.1  # nats/char between two trainings of one network, on two machines, that are not seeded


def objection(done: object, submission: Submission, bench: Bench) -> str:
    """The first thing about an answer that cannot be, as the end of a sentence; empty if there is none."""
    if not isinstance(done, Attempt):
        return "it is no answer"
    try:
        if not _is_a(done, Attempt):
            return NO_GRADE
        return next(_objections(done.grade, submission, bench), "") if done.grade else ""
    except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError):
        return NO_GRADE


def contradiction(one: Grade, other: Grade) -> str:
    """What two grades of the same submission, with the same seed, do not both say; empty if nothing of weight."""
    if one.status != other.status:
        return f"{one.status.value} or {other.status.value}"
    outcomes = [{result.check_id: result.outcome for result in grade.checks} for grade in (one, other)]
    for check_id, outcome in outcomes[0].items():
        if outcome != outcomes[1].get(check_id):
            return f"whether {check_id} {outcome.value}"
    nats = [
        {score.model: score.nats_per_char for score in grade.perplexities if score.max_points} for grade in (one, other)
    ]
    for model in sorted(set(nats[0]) | set(nats[1])):
        a, b = (found.get(model) for found in nats)
        if (a is None) != (b is None) or (a is not None and b is not None and abs(a - b) > SAME_NATS):
            return f"the perplexity of {model}"
    return ""


def _is_a(value: object, kind: Any) -> bool:
    """Whether a value is of a declared type, in all its parts; a whole number will do for a float.

    Raises ValueError for a text that no file can hold, OverflowError for a number that no database can.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(_is_a(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_a(item, parts[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_is_a(k, parts[0]) and _is_a(v, parts[1]) for k, v in value.items())
    if is_dataclass(kind):
        return type(value) is kind and all(_is_a(getattr(value, name), of) for name, of in _declared(kind).items())
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, int):
        value.to_bytes(8, "big", signed=True)
    return isinstance(value, (int, float) if kind is float else kind)


_declared = functools.cache(get_type_hints)  # by a dataclass, the types of its fields


def _objections(grade: Grade, submission: Submission, bench: Bench) -> Iterator[str]:
    if (grade.student_id, grade.submission_sha256) != (submission.student_id, submission.sha256):
        yield "it is of another submission"
    if grade.key != bench.key(submission):
        yield "another grader, other checks or another text made it"
    expected = (
        submission.submitted_at,
        bench.check_seed(submission),
        bench.split.sha256,
        bench.profile.name,
        bench.tier,
    )
    if (grade.submitted_at, grade.seed, grade.data_sha256, grade.profile, grade.sandbox) != expected:
        yield "it says that it was made in another way"
    if grade.status is Status.NEEDS_REGRADE or grade.score is None:
        yield "it has no score"
    if (grade.cpu_instead, grade.checkpoint) != (bench.cpu_instead, bench.assignment.score == "checkpoint"):
        yield "it says that it was made in another way"
    if grade.key_parts != bench.key_parts(submission):
        yield "it was decided by something else"
    if (grade.status is Status.MISSING) != (not submission.path):
        yield "it does not say rightly whether anything was handed in"
    if grade.flags and grade.status is Status.GRADED:
        yield "it has flags that nobody would look at"
    if grade.late_days or grade.late_penalty:
        yield "it takes off points for lateness, which is not a runner's to say"
    longest = time_limit_s(bench)
    if not all(0 <= took <= longest for took in (grade.wall_time_s, *(check.wall_time_s for check in grade.checks))):
        yield f"it took a time that is none, or more than the {longest:.0f} s that a submission has"
    yield from _of_checks(grade, bench)
    yield from _of_models(grade, bench)
    parts: list[CheckResult | PerplexityScore] = [*grade.checks, *grade.perplexities]
    total, possible = sum(part.points for part in parts), sum(part.max_points for part in parts)
    if not (_close(grade.score, round(total, 2)) and _close(grade.max_score, round(possible, 2))):
        yield "its score is not the sum of its parts"
    found = {(flag.kind, flag.model) for flag in flags_of({score.model: score for score in grade.perplexities}, bench)}
    if {(flag.kind, flag.model) for flag in grade.flags} != found:
        yield "its flags do not follow from its losses"


def _of_checks(grade: Grade, bench: Bench) -> Iterator[str]:
    if [result.check_id for result in grade.checks] != [check.id for check in bench.assignment.checks]:
        yield "its checks are not those of the assignment"
        return
    for result, check in zip(grade.checks, bench.assignment.checks, strict=True):
        earned = check.points if result.outcome is Outcome.PASSED else 0.0
        if (result.points, result.max_points) != (earned, check.points):
            yield f"the points of {check.id} do not follow from its outcome"


def _of_models(grade: Grade, bench: Bench) -> Iterator[str]:
    curves = {curve.model: curve for curve in bench.profile.curves}
    asked_for = [score.model for score in grade.perplexities if not score.is_open]
    if sorted(asked_for) != sorted(curves):
        yield "its models are not those of the profile"
        return
    for score in grade.perplexities:
        if score.nats_per_char is not None and not _close(score.nats_per_char, _mean(score)):
            yield f"the perplexity of {score.model} is not that of its blocks"
        if score.model in curves:
            nats, curve = score.nats_per_char, curves[score.model]
            earned = 0.0 if nats is None else credit(curve, nats)
            if not (_close(score.points, earned) and score.max_points == curve.points):
                yield f"the points of {score.model} do not follow from its perplexity"
        elif score.points:
            yield f"{score.model} earned points that nobody offers"


def _mean(score: PerplexityScore) -> float:
    return math.fsum(score.block_nats) / len(score.block_nats) if score.block_nats else math.nan


def _close(one: float | None, other: float) -> bool:
    return one is not None and (one == other or abs(one - other) <= CLOSE)
