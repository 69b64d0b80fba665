"""The Gluon model."""

import numpy as np
import pytest
from expect import as_array, as_pair, decoding


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
