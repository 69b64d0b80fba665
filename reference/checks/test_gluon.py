"""The Gluon model and its prediction."""

import numpy as np
import pytest
from expect import as_array, as_indices, as_pair, as_text, callback, decoding, first_zeros

### BEGIN HIDDEN TESTS
# isort: split
import oracle
from expect import FORWARD, assert_close
from fakes import TableModel, alphabet

### END HIDDEN TESTS

# -- RNNModel -------------------------------------------------------------------------------------------------


def output_of(result, T, B, V):
    """(output [T·B, V], state arrays) of a model."""
    output, state = as_pair(result, "RNNModel's forward", "(output, state)")
    return as_array(output, f"the output of RNNModel for inputs [{B}, {T}]", (T * B, V)), state


def layouts_of(student, *form):
    """The layouts of recurrent layers with which RNNModel runs."""
    with decoding("The layouts that RNNModel takes"):
        layouts = [str(layout) for layout in student.stubs.layouts_that_run(*form)]
        assert layouts, "RNNModel takes no recurrent layer."
    return layouts


@pytest.mark.check("RNNModel.example")
def test_rnn_model_example(student):
    """Around an LSTM with 8 units: inputs [2, 3] of 5 symbols make an output [6, 5] and two state arrays."""
    layout = layouts_of(student, "lstm", 8, 1, 5)[0]
    model = student.keep(student.stubs.ref("make_rnn_model"), "lstm", 8, 1, layout, 5, 1)
    X = np.array([[0, 1, 2], [3, 4, 0]], "float32")
    _, state = output_of(student.stubs.run_model(model, X), 3, 2, 5)
    with decoding("The state of RNNModel"):
        count = len(state)
    assert count == 2, f"The state of an LSTM holds two arrays, not {count}."


### BEGIN HIDDEN TESTS
# kind, layers, hidden units, B, T, V
MODELS = [("rnn", 1, 5, 1, 1, 4), ("gru", 1, 4, 3, 4, 6), ("lstm", 1, 5, 2, 5, 7), ("lstm", 2, 3, 2, 3, 5)]


def readable_weights(named, num_layers, V, width):
    """(layers, dense) for oracle.gluon_model, or None if the model is built in another way."""
    parts = ("i2h_weight", "h2h_weight", "i2h_bias", "h2h_bias")
    found = {part: [value for name, value in named if name.endswith(part)] for part in parts}
    rest = [value for name, value in named if not name.endswith(parts)]
    dense = [value for value in rest if value.shape == (V, width)], [value for value in rest if value.shape == (V,)]
    if any(len(values) != num_layers for values in found.values()) or found["i2h_weight"][0].shape[1] != V:
        return None
    if len(rest) != 2 or not dense[0] or not dense[1]:
        return None
    return list(zip(*found.values(), strict=True)), (dense[0][0], dense[1][0])


@pytest.mark.check("RNNModel")
@pytest.mark.parametrize(("kind", "num_layers", "width", "B", "T", "V"), MODELS)
def test_rnn_model(student, rng, kind, num_layers, width, B, T, V):
    """The output is what the layer's and the dense layer's weights compute, ordered by time first."""
    problems = []
    for layout in layouts_of(student, kind, width, num_layers, V):
        try:
            judge_rnn_model(student, rng, (kind, width, num_layers, layout, V), B, T)
        except AssertionError as problem:  # the notebook's layers may have another layout than Gluon's default
            problems.append(problem)
        else:
            return
    raise problems[0]


def judge_rnn_model(student, rng, form, B, T):
    kind, width, num_layers, _, V = form
    model = student.keep(student.stubs.ref("make_rnn_model"), *form, int(rng.integers(1 << 30)))
    X = rng.integers(0, V, (B, T)).astype("float32")
    output, state = output_of(student.stubs.run_model(model, X), T, B, V)
    is_softmax = V > 1 and (output >= 0).all() and np.allclose(output.sum(axis=1), 1)
    assert not is_softmax, "RNNModel should return plain scores: the loss makes probabilities of them, without softmax."
    with decoding("The state of RNNModel"):
        shapes = [as_array(array, "a state of RNNModel").shape for array in state]
    assert shapes, "RNNModel returns an empty state."
    assert all(B in shape for shape in shapes), f"The state of RNNModel has shape {shapes[0]}, without B = {B}."
    with decoding("The weights of RNNModel"):
        named = [(str(name), as_array(value, name)) for name, value in student.stubs.read_params(model)]
        weights = readable_weights(named, num_layers, V, width)
    if weights is not None:
        layers, dense = weights
        with decoding("The weights of RNNModel"):
            expected = oracle.gluon_model(kind, layers, dense, X, V)
        found, expected = oracle.log_softmax(output), oracle.log_softmax(expected)  # ln p is as good as scores
        by_row = expected.reshape(T, B, V).swapaxes(0, 1).reshape(-1, V)
        why = "The rows are ordered by text first; time should come first." if np.allclose(found, by_row, 1e-3) else ""
        assert_close(found, expected, "The output of RNNModel, as ln p,", FORWARD, why)
    assert_laws(student, rng, model, X, output)


def assert_laws(student, rng, model, X, output):
    """What any such model keeps: rows are apart, nothing depends on the future, the state says all of the past."""
    (B, T), V = X.shape, output.shape[1]
    steps = output.reshape(T, B, V)
    changed = X.copy()
    changed[-1, -1] = (X[-1, -1] + 1 + rng.integers(V - 1)) % V
    other, _ = output_of(student.stubs.run_model(model, changed), T, B, V)
    differs = (np.abs(other.reshape(T, B, V) - steps) > 1e-4).any(axis=2)
    only_last = np.zeros((T, B), bool)
    only_last[-1, -1] = True
    law = "Changing the last input of the last text should change the last row of the output, and no other."
    assert (differs == only_last).all(), law
    if T == 1:
        return
    half = T // 2
    first = student.keep(student.stubs.ref("run_model"), model, X[:, :half])
    parts = [student.stubs.itself(first), student.stubs.run_model(model, X[:, half:], first)]
    halves = [output_of(part, count, B, V)[0] for part, count in zip(parts, (half, T - half), strict=True)]
    why = "A text read in two parts, with the state handed on, should give what it gives in one."
    assert_close(np.concatenate(halves), output, "The output of RNNModel", FORWARD, why)


### END HIDDEN TESTS
# -- predict_rnn_gluon ----------------------------------------------------------------------------------------


@pytest.mark.check("predict_rnn_gluon.example")
def test_predict_rnn_gluon_example(student):
    """With a model that always finds the symbol after its input most likely, `ab` goes on with `cda`."""

    def after_it(inputs, state, is_recording, is_training):
        symbols = as_indices(inputs, "The input handed to the model, [B, T],", 4)
        return np.eye(4, dtype="float32")[(symbols.T.ravel() + 1) % 4], state

    letters = list("abcd")
    rest = [4, student.ctx, letters, {letter: i for i, letter in enumerate(letters)}]
    target = student.ref("predict_rnn_gluon")
    begin, step = callback("begin_state", first_zeros), callback("model", after_it)
    text = student.stubs.judge_with_model(target, {}, begin, step, ["ab", 3], rest)
    text = as_text(text, "predict_rnn_gluon(...)")
    assert text == "abcda", f"predict_rnn_gluon('ab', 3, ...) gave {text!r}, expected 'abcda'."


### BEGIN HIDDEN TESTS
@pytest.mark.check("predict_rnn_gluon")
@pytest.mark.parametrize(("length", "num_chars", "V"), [(1, 9, 5), (6, 12, 9), (2, 1, 4), (4, 0, 6)])
def test_predict_rnn_gluon(student, rng, length, num_chars, V):
    """The text that a table-driven model makes likely, where each output depends on all characters before."""
    fake = TableModel(rng, V)
    letters, index = alphabet(student, rng, V)
    prefix = [int(i) for i in rng.integers(0, V, length)]
    words = "".join(letters[i] for i in prefix)
    rest = [V, student.ctx, letters, index]
    target = student.ref("predict_rnn_gluon")
    text = student.stubs.judge_with_model(target, {}, fake.begin, fake.step, [words, num_chars], rest)
    fake.assert_text(text, "predict_rnn_gluon", letters, prefix, num_chars)


### END HIDDEN TESTS
