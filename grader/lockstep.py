"""Reading in lock-step: the model commits to its scores before it is shown the next character.

A text is cut into B disjoint lanes. At each step every model is shown one character of each lane and returns its scores
for the next; only when all have committed is the next character shown to any. The softmax and the sums are taken here,
in float64: a model that peeks, remembers for another, rescales or prints a nicer number gains nothing.
"""

from __future__ import annotations

import contextlib
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
from grader.types import Outcome

ALPHABET = " abcdefghijklmnopqrstuvwxyz"  # the order in which symbols and scores cross the bridge
WARM_UP_CHARS = 20  # shown at the head of each lane, not scored
LARGEST_SCORE = 1e30  # sums of losses stay finite
IN_FLIGHT = 4  # models that are asked and have not answered, at most
TWINS = 8  # lanes that are shown at two places of the batch
SAMPLED = 16  # lanes that come once more among others, and whose answers are kept: the twins, and some unknown ones
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


def _checked(scores: Any, lanes: int) -> Array:
    """The scores of one step, if they are scores. Raises StudentError."""
    expected = (lanes, len(ALPHABET))
    if not isinstance(scores, np.ndarray) or scores.shape != expected or scores.dtype.kind not in "fiu":
        found = f"shape {scores.shape}" if isinstance(scores, np.ndarray) else f"a {type(scores).__name__}"
        raise StudentError(Outcome.FAILED, f"The model returned {found} for one step; expected scores {expected}.")
    if not np.abs(scores.astype(np.float64)).max() <= LARGEST_SCORE:  # nan is not, either
        raise StudentError(Outcome.FAILED, "The model returned scores that are not finite, or beyond 1e30.")
    return scores
