"""The training loops, judged by what they make of given parameters, on a recurrence of the checks' own."""

import numpy as np
import pytest
from expect import as_array, as_arrays, as_numbers, as_pair, onehot_for, zeros_for

### BEGIN HIDDEN TESTS
# isort: split
from course import CASES, Course
from expect import as_params

### END HIDDEN TESTS

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
    result = student.stubs.judge_alone(target, example_helpers(), *toy, *rest)
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
    assert_perplexities(student.stubs.judge_alone(target, example_helpers(), *arguments))


### BEGIN HIDDEN TESTS
# -- the trajectory -------------------------------------------------------------------------------------------


@pytest.mark.check("train_random")
@pytest.mark.parametrize("case", CASES)
def test_train_random(student, rng, case):
    """Parameters and perplexities after three epochs of random minibatches."""
    course = Course(student, rng, case, is_random=True)
    course.judge(*course.train_scratch())


@pytest.mark.check("train_consecutive")
@pytest.mark.parametrize("case", CASES)
def test_train_consecutive(student, rng, case):
    """Parameters and perplexities after three epochs of consecutive minibatches."""
    course = Course(student, rng, case, is_random=False)
    course.judge(*course.train_scratch())


@pytest.mark.check("train_gluon")
def test_train_gluon_reinitialises(student):
    """The model is initialised afresh from N(0, 0.01²), whatever it was before."""
    shapes = ((40, 50), (50, 50), (50,), (50, 40), (40,))
    student.stubs.set_toy([np.zeros(shape, "float32") for shape in shapes])
    model = student.keep(student.stubs.ref("make_toy_model"), False, 3.0)
    letters = [chr(97 + i) for i in range(40)]
    text = ([i % 40 for i in range(60)], letters, {letter: i for i, letter in enumerate(letters)})
    minibatches = [(np.zeros((2, 3), "float32"), np.ones((2, 3), "float32"))]
    helpers = {
        "data_iter_consecutive": lambda *args, **kwargs: minibatches,
        "grad_clipping": lambda grads, theta: grads,
        "predict_rnn_gluon": lambda *args, **kwargs: "",
    }
    arguments = (model, 50, 40, student.ctx, *text, 1, 3, 1e-9, 1.0, 2, 5, 5, [])
    student.stubs.judge_alone(student.ref("train_and_predict_rnn_gluon"), helpers, *arguments)
    found = as_params(student.stubs.read_params(model), shapes)
    weights = np.concatenate([value.ravel() for value in found if value.ndim == 2])
    assert np.abs(weights).max() < 2, "The model keeps its old parameters: initialise it with force_reinit=True."
    assert 0.009 < weights.std() < 0.011, (
        f"New weights have deviation {weights.std():.3g}, expected 0.01: Normal(0.01)."
    )


@pytest.mark.check("train_gluon")
@pytest.mark.parametrize("case", CASES)
def test_train_gluon(student, rng, case):
    """Parameters and perplexities after three epochs."""
    course = Course(student, rng, case, is_random=False)
    course.judge(*course.train_gluon())


### END HIDDEN TESTS
