"""What a runner sends is refused, never a crash of the batch, if it is not what a grade is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from grader.bench import Bench
from grader.executors import Attempt, time_limit_s
from grader.types import Flag, Grade, Outcome, PerplexityScore
from grader.verify import objection
from tests.unit.records import NOBODY

OPEN = PerplexityScore(model="own", outcome=Outcome.PASSED, points=0.0, max_points=0.0)


def changed(done: Attempt, **changes: Any) -> Attempt:
    """The same answer with another grade."""
    assert done.grade
    return dataclasses.replace(done, grade=dataclasses.replace(done.grade, **changes))


def with_check(**changes: Any) -> Callable[[Grade], dict[str, Any]]:
    """What changes something of the grade's checks."""
    return lambda grade: {"checks": tuple(dataclasses.replace(check, **changes) for check in grade.checks)}


def test_what_an_honest_runner_sends_is_taken(honest: Attempt, bench: Bench) -> None:
    """Also numbers that are whole, and a fault instead of a grade."""
    assert objection(honest, NOBODY, bench) == ""
    assert objection(changed(honest, score=0, wall_time_s=1), NOBODY, bench) == ""
    assert objection(Attempt(grade=None, fault="its disk is full", log=""), NOBODY, bench) == ""


@pytest.mark.parametrize("change", [{"log": None}, {"fault": {"a": 1}}, {"grade": "none"}, {"log": "\ud800"}])
def test_an_answer_whose_parts_are_of_another_type_is_refused(
    change: dict[str, Any], honest: Attempt, bench: Bench
) -> None:
    """Whatever reads it later relies on the types: the log, the terminal, the database."""
    wrong: Any = dataclasses.replace(honest, **change)
    assert objection(wrong, NOBODY, bench) == "it is not made as a grade is"


@pytest.mark.parametrize(
    "change",
    [
        lambda grade: {"status": grade.status.value},
        lambda grade: {"score": True},
        lambda grade: {"max_score": 10**400},
        lambda grade: {"message": "\ud800"},
        lambda grade: {"checks": list(grade.checks)},
        lambda grade: {"flags": (("kind", "model", "evidence"),)},
        lambda grade: {"flags": (Flag(kind="MEMORISED", model="rnn", evidence=b"none"),)},  # type: ignore[arg-type]
        lambda grade: {"key_parts": {name: 1 for name in grade.key_parts}},
        lambda grade: {"perplexities": (dataclasses.replace(OPEN, block_nats=(1.0, "2")),)},
        lambda grade: {"perplexities": (dataclasses.replace(OPEN, num_chars=1 << 64),)},
        with_check(message=None),
        with_check(outcome="FAILED"),
        with_check(wall_time_s="1"),
    ],
)
def test_a_grade_whose_parts_are_of_another_type_is_refused(
    change: Callable[[Grade], dict[str, Any]], honest: Attempt, bench: Bench
) -> None:
    """However deep they lie."""
    assert honest.grade
    assert objection(changed(honest, **change(honest.grade)), NOBODY, bench) == "it is not made as a grade is"


def test_nothing_takes_longer_than_a_runner_is_given(honest: Attempt, bench: Bench) -> None:
    """Else one figure of one runner would spoil what the batch says of the time that is left."""
    for seconds in (-1.0, time_limit_s(bench) + 1, 1e308, float("inf"), float("nan")):
        assert "it took a time" in objection(changed(honest, wall_time_s=seconds), NOBODY, bench)


def test_points_that_nobody_offers_are_refused(honest: Attempt, bench: Bench) -> None:
    """A model of the open class earns none, and a runner takes none off for lateness."""
    gift = changed(honest, perplexities=(dataclasses.replace(OPEN, points=5.0),), score=5.0)
    assert objection(gift, NOBODY, bench) == "own earned points that nobody offers"
    assert "lateness" in objection(changed(honest, late_penalty=0.5), NOBODY, bench)
