# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown] id="title"
# # Recurrent networks that write Shakespeare
#
# A **character language model** reads a text one character at a time and says, before each character,
# how likely every character of the alphabet is to come next. In this homework you will
#
# 1. build a recurrent network **from scratch**: one-hot inputs, the recurrence, gradient clipping,
#    mini-batches, the training loop, and a function that lets the network write;
# 2. build the same thing with **MXNet Gluon**;
# 3. write a **perplexity calculator** and train an RNN, a GRU, an LSTM and a two-layer LSTM;
# 4. compare them with an **N-gram MLP**, which sees a window of a few characters and has no memory;
# 5. **report** perplexity on the text you trained on and on text you did not, and what each model costs;
# 6. let the best one continue *But Brutus is an honorable man*.
#
# **How to work.** Fill in the cells that say `# YOUR CODE HERE`. Keep the names, the arguments and their
# order: the grader calls your functions by name. After each definition there is a cell that checks
# shapes; those checks are there to help you, passing them does not yet mean that the values are right.
# The cells run from top to bottom: *Kernel → Restart & Run All* must work before you hand in.
#
# **Shapes.** $B$ is the batch size, $T$ the number of time steps, $V$ the size of the alphabet, $H$ the
# number of hidden units.
#
# **What is graded.** Your functions, one by one, and how well your trained models predict text that
# nobody has seen: the grader splits the plays afresh, runs your notebook, and measures the perplexity
# itself.

# %% [markdown] id="setup-text"
# ## 0. Setup
#
# Three environment variables say where and how large; you need none of them to work at home.
#
# | variable | meaning | default |
# |---|---|---|
# | `HW_DATA_DIR` | the folder that holds `train.txt` and `test.txt` | `data` |
# | `HW_PROFILE` | the scale: `smoke` (seconds), `cpu` (minutes), `gpu` | `smoke` |
# | `HW_TIME_BUDGET_S` | seconds of CPU time the whole notebook may take | no limit |

# %% id="setup-imports"
import math
import os
import random
import time
from pathlib import Path

import matplotlib.pyplot as plt
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, init, nd
from mxnet.gluon import nn

TIME_BUDGET_S = float(os.environ.get("HW_TIME_BUDGET_S", "inf"))

SEED = 157
random.seed(SEED)
np.random.seed(SEED)
mx.random.seed(SEED)


def try_gpu():
    """The first GPU if there is one that works, else the CPU."""
    if mx.context.num_gpus() == 0:
        return mx.cpu()
    try:
        nd.ones((1,), ctx=mx.gpu()).asnumpy()
    except mx.base.MXNetError:
        return mx.cpu()
    return mx.gpu()


def time_left():
    """Seconds of CPU time that are left of the notebook's budget; inf if there is no limit."""
    return TIME_BUDGET_S - time.process_time()


ctx = try_gpu()

# %% [markdown] id="profile-text"
# ### The scale
#
# Every number that sets how long something takes stands in this one table. Training is measured in
# characters, not in seconds, so that a run gives the same models on a slow machine as on a fast one.
# Change what you like.

# %% id="profile"
PROFILES = ("smoke", "cpu", "gpu")
SCALE = {
    # setting          smoke     cpu        gpu          what it sets
    "scratch_chars":  (112_000,  1_600_000, 4_000_000),   # text that the network from scratch reads
    "scratch_epochs": (1,        1,         5),           # ... and how often
    "scratch_batch":  (64,       32,        64),
    "scratch_steps":  (8,        16,        32),
    "scratch_theta":  (0.2,      0.1,       0.1),         # where its gradient is clipped
    "rnn_chars":      (112_000,  5_000_000, 40_000_000),  # characters read in training, repeats included
    "gru_chars":      (64_000,   4_000_000, 40_000_000),
    "lstm_chars":     (52_000,   4_400_000, 80_000_000),
    "lstm2_chars":    (26_000,   2_200_000, 80_000_000),
    "batch_size":     (32,       32,        64),
    "num_steps":      (8,        32,        64),
    "learning_rate":  (0.02,     0.01,      0.005),       # the highest; it falls to zero
    "ngram_n":        (4,        6,         8),           # characters of context
    "ngram_chars":    (100_000,  2_000_000, 20_000_000),
    "ngram_batch":    (256,      256,       512),
    "demo_chars":     (4_000,    50_000,    200_000),     # text for short demonstrations
    "eval_chars":     (10_000,   100_000,   100_000),     # training text that the report evaluates
}  # fmt: skip

HW_PROFILE = os.environ.get("HW_PROFILE", "smoke")
if HW_PROFILE not in PROFILES:
    raise ValueError(f"HW_PROFILE is {HW_PROFILE!r}: set it to one of {', '.join(PROFILES)}.")
scale = {setting: values[PROFILES.index(HW_PROFILE)] for setting, values in SCALE.items()}

num_hiddens = 256

# %% [markdown] id="data-text"
# ### The text
#
# The plays of Shakespeare, already normalised: lower case letters and single spaces. `test.txt` comes
# from other passages than `train.txt`. **Train on `train_indices` only**; `test_indices` is there to
# measure with. (The alphabet is taken from both, so that no character of the test text lacks an index.
# It is all we take.)


# %% id="data"
def read_text(name):
    """The text of one file in the data folder."""
    path = Path(os.environ.get("HW_DATA_DIR", "data")) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}: set HW_DATA_DIR to the folder that holds train.txt and test.txt."
        )
    return path.read_text(encoding="utf-8")


train_text = read_text("train.txt")
test_text = read_text("test.txt")

idx_to_char = sorted(set(train_text) | set(test_text))
char_to_idx = {char: i for i, char in enumerate(idx_to_char)}
vocab_size = len(idx_to_char)

train_indices = [char_to_idx[char] for char in train_text]
test_indices = [char_to_idx[char] for char in test_text]

print(f"profile {HW_PROFILE}, context {ctx}, {vocab_size} symbols")
print(f"{len(train_indices):,} characters to train on, {len(test_indices):,} to test on")
print("train begins:", train_text[:60])
print("test begins: ", test_text[:60])

# %% [markdown] id="onehot-text"
# ## 1. From scratch
#
# ### 1.1 One-hot vectors
#
# The network reads vectors, not indices. Index $i$ becomes $\mathbf{e}_i \in \mathbb{R}^V$, all zeros
# but a one at place $i$. A mini-batch $X \in \mathbb{N}^{B \times T}$ becomes a **list of $T$ arrays**
# of shape $[B, V]$: the recurrence goes through time, so time comes first.


# %% id="onehot"
def to_onehot(X, size):
    """Turn indices X [B, T] into a list of T one-hot arrays [B, size]."""
    ### BEGIN SOLUTION
    return [nd.one_hot(column, size) for column in X.T]
    ### END SOLUTION


# %% id="onehot-check"
example = to_onehot(nd.arange(6).reshape((2, 3)), 7)
assert len(example) == 3, "one array for each time step"
assert all(array.shape == (2, 7) for array in example), "each of shape [B, size]"
assert example[1].argmax(axis=1).asnumpy().tolist() == [1, 4], "time step 1 holds the second column of X"

# %% [markdown] id="params-text"
# ### 1.2 Parameters
#
# $$W_{xh} \in \mathbb{R}^{V \times H},\quad W_{hh} \in \mathbb{R}^{H \times H},\quad b_h \in \mathbb{R}^{H},\quad
#   W_{hq} \in \mathbb{R}^{H \times V},\quad b_q \in \mathbb{R}^{V}$$
#
# Draw the weights from $\mathcal{N}(0,\, 0.01^2)$, set the biases to zero, and attach gradients. Return
# the five in this order. The function takes no arguments: it reads `vocab_size`, `num_hiddens` and `ctx`
# of the notebook.


# %% id="params"
def get_params():
    """The parameters [W_xh, W_hh, b_h, W_hq, b_q], on ctx, with gradients attached."""
    ### BEGIN SOLUTION
    W_xh = nd.random.normal(scale=0.01, shape=(vocab_size, num_hiddens), ctx=ctx)
    W_hh = nd.random.normal(scale=0.01, shape=(num_hiddens, num_hiddens), ctx=ctx)
    b_h = nd.zeros(num_hiddens, ctx=ctx)
    W_hq = nd.random.normal(scale=0.01, shape=(num_hiddens, vocab_size), ctx=ctx)
    b_q = nd.zeros(vocab_size, ctx=ctx)
    params = [W_xh, W_hh, b_h, W_hq, b_q]
    for param in params:
        param.attach_grad()
    return params
    ### END SOLUTION


# %% id="params-check"
example = get_params()
assert [array.size for array in example] == [
    vocab_size * num_hiddens,
    num_hiddens * num_hiddens,
    num_hiddens,
    num_hiddens * vocab_size,
    vocab_size,
], "W_xh, W_hh, b_h, W_hq, b_q, in this order"
assert all(array.grad is not None for array in example), "gradients are attached"

# %% [markdown] id="state-text"
# ### 1.3 The first state
#
# Before the first character the network knows nothing: $H_0 = 0 \in \mathbb{R}^{B \times H}$. Return a
# **tuple** with one array; an LSTM will have two, and the code around it will not have to change.


# %% id="state"
def init_rnn_state(batch_size, num_hiddens, ctx):
    """The state before the first character: a tuple with one array of zeros [batch_size, num_hiddens]."""
    ### BEGIN SOLUTION
    return (nd.zeros((batch_size, num_hiddens), ctx=ctx),)
    ### END SOLUTION


# %% id="state-check"
example = init_rnn_state(3, 5, ctx)
assert [array.shape for array in example] == [(3, 5)], "a tuple with one array [B, H]"

# %% [markdown] id="rnn-text"
# ### 1.4 The recurrence
#
# $$H_t = \tanh(X_t W_{xh} + H_{t-1} W_{hh} + b_h), \qquad O_t = H_t W_{hq} + b_q$$
#
# `inputs` is the list that `to_onehot` returns. Return the list of the $T$ outputs $O_t$ (scores, no
# softmax) and the state after the last step, in the form in which you got it.


# %% id="rnn"
def rnn(inputs, state, params):
    """T arrays [B, V] and a state -> (list of T outputs [B, V], the new state)."""
    ### BEGIN SOLUTION
    W_xh, W_hh, b_h, W_hq, b_q = params
    (H,) = state
    outputs = []
    for X in inputs:
        H = nd.tanh(nd.dot(X, W_xh) + nd.dot(H, W_hh) + b_h)
        outputs.append(nd.dot(H, W_hq) + b_q)
    return outputs, (H,)
    ### END SOLUTION


# %% id="rnn-check"
example, example_state = rnn(
    to_onehot(nd.arange(6, ctx=ctx).reshape((2, 3)), vocab_size),
    init_rnn_state(2, num_hiddens, ctx),
    get_params(),
)
assert len(example) == 3, "one output for each time step"
assert all(array.shape == (2, vocab_size) for array in example), "each of shape [B, V]"
assert example_state[0].shape == (2, num_hiddens), "the state keeps its shape"

# %% [markdown] id="predict-text"
# ### 1.5 Let it write
#
# Feed the prefix to the network character by character; this *warms up* the state, and the outputs are
# ignored. After the whole prefix, take the most likely next character,
#
# $$x_{t+1} = \operatorname*{arg\,max}_i \; (O_t)_i ,$$
#
# feed it back, and so on until `num_chars` characters have been written. Return prefix and continuation
# as one string.


# %% id="predict"
def predict_rnn(prefix, num_chars, rnn, params, init_rnn_state, num_hiddens, vocab_size, ctx, idx_to_char, char_to_idx):
    """The prefix and the num_chars characters that the network thinks come next, as one string."""
    ### BEGIN SOLUTION
    state = init_rnn_state(1, num_hiddens, ctx)
    text = [char_to_idx[char] for char in prefix]
    for t in range(len(prefix) + num_chars - 1):
        X = to_onehot(nd.array([[text[t]]], ctx=ctx), vocab_size)
        outputs, state = rnn(X, state, params)
        if t >= len(prefix) - 1:
            text.append(int(outputs[0].argmax(axis=1).asscalar()))
    return "".join(idx_to_char[i] for i in text)
    ### END SOLUTION


# %% id="predict-check"
example = predict_rnn(
    "brutus", 10, rnn, get_params(), init_rnn_state, num_hiddens, vocab_size, ctx, idx_to_char, char_to_idx
)
print(repr(example), "(a network that has learnt nothing yet)")
assert example.startswith("brutus"), "the prefix comes first"
assert len(example) == len("brutus") + 10, "then num_chars characters"

# %% [markdown] id="clipping-text"
# ### 1.6 Gradient clipping
#
# Through many time steps gradients can explode. Let $\mathbf{g}$ be **all gradients of all parameters**
# seen as one long vector, with the one norm $\|\mathbf{g}\|$. Scale every gradient in place:
#
# $$\mathbf{g} \leftarrow \min\left(1, \frac{\theta}{\|\mathbf{g}\|}\right) \mathbf{g}$$
#
# The direction stays; only the length is limited. Clipping each array by its own norm would change the
# direction.


# %% id="clipping"
def grad_clipping(params, theta, ctx):
    """Scale the gradients of all params in place, so that their one global norm is at most theta."""
    ### BEGIN SOLUTION
    g = nd.concat(*[param.grad.reshape((-1,)) for param in params], dim=0)  # one long vector
    norm = math.sqrt(nd.dot(g, g).asscalar())  # g·g: the same as the sum of squares, and much faster
    if norm > theta:
        for param in params:
            param.grad[:] *= theta / norm
    ### END SOLUTION


# %% id="clipping-check"
example = [nd.array([3.0], ctx=ctx), nd.array([4.0], ctx=ctx)]
for array in example:
    array.attach_grad()
    array.grad[:] = array  # as if `backward` had left 3 and 4 there
grad_clipping(example, 10, ctx)
assert [array.grad.asscalar() for array in example] == [3, 4], "a norm of 5 is below 10: nothing changes"
grad_clipping(example, 2.5, ctx)
assert np.allclose([array.grad.asscalar() for array in example], [1.5, 2]), "a norm of 5 becomes 2.5"

# %% [markdown] id="random-text"
# ### 1.7 Mini-batches at random
#
# Cut the text into windows of $T$ characters that do not overlap, shuffle the windows, and deal them out
# in batches. $Y$ is $X$ shifted by one: at each place the character that comes next, so each window
# needs one character more than it has. What does not fill a window or a batch is dropped. Each window
# comes once per epoch, in a new order each time. Two windows that follow each other in a batch have
# nothing to do with each other: the state must start afresh.


# %% id="iter-random"
def data_iter_random(corpus_indices, batch_size, num_steps, ctx=None):
    """Yield (X, Y), both [batch_size, num_steps] on ctx: shuffled windows, and the same one step ahead."""
    ### BEGIN SOLUTION
    corpus = np.asarray(corpus_indices, dtype=np.float32)
    num_windows = (len(corpus) - 1) // num_steps
    starts = np.random.permutation(num_windows) * num_steps
    for i in range(0, num_windows - batch_size + 1, batch_size):
        places = starts[i : i + batch_size, None] + np.arange(num_steps)
        yield nd.array(corpus[places], ctx=ctx), nd.array(corpus[places + 1], ctx=ctx)
    ### END SOLUTION


# %% id="iter-random-check"
for example_X, example_Y in data_iter_random(list(range(30)), batch_size=2, num_steps=6, ctx=ctx):
    print("X:", example_X.asnumpy().astype(int).tolist(), " Y starts:", example_Y[:, 0].asnumpy().astype(int))
    assert example_X.shape == example_Y.shape == (2, 6)
    assert (example_Y - example_X).asnumpy().tolist() == np.ones((2, 6)).tolist(), "Y is one step ahead of X"

# %% [markdown] id="consecutive-text"
# ### 1.8 Mini-batches one after the other
#
# Now lay the text out in $B$ long rows and walk along them $T$ columns at a time: **row $i$ of a batch
# goes on where row $i$ of the batch before it ended**. The state after one batch is then the right state
# to begin the next one with, and the network can learn from further back than $T$ characters.


# %% id="iter-consecutive"
def data_iter_consecutive(corpus_indices, batch_size, num_steps, ctx=None):
    """Yield (X, Y), both [batch_size, num_steps] on ctx: row i goes on where row i of the batch before ended."""
    ### BEGIN SOLUTION
    corpus = np.asarray(corpus_indices, dtype=np.float32)
    row_length = (len(corpus) - 1) // batch_size
    size = batch_size * row_length
    X_rows = nd.array(corpus[:size].reshape((batch_size, row_length)), ctx=ctx)
    Y_rows = nd.array(corpus[1 : size + 1].reshape((batch_size, row_length)), ctx=ctx)
    for i in range(0, row_length - num_steps + 1, num_steps):
        yield X_rows[:, i : i + num_steps], Y_rows[:, i : i + num_steps]
    ### END SOLUTION


# %% id="iter-consecutive-check"
example_batches = list(data_iter_consecutive(list(range(40)), batch_size=2, num_steps=6, ctx=ctx))
assert len(example_batches) >= 2
for example_X, example_Y in example_batches:
    print("X:", example_X.asnumpy().astype(int).tolist(), " Y starts:", example_Y[:, 0].asnumpy().astype(int))
    assert example_X.shape == example_Y.shape == (2, 6)
assert (example_batches[1][0][:, 0] - example_batches[0][0][:, 5]).asnumpy().tolist() == [1, 1], "rows go on"

# %% [markdown] id="train-text"
# ### 1.9 Training
#
# The loss is the mean cross-entropy over all $n = BT$ characters of a mini-batch,
# $\ell = -\frac1n \sum \ln p(y)$. We report the **perplexity** of the epoch,
#
# $$\exp\Big(\frac1N \sum_{\text{epoch}} -\ln p(y)\Big),$$
#
# the number of equally likely characters among which the network is as uncertain as it is. 1 is perfect,
# $V = 27$ is what guessing gives. `to_perplexity` is given: a network that has diverged has the
# perplexity $\infty$, not a crash.
#
# In each mini-batch: get the state; `record` outputs and loss; `backward`; clip; one step of SGD. About
# the state:
#
# * **random** batches: a new state of zeros for *every mini-batch*;
# * **consecutive** batches: a new state for *every epoch*. Within the epoch the state is carried on but
#   **detached**, so that the gradient stops where the mini-batch begins. In MXNet `NDArray.detach()`
#   *returns a detached copy* and leaves the array as it was: a line like `for s in state: s.detach()` does
#   nothing at all. Assign the result, as in `state = [s.detach() for s in state]`. (MXNet also forgets a
#   recorded graph once `backward` has run through it, so the mistake may go unnoticed. Other frameworks
#   complain.)
#
# Mind the order of the rows: the outputs, one on top of the other, are ordered by time first, `Y` by
# batch first.
#
# Print the perplexity, and what the network makes of each prefix (`pred_len` characters, there may be no
# prefixes), every `pred_period` epochs. **Return** `(params, perplexities)`, one perplexity for each
# epoch. Use the arguments `rnn`, `get_params`, `init_rnn_state`, not the notebook's functions of these
# names: others may be handed in.


# %% id="train-given"
def to_perplexity(nats_per_char):
    """exp(nats_per_char) as a float; inf where that overflows or is not a number."""
    return math.exp(nats_per_char) if nats_per_char < 700 else math.inf


def sgd(parameters, lr):
    """One step of gradient descent, in place. The loss is a mean already, so nothing is divided here."""
    for weight in parameters:
        weight[:] = weight - lr * weight.grad


# %% id="train"
def train_and_predict_rnn(
    rnn,
    get_params,
    init_rnn_state,
    num_hiddens,
    vocab_size,
    ctx,
    corpus_indices,
    idx_to_char,
    char_to_idx,
    is_random_iter,
    num_epochs,
    num_steps,
    lr,
    clipping_theta,
    batch_size,
    pred_period,
    pred_len,
    prefixes,
):
    """Train a network from scratch with clipped SGD; return (params, one perplexity for each epoch)."""
    ### BEGIN SOLUTION
    data_iter = data_iter_random if is_random_iter else data_iter_consecutive
    loss = gluon.loss.SoftmaxCrossEntropyLoss()
    params = get_params()
    perplexities = []
    for epoch in range(1, num_epochs + 1):
        state = init_rnn_state(batch_size, num_hiddens, ctx)
        l_sum, n, start = 0.0, 0, time.time()
        for X, Y in data_iter(corpus_indices, batch_size, num_steps, ctx):
            if is_random_iter:
                state = init_rnn_state(batch_size, num_hiddens, ctx)
            state = tuple(array.detach() for array in state)
            with autograd.record():
                outputs, state = rnn(to_onehot(X, vocab_size), state, params)
                y = Y.T.reshape((-1,))
                l = loss(nd.concat(*outputs, dim=0), y).mean()  # noqa: E741
            l.backward()
            grad_clipping(params, clipping_theta, ctx)
            sgd(params, lr)
            l_sum += l.asscalar() * y.size
            n += y.size
        perplexities.append(to_perplexity(l_sum / n))
        if epoch % pred_period == 0:
            print(f"epoch {epoch}, perplexity {perplexities[-1]:.3f}, {time.time() - start:.1f} s")
            for prefix in prefixes:
                model = (rnn, params, init_rnn_state, num_hiddens, vocab_size, ctx)
                written = predict_rnn(prefix, pred_len, *model, idx_to_char, char_to_idx)
                print(" -", written)
    return params, perplexities
    ### END SOLUTION


# %% id="train-check"
example_settings = {"num_epochs": 2, "num_steps": 10, "lr": 1.0, "clipping_theta": 1.0, "batch_size": 4}
example_settings |= {"pred_period": 2, "pred_len": 10, "prefixes": ["brutus"]}
for example_is_random in (True, False):
    example_params, example_perplexities = train_and_predict_rnn(
        *(rnn, get_params, init_rnn_state, num_hiddens, vocab_size, ctx),
        *(train_indices[:300], idx_to_char, char_to_idx, example_is_random),
        **example_settings,
    )
    assert len(example_params) == 5, "first the parameters"
    assert len(example_perplexities) == 2, "then a perplexity for each epoch"

# %% [markdown] id="scratch-text"
# ### 1.10 Train the network from scratch
#
# Train with `train_and_predict_rnn` on consecutive batches of the training text (how much of it, `scale`
# says) and keep the parameters in `scratch_params`: the grader evaluates them together with your `rnn`.
# Clipping makes large learning rates possible: a step is never longer than $\eta\,\theta$, and it is
# this product that counts. What happens with random batches? Try both, on a little text, for the same
# number of epochs.

# %% id="scratch"
### BEGIN SOLUTION
the_network = (rnn, get_params, init_rnn_state, num_hiddens, vocab_size, ctx)
recipe = {"num_steps": scale["scratch_steps"], "lr": 8.0, "clipping_theta": scale["scratch_theta"]}
recipe |= {"pred_period": 1, "pred_len": 60, "prefixes": ["brutus ", "the "]}

little_text = train_indices[: scale["demo_chars"]]
for is_random_iter in (True, False):
    print("a little text,", "random batches:" if is_random_iter else "consecutive batches:")
    _ = train_and_predict_rnn(
        *the_network, little_text, idx_to_char, char_to_idx, is_random_iter, 2, batch_size=16, **recipe
    )

print("more text, consecutive batches:")
scratch_params, scratch_curve = train_and_predict_rnn(
    *(*the_network, train_indices[: scale["scratch_chars"]], idx_to_char, char_to_idx, False),
    **{"num_epochs": scale["scratch_epochs"], "batch_size": scale["scratch_batch"], **recipe},
)
### END SOLUTION

# %% id="scratch-check"
assert [array.size for array in scratch_params] == [array.size for array in get_params()]
assert all(np.isfinite(array.asnumpy()).all() for array in scratch_params), "training has not diverged"

# %% [markdown] id="gluon-text"
# ## 2. With Gluon
#
# ### 2.1 The model
#
# `gluon.rnn` has the recurrent layers: `RNN`, `GRU`, `LSTM`, with one layer or several. They want
# $[T, B, V]$ and return all hidden states $[T, B, H]$ together with the new state. `RNNModel` puts the
# one-hot encoding before such a layer and one dense layer behind it, which maps each hidden state to $V$
# scores:
#
# `forward(inputs [B, T], state) -> (output [T·B, V], state)`, and `begin_state(batch_size=..., ctx=...)`
# for the first state.


# %% id="gluon-model"
class RNNModel(nn.Block):
    """A recurrent layer between a one-hot encoding and a dense layer."""

    def __init__(self, rnn_layer, vocab_size, **kwargs):
        super().__init__(**kwargs)
        ### BEGIN SOLUTION
        self.recurrent = rnn_layer
        self.vocab_size = vocab_size
        self.dense = nn.Dense(vocab_size)
        ### END SOLUTION

    def forward(self, inputs, state):
        """Indices [B, T] and a state -> (scores [T·B, V], time first, and the new state)."""
        ### BEGIN SOLUTION
        hidden, state = self.recurrent(nd.one_hot(inputs.T, self.vocab_size), state)
        return self.dense(hidden.reshape((-1, hidden.shape[-1]))), state
        ### END SOLUTION

    def begin_state(self, *args, **kwargs):
        """The state before the first character, as the recurrent layer wants it."""
        ### BEGIN SOLUTION
        return self.recurrent.begin_state(*args, **kwargs)
        ### END SOLUTION


# %% id="gluon-model-check"
example = RNNModel(gluon.rnn.LSTM(num_hiddens), vocab_size)
example.initialize(ctx=ctx)
example_output, example_state = example(
    nd.arange(6, ctx=ctx).reshape((2, 3)), example.begin_state(batch_size=2, ctx=ctx)
)
assert example_output.shape == (2 * 3, vocab_size), "one row of scores for each character"
assert len(example_state) == 2, "an LSTM carries two arrays"

# %% [markdown] id="gluon-predict-text"
# ### 2.2 Let it write
#
# The same as `predict_rnn`, for a block: warm up on the whole prefix, then take the most likely
# character each time.


# %% id="gluon-predict"
def predict_rnn_gluon(prefix, num_chars, model, vocab_size, ctx, idx_to_char, char_to_idx):
    """The prefix and the num_chars characters that the model thinks come next, as one string."""
    ### BEGIN SOLUTION
    state = model.begin_state(batch_size=1, ctx=ctx)
    text = [char_to_idx[char] for char in prefix]
    for t in range(len(prefix) + num_chars - 1):
        output, state = model(nd.array([[text[t]]], ctx=ctx), state)
        if t >= len(prefix) - 1:
            text.append(int(output.argmax(axis=1).asscalar()))
    return "".join(idx_to_char[i] for i in text)
    ### END SOLUTION


# %% id="gluon-predict-check"
example_text = predict_rnn_gluon("brutus", 10, example, vocab_size, ctx, idx_to_char, char_to_idx)
print(repr(example_text))
assert example_text.startswith("brutus"), "the prefix comes first"
assert len(example_text) == len("brutus") + 10, "then num_chars characters"

# %% [markdown] id="gluon-train-text"
# ### 2.3 Training
#
# The same loop for a block, with consecutive batches only. Initialise the model **afresh**
# (`force_reinit=True`, from $\mathcal{N}(0, 0.01^2)$), so that calling the function twice trains two
# models and not one model twice. Step with `gluon.Trainer(..., "sgd", {"learning_rate": lr, "momentum":
# 0, "wd": 0})`. Your `grad_clipping` takes `[p.data() for p in model.collect_params().values()]`.
# **Return** the list of perplexities, one for each epoch.


# %% id="gluon-train"
def train_and_predict_rnn_gluon(
    model,
    num_hiddens,
    vocab_size,
    ctx,
    corpus_indices,
    idx_to_char,
    char_to_idx,
    num_epochs,
    num_steps,
    lr,
    clipping_theta,
    batch_size,
    pred_period,
    pred_len,
    prefixes,
):
    """Reinitialise a model and train it with clipped SGD; return one perplexity for each epoch."""
    ### BEGIN SOLUTION
    loss = gluon.loss.SoftmaxCrossEntropyLoss()
    model.initialize(init=init.Normal(0.01), ctx=ctx, force_reinit=True)
    sgd_settings = {"learning_rate": lr, "momentum": 0, "wd": 0}
    trainer = gluon.Trainer(model.collect_params(), "sgd", sgd_settings)
    perplexities = []
    for epoch in range(1, num_epochs + 1):
        state = model.begin_state(batch_size=batch_size, ctx=ctx)
        l_sum, n, start = 0.0, 0, time.time()
        for X, Y in data_iter_consecutive(corpus_indices, batch_size, num_steps, ctx):
            state = [array.detach() for array in state]
            with autograd.record():
                output, state = model(X, state)
                y = Y.T.reshape((-1,))
                l = loss(output, y).mean()  # noqa: E741
            l.backward()
            grad_clipping([p.data() for p in model.collect_params().values()], clipping_theta, ctx)
            trainer.step(1)  # the loss is a mean already
            l_sum += l.asscalar() * y.size
            n += y.size
        perplexities.append(to_perplexity(l_sum / n))
        if epoch % pred_period == 0:
            print(f"epoch {epoch}, perplexity {perplexities[-1]:.3f}, {time.time() - start:.1f} s")
            for prefix in prefixes:
                written = predict_rnn_gluon(prefix, pred_len, model, vocab_size, ctx, idx_to_char, char_to_idx)
                print(" -", written)
    return perplexities
    ### END SOLUTION


# %% id="gluon-train-check"
example_perplexities = train_and_predict_rnn_gluon(
    *(example, num_hiddens, vocab_size, ctx, train_indices[:300], idx_to_char, char_to_idx),
    **example_settings,
)
assert len(example_perplexities) == 2, "a perplexity for each epoch"

# %% [markdown] id="evaluate-text"
# ## 3. How good are they?
#
# ### 3.1 A perplexity calculator
#
# $$\operatorname{ppl}(x_{1:N}) = \exp\Big(-\frac1N \sum_{t} \ln p(x_t \mid x_{<t})\Big)$$
#
# Measuring is not training: record no gradient, change no parameter. Walk along the text in consecutive
# batches and **carry the state**, so that $x_{<t}$ is the whole past and not only a window. Add up in
# double precision: a float32 that has grown large no longer notices a small term.
#
# The function must take anything that has `begin_state(batch_size=..., ctx=...)` and that, called with `X` and
# a state, returns the scores and the new state. With `ScratchModel` (given) your own network is such a thing.


# %% id="evaluate-given"
class ScratchModel:
    """Your network from scratch, in the form of a Gluon model."""

    def __init__(self, scratch_parameters):
        self.scratch_parameters = scratch_parameters

    def begin_state(self, batch_size, ctx):
        return init_rnn_state(batch_size, num_hiddens, ctx)

    def __call__(self, indices, state):
        scores, new_state = rnn(to_onehot(indices, vocab_size), state, self.scratch_parameters)
        return nd.concat(*scores, dim=0), new_state


# %% id="evaluate"
def evaluate_perplexity(model, indices, batch_size, num_steps, ctx):
    """The perplexity of a model on a text, as a float; inf where it overflows."""
    ### BEGIN SOLUTION
    total, n = 0.0, 0
    state = model.begin_state(batch_size=batch_size, ctx=ctx)
    with autograd.pause():
        for X, Y in data_iter_consecutive(indices, batch_size, num_steps, ctx):
            output, state = model(X, state)
            log_p = nd.log_softmax(output.astype("float64"), axis=-1)
            nats = -nd.pick(log_p, Y.T.reshape((-1,)))
            total += nats.sum().asscalar()
            n += Y.size
    return to_perplexity(total / n)
    ### END SOLUTION


# %% id="evaluate-check"
example = evaluate_perplexity(ScratchModel(get_params()), test_indices[:1000], 10, 33, ctx)
print(f"a network that has learnt nothing: {example:.2f}")
assert abs(example - vocab_size) < 1, "it can only guess: about as many choices as there are symbols"
scratch_example = evaluate_perplexity(ScratchModel(scratch_params), test_indices[:1000], 10, 33, ctx)
print(f"your network from scratch:         {scratch_example:.2f}")
assert scratch_example < example

# %% [markdown] id="recipe-text"
# ### 3.2 A better recipe
#
# Plain SGD is slow. You may train the Gluon models in whatever way you like, as long as it is on
# `train_indices` only. Write your recipe here. What helps most: Adam, a learning rate that rises quickly
# and then falls to zero, larger initial weights than 0.01, and mini-batches small enough that there are
# many updates. `max_seconds` is a safety line: stop early rather than leave the models behind it
# untrained.


# %% id="recipe"
def train_model(model, indices, num_chars, batch_size, num_steps, lr, clipping_theta, max_seconds=math.inf):
    """Train a model on num_chars characters of a text (over and over, if it is shorter).

    Return the learning curve: a list of (characters read, perplexity since the entry before).
    """
    ### BEGIN SOLUTION
    loss = gluon.loss.SoftmaxCrossEntropyLoss()
    model.initialize(init=init.Xavier(factor_type="in", magnitude=6), ctx=ctx, force_reinit=True)
    trainer = gluon.Trainer(model.collect_params(), "adam", {"learning_rate": lr})
    num_updates = max(1, num_chars // (batch_size * num_steps))
    deadline = time.process_time() + max_seconds
    curve, l_sum, n, update = [], 0.0, 0, 0
    while update < num_updates and (update == 0 or time.process_time() < deadline):
        state = model.begin_state(batch_size=batch_size, ctx=ctx)
        for X, Y in data_iter_consecutive(indices, batch_size, num_steps, ctx):
            state = [array.detach() for array in state]
            with autograd.record():
                output, state = model(X, state)
                l = loss(output, Y.T.reshape((-1,))).mean()  # noqa: E741
            l.backward()
            grad_clipping([p.data() for p in model.collect_params().values()], clipping_theta, ctx)
            warm_up = min(1.0, (update + 1) / (0.05 * num_updates))
            trainer.set_learning_rate(lr * warm_up * 0.5 * (1 + math.cos(math.pi * update / num_updates)))
            trainer.step(1)
            l_sum, n, update = l_sum + l.asscalar(), n + 1, update + 1
            if n == max(1, num_updates // 20):
                curve.append((update * batch_size * num_steps, to_perplexity(l_sum / n)))
                l_sum, n = 0.0, 0
            if update == num_updates or time.process_time() > deadline:
                break
    if n > 0:
        curve.append((update * batch_size * num_steps, to_perplexity(l_sum / n)))
    return curve
    ### END SOLUTION


# %% [markdown] id="models-text"
# ### 3.3 Train the four models
#
# Make `models`, a dict of four trained `RNNModel`s with `num_hiddens` = 256 units: `"rnn"`, `"gru"`,
# `"lstm"`, and `"lstm2"`, an LSTM with two layers. Lower perplexity on unseen text is better, and is
# graded. Models of your own design may stand in `models` too, under names of your own: they earn no
# points, and compete in the leaderboard's open class.

# %% id="models"
### BEGIN SOLUTION
layers = {
    "rnn": gluon.rnn.RNN(num_hiddens),  # with ReLU, Gluon's default
    "gru": gluon.rnn.GRU(num_hiddens),
    "lstm": gluon.rnn.LSTM(num_hiddens),
    "lstm2": gluon.rnn.LSTM(num_hiddens, num_layers=2),
}
caution = {"lstm2": 0.6}  # the deeper network wants smaller steps
models, curves = {}, {}
for name, layer in layers.items():
    max_seconds = 0.8 * time_left() / (len(layers) - len(models))  # what one leaves over, the others share
    models[name] = RNNModel(layer, vocab_size)
    settings = (scale["batch_size"], scale["num_steps"], scale["learning_rate"] * caution.get(name, 1), 1.0)
    start = time.process_time()
    curves[name] = train_model(models[name], train_indices, scale[f"{name}_chars"], *settings, max_seconds=max_seconds)
    print(f"{name:6} perplexity in training {curves[name][-1][1]:.2f}, {time.process_time() - start:.1f} s")
### END SOLUTION

# %% id="models-check"
assert list(models) == ["rnn", "gru", "lstm", "lstm2"]
for example_name, example in models.items():
    assert isinstance(example, RNNModel), example_name
    assert example.begin_state(batch_size=2, ctx=ctx)[0].shape[1:] == (2, 256), example_name

# %% [markdown] id="ngram-text"
# ## 4. The N-gram baseline
#
# ### 4.1 Context and next character
#
# How far does one get without memory? An N-gram model sees the last $n$ characters and nothing else:
# $p(x_t \mid x_{t-n}, \dots, x_{t-1})$. From a text of $L$ characters make all $N = L - n$ examples: `X`
# $[N, n]$ holds the context, in the order of the text, and `y` $[N]$ the character that follows it.


# %% id="ngram-pairs"
def ngram_pairs(indices, n):
    """All windows of n characters X [N, n] and the character y [N] that follows each."""
    ### BEGIN SOLUTION
    corpus = np.asarray(indices, dtype=np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(corpus, n + 1)
    return nd.array(windows[:, :n], ctx=ctx), nd.array(windows[:, n], ctx=ctx)
    ### END SOLUTION


# %% id="ngram-pairs-check"
example_X, example_Y = ngram_pairs([5, 6, 7, 8, 9], 3)
assert example_X.shape == (2, 3), "N examples of n characters"
assert example_Y.shape == (2,), "and what follows each"
assert [*example_X[0].asnumpy(), example_Y[0].asscalar()] == [5, 6, 7, 8]

# %% [markdown] id="encodings-text"
# ### 4.2 Two encodings
#
# * **sequential**: the one-hot vectors of the $n$ characters one after the other, $[N, nV]$: what stands
#   where;
# * **bag**: how often each character occurs in the context, whatever its place, $[N, V]$: the sum of the
#   one-hots.


# %% id="encodings"
def encode_sequential(X, V):
    """Contexts X [N, n] -> the n one-hot vectors side by side, [N, n·V]."""
    ### BEGIN SOLUTION
    return nd.one_hot(X, V).reshape((X.shape[0], -1))
    ### END SOLUTION


def encode_bag(X, V):
    """Contexts X [N, n] -> how often each symbol occurs, [N, V]."""
    ### BEGIN SOLUTION
    return nd.one_hot(X, V).sum(axis=1)
    ### END SOLUTION


# %% id="encodings-check"
example = nd.array([[0, 2, 2], [1, 0, 1]], ctx=ctx)
assert encode_sequential(example, 4).shape == (2, 12)
assert encode_bag(example, 4).shape == (2, 4)
assert encode_bag(example, 4)[0].asnumpy().tolist() == [1, 0, 2, 0]

# %% [markdown] id="ngram-model-text"
# ### 4.3 The model
#
# One hidden layer with ReLU, then the scores:
#
# $$\mathbf{h} = \max(0, \mathbf{x} W_1 + \mathbf{b}_1), \qquad \mathbf{o} = \mathbf{h} W_2 + \mathbf{b}_2$$
#
# The number of inputs depends on the encoding; Gluon finds it out at the first call.


# %% id="ngram-model"
class NGramMLP(nn.Block):
    """Encoded contexts [N, inputs] -> scores of the next character [N, vocab_size]."""

    def __init__(self, vocab_size, num_hiddens=256, **kwargs):
        super().__init__(**kwargs)
        ### BEGIN SOLUTION
        self.hidden = nn.Dense(num_hiddens, activation="relu")
        self.output = nn.Dense(vocab_size)
        ### END SOLUTION

    def forward(self, inputs):
        """[N, inputs] -> [N, vocab_size]"""
        ### BEGIN SOLUTION
        return self.output(self.hidden(inputs))
        ### END SOLUTION


# %% id="ngram-model-check"
example = NGramMLP(vocab_size)
example.initialize(ctx=ctx)
assert example(nd.zeros((5, 3 * vocab_size), ctx=ctx)).shape == (5, vocab_size)

# %% [markdown] id="ngram-train-text"
# ### 4.4 Train it, once with each encoding
#
# Keep the two trained models in a dict `ngram_models` under the names `"ngram_sequential"` and
# `"ngram_bag"`; the report below needs their perplexities on train and test text.

# %% id="ngram-train"
### BEGIN SOLUTION
encodings = {"ngram_sequential": encode_sequential, "ngram_bag": encode_bag}


def train_ngram(encode, indices, n, num_chars, batch_size, lr):
    """A trained NGramMLP: num_chars examples drawn at random, Adam, a learning rate that falls to zero."""
    mlp = NGramMLP(vocab_size)
    mlp.initialize(init=init.Xavier(), ctx=ctx)
    trainer = gluon.Trainer(mlp.collect_params(), "adam", {"learning_rate": lr})
    loss = gluon.loss.SoftmaxCrossEntropyLoss()
    corpus = np.asarray(indices, dtype=np.float32)
    num_updates = max(1, num_chars // batch_size)
    for update in range(num_updates):
        places = np.random.randint(0, len(corpus) - n, size=(batch_size, 1)) + np.arange(n + 1)
        windows = nd.array(corpus[places], ctx=ctx)
        with autograd.record():
            l = loss(mlp(encode(windows[:, :n], vocab_size)), windows[:, n]).mean()  # noqa: E741
        l.backward()
        trainer.set_learning_rate(lr * (1 - update / num_updates))
        trainer.step(1)
    return mlp


def evaluate_ngram(mlp, encode, indices, n):
    """The perplexity of an N-gram model on a text."""
    X, y = ngram_pairs(indices, n)
    total, size = 0.0, 4096
    for i in range(0, len(y), size):
        log_p = nd.log_softmax(mlp(encode(X[i : i + size], vocab_size)).astype("float64"))
        total -= nd.pick(log_p, y[i : i + size]).sum().asscalar()
    return to_perplexity(total / len(y))


ngram_models = {}
for name, encode in encodings.items():
    ngram_models[name] = train_ngram(
        encode, train_indices, scale["ngram_n"], scale["ngram_chars"], scale["ngram_batch"], 0.003
    )
### END SOLUTION

# %% id="ngram-train-check"
assert sorted(ngram_models) == ["ngram_bag", "ngram_sequential"]
assert all(isinstance(example, NGramMLP) for example in ngram_models.values())

# %% [markdown] id="report-text"
# ## 5. The report
#
# Make `report`, a dict with one entry for each of `scratch`, `rnn`, `gru`, `lstm`, `lstm2`,
# `ngram_sequential` and `ngram_bag`, each a dict of four numbers:
#
# | key | meaning |
# |---|---|
# | `train_perplexity` | on the training text; a part of it (`scale["eval_chars"]`) is enough |
# | `test_perplexity` | on the whole test text, measured with the finished model |
# | `num_weights` | how many numbers were learnt, biases included |
# | `num_operations` | multiply-adds to read one character and score the next (forward only) |
#
# **Counting operations.** In $\mathbf{x}W$ each entry of $W$ is multiplied and added exactly once for
# each character, so the count is the total size of the weight *matrices*. Take the products as they
# stand (a one-hot input counts in full, and the additions of biases and the gates' element-wise products
# are left out). For the RNN that is $(VH + H^2) + HV$; a GRU
# has three times the part in brackets, an LSTM four times.
#
# Then print a table, and draw the curves. Which model is best on the test text? How far is it from its
# own training perplexity, and what does that say about training longer? What does each model pay, in
# weights and operations, for what it gains, and what does the bag lose by forgetting the order?

# %% id="report"
### BEGIN SOLUTION


def cost_of(arrays):
    """(weights, multiply-adds per character) of a model with these parameter arrays."""
    arrays = list(arrays)
    return sum(a.size for a in arrays), sum(a.size for a in arrays if len(a.shape) == 2)


seen_text = train_indices[: scale["eval_chars"]]
report = {}
for name, model in {"scratch": ScratchModel(scratch_params), **models}.items():
    arrays = scratch_params if name == "scratch" else [p.data() for p in model.collect_params().values()]
    weights, operations = cost_of(arrays)
    report[name] = {
        "train_perplexity": evaluate_perplexity(model, seen_text, 20, 50, ctx),
        "test_perplexity": evaluate_perplexity(model, test_indices, 20, 50, ctx),
        "num_weights": weights,
        "num_operations": operations,
    }
for name, mlp in ngram_models.items():
    weights, operations = cost_of(p.data() for p in mlp.collect_params().values())
    report[name] = {
        "train_perplexity": evaluate_ngram(mlp, encodings[name], seen_text, scale["ngram_n"]),
        "test_perplexity": evaluate_ngram(mlp, encodings[name], test_indices, scale["ngram_n"]),
        "num_weights": weights,
        "num_operations": operations,
    }

print("model              train    test  test-train  nats/char    weights  operations")
for name, row in sorted(report.items(), key=lambda item: item[1]["test_perplexity"]):
    train, test = row["train_perplexity"], row["test_perplexity"]
    print(
        f"{name:16} {train:7.3f} {test:7.3f} {test - train:11.3f} {math.log(test):10.3f}"
        f" {row['num_weights']:10,} {row['num_operations']:11,}"
    )

figure, axes = plt.subplots(figsize=(6, 3))
for name, curve in curves.items():
    axes.plot(*zip(*curve, strict=True), label=name)
axes.set(xlabel="characters read in training", ylabel="perplexity", ylim=(3, 14))
axes.legend()
### END SOLUTION

# %% id="report-check"
for example_name in ("scratch", *models, *ngram_models):
    print(example_name, {key: round(float(value), 3) for key, value in report[example_name].items()})
    assert {"train_perplexity", "test_perplexity"} <= set(report[example_name])
    assert {"num_weights", "num_operations"} <= set(report[example_name])
    in_words = f"{example_name}: test_perplexity should be at least 1 and below {vocab_size}, which is guessing"
    assert 1 <= report[example_name]["test_perplexity"] < vocab_size, in_words

# %% [markdown] id="report-answer"
# **Your answer** (a person reads it): the best model, its distance from its training perplexity, what each model pays
# for what it gains, what the bag loses.
#
# ### BEGIN SOLUTION
# The table says which model is best on the test text; with enough training it is a gated one. Its distance from its own
# training perplexity is small, which says that it underfits: it has not learnt the training text by heart, and longer
# training would still help. A gap that grows while the training perplexity falls would say the opposite. A GRU has
# three times, an LSTM four times the recurrent weights and operations of the plain RNN with as many units, and a second
# layer adds more still: read off the table whether what they gain is worth that. The bag loses the order of the
# context, and with it most of what the context says: it knows which letters were there, and not which came last.
# ### END SOLUTION

# %% [markdown] id="sample-text"
# ## 6. But Brutus is an honorable man
#
# Let your best model continue Mark Antony's speech: put into `sample_text` the prefix, normalised as the
# text is (`but brutus is an honorable man`), followed by **200 characters** from `predict_rnn_gluon`.
# Always taking the likeliest character soon goes in circles. Why? What would you do instead?

# %% id="sample"
### BEGIN SOLUTION
best = min(models, key=lambda name: report[name]["test_perplexity"])
sample_text = predict_rnn_gluon(
    "but brutus is an honorable man", 200, models[best], vocab_size, ctx, idx_to_char, char_to_idx
)
print(f"{best}: {sample_text}")
### END SOLUTION

# %% id="sample-check"
example = "but brutus is an honorable man"
assert sample_text.startswith(example), f"sample_text should begin with {example!r}"
assert len(sample_text) == len(example) + 200, f"after the prefix come {len(sample_text) - len(example)} characters"

# %% [markdown] id="sample-answer"
# **Your answer** (a person reads it): why it goes in circles, and what you would do instead.
#
# ### BEGIN SOLUTION
# The same state always leads to the same choice, so as soon as the network comes near to a state in which it has been,
# it writes again what it wrote there; and the likeliest characters are those of the commonest words, which lead back to
# themselves. Drawing the next character at random from the softmax, with a temperature or among the few likeliest only,
# leaves the circle; searching for a likely continuation as a whole (beam search) alone does not.
# ### END SOLUTION
