"""Flags are raised where a model saw the test text, and not by chance."""

from __future__ import annotations

import numpy as np

from grader.integrity import permutation_p_value, trained_on_test
from grader.types import Outcome, PerplexityScore


def score(held_out: np.ndarray, test: np.ndarray) -> PerplexityScore:
    return PerplexityScore(
        model="lstm",
        outcome=Outcome.PASSED,
        points=4.0,
        max_points=4.0,
        nats_per_char=float(held_out.mean()),
        block_nats=tuple(held_out.tolist()),
        test_block_nats=tuple(test.tolist()),
    )


def test_a_model_that_saw_the_test_text_is_flagged_with_its_p_value() -> None:
    """0.1 nats/char better on the test text than on held-out text is no chance; the evidence says how unlikely."""
    rng = np.random.default_rng(0)
    difficulty = rng.normal(2.0, 0.1, (2, 200))
    noise = rng.normal(0, 0.05, (2, 200))
    flag = trained_on_test(
        score(difficulty[0] + noise[0], difficulty[1] - 0.1 + noise[1]), (difficulty[0], difficulty[1])
    )
    assert flag is not None
    assert flag.kind == "TRAINED_ON_TEST"
    assert "p = 1.0e-05" in flag.evidence


def test_honest_models_are_not_flagged() -> None:
    """In 300 honest draws, with blocks as different as real ones, there is no flag."""
    rng = np.random.default_rng(1)
    for _ in range(300):
        difficulty = rng.normal(2.0, 0.1, (2, 100))
        noisy = difficulty + rng.normal(0, 0.05, (2, 100))
        assert trained_on_test(score(noisy[0], noisy[1]), (difficulty[0], difficulty[1])) is None


def test_a_model_that_was_not_measured_is_not_flagged() -> None:
    """Unknown is not suspicious."""
    missing = PerplexityScore(model="lstm", outcome=Outcome.MISSING, points=0.0, max_points=4.0)
    assert trained_on_test(missing, (np.zeros(3), np.zeros(3))) is None


def test_permutation_p_value_is_exact_on_a_tiny_case() -> None:
    """Of the 6 ways to pick 2 of 4 values, one gives the largest difference: p = 1/6."""
    p_value = permutation_p_value(np.array([3.0, 4.0]), np.array([1.0, 2.0]), seed=0)
    assert abs(p_value - 1 / 6) < 0.01
