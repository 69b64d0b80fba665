"""The training loops, judged by what they make of given parameters, on a recurrence of the checks' own."""

import numpy as np
import pytest
from expect import as_array, as_arrays, as_numbers, as_pair, onehot_for, zeros_for


# -- examples: the loop runs and returns what it should -------------------------------------------------------

EXAMPLE_TEXT = [0, 1, 2, 3, 0, 1, 2, 3, 0]
EXAMPLE_X = np.array([[0, 1], [2, 3]], "float32")
EXAMPLE_Y = np.array([[1, 2], [3, 0]], "float32")


def example_helpers():
    """Helpers that suffice for this text: two minibatches that are the same, and nothing to clip."""
    return {
        "to_onehot": onehot_for(4),
        "data_iter_random": lambda *args, **kwargs: [(EXAMPLE_X, EXAMPLE_Y)] * 2,
        "data_iter_consecutive": lambda *args, **kwargs: [(EXAMPLE_X, EXAMPLE_Y)] * 2,
        "grad_clipping": lambda grads, theta: grads,
    }


def example_params():
    """All 0.1: 4 symbols, 3 hidden units."""
    return [np.full(shape, 0.1, "float32") for shape in ((4, 3), (3, 3), (3,), (3, 4), (4,))]


def run_scratch_example(student, is_random):
    """Two epochs of train_and_predict_rnn."""
    student.stubs.set_toy(example_params())
    letters, index = list("abcd"), {letter: i for i, letter in enumerate("abcd")}
    toy = (student.stubs.ref("toy_rnn"), student.stubs.ref("toy_get_params"), zeros_for(2, 3), 3, 4, student.ctx)
    rest = (EXAMPLE_TEXT, letters, index, is_random, 2, 2, 0.1, 1000.0, 2, 5, 5, [])
    target = student.ref("train_and_predict_rnn")
    result = student.stubs.judge_loop(target, example_helpers(), lambda: None, *toy, *rest)
    params, perplexities = as_pair(result, "train_and_predict_rnn", "(params, perplexities)")
    for value, before in zip(as_arrays(params, "params", 5), example_params(), strict=True):
        as_array(value, "each of params", before.shape)
    assert_perplexities(perplexities)


def assert_perplexities(perplexities):
    """Two numbers of 1 or more."""
    for value in as_numbers(perplexities, "perplexities (one for each of 2 epochs)", 2):
        assert value >= 1, f"A perplexity is at least 1, but this is {value:.3g}."


@pytest.mark.check("train_random.example")
def test_train_random_example(student):
    """With random minibatches: five parameters and one perplexity for each epoch."""
    run_scratch_example(student, is_random=True)


@pytest.mark.check("train_consecutive.example")
def test_train_consecutive_example(student):
    """With consecutive minibatches: five parameters and one perplexity for each epoch."""
    run_scratch_example(student, is_random=False)


@pytest.mark.check("train_gluon.example")
def test_train_gluon_example(student):
    """One perplexity for each epoch."""
    student.stubs.set_toy(example_params())
    letters, index = list("abcd"), {letter: i for i, letter in enumerate("abcd")}
    model = student.keep(student.stubs.ref("make_toy_model"), True)
    arguments = (model, 3, 4, student.ctx, EXAMPLE_TEXT, letters, index, 2, 2, 0.1, 1000.0, 2, 5, 5, [])
    target = student.ref("train_and_predict_rnn_gluon")
    assert_perplexities(student.stubs.judge_loop(target, example_helpers(), lambda: None, *arguments))
