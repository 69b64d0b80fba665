"""The training loops, judged by what they make of given parameters, on a recurrence of the checks' own."""

import numpy as np
import pytest
from expect import as_array, as_arrays, as_numbers, as_pair, onehot_for, zeros_for

### BEGIN HIDDEN TESTS
# isort: split
import itertools
from dataclasses import replace

import oracle
from expect import PERPLEXITY, TRAINED, as_indices, assert_close, callback, decoding, is_close
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

NUM_EPOCHS, H = 3, 4
# B, T, minibatches in an epoch, lr, theta / norm of the first gradient: clipping in every step, or in none
CASES = [(2, 3, 4, 0.6, 100.0), (2, 3, 4, 0.8, 0.3), (1, 2, 5, 0.4, 0.5), (3, 1, 4, 0.7, 100.0)]


class Course:
    """One run of a training loop: what goes in, and what should come out of what was fed."""

    def __init__(self, student, rng, case, is_random):
        self.student, self.rng, self.is_random = student, rng, is_random
        self.B, self.T, self.num_minibatches, self.lr, bite = case
        V = self.B * (self.T * self.num_minibatches + 1)
        self.corpus = [int(i) for i in rng.permutation(V)]  # each symbol once: an input tells its place
        self.params = oracle.toy_params(rng, V, H)
        self.right = oracle.Loop(reset="minibatch" if is_random else "epoch")
        first = oracle.consecutive_minibatches(self.corpus, self.B, self.T)[:1]
        moved, _ = oracle.train(replace(self.right, clip="never"), self.params, [first], 1.0, 1.0)
        step = [before - after for before, after in zip(self.params, moved, strict=True)]
        self.theta = bite * oracle.global_norm(step)
        self.letters, self.index = alphabet(student, rng, V)

    def helpers(self):
        """Good ones, so that only the loop is judged."""

        def data_iter_random(corpus_indices, batch_size, num_steps, ctx=None):
            self.used.add("data_iter_random")
            self.assert_arguments("data_iter_random", corpus_indices, batch_size, num_steps)
            return oracle.random_minibatches(self.corpus, self.B, self.T, self.rng)

        def data_iter_consecutive(corpus_indices, batch_size, num_steps, ctx=None):
            self.used.add("data_iter_consecutive")
            self.assert_arguments("data_iter_consecutive", corpus_indices, batch_size, num_steps)
            return oracle.consecutive_minibatches(self.corpus, self.B, self.T)

        def clip(grads, theta):
            with decoding("What is handed to grad_clipping"):
                arrays = as_arrays(grads, "the gradients", len(grads))
            return [grad.astype("float32") for grad in oracle.clip(arrays, theta)]

        self.used = set()
        return {
            "to_onehot": onehot_for(len(self.corpus)),
            "grad_clipping": clip,
            "data_iter_random": callback("data_iter_random", data_iter_random),
            "data_iter_consecutive": callback("data_iter_consecutive", data_iter_consecutive),
            "predict_rnn": lambda *args, **kwargs: "",
            "predict_rnn_gluon": lambda *args, **kwargs: "",
        }

    def assert_arguments(self, name, corpus_indices, batch_size, num_steps):
        text = as_array(corpus_indices, f"The text handed to {name}", (len(self.corpus),))
        assert (text == self.corpus).all(), f"{name} should be handed corpus_indices as they are."
        sizes = (batch_size, num_steps)
        right = (self.B, self.T)
        assert sizes == right, f"{name} should be handed batch_size, num_steps = {right}, but got {sizes!r}."

    def train_scratch(self):
        """(params, perplexities) of train_and_predict_rnn."""
        stubs, V = self.student.stubs, len(self.corpus)
        stubs.set_toy(self.params)
        toy = (stubs.ref("toy_rnn"), stubs.ref("toy_get_params"), zeros_for(self.B, H), H, V, self.student.ctx)
        text = (self.corpus, self.letters, self.index, self.is_random)
        rest = (NUM_EPOCHS, self.T, self.lr, self.theta, self.B, NUM_EPOCHS + 1, 5, [])
        target = self.student.ref("train_and_predict_rnn")
        result = stubs.judge_alone(target, self.helpers(), *toy, *text, *rest)
        params, perplexities = as_pair(result, "train_and_predict_rnn", "(params, perplexities)")
        return self.as_params(params), perplexities

    def train_gluon(self):
        """(params, perplexities) of train_and_predict_rnn_gluon."""
        stubs, V = self.student.stubs, len(self.corpus)
        stubs.set_toy(self.params)
        model = self.student.keep(stubs.ref("make_toy_model"), True)
        text = (self.corpus, self.letters, self.index)
        rest = (NUM_EPOCHS, self.T, self.lr, self.theta, self.B, NUM_EPOCHS + 1, 5, [])
        target = self.student.ref("train_and_predict_rnn_gluon")
        perplexities = stubs.judge_alone(target, self.helpers(), model, H, V, self.student.ctx, *text, *rest)
        return self.as_params(stubs.read_params(model)), perplexities

    def as_params(self, params):
        """The five arrays, of the shapes that they had."""
        found = as_arrays(params, "params", len(self.params))
        return [as_array(value, "each of params", old.shape) for value, old in zip(found, self.params, strict=True)]

    def fed(self):
        """The minibatches (X, Y) of each epoch that were fed while a gradient was recorded."""
        V = len(self.corpus)
        with decoding("The record of what the model was fed"):
            record = [array for array, is_recording in self.student.stubs.take_record() if is_recording]
            inputs = [as_indices(array, "The inputs fed to the model", V).T for array in record]
        assert inputs, "The model is never called inside autograd.record()."
        place = {symbol: i for i, symbol in enumerate(self.corpus)}
        epochs, seen = [], set()
        for X in inputs:
            shape = [self.B, self.T]
            assert list(X.shape) == shape, f"The inputs should be minibatches {shape}, not {list(X.shape)}."
            places = np.vectorize(place.get)(X)
            is_piece = (np.diff(places) == 1).all() and places.max() + 1 < V
            assert is_piece, "The inputs fed to the model are not pieces of the text: is X transposed?"
            if not epochs or seen & set(places.ravel()):
                epochs.append([])
                seen.clear()
            seen |= set(places.ravel())
            epochs[-1].append((X, np.array(self.corpus)[places + 1], places[:, 0]))
        assert len(epochs) == NUM_EPOCHS, f"{NUM_EPOCHS} epochs were asked for, {len(epochs)} were run."
        self.assert_order(epochs)
        return [[(X, Y) for X, Y, _ in epoch] for epoch in epochs]

    def assert_order(self, epochs):
        """The right iterator was used (or another, if it does the same)."""
        starts = [[start for *_, start in epoch] for epoch in epochs]
        pairs = [pair for epoch in starts for pair in itertools.pairwise(epoch)]
        goes_on = all((after == before + self.T).all() for before, after in pairs)
        if self.is_random:
            wrong = "data_iter_consecutive" in self.used or (goes_on and not self.used)
            assert not wrong, "With is_random_iter=True the minibatches should come from data_iter_random."
        else:
            assert goes_on, "With is_random_iter=False the minibatches should come from data_iter_consecutive."

    def judge(self, params, perplexities):
        """Parameters, then perplexities; the message names the mistake if it is a known one."""
        epochs = self.fed()
        expected, losses = oracle.train(self.right, self.params, epochs, self.lr, self.theta)
        if not same(params, expected):
            self.name_the_mistake(params, epochs)
            names = ("W_xh", "W_hh", "b_h", "W_hq", "b_q")
            for name, value, right in zip(names, params, expected, strict=True):
                assert_close(value, right, f"After {NUM_EPOCHS} epochs an entry of {name}", TRAINED)
        found = as_numbers(perplexities, "perplexities", NUM_EPOCHS)
        if is_close(found, oracle.perplexities(losses), **PERPLEXITY):
            return
        for mistake, wrong in wrong_perplexities(losses, self.B * self.T).items():
            assert not is_close(found, wrong, **PERPLEXITY), f"A perplexity is {mistake}."
        why = "It is exp of the mean loss of all characters of the epoch."
        assert_close(found, oracle.perplexities(losses), "A perplexity", PERPLEXITY, why)

    def name_the_mistake(self, params, epochs):
        for mistake, changes in MISTAKES.items():
            loop = replace(self.right, **changes)
            if loop != self.right and same(params, oracle.train(loop, self.params, epochs, self.lr, self.theta)[0]):
                raise AssertionError(mistake)


MISTAKES = {
    "The gradients are not clipped before the update: call grad_clipping after backward() and before the step.": {
        "clip": "never"
    },
    "Each gradient is clipped by its own norm: there is one norm for all.": {"clip": "each"},
    "The state is not set to zero again for each minibatch.": {"reset": "epoch"},
    "The state is set to zero for every minibatch, where it should be carried on through the epoch.": {
        "reset": "minibatch"
    },
    "The state is never set to zero again: each epoch begins the text anew.": {"reset": "once"},
    "The loss is summed over the minibatch, where its mean is asked for.": {"loss": "sum"},
    "The learning rate is not used.": {"step": "one"},
    "The update divides by the batch size, though the loss is a mean already.": {"step": "lr/B"},
    "The update is larger by a factor of the batch size.": {"step": "lr·B"},
    "The update goes up the gradient.": {"step": "ascent"},
    "The labels are in another order than the outputs: outputs are ordered by time first, Y by row first.": {
        "labels": "batch first"
    },
}


def same(params, expected):
    """Whether all parameters agree."""
    return all(is_close(value, right, **TRAINED) for value, right in zip(params, expected, strict=True))


def wrong_perplexities(losses, size):
    """What known mistakes make of the same losses."""
    totals = [[sum(epoch) for epoch in losses][: i + 1] for i in range(len(losses))]
    counts = [[len(epoch) for epoch in losses][: i + 1] for i in range(len(losses))]
    with np.errstate(over="ignore"):
        return {
            "the mean of the minibatches' exponentials, not exp of their mean": [
                np.mean(np.exp(epoch)) for epoch in losses
            ],
            "the mean loss; its exponential is missing": [np.mean(epoch) for epoch in losses],
            "exp of the loss of the last minibatch only": [np.exp(epoch[-1]) for epoch in losses],
            "exp of the sum of the losses": [np.exp(np.sum(epoch)) for epoch in losses],
            "divided by the number of characters twice": [np.exp(np.mean(epoch) / size) for epoch in losses],
            "a mean over all epochs so far": [
                np.exp(sum(total) / sum(count)) for total, count in zip(totals, counts, strict=True)
            ],
        }


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
    model = student.keep(student.stubs.ref("make_toy_model"), False)
    student.stubs.fill_params(model, 3.0)
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
    found = as_arrays(student.stubs.read_params(model), "params", 5)
    weights = np.concatenate([value.ravel() for value in found if value.ndim == 2] or [np.zeros(1)])
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
