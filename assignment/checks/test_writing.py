"""The functions that write, with a network from scratch and with a block."""

import numpy as np
import pytest
from expect import as_arrays, as_indices, as_text, callback, decoding, first_zeros, zeros_for


# -- predict_rnn ----------------------------------------------------------------------------------------------


@pytest.mark.check("predict_rnn.example")
def test_predict_rnn_example(student):
    """With an rnn that always finds the symbol after its input most likely, `ab` goes on with `cda`."""

    def after_it(inputs, state, params):
        with decoding("The inputs handed to rnn"):
            arrays = as_arrays(inputs, "The inputs handed to rnn", len(inputs), (1, 4))
        return [np.roll(x, 1, axis=1).astype("float32") for x in arrays], state

    letters = list("abcd")
    index = {letter: i for i, letter in enumerate(letters)}

    def to_onehot(X, size):
        assert size == 4, f"to_onehot should be called with size 4, but got {size!r}."
        symbols = as_indices(np.atleast_2d(X), "X, as handed to to_onehot,", 4)  # [1, T], or in the lecture [T]
        return list(np.eye(4, dtype="float32")[symbols.T])

    rnn = callback("rnn", after_it)
    helpers = {"to_onehot": callback("to_onehot", to_onehot)}
    arguments = ("ab", 3, rnn, [], zeros_for(1, 2), 2, 4, student.ctx, letters, index)
    text = student.stubs.judge_loop(student.ref("predict_rnn"), helpers, lambda: None, *arguments)
    assert as_text(text, "predict_rnn(...)") == "abcda", f"predict_rnn('ab', 3, ...) gave {text!r}, expected 'abcda'."


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
