"""Lock-step perplexity is right to the last digit on models whose answer is known."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from chains import markov_text

from grader.errors import AssignmentError
from grader.integrity import memorised
from grader.lockstep import (
    ALPHABET,
    SAMPLED,
    TWINS,
    WARM_UP_CHARS,
    ModelEnded,
    indices,
    lanes_of,
    lockstep_nats,
    log_softmax,
)
from grader.perplexity import bootstrap_interval, credit, score_models, splice_gap, spliced
from grader.sandbox.bridge import SessionOver, StudentError
from grader.types import Curve, Outcome, Split

V = len(ALPHABET)
CALLS = itertools.count()
CURVE = Curve(model="rnn", relative_to="", credit=((2.8, 0.0), (2.4, 4.0)))


class FakeStudent:
    """A student whose model is a function of the characters shown so far [lanes, t] -> scores [lanes, V]."""

    def __init__(self, model: Any) -> None:
        self.model, self.shown, self.stubs = model, {}, self

    def ref(self, name: str) -> str:
        return name

    def keep(self, target: str, name: str, lanes: int) -> str:
        self.shown[name] = []
        return name

    def begin(self, target: str, *args: Any) -> Callable[[], Any]:
        return functools.partial(getattr(self, target), *args)

    def step(self, name: str, text: str) -> Any:
        self.shown[name].append([ALPHABET.index(char) for char in text])
        return self.model(np.array(self.shown[name]).T)

    def step_again(self, name: str, text: str) -> Any:
        self.shown[name].pop()
        return self.step(name, text)


class Failing(FakeStudent):
    """One whose models know nothing, and raise an error at one of the readings: test, held-out, that again, spliced."""

    def __init__(self, reading: int, error: StudentError) -> None:
        super().__init__(self.answer)
        self.reading, self.error, self.begun = reading, error, dict.fromkeys(("gru", "rnn"), 0)

    def keep(self, target: str, name: str, lanes: int) -> str:
        self.begun[name] += 1
        self.now = self.begun[name]
        return super().keep(target, name, lanes)

    def answer(self, shown: np.ndarray) -> np.ndarray:
        if self.now == self.reading:
            raise self.error
        return np.zeros((len(shown), V))


def nats_of(student: Any, lanes: np.ndarray, seed: int = 0) -> Any:
    found = lockstep_nats(student, ["rnn"], lanes, np.random.default_rng(seed), again=True)["rnn"]
    return found if isinstance(found, StudentError) else found.nats


def test_uniform_model_has_perplexity_27() -> None:
    """A model that knows nothing scores ln 27 nats/char, to 1e-12, whatever constant it adds to its scores."""
    lanes = lanes_of(np.arange(1000) % V, 7)
    nats = nats_of(FakeStudent(lambda shown: np.full((len(shown), V), 1e6)), lanes)
    assert abs(nats.mean() - np.log(V)) < 1e-12


def test_markov_chain_scores_its_own_entropy_exactly() -> None:
    """A model that returns the true transition probabilities gets exactly −mean ln p of the text, in any lane order."""
    rng = np.random.default_rng(1)
    text, table = markov_text(2020, rng)
    lanes = lanes_of(text, 20)
    student = FakeStudent(lambda shown: np.log(table[shown[:, -1]]) + 3.0)
    nats = nats_of(student, lanes, 5)
    exact = -np.log(table[lanes[:, WARM_UP_CHARS - 1 : -1], lanes[:, WARM_UP_CHARS:]])
    np.testing.assert_allclose(nats, exact, rtol=0, atol=1e-12)


def test_no_character_lies_in_two_lanes() -> None:
    """A character that warms one lane up is never scored in another, where it would be known already."""
    lanes = lanes_of(np.arange(6 * 50 + 3), 6)
    assert lanes.reshape(-1).tolist() == list(range(300))


def test_no_model_can_remember_for_another_what_comes() -> None:
    """A model that looks up what any other has been shown knows no character before it is scored itself."""
    text = np.random.default_rng(0).integers(0, V, 600)
    lanes = lanes_of(text, 4)
    student = FakeStudent(None)

    def copycat(shown: np.ndarray) -> np.ndarray:
        scores = np.zeros((len(shown), V))
        longest = max(student.shown.values(), key=len)
        if len(longest) > shown.shape[1]:
            scores[np.arange(len(shown)), longest[shown.shape[1]]] = 100
        return scores

    student.model = copycat
    found = lockstep_nats(student, ["first", "second"], lanes, np.random.default_rng(0))
    for reading in found.values():
        np.testing.assert_allclose(reading.nats, np.log(V))


def test_a_model_sees_a_character_only_after_it_has_committed() -> None:
    """At the step that decides x_t, the characters shown end at x_{t−1}."""
    lanes, seen = lanes_of(np.arange(80) % V, 2), []

    def model(shown: np.ndarray) -> np.ndarray:
        seen.append(shown.shape[1])
        return np.zeros((len(shown), V))

    nats = nats_of(FakeStudent(model), lanes)
    once = list(range(1, lanes.shape[1]))
    assert seen == [*once, *once]
    assert nats.shape == (2, lanes.shape[1] - WARM_UP_CHARS)


class Slow(FakeStudent):
    """One that writes down when a model is shown characters, and when its scores have come."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.events: list[tuple[str, str]] = []
        self.at_work = ""

    def begin(self, target: str, *args: Any) -> Callable[[], Any]:
        self.events.append(("shown", args[0]))

        def answer() -> Any:
            self.at_work = args[0]
            scores = self.step(*args)
            self.events.append(("came", args[0]))
            return scores

        return answer


def steps_of(student: Slow, models: int) -> list[list[tuple[str, str]]]:
    """What happened at each step: every model is shown the next characters, and answers, once."""
    return [student.events[i : i + 2 * models] for i in range(0, len(student.events), 2 * models)]


def test_nothing_is_shown_before_the_scores_of_every_model_have_come() -> None:
    """The next models are asked while one is at work, but all scores are here before the next character leaves."""
    student = Slow(lambda shown: np.zeros((len(shown), V)))
    lanes = lanes_of(np.arange(80) % V, 2)
    lockstep_nats(student, ["a", "b", "c"], lanes, np.random.default_rng(0), at_once=2)
    steps = steps_of(student, 3)
    assert len(steps) == lanes.shape[1] - 1
    for step in steps:
        assert sorted(step) == [(what, model) for what in ("came", "shown") for model in "abc"]
    assert [what for what, _ in steps[1]] == ["shown", "shown", "came", "shown", "came", "came"]


def test_the_slowest_model_is_asked_first() -> None:
    """While it works there is time to prepare the others."""

    class Uneven(Slow):
        def step(self, name: str, text: str) -> Any:
            time.sleep(0.05 * (name == "slow"))
            return super().step(name, text)

    student = Uneven(lambda shown: np.zeros((len(shown), V)))
    lockstep_nats(student, ["a", "slow", "b"], lanes_of(np.arange(48) % V, 2), np.random.default_rng(0))
    assert {step[0] for step in steps_of(student, 3)[1:]} == {("shown", "slow")}


def test_a_model_that_pays_for_its_time_is_asked_alone() -> None:
    """What else the process is at work on would be paid for by it."""
    student = Slow(lambda shown: np.zeros((len(shown), V)))
    lanes = lanes_of(np.arange(80) % V, 2)
    lockstep_nats(student, ["a", "open", "b"], lanes, np.random.default_rng(0), patience={"open": 9.0})
    for step in steps_of(student, 3):
        at = step.index(("shown", "open"))
        assert step[at + 1] == ("came", "open")
        assert [what for what, _ in step[:at]].count("shown") == [what for what, _ in step[:at]].count("came")


def test_a_model_that_fails_beside_others_is_asked_again_alone() -> None:
    """An error that came of another's work costs it nothing; its own comes again."""

    class Failing(Slow):
        def begin(self, target: str, *args: Any) -> Callable[[], Any]:
            waiting, fails = super().begin("step", *args), target == "step" and args[0] != "c"

            def answer() -> Any:
                if fails and len(self.shown[args[0]]) == 7:
                    self.shown[args[0]].append([])
                    raise StudentError(Outcome.TIMED_OUT, "beside others")
                if target == "step_again" and args[0] == "own":
                    raise StudentError(Outcome.RAISED, "its own")
                return getattr(self, target)(*args) if target == "step_again" else waiting()

            return answer

    student, lanes = Failing(lambda shown: np.zeros((len(shown), V))), lanes_of(np.arange(80) % V, 2)
    found = lockstep_nats(student, ["a", "own", "c"], lanes, np.random.default_rng(0))
    assert isinstance(found["own"], StudentError)
    assert found["own"].outcome is Outcome.RAISED
    for model in ("a", "c"):
        np.testing.assert_allclose(found[model].nats, np.log(V))


def test_the_models_that_were_at_work_are_blamed_for_the_end() -> None:
    """Not the one that was to be asked next, when it is then that the end is noticed."""

    class Ended(Slow):
        def begin(self, target: str, *args: Any) -> Callable[[], Any]:
            if args[0] == "good" and ("came", "good") in self.events:
                raise SessionOver(Outcome.KERNEL_DIED, "The kernel died.")
            return super().begin(target, *args)

        def step(self, name: str, text: str) -> Any:
            time.sleep(0.05 * (name == "bad"))
            return super().step(name, text)

    student = Ended(lambda shown: np.zeros((len(shown), V)))
    with pytest.raises(ModelEnded, match="While bad was asked: The kernel died") as ended:
        lockstep_nats(student, ["bad", "good"], lanes_of(np.arange(80) % V, 2), np.random.default_rng(0))
    assert ended.value.models == ["bad"]


def test_who_ends_the_process_on_the_test_text_is_known_for_sure() -> None:
    """Models are asked one at a time there: the others are to be asked in a fresh process, and lose nothing."""
    student = Slow(lambda shown: np.zeros((len(shown), V)))
    texts = [english(3000, np.random.default_rng(seed)) for seed in (4, 5)]
    curves = [dataclasses.replace(CURVE, model=name) for name in ("a", "b")]
    score_models(student, curves, Split(train="", test=texts[0], held_out=texts[1], sha256=""), 20, seed=0)
    for step in steps_of(student, 2)[: len(texts[0]) // 20 - 1]:
        assert [what for what, _ in step] == ["shown", "came"] * 2


def test_a_model_pays_for_its_own_time_only() -> None:
    """One that is asked while another takes long, and fails, has all of its patience left."""

    class Hanging(Slow):
        def step(self, name: str, text: str) -> Any:
            if name == "hangs":
                time.sleep(0.6)
                raise StudentError(Outcome.TIMED_OUT, "too long")
            return super().step(name, text)

    lanes, patience = lanes_of(np.arange(80) % V, 2), {"open": 0.5}
    for models in (["hangs", "open"], ["open", "hangs"]):
        student = Hanging(lambda shown: np.zeros((len(shown), V)))
        found = lockstep_nats(student, models, lanes, np.random.default_rng(0), patience=patience)
        assert isinstance(found["hangs"], StudentError)
        assert not isinstance(found["open"], StudentError), found["open"]


def test_scores_that_are_none_cost_no_other_model_an_answer() -> None:
    """One whose scores are wrong, at a step when others go on, is asked no more; these are measured to the end."""
    student = Slow(None)
    student.model = lambda shown: np.full(
        (len(shown), V), np.nan if shown.shape[1] == 7 and student.at_work == "bad" else 0.0
    )
    lanes = lanes_of(np.arange(80) % V, 2)
    for models in (["bad"], ["bad", "good"], ["good", "bad"]):
        student.events.clear()
        found = lockstep_nats(student, models, lanes, np.random.default_rng(0))
        assert isinstance(found["bad"], StudentError)
        asked = student.events.count(("came", "bad"))
        assert student.events.count(("shown", "bad")) == asked
        assert 7 <= asked <= 8  # its last answer may be looked at when it is shown the next character
        if "good" in models:
            np.testing.assert_allclose(found["good"].nats, np.log(V))


@pytest.mark.parametrize(
    "scores",
    [
        np.full((9, V), np.nan),
        np.full((9, V), np.inf),
        np.full((9, V), 1e300),
        np.zeros((9, V - 1)),
        np.zeros((8, V)),
        None,
        "a" * V,
    ],
    ids=["nan", "inf", "huge", "27th symbol missing", "a lane missing", "None", "text"],
)
def test_scores_that_are_no_scores_get_no_perplexity(scores: Any) -> None:
    """NaN, infinity, a wrong shape or no array at all end in an outcome with 0 points, never in a good score."""
    text = "the quick brown fox jumps over the lazy dog " * 5
    split = Split(train=text, test=text, held_out=text, sha256="")
    score = score_models(FakeStudent(lambda shown: scores), [CURVE], split, 5, seed=0)["rnn"]
    assert (score.outcome, score.points, score.nats_per_char) == (Outcome.FAILED, 0.0, None)
    assert score.message


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda shown: np.arange(len(shown))[:, None] * np.eye(V)[3], "at two places"),
        (lambda shown: np.random.default_rng().normal(size=(len(shown), V)), "at two places"),
        (lambda shown: next(CALLS) * np.ones((len(shown), 1)) * np.eye(V)[3], "asked again"),
    ],
    ids=["lane", "chance", "count of calls"],
)
def test_scores_that_depend_on_more_than_the_text_are_none(model: Any, words: str) -> None:
    """The same text at two places, or at two times, has the same scores; else the model has no perplexity."""
    found = nats_of(FakeStudent(model), lanes_of(np.arange(800) % V, 10))
    assert isinstance(found, StudentError)
    assert found.outcome is Outcome.FAILED
    assert words in str(found)


def test_a_model_that_learns_from_other_lanes_is_found() -> None:
    """Among other texts it answers otherwise, however late it began to use what it saw of them."""
    lanes = lanes_of(np.random.default_rng(0).integers(0, V, 20 * 80), 20)

    def model(shown: np.ndarray) -> np.ndarray:
        counts = np.bincount(shown.reshape(-1), minlength=V) if shown.shape[1] > 60 else np.ones(V)
        return np.tile(np.log(counts + 1.0), (len(shown), 1))

    found = nats_of(FakeStudent(model), lanes)
    assert isinstance(found, StudentError)
    assert "asked again" in str(found)
    assert len(lanes) > 2 * TWINS


def test_what_is_kept_of_a_reading_is_not_all_shown_twice() -> None:
    """A model that sees which lanes come twice, and is honest there only, is held to others, too."""
    lanes = lanes_of(np.random.default_rng(0).integers(0, V, 40 * 30), 40)

    def model(shown: np.ndarray) -> np.ndarray:
        _, inverse, counts = np.unique(shown, axis=0, return_inverse=True, return_counts=True)
        return np.where((counts[inverse.reshape(-1)] == 2)[:, None], 0.0, 5.0 * np.eye(V)[3])

    reading = lockstep_nats(FakeStudent(model), ["rnn"], lanes, np.random.default_rng(0))["rnn"]
    assert not isinstance(reading, StudentError)
    is_honest = np.isclose(reading.sample_log_p[:, -1], -np.log(V)).all(axis=1)
    assert (is_honest.sum(), (~is_honest).sum()) == (TWINS, SAMPLED - TWINS)


def english(length: int, rng: np.random.Generator) -> str:
    """Words of 2 to 9 random letters: nothing in it helps to guess what comes, but having seen it."""
    words = ["".join(rng.choice(list(ALPHABET[1:]), rng.integers(2, 10))) for _ in range(length // 4)]
    return " ".join(words)[:length]


def test_spliced_text_is_the_same_text_in_pieces() -> None:
    """Every character once; pieces of about 25 that begin with a word, in another order."""
    text = indices(english(5000, np.random.default_rng(0)))
    order = spliced(text, np.random.default_rng(1))
    assert sorted(order) == list(range(5000))
    begins = order[1:][np.diff(order) != 1]
    assert 5000 / 32 < len(begins) < 5000 / 22
    assert all(text[begin - 1] == 0 for begin in begins if begin)


def scored(student: FakeStudent, texts: tuple[str, str, str], lanes: int = 100) -> Any:
    split = Split(train=texts[0], test=texts[1], held_out=texts[2], sha256="")
    return score_models(student, [CURVE], split, lanes, seed=0)["rnn"]


def test_a_model_that_knows_the_text_by_heart_is_told_from_one_that_knows_the_language() -> None:
    """Even where it is a twentieth of a model, a look-up table loses its place at every cut; a chain does not."""
    rng = np.random.default_rng(3)
    texts = english(2000, rng), english(12_000, rng), english(12_000, rng)
    places: dict[str, list[int]] = {}
    for end in range(12, len(texts[2])):
        places.setdefault(texts[2][end - 12 : end], []).append(end)
    known = indices(texts[2])
    counts = np.ones((V, V))
    np.add.at(counts, (known[:-1], known[1:]), 1)
    chain = counts / counts.sum(axis=1, keepdims=True)

    def mixed(share: float) -> Any:
        def model(shown: np.ndarray) -> np.ndarray:
            p = chain[shown[:, -1]].copy()
            for row, tail in zip(p, shown[:, -12:], strict=True):
                if ends := places.get("".join(ALPHABET[i] for i in tail)):
                    row *= 1 - share
                    row[known[ends[0]]] += share
            return np.log(p)

        return model

    guessing = (np.full(1, 3.0), np.full(1, 3.0))
    honest, *cheats = (scored(FakeStudent(mixed(share)), texts) for share in (0.0, 0.05, 0.99))
    assert abs(honest.splice_gap) < 0.02
    assert memorised(honest, guessing) is None
    for cheat in cheats:
        assert cheat.splice_gap > 0.1
        flag = memorised(cheat, guessing)
        assert flag is not None
        assert flag.kind == "MEMORISED"


def test_what_is_lost_at_cuts_cannot_be_made_up_for_behind_them() -> None:
    """Whoever loses at each cut and is better where the place is found again has a gap that no honest model has."""
    rng = np.random.default_rng(6)
    text = indices(english(20_000, rng))
    places = lanes_of(spliced(text, rng), 100)
    begins = np.diff(places, axis=1, prepend=-9) != 1
    since = np.arange(places.shape[1]) - np.maximum.accumulate(np.where(begins, np.arange(places.shape[1]), 0), axis=1)
    in_order = 1 + rng.normal(0, 0.1, (100, lanes_of(text, 100).shape[1] - WARM_UP_CHARS))
    moved = 1 + rng.normal(0, 0.1, places.shape)
    lost = np.where(since < 8, 0.3, 0.0)
    kept = slice(WARM_UP_CHARS, None)
    honest, _ = splice_gap(in_order, (moved + lost)[:, kept], places[:, kept])
    hidden, _ = splice_gap(in_order, (moved + np.where(since < 8, 0.3, -0.14))[:, kept], places[:, kept])
    assert honest == pytest.approx(0.1, abs=0.03)
    assert hidden == pytest.approx(-0.14, abs=0.02)


@pytest.mark.parametrize("reading", [1, 4])
def test_a_model_that_refuses_a_text_by_which_cheating_shows_has_no_score(reading: int) -> None:
    """Raising on the test text, or on the spliced text, is no way around a flag; nor is it asked any more."""
    texts = [english(3000, np.random.default_rng(seed)) for seed in (4, 5)]
    student = Failing(reading, StudentError(Outcome.RAISED, "not this one"))
    score = scored(student, ("", *texts), lanes=20)
    assert (score.outcome, score.points) == (Outcome.RAISED, 0.0)
    assert student.begun["rnn"] == reading


@pytest.mark.parametrize(("ends_at", "ended"), [(1, ["gru"]), (2, ["gru", "rnn"]), (4, ["gru", "rnn"])])
def test_held_out_text_is_shown_to_one_process_only(ends_at: int, ended: list[str]) -> None:
    """A model that ends the process on the test text ends only itself; on held-out text, all that were shown it."""
    rng = np.random.default_rng(5)
    split = Split(train="", test=english(3000, rng), held_out=english(3000, rng), sha256="")
    curves = [dataclasses.replace(CURVE, model=name) for name in ("gru", "rnn")]
    student = Failing(ends_at, SessionOver(Outcome.KERNEL_DIED, "Gone."))
    found = score_models(student, curves, split, 20, seed=0)
    assert sorted(found) == ended
    assert {(score.outcome, score.points) for score in found.values()} == {(Outcome.KERNEL_DIED, 0.0)}
    assert {score.message for score in found.values()} == {"While gru was asked: Gone."}


@pytest.mark.parametrize("error", [StudentError, SessionOver])
def test_what_the_model_did_wrong_is_the_outcome(error: type[StudentError]) -> None:
    """A model that raises or never answers gets the outcome that the bridge reports."""

    def model(shown: np.ndarray) -> np.ndarray:
        raise error(Outcome.TIMED_OUT, "late")

    split = Split(train="a" * 99, test="a" * 99, held_out="a" * 99, sha256="")
    assert score_models(FakeStudent(model), [CURVE], split, 2, seed=0)["rnn"].outcome is Outcome.TIMED_OUT


def test_log_softmax_is_stable() -> None:
    """Huge scores neither overflow nor lose their order."""
    values = log_softmax(np.array([[1e30, 0.0], [-1e30, -1e30]], dtype=np.float32))
    np.testing.assert_allclose(values[1], np.log([0.5, 0.5]))
    assert values[0, 0] == 0.0


@pytest.mark.parametrize(
    ("nats", "points"), [(3.0, 0.0), (2.8, 0.0), (2.6, 1.5), (2.4, 3.0), (2.2, 3.5), (2.0, 4.0), (1.2, 4.0)]
)
def test_credit_is_linear_between_knots(nats: float, points: float) -> None:
    """No points at the first knot, all at the last, in proportion between two, never more or less."""
    curve = dataclasses.replace(CURVE, credit=((2.8, 0.0), (2.4, 3.0), (2.0, 4.0)))
    assert credit(curve, nats) == pytest.approx(points)


def test_interval_covers_the_mean_and_repeats() -> None:
    """The same blocks have the same interval, and it holds their mean."""
    blocks = np.random.default_rng(3).normal(1.5, 0.1, 100)
    first = bootstrap_interval(blocks)
    assert first == bootstrap_interval(blocks.copy())
    assert first[0] < blocks.mean() < first[1]


def test_a_text_too_short_for_its_lanes_is_refused() -> None:
    """The error says what to change."""
    with pytest.raises(AssignmentError, match="lower `lanes`"):
        lanes_of(np.zeros(30, int), 20)
