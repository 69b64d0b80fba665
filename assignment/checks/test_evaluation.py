"""evaluate_perplexity, on models whose perplexity is known."""

import numpy as np
import pytest
from expect import PERPLEXITY, as_indices, as_number, assert_close, callback, first_zeros


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
