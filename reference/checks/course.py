"""One run of a training loop on a recurrence of the checks' own: what goes in, and what should come out.

Staff only. The text of a run holds each symbol once, so that what was fed to the model tells its place in the text,
its labels, and the order of the minibatches, whoever made them.
"""

import itertools
from dataclasses import replace

import numpy as np
import oracle
from expect import (
    PERPLEXITY,
    TRAINED,
    as_array,
    as_arrays,
    as_indices,
    as_numbers,
    as_pair,
    as_params,
    assert_close,
    callback,
    decoding,
    is_close,
    onehot_for,
    zeros_for,
)
from fakes import alphabet

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
        params = as_arrays(params, "params", len(self.params))
        for value, before in zip(params, self.params, strict=True):
            as_array(value, "each of params", before.shape)
        return params, perplexities

    def train_gluon(self):
        """(params, perplexities) of train_and_predict_rnn_gluon."""
        stubs, V = self.student.stubs, len(self.corpus)
        stubs.set_toy(self.params)
        model = self.student.keep(stubs.ref("make_toy_model"), True)
        text = (self.corpus, self.letters, self.index)
        rest = (NUM_EPOCHS, self.T, self.lr, self.theta, self.B, NUM_EPOCHS + 1, 5, [])
        target = self.student.ref("train_and_predict_rnn_gluon")
        perplexities = stubs.judge_alone(target, self.helpers(), model, H, V, self.student.ctx, *text, *rest)
        return as_params(stubs.read_params(model), [param.shape for param in self.params]), perplexities

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
