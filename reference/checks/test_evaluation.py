"""evaluate_perplexity, on models whose perplexity is known."""

import numpy as np
import pytest
from expect import PERPLEXITY, as_indices, as_number, assert_close, callback, first_zeros

### BEGIN HIDDEN TESTS
# isort: split
import itertools
import math

import oracle
from expect import Mistake, as_params, decoding, is_close
from fakes import BigramModel, TableModel, consecutive_for

### END HIDDEN TESTS


@pytest.mark.check("evaluate_perplexity.example")
def test_evaluate_example(student):
    """A model that finds all 5 symbols equally likely has perplexity 5."""

    def guess(inputs, state, is_recording, is_training):
        symbols = as_indices(inputs, "The input handed to the model, [B, T],", 5)
        return np.zeros((symbols.size, 5), "float32"), state

    text = [0, 1, 2, 3, 4] * 5
    X, Y = np.array([text[:24]], "float32"), np.array([text[1:]], "float32")
    helpers = {"data_iter_consecutive": lambda *args, **kwargs: [(X, Y)]}
    target = student.ref("evaluate_perplexity")
    begin, step = callback("begin_state", first_zeros), callback("model", guess)
    model = [begin, step]
    found = student.stubs.judge_evaluate(target, helpers, lambda: None, model, text, 1, 24, student.ctx)
    assert_close(as_number(found, "evaluate_perplexity(...)"), 5, "The perplexity of guessing among 5", PERPLEXITY)


### BEGIN HIDDEN TESTS
def evaluate(student, model, text, B, T):
    """(what evaluate_perplexity makes of a fake model, the minibatches that it took from data_iter_consecutive)."""
    given = []

    def forget():
        model.forget()
        given.clear()

    target, callbacks = student.ref("evaluate_perplexity"), [model.begin, model.step]
    helpers = {"data_iter_consecutive": consecutive_for(text, given)}
    found = student.stubs.judge_evaluate(target, helpers, forget, callbacks, text, B, T, student.ctx)
    if not model.fed:
        raise Mistake("model_not_asked", "evaluate_perplexity never calls the model.")
    return as_number(found, "evaluate_perplexity(...)"), given


class Uniform(TableModel):
    """Finds all symbols equally likely."""

    def __init__(self, rng, vocab_size):
        super().__init__(rng, vocab_size, scale=0.0)


# B, T, length: everything fits (so that no tail can be kept or dropped), something is left over, T = 1
CASES = [(1, 5, 41), (3, 4, 39), (4, 3, 50), (2, 1, 21), (1, 7, 40)]


@pytest.mark.check("evaluate_perplexity")
@pytest.mark.parametrize(("B", "T", "length"), CASES)
def test_value(student, rng, B, T, length):
    """exp of the mean over all characters that were read, with the state carried on.

    Each symbol occurs once in the text, so that what was fed to the model tells which character came next,
    whichever tail of the text is kept.
    """
    text = [int(i) for i in rng.permutation(length)]
    model = TableModel(rng, length, scale=0.15)
    found, given = evaluate(student, model, text, B, T)
    place = {symbol: i for i, symbol in enumerate(text)}
    places = [np.vectorize(place.get)(symbols) for symbols in model.fed]
    assert_coverage(places, [np.vectorize(place.get)(X) for X, _ in given], length, B, T)
    assert_carried(model, places)
    assert_perplexity(found, model, places, text, B, T)


def assert_coverage(places, given, length, B, T):
    """Each place at most once; all minibatches, or all but a tail of less than a minibatch and a column."""
    flat = np.concatenate([at.ravel() for at in places])
    if len(set(flat)) < len(flat):
        raise Mistake("read_twice", "A part of the text is read more than once.")
    asked = {place for at in given for place in at.ravel()}
    if asked - set(flat) or len(flat) < length - B * (T + 1):
        raise Mistake("minibatch_skipped", f"Of {length} characters only {len(flat)} are read.")


def assert_carried(model, places):
    """Where the rows go on from one call to the next, so does the state; one tail may stand apart."""
    breaks = 0
    for (before, after), went_on in zip(itertools.pairwise(places), model.went_on[1:], strict=True):
        goes_on = before.shape[1] == after.shape[1] and (after[0] == before[-1] + 1).all()
        breaks += not goes_on
        if goes_on and not went_on:
            raise Mistake("state_dropped", "The state that the model returns is not handed to its next call.")
    if breaks > 1:
        raise Mistake("not_consecutive", "The text is not read in consecutive minibatches.")


def assert_perplexity(found, model, places, text, B, T):
    """The value; the failure bears the name of the mistake if it is a known one."""
    losses = Losses(model, places, text)
    mean = np.mean(losses.all())
    if is_close(found, math.exp(mean), **PERPLEXITY):
        return
    for name, wrong in wrong_values(losses, mean, B, T):
        if is_close(found, wrong, **PERPLEXITY):
            raise Mistake(name, f"evaluate_perplexity gives {found:.6g}, expected {math.exp(mean):.6g}.")
    assert_close(found, math.exp(mean), "The perplexity", PERPLEXITY)


class Losses:
    """-ln p of what was read, call by call, or what takes its place by mistake."""

    def __init__(self, model, places, text):
        self.scores, self.fed = model.scores, model.fed
        self.labels, self.known = [], []
        for at in places:
            self.known.append(at + 1 < len(text))
            self.labels.append(np.array(text)[np.where(self.known[-1], at + 1, 0)])

    def by_call(self, function=oracle.nats, labels=None):
        """A list of arrays, one for each call of the model."""
        parts = zip(self.scores, labels or self.labels, self.known, strict=True)
        return [function(scores, right)[known] for scores, right, known in parts]

    def all(self, function=oracle.nats, labels=None):
        """All of them in one array."""
        return np.concatenate(self.by_call(function, labels))


def wrong_values(losses, mean, B, T):
    """What known mistakes make of the same scores: pairs of name and value."""
    calls = [part.mean() for part in losses.by_call()]
    by_row = [right.T.reshape(right.shape) for right in losses.labels]
    hits = losses.all(lambda scores, right: scores.argmax(axis=-1) == right).mean()
    with np.errstate(over="ignore"):
        return [
            ("mean_of_exps", np.mean(np.exp(calls))),
            ("mean_of_exps", np.mean(np.exp(losses.all()))),
            ("mean_of_means", np.exp(np.mean(calls))),
            *(("rounded", round(math.exp(mean), digits)) for digits in range(4)),
            ("no_exp", mean),
            ("no_exp", mean / math.log(2)),
            ("base_2", 2**mean),
            ("base_2", np.exp(mean / math.log(2))),
            ("inverse", np.exp(-mean)),
            ("last_minibatch", np.exp(calls[-1])),
            ("first_minibatch", np.exp(calls[0])),
            ("labels_by_row", np.exp(losses.all(labels=by_row).mean())),
            ("labels_are_inputs", np.exp(losses.all(labels=losses.fed).mean())),
            ("softmax_twice", np.exp(losses.all(lambda scores, right: oracle.nats(softmax(scores), right)).mean())),
            ("over_rows", np.exp(-losses.all(lambda scores, right: picked(over_rows(scores), right)).mean())),
            ("not_normalised", np.exp(-losses.all(picked).mean())),
            ("not_normalised", np.exp(-losses.all(lambda scores, right: picked(softmax(scores), right)).mean())),
            *(("accuracy", value) for value in (hits, 1 - hits, 100 * hits, np.exp(1 - hits), np.exp(hits))),
            *(("miscounts", np.exp(mean * factor)) for factor in (B * T, B, T, 1 / (B * T), 1 / B, 1 / T)),
            *(("miscounts", np.exp(factor * mean * len(calls))) for factor in (1, B, T, B * T)),
        ]


def softmax(scores):
    """Over the last axis."""
    return np.exp(oracle.log_softmax(scores))


def over_rows(scores):
    """log_softmax of scores [T, B, V] over all rows of a call, in place of the symbols."""
    return oracle.log_softmax(scores.reshape(-1, scores.shape[-1]).T).T.reshape(scores.shape)


def picked(scores, labels):
    """The entry of each label."""
    return np.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]


@pytest.mark.check("evaluate_perplexity")
@pytest.mark.parametrize(("B", "T", "length"), CASES[:3])
def test_uniform(student, rng, B, T, length):
    """Guessing among V has perplexity V."""
    text = [int(i) for i in rng.integers(0, 11, length)]
    found, _ = evaluate(student, Uniform(rng, 11), text, B, T)
    assert_close(found, 11, "The perplexity of guessing among 11", PERPLEXITY)


@pytest.mark.check("evaluate_perplexity")
@pytest.mark.parametrize(("B", "T", "length"), [(1, 2, 301), (20, 25, 2_501)])
def test_reads_all(student, rng, B, T, length):
    """A text of many minibatches, or of many characters, is read to its end, too."""
    model = Uniform(rng, 5)
    evaluate(student, model, [int(i) for i in rng.integers(0, 5, length)], B, T)
    count = sum(symbols.size for symbols in model.fed)
    if count < length - B * (T + 1):
        raise Mistake("minibatch_skipped", f"Of {length} characters only {count} are read.")


@pytest.mark.check("evaluate_perplexity")
def test_overflow(student):
    """A model that is wrong with all its might has the perplexity inf, or a huge one; it is no crash."""

    def sure_of_the_same(inputs, state, is_recording, is_training):
        symbols = as_indices(inputs, "The input handed to the model, [B, T],", 5)
        return 2000 * np.eye(5, dtype="float32")[symbols.T.ravel()], state

    text = [0, 1, 2, 3, 4] * 5
    helpers = {"data_iter_consecutive": consecutive_for(text, [])}
    model = [callback("begin_state", first_zeros), callback("model", sure_of_the_same)]
    target = student.ref("evaluate_perplexity")
    found = student.stubs.judge_evaluate(target, helpers, lambda: None, model, text, 1, 4, student.ctx)
    with decoding("What evaluate_perplexity returns"):
        value = float(found)
    if value < 1e5:  # nan is no crash either; who adds 1e-6 to each p, lest it be 0, comes to 1e6
        raise Mistake("loss_limited", f"Where -ln p is 2000 each time, evaluate_perplexity gives {value:.4g}.")


@pytest.mark.check("evaluate_perplexity")
def test_bigrams(student, rng):
    """A model that knows how often each pair stands in a text has the perplexity that follows from the counts."""
    V, T = 6, 4
    text = [int(i) for i in rng.integers(0, V, 39) ** 2 // V]
    model = BigramModel(rng, V, [int(i) for i in rng.integers(0, V, 60) ** 2 // V])
    found, _ = evaluate(student, model, text, 1, T)
    count = sum(len(symbols) for symbols in model.fed)  # a tail may be dropped
    expected = oracle.bigram_perplexity(np.exp(model.machine.scores[0]), text[: count + 1])
    assert_close(found, expected, "The perplexity of pairs", PERPLEXITY)


@pytest.mark.check("evaluate_perplexity")
def test_no_gradient(student, rng):
    """It measures: no gradient is recorded, and the model is not in training mode."""
    model = Uniform(rng, 6)
    evaluate(student, model, [int(i) for i in rng.integers(0, 6, 30)], 2, 4)
    if any(is_recording for is_recording, _ in model.flags):
        raise Mistake("recorded", "The model is called inside autograd.record().")
    if any(is_training for _, is_training in model.flags):
        raise Mistake("training_mode", "The model is called in training mode.")


@pytest.mark.check("evaluate_perplexity")
def test_changes_nothing(student, rng):
    """A block is measured right, and it, the text and the notebook are afterwards as they were."""
    V, H, B, T = 7, 3, 1, 4
    params = oracle.toy_params(rng, V, H)
    student.stubs.set_toy(params)
    model = student.keep(student.stubs.ref("make_toy_model"), True)
    text = [int(i) for i in rng.integers(0, V, 5 * T + 1)]
    target = student.ref("evaluate_perplexity")
    helpers = {"data_iter_consecutive": consecutive_for(text, [])}
    with decoding("What evaluate_perplexity changes"):
        found, changed = student.stubs.judge_measuring(target, helpers, model, text, B, T, student.ctx)
        changed = [str(name) for name in changed]
    if changed:
        names = {"indices": "input_changed", "model": "model_changed"}
        raise Mistake(names.get(changed[0], "notebook_changed"), f"evaluate_perplexity changes {changed}.")
    after = as_params(student.stubs.read_params(model), [param.shape for param in params])
    if not all(np.array_equal(value, before) for value, before in zip(after, params, strict=True)):
        raise Mistake("model_changed", "evaluate_perplexity changes a parameter.")
    inputs = oracle.to_onehot([text[:-1]], V)
    scores, _ = oracle.recurrence(inputs, np.zeros((B, H)), params, oracle.linear)
    expected = math.exp(oracle.nats(scores[:, 0], text[1:]).mean())
    assert_close(as_number(found, "evaluate_perplexity(...)"), expected, "The perplexity", PERPLEXITY)


### END HIDDEN TESTS
