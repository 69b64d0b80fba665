"""Flags are raised where a model saw the test text, and not by chance."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from grader.integrity import (
    memorised,
    permutation_p_value,
    reported_otherwise,
    reported_perplexities,
    trained_on_test,
    weights_disagree,
    weights_distance,
    weights_unknown,
)
from grader.lockstep import Reading
from grader.sandbox.bridge import StudentError
from grader.types import Flag, Outcome, PerplexityScore


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


LANES, LANE_CHARS = 200, (250, 250)  # eight lanes in each of 25 blocks


def lanes_and_yardstick(rng: np.random.Generator, spread: float = 0.06) -> tuple[np.ndarray, np.ndarray]:
    """What a model loses on the lanes of held-out and test text [2, 200], and what an n-gram does.

    Lanes differ, and so do blocks: in how hard they are for both, and in how much the n-gram lacks there.
    """
    hard = rng.normal(2.0, 0.1, (2, LANES)) + np.repeat(rng.normal(0, 0.1, (2, 25)), 8, axis=1)
    return hard + rng.normal(0, 0.03, (2, LANES)) + np.repeat(rng.normal(0, spread, (2, 25)), 8, axis=1), hard


def asked_for_flag(nats: np.ndarray, hard: np.ndarray) -> Flag | None:
    return trained_on_test(score(*nats), [(hard[0], hard[1])], LANE_CHARS)


@pytest.mark.parametrize(("saw", "kind", "easier"), [(1, "TRAINED_ON_TEST", "the test"), (0, "MEMORISED", "held-out")])
def test_a_model_that_saw_one_of_the_texts_is_flagged_with_its_p_value(saw: int, kind: str, easier: str) -> None:
    """0.1 nats/char better on one text than on the other is no chance; the flag says which, and how unlikely."""
    nats, hard = lanes_and_yardstick(np.random.default_rng(0), spread=0.02)
    nats[saw] -= 0.1
    flag = asked_for_flag(nats, hard)
    assert flag is not None
    assert flag.kind == kind
    assert f"better on {easier} text" in flag.evidence
    assert "p = 2.5e-06" in flag.evidence


def test_honest_models_are_not_flagged() -> None:
    """In 100 honest draws of blocks that differ by more than their lanes show, there is no flag.

    If lanes were relabelled one by one, as if each had been drawn, one in nine of these would have one.
    """
    rng = np.random.default_rng(1)
    assert [asked_for_flag(*lanes_and_yardstick(rng)) for _ in range(100)] == [None] * 100


def test_few_blocks_are_no_evidence() -> None:
    """With four blocks on each side no gap, however large, is less likely than 1 in 70."""
    nats, hard = lanes_and_yardstick(np.random.default_rng(2))
    nats[1] -= 0.3
    assert trained_on_test(score(*nats), [(hard[0], hard[1])], (40, 40)) is None


@pytest.mark.parametrize(("side", "kind"), [(0, "MEMORISED"), (1, "TRAINED_ON_TEST")])
def test_a_block_known_by_heart_is_found_among_others(side: int, kind: str) -> None:
    """Two blocks of 25 that are half a nat easier change the mean by less than chance does; no honest model has one."""
    nats, hard = lanes_and_yardstick(np.random.default_rng(4), spread=0.03)
    nats[side, 40:56] -= 0.5
    flag = asked_for_flag(nats, hard)
    assert flag is not None
    assert flag.kind == kind
    assert "a block of" in flag.evidence


def test_a_network_that_diverged_is_not_flagged() -> None:
    """It is worse than guessing, by more on some text than on other: that is no sign of knowing any."""
    rng = np.random.default_rng(2)
    nats, yardstick = rng.lognormal(5, 1, (2, 100)), [(np.full(100, 2.0), np.full(100, 2.0))]
    lost = dataclasses.replace(score(nats[0], nats[1]), splice_gap=-400.0, splice_gap_error=40.0)
    assert trained_on_test(lost, yardstick, LANE_CHARS) is None
    assert memorised(lost, yardstick[0]) is None


def test_a_model_that_was_not_measured_is_not_flagged() -> None:
    """Unknown is not suspicious."""
    missing = PerplexityScore(model="lstm", outcome=Outcome.MISSING, points=0.0, max_points=4.0)
    assert trained_on_test(missing, [(np.zeros(3), np.zeros(3))], LANE_CHARS) is None


@pytest.mark.parametrize(
    ("nats", "gap", "is_flagged"),
    [
        (1.2, 0.02, False),
        (1.2, 0.12, False),
        (1.2, 0.14, True),
        (1.2, -0.04, False),
        (1.2, -0.09, True),
        (1.0, 0.02, True),
        (1.0, None, True),
        (1.2, None, False),
    ],
)
def test_who_knows_the_text_is_flagged(nats: float, gap: float | None, is_flagged: bool) -> None:
    """Much worse on spliced text, better where it never existed, or better than can be learnt: a person looks."""
    knows = dataclasses.replace(score(np.full(3, nats), np.ones(3)), splice_gap=gap, splice_gap_error=gap and 0.01)
    flag = memorised(knows, (np.full(3, 1.25), np.full(3, 1.25)))
    assert (flag is not None) == is_flagged
    assert flag is None or (flag.kind, flag.model) == ("MEMORISED", "lstm")


@pytest.mark.parametrize(("nats", "gap", "is_flagged"), [(1.45, 0.07, False), (1.45, 0.12, True), (1.9, 0.1, True)])
def test_who_is_worse_has_less_to_lose(nats: float, gap: float, is_flagged: bool) -> None:
    """A gap that the best n-gram may have is too large for a model that is much worse than it."""
    poor = dataclasses.replace(score(np.full(3, nats), np.ones(3)), splice_gap=gap, splice_gap_error=0.01)
    assert (memorised(poor, (np.full(3, 1.25), np.full(3, 1.25))) is not None) == is_flagged


@pytest.mark.parametrize(
    ("nats", "distance", "points", "is_flagged"),
    [(1.3, None, 4.0, True), (1.3, 0.0, 4.0, False), (1.3, None, 0.0, False), (None, None, 4.0, False)],
    ids=("unreadable", "read", "open class", "not measured"),
)
def test_unreadable_weights_are_a_question(
    nats: float | None, distance: float | None, points: float, is_flagged: bool
) -> None:
    """To build a model so that it cannot be read must be no way around; in the open class nobody asks."""
    known = dataclasses.replace(
        score(np.ones(3), np.ones(3)), nats_per_char=nats, weights_distance=distance, max_points=points
    )
    flag = weights_unknown(known)
    assert (flag is not None) == is_flagged
    assert flag is None or (flag.kind, flag.model) == ("WEIGHTS_UNKNOWN", "lstm")


class Opened:
    """A student whose model says that it is made of these parameters."""

    def __init__(self, answer: object) -> None:
        self.answer, self.stubs = answer, self

    def ref(self, name: str) -> str:
        return name

    def keep(self, *_: object) -> str:
        return "opened"

    def weights(self, _: str) -> object:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


TEXT = np.array([[0, 1, 2, 0], [2, 2, 1, 0]])
ROWS = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]))
PLACES = np.array([2, 0, 1])  # of the symbols in the model's vocabulary, which has one more


def bigram(model: str, params: list[tuple[str, np.ndarray]], indices: np.ndarray, size: int) -> list[np.ndarray]:
    """Scores [T, S, size] of a table with a row for each index, and in a way in which nobody means it."""
    table = params[0][1]
    return [table[indices.T], 50 * np.eye(size)[np.zeros_like(indices.T)]]


def asked(log_p: np.ndarray) -> Opened:
    table = np.full((4, 4), -5.0)
    table[np.ix_(PLACES, PLACES)] = log_p
    return Opened([[["table", table]], PLACES.tolist(), 4])


def distance(student: Opened, log_p: np.ndarray) -> float | None:
    """Of a model that has read TEXT and given these ln p."""
    text = np.pad(TEXT, ((0, 0), (0, 1)))  # the last symbol is answered nothing for
    reading = Reading(nats=np.zeros((2, 4)), sample=text, sample_log_p=log_p)
    return weights_distance(student, bigram, "lstm", reading)  # type: ignore[arg-type]


def test_a_model_is_what_its_weights_compute() -> None:
    """Answers that are the weights' have distance 0, in the model's own order of symbols; others are flagged."""
    answers = ROWS[TEXT]
    same = distance(asked(ROWS), answers)
    assert same == pytest.approx(0, abs=1e-6)
    lookup = answers.copy()
    lookup[1, 3] = np.log([1e-9, 1e-9, 1.0])
    other = distance(asked(ROWS), lookup)
    assert other == pytest.approx(0.9, abs=1e-6)
    scored = score(np.ones(3), np.ones(3))
    flags = [weights_disagree(dataclasses.replace(scored, weights_distance=x)) for x in (None, same, other)]
    assert [flag and flag.kind for flag in flags] == [None, None, "WEIGHTS_DISAGREE"]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        [[], [0, 1], 4],
        [[["table", np.zeros((4, 4))]], [0, 1, 9], 4],
        [[["table", np.zeros((4, 4))]], [0, 1, 2], 10**9],
        [[["table", np.zeros((4, 4))]], [0, 1, 2.5], 4],
        [[["table", "no array"]], [0, 1, 2], 4],
        [["table"], [0, 1, 2], 4],
        [[["table", 10**400]], [0, 1, 2], 4],
        [[["table", np.zeros((1, 2_000_001))]], [0, 1, 2], 4],
        StudentError(Outcome.RAISED, "no"),
    ],
    ids=str,
)
def test_weights_that_cannot_be_read_say_nothing(answer: object) -> None:
    """Whatever comes in their place, the distance is unknown and nobody is suspected."""
    assert distance(Opened(answer), np.zeros((2, 4, 3))) is None


def test_weights_that_are_not_finite_are_none_of_a_model_that_answers() -> None:
    """nan computes nothing, so the answers come from elsewhere."""
    found = distance(asked(ROWS * np.nan), ROWS[TEXT])
    assert found is not None
    assert found > 0.5


def test_p_values_under_exchangeability_are_no_smaller_than_they_say() -> None:
    """Of 300 draws of 12 blocks on each side no more than chance allows have p below 0.1, or below 0.01."""
    rng = np.random.default_rng(3)
    p_values = np.array([permutation_p_value(*rng.normal(size=(2, 12)), seed=seed) for seed in range(300)])
    assert (p_values < 0.1).sum() <= 30 + 3 * 5.2  # three standard deviations of a binomial
    assert (p_values < 0.01).sum() <= 3 + 3 * 1.7


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
        ({"rnn": {"test_perplexity": 10**400}, "gru": {"test_perplexity": -math.inf}}, {}),
        ([1, 2], {}),
        (None, {}),
    ],
)
def test_what_a_notebook_reports_is_a_number_or_nothing(report: object, found: dict[str, float]) -> None:
    """Whatever stands where the figure should be, reading it never fails."""
    where = "report/{model}/test_perplexity"
    assert reported_perplexities(Notebook(report), where, ["rnn", "gru"]) == found  # type: ignore[arg-type]
    assert reported_perplexities(Notebook(report), "elsewhere/{model}", ["rnn"]) == {}  # type: ignore[arg-type]


def test_a_model_beyond_all_numbers_is_compared_all_the_same() -> None:
    """A loss whose perplexity no float can hold breaks nothing."""
    lost = dataclasses.replace(score(np.full(3, 2000.0), np.full(3, 2000.0)), reported=7.0)
    flag = reported_otherwise(lost)
    assert flag is not None


@pytest.mark.parametrize(
    ("nats", "factor", "flagged"), [(2.7, 0.79, False), (2.7, 0.76, True), (2.7, 1.03, True), (2.0, 0.91, True)]
)
def test_what_a_fresh_start_in_each_lane_costs_is_no_lie(nats: float, factor: float, flagged: bool) -> None:
    """Lanes of 80 characters are short for a model that has hardly learnt: its own figure may be lower by that."""
    poor = score(np.full(3, nats), np.full(3, nats))
    poor = dataclasses.replace(poor, num_chars=240, reported=factor * math.exp(nats))
    assert (reported_otherwise(poor) is not None) == flagged


@pytest.mark.parametrize(
    ("reported", "flagged"), [(10.1, False), (9.9, False), (10.3, True), (9.7, True), (None, False), (1e308, True)]
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
