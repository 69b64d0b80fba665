"""Held-out perplexity in lock-step: the model commits to its scores before it is shown the next character.

    perplexity = exp(−(1/N) Σ ln p(x_t | x_<t))

A text of N characters is cut into B lanes of L characters. At each step the model is shown one character of every
lane and returns its scores for the next one; only then is that next character used. The softmax and the sums are
taken here, in float64: a model that peeks, rescales or prints a nicer number gains nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from grader.errors import AssignmentError
from grader.sandbox.bridge import Student, StudentError
from grader.types import Curve, Outcome, PerplexityScore, Split

ALPHABET = " abcdefghijklmnopqrstuvwxyz"  # the order in which symbols and scores cross the bridge
WARM_UP_CHARS = 20  # shown at the head of each lane, not scored
BOOTSTRAP_SAMPLES = 2000
Array = np.ndarray[Any, Any]


def indices(text: str) -> Array:
    """Characters as their places in the alphabet [N]."""
    places = np.full(256, 255, np.uint8)
    places[np.frombuffer(ALPHABET.encode(), np.uint8)] = np.arange(len(ALPHABET))
    return np.asarray(places[np.frombuffer(text.encode(), np.uint8)], np.int64)


def lanes_of(text: Array, lanes: int) -> Array:
    """Cut a text [N] into lanes [B, W + L]: W characters of warm-up, then L scored ones, each scored exactly once.

    Raises:
        AssignmentError: the text is too short for so many lanes.
    """
    length = (len(text) - WARM_UP_CHARS) // lanes
    if length < 1:
        raise AssignmentError(f"a text of {len(text)} characters is too short for {lanes} lanes: lower `lanes`.")
    starts = np.arange(lanes)[:, None] * length
    return np.asarray(text[starts + np.arange(WARM_UP_CHARS + length)])


def log_softmax(scores: Array) -> Array:
    """ln softmax over the last axis, in float64, for scores of any size."""
    shifted = scores.astype(np.float64) - scores.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def lockstep_nats(student: Student, model: str, text: Array, order: Array) -> Array:
    """Losses −ln p(x_t | x_<t) of a student's model on lanes [B, W + L], as nats [B, L].

    `order` [B] is the permutation in which the lanes are shown. Raises StudentError: what the model did wrong.
    """
    shown = text[order]
    session = student.keep(student.stubs.ref("open_model"), model, len(shown))
    nats = np.empty((len(shown), shown.shape[1] - WARM_UP_CHARS))
    for t in range(shown.shape[1] - 1):
        scores = student.stubs.step(session, shown[:, t].tolist())
        target = t + 1 - WARM_UP_CHARS
        _refuse_bad_scores(scores, len(shown))
        if target >= 0:
            nats[:, target] = -log_softmax(scores)[np.arange(len(shown)), shown[:, t + 1]]
    return np.asarray(nats[np.argsort(order)])


def score_model(student: Student, curve: Curve, split: Split, lanes: int, seed: int) -> PerplexityScore:
    """Measure one model on the held-out and on the test text; what the model did wrong becomes its outcome."""
    rng = np.random.default_rng(seed)
    try:
        held_out = lockstep_nats(student, curve.model, lanes_of(indices(split.held_out), lanes), rng.permutation(lanes))
        test = lockstep_nats(student, curve.model, lanes_of(indices(split.test), lanes), rng.permutation(lanes))
    except StudentError as error:
        return without_model(curve, error.outcome, str(error))
    blocks = held_out.mean(axis=1)
    low, high = bootstrap_interval(blocks, rng)
    nats = float(blocks.mean())
    return PerplexityScore(
        model=curve.model,
        outcome=Outcome.PASSED,
        points=credit(curve, nats),
        max_points=curve.points,
        nats_per_char=nats,
        ci_low=low,
        ci_high=high,
        num_chars=held_out.size,
        block_nats=tuple(blocks.tolist()),
        test_block_nats=tuple(test.mean(axis=1).tolist()),
    )


def without_model(curve: Curve, outcome: Outcome, message: str) -> PerplexityScore:
    """The score of a model that could not be measured."""
    return PerplexityScore(model=curve.model, outcome=outcome, points=0.0, max_points=curve.points, message=message)


def credit(curve: Curve, nats_per_char: float) -> float:
    """Points, linear in nats/char: none at the baseline, all at the target; to a hundredth of a point."""
    span = curve.baseline_nats_per_char - curve.target_nats_per_char
    share = (curve.baseline_nats_per_char - nats_per_char) / span
    return round(curve.points * min(1.0, max(0.0, share)), 2)


def bootstrap_interval(blocks: Array, rng: np.random.Generator) -> tuple[float, float]:
    """95 % interval of the mean by resampling blocks [n] with replacement."""
    picks = rng.integers(0, len(blocks), (BOOTSTRAP_SAMPLES, len(blocks)))
    low, high = np.quantile(blocks[picks].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def ngram_nats(train: Array, lanes: Array, order: int, strength: float = 5.0) -> Array:
    """Losses [B, L] of an n-gram model on lanes [B, W + L]: a yardstick computed on the same split.

    Each order backs off to the one below with a Dirichlet prior of the given strength (MacKay and Peto, 1995):
    p_k(x | c) = (count(c, x) + s p_{k−1}(x | c')) / (count(c) + s), and p_0 is uniform.
    """
    size = len(ALPHABET)
    probability = np.full(size, 1 / size)
    for k in range(1, order + 1):
        gram = np.zeros(len(train) - k + 1, np.int64)
        for i in range(k):
            gram = gram * size + train[i : len(train) - k + 1 + i]
        counts = np.bincount(gram, minlength=size**k).reshape(-1, size)
        lower = np.tile(probability.reshape(-1, size), (len(counts) // max(1, probability.size // size), 1))
        probability = (counts + strength * lower) / (counts.sum(axis=1, keepdims=True) + strength)
    context = np.zeros((lanes.shape[0], lanes.shape[1] - WARM_UP_CHARS), np.int64)
    for i in range(order):
        first = WARM_UP_CHARS - order + 1 + i
        context = context * size + lanes[:, first : first + context.shape[1]]
    return np.asarray(-np.log(probability.reshape(-1)[context]))


def baselines(split: Split, lanes: int) -> dict[str, tuple[Array, Array]]:
    """By name, the block losses of simple models on the held-out and on the test text [B]."""
    train, size = indices(split.train), len(ALPHABET)
    texts = [lanes_of(indices(text), lanes) for text in (split.held_out, split.test)]
    found = {"uniform": (np.full(lanes, np.log(size)), np.full(lanes, np.log(size)))}
    for name, order in (("unigram", 1), ("trigram", 3)):
        held_out, test = (ngram_nats(train, text, order).mean(axis=1) for text in texts)
        found[name] = (held_out, test)
    return found


def _refuse_bad_scores(scores: Any, lanes: int) -> None:
    expected = (lanes, len(ALPHABET))
    if not isinstance(scores, np.ndarray) or scores.shape != expected or scores.dtype.kind not in "fiu":
        found = f"shape {scores.shape}" if isinstance(scores, np.ndarray) else f"a {type(scores).__name__}"
        raise StudentError(Outcome.FAILED, f"The model returned {found} for one step; expected scores {expected}.")
    if not np.isfinite(scores).all():
        raise StudentError(Outcome.FAILED, "The model returned scores that are not finite (NaN or infinity).")
