"""evaluate_perplexity, on models whose perplexity is known."""

import numpy as np
import pytest
from expect import PERPLEXITY, as_indices, as_number, assert_close, callback, first_zeros

### BEGIN HIDDEN TESTS
# isort: split
import itertools
import math

import oracle
from expect import FORWARD, as_params, is_close
from fakes import TableModel, consecutive_for

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
    """What evaluate_perplexity makes of a fake model."""
    target, callbacks = student.ref("evaluate_perplexity"), [model.begin, model.step]
    helpers = {"data_iter_consecutive": consecutive_for(text)}
    found = student.stubs.judge_evaluate(target, helpers, model.forget, callbacks, text, B, T, student.ctx)
    return as_number(found, "evaluate_perplexity(...)")


class Uniform(TableModel):
    """Finds all symbols equally likely."""

    def __init__(self, rng, vocab_size):
        super().__init__(rng, vocab_size, scale=0.0)


# B, T, length: everything fits (so that no tail can be kept or dropped), something is left over, T = 1
CASES = [(1, 5, 41), (3, 4, 39), (4, 3, 50), (2, 1, 21), (1, 7, 40)]


@pytest.mark.check("evaluate_perplexity")
@pytest.mark.parametrize(("B", "T", "length"), CASES)
def test_uniform(student, rng, B, T, length):
    """Guessing among V has perplexity V."""
    text = [int(i) for i in rng.integers(0, 11, length)]
    found = evaluate(student, Uniform(rng, 11), text, B, T)
    assert_close(found, 11, "The perplexity of guessing among 11", PERPLEXITY)


@pytest.mark.check("evaluate_perplexity")
@pytest.mark.parametrize(("B", "T", "length"), CASES)
def test_value(student, rng, B, T, length):
    """exp of the mean over all characters that were read, with the state carried on.

    Each symbol occurs once in the text, so that what was fed to the model tells which character came next,
    whichever tail of the text is kept.
    """
    text = [int(i) for i in rng.permutation(length)]
    model = TableModel(rng, length, scale=0.15)
    found = evaluate(student, model, text, B, T)
    place = {symbol: i for i, symbol in enumerate(text)}
    nats, swapped, places = [], [], []
    for symbols, scores in zip(model.fed, model.scores, strict=True):
        at = np.vectorize(place.get)(symbols)
        known = at + 1 < length
        labels = np.array(text)[np.where(known, at + 1, 0)]
        nats.append(oracle.nats(scores, labels)[known])
        swapped.append(oracle.nats(scores, labels.T.reshape(labels.shape))[known])
        places.append(at)
    assert places, "evaluate_perplexity never calls the model."
    assert_coverage(places, length, B, T)
    assert_carried(model, places)
    assert_perplexity(found, nats, swapped)


def assert_coverage(places, length, B, T):
    """Each place at most once; all but a tail of less than a minibatch and a column."""
    flat = np.concatenate([at.ravel() for at in places])
    assert len(set(flat)) == len(flat), "A part of the text is read more than once."
    assert len(flat) >= length - B * (T + 1), f"Of {length} characters only {len(flat)} are read."


def assert_carried(model, places):
    """Where the rows go on from one call to the next, so does the state; one tail may stand apart."""
    breaks = 0
    for (before, after), went_on in zip(itertools.pairwise(places), model.went_on[1:], strict=True):
        goes_on = before.shape[1] == after.shape[1] and (after[0] == before[-1] + 1).all()
        breaks += not goes_on
        assert went_on or not goes_on, "The state that the model returns should be handed to its next call."
    assert breaks <= 1, "Read the text in consecutive minibatches, so that the state can be carried on."


def assert_perplexity(found, nats, swapped):
    """The value; the message names the mistake if it is a known one."""
    mean = np.concatenate(nats, None).mean()
    if is_close(found, math.exp(mean), **PERPLEXITY):
        return
    known = {
        "the mean of the minibatches' exponentials; take exp of the mean": np.mean([np.exp(p.mean()) for p in nats]),
        "the mean of the characters' exponentials; take exp of the mean": np.mean(np.exp(np.concatenate(nats, None))),
        "the mean loss; its exponential is missing": mean,
        "2 to the power of nats; take exp": 2**mean,
        "exp of the last minibatch's loss only": math.exp(nats[-1].mean()),
        "what labels in another order than the outputs make: outputs are ordered by time first": math.exp(
            np.concatenate(swapped, None).mean()
        ),
        "exp of the sum over minibatches": math.exp(min(700, sum(part.mean() for part in nats))),
    }
    for mistake, wrong in known.items():
        assert not is_close(found, wrong, **PERPLEXITY), f"evaluate_perplexity gives {mistake}."
    assert_close(found, math.exp(mean), "The perplexity", PERPLEXITY)


@pytest.mark.check("evaluate_perplexity")
def test_no_gradient(student, rng):
    """It measures: no gradient is recorded, and the model is not in training mode."""
    model = Uniform(rng, 6)
    evaluate(student, model, [int(i) for i in rng.integers(0, 6, 30)], 2, 4)
    assert model.flags, "evaluate_perplexity never calls the model."
    assert not any(recording for recording, _ in model.flags), "The model is called inside autograd.record()."
    assert not any(training for _, training in model.flags), "The model is called in training mode."


@pytest.mark.check("evaluate_perplexity")
def test_changes_nothing(student, rng):
    """A model with parameters is measured right and has the same parameters afterwards."""
    V, H, B, T = 7, 3, 1, 4
    params = oracle.toy_params(rng, V, H)
    student.stubs.set_toy(params)
    model = student.keep(student.stubs.ref("make_toy_model"), True)
    text = [int(i) for i in rng.integers(0, V, 5 * T + 1)]
    target = student.ref("evaluate_perplexity")
    helpers = {"data_iter_consecutive": consecutive_for(range(V))}
    found = student.stubs.judge_evaluate(target, helpers, lambda: None, model, text, B, T, student.ctx)
    after = as_params(student.stubs.read_params(model), [param.shape for param in params])
    for value, before in zip(after, params, strict=True):
        assert_close(value, before, "A parameter, after evaluate_perplexity,", FORWARD)
    inputs = oracle.to_onehot([text[:-1]], V)
    scores, _ = oracle.recurrence(inputs, np.zeros((B, H)), params, oracle.linear)
    expected = math.exp(oracle.nats(scores[:, 0], text[1:]).mean())
    assert_close(as_number(found, "evaluate_perplexity(...)"), expected, "The perplexity", PERPLEXITY)


### END HIDDEN TESTS
