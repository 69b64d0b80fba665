"""Held-out perplexity in lock-step: the model commits to its scores before it is shown the next character.

    perplexity = exp(−(1/N) Σ ln p(x_t | x_<t))

A text is cut into B disjoint lanes. At each step every model is shown one character of each lane and returns its scores
for the next; only when all have committed is the next character shown to any. The softmax and the sums are taken here,
in float64: a model that peeks, remembers for another, rescales or prints a nicer number gains nothing.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from grader.errors import AssignmentError
from grader.sandbox.bridge import SessionOver, StudentError
from grader.sandbox.references import Handle
from grader.sandbox.student import Student
from grader.types import Curve, Outcome, PerplexityScore, Split

ALPHABET = " abcdefghijklmnopqrstuvwxyz"  # the order in which symbols and scores cross the bridge
WARM_UP_CHARS = 20  # shown at the head of each lane, not scored
BOOTSTRAP_SAMPLES = 2000
LARGEST_SCORE = 1e30  # sums of losses stay finite
IN_FLIGHT = 4  # models that are asked and have not answered, at most
TWINS = 8  # lanes that are shown at two places of the batch
SAMPLED = 16  # lanes that come once more among others, and whose answers are kept: the twins, and some unknown ones
SPLICED_CHARS = 20_000  # of the held-out text, cut up and shuffled
SEGMENT_CHARS = 25  # about as long is each piece
SPLICE_ERRORS = 4.0  # standard errors by which a gap must be larger: false alarms below 1e-4
SMALLEST_HONEST_SPLICE_GAP = -0.03  # easier, when it never existed: the model answers otherwise there
AFTER_CUT = 8  # characters by which who knows the text has found the place again
SAME = 0.01  # largest distance of two distributions that are the same: float32 and TF32 stay far below
Array = np.ndarray[Any, Any]


def indices(text: str) -> Array:
    """Characters as their places in the alphabet [N]."""
    places = np.full(256, 255, np.uint8)
    places[np.frombuffer(ALPHABET.encode(), np.uint8)] = np.arange(len(ALPHABET))
    return np.asarray(places[np.frombuffer(text.encode(), np.uint8)], np.int64)


def lanes_of(text: Array, lanes: int) -> Array:
    """Cut a text [N] into disjoint lanes [B, W + L]: W characters of warm-up, then L that are scored.

    Disjoint, because a character that is one lane's warm-up must not be scored in another: it would have been shown.

    Raises:
        AssignmentError: the text is too short for so many lanes.
    """
    length = len(text) // lanes
    if length <= WARM_UP_CHARS:
        raise AssignmentError(f"a text of {len(text)} characters is too short for {lanes} lanes: lower `lanes`.")
    return text[: lanes * length].reshape(lanes, length)


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


def log_softmax(scores: Array) -> Array:
    """ln softmax over the last axis, in float64, for scores of any size."""
    shifted = scores.astype(np.float64)
    shifted -= scores.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return np.asarray(shifted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a model made of a text."""

    nats: Array  # losses of what is scored [B, L]
    sample: Array  # some of its lanes, as symbols [S, W + L]
    sample_log_p: Array  # ln p of each symbol after the first, by what came before [S, W + L − 1, V]


# the model and a sample of its reading -> how far its answers are from what its weights compute; None: unknown
Judge = Callable[[str, Reading], float | None]


class ModelEnded(SessionOver):
    """The student's process ended while models were asked: one of these."""

    def __init__(self, error: SessionOver, models: Sequence[str]) -> None:
        super().__init__(error.outcome, f"While {' or '.join(models)} was asked: {error}")
        self.models = models


class _Asked(NamedTuple):
    """What a model is at work on: the scores of what follows symbol t."""

    model: str
    t: int
    at: float
    answer: Callable[[], Any]
    is_alone: bool  # nothing else is asked meanwhile


class _Readers:
    """Models that read side by side; one that does something wrong is asked no more."""

    def __init__(self, student: Student, models: Sequence[str], rows: int, patience: Mapping[str, float]) -> None:
        """Begin to read `rows` texts with each model, which may take so many seconds if `patience` says.

        Raises ModelEnded, here and below.
        """
        self._student, self._rows, self._left = student, rows, dict(patience)
        self._sessions: dict[str, Handle] = {}
        self._asked: deque[_Asked] = deque()
        self._took_s: dict[str, float] = {}  # by model, for its last answer
        self._doubtful: list[str] = []  # models that failed while others were at work
        self.wrong: dict[str, StudentError] = {}
        for model in models:
            with self._watched(model):
                self._sessions[model] = student.keep(student.stubs.ref("open_model"), model, rows)

    def read(self, texts: Array, take: Callable[[str, int, Array], None], at_once: int) -> None:
        """Show texts [rows, T] to each model, symbol by symbol.

        `take(model, t, ln p of what follows symbol t [rows, V])` is called for each answer, in their order, while the
        next one is worked out: what is shown then was chosen before, and all scores for it are here. The next models
        are asked while one is at work, so that their process need not wait for us; but `at_once` at most, and none
        beside one that pays for its time. The slowest is asked first: the others are prepared while it works. One that
        fails beside others is asked again alone: it may have been the fault of another.
        """
        letters = np.frombuffer(ALPHABET.encode(), np.uint8)[texts]
        came: tuple[_Asked, Any] | None = None  # an answer that nobody has looked at

        def hear_until(left: int) -> None:
            nonlocal came
            while len(self._asked) > left:
                self._look_at(came, take)
                came = self._hear(self._asked[0])
                self._asked.popleft()

        def ask(model: str, t: int, at_once: int, stub: str = "step") -> None:
            with self._watched(model):
                shown = letters[:, t].tobytes().decode()
                answer = self._student.begin(self._student.stubs.ref(stub), self._sessions[model], shown)
                self._asked.append(_Asked(model, t, time.monotonic(), answer, at_once == 1))
            hear_until(at_once - 1)

        for t in range(texts.shape[1]):
            for model in list(self._sessions):
                if model in self._left:
                    hear_until(0)
                if model not in self.wrong:
                    ask(model, t, 1 if t == 0 or model in self._left else at_once)
            hear_until(0)
            while self._doubtful:
                if (model := self._doubtful.pop()) not in self.wrong:
                    ask(model, t, 1, "step_again")
            if t == 0:
                self._sessions = dict(sorted(self._sessions.items(), key=lambda item: -self._took_s[item[0]]))
        self._look_at(came, take)

    def _hear(self, asked: _Asked) -> tuple[_Asked, Any] | None:
        """Wait for an answer."""
        with self._watched(asked.model):
            try:
                scores = asked.answer()
            except StudentError as error:
                if asked.is_alone or isinstance(error, SessionOver):
                    raise
                self._doubtful.append(asked.model)
                return None
            self._took_s[asked.model] = time.monotonic() - asked.at
            self._bill(asked.model, self._took_s[asked.model])
            return asked, scores
        return None

    def _look_at(self, came: tuple[_Asked, Any] | None, take: Callable[[str, int, Array], None]) -> None:
        """An answer that is not as it should be is its own model's mistake."""
        if came is None or came[0].model in self.wrong:
            return
        asked, scores = came
        with self._watched(asked.model):
            take(asked.model, asked.t, log_softmax(_checked(scores, self._rows)))

    def _bill(self, model: str, used_s: float) -> None:
        if model in self._left:
            self._left[model] -= used_s
            if self._left[model] < 0:
                raise StudentError(Outcome.TIMED_OUT, "The model took too long to read a text.")

    @contextlib.contextmanager
    def _watched(self, model: str) -> Iterator[None]:
        try:
            yield
        except SessionOver as error:  # by what the process is at work on, which need not be what is asked
            raise ModelEnded(error, sorted(asked.model for asked in self._asked) or [model]) from error
        except StudentError as error:
            self.wrong.setdefault(model, error)
            self._sessions.pop(model, None)


def lockstep_nats(
    student: Student,
    models: Sequence[str],
    text: Array,
    rng: np.random.Generator,
    *,
    again: bool = False,
    patience: Mapping[str, float] | None = None,
    at_once: int = IN_FLIGHT,
) -> dict[str, Reading | StudentError]:
    """Losses −ln p(x_t | x_<t) of each model on lanes [B, W + L], as nats [B, L]; or what the model did wrong.

    All models go through the text together: at each step every one commits to its scores before any is shown the next
    character, so that none can remember for another what comes. Lanes are shown in random order, some of them twice,
    and `again`, these and some others once more among other texts: scores that depend on more than the text of their
    lane are no scores. A model may take so many seconds, if `patience` says. Raises ModelEnded if the student's process
    ended; by which model is known for sure if one is asked at once.
    """
    lanes, steps = len(text), text.shape[1] - 1
    sample = rng.choice(lanes, min(SAMPLED, lanes), replace=False)
    rows = rng.permutation(np.concatenate([np.arange(lanes), sample[:TWINS]]))
    firsts = np.unique(rows, return_index=True)[1]  # for each lane the row that counts
    seconds = np.setdiff1d(np.arange(len(rows)), firsts)
    twins = firsts[rows[seconds]]
    nats = {model: np.empty((lanes, steps + 1 - WARM_UP_CHARS)) for model in models}
    sampled = {model: np.empty((len(sample), steps, len(ALPHABET))) for model in models}

    def take(model: str, t: int, log_p: Array) -> None:
        _require_same(log_p[seconds], log_p[twins], "at two places of the batch")
        sampled[model][:, t] = log_p[firsts[sample]]
        if t + 1 >= WARM_UP_CHARS:
            nats[model][:, t + 1 - WARM_UP_CHARS] = -log_p[firsts, text[:, t + 1]]

    def take_again(model: str, t: int, log_p: Array) -> None:
        _require_same(log_p[places], sampled[model][:, t], "when it is asked again")

    readers = _Readers(student, models, len(rows), patience or {})
    readers.read(text[rows, :-1], take, at_once)
    wrong = readers.wrong
    if again:
        others = np.roll(text[rng.choice(lanes, len(sample))], steps // 2, axis=1)
        mixed = rng.permutation(2 * len(sample))
        shown, places = np.concatenate([text[sample], others])[mixed], np.argsort(mixed)[: len(sample)]
        readers = _Readers(student, [model for model in models if model not in wrong], len(shown), patience or {})
        readers.read(shown[:, :-1], take_again, at_once)
        wrong = wrong | readers.wrong
    return {
        model: wrong.get(model) or Reading(nats=nats[model], sample=text[sample], sample_log_p=sampled[model])
        for model in models
    }


def _require_same(log_p: Array, expected: Array, when: str) -> None:
    """Raises StudentError if two distributions [rows, V] for the same text are far apart in total variation."""
    if (np.abs(np.exp(log_p) - np.exp(expected)).sum(axis=-1) / 2 > SAME).any():
        raise StudentError(Outcome.FAILED, f"The model's scores for the same text differ {when}.")


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


def _checked(scores: Any, lanes: int) -> Array:
    """The scores of one step, if they are scores. Raises StudentError."""
    expected = (lanes, len(ALPHABET))
    if not isinstance(scores, np.ndarray) or scores.shape != expected or scores.dtype.kind not in "fiu":
        found = f"shape {scores.shape}" if isinstance(scores, np.ndarray) else f"a {type(scores).__name__}"
        raise StudentError(Outcome.FAILED, f"The model returned {found} for one step; expected scores {expected}.")
    if not np.abs(scores.astype(np.float64)).max() <= LARGEST_SCORE:  # nan is not, either
        raise StudentError(Outcome.FAILED, "The model returned scores that are not finite, or beyond 1e30.")
    return scores
