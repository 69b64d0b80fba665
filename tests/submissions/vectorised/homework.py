# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Homework 8: a character RNN, as few loops as possible
#
# The rule I set myself: every step that can be one array operation is one array operation.

# %%
import os
import time

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, init, nd
from mxnet.gluon import nn
from mxnet.gluon import rnn as layers
from numpy.lib.stride_tricks import sliding_window_view

np.random.seed(157)
mx.random.seed(157)

ctx = mx.gpu() if mx.context.num_gpus() > 0 else mx.cpu()
profile = os.environ.get("HW_PROFILE", "smoke")
folder = os.environ.get("HW_DATA_DIR", "data")

# %% [markdown]
# ## Reading the plays
#
# Both texts become integer vectors in one go. The vocabulary comes from the training text only.


# %%
def read(name):
    with open(os.path.join(folder, name), encoding="utf-8") as handle:
        return handle.read()


train_text, test_text = read("train.txt"), read("test.txt")
alphabet, train_ids = np.unique(np.array(list(train_text)), return_inverse=True)
test_ids = np.searchsorted(alphabet, np.array(list(test_text)))

idx_to_char = dict(enumerate(alphabet.tolist()))
char_to_idx = {c: i for i, c in idx_to_char.items()}
vocab_size = len(idx_to_char)
num_hiddens = 256
print(f"{len(train_ids)} training and {len(test_ids)} test characters, {vocab_size} symbols, {ctx}")

# %% [markdown]
# ## One-hot
#
# The whole minibatch is encoded at once as [T, B, V] and cut along time.


# %%
def cut(block, num_pieces):
    """[num_pieces, ...] -> list of num_pieces arrays [...]; `split` alone returns no list for one piece."""
    pieces = nd.split(block, num_outputs=num_pieces, axis=0, squeeze_axis=True)
    return list(pieces) if num_pieces > 1 else [pieces]


def to_onehot(X, size):
    return cut(nd.one_hot(X.T, size), X.shape[1])


to_onehot(nd.array([[0, 1], [2, 3]]), 5)

# %% [markdown]
# ## Minibatches
#
# Random: all windows of `num_steps + 1` characters as one strided view, shuffled by an index.
# Consecutive: one reshape to [rows, batches, steps].


# %%
def data_iter_random(corpus_indices, batch_size, num_steps, ctx=None):
    corpus = np.asarray(corpus_indices, dtype="int32")
    offset = np.random.randint(num_steps)
    windows = sliding_window_view(corpus, num_steps + 1)[offset::num_steps]
    order = np.random.permutation(len(windows))
    num_batches = len(windows) // batch_size
    for chosen in order[: num_batches * batch_size].reshape(num_batches, batch_size):
        batch = nd.array(windows[chosen], ctx=ctx, dtype="int32")
        yield batch[:, :-1], batch[:, 1:]


def data_iter_consecutive(corpus_indices, batch_size, num_steps, ctx=None):
    corpus = np.asarray(corpus_indices, dtype="int32")
    length = (len(corpus) - 1) // batch_size
    num_batches = length // num_steps

    def blocks(series):
        rows = series[: batch_size * length].reshape(batch_size, length)[:, : num_batches * num_steps]
        return rows.reshape(batch_size, num_batches, num_steps).swapaxes(0, 1)

    for X, Y in zip(blocks(corpus), blocks(corpus[1:])):
        yield nd.array(X, ctx=ctx, dtype="int32"), nd.array(Y, ctx=ctx, dtype="int32")


for X, Y in data_iter_consecutive(range(30), 2, 6, ctx):
    print(X.asnumpy().tolist(), Y.asnumpy().tolist())

# %% [markdown]
# ## The recurrent network
#
# Only the recurrence itself needs a loop over time. What goes in and what comes out does not:
# all T inputs are multiplied with `W_xh` together, all T states with `W_hq` together.


# %%
def get_params():
    shapes = [
        (vocab_size, num_hiddens),
        (num_hiddens, num_hiddens),
        (num_hiddens,),
        (num_hiddens, vocab_size),
        (vocab_size,),
    ]
    params = [
        nd.random.normal(scale=0.01, shape=shape, ctx=ctx) if len(shape) == 2 else nd.zeros(shape, ctx=ctx)
        for shape in shapes
    ]
    for param in params:
        param.attach_grad()
    return params


def init_rnn_state(batch_size, num_hiddens, ctx):
    return [nd.zeros((batch_size, num_hiddens), ctx=ctx)]


def rnn(inputs, state, params):
    W_xh, W_hh, b_h, W_hq, b_q = params
    num_steps = len(inputs)
    driven = nd.dot(nd.concat(*inputs, dim=0), W_xh) + b_h.reshape((1, -1))
    H = state[0]
    trace = []
    for drive in cut(driven.reshape((num_steps, -1, W_xh.shape[1])), num_steps):
        H = nd.tanh(drive + nd.dot(H, W_hh))
        trace.append(H)
    scores = nd.dot(nd.concat(*trace, dim=0), W_hq) + b_q.reshape((1, -1))
    return cut(scores.reshape((num_steps, -1, W_hq.shape[1])), num_steps), [H]


outputs, state = rnn(
    to_onehot(nd.zeros((2, 3), ctx=ctx), vocab_size), init_rnn_state(2, num_hiddens, ctx), get_params()
)
len(outputs), outputs[0].shape, state[0].shape

# %% [markdown]
# ## Prediction
#
# The prefix goes in as one sequence, which leaves the state warmed up and the scores for the first new
# character in the last output. From there on each argmax is fed back.


# %%
def predict_rnn(
    prefix,
    num_chars,
    rnn,
    params,
    init_rnn_state,
    num_hiddens,
    vocab_size,
    ctx,
    idx_to_char,
    char_to_idx,
):
    state = init_rnn_state(1, num_hiddens, ctx)
    fed = [char_to_idx[c] for c in prefix]
    text = prefix
    for _ in range(num_chars):
        outputs, state = rnn(to_onehot(nd.array([fed], ctx=ctx), vocab_size), state, params)
        best = int(outputs[-1].argmax(axis=1).asscalar())
        text += idx_to_char[best]
        fed = [best]
    return text


predict_rnn(
    "but", 10, rnn, get_params(), init_rnn_state, num_hiddens, vocab_size, ctx, idx_to_char, char_to_idx
)

# %% [markdown]
# ## Clipping
#
# $g \leftarrow \min(1, \theta / \|g\|)\, g$, where $g$ is all gradients glued into one vector. The factor stays
# on the device, so that nothing waits for the host.


# %%
def grad_clipping(params, theta, ctx):
    g = nd.concat(*[param.grad.reshape((-1,)) for param in params], dim=0)
    factor = nd.minimum(1.0, theta / nd.maximum(nd.dot(g, g).sqrt(), 1e-30))
    for param in params:
        flat = nd.broadcast_mul(param.grad.reshape((-1,)), factor)
        param.grad[:] = flat.reshape(param.grad.shape)


# %% [markdown]
# ## Loss, gradient step, training
#
# Cross-entropy by hand: shift by the largest score, subtract the log of the summed exponentials, pick.


# %%
def negative_log_likelihood(scores, y):
    """scores [N, V], y [N] -> [N], in nats."""
    shifted = scores - nd.BlockGrad(scores.max(axis=1, keepdims=True))
    log_p = shifted - shifted.exp().sum(axis=1, keepdims=True).log()
    return -nd.pick(log_p, y.astype("float32"), axis=1)


def descend(params, lr):
    for param in params:
        param[:] = param - lr * param.grad


def perplexity_of(total_nats, count):
    with np.errstate(over="ignore"):
        return float(np.exp(np.float64(total_nats) / max(count, 1)))


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
    batches = data_iter_random if is_random_iter else data_iter_consecutive
    params = get_params()
    perplexities = []
    for epoch in range(1, num_epochs + 1):
        started = time.time()
        state = init_rnn_state(batch_size, num_hiddens, ctx)
        losses = []
        for X, Y in batches(corpus_indices, batch_size, num_steps, ctx):
            if is_random_iter:
                state = init_rnn_state(batch_size, num_hiddens, ctx)
            # detach() gives back a cut copy: the copy is what has to be carried on
            state = [s.detach() for s in state]
            with autograd.record():
                outputs, state = rnn(to_onehot(X, vocab_size), state, params)
                loss = negative_log_likelihood(nd.concat(*outputs, dim=0), Y.T.reshape((-1,))).mean()
            loss.backward()
            grad_clipping(params, clipping_theta, ctx)
            descend(params, lr)
            losses.append(loss)
        # minibatches all have one size, so the mean over characters is the mean over minibatches
        nats = np.array([loss.asscalar() for loss in losses], dtype="float64")
        perplexities.append(perplexity_of(nats.sum(), len(nats)))
        if epoch % pred_period == 0:
            print(f"epoch {epoch}: perplexity {perplexities[-1]:.3f}, {time.time() - started:.2f} s")
            for prefix in prefixes:
                print(
                    " >",
                    predict_rnn(
                        prefix,
                        pred_len,
                        rnn,
                        params,
                        init_rnn_state,
                        num_hiddens,
                        vocab_size,
                        ctx,
                        idx_to_char,
                        char_to_idx,
                    ),
                )
    return params, perplexities


# %% [markdown]
# ### Training from scratch
#
# Plain SGD with the gradient clipped to length 0.3: quick at first, then once more over fresh text with a smaller
# step. Sampling in order carries the state on; sampling at random is tried below for comparison.

# %%
if profile == "smoke":
    batch_size, num_steps, num_fit, num_ngram = 16, 25, 140, 250
    scratch_plan = [(4.0, 100), (1.5, 60)]
else:
    batch_size, num_steps, num_fit, num_ngram = 32, 35, 1800, 6000
    scratch_plan = [(4.0, 1500), (1.5, 1000), (0.5, 500)]

starts = ["traveller", "but brutus"]
scratch_params, position = None, 0
for lr, minibatches in scratch_plan:
    span = minibatches * batch_size * num_steps + batch_size + 1
    piece = np.take(train_ids, np.arange(position, position + span), mode="wrap")
    scratch_params, perplexities = train_and_predict_rnn(
        rnn,
        get_params if scratch_params is None else lambda: scratch_params,
        init_rnn_state,
        num_hiddens,
        vocab_size,
        ctx,
        piece,
        idx_to_char,
        char_to_idx,
        False,
        1,
        num_steps,
        lr,
        0.3,
        batch_size,
        1,
        40,
        starts,
    )
    position += span

# %%
_, random_perplexities = train_and_predict_rnn(
    rnn,
    get_params,
    init_rnn_state,
    num_hiddens,
    vocab_size,
    ctx,
    train_ids[:4001],
    idx_to_char,
    char_to_idx,
    True,
    2,
    num_steps,
    1.0,
    1.0,
    batch_size,
    2,
    20,
    starts,
)
random_perplexities

# %% [markdown]
# ## Gluon
#
# One hybrid block around any fused recurrent layer. The output layer sees all T·B states as one matrix.


# %%
class RNNModel(gluon.HybridBlock):
    def __init__(self, rnn_layer, vocab_size, **kwargs):
        super().__init__(**kwargs)
        self._vocab_size = vocab_size
        with self.name_scope():
            self.rnn = rnn_layer
            self.out = nn.Dense(vocab_size)

    def hybrid_forward(self, F, inputs, state):
        coded = F.one_hot(F.transpose(F.cast(inputs, "float32")), self._vocab_size)
        hidden, state = self.rnn(coded, state)
        return self.out(F.reshape(hidden, shape=(-3, 0))), state

    def begin_state(self, *args, **kwargs):
        return self.rnn.begin_state(*args, **kwargs)


def predict_rnn_gluon(prefix, num_chars, model, vocab_size, ctx, idx_to_char, char_to_idx):
    state = model.begin_state(batch_size=1, ctx=ctx)
    fed = [char_to_idx[c] for c in prefix]
    text = prefix
    for _ in range(num_chars):
        scores, state = model(nd.array([fed], ctx=ctx), state)
        best = int(scores[-1].argmax(axis=0).asscalar())
        text += idx_to_char[best]
        fed = [best]
    return text


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
    model.initialize(init.Normal(0.01), ctx=ctx, force_reinit=True)
    perplexities = []
    for epoch in range(1, num_epochs + 1):
        started = time.time()
        state = model.begin_state(batch_size=batch_size, ctx=ctx)
        losses = []
        for X, Y in data_iter_consecutive(corpus_indices, batch_size, num_steps, ctx):
            state = [s.detach() for s in state]
            with autograd.record():
                scores, state = model(X, state)
                loss = negative_log_likelihood(scores, Y.T.reshape((-1,))).mean()
            loss.backward()
            params = [param.data(ctx) for param in model.collect_params().values()]
            grad_clipping(params, clipping_theta, ctx)
            descend(params, lr)
            losses.append(loss)
        nats = np.array([loss.asscalar() for loss in losses], dtype="float64")
        perplexities.append(perplexity_of(nats.sum(), len(nats)))
        if epoch % pred_period == 0:
            print(f"epoch {epoch}: perplexity {perplexities[-1]:.3f}, {time.time() - started:.2f} s")
            for prefix in prefixes:
                print(
                    " >", predict_rnn_gluon(prefix, pred_len, model, vocab_size, ctx, idx_to_char, char_to_idx)
                )
    return perplexities


small = RNNModel(layers.RNN(32), vocab_size)
train_and_predict_rnn_gluon(
    small,
    32,
    vocab_size,
    ctx,
    train_ids[:4001],
    idx_to_char,
    char_to_idx,
    2,
    num_steps,
    1.0,
    1.0,
    batch_size,
    2,
    20,
    starts,
)

# %% [markdown]
# ## Perplexity on text the model has not learnt from
#
# $\exp\left(-\frac1N \sum_t \ln p(x_t \mid x_{<t})\right)$: the sum runs in double precision, nothing is recorded,
# the state is carried from one block of columns to the next.


# %%
def evaluate_perplexity(model, indices, batch_size, num_steps, ctx):
    state = model.begin_state(batch_size=batch_size, ctx=ctx)
    total, count = np.float64(0), 0
    for X, Y in data_iter_consecutive(indices, batch_size, num_steps, ctx):
        scores, state = model(X, state)
        nats = negative_log_likelihood(scores, Y.T.reshape((-1,))).asnumpy().astype("float64")
        total += nats.sum()
        count += nats.size
    return perplexity_of(total, count)


# %% [markdown]
# ## The four recurrent models
#
# Same recipe for all: Adam, Xavier start, clipping at norm 1, learning rate falling in a straight line. The loops
# count minibatches, so that the result does not depend on how fast the machine is.


# %%
def fit(model, num_batches, lr=5e-3):
    model.initialize(init.Xavier(), ctx=ctx, force_reinit=True)
    model.hybridize()
    trainer = gluon.Trainer(model.collect_params(), "adam", {"learning_rate": lr})
    done = 0
    while done < num_batches:
        state = model.begin_state(batch_size=batch_size, ctx=ctx)
        for X, Y in data_iter_consecutive(train_ids, batch_size, num_steps, ctx):
            if done == num_batches:
                break
            trainer.set_learning_rate(lr * (1 - 0.9 * done / num_batches))
            state = [s.detach() for s in state]
            with autograd.record():
                scores, state = model(X, state)
                loss = negative_log_likelihood(scores, Y.T.reshape((-1,))).mean()
            loss.backward()
            grad_clipping([param.data(ctx) for param in model.collect_params().values()], 1.0, ctx)
            trainer.step(1)
            done += 1
    return model


models = {
    "rnn": RNNModel(layers.RNN(num_hiddens), vocab_size),
    "gru": RNNModel(layers.GRU(num_hiddens), vocab_size),
    "lstm": RNNModel(layers.LSTM(num_hiddens), vocab_size),
    "lstm2": RNNModel(layers.LSTM(num_hiddens, num_layers=2), vocab_size),
}
test_perplexity = {}
for name, model in models.items():
    started = time.time()
    fit(model, num_fit, 3e-3 if name == "rnn" else 5e-3)
    test_perplexity[name] = evaluate_perplexity(model, test_ids, 20, 100, ctx)
    print(f"{name}: test perplexity {test_perplexity[name]:.3f}, {time.time() - started:.1f} s")

# %% [markdown]
# ## N-grams without recurrence
#
# The pairs are one strided view; the encodings are one `one_hot`, either laid side by side (order kept) or summed
# (order lost).


# %%
def ngram_pairs(indices, n):
    windows = sliding_window_view(np.asarray(indices, dtype="int32"), n + 1)
    return windows[:, :n], windows[:, n]


def encode_sequential(X, V):
    return nd.one_hot(nd.array(X), V).reshape((X.shape[0], -1))


def encode_bag(X, V):
    return nd.one_hot(nd.array(X), V).sum(axis=1)


class NGramMLP(nn.HybridSequential):
    def __init__(self, vocab_size, num_hiddens=256, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.add(nn.Dense(num_hiddens, activation="relu"), nn.Dense(vocab_size))


def ngram_perplexity(net, encode, indices, n):
    X, y = ngram_pairs(indices, n)
    scores = net(encode(X, vocab_size).as_in_context(ctx))
    nats = negative_log_likelihood(scores, nd.array(y, ctx=ctx)).asnumpy().astype("float64")
    return perplexity_of(nats.sum(), nats.size)


n = 5
X_all, y_all = ngram_pairs(train_ids, n)
ngrams = {"ngram_sequential": encode_sequential, "ngram_bag": encode_bag}
ngram_models = {}
for name, encode in ngrams.items():
    net = NGramMLP(vocab_size)
    net.initialize(init.Xavier(), ctx=ctx)
    net.hybridize()
    trainer = gluon.Trainer(net.collect_params(), "adam", {"learning_rate": 2e-3})
    for rows in np.random.randint(len(X_all), size=(num_ngram, 256)):
        codes, targets = encode(X_all[rows], vocab_size).as_in_context(ctx), nd.array(y_all[rows], ctx=ctx)
        with autograd.record():
            loss = negative_log_likelihood(net(codes), targets).mean()
        loss.backward()
        trainer.step(1)
    ngram_models[name] = net
    test_perplexity[name] = ngram_perplexity(net, encode, test_ids, n)
    print(name, round(test_perplexity[name], 3))

# %% [markdown]
# ## Comparison
#
# `num_operations` counts multiply-adds for one predicted character: one for each entry of each weight matrix.
# The model from scratch goes through the same calculator, in a wrapper with `begin_state` and a call.


# %%
class Scratch:
    def begin_state(self, batch_size, ctx):
        return init_rnn_state(batch_size, num_hiddens, ctx)

    def __call__(self, X, state):
        outputs, state = rnn(to_onehot(X, vocab_size), state, scratch_params)
        return nd.concat(*outputs, dim=0), state


def sizes(arrays):
    shapes = [array.shape for array in arrays]
    weights = sum(int(np.prod(shape)) for shape in shapes)
    return weights, sum(int(np.prod(shape)) for shape in shapes if len(shape) == 2)


report = {}
train_sample = train_ids[: len(test_ids)]
for name, model in {"scratch": Scratch(), **models}.items():
    arrays = scratch_params if name == "scratch" else [p.data(ctx) for p in model.collect_params().values()]
    num_weights, num_operations = sizes(arrays)
    report[name] = {
        "train_perplexity": evaluate_perplexity(model, train_sample, 20, 100, ctx),
        "test_perplexity": test_perplexity.get(name) or evaluate_perplexity(model, test_ids, 20, 100, ctx),
        "num_weights": num_weights,
        "num_operations": num_operations,
    }
for name, net in ngram_models.items():
    num_weights, num_operations = sizes([p.data(ctx) for p in net.collect_params().values()])
    report[name] = {
        "train_perplexity": ngram_perplexity(net, ngrams[name], train_sample, n),
        "test_perplexity": test_perplexity[name],
        "num_weights": num_weights,
        "num_operations": num_operations,
    }
for name, row in report.items():
    gap = np.log(row["test_perplexity"] / row["train_perplexity"])
    print(
        f"{name:17s} train {row['train_perplexity']:7.3f}  test {row['test_perplexity']:7.3f}  gap {gap:+.3f} nats"
        f"  {row['num_weights']:7d} weights  {row['num_operations']:7d} operations"
    )

# %% [markdown]
# Train and test are close: with so few passes over the text no model has had the time to learn it by heart. The
# gated models pay four (LSTM) or three (GRU) times the operations of the plain network for each character. The bag
# throws the order of the letters away and pays for it.

# %%
recurrent = min(models, key=lambda name: test_perplexity[name])
sample_text = predict_rnn_gluon(
    "But Brutus is an honorable man".lower(), 200, models[recurrent], vocab_size, ctx, idx_to_char, char_to_idx
)
print(recurrent, "|", sample_text)
