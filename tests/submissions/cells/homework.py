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
# # Language models on Shakespeare, unrolled by hand
#
# I find a network easier to follow when I see every time step. So there is no fused layer in the models that I
# train: each is a cell, and the loop over time is mine. (My `RNNModel` also takes a fused layer, to compare.)

# %%
import math
import os
import random
from pathlib import Path

import mxnet as mx
from mxnet import autograd, gluon, nd
from mxnet.gluon import nn
from mxnet.gluon.rnn import GRUCell, LSTMCell, RecurrentCell, RNNCell, SequentialRNNCell

random.seed(8)
mx.random.seed(8)


def best_device():
    return mx.gpu(0) if mx.context.num_gpus() else mx.cpu()


ctx = best_device()


# %% [markdown]
# ## How much to train
#
# Everything that depends on the profile is in one object. All of them count minibatches, none looks at the clock.


# %%
class Plan:
    def __init__(self, batch_size, num_steps, **minibatches):
        self.batch_size, self.num_steps, self.minibatches = batch_size, num_steps, minibatches


plans = {
    "smoke": Plan(24, 12, scratch=170, rnn=130, gru=90, lstm=105, lstm2=75, mlp=200),
    "cpu": Plan(32, 35, scratch=2000, rnn=2000, gru=1500, lstm=1500, lstm2=1200, mlp=4000),
    "gpu": Plan(32, 35, scratch=6000, rnn=6000, gru=6000, lstm=6000, lstm2=6000, mlp=10000),
}
plan = plans[os.environ.get("HW_PROFILE", "smoke")]

# %% [markdown]
# ## The text
#
# Index 0 goes to the first character that occurs, index 1 to the next new one, and so on.

# %%
data_dir = Path(os.environ.get("HW_DATA_DIR", "data"))
train_text = (data_dir / "train.txt").read_text(encoding="utf-8")
test_text = (data_dir / "test.txt").read_text(encoding="utf-8")

idx_to_char = tuple(dict.fromkeys(train_text + test_text))
char_to_idx = {char: idx for idx, char in enumerate(idx_to_char)}
vocab_size = len(idx_to_char)
num_hiddens = 256
train_indices = [char_to_idx[char] for char in train_text]
test_indices = [char_to_idx[char] for char in test_text]
print(train_text[:60], "...", vocab_size, "characters")

# %% [markdown]
# ## Minibatches


# %%
class data_iter_random:
    """Cuts the corpus into windows and hands them out in a new random order."""

    def __init__(self, corpus_indices, batch_size, num_steps, ctx=None):
        self.corpus, self.batch_size, self.num_steps, self.ctx = corpus_indices, batch_size, num_steps, ctx
        num_windows = (len(corpus_indices) - 1) // num_steps
        self.starts = [window * num_steps for window in range(num_windows)]
        random.shuffle(self.starts)

    def __iter__(self):
        return self

    def __next__(self):
        if len(self.starts) < self.batch_size:
            raise StopIteration
        batch = [self.starts.pop() for _ in range(self.batch_size)]
        X = [self.corpus[start : start + self.num_steps] for start in batch]
        Y = [self.corpus[start + 1 : start + self.num_steps + 1] for start in batch]
        return nd.array(X, ctx=self.ctx), nd.array(Y, ctx=self.ctx)


class Lanes:
    """The corpus laid out in `batch_size` rows of equal length, read from left to right."""

    def __init__(self, corpus_indices, batch_size):
        length = len(corpus_indices) // batch_size
        self.length = length
        self.rows = [list(corpus_indices[row * length : (row + 1) * length]) for row in range(batch_size)]

    def columns(self, begin, end, ctx):
        """X and Y of the columns begin..end-1."""
        X = [row[begin:end] for row in self.rows]
        Y = [row[begin + 1 : end + 1] for row in self.rows]
        return nd.array(X, ctx=ctx), nd.array(Y, ctx=ctx)


def data_iter_consecutive(corpus_indices, batch_size, num_steps, ctx=None):
    lanes = Lanes(corpus_indices, batch_size)
    num_batches = (lanes.length - 1) // num_steps
    return [lanes.columns(i * num_steps, (i + 1) * num_steps, ctx) for i in range(num_batches)]


# %%
for X, Y in data_iter_random(list(range(20)), 2, 4):
    print("random", X.asnumpy().tolist(), Y.asnumpy().tolist())
for X, Y in data_iter_consecutive(list(range(20)), 2, 4):
    print("consecutive", X.asnumpy().tolist(), Y.asnumpy().tolist())

# %% [markdown]
# ## From scratch


# %%
def to_onehot(X, size):
    """One array [B, size] for each column of X."""
    return [nd.one_hot(X[:, t], size) for t in range(X.shape[1])]


def get_params():
    def weight(rows, columns):
        return nd.random.normal(0, 0.01, shape=(rows, columns), ctx=ctx)

    W_xh = weight(vocab_size, num_hiddens)
    W_hh = weight(num_hiddens, num_hiddens)
    b_h = nd.zeros((1, num_hiddens), ctx=ctx)
    W_hq = weight(num_hiddens, vocab_size)
    b_q = nd.zeros((1, vocab_size), ctx=ctx)
    params = (W_xh, W_hh, b_h, W_hq, b_q)
    for param in params:
        param.attach_grad()
    return params


def init_rnn_state(batch_size, num_hiddens, ctx):
    return (nd.zeros(shape=(batch_size, num_hiddens), ctx=ctx),)


def rnn_step(X, H, params):
    W_xh, W_hh, b_h, W_hq, b_q = params
    H = nd.tanh(nd.dot(X, W_xh) + nd.dot(H, W_hh) + b_h)
    return nd.dot(H, W_hq) + b_q, H


def rnn(inputs, state, params):
    (H,) = state
    outputs = []
    for X in inputs:
        Y, H = rnn_step(X, H, params)
        outputs.append(Y)
    return tuple(outputs), (H,)


# %% [markdown]
# ### Clipping, steps, and a running perplexity
#
# Gluon brings a function that measures one norm over many arrays, so I use it.


# %%
def grad_clipping(params, theta, ctx):
    gluon.utils.clip_global_norm([param.grad for param in params], theta, check_isfinite=False)


class SGD:
    def __init__(self, params, lr):
        self.params, self.lr = params, lr

    def step(self):
        for param in self.params:
            param -= self.lr * param.grad


class RunningPerplexity:
    """exp of the mean loss so far."""

    def __init__(self):
        self.nats, self.count = 0.0, 0

    def add(self, mean_loss, count):
        self.nats += float(mean_loss) * count
        self.count += count

    def value(self):
        try:
            return math.exp(self.nats / self.count)
        except OverflowError:
            return math.inf
        except ZeroDivisionError:  # a corpus too short for one minibatch
            return math.nan


cross_entropy = gluon.loss.SoftmaxCrossEntropyLoss()

# %% [markdown]
# ### Prediction
#
# A `Writer` knows the text so far; the network sees one character after the other. As long as there is prefix left
# the next character is the prefix's own, then it is the one with the highest score.


# %%
class Writer:
    def __init__(self, prefix, idx_to_char, char_to_idx):
        self.given = [char_to_idx[char] for char in prefix]
        self.written = self.given[:1]
        self.idx_to_char = idx_to_char

    def last(self, ctx):
        return nd.array([[self.written[-1]]], ctx=ctx)

    def add(self, scores):
        position = len(self.written)
        if position < len(self.given):
            self.written.append(self.given[position])
        else:
            self.written.append(int(scores.argmax(axis=1).asscalar()))

    def text(self, length):
        return "".join(self.idx_to_char[idx] for idx in self.written[:length])


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
    writer = Writer(prefix, idx_to_char, char_to_idx)
    state = init_rnn_state(1, num_hiddens, ctx)
    for _ in range(len(prefix) + num_chars):
        outputs, state = rnn(to_onehot(writer.last(ctx), vocab_size), state, params)
        writer.add(outputs[0])
    return writer.text(len(prefix) + num_chars)


predict_rnn(
    "the ", 5, rnn, get_params(), init_rnn_state, num_hiddens, vocab_size, ctx, idx_to_char, char_to_idx
)

# %% [markdown]
# ### Training
#
# Windows drawn at random have nothing to do with each other, so every minibatch begins with a state of zeros.
# Consecutive ones go on where the last ended, so the state stays, cut from the graph that made it. To cut means to
# *use* what `detach()` returns; a bare `s.detach()` throws it away.


# %%
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
    params = get_params()
    optimizer = SGD(params, lr)
    perplexities = []
    for epoch in range(num_epochs):
        running = RunningPerplexity()
        if is_random_iter:
            minibatches = data_iter_random(corpus_indices, batch_size, num_steps, ctx)
        else:
            minibatches = data_iter_consecutive(corpus_indices, batch_size, num_steps, ctx)
            state = init_rnn_state(batch_size, num_hiddens, ctx)
        for X, Y in minibatches:
            if is_random_iter:
                state = init_rnn_state(batch_size, num_hiddens, ctx)
            else:
                state = tuple(s.detach() for s in state)
            with autograd.record():
                outputs, state = rnn(to_onehot(X, vocab_size), state, params)
                losses = [cross_entropy(output, Y[:, t]) for t, output in enumerate(outputs)]
                loss = nd.concat(*losses, dim=0).mean()
            loss.backward()
            grad_clipping(params, clipping_theta, ctx)
            optimizer.step()
            running.add(loss.asscalar(), X.size)
        perplexities.append(running.value())
        if (epoch + 1) % pred_period == 0:
            print("epoch", epoch + 1, "perplexity", round(running.value(), 3))
            for prefix in prefixes:
                print(
                    "   ",
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


for at_random in (True, False):
    print("at random" if at_random else "in order")
    train_and_predict_rnn(
        rnn,
        get_params,
        init_rnn_state,
        num_hiddens,
        vocab_size,
        ctx,
        train_indices[:3000],
        idx_to_char,
        char_to_idx,
        at_random,
        2,
        20,
        1e2,
        1e-2,
        16,
        1,
        20,
        ["but", "the king"],
    )

# %% [markdown]
# ## Gluon
#
# The layer may be a cell, then I unroll it, or a fused layer, then it unrolls itself. Either way the states of all
# steps end up below each other, step by step, and one dense layer scores them.


# %%
class RNNModel(gluon.Block):
    def __init__(self, rnn_layer, vocab_size, **kwargs):
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.is_cell = isinstance(rnn_layer, RecurrentCell)
        with self.name_scope():
            self.rnn = rnn_layer
            self.dense = nn.Dense(vocab_size, flatten=False)

    def forward(self, inputs, state):
        steps = to_onehot(inputs, self.vocab_size)
        state = list(state)
        if self.is_cell:
            hidden = []
            for X in steps:
                H, state = self.rnn(X, state)
                hidden.append(H)
            hidden = nd.concat(*hidden, dim=0)
        else:
            hidden, state = self.rnn(nd.stack(*steps, axis=0), state)
            hidden = hidden.reshape((-1, hidden.shape[-1]))
        return self.dense(hidden), tuple(state)

    def begin_state(self, batch_size=0, **kwargs):
        return tuple(self.rnn.begin_state(batch_size=batch_size, **kwargs))


def predict_rnn_gluon(prefix, num_chars, model, vocab_size, ctx, idx_to_char, char_to_idx):
    writer = Writer(prefix, idx_to_char, char_to_idx)
    state = model.begin_state(batch_size=1, ctx=ctx)
    for _ in range(len(prefix) + num_chars):
        scores, state = model(writer.last(ctx), state)
        writer.add(scores)
    return writer.text(len(prefix) + num_chars)


def in_time_order(Y):
    """[B, T] -> [T·B], as the model's output is ordered."""
    return nd.concat(*[Y[:, t] for t in range(Y.shape[1])], dim=0)


def train_minibatch(model, trainer, X, Y, state, theta):
    """One step; returns the mean loss and the state to go on with."""
    state = tuple(s.detach() for s in state)
    with autograd.record():
        output, state = model(X, state)
        loss = cross_entropy(output, in_time_order(Y)).mean()
    loss.backward()
    grads = [param.grad() for param in model.collect_params().values()]
    gluon.utils.clip_global_norm(grads, theta, check_isfinite=False)
    trainer.step(1)
    return loss.asscalar(), state


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
    model.initialize(mx.init.Normal(0.01), ctx=ctx, force_reinit=True)
    trainer = gluon.Trainer(model.collect_params(), "sgd", {"learning_rate": lr, "momentum": 0, "wd": 0})
    perplexities = []
    for epoch in range(num_epochs):
        running = RunningPerplexity()
        state = model.begin_state(batch_size=batch_size, ctx=ctx)
        for X, Y in data_iter_consecutive(corpus_indices, batch_size, num_steps, ctx):
            loss, state = train_minibatch(model, trainer, X, Y, state, clipping_theta)
            running.add(loss, X.size)
        perplexities.append(running.value())
        if (epoch + 1) % pred_period == 0:
            print("epoch", epoch + 1, "perplexity", round(running.value(), 3))
            for prefix in prefixes:
                print(
                    "   ",
                    predict_rnn_gluon(prefix, pred_len, model, vocab_size, ctx, idx_to_char, char_to_idx),
                )
    return perplexities


# %% [markdown]
# A short look at whether cell and fused layer are trained alike (they start from different random numbers):

# %%
for layer in (RNNCell(32), gluon.rnn.RNN(32, activation="tanh")):
    print(type(layer).__name__)
    train_and_predict_rnn_gluon(
        RNNModel(layer, vocab_size),
        32,
        vocab_size,
        ctx,
        train_indices[:2000],
        idx_to_char,
        char_to_idx,
        2,
        20,
        1e2,
        1e-2,
        16,
        2,
        20,
        ["but"],
    )

# %% [markdown]
# ## Perplexity, without training
#
# The last, shorter piece of each row counts too: with it the number of characters does not depend on `num_steps`.


# %%
def evaluate_perplexity(model, indices, batch_size, num_steps, ctx):
    lanes = Lanes(indices, batch_size)
    running = RunningPerplexity()
    state = model.begin_state(batch_size=batch_size, ctx=ctx)
    for begin in range(0, lanes.length - 1, num_steps):
        X, Y = lanes.columns(begin, min(begin + num_steps, lanes.length - 1), ctx)
        output, state = model(X, state)
        losses = cross_entropy(output, in_time_order(Y)).asnumpy()
        running.add(losses.mean(dtype="float64"), losses.size)
    return running.value()


# %% [markdown]
# ## Training all of them
#
# The text is read in order, as one endless tape of minibatches.


# %%
class Tape:
    """Consecutive minibatches without end; `fresh` says that the text begins again."""

    def __init__(self, indices, plan):
        self.lanes, self.num_steps, self.begin = Lanes(indices, plan.batch_size), plan.num_steps, 0

    def next(self):
        if self.begin + self.num_steps >= self.lanes.length:
            self.begin = 0
        fresh = self.begin == 0
        X, Y = self.lanes.columns(self.begin, self.begin + self.num_steps, ctx)
        self.begin += self.num_steps
        return X, Y, fresh


def cooling(lr, done, total):
    """Full rate in the first half, then down to a tenth."""
    return lr * min(1.0, 2.0 - 1.9 * done / total)


# %% [markdown]
# First my own network, with Adam from MXNet's optimizers.

# %%
scratch_params = get_params()
adam = mx.optimizer.Adam(learning_rate=3e-3)
update = mx.optimizer.get_updater(adam)
tape, running = Tape(train_indices, plan), RunningPerplexity()
total = plan.minibatches["scratch"]
for done in range(total):
    X, Y, fresh = tape.next()
    state = init_rnn_state(plan.batch_size, num_hiddens, ctx) if fresh else tuple(s.detach() for s in state)
    with autograd.record():
        outputs, state = rnn(to_onehot(X, vocab_size), state, scratch_params)
        loss = cross_entropy(nd.concat(*outputs, dim=0), in_time_order(Y)).mean()
    loss.backward()
    grad_clipping(scratch_params, 1.0, ctx)
    adam.set_learning_rate(cooling(3e-3, done, total))
    for number, param in enumerate(scratch_params):
        update(number, param.grad, param)
    running.add(loss.asscalar(), X.size)
print("perplexity while training:", round(running.value(), 3))


# %%
def two_lstms():
    stack = SequentialRNNCell()
    stack.add(LSTMCell(num_hiddens))
    stack.add(LSTMCell(num_hiddens))
    return stack


models = {
    "rnn": RNNModel(RNNCell(num_hiddens), vocab_size),
    "gru": RNNModel(GRUCell(num_hiddens), vocab_size),
    "lstm": RNNModel(LSTMCell(num_hiddens), vocab_size),
    "lstm2": RNNModel(two_lstms(), vocab_size),
}

for name, model in models.items():
    model.initialize(mx.init.Xavier(), ctx=ctx)
    trainer = gluon.Trainer(model.collect_params(), "adam", {"learning_rate": 5e-3})
    tape, running = Tape(train_indices, plan), RunningPerplexity()
    rate, total = (3e-3 if name == "rnn" else 6e-3), plan.minibatches[name]
    for done in range(total):
        X, Y, fresh = tape.next()
        if fresh:
            state = model.begin_state(batch_size=plan.batch_size, ctx=ctx)
        trainer.set_learning_rate(cooling(rate, done, total))
        loss, state = train_minibatch(model, trainer, X, Y, state, 1.0)
        running.add(loss, X.size)
    print(name, "perplexity while training:", round(running.value(), 3))

# %% [markdown]
# ## The N-gram baseline


# %%
def ngram_pairs(indices, n):
    """X: n characters, y: the one that follows them."""
    columns = [nd.array(indices[shift : len(indices) - n + shift]) for shift in range(n + 1)]
    return nd.stack(*columns[:n], axis=1), columns[n]


def encode_sequential(X, V):
    return nd.concat(*to_onehot(X, V), dim=1)


def encode_bag(X, V):
    return nd.add_n(*to_onehot(X, V))


class NGramMLP(gluon.Block):
    def __init__(self, vocab_size, num_hiddens=256, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.hidden = nn.Dense(num_hiddens)
            self.output = nn.Dense(vocab_size)

    def forward(self, codes):
        return self.output(nd.relu(self.hidden(codes)))


class NGramExperiment:
    def __init__(self, encode, n=4):
        self.encode, self.n = encode, n
        self.net = NGramMLP(vocab_size)
        self.net.initialize(mx.init.Xavier(), ctx=ctx)

    def loss(self, X, y):
        codes = self.encode(X.as_in_context(ctx), vocab_size)
        return cross_entropy(self.net(codes), y.as_in_context(ctx))

    def train(self, indices, num_batches, batch_size=256):
        trainer = gluon.Trainer(self.net.collect_params(), "adam", {"learning_rate": 3e-3})
        for _ in range(num_batches):
            begin = random.randrange(len(indices) - batch_size - self.n)
            X, y = ngram_pairs(indices[begin : begin + batch_size + self.n], self.n)
            with autograd.record():
                loss = self.loss(X, y)
            loss.backward()
            trainer.step(batch_size)

    def perplexity(self, indices):
        running = RunningPerplexity()
        X, y = ngram_pairs(indices, self.n)
        losses = self.loss(X, y).asnumpy()
        running.add(losses.mean(dtype="float64"), losses.size)
        return running.value()


experiments = {"ngram_sequential": NGramExperiment(encode_sequential), "ngram_bag": NGramExperiment(encode_bag)}
for name, experiment in experiments.items():
    experiment.train(train_indices, plan.minibatches["mlp"])

# %% [markdown]
# ## Report
#
# Operations: multiply-adds of all matrix products for one character, so one for every entry of a matrix. Train
# perplexity is measured on a part of the training text half as long as the test text.


# %%
class FromScratch:
    """My own network, dressed up as a model."""

    def begin_state(self, batch_size, ctx):
        return init_rnn_state(batch_size, num_hiddens, ctx)

    def __call__(self, X, state):
        outputs, state = rnn(to_onehot(X, vocab_size), state, scratch_params)
        return nd.concat(*outputs, dim=0), state


def count_weights(arrays):
    return sum(array.size for array in arrays)


def count_operations(arrays):
    return sum(array.size for array in arrays if min(array.shape) > 1 and len(array.shape) == 2)


def block_arrays(block):
    return [param.data() for param in block.collect_params().values()]


report = {}
some_training_text = train_indices[-len(test_indices) // 2 :]


def add_to_report(name, perplexity, arrays):
    report[name] = {
        "train_perplexity": perplexity(some_training_text),
        "test_perplexity": perplexity(test_indices),
        "num_weights": count_weights(arrays),
        "num_operations": count_operations(arrays),
    }


def recurrent_perplexity(model):
    return lambda indices: evaluate_perplexity(model, indices, 100, 50, ctx)


add_to_report("scratch", recurrent_perplexity(FromScratch()), scratch_params)
for name, model in models.items():
    add_to_report(name, recurrent_perplexity(model), block_arrays(model))
for name, experiment in experiments.items():
    add_to_report(name, experiment.perplexity, block_arrays(experiment.net))

for name, row in report.items():
    print(
        f"{name:17s}",
        f"train {row['train_perplexity']:6.2f}  test {row['test_perplexity']:6.2f} ",
        f"test/train {row['test_perplexity'] / row['train_perplexity']:.3f} ",
        f"{row['num_weights']} weights, {row['num_operations']} operations",
    )

# %% [markdown]
# Every model is nearly as good on the test text as on the text it has seen: none is overfitting yet. More weights
# are not what decides at this little training; the two-layer LSTM needs ten times the work of the plain RNN.
#
# ## Some Shakespeare
#
# The likeliest character every time soon runs in circles. Below it, for comparison, the same model when the next
# character is drawn from the (a little sharpened) probabilities.

# %%
best = min(models, key=lambda name: report[name]["test_perplexity"])
opening = "But Brutus is an honorable man".lower()
sample_text = predict_rnn_gluon(opening, 200, models[best], vocab_size, ctx, idx_to_char, char_to_idx)
print(best, ":", sample_text)

# %%
state = models[best].begin_state(batch_size=1, ctx=ctx)
drawn, to_read = opening, opening
for _ in range(200):
    scores, state = models[best](nd.array([[char_to_idx[char] for char in to_read]], ctx=ctx), state)
    probabilities = nd.softmax(scores[-1] * 1.5).asnumpy().tolist()
    to_read = random.choices(idx_to_char, weights=probabilities)[0]
    drawn += to_read
print(best, "drawn:", drawn)
