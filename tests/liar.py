"""Preloaded into a Dask worker: a runner that gives everybody more than full marks, or on which everything fails."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from grader import runners
from grader.errors import InfrastructureError
from grader.executors import Attempt

if runners.on_runner.__name__ != "_wrong":  # a preload is imported more than once
    _honest = runners.on_runner


def _wrong(*args: Any) -> Any:
    if os.environ["RUNNER"] == "fails":
        raise InfrastructureError("its disk is full")
    done = _honest(*args)
    if isinstance(done, Attempt) and done.grade:
        return dataclasses.replace(done, grade=dataclasses.replace(done.grade, score=done.grade.max_score + 1))
    return done


runners.on_runner = _wrong
