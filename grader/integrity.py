"""Compares measurements that should agree, and raises flags with their evidence; a flag deducts nothing.

TRAINED_ON_TEST: the test text, which the notebook is given, and the held-out text, which it never sees, are drawn
alike, in whole blocks of the corpus. A model that learnt from the test text is better there. Blocks differ in
difficulty, so what n-grams of the training text lose on the same lanes is taken out first.

MEMORISED: held-out text that is cut at words into pieces of about 25 characters and shuffled never existed. A model of
the language loses a few hundredths of a nat per character there; one that looks texts up loses its place at each cut.
The same flag is raised for a model that is better on held-out text than on test text.

WEIGHTS_DISAGREE: where the parameters of a model can be read, the grader computes from them what the model should have
answered to text it was scored on. A table behind the face of a network answers otherwise.

WEIGHTS_UNKNOWN: the parameters of a model that was asked for cannot be read as those of such a network.

REPORTED_OTHERWISE: the perplexity on the test text that the notebook itself reports, against the one measured here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grader.lockstep import ALPHABET, Array, Reading, log_softmax
from grader.perplexity import SMALLEST_HONEST_SPLICE_GAP, SPLICE_ERRORS
from grader.sandbox.bridge import SessionOver, StudentError
from grader.sandbox.student import Student
from grader.split import BLOCK_CHARS
from grader.types import Flag, PerplexityScore

PERMUTATIONS = 400_000
ENOUGH_HITS = 1000
P_VALUE = 5e-5  # in either direction: false alarms below 1e-4 for an honest model
REPORTED_TOLERANCE = 0.02  # nats/char
LANE_START_NATS = 20.0  # of a lane, for the state that begins anew; up to 10.6 where a network has hardly learnt,
HARDLY_LEARNT = 2.4  # nats/char, about what pairs of letters tell; of those below, none lost more than 0.7
LARGEST_NATS = 700.0  # of which the perplexity is a number
LARGEST_HONEST_SPLICE_GAP = 0.09  # nats/char; a 9-gram loses as much (`python -m tests.splices`)
WORSE_MODEL = 0.1  # of what a model is worse than the 7-gram, its gap must be smaller by this,
LARGEST_POOR_SPLICE_GAP = 0.05  # down to here: the less a model knows of the language, the less it has to lose
MOST_WEIGHTS = 2_000_000  # what they compute is computed here, outside every limit of the sandbox
SAME_ANSWER = 0.02  # total variation; float32, TF32 and float16 stay below
BEST_HONEST_GAIN = 0.2  # nats/char, on a Kneser-Ney 7-gram; PPMd, which learns as it reads, gains up to 0.07
GUESSING = math.log(len(ALPHABET))  # nats/char
EASY_BLOCK = 0.3  # nats/char by which no block is easier than n-grams explain; of honest models, up to 0.12
MINIMUM_GAP = 0.02  # nats/char; a smaller one is not worth a human's time


def trained_on_test(
    score: PerplexityScore,
    yardsticks: Sequence[tuple[Array, Array]],
    lane_chars: tuple[int, int],
    *,
    alike: tuple[int | None, int | None] = (None, None),
    seed: int = 0,
) -> Flag | None:
    """A flag if one of test and held-out text is easier for the model than the other by more than chance explains.

    `yardsticks` hold what n-grams lose on the same held-out and test lanes, which are `lane_chars` long; the first
    `alike` of them (None: all) are of drawn blocks, and only these count: whole works may well differ. What n-grams
    explain is taken out by a least-squares fit to all these lanes, which is not told what is test text. The p-value is
    that of a one-sided permutation test, with a fixed seed, of what was drawn: blocks of the corpus, with all their
    lanes. Lanes of one block are alike, and as many draws of one each would look like more evidence than there is.
    """
    if not score.block_nats[: alike[0]] or not score.test_block_nats[: alike[1]]:
        return None
    left = relative_losses(score, yardsticks, alike)
    held_out, test = (_blocks(part, chars) for part, chars in zip(left, lane_chars, strict=True))
    for where, blocks, kind in (("held-out", held_out, "MEMORISED"), ("test", test, "TRAINED_ON_TEST")):
        easiest = float((blocks[0] / blocks[1]).min())
        if easiest < -EASY_BLOCK:
            evidence = (
                f"a block of {where} text is {-easiest:.2f} nats/char easier for it than n-grams of the training text "
                f"explain; for other models no block is by {EASY_BLOCK}"
            )
            return Flag(kind=kind, model=score.model, evidence=evidence)
    gap = float(left[0].mean() - left[1].mean())
    if abs(gap) < MINIMUM_GAP:
        return None
    larger, smaller = (held_out, test) if gap > 0 else (test, held_out)
    p_value = permutation_p_value(larger[0], smaller[0], seed)
    if p_value > P_VALUE:
        return None
    easier, harder = ("the test text", "held-out text") if gap > 0 else ("held-out text", "the test text")
    evidence = (
        f"{abs(gap):.3f} nats/char better on {easier} than on {harder} of the same draw, relative to n-grams of the "
        f"training text (permutation test of blocks, p = {p_value:.1e})"
    )
    return Flag(kind="TRAINED_ON_TEST" if gap > 0 else "MEMORISED", model=score.model, evidence=evidence)


def relative_losses(
    score: PerplexityScore,
    yardsticks: Sequence[tuple[Array, Array]],
    alike: tuple[int | None, int | None] = (None, None),
) -> tuple[Array, Array]:
    """What no n-gram explains of the losses on the first lanes of held-out and of test text; its mean is zero.

    A lane on which a model does worse than to guess counts as guessed: what a network that diverged loses says nothing.
    """
    guessed = (np.minimum(lanes, GUESSING) for lanes in (score.block_nats, score.test_block_nats))
    ours, *ngrams = [
        np.concatenate([lanes[:end] for lanes, end in zip(texts, alike, strict=True)])
        for texts in (tuple(guessed), *yardsticks)
    ]
    known = np.stack([np.ones(len(ours)), *ngrams], axis=1)
    left = ours - known @ np.linalg.lstsq(known, ours, rcond=None)[0]
    held_out = len(score.block_nats[: alike[0]])
    return left[:held_out], left[held_out:]


def _blocks(lanes: Array, lane_chars: int) -> Array:
    """The sum of what lies in each block of the corpus, and of how many characters [2, blocks].

    A lane counts where its middle is.
    """
    block = ((np.arange(len(lanes)) + 0.5) * lane_chars // BLOCK_CHARS).astype(int)
    block = np.unique(block, return_inverse=True)[1]
    chars = np.full(len(lanes), lane_chars)
    return np.stack([np.bincount(block, weights=lanes * chars), np.bincount(block, weights=chars)])


def memorised(score: PerplexityScore, best_ngram: tuple[Array, Array]) -> Flag | None:
    """A flag if spliced text is much harder for the model, or strangely easier; or if it is better than can be learnt.

    `best_ngram` holds the losses of the best n-gram model on the same held-out and test blocks.
    """
    ngram = float(best_ngram[0].mean())
    if score.nats_per_char is not None and score.nats_per_char < ngram - BEST_HONEST_GAIN:
        evidence = (
            f"{score.nats_per_char:.3f} nats/char on held-out text, where an n-gram model of all training text has "
            f"{ngram:.3f}: no model of this size is known to gain {BEST_HONEST_GAIN}"
        )
        return Flag(kind="MEMORISED", model=score.model, evidence=evidence)
    if score.splice_gap is None or score.splice_gap_error is None or (score.nats_per_char or 0.0) >= GUESSING:
        return None
    margin = SPLICE_ERRORS * score.splice_gap_error
    worse = (score.nats_per_char or 0.0) - ngram
    largest = LARGEST_HONEST_SPLICE_GAP - WORSE_MODEL * max(0.0, worse)
    largest = max(largest, LARGEST_POOR_SPLICE_GAP)
    is_easier = score.splice_gap + margin < SMALLEST_HONEST_SPLICE_GAP
    if not is_easier and score.splice_gap - margin <= largest:
        return None
    evidence = (
        f"{score.splice_gap:.3f} ± {score.splice_gap_error:.3f} nats/char worse when held-out text is cut up and "
        f"shuffled; a model that does not know the text, and is as good, loses from {SMALLEST_HONEST_SPLICE_GAP} to "
        f"{largest:.2f}"
    )
    return Flag(kind="MEMORISED", model=score.model, evidence=evidence)


def weights_disagree(score: PerplexityScore) -> Flag | None:
    """A flag if the model's answers are not what its own weights compute."""
    if score.weights_distance is None or score.weights_distance <= SAME_ANSWER:
        return None
    evidence = (
        f"its weights, read as the network that they belong to, give other probabilities than it answered when it was "
        f"scored: up to {score.weights_distance:.2f} apart (total variation)"
    )
    return Flag(kind="WEIGHTS_DISAGREE", model=score.model, evidence=evidence)


def weights_unknown(score: PerplexityScore) -> Flag | None:
    """A flag if nobody can say what a model computes that was asked for.

    To have weights that cannot be read is no offence, but it must not be a way around being compared with them.
    """
    if score.is_open or score.nats_per_char is None or score.weights_distance is not None:
        return None
    evidence = "its weights cannot be read as those of the network that it should be: look at how it is built"
    return Flag(kind="WEIGHTS_UNKNOWN", model=score.model, evidence=evidence)


def weights_distance(
    student: Student, compute: Callable[..., Sequence[Array]], model: str, reading: Reading
) -> float | None:
    """The largest total variation between what a model answered in a reading and what its own weights compute.

    `compute(model, [(name, array)], indices [S, T], size)` gives the scores [T, S, size], in each way in which the
    weights can be meant; the nearest counts. None, if the weights cannot be read, or not as such a model's.
    """
    try:
        opened = student.keep(student.stubs.ref("open_model"), model, 1)
        params, places, size = _weights(student.stubs.weights(opened), reading.sample_log_p.shape[-1])
    except SessionOver:
        raise
    except (StudentError, TypeError, ValueError, OverflowError):
        return None
    with np.errstate(all="ignore"):
        answers = [scores[..., places] for scores in compute(model, params, places[reading.sample[:, :-1]], size)]
        found = [np.exp(log_softmax(np.moveaxis(scores, 1, 0))) for scores in answers]
    distances = [np.abs(p - np.exp(reading.sample_log_p)).sum(axis=-1).max() / 2 for p in found]
    return min((float(distance) if distance == distance else 1.0 for distance in distances), default=None)


def _weights(answer: Any, num_symbols: int) -> tuple[list[tuple[str, Array]], Array, int]:
    """What stubs.weights says, if it is that: parameters, the place of each symbol, the vocabulary's size."""
    params, places, size = answer
    if sum(np.size(value) for _, value in params) > MOST_WEIGHTS:
        raise ValueError("more than a model of this size has")
    named = [(str(name), np.asarray(value, np.float64)) for name, value in params]
    if type(size) is not int or not num_symbols <= size <= 10 * num_symbols:
        raise ValueError("no size of a vocabulary")
    found = np.asarray(places)
    if found.shape != (num_symbols,) or found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= size:
        raise ValueError("no places of symbols")
    return named, found, size


def reported_perplexities(student: Student, where: str, models: Sequence[str]) -> dict[str, float]:
    """What the notebook says of its models: `where` is the way to the figure, `variable/{model}/entry`.

    A model of which it says nothing that is a number is left out.
    """
    name, *keys = where.split("/")
    try:
        value = student.get(name) if where else None
    except StudentError:
        return {}
    found = {model: _entry(value, [key.format(model=model) for key in keys]) for model in models}
    return {model: number for model, number in found.items() if number is not None}


def _entry(value: Any, keys: Sequence[str]) -> float | None:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < sys.float_info.max else None


def reported_otherwise(score: PerplexityScore) -> Flag | None:
    """A flag if the notebook's own figure for the test text is further from the measured one than the tolerance.

    That of a model that has hardly learnt may be lower by what it costs to begin anew in each lane: the notebook reads
    the text as a whole.
    """
    if score.is_open or score.reported is None or not score.test_block_nats:
        return None
    nats = float(np.mean(score.test_block_nats))
    measured = math.exp(nats) if nats < LARGEST_NATS else math.inf
    less = nats - math.log(score.reported) if score.reported > 0 else math.inf
    start = LANE_START_NATS * len(score.block_nats) / score.num_chars if score.num_chars and nats > HARDLY_LEARNT else 0
    if -REPORTED_TOLERANCE <= less <= REPORTED_TOLERANCE + start:
        return None
    evidence = f"the notebook reports a perplexity of {score.reported:.4g} on the test text; measured: {measured:.4g}"
    return Flag(kind="REPORTED_OTHERWISE", model=score.model, evidence=evidence)


def permutation_p_value(larger: Array, smaller: Array, seed: int) -> float:
    """How often a random relabelling of the pooled blocks gives at least the observed difference of means.

    It ends when chance has done so often enough to know (Besag and Clifford, 1991).
    """
    rng = np.random.default_rng(seed)
    pooled, n = np.concatenate([larger, smaller]), len(larger)
    observed, total = larger.mean() - smaller.mean(), pooled.sum()
    hits, tried, batch = 0, 0, 2000
    while tried < PERMUTATIONS and hits < ENOUGH_HITS:
        picked = rng.permuted(np.tile(pooled, (batch, 1)), axis=1)[:, :n].sum(axis=1)
        difference = picked / n - (total - picked) / (len(pooled) - n)
        hits, tried = hits + int((difference >= observed - 1e-12).sum()), tried + batch
    return (hits + 1) / (tried + 1)
