"""The training loops, judged by what they make of given parameters, on a recurrence of the checks' own."""

import numpy as np
import pytest
from expect import as_array, as_arrays, as_numbers, as_pair, onehot_for, zeros_for

### BEGIN HIDDEN TESTS
# isort: split
import oracle
from course import CASES, Course, as_result
from expect import Mistake, as_count, as_dict, as_indices, as_number, as_params, as_text, callback, decoding
from fakes import alphabet

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
@pytest.mark.parametrize("case", CASES)
def test_train_gluon(student, rng, case):
    """Parameters and perplexities after three epochs."""
    course = Course(student, rng, case, is_random=False)
    course.judge(*course.train_gluon())


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
    student.stubs.judge_loop(student.ref("train_and_predict_rnn_gluon"), helpers, lambda: None, *arguments)
    found = as_params(student.stubs.read_params(model), shapes)
    weights = np.concatenate([value.ravel() for value in found if value.ndim == 2])
    if np.abs(weights).max() > 2:
        raise Mistake("not_reinitialised", "The model keeps its old parameters: initialise it with force_reinit=True.")
    is_normal = 0.009 < weights.std() < 0.011 and abs(weights.mean()) < 0.001 and np.abs(weights).max() > 0.025
    if not is_normal:
        found = f"mean {weights.mean():.3g}, deviation {weights.std():.3g}, largest {np.abs(weights).max():.3g}"
        raise Mistake("wrong_init", f"New weights, expected from Normal(0.01), have {found}.")


# -- printing: nobody asks what, but it must not raise --------------------------------------------------------

PREFIX, LIMIT, PRINTED = "brutus", 1000, 2  # epochs


def onehot_of_any_size(X, size):
    """A `to_onehot(X, size)` for the notebook to call."""
    size = as_count(size, "size, as handed to to_onehot,")
    assert size < LIMIT, f"to_onehot should not be called with size {size}."
    return list(np.eye(size, dtype="float32")[as_indices(X, "X, as handed to to_onehot,", size).T])


def init_rnn_state(batch_size, num_hiddens, ctx):
    """A good one, for the notebook to call."""
    sizes = as_count(batch_size, "batch_size"), as_count(num_hiddens, "num_hiddens")
    assert max(sizes) < LIMIT, f"init_rnn_state should not be called with {sizes}."
    return [np.zeros(sizes, "float32")]


def assert_can_predict(prefix, num_chars, vocab_size, idx_to_char, char_to_idx):
    """A predict function would not stumble over these arguments; returns what it might answer."""
    as_text(prefix, "The prefix handed to the predict function")
    length = as_number(num_chars, "num_chars, as handed to the predict function,")
    assert 0 <= length < LIMIT, f"The predict function should not be asked for {length:.6g} characters."
    as_count(vocab_size, "vocab_size, as handed to the predict function,")
    as_dict(char_to_idx, "char_to_idx, as handed to the predict function,", prefix)
    with decoding("idx_to_char, as handed to the predict function,"):
        return prefix + str(idx_to_char[0])[:1] * int(length)


def predict_stub(name, function):
    """The same for a predict function, where a wrong call has a name."""
    stub = callback(name, function)

    def answer(*args, **kwargs):
        try:
            return stub(*args, **kwargs)
        except AssertionError as error:
            raise Mistake("bad_call", str(error)) from error

    return answer


def predict_rnn(
    prefix, num_chars, rnn, params, init_rnn_state, num_hiddens, vocab_size, ctx, idx_to_char, char_to_idx, *_, **__
):
    """A good one, for the notebook to call."""
    as_arrays(params, "The params handed to predict_rnn", 5)
    as_count(num_hiddens, "num_hiddens, as handed to predict_rnn,")
    return assert_can_predict(prefix, num_chars, vocab_size, idx_to_char, char_to_idx)


def predict_rnn_gluon(prefix, num_chars, model, vocab_size, ctx, idx_to_char, char_to_idx, *_, **__):
    """A good one, for the notebook to call."""
    return assert_can_predict(prefix, num_chars, vocab_size, idx_to_char, char_to_idx)


def printing_case(student, rng):
    """(sizes, text, letters and the rest, helpers that take any sizes) of a run that prints each epoch."""
    V, hidden = 26, 4
    student.stubs.set_toy(oracle.toy_params(rng, V, hidden))
    letters, index = alphabet(student, rng, V)
    minibatch = rng.integers(0, V, (2, 2, 3)).astype("float32")
    helpers = {
        "to_onehot": callback("to_onehot", onehot_of_any_size),
        "data_iter_random": lambda *args, **kwargs: [tuple(minibatch)],
        "data_iter_consecutive": lambda *args, **kwargs: [tuple(minibatch)],
        "grad_clipping": callback("grad_clipping", lambda grads, theta: grads),
        "predict_rnn": predict_stub("predict_rnn", predict_rnn),
        "predict_rnn_gluon": predict_stub("predict_rnn_gluon", predict_rnn_gluon),
    }
    text = ([int(i) for i in rng.integers(0, V, 40)], letters, index)
    return hidden, V, text, (PRINTED, 3, 0.1, 1.0, 2, 1, 5), helpers


@pytest.mark.parametrize(
    "is_random",
    [
        pytest.param(True, marks=pytest.mark.check("train_random")),
        pytest.param(False, marks=pytest.mark.check("train_consecutive")),
    ],
)
def test_train_prints(student, rng, is_random):
    """With and without a prefix, and pred_period = 1, the loop runs through; what it prints is free."""
    hidden, V, text, rest, helpers = printing_case(student, rng)
    functions = (student.stubs.ref("toy_rnn"), student.stubs.ref("toy_get_params"))
    toy = [*functions, callback("init_rnn_state", init_rnn_state), hidden, V, student.ctx]
    target = student.ref("train_and_predict_rnn")
    for prefixes in ([PREFIX], []):
        result = student.stubs.judge_printing(target, helpers, toy, [*text, is_random, *rest, prefixes])
        as_numbers(as_result(result)[1], "perplexities", PRINTED)


@pytest.mark.check("train_gluon")
def test_train_gluon_prints(student, rng):
    """The same for a block."""
    hidden, V, text, rest, helpers = printing_case(student, rng)
    model = student.keep(student.stubs.ref("make_toy_model"), True)
    target = student.ref("train_and_predict_rnn_gluon")
    toy = (model, hidden, V, student.ctx)
    for prefixes in ([PREFIX], []):
        perplexities = student.stubs.judge_loop(target, helpers, lambda: None, *toy, *text, *rest, prefixes)
        as_numbers(perplexities, "perplexities", PRINTED)


### END HIDDEN TESTS
