"""Fuzzes the checks: what a notebook answered is recorded once, then replayed with mutations; no check may break by it.

    python -m tests.fuzz.answers 1000 [FIRST]

A check that breaks is a fault of ours: its submission could not be graded, and would hold somebody up each time.
"""

from __future__ import annotations

import copy
import math
import random
import sys
import types
from collections import deque
from pathlib import Path
from typing import Any
from unittest import mock

from grader.bench import Bench, set_up
from grader.checks import run_checks
from grader.config import load_assignment
from grader.errors import InfrastructureError
from grader.notebook import to_json
from grader.sandbox.bridge import Session, SessionOver
from grader.sandbox.limits import oom_kills
from grader.sandbox.student import Student
from grader.sandbox.tiers import pick_tier
from grader.sandbox.watcher import Clock
from grader.selftest import read_matrix, small

ROOT = Path(__file__).parents[2]
Frame = tuple[dict[str, Any], bytes]
JUNK: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        3,
        10**400,
        1e300,
        float("nan"),
        float("inf"),
        float("-inf"),
        -(10**400),
        "",
        "x",
        "\ud800",
    ),
    *([], [None], [[1, 2], [3]], {"t": []}, {"d": []}, {"d": [["a", 1]]}, {"h": [1, "Model"]}),
    *({"a": ["float32", [0, 3], 0]}, {"a": ["float32", [], 0]}, {"a": ["bool", [2, 2], 0]}, {"a": ["int64", [1], 0]}),
]


def record(bench: Bench, notebook: bytes, seed: int) -> list[Frame]:
    """Every frame that the reference's process sends while it is checked."""
    frames: list[Frame] = []
    split = bench.split

    class Recorded(Session):
        def _receive(self, deadline: float) -> Frame:
            frame = super()._receive(deadline)
            if "hello" not in frame[0]:
                frames.append(frame)
            return frame

    files = {"data/train.txt": split.train.encode(), "data/test.txt": split.test.encode()}
    environment = {"HW_DATA_DIR": "$HOME/data", "HW_PROFILE": "smoke", "HW_TIME_BUDGET_S": "60", "OMP_NUM_THREADS": "1"}
    limits = bench.profile.limits
    with Recorded(notebook=notebook, files=files, environment=environment, limits=limits, tier=bench.tier) as session:
        session.execute()
        run_checks(bench.assignment, wanted(bench), Student(session, bench.assignment.stubs_source), seed, split.test)
    return frames


class Replayed(Session):
    """A session whose process answers with frames that are given."""

    def __init__(self, bench: Bench, frames: list[Frame]) -> None:
        self.limits, self.device = bench.profile.limits, "cpu"
        self._check_deadline, self._over = math.inf, None
        self._frames, self._oom_kills, self._asked = iter(frames), oom_kills(), deque()
        self._watcher: Any = types.SimpleNamespace(killed_for=None, clock=Clock(), started_at=0.0)
        self._sealed: Any = types.SimpleNamespace(bridge=mock.Mock())  # what is sent goes nowhere

    def _receive(self, deadline: float) -> Frame:
        frame = next(self._frames, None)
        if frame is None:
            raise EOFError
        return frame


def wanted(bench: Bench) -> set[str]:
    return {check.id for check in bench.assignment.checks}


def mutated(frames: list[Frame], rng: random.Random) -> list[Frame]:
    """A few of the frames changed, dropped or repeated."""
    frames = list(frames)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        i = rng.randrange(1, len(frames))  # the first loads the stubs
        message, body = frames[i]
        kind = rng.random()
        if kind < 0.05:
            del frames[i]
        elif kind < 0.1:
            frames.insert(i, frames[i])
        elif kind < 0.3 and body:
            place = rng.randrange(len(body))
            noise = rng.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", rng.randbytes(4)))
            frames[i] = (message, (body[:place] + noise + body[place + 4 :])[: len(body)].ljust(len(body), b"\0"))
        else:
            part = rng.choice(list(message))
            frames[i] = ({**message, part: _changed(copy.deepcopy(message[part]), rng)}, body)
    return frames


def _changed(node: Any, rng: random.Random) -> Any:
    """A node with one of its parts replaced, removed or repeated."""
    parts = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
    if not parts or rng.random() < 0.15:
        return rng.choice(JUNK)
    part = rng.choice(parts)
    kind = rng.random()
    if kind < 0.1 and isinstance(node, list):
        del node[part]
    elif kind < 0.2 and isinstance(node, list):
        node.insert(part, node[part])
    else:
        node[part] = _changed(node[part], rng)
    return node if isinstance(node, (dict, list)) else rng.choice(JUNK)


def replay(bench: Bench, frames: list[Frame], seed: int) -> str:
    """What broke when the checks were given these answers; empty if nothing did."""
    try:
        student = Student(Replayed(bench, frames), bench.assignment.stubs_source)
        run_checks(bench.assignment, wanted(bench), student, seed, bench.split.test)
    except SessionOver:
        return ""
    except InfrastructureError as error:
        return str(error)
    return ""


def reference_bench() -> tuple[Bench, bytes]:
    """The homework at its smallest, and the reference's notebook."""
    assignment = load_assignment(ROOT / "reference")
    bench = set_up(assignment, small(assignment.profile("smoke")), pick_tier())
    variants = read_matrix(ROOT / "tests" / "mutants", ROOT / "tests" / "solutions", assignment)
    reference = next(variant for variant in variants if variant.name == "reference.reference")
    return bench, to_json(reference.notebook).encode()


def main(count: int, first: int = 0) -> int:
    """Replay so many mutations; how many broke a check."""
    bench, notebook = reference_bench()
    frames = record(bench, notebook, seed=0)
    broken = 0
    for number in range(first, first + count):
        problem = replay(bench, mutated(frames, random.Random(number)), seed=0)
        if problem:
            broken += 1
            print(f"{number}: {problem}")
    print(f"{broken} of {count} mutations of {len(frames)} answers broke a check")
    return broken


if __name__ == "__main__":
    sys.exit(1 if main(*map(int, sys.argv[1:])) else 0)
