"""Flags are raised where a model saw the test text, and not by chance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from grader.integrity import permutation_p_value, reported_otherwise, reported_perplexities, trained_on_test
from grader.sandbox.bridge import StudentError
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


class Notebook:
    """Has one global, or none."""

    def __init__(self, value: object) -> None:
        self.value = value

    def get(self, name: str) -> object:
        if name != "report":
            raise StudentError(Outcome.MISSING, "not there")
        return self.value


@pytest.mark.parametrize(
    ("report", "found"),
    [
        ({"rnn": {"test_perplexity": 7.5}, "gru": {"test_perplexity": 6}}, {"rnn": 7.5, "gru": 6.0}),
        ({"rnn": {"test_perplexity": np.array([7.5])}}, {"rnn": 7.5}),
        ({"rnn": {"test_perplexity": "7.5"}, "gru": {"test_perplexity": math.nan}}, {}),
        ({"rnn": {"test_perplexity": True}, "gru": 3}, {}),
        ([1, 2], {}),
        (None, {}),
    ],
)
def test_what_a_notebook_reports_is_a_number_or_nothing(report: object, found: dict[str, float]) -> None:
    """Whatever stands where the figure should be, reading it never fails."""
    where = "report/{model}/test_perplexity"
    assert reported_perplexities(Notebook(report), where, ["rnn", "gru"]) == found  # type: ignore[arg-type]
    assert reported_perplexities(Notebook(report), "elsewhere/{model}", ["rnn"]) == {}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reported", "flagged"), [(10.1, False), (9.9, False), (10.3, True), (9.7, True), (None, False)]
)
def test_a_report_that_differs_from_the_measurement_is_flagged(reported: float | None, flagged: bool) -> None:
    """Beyond 2 %, in either direction; both figures are in the evidence."""
    score = PerplexityScore(
        model="gru",
        outcome=Outcome.PASSED,
        points=4.0,
        max_points=4.0,
        test_block_nats=(math.log(10) - 0.1, math.log(10) + 0.1),
        reported=reported,
    )
    flag = reported_otherwise(score)
    assert (flag is not None) == flagged
    if flag:
        assert (flag.kind, flag.model) == ("REPORTED_OTHERWISE", "gru")
        assert "10" in flag.evidence
        assert f"{reported:.4g}" in flag.evidence
