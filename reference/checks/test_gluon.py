"""The Gluon model."""

import numpy as np
import pytest
from expect import as_array, as_pair, decoding

### BEGIN HIDDEN TESTS
# isort: split
import oracle
from expect import FORWARD, Mistake, assert_close, is_close

### END HIDDEN TESTS

# -- RNNModel -------------------------------------------------------------------------------------------------


def output_of(result, T, B, V):
    """(output [T·B, V], state arrays) of a model."""
    output, state = as_pair(result, "RNNModel's forward", "(output, state)")
    return as_array(output, f"The output of RNNModel for inputs [{B}, {T}]", (T * B, V)), state


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
PARTS = ("i2h_weight", "h2h_weight", "i2h_bias", "h2h_bias")
ACTIVATIONS = {
    "relu": lambda scores: np.maximum(scores, 0),
    "tanh": np.tanh,
    "sigmoid": lambda scores: 1 / (1 + np.exp(-scores)),
}
# kind, layers, hidden units, B, T, V
MODELS = [("rnn", 1, 5, 1, 1, 4), ("gru", 1, 4, 3, 4, 6), ("lstm", 1, 5, 2, 5, 7), ("lstm", 2, 3, 2, 3, 5)]


def readable_weights(named, num_layers, V, width):
    """(layers, dense) for oracle.gluon_model, or None if the model is built in another way."""
    found = {part: [value for name, value in named if name.endswith(part)] for part in PARTS}
    rest = [value for name, value in named if not name.endswith(PARTS)]
    dense = [value for value in rest if value.shape == (V, width)], [value for value in rest if value.shape == (V,)]
    if any(len(values) != num_layers for values in found.values()) or found["i2h_weight"][0].shape[1] != V:
        return None
    behind = [value.shape for value in rest if value.shape != (V, V)]  # which would be an embedding
    if len(behind) > 2:
        raise Mistake("more_layers", f"Beside the recurrent layer there are arrays {behind}.")
    if len(rest) != 2 or not dense[0] or not dense[1]:
        return None
    return list(zip(*found.values(), strict=True)), (dense[0][0], dense[1][0])


@pytest.mark.check("RNNModel")
def test_begin_state(student):
    """The first state has room for as many texts as it is asked for."""
    shapes = student.stubs.first_state_shapes(3, "lstm", 4, 1, "TNC", 5, 0)
    with decoding("The shapes of the first state"):
        lacks = [list(shape) for shape in shapes if 3 not in shape]
    if lacks:
        raise Mistake("state_size", f"For a batch of 3, begin_state gives arrays of shape {lacks[0]}.")


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
    if V > 1 and (output >= 0).all() and np.allclose(output.sum(axis=1), 1):
        raise Mistake("softmax", "RNNModel returns probabilities.")
    again, _ = output_of(student.stubs.run_model(model, X), T, B, V)
    if not is_close(output, again, **FORWARD):
        raise Mistake("remembers", "The same text, with the same first state, gives another output the second time.")
    assert_state(state, num_layers * B * width * (2 if kind == "lstm" else 1))
    with decoding("The weights of RNNModel"):
        named = [(str(name), as_array(value, name)) for name, value in student.stubs.read_params(model)]
        assert_layers([(name, value.shape) for name, value in named], kind, num_layers, width, V)
        weights = readable_weights(named, num_layers, V, width)
    if weights:
        layers, (to_scores, bias) = weights
        hidden = oracle.gluon_model(kind, layers, (np.eye(width), np.zeros(width)), X, V)
        assert_output(output.reshape(T, B, V), hidden.reshape(T, B, width), lambda states: states @ to_scores.T + bias)
    assert_laws(student, rng, model, X, output.reshape(T, B, V))
    weighting = rng.normal(size=output.shape).astype("float32")
    found = student.stubs.gradients_of_model(model, X, weighting)
    with decoding("The gradients of RNNModel"):
        found = {str(name): value for name, value in found}
        grads = [as_array(found.get(name, np.zeros(value.shape)), name, value.shape) for name, value in named]
    if not any(grad.any() for grad in grads):
        raise Mistake("no_gradient", "All gradients of RNNModel are zero.")
    if weights:
        assert_gradients(
            rng,
            named,
            grads,
            lambda values: np.sum(
                weighting
                * oracle.log_softmax(oracle.gluon_model(kind, *readable_weights(values, num_layers, V, width), X, V))
            ),
        )


def assert_state(state, size):
    """The state holds no less than the layer's own."""
    with decoding("The state of RNNModel"):
        arrays = [as_array(array, "A state of RNNModel") for array in state]
    found = sum(array.size for array in arrays)
    if found < size:
        raise Mistake("state_incomplete", f"The state of RNNModel holds {found} numbers, not {size}.")


def assert_layers(shapes, kind, num_layers, width, V):
    """The recurrent layer is the one that was handed in, and its inputs are one-hot vectors (or an embedding)."""
    hidden = [shape for name, shape in shapes if name.endswith("h2h_weight")]
    if hidden != [(oracle.GATES[kind] * width, width)] * num_layers:
        raise Mistake("other_layer", f"RNNModel around a {kind} with {width} units has recurrent weights {hidden}.")
    inputs = next((shape[1] for name, shape in shapes if name.endswith("i2h_weight")), V)
    if inputs != V and (V, inputs) not in [shape for _, shape in shapes]:
        raise Mistake("onehot_size", f"The recurrent layer of RNNModel has {inputs} inputs for {V} symbols.")


def assert_output(found, hidden, dense):
    """Scores [T, B, V] are dense(hidden), as ln p; log_softmax changes nothing for the loss or what is likeliest."""
    T, B, V = found.shape
    expected = dense(hidden)
    actual, right = oracle.log_softmax(found), oracle.log_softmax(expected)
    if is_close(actual, right, **FORWARD):
        return
    by_row = oracle.log_softmax(found.reshape(B, T, V).swapaxes(0, 1))
    if is_close(by_row, right, **FORWARD):
        raise Mistake("rows_by_text", "The rows of RNNModel's output are ordered by text first.")
    for name, function in ACTIVATIONS.items():
        if is_close(actual, oracle.log_softmax(function(expected)), **FORWARD):
            raise Mistake("activated", f"RNNModel puts a {name} on its scores.")
        if is_close(actual, oracle.log_softmax(dense(function(hidden))), **FORWARD):
            raise Mistake("activated_hidden", f"RNNModel puts a {name} on the hidden states.")
    assert_close(actual, right, "The output of RNNModel, as ln p,", FORWARD)


def assert_gradients(rng, named, grads, function):
    """Along random directions the gradients are the slopes of a function of the named values."""
    norm = oracle.global_norm(grads)
    if not norm:
        raise Mistake("no_gradient", "All gradients of RNNModel are zero.")
    for _ in range(3):
        ways = [rng.uniform(-1, 1, value.shape) for _, value in named]
        ends = [
            function([(name, value + step * way) for (name, value), way in zip(named, ways, strict=True)])
            for step in (1e-4, -1e-4)
        ]
        slope = sum(float((grad * way).sum()) for grad, way in zip(grads, ways, strict=True))
        if not is_close(slope / norm, (ends[0] - ends[1]) / 2e-4 / norm, rtol=0, atol=1e-4):
            raise Mistake(
                "no_gradient", f"A slope of RNNModel is {(ends[0] - ends[1]) / 2e-4:.4g}, by autograd {slope:.4g}."
            )


def assert_laws(student, rng, model, X, steps):
    """What any such model keeps: rows are apart, nothing depends on the future, the state says all of the past."""
    T, B, V = steps.shape
    changed = X.copy()
    changed[-1, -1] = (X[-1, -1] + 1 + rng.integers(V - 1)) % V
    other, _ = output_of(student.stubs.run_model(model, changed), T, B, V)
    differs = (np.abs(other.reshape(T, B, V) - steps) > 1e-4).any(axis=2)
    observed = f"Changing the last input of the last text changes the output at {np.argwhere(differs).tolist()}."
    if not differs.any():
        raise Mistake("input_ignored", observed)
    if differs[:-1].any():
        raise Mistake("looks_ahead", observed)
    if differs.sum() > 1:
        raise Mistake("texts_mixed", observed)
    if T > 1:
        assert_goes_on(student, model, X, steps)


def assert_goes_on(student, model, X, steps):
    """A text read in two parts, with the state handed on, gives what it gives in one."""
    (T, B, V), half = steps.shape, steps.shape[0] // 2
    first = student.keep(student.stubs.ref("run_model"), model, X[:, :half])
    begun, state = output_of(student.stubs.itself(first), half, B, V)
    rest, _ = output_of(student.stubs.run_model(model, X[:, half:], first), T - half, B, V)
    found = np.concatenate([begun, rest]).reshape(T, B, V)
    if is_close(found, steps, **FORWARD):
        return
    afresh, _ = output_of(student.stubs.run_model(model, X[:, half:]), T - half, B, V)
    if is_close(rest, afresh, **FORWARD):
        with decoding("The state of RNNModel"):
            is_new = any(np.any(as_array(array, "A state of RNNModel")) for array in state)
        raise Mistake("state_ignored" if is_new else "old_state", "The second half is read as if it were the first.")
    parts = [part.reshape(B, -1, V).swapaxes(0, 1) for part in (begun, rest)]
    if is_close(np.concatenate(parts), steps.reshape(B, T, V).swapaxes(0, 1), **FORWARD):
        raise Mistake("rows_by_text", "The rows of RNNModel's output are ordered by text first.")
    why = "A text read in two parts, with the state handed on, should give what it gives in one."
    assert_close(found, steps, "The output of RNNModel", FORWARD, why)


### END HIDDEN TESTS
