"""Whatever a notebook's process answers, no check breaks by it: that would be a fault of ours, again and again."""

from __future__ import annotations

import random

import pytest

from grader.bench import Bench
from tests.fuzz.answers import Frame, mutated, record, reference_bench, replay

SEED, MUTATIONS = 0, 40  # a few; `python -m tests.fuzz.answers 1000` for more


@pytest.fixture(scope="module")
def recorded() -> tuple[Bench, list[Frame]]:
    bench, notebook = reference_bench()
    return bench, record(bench, notebook, SEED)


def test_no_answer_breaks_a_check(recorded: tuple[Bench, list[Frame]]) -> None:
    """Answers with parts replaced, dropped, repeated or full of noise fail checks, and nothing else."""
    bench, frames = recorded
    assert len(frames) > 500
    broken = {number: replay(bench, mutated(frames, random.Random(number)), SEED) for number in range(MUTATIONS)}
    assert {number: problem for number, problem in broken.items() if problem} == {}
