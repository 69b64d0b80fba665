"""The network from scratch: one-hot vectors, parameters, state, recurrence, prediction, clipping."""

import numpy as np
import pytest
from expect import (
    CLIPPED,
    FORWARD,
    as_array,
    as_arrays,
    as_count,
    as_pair,
    as_state,
    as_text,
    assert_close,
    callback,
    decoding,
    onehot_for,
    zeros_for,
)

### BEGIN HIDDEN TESTS
# isort: split
import oracle
from expect import GRADIENT
from fakes import TableRnn, alphabet

### END HIDDEN TESTS

# -- to_onehot ------------------------------------------------------------------------------------------------


@pytest.mark.check("to_onehot.example")
def test_to_onehot_example(student):
    """The columns of X become one-hot arrays, one for each time step."""
    X = np.array([[0, 2], [1, 1]], "float32")
    first, second = as_arrays(student.to_onehot(X, 3), "to_onehot(X, 3)", 2, (2, 3))
    assert_close(first, [[1, 0, 0], [0, 1, 0]], "to_onehot([[0, 2], [1, 1]], 3)[0]", FORWARD)
    assert_close(second, [[0, 0, 1], [0, 1, 0]], "to_onehot([[0, 2], [1, 1]], 3)[1]", FORWARD)


### BEGIN HIDDEN TESTS
@pytest.mark.check("to_onehot")
@pytest.mark.parametrize(("B", "T", "V"), [(1, 1, 4), (3, 5, 7), (4, 2, 2), (2, 6, 27)])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_to_onehot(student, rng, B, T, V, dtype):
    """T arrays [B, V] with a one at each index; X stays as it was."""
    X = rng.integers(0, V, (B, T)).astype(dtype)
    kept = student.keep(student.stubs.ref("itself"), X)
    outputs = as_arrays(student.to_onehot(kept, V), f"to_onehot(X [{B}, {T}], {V})", T, (B, V))
    assert_close(outputs, oracle.to_onehot(X, V), "to_onehot(X, size)", FORWARD)
    after = as_array(student.stubs.itself(kept), "X, after to_onehot,", X.shape)
    assert_close(after, X, "X, after to_onehot,", FORWARD)


### END HIDDEN TESTS
# -- get_params, init_rnn_state -------------------------------------------------------------------------------

PARAMS = ("W_xh", "W_hh", "b_h", "W_hq", "b_q")


def sizes_of(student):
    """The notebook's vocab_size and num_hiddens."""
    return tuple(as_count(student.get(name), name) for name in ("vocab_size", "num_hiddens"))


def params_of(student):
    """The five arrays of get_params() by name."""
    values = as_arrays(student.get_params(), "get_params()", 5)
    return dict(zip(PARAMS, values, strict=True))


@pytest.mark.check("get_params.example")
def test_get_params_example(student):
    """There are five parameters, of the sizes that belong to vocab_size and num_hiddens."""
    V, H = sizes_of(student)
    sizes = {name: value.size for name, value in params_of(student).items()}
    expected = {"W_xh": V * H, "W_hh": H * H, "b_h": H, "W_hq": H * V, "b_q": V}
    assert sizes == expected, f"get_params() has arrays of sizes {sizes}, expected {expected}."


### BEGIN HIDDEN TESTS
@pytest.mark.check("get_params")
def test_get_params_shapes(student):
    """Shapes as in the formulas; a bias may be a row."""
    V, H = sizes_of(student)
    shapes = {"W_xh": [(V, H)], "W_hh": [(H, H)], "b_h": [(H,), (1, H)], "W_hq": [(H, V)], "b_q": [(V,), (1, V)]}
    for name, value in params_of(student).items():
        allowed = shapes[name]
        assert value.shape in allowed, f"{name} should have shape {list(allowed[0])}, has {list(value.shape)}."


@pytest.mark.check("get_params")
def test_get_params_values(student):
    """Weights look drawn from N(0, 0.01²), within six standard errors; biases are zero."""
    for name, value in params_of(student).items():
        if name.startswith("b"):
            assert not value.any(), f"{name} should begin with zeros."
            continue
        spread, error = value.std(), 6 / np.sqrt(2 * value.size)
        assert abs(spread / 0.01 - 1) < error, f"{name} has standard deviation {spread:.4g}, expected 0.01."
        assert abs(value.mean()) < 0.06 / np.sqrt(value.size), f"{name} has mean {value.mean():.2g}, expected 0."
        far = np.abs(value).max() > 0.02  # a uniform distribution of this width ends at 0.0173
        assert far, f"{name} has no entry beyond two standard deviations: it is not drawn from a normal distribution."


@pytest.mark.check("get_params")
def test_get_params_gradients(student):
    """Each parameter is an NDArray with a gradient attached."""
    described = student.stubs.describe_params(student.keep("get_params"))
    with decoding("The description of get_params()"):
        described = [(name, str(kind), bool(grad)) for name, (kind, grad) in zip(PARAMS, described, strict=True)]
    for name, type_name, has_gradient in described:
        assert type_name == "NDArray", f"{name} should be an NDArray, but is a {type_name}."
        assert has_gradient, f"{name} has no gradient attached: call attach_grad()."


### END HIDDEN TESTS
@pytest.mark.check("init_rnn_state.example")
def test_init_rnn_state_example(student):
    """One array of zeros in a tuple."""
    state = as_state(student.init_rnn_state(2, 3, student.ctx), "init_rnn_state(2, 3, ctx)", (2, 3))
    assert not state.any(), "init_rnn_state(2, 3, ctx)[0] should be all zeros."


### BEGIN HIDDEN TESTS
@pytest.mark.check("init_rnn_state")
@pytest.mark.parametrize(("B", "H"), [(1, 1), (5, 3), (2, 17)])
def test_init_rnn_state(student, B, H):
    """A tuple with one zero NDArray [B, H], for any sizes."""
    kept = student.keep("init_rnn_state", B, H, student.ctx)
    state = as_state(student.stubs.itself(kept), f"init_rnn_state({B}, {H}, ctx)", (B, H))
    assert not state.any(), "The first state should be all zeros."
    with decoding("The description of the state"):
        ((type_name, _),) = student.stubs.describe_params(kept)
    assert type_name == "NDArray", "The state should hold an NDArray."


### END HIDDEN TESTS
# -- rnn ------------------------------------------------------------------------------------------------------


def rnn_result(result, T, B, V, H):
    """(outputs [T, B, V], state [B, H]) of what rnn returned."""
    outputs, state = as_pair(result, "rnn(inputs, state, params)", "(outputs, state)")
    outputs = as_arrays(outputs, "the outputs of rnn", T, (B, V))
    return np.stack(outputs), as_state(state, "the state that rnn returns", (B, H))


@pytest.mark.check("rnn.example")
def test_rnn_example(student):
    """One symbol, one hidden unit, one step: h = tanh(1 + 0.5 · 2 - 1) and o = 3 h + 0.5."""
    values = ([[1.0]], [[0.5]], [-1.0], [[3.0]], [0.5])
    params = [np.array(value, "float32") for value in values]
    state = (np.array([[2.0]], "float32"),)
    inputs = [np.array([[1.0]], "float32")]
    outputs, new_state = rnn_result(student.rnn(inputs, state, params), 1, 1, 1, 1)
    assert_close(new_state, [[0.761594]], "the new state", FORWARD, "It is tanh(x W_xh + h W_hh + b_h).")
    assert_close(outputs[0], [[2.784782]], "the output", FORWARD, "It is h W_hq + b_q, with the new h.")


### BEGIN HIDDEN TESTS
SIZES = [(1, 1, 3, 4), (2, 5, 6, 4), (3, 4, 5, 9), (1, 7, 8, 3)]


def rnn_arguments(rng, B, T, V, H):
    """Random one-hot inputs, a state that is not zero, and parameters of a sane size."""
    inputs = list(oracle.to_onehot(rng.integers(0, V, (B, T)), V).astype("float32"))
    state = rng.normal(0, 0.7, (B, H)).astype("float32")
    shapes = [(V, H), (H, H), (H,), (H, V), (V,)]
    return inputs, state, [rng.normal(0, 0.5, shape).astype("float32") for shape in shapes]


@pytest.mark.check("rnn")
@pytest.mark.parametrize("sequence", [tuple, list])
@pytest.mark.parametrize(("B", "T", "V", "H"), SIZES)
def test_rnn(student, rng, B, T, V, H, sequence):
    """All outputs and the last state; nothing that was passed in is changed."""
    inputs, state, params = rnn_arguments(rng, B, T, V, H)
    kept = [student.keep(student.stubs.ref("itself"), value) for value in (inputs, sequence([state]), params)]
    outputs, new_state = rnn_result(student.rnn(*kept), T, B, V, H)
    expected, states = oracle.recurrence(inputs, state, params)
    diagnose_rnn(outputs, inputs, state, params)
    assert_close(outputs, expected, "the output of rnn", FORWARD)
    assert_close(new_state, states[-1], "the state that rnn returns", FORWARD)
    for name, handle, before in zip(("inputs", "state", "params"), kept, (inputs, [state], params), strict=True):
        what = f"{name}, after rnn,"
        for value, array in zip(as_arrays(student.stubs.itself(handle), what, len(before)), before, strict=True):
            assert_close(as_array(value, what, array.shape), array, what, FORWARD, "It should not change.")


def diagnose_rnn(outputs, inputs, state, params):
    """Name the mistakes that are known."""
    known = {
        "ignores the state that it is given": oracle.recurrence(inputs, state * 0, params),
        "has no tanh": oracle.recurrence(inputs, state, params, oracle.linear),
        "uses the sigmoid, not tanh": oracle.recurrence(inputs, state, params, lambda x: 1 / (1 + np.exp(-x))),
        "uses relu, not tanh": oracle.recurrence(inputs, state, params, lambda x: np.maximum(x, 0)),
        "does not carry the state from step to step": [
            np.concatenate([oracle.recurrence([x], state, params)[0] for x in inputs])
        ],
        "leaves out b_h": oracle.recurrence(inputs, state, [*params[:2], params[2] * 0, *params[3:]]),
        "leaves out b_q": oracle.recurrence(inputs, state, [*params[:4], params[4] * 0]),
    }
    right, _ = oracle.recurrence(inputs, state, params)
    for mistake, (wrong, *_) in known.items():
        if np.allclose(outputs, wrong, **FORWARD) and not np.allclose(right, wrong, **FORWARD):
            raise AssertionError(f"rnn {mistake}.")


@pytest.mark.check("rnn")
def test_rnn_gradients(student, rng):
    """Gradients flow through all steps, so that it can be trained."""
    B, T, V, H = 2, 5, 6, 4
    inputs, state, params = rnn_arguments(rng, B, T, V, H)
    weights = rng.normal(0, 1, (T, B, V)).astype("float32")
    grads = student.stubs.gradients_of_rnn(student.ref("rnn"), inputs, (state,), params, list(weights))
    expected = oracle.recurrence_gradients(inputs, state, params, weights)
    grads = as_arrays(grads, "the gradients", 5)
    for name, grad, right in zip(PARAMS, grads, expected, strict=True):
        scale = {**GRADIENT, "atol": GRADIENT["rtol"] * np.abs(right).max()}
        assert_close(as_array(grad, "a gradient", right.shape), right, f"the gradient of {name}", scale)


### END HIDDEN TESTS
# -- predict_rnn ----------------------------------------------------------------------------------------------


@pytest.mark.check("predict_rnn.example")
def test_predict_rnn_example(student):
    """With an rnn that always finds the symbol after its input most likely, `ab` goes on with `cda`."""

    def after_it(inputs, state, params):
        with decoding("The inputs handed to rnn"):
            arrays = as_arrays(inputs, "the inputs handed to rnn", len(inputs), (1, 4))
        return [np.roll(x, 1, axis=1).astype("float32") for x in arrays], state

    letters = list("abcd")
    index = {letter: i for i, letter in enumerate(letters)}
    rnn = callback("rnn", after_it)
    helpers = {"to_onehot": onehot_for(4)}
    arguments = ("ab", 3, rnn, [], zeros_for(1, 2), 2, 4, student.ctx, letters, index)
    text = student.stubs.judge_alone(student.ref("predict_rnn"), helpers, *arguments)
    assert as_text(text, "predict_rnn(...)") == "abcda", f"predict_rnn('ab', 3, ...) gave {text!r}, expected 'abcda'."


### BEGIN HIDDEN TESTS
@pytest.mark.check("predict_rnn")
@pytest.mark.parametrize(("length", "num_chars", "V", "H"), [(1, 9, 5, 3), (6, 12, 9, 4), (2, 1, 4, 1), (4, 0, 6, 2)])
def test_predict_rnn(student, rng, length, num_chars, V, H):
    """The text that a table-driven rnn makes likely, where each output depends on all characters before."""
    fake = TableRnn(rng, V, H)
    letters, index = alphabet(student, rng, V)
    prefix = [int(i) for i in rng.integers(0, V, length)]
    params = [np.zeros(shape, "float32") for shape in ((V, H), (H, H), (H,), (H, V), (V,))]
    helpers = {"to_onehot": onehot_for(V)}
    words = "".join(letters[i] for i in prefix)
    arguments = (words, num_chars, fake.rnn, params, fake.init_rnn_state, H, V, student.ctx, letters, index)
    text = student.stubs.judge_alone(student.ref("predict_rnn"), helpers, *arguments)
    fake.assert_text(text, "predict_rnn", letters, prefix, num_chars)


### END HIDDEN TESTS
# -- grad_clipping --------------------------------------------------------------------------------------------


def clipped(student, grads, theta):
    """The gradients after grad_clipping(params, theta, ctx)."""
    values = [np.ones_like(grad) for grad in grads]
    params = student.keep(student.stubs.ref("make_params"), values, grads)
    student.keep("grad_clipping", params, theta, student.ctx)
    after = as_arrays(student.stubs.grads_of(params), "the gradients", len(grads))
    what = "a parameter, after grad_clipping,"
    for value in as_arrays(student.stubs.itself(params), what, len(grads)):
        assert_close(value, np.ones_like(value), what, FORWARD, "Only its grad should change.")
    return [as_array(new, "param.grad", grad.shape) for new, grad in zip(after, grads, strict=True)]


@pytest.mark.check("grad_clipping.example")
def test_grad_clipping_example(student):
    """Gradients 3 and 4 have norm 5: with theta 2.5 they become 1.5 and 2, with theta 10 they stay."""
    grads = [np.array([3.0], "float32"), np.array([4.0], "float32")]
    for theta, expected in ((2.5, [1.5, 2.0]), (10.0, [3.0, 4.0])):
        found = [float(grad[0]) for grad in clipped(student, grads, theta)]
        assert_close(found, expected, f"with theta = {theta}, the gradient", CLIPPED)


### BEGIN HIDDEN TESTS
CLIPPING = [
    # shapes, norm, theta
    ([(4, 3), (3, 3), (3,), (3, 4), (4,)], 7.0, 1.0),
    ([(4, 3), (3, 3), (3,), (3, 4), (4,)], 0.7, 1.0),
    ([(4, 3), (3, 3), (1, 3), (3, 4), (1, 4)], 1.01, 1.0),
    ([(4, 3), (3, 3), (3,), (3, 4), (4,)], 0.99, 1.0),
    ([(5,)], 3.0, 0.02),
    ([(2, 2, 2), (1,)], 400.0, 31.0),
    ([(40, 30), (2,)], 0.05, 0.01),
]


@pytest.mark.check("grad_clipping")
@pytest.mark.parametrize(("shapes", "norm", "theta"), CLIPPING)
def test_grad_clipping(student, rng, shapes, norm, theta):
    """All gradients, whatever their shapes, are scaled in place by min(1, θ/‖g‖)."""
    grads = [rng.normal(0, 1, shape) * rng.uniform(0.2, 3) for shape in shapes]
    scale = norm / oracle.global_norm(grads)
    grads = [(grad * scale).astype("float32") for grad in grads]
    found = clipped(student, grads, theta)
    expected = oracle.clip(grads, theta)
    diagnose_clipping(found, grads, theta, expected)
    for new, right in zip(found, expected, strict=True):
        assert_close(new, right, f"a gradient, with norm {norm} and theta {theta},", CLIPPED)


@pytest.mark.check("grad_clipping")
@pytest.mark.parametrize("theta", [5.0, 1.0])
def test_grad_clipping_edges(student, theta):
    """A norm of exactly theta stays; an array whose gradient is zero stays zero beside others."""
    exact = [np.array([3.0, 0.0], "float32"), np.array([[4.0]], "float32"), np.zeros((2, 3), "float32")]
    factor = min(1.0, theta / 5.0)
    for new, grad in zip(clipped(student, exact, theta), exact, strict=True):
        assert_close(new, grad * factor, f"a gradient, with norm 5 and theta {theta},", CLIPPED)


def diagnose_clipping(found, grads, theta, expected):
    """Name the mistakes that are known."""
    norm = oracle.global_norm(grads)
    known = {
        "clips each array by a norm of its own": [oracle.clip([grad], theta)[0] for grad in grads],
        "leaves the gradients as they are": grads,
        "scales the gradients up when their norm is below theta": [grad * theta / norm for grad in grads],
        "cuts single entries off at theta": [np.clip(grad, -theta, theta) for grad in grads],
        "takes the sum of squares for the norm": [grad * min(1.0, theta / norm**2) for grad in grads],
    }
    for mistake, wrong in known.items():
        same = all(np.allclose(a, b, **CLIPPED) for a, b in zip(found, wrong, strict=True))
        if same and not all(np.allclose(a, b, **CLIPPED) for a, b in zip(expected, wrong, strict=True)):
            raise AssertionError(f"grad_clipping {mistake}.")


### END HIDDEN TESTS
