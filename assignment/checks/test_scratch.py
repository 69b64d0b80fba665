"""The network from scratch: one-hot vectors, parameters, state, recurrence."""

import numpy as np
import pytest
from expect import FORWARD, as_array, as_arrays, as_count, as_pair, as_state, assert_close, decoding


# -- to_onehot ------------------------------------------------------------------------------------------------


@pytest.mark.check("to_onehot.example")
def test_to_onehot_example(student):
    """The columns of X become one-hot arrays, one for each time step."""
    X = np.array([[0, 2], [1, 1]], "float32")
    outputs = student.stubs.call_in_any_form(student.ref("to_onehot"), X, 3)
    first, second = as_arrays(outputs, "to_onehot(X, 3)", 2, (2, 3))
    assert_close(first, [[1, 0, 0], [0, 1, 0]], "to_onehot([[0, 2], [1, 1]], 3)[0]", FORWARD)
    assert_close(second, [[0, 0, 1], [0, 1, 0]], "to_onehot([[0, 2], [1, 1]], 3)[1]", FORWARD)


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


@pytest.mark.check("init_rnn_state.example")
def test_init_rnn_state_example(student):
    """One array of zeros in a tuple."""
    state = as_state(student.init_rnn_state(2, 3, student.ctx), "init_rnn_state(2, 3, ctx)", (2, 3))
    assert not state.any(), "init_rnn_state(2, 3, ctx)[0] should be all zeros."


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
