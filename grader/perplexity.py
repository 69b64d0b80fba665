"""Held-out perplexity of models, its interval and its credit, from what they make of texts in lock-step.

perplexity = exp(−(1/N) Σ ln p(x_t | x_<t))
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grader.lockstep import WARM_UP_CHARS, Array, ModelEnded, Reading, indices, lanes_of, lockstep_nats
from grader.sandbox.bridge import SessionOver, StudentError
from grader.sandbox.student import Student
from grader.types import Curve, Outcome, PerplexityScore, Split

BOOTSTRAP_SAMPLES = 2000
SPLICED_CHARS = 20_000  # of the held-out text, cut up and shuffled
SEGMENT_CHARS = 25  # about as long is each piece
SPLICE_ERRORS = 4.0  # standard errors by which a gap must be larger: false alarms below 1e-4
SMALLEST_HONEST_SPLICE_GAP = -0.03  # easier, when it never existed: the model answers otherwise there
AFTER_CUT = 8  # characters by which who knows the text has found the place again


def spliced(text: Array, rng: np.random.Generator) -> Array:
    """The places [N] of a text's characters when it is cut at words into pieces of about 25, and these are shuffled.

    How long each piece is, is drawn too: whoever has the text by heart must not know where it is cut.
    """
    ends, begin, length = [], 0, 0
    for space in np.flatnonzero(text == 0) + 1:
        if space - begin >= length:
            ends.append(int(space))
            begin, length = int(space), int(rng.integers(SEGMENT_CHARS // 2, SEGMENT_CHARS * 3 // 2 - 3))
    pieces = np.split(np.arange(len(text)), ends)
    return np.concatenate([pieces[i] for i in rng.permutation(len(pieces))])


# the model and a sample of its reading -> how far its answers are from what its weights compute; None: unknown
Judge = Callable[[str, Reading], float | None]


def score_models(
    student: Student,
    curves: Sequence[Curve],
    split: Split,
    lanes: int,
    seed: int,
    judge: Judge | None = None,
    patience_s: float = math.inf,
) -> dict[str, PerplexityScore]:
    """Measure models on test, held-out and spliced held-out text; what a model did wrong becomes its outcome.

    One that earns nothing may take `patience_s` seconds for a text: it must not use up the time of the others.

    If one ends the student's process on the test text, its outcome is all there is: the others are to be asked in a
    fresh process. Held-out text is shown to one process only, as there may be ways to tell another what comes.
    """
    rng = np.random.default_rng(seed)
    held_out, test = indices(split.held_out), indices(split.test)
    places = lanes_of(spliced(held_out, rng)[: max(SPLICED_CHARS, lanes * 3 * WARM_UP_CHARS)], lanes)
    readings: dict[str, list[Reading]] = {curve.model: [] for curve in curves}
    wrong: dict[str, StudentError] = {}
    patience = {curve.model: patience_s for curve in curves if curve.points == 0}

    def read(text: Array, **how: Any) -> None:
        """One that fails on the texts by which cheating shows is not measured on the other."""
        asked = [model for model in readings if model not in wrong]
        for model, found in lockstep_nats(student, asked, text, rng, patience=patience, **how).items():
            if isinstance(found, StudentError):
                wrong[model] = found
            else:
                readings[model].append(found)

    try:
        read(lanes_of(test, lanes), at_once=1)
    except ModelEnded as ended:
        return {curve.model: _unread(curve, ended) for curve in curves if curve.model in ended.models}
    try:
        read(lanes_of(held_out, lanes), again=True)
        read(held_out[places])
        judged = [model for model in readings if model not in wrong and model not in patience]
        distances = {model: judge(model, readings[model][1]) for model in judged} if judge else {}
    except SessionOver as error:
        return {curve.model: _unread(curve, wrong.get(curve.model, error)) for curve in curves}
    return {
        curve.model: _unread(curve, wrong[curve.model])
        if curve.model in wrong
        else _score(curve, readings[curve.model], places[:, WARM_UP_CHARS:], distances.get(curve.model))
        for curve in curves
    }


def _score(curve: Curve, readings: Sequence[Reading], places: Array, distance: float | None) -> PerplexityScore:
    """From the readings of test, held-out and spliced text, of which the last holds the characters at `places`."""
    test, held_out, shuffled = readings
    blocks = held_out.nats.mean(axis=1)
    low, high = bootstrap_interval(blocks)
    gap, error = splice_gap(held_out.nats, shuffled.nats, places)
    nats = float(blocks.mean())
    return PerplexityScore(
        model=curve.model,
        outcome=Outcome.PASSED,
        points=credit(curve, nats),
        max_points=curve.points,
        nats_per_char=nats,
        ci_low=low,
        ci_high=high,
        num_chars=held_out.nats.size,
        block_nats=tuple(blocks.tolist()),
        test_block_nats=tuple(test.nats.mean(axis=1).tolist()),
        weights_distance=distance,
        splice_gap=gap,
        splice_gap_error=error,
    )


def _unread(curve: Curve, error: StudentError) -> PerplexityScore:
    return without_model(curve, error.outcome, str(error))


def splice_gap(held_out: Array, shuffled: Array, places: Array) -> tuple[float | None, float | None]:
    """What a character loses on average by being moved, in nats, and the standard error of that.

    `held_out` [B, L] are the losses in the text's own order, of the places W … W + L of each lane; `shuffled` [B, S]
    are those of the characters at `places` [B, S] of that text, in spliced order. A model that models words and
    sentences loses little; one that has the text by heart loses its place at every cut. If it makes up for that by
    better answers where it has found the place again, the gap of these characters is what counts. None, if there is too
    little text to say.
    """
    lanes, steps = held_out.shape
    in_order = np.full((lanes, WARM_UP_CHARS + steps), np.nan)
    in_order[:, WARM_UP_CHARS:] = held_out
    known = np.append(in_order.reshape(-1), np.full(lanes, np.nan))  # what is left when the lanes are cut
    differences = shuffled - known[places]
    far = _mean_and_error(np.where(_since_cut(places) < AFTER_CUT, np.nan, differences))
    if far[0] is not None and far[1] is not None and far[0] + SPLICE_ERRORS * far[1] < SMALLEST_HONEST_SPLICE_GAP:
        return far
    return _mean_and_error(differences)


def _since_cut(places: Array) -> Array:
    """How many characters before each one of a lane [B, S] are of the same piece."""
    begins = np.ones(places.shape, bool)
    begins[:, 1:] = np.diff(places, axis=1) != 1
    steps = np.arange(places.shape[1])
    return np.asarray(steps - np.maximum.accumulate(np.where(begins, steps, 0), axis=1))


def _mean_and_error(values: Array) -> tuple[float | None, float | None]:
    """The mean of what is finite, and its standard error by lanes; None if fewer than two lanes have any."""
    lanes = [lane[np.isfinite(lane)] for lane in values]
    means = np.array([lane.mean() for lane in lanes if lane.size])
    if len(means) < 2:
        return None, None
    return float(np.concatenate(lanes).mean()), float(means.std(ddof=1) / np.sqrt(len(means)))


def without_model(curve: Curve, outcome: Outcome, message: str) -> PerplexityScore:
    """The score of a model that could not be measured."""
    return PerplexityScore(model=curve.model, outcome=outcome, points=0.0, max_points=curve.points, message=message)


def credit(curve: Curve, nats_per_char: float) -> float:
    """Points by a curve whose nats/char are as they are, to a hundredth of a point."""
    nats, points = zip(*reversed(curve.credit), strict=True)
    return round(float(np.interp(nats_per_char, nats, points)), 2)


def bootstrap_interval(blocks: Array) -> tuple[float, float]:
    """95 % interval of the mean of blocks [n], by resampling them with replacement; the same every time.

    Of the differences of two entries' blocks it is the paired bootstrap.
    """
    low, high = np.quantile(_resamples(len(blocks)) @ blocks, (0.025, 0.975))
    return float(low), float(high)


@functools.cache
def _resamples(n: int) -> Array:
    """How much each of n blocks weighs in each of the samples [BOOTSTRAP_SAMPLES, n]."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), BOOTSTRAP_SAMPLES) / n
