"""The numpy reference that the hidden checks compare with: float64, written apart from any solution.

Shapes: B batch, T steps, V vocabulary, H hidden. Sequences are lists or arrays with time first.
"""

import math
from dataclasses import dataclass

import numpy as np

# -- forward --------------------------------------------------------------------------------------------------


def to_onehot(X, size):
    """X [B, T] of indices -> [T, B, size]."""
    return np.eye(size)[np.asarray(X).astype(int).T]


def recurrence(inputs, state, params, activation=np.tanh):
    """h_t = f(x_t W_xh + h_{t-1} W_hh + b_h), o_t = h_t W_hq + b_q: (outputs [T, B, V], states h_1..h_T [T, B, H])."""
    w_xh, w_hh, b_h, w_hq, b_q = (np.asarray(param, float) for param in params)
    states, hidden = [], np.asarray(state, float)
    for x in inputs:
        hidden = activation(x @ w_xh + hidden @ w_hh + b_h)
        states.append(hidden)
    return np.stack(states) @ w_hq + b_q, np.stack(states)


def recurrence_gradients(inputs, state, params, d_outputs, activation=np.tanh, states=None):
    """Gradients of Σ d_outputs · outputs with respect to the five parameters, by backpropagation through time.

    `activation` is np.tanh or `linear`: their slope follows from their value. `states` h_1..h_T may be given.
    """
    w_xh, w_hh, b_h, w_hq, b_q = (np.asarray(param, float) for param in params)
    states = recurrence(inputs, state, params, activation)[1] if states is None else states
    before = [np.asarray(state, float), *states[:-1]]
    d_xh, d_hh, d_bh = np.zeros_like(w_xh), np.zeros_like(w_hh), np.zeros_like(states[0])
    d_hidden = np.zeros_like(states[0])
    for t in reversed(range(len(states))):
        d_hidden = d_hidden + d_outputs[t] @ w_hq.T
        d_sum = d_hidden * (1 - states[t] ** 2 if activation is np.tanh else 1)
        d_xh += np.asarray(inputs[t]).T @ d_sum
        d_hh += before[t].T @ d_sum
        d_bh += d_sum
        d_hidden = d_sum @ w_hh.T
    d_hq = np.einsum("tbh,tbv->hv", states, np.asarray(d_outputs))
    d_bq = np.sum(d_outputs, axis=(0, 1)).reshape(b_q.shape)
    return [d_xh, d_hh, d_bh.sum(axis=0).reshape(b_h.shape), d_hq, d_bq]


def linear(values):
    """The activation of the toy recurrence in stubs.py."""
    return values


def toy_params(rng, V, H):
    """Parameters of the toy recurrence, whose state fades: ‖W_state‖ = 0.6."""
    scales = {(V, H): 0.5, (H, H): 1.0, (H,): 0.1, (H, V): 0.5, (V,): 0.1}
    params = [rng.normal(0, scale, shape) for shape, scale in scales.items()]
    params[1] *= 0.6 / np.linalg.norm(params[1], 2)
    return [param.astype("float32") for param in params]


def _sigmoid(values):
    return 1 / (1 + np.exp(-values))


def _rnn_cell(i2h, h2h, state):
    hidden = np.tanh(i2h + h2h)
    return hidden, [hidden]


def _gru_cell(i2h, h2h, state):
    (reset_i, update_i, new_i), (reset_h, update_h, new_h) = (np.split(x, 3, axis=1) for x in (i2h, h2h))
    update = _sigmoid(update_i + update_h)
    new = np.tanh(new_i + _sigmoid(reset_i + reset_h) * new_h)
    hidden = (1 - update) * new + update * state[0]
    return hidden, [hidden]


def _lstm_cell(i2h, h2h, state):
    gate_in, forget, new, gate_out = np.split(i2h + h2h, 4, axis=1)
    memory = _sigmoid(forget) * state[1] + _sigmoid(gate_in) * np.tanh(new)
    hidden = _sigmoid(gate_out) * np.tanh(memory)
    return hidden, [hidden, memory]


CELLS = {"rnn": _rnn_cell, "gru": _gru_cell, "lstm": _lstm_cell}
GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def gluon_model(kind, layers, dense, X, V):
    """An RNNModel from its weights, in Gluon's order of gates, from the zero state: output [T·B, V].

    `layers` holds (i2h_weight [G·H, inputs], h2h_weight [G·H, H], i2h_bias, h2h_bias) for each layer, `dense` the
    weight [V, H] and the bias.
    """
    values = to_onehot(X, V)
    for i2h_weight, h2h_weight, i2h_bias, h2h_bias in layers:
        hidden = np.zeros((values.shape[1], h2h_weight.shape[1]))
        state, outputs = [hidden, hidden], []
        for x in values:
            hidden, state = CELLS[kind](x @ i2h_weight.T + i2h_bias, state[0] @ h2h_weight.T + h2h_bias, state)
            outputs.append(hidden)
        values = np.stack(outputs)
    weight, bias = dense
    return values.reshape(-1, weight.shape[1]) @ weight.T + bias


# -- loss, clipping, training ---------------------------------------------------------------------------------


def log_softmax(scores):
    """Over the last axis."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def nats(scores, labels):
    """-ln p of each label: scores [..., V], labels [...]."""
    return -np.take_along_axis(log_softmax(scores), np.asarray(labels).astype(int)[..., None], axis=-1)[..., 0]


def global_norm(grads):
    """‖g‖ of all gradients as one vector."""
    return math.sqrt(sum(float(np.sum(np.square(np.asarray(grad, float)))) for grad in grads))


def clip(grads, theta):
    """Gradients times min(1, θ/‖g‖)."""
    norm = global_norm(grads)
    factor = min(1.0, theta / norm) if norm > 0 else 1.0
    return [np.asarray(grad, float) * factor for grad in grads]


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A training loop: the right one by default, or one with mistakes that students make.

    `loss` and `step` are factors, of the mean loss and of the learning rate: "1", "-1", "1/lr", or a product like
    "B" or "1/BT" of the batch size B and the number of steps T.
    """

    reset: str  # the state is zero again for every "minibatch", "epoch", or "once"
    clip: str = "global"  # or "never" (also: after the update), "each"
    loss: str = "1"
    step: str = "1"
    labels: str = "time first"  # or "batch first", "inputs", "outputs batch first"
    steps: str = "all"  # that count in the loss, or "last"
    softmax: bool = False  # one more, on what the loss takes for scores
    carry: float = 1.0  # the part of the state that goes on
    gradients: str = "fresh"  # or "summed" over all minibatches, "stale": those of the minibatch before
    params: str = "kept"  # or "new" in each epoch
    momentum: float = 0.0
    decay: float = 0.0  # of weights
    adam: bool = False


def train(loop, params, epochs, lr, theta):
    """SGD on the toy recurrence: (params, [losses of the minibatches of each epoch]).

    `epochs` holds for each epoch its minibatches (X [B, T], Y [B, T]).
    """
    first = [np.asarray(param, float) for param in params]
    params, losses, hidden, descent = first, [], None, _Descent(loop, first, lr, theta)
    for minibatches in epochs:
        losses.append([])
        hidden = None if loop.reset == "epoch" else hidden
        params = first if loop.params == "new" else params
        for X, Y in minibatches:
            if hidden is None or loop.reset == "minibatch":
                hidden = np.zeros((len(X), len(params[1])))
            early = descent.step(params, X.shape) if loop.gradients == "stale" else params
            mean, grads, hidden = _toy_gradients(loop, params, X, Y, hidden, early)
            losses[-1].append(mean)
            hidden = hidden * loop.carry
            descent.add(grads)
            params = early if loop.gradients == "stale" else descent.step(params, X.shape)
    return params, losses


def _factor(name, shape, lr):
    """What a factor in a Loop comes to; the names are in its docstring."""
    sizes = {"B": shape[0], "T": shape[1]}
    over = math.prod(sizes.get(letter, 1) for letter in name.rpartition("/")[2])
    if name == "1/lr":
        return 1 / lr
    return -1.0 if name == "-1" else 1 / over if name.startswith("1/") else over


def _toy_gradients(loop, params, X, Y, hidden, late):
    """(mean loss, gradients, last state), where `late` are the parameters that backpropagation meets."""
    V = params[3].shape[1]
    inputs = to_onehot(X, V)
    outputs, states = recurrence(inputs, hidden, params, linear)
    labels = _labels(loop, X, Y)
    scores = np.exp(log_softmax(outputs)) if loop.softmax else outputs
    d_outputs = (np.exp(log_softmax(scores)) - np.eye(V)[labels]) * _factor(loop.loss, X.shape, 1) / labels.size
    if loop.softmax:
        d_outputs = scores * (d_outputs - (scores * d_outputs).sum(axis=-1, keepdims=True))
    if loop.steps == "last":
        d_outputs = np.concatenate([0 * d_outputs[:-1], len(d_outputs) * d_outputs[-1:]])
    grads = recurrence_gradients(inputs, hidden, late, d_outputs, linear, states)
    return float(nats(outputs, labels).mean()), grads, states[-1]


def _labels(loop, X, Y):
    """The labels [T, B] that the outputs are compared with."""
    labels = np.asarray(X if loop.labels == "inputs" else Y).astype(int)
    if loop.labels == "batch first":
        return labels.reshape(labels.T.shape)
    if loop.labels == "outputs batch first":
        return labels.T.reshape(labels.shape).T
    return labels.T


class _Descent:
    """Clips and descends, with the memory that gradients, momentum and Adam have."""

    def __init__(self, loop, params, lr, theta):
        self.loop, self.lr, self.theta, self.count = loop, lr, theta, 0
        self.grads, self.moved, self.means, self.second = ([np.zeros_like(param) for param in params] for _ in range(4))

    def add(self, grads):
        old = self.grads if self.loop.gradients == "summed" else [0.0] * len(grads)
        self.grads = [before + grad for before, grad in zip(old, grads, strict=True)]

    def step(self, params, shape):
        """The parameters after an update; clipping changes the gradients in place."""
        if self.loop.clip == "each":
            self.grads = [clip([grad], self.theta)[0] for grad in self.grads]
        elif self.loop.clip == "global":
            self.grads = clip(self.grads, self.theta)
        self.count += 1
        rate = self.lr * _factor(self.loop.step, shape, self.lr)
        slopes = [grad + self.loop.decay * param for grad, param in zip(self.grads, params, strict=True)]
        slopes = self._adam(slopes) if self.loop.adam else slopes
        self.moved = [self.loop.momentum * old + rate * slope for old, slope in zip(self.moved, slopes, strict=True)]
        return [param - change for param, change in zip(params, self.moved, strict=True)]

    def _adam(self, slopes):
        """Kingma and Ba, 2015, with their constants."""
        self.means = [0.9 * old + 0.1 * new for old, new in zip(self.means, slopes, strict=True)]
        self.second = [0.999 * old + 0.001 * new**2 for old, new in zip(self.second, slopes, strict=True)]
        correction = math.sqrt(1 - 0.999**self.count) / (1 - 0.9**self.count)
        return [correction * mean / (np.sqrt(root) + 1e-8) for mean, root in zip(self.means, self.second, strict=True)]


def perplexities(losses):
    """exp of the mean loss of each epoch, for minibatches of one size."""
    return [math.exp(np.mean(epoch)) for epoch in losses]


# -- text -----------------------------------------------------------------------------------------------------


def windows_in_order(corpus, num_steps):
    """The windows (x, y) that do not overlap, each [T], y one step ahead."""
    count = (len(corpus) - 1) // num_steps
    starts = [i * num_steps for i in range(count)]
    return [(corpus[i : i + num_steps], corpus[i + 1 : i + 1 + num_steps]) for i in starts]


def random_minibatches(corpus, batch_size, num_steps, rng):
    """A shuffled epoch: minibatches (X [B, T], Y [B, T])."""
    windows = windows_in_order(corpus, num_steps)
    order = rng.permutation(len(windows))
    batches = [order[i : i + batch_size] for i in range(0, len(windows) - batch_size + 1, batch_size)]
    return [tuple(np.array([windows[j][side] for j in batch], "float32") for side in (0, 1)) for batch in batches]


def consecutive_minibatches(corpus, batch_size, num_steps):
    """An epoch in order: row i of a minibatch goes on where row i of the one before ended."""
    length = len(corpus) // batch_size
    rows = np.array(corpus[: batch_size * length], "float32").reshape(batch_size, length)
    starts = range(0, (length - 1) // num_steps * num_steps, num_steps)
    return [(rows[:, i : i + num_steps], rows[:, i + 1 : i + 1 + num_steps]) for i in starts]


def bigram_probabilities(text, vocab_size):
    """p(b | a) [V, V] from counts, each pair counted once more than it stands in the text."""
    counts = np.ones((vocab_size, vocab_size))
    np.add.at(counts, (text[:-1], text[1:]), 1)
    return counts / counts.sum(axis=1, keepdims=True)


def bigram_perplexity(probabilities, text):
    """exp(-(1/N) Σ ln p(x_t | x_{t-1}))."""
    return math.exp(-np.log(probabilities[text[:-1], text[1:]]).mean())


def ngram_pairs(indices, n):
    """Contexts [N, n] and the next characters [N]."""
    count = len(indices) - n
    return np.array([indices[i : i + n] for i in range(count)]), np.array(indices[n:])


def encode_sequential(X, V):
    """[N, n] -> [N, n·V]: the n one-hot vectors side by side."""
    return np.concatenate([np.eye(V)[column] for column in np.asarray(X).astype(int).T], axis=1)


def encode_bag(X, V):
    """[N, n] -> [N, V]: how often each symbol occurs."""
    return np.stack([np.bincount(row, minlength=V) for row in np.asarray(X).astype(int)])


class TableMachine:
    """A language model that is a table: every output depends on all the characters before it.

    State s, character x: scores[s, x] (V different numbers), then the state following[s, x]. Reading begins in
    state 0 and never returns to it, so that a forgotten state shows.
    """

    def __init__(self, rng, vocab_size, num_states=7):
        self.vocab_size, self.num_states = vocab_size, num_states
        self.following = rng.integers(1, num_states, size=(num_states, vocab_size))
        ranks = rng.permuted(np.tile(np.arange(vocab_size), (num_states, vocab_size, 1)), axis=2)
        self.scores = (ranks - 0.75 * vocab_size) * 0.7 + rng.uniform(0, 0.2, ranks.shape)  # some far below zero

    def advance(self, state, symbol):
        """(scores [V], the state after)."""
        return self.scores[state, symbol], int(self.following[state, symbol])

    def greedy(self, prefix, num_chars):
        """Prefix and greedy continuation, as indices."""
        text, state = list(prefix), 0
        for symbol in prefix[:-1]:
            _, state = self.advance(state, symbol)
        for _ in range(num_chars):
            scores, state = self.advance(state, text[-1])
            text.append(int(np.argmax(scores)))
        return text
