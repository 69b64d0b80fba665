"""The network from scratch: one-hot vectors, parameters, state, recurrence."""

import numpy as np
import pytest
from expect import FORWARD, as_array, as_arrays, as_count, as_pair, as_state, assert_close, decoding

### BEGIN HIDDEN TESTS
# isort: split
import itertools

import oracle
from expect import GRADIENT, MOST_SYMBOLS, Mistake
from recognise import agree, arrays_in, assert_unchanged, name_mistake

### END HIDDEN TESTS

# -- to_onehot ------------------------------------------------------------------------------------------------


@pytest.mark.check("to_onehot.example")
def test_to_onehot_example(student):
    """The columns of X become one-hot arrays, one for each time step."""
    X = np.array([[0, 2], [1, 1]], "float32")
    outputs = student.stubs.call_in_any_form(student.ref("to_onehot"), X, 3)
    first, second = as_arrays(outputs, "to_onehot(X, 3)", 2, (2, 3))
    assert_close(first, [[1, 0, 0], [0, 1, 0]], "to_onehot([[0, 2], [1, 1]], 3)[0]", FORWARD)
    assert_close(second, [[0, 0, 1], [0, 1, 0]], "to_onehot([[0, 2], [1, 1]], 3)[1]", FORWARD)


### BEGIN HIDDEN TESTS
@pytest.mark.check("to_onehot")
@pytest.mark.parametrize(
    ("B", "T", "V", "highest"),
    [(3, 5, 7, 6), (4, 2, 5, 4), (3, 3, 4, 3), (2, 6, 27, 26), (1, 4, 3, 2), (5, 1, 2, 1), (1, 1, 4, 3), (2, 4, 9, 5)],
)
def test_to_onehot(student, rng, B, T, V, highest):
    """T arrays [B, V] with a one at each index, be it the first or the last, or if none is the last; X stays."""
    X = rng.integers(0, highest + 1, B * T)
    X[:2] = [highest, 0][: X.size]
    X = rng.permutation(X).reshape(B, T).astype("float32")
    call = f"to_onehot(X [{B}, {T}], {V})"
    with decoding(f"What {call} returns"):
        outputs, after = student.stubs.call_and_look(student.ref("to_onehot"), X, V)
    assert_unchanged(after, X, "X, after to_onehot,")
    diagnose_onehot(student, arrays_in(outputs), X.astype(int), V)
    assert_close(as_arrays(outputs, call, T, (B, V)), oracle.to_onehot(X, V), call, FORWARD)


def diagnose_onehot(student, found, X, V):
    """Name the mistakes that are known."""
    right, wider = oracle.to_onehot(X, V), np.eye(V + 1)
    own = student.get("vocab_size") if student.has("vocab_size") else V
    own = own if isinstance(own, int) and V <= own < 1000 else V
    known = [
        ("by_row", np.eye(V)[X]),
        ("reshaped", np.eye(V)[X.reshape(X.T.shape)]),
        ("backwards", right[::-1]),
        ("transposed", right.swapaxes(1, 2)),
        ("shifted", np.eye(V)[(X.T + 1) % V]),
        ("shifted", np.eye(V)[(X.T - 1) % V]),
        ("shifted", wider[X.T + 1][..., :-1]),
        ("shifted", wider[X.T][..., 1:]),
        ("steps_missing", right[:-1]),
        ("steps_missing", right[1:]),
        ("same_step", right[[0] * len(right)]),
        ("same_step", right[[-1] * len(right)]),
        ("wrong_sizes", oracle.to_onehot(X, own)),
        ("as_wide_as_data", oracle.to_onehot(X, X.max() + 1)),
    ]
    name_mistake(found, right, known)
    small = [array for array in found if array.size <= MOST_SYMBOLS]
    if any(set(array.ravel()) == {0, 1} and (array.sum(axis=-1) > 1).any() for array in small):
        raise Mistake("several_ones", "A row of what to_onehot returns holds several ones.")


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
    expected = {"W_xh": (V, H), "W_hh": (H, H), "b_h": (H,), "W_hq": (H, V), "b_q": (V,)}
    found = {name: value.shape for name, value in params_of(student).items()}
    for name in ("b_h", "b_q"):
        found[name] = found[name][1:] if found[name] == (1, *expected[name]) else found[name]
    observed = f"get_params() has arrays of shapes {found}, expected {expected}."
    if found != expected and sorted(found.values()) == sorted(expected.values()):
        raise Mistake("wrong_order", observed)
    for name, shape in expected.items():
        if found[name] != shape:
            raise Mistake("transposed" if found[name] == shape[::-1] else "wrong_shape", observed)


@pytest.mark.check("get_params")
def test_get_params_gradients(student):
    """Each parameter is an NDArray with a gradient attached."""
    described = student.stubs.describe_params(student.keep("get_params"))
    with decoding("The description of get_params()"):
        described = [(name, str(kind), bool(grad)) for name, (kind, grad) in zip(PARAMS, described, strict=True)]
    for name, type_name, has_gradient in described:
        if str(type_name) != "NDArray":
            raise Mistake("wrong_type", f"{name} should be an NDArray, but is a {type_name}.")
        if not has_gradient:
            raise Mistake("no_gradient", f"{name} has no gradient attached: call attach_grad().")


@pytest.mark.check("get_params")
def test_get_params_values(student):
    """Weights look drawn from N(0, 0.01²), each entry for itself; biases are zero."""
    params = params_of(student)
    for name, value in params.items():
        assert value.size, f"{name} is empty."
        mistake = ("bias_not_zero" if value.any() else "") if name.startswith("b") else mistake_of_weight(value)
        if mistake:
            observed = f"{name} has mean {value.mean():.3g} and standard deviation {value.std():.4g}."
            raise Mistake("not_fresh" if hands_out_the_same(student) else mistake, observed)
    for one, other in itertools.combinations([params[name] for name in PARAMS if name.startswith("W")], 2):
        size = min(one.size, other.size)
        if any(np.mean(one.ravel()[:size] == same.ravel()[:size]) > 0.5 for same in (other, other.T)):
            raise Mistake("same_numbers", "Two of the weights hold the same numbers.")


def mistake_of_weight(value):
    """Which law of N(0, 0.01²) an array breaks, by six standard errors; empty if none."""
    spread, error = value.std(), 6 / np.sqrt(2 * value.size)
    if np.unique(value).size < value.size / 10:
        return "repeated"
    if np.abs(value - value.mean()).max() < 2 * spread:  # a uniform distribution ends at 1.73 standard deviations
        return "not_normal"
    if abs(value.mean()) > 1.1 * spread:
        return "off_centre"
    if abs(spread / 0.01 - 1) > error:
        return "wrong_spread"
    return "off_centre" if abs(value.mean()) > 0.06 / np.sqrt(value.size) else ""


def hands_out_the_same(student):
    """Whether get_params() returns arrays that it has returned before: their gradients say so."""
    first = student.keep("get_params")
    marks = [np.ones(value.shape, "float32") for value in params_of(student).values()]
    student.keep(student.stubs.ref("make_params"), first, marks)
    second = student.keep("get_params")
    old, new = (as_arrays(student.stubs.grads_of(params), "The gradients", 5) for params in (first, second))
    return not agree(old, marks) or agree(new, marks)


### END HIDDEN TESTS
@pytest.mark.check("init_rnn_state.example")
def test_init_rnn_state_example(student):
    """One array of zeros in a tuple."""
    state = as_state(student.init_rnn_state(2, 3, student.ctx), "init_rnn_state(2, 3, ctx)", (2, 3))
    assert not state.any(), "init_rnn_state(2, 3, ctx)[0] should be all zeros."


### BEGIN HIDDEN TESTS
@pytest.mark.check("init_rnn_state")
@pytest.mark.parametrize(("B", "H"), [(5, 3), (2, 17), (1, 1), (1, 6), (7, 1)])
def test_init_rnn_state(student, B, H):
    """A tuple with one zero NDArray [B, H], for any sizes."""
    kept = student.keep("init_rnn_state", B, H, student.ctx)
    value, what = student.stubs.itself(kept), f"init_rnn_state({B}, {H}, ctx)"
    if isinstance(value, np.ndarray):
        raise Mistake("no_tuple", f"{what} should be a tuple with one array, but is an array.")
    shapes = [array.shape for array in arrays_in(value)]
    if shapes == [(H, B)] != [(B, H)]:
        raise Mistake("transposed", f"{what} has shape {[H, B]}.")
    if len(shapes) == 1 and len(shapes[0]) == 2 and shapes[0] != (B, H):
        raise Mistake("wrong_sizes", f"{what} has shape {list(shapes[0])}.")
    if as_state(value, what, (B, H)).any():
        raise Mistake("not_zero", f"{what} should be all zeros.")
    with decoding("The description of the state"):
        ((type_name, _),) = student.stubs.describe_params(kept)
    if str(type_name) != "NDArray":
        raise Mistake("wrong_type", f"The state should hold an NDArray, but holds a {type_name}.")


@pytest.mark.check("init_rnn_state")
def test_init_rnn_state_on_ctx(student):
    """The state is made on the device that the caller names."""
    if student.stubs.is_on_ctx(student.ref("init_rnn_state"), 2, 3) is not True:
        raise Mistake("not_on_ctx", "init_rnn_state(2, 3, ctx) should hold an array on ctx.")


### END HIDDEN TESTS
# -- rnn ------------------------------------------------------------------------------------------------------


def rnn_result(result, T, B, V, H):
    """(outputs [T, B, V], state [B, H]) of what rnn returned."""
    outputs, state = as_pair(result, "rnn(inputs, state, params)", "(outputs, state)")
    outputs = as_arrays(outputs, "The outputs of rnn", T, (B, V))
    return np.stack(outputs), as_state(state, "The state that rnn returns", (B, H))


def in_the_notebooks_form(student, params):
    """Parameters whose biases are rows [1, H] if those of the notebook are."""
    own = student.get("scratch_params") if student.has("scratch_params") else None
    bias = own[2] if isinstance(own, (list, tuple)) and len(own) == 5 else None
    has_rows = isinstance(bias, np.ndarray) and bias.shape[:-1] == (1,)
    return [param[None] if param.ndim == 1 and has_rows else param for param in params]


@pytest.mark.check("rnn.example")
def test_rnn_example(student):
    """One symbol, one hidden unit, one step: h = tanh(1 + 0.5 · 2 - 1) and o = 3 h + 0.5."""
    values = ([[1.0]], [[0.5]], [-1.0], [[3.0]], [0.5])
    params = in_the_notebooks_form(student, [np.array(value, "float32") for value in values])
    state = (np.array([[2.0]], "float32"),)
    inputs = [np.array([[1.0]], "float32")]
    outputs, new_state = rnn_result(student.rnn(inputs, state, params), 1, 1, 1, 1)
    assert_close(new_state, [[0.761594]], "The new state", FORWARD, "It is tanh(x W_xh + h W_hh + b_h).")
    assert_close(outputs[0], [[2.784782]], "The output", FORWARD, "It is h W_hq + b_q, with the new h.")


### BEGIN HIDDEN TESTS
SIZES = [(2, 5, 6, 4), (3, 4, 5, 9), (1, 7, 8, 3), (4, 1, 5, 4), (1, 1, 3, 4)]


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
    params = in_the_notebooks_form(student, params)
    kept = [student.keep(student.stubs.ref("itself"), value) for value in (inputs, sequence([state]), params)]
    result = student.rnn(*kept)
    for name, handle, before in zip(("inputs", "state", "params"), kept, (inputs, [state], params), strict=True):
        assert_unchanged(student.stubs.itself(handle), before, f"{name}, after rnn,")
    diagnose_rnn(result, inputs, state, params)
    outputs, new_state = rnn_result(result, T, B, V, H)
    expected, states = oracle.recurrence(inputs, state, params)
    assert_close(outputs, expected, "The output of rnn", FORWARD)
    assert_close(new_state, states[-1], "The state that rnn returns", FORWARD)


def diagnose_rnn(result, inputs, state, params):
    """Name the mistakes that are known: those in the outputs, then those in the state."""
    outputs, new_state = as_pair(result, "rnn(inputs, state, params)", "(outputs, state)")
    right, states = oracle.recurrence(inputs, state, params)
    name_mistake(
        arrays_in(outputs), right, [*wrong_steps(inputs, state, params), *wrong_outputs(right, state, states, params)]
    )
    known = [("old_state", [state]), ("old_state", [states[0]]), ("old_state", states[-2:-1]), ("all_states", states)]
    name_mistake(arrays_in(new_state), states[-1:], known)
    if isinstance(new_state, np.ndarray):
        raise Mistake("bare_state", "rnn returns the new state as an array, not in a tuple.")


def wrong_steps(inputs, state, params):
    """The outputs of recurrences with a mistake in the step."""
    w_xh, w_hh, b_h, w_hq, b_q = (np.asarray(param, float) for param in params)

    def outputs_of(step):
        hidden, outputs = state, []
        for x in inputs:
            hidden = step(x, hidden)
            outputs.append(hidden @ w_hq + b_q)
        return outputs

    return [
        ("ignores_state", outputs_of(lambda x, h: np.tanh(x @ w_xh + (h @ w_hh if h is not state else 0) + b_h))),
        ("not_carried", outputs_of(lambda x, _: np.tanh(x @ w_xh + state @ w_hh + b_h))),
        ("not_carried", outputs_of(lambda x, _: np.tanh(x @ w_xh + b_h))),
        ("no_tanh", outputs_of(lambda x, h: x @ w_xh + h @ w_hh + b_h)),
        ("sigmoid", outputs_of(lambda x, h: 1 / (1 + np.exp(-(x @ w_xh + h @ w_hh + b_h))))),
        ("relu", outputs_of(lambda x, h: np.maximum(x @ w_xh + h @ w_hh + b_h, 0))),
        ("tanh_of_a_part", outputs_of(lambda x, h: np.tanh(x @ w_xh) + h @ w_hh + b_h)),
        ("tanh_of_a_part", outputs_of(lambda x, h: np.tanh(x @ w_xh + b_h) + h @ w_hh)),
        ("tanh_of_a_part", outputs_of(lambda x, h: np.tanh(x @ w_xh + h @ w_hh) + b_h)),
        ("no_hidden_bias", outputs_of(lambda x, h: np.tanh(x @ w_xh + h @ w_hh))),
        ("bias_twice", outputs_of(lambda x, h: np.tanh(x @ w_xh + h @ w_hh + 2 * b_h))),
        ("wrong_sign", outputs_of(lambda x, h: np.tanh(x @ w_xh + h @ w_hh - b_h))),
        ("wrong_sign", outputs_of(lambda x, h: np.tanh(x @ w_xh - h @ w_hh + b_h))),
        ("wrong_sign", outputs_of(lambda x, h: np.tanh(h @ w_hh + b_h - x @ w_xh))),
        ("transposed", outputs_of(lambda x, h: np.tanh(x @ w_xh + h @ w_hh.T + b_h))),
    ]


def wrong_outputs(right, state, states, params):
    """The outputs where the steps are right and what is made of the states is wrong."""
    w_hq, b_q = (np.asarray(param, float) for param in params[3:])
    return [
        ("state_before", np.stack([state, *states[:-1]]) @ w_hq + b_q),
        ("no_output_bias", right - b_q),
        ("bias_twice", right + b_q),
        ("wrong_sign", right - 2 * b_q),
        ("activated", oracle.log_softmax(right)),
        ("activated", np.exp(oracle.log_softmax(right))),
        ("activated", np.tanh(right)),
        ("activated", 1 / (1 + np.exp(-right))),
        ("activated", np.maximum(right, 0)),
        ("backwards", right[::-1]),
        ("last_only", right[-1:]),
        ("states_for_outputs", states),
    ]


@pytest.mark.check("rnn")
def test_rnn_gradients(student, rng):
    """Gradients flow through all steps, so that it can be trained."""
    B, T, V, H = 2, 5, 6, 4
    inputs, state, params = rnn_arguments(rng, B, T, V, H)
    params = in_the_notebooks_form(student, params)
    weights = rng.normal(0, 1, (T, B, V)).astype("float32")
    grads = student.stubs.gradients_of_rnn(student.ref("rnn"), inputs, (state,), params, list(weights))
    grads = as_arrays(grads, "The gradients", 5)
    expected = oracle.recurrence_gradients(inputs, state, params, weights)
    _, states = oracle.recurrence(inputs, state, params)
    steps = zip(inputs, [state, *states[:-1]], weights, strict=True)
    of_steps = [oracle.recurrence_gradients([x], before, params, weight[None]) for x, before, weight in steps]
    known = {
        "cut_off": [sum(parts) for parts in zip(*of_steps, strict=True)],
        "no_gradient": [0 * grad for grad in expected],
        "only_output": [0 * grad for grad in expected[:3]] + expected[3:],
    }

    def scaled(arrays):
        """In units of the largest entry of the right gradient."""
        return [array / np.abs(right).max() for array, right in zip(arrays, expected, strict=True)]

    tolerance = {**GRADIENT, "atol": GRADIENT["rtol"]}
    name_mistake(scaled(grads), scaled(expected), [(name, scaled(wrong)) for name, wrong in known.items()], tolerance)
    for name, grad, right in zip(PARAMS, scaled(grads), scaled(expected), strict=True):
        what = f"The gradient of {name}, in units of its largest entry,"
        assert_close(as_array(grad, what, right.shape), right, what, tolerance)


### END HIDDEN TESTS
