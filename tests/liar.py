"""Preloaded into a Dask worker: a runner that lies, or on which everything fails.

`lies` gives everybody more than full marks; `forges` turns every verdict round, and adds up rightly; `turns` does so
from its third answer on. `signs` sends full marks in the name of the runner at the address SIGNED.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
from typing import Any

from grader import runners
from grader.errors import InfrastructureError
from grader.executors import Attempt
from grader.types import Grade, Outcome

if runners.on_runner.__name__ != "_wrong":  # a preload is imported more than once
    _honest = runners.on_runner
if runners.answer.__name__ != "_signed":
    _answer: Any = runners.answer


def _wrong(*args: Any) -> Any:
    if os.environ["RUNNER"] == "fails":
        raise InfrastructureError("its disk is full")
    done = _honest(*args)
    if isinstance(done, Attempt) and done.grade:
        _answers.append(done.grade)
        return dataclasses.replace(done, grade=_LIES[os.environ["RUNNER"]](done.grade))
    return done


def _signed(*args: Any) -> Any:
    """What came of a call, with somebody else's name where there might be one."""
    error, done = pickle.loads(_answer(*args))
    if isinstance(done, Attempt) and done.grade:
        done = dataclasses.replace(done, grade=_full_marks(done.grade))
    return os.environ["SIGNED"], pickle.dumps((error, done))


def _full_marks(grade: Grade) -> Grade:
    checks = tuple(
        dataclasses.replace(check, outcome=Outcome.PASSED, points=check.max_points) for check in grade.checks
    )
    return dataclasses.replace(grade, checks=checks, score=grade.max_score)


def _more_than_full_marks(grade: Grade) -> Grade:
    return dataclasses.replace(grade, score=grade.max_score + 1)


def _turned_round(grade: Grade) -> Grade:
    checks = tuple(
        dataclasses.replace(check, outcome=Outcome.FAILED, points=0.0)
        if check.outcome is Outcome.PASSED
        else dataclasses.replace(check, outcome=Outcome.PASSED, points=check.max_points)
        for check in grade.checks
    )
    return dataclasses.replace(grade, checks=checks, score=sum(check.points for check in checks))


_LIES = {
    "lies": _more_than_full_marks,
    "forges": _turned_round,
    "turns": lambda grade: _turned_round(grade) if len(_answers) > 2 else grade,
}
_answers: list[Grade] = []


if os.environ["RUNNER"] == "signs":
    runners.answer = _signed  # type: ignore[assignment]
else:
    runners.on_runner = _wrong
