"""The Gluon model and its prediction."""

import numpy as np
import pytest
from expect import as_array, as_indices, as_pair, as_text, callback, decoding, first_zeros


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
