"""What the checks need inside the student's process: toy models, recorders, readers. Nothing here decides a grade.

No expected value may stand here either: students get this file.
"""

import contextlib
import ctypes
import functools
import itertools
import math
import os
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from mxnet.gluon.rnn import rnn_layer

ALPHABET = " abcdefghijklmnopqrstuvwxyz"
LONGEST_CONTEXT = 20  # characters that an N-gram model may look at
MOST_LAYERS = 8  # whose parameters are kept as they were laid out
BATCH_LIMIT = 500  # minibatches that an iterator may yield before we stop asking
LASTING = ("vocab_size", "num_hiddens", "ctx", "idx_to_char", "char_to_idx", "train_indices", "test_indices")
LASTING += ("scratch_params", "models", "report")  # of the notebook, which measuring leaves as it is
SCRATCH = ("W_xh", "W_hh", "b_h", "W_hq", "b_q")  # the order of scratch_params
# What student code may raise when it is called in a form that it was not written for; NotImplementedError,
# the mark of an unfinished part, is a RuntimeError and goes through.
WRONG_FORM = (mx.base.MXNetError, TypeError, ValueError, AttributeError, AssertionError, LookupError)

notebook: dict = globals().get("notebook", {})  # the loader has put it here, and the next
Missing = globals().get("Missing", LookupError)  # says that the notebook lacks something
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_record: list = []  # what the toy recurrence was fed
_toy: list = []  # its parameters, as numpy arrays


def device():
    """The notebook's context."""
    return notebook.get("ctx") or mx.cpu()


def is_on_ctx(make, *args):
    """Whether make(*args, ctx) makes arrays on a ctx that is not the notebook's: a CPU has many by name.

    Code that cannot be run there is not judged by it.
    """
    ctx = mx.cpu(1) if device().device_type == "cpu" else mx.cpu()
    try:
        made = list(itertools.islice(make(*args, ctx), BATCH_LIMIT))
    except WRONG_FORM:
        return True
    return all(getattr(array, "context", ctx) == ctx for array in flat(made))


# -- values ---------------------------------------------------------------------------------------------------


def itself(value):
    """The value, so that a check can keep it here (`student.keep`) and look at it again later."""
    return value


def make_params(values, grads):
    """Parameters with these values and, in their gradient buffers, these gradients."""
    for param, grad in zip(values, grads, strict=True):
        param.attach_grad()
        grad.copyto(param.grad)
    return values


def grads_of(params):
    """The gradients of parameters, None where none is attached; gluon's parameters too."""
    if hasattr(params, "values"):
        params = params.values()
    return [param.grad() if callable(param.grad) else param.grad for param in params]


def _kind(value):
    return "NDArray" if isinstance(value, nd.NDArray) else type(value).__name__


def describe_params(params):
    """For each parameter [the name of its type, whether a gradient is attached, and reached by `backward`]."""
    return [[_kind(param), _is_reached(param)] for param in params]


def _is_reached(param):
    """Whether `backward` writes into the gradient, which is zero afterwards."""
    if not isinstance(param, nd.NDArray) or param.grad is None:
        return False
    try:
        with autograd.record():
            total = param.sum()
        total.backward()
    except mx.base.MXNetError:  # attached with grad_req="null"
        return False
    is_reached = bool((param.grad != 0).asnumpy().all())
    param.grad[:] = 0
    return is_reached


def collect_batches(iterator, corpus, batch_size, num_steps, ctx):
    """What a data iterator yields, at most BATCH_LIMIT times: [X, Y, type of X, type of Y] each."""
    batches = itertools.islice(iterator(corpus, batch_size, num_steps, ctx), BATCH_LIMIT)
    return [[_as_it_is(X), _as_it_is(Y), _kind(X), _kind(Y)] for X, Y in batches]


def _as_it_is(value):
    """A copy: an iterator may fill the same arrays anew for its next minibatch."""
    return value.copy() if hasattr(value, "copy") else value


def call_in_any_form(function, indices, *args):
    """Call with indices as a float NDArray, else int32 NDArray, else numpy array, else lists; all are in use.

    If a list is given it comes first, and the others in the opposite order.
    """
    as_list = isinstance(indices, list)
    array = nd.array(indices, ctx=device()) if as_list else indices
    whole = array.asnumpy().astype("int64")
    forms = [array, array.astype("int32"), whole, whole.tolist()]
    forms = forms[::-1] if as_list else forms
    return _first_that_works(*(lambda form=form: _computed(function(form, *args)) for form in forms))


def call_and_look(function, indices, *args):
    """[the result of such a call, the indices as they are after it]."""
    return call_in_any_form(lambda form, *rest: [function(form, *rest), form], indices, *args)


def _first_that_works(*attempts):
    """The result of the first attempt that does not raise; if all do, what the first one raised."""
    errors = []
    for attempt in attempts:
        try:
            return attempt()
        except WRONG_FORM as error:
            errors.append(error)
    raise errors[0]


def _computed(value):
    """The value, after waiting for it: MXNet reports errors only then."""
    for part in flat(value):
        if hasattr(part, "wait_to_read"):
            part.wait_to_read()
    return value


# -- one function, alone --------------------------------------------------------------------------------------


def judge_alone(target, helpers, *args):
    """Call `target` while the notebook's helpers of these names are replaced, so that only its own mistakes show.

    `helpers` maps names to callbacks; `data_iter_*` return lists of minibatches, `grad_clipping` takes the list of
    gradients and theta, and returns the list of new gradients.
    """
    before = {name: notebook[name] for name in helpers if name in notebook}
    notebook.update({name: _helper(name, helper) for name, helper in helpers.items()})
    try:
        return target(*args)
    finally:
        for name in helpers:
            notebook.pop(name, None)
        notebook.update(before)


def _helper(name, helper):
    """The helper with the signature of the contract."""
    if name.startswith("data_iter"):
        return lambda corpus_indices, batch_size, num_steps, ctx=None: iter(
            helper(corpus_indices, batch_size, num_steps, ctx)
        )
    if name == "to_onehot":
        return lambda X, size: helper(X, size)
    if name != "grad_clipping":
        return helper

    def clip(params, theta, ctx=None):
        grads = grads_of(params)
        for grad, new in zip(grads, helper(grads, float(theta)), strict=True):
            if grad is None:
                raise ValueError("grad_clipping is handed an array that has no gradient attached.")
            new.copyto(grad)

    return clip


def judge_loop(target, helpers, forget, *args):
    """The same; with the notebook's own helpers if the function asks more of them than the contract says.

    Their numbers may be integers, their minibatches a list, and they may take or return more. `forget` is called
    before each attempt.
    """

    def attempt(replaced):
        forget()
        _record.clear()
        return judge_alone(target, replaced, *args)

    try:
        return attempt(helpers)
    except (*WRONG_FORM, ArithmeticError) as error:
        try:
            return attempt({})
        except Exception:  # noqa: BLE001  whatever it is, the first error says more
            raise error from None


def judge_printing(target, helpers, toy, rest):
    """The same with a toy, else with the notebook's own network: a function that prints may lean on its globals."""
    names = ("rnn", "get_params", "init_rnn_state", "num_hiddens", "vocab_size")
    return _first_that_works(
        lambda: judge_loop(target, helpers, lambda: None, *toy, *rest),
        lambda: judge_loop(target, helpers, lambda: None, *map(notebook.get, names), device(), *rest),
    )


def judge_with_model(target, helpers, begin, step, before, after):
    """The same, where the arguments are `before`, a model made of two callbacks, `after`."""
    return judge_alone(target, helpers, *before, CallbackModel(begin, step), *after)


def judge_evaluate(target, helpers, forget, model, indices, *args):
    """The same for a model, or its two callbacks, and a text in any form; `forget` is called before each attempt."""
    model = PlainModel(*model) if isinstance(model, (list, tuple)) else model

    return call_in_any_form(lambda form, *rest: judge_loop(target, helpers, forget, model, form, *rest), indices, *args)


def judge_measuring(target, helpers, model, indices, *args):
    """[the result, what has changed meanwhile: "indices", "model", names of the notebook] of such a call."""
    for param in model.collect_params().values():
        param.grad()[:] = 1

    def attempt(form, *rest):
        before = look(form)
        result = judge_loop(target, helpers, lambda: None, model, form, *rest)
        after = look(form)
        return [result, [name for name, value in before.items() if value != after[name]]]

    def look(form):
        return {name: _contents(notebook.get(name)) for name in LASTING} | _contents({"indices": form, "model": model})

    return call_in_any_form(attempt, indices, *args)


def _contents(value):
    """Something that compares equal as long as nothing in the value has changed."""
    if isinstance(value, nd.NDArray):
        return _contents(value.asnumpy())
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, dict):
        return {key: _contents(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        is_text = len(value) > 100 and isinstance(value[0], (int, float, str))  # millions of characters, perhaps
        return list(value) if is_text else [_contents(part) for part in value]
    if isinstance(value, gluon.Block):
        return [[name, *_state_of(param)] for name, param in value.collect_params().items()]
    return value if isinstance(value, (int, float, str, mx.Context)) else id(value)


def _state_of(param):
    """The value and the gradient of a parameter, as far as it has them."""
    parts = [param.grad_req]
    for part in (param.data, param.grad):
        try:
            parts.append(_contents(part()))
        except (RuntimeError, mx.base.MXNetError):
            parts.append(None)
    return parts


class PlainModel:
    """A model that is no block; its answers come from two callbacks of the check, which are called as below."""

    def __init__(self, begin, step):
        self._begin, self._step = begin, step

    def begin_state(self, batch_size=1, *_, **__):
        return self._begin(int(batch_size))

    def __call__(self, inputs, state):
        return self._step(inputs, state, autograd.is_recording(), autograd.is_training())


class CallbackModel(gluon.Block):
    """The same as a block."""

    def __init__(self, begin, step):
        super().__init__()
        self._begin, self._step = begin, step

    def begin_state(self, batch_size=1, *_, **__):
        return self._begin(int(batch_size))

    def forward(self, inputs, state):
        return self._step(inputs, state, autograd.is_recording(), autograd.is_training())


# -- a recurrence to train, which is not the one that the homework asks for ---------------------------------


def set_toy(arrays):
    """The values [W_in, W_state, b_state, W_out, b_out] with which the toy recurrence begins; forgets the record."""
    _toy[:] = [array.asnumpy() for array in arrays]
    _record.clear()


def take_record():
    """What the toy recurrence was fed: for each call [inputs [T, B], was a gradient recorded?]."""
    record = list(_record)
    _record.clear()
    return record


def toy_get_params():
    """Fresh parameters, always the same."""
    params = [nd.array(array, ctx=device()) for array in _toy]
    for param in params:
        param.attach_grad()
    return params


def _toy_steps(inputs, state, params):
    """(outputs, new state) of a linear recurrence: it needs its state, and its gradient has a closed form.

    The hidden state is the sum of the state's arrays. All of them lead to the loss: MXNet cannot differentiate an array
    beside the path of a used-up graph.
    """
    w_in, w_state, b_state, w_out, b_out = params
    outputs = []
    for x in inputs:
        hidden = nd.dot(x, w_in) + nd.dot(nd.add_n(*state), w_state) + b_state
        state = [hidden / len(state) for _ in state]
        outputs.append(nd.dot(nd.add_n(*state), w_out) + b_out)
    return outputs, state


def toy_rnn(inputs, state, params):
    """Takes the place of `rnn`: one-hot inputs, T arrays [B, V], and a state -> (T outputs, new state, a list)."""
    inputs = list(inputs)
    with autograd.pause():
        symbols = nd.stack(*[nd.argmax(x, axis=-1) for x in inputs])
    _record.append([symbols.asnumpy(), autograd.is_recording()])
    return _toy_steps(inputs, state[:1], params)


class ToyModel(gluon.Block):
    """Takes the place of an RNNModel; `fixed` parameters begin with the toy's values at every initialisation.

    Its state is two arrays, as an LSTM's is, whose sum is the hidden state.
    """

    def __init__(self, fixed):
        super().__init__()
        names = ("input_weight", "state_weight", "state_bias", "output_weight", "output_bias")
        for name, values in zip(names, _toy, strict=True):
            start = mx.init.Constant(nd.array(values)) if fixed else "zeros" if name.endswith("bias") else None
            self.params.get(name, shape=values.shape, init=start)
        self.num_hiddens, self.vocab_size = _toy[3].shape

    def begin_state(self, batch_size=0, *_, **__):
        return [nd.zeros((batch_size, self.num_hiddens), ctx=device()) for _ in range(2)]

    def forward(self, inputs, state):
        params = [param.data(inputs.context) for param in self.collect_params().values()]
        _record.append([inputs.T.asnumpy(), autograd.is_recording()])
        shapes = [array.shape for array in state]
        if shapes != [(inputs.shape[0], self.num_hiddens)] * 2:  # Gluon's own layers refuse it, too
            raise ValueError(f"A state of two arrays of {len(inputs)} rows was expected, got arrays {shapes}.")
        onehot = [nd.one_hot(column, self.vocab_size) for column in inputs.T]
        outputs, state = _toy_steps(onehot, state, params)
        return nd.concat(*outputs, dim=0), state  # no view of them: it cannot be differentiated either


def make_toy_model(fixed, value=None):
    """A ToyModel, initialised; if a value is given, all its parameters have it."""
    model = ToyModel(fixed)
    model.initialize(ctx=device())
    if value is not None:
        for param in model.collect_params().values():
            param.set_data(nd.full(param.shape, value))
    return model


def read_params(model):
    """The parameters in order: pairs of name and values. Those that no input has shaped are left out."""
    params = model.collect_params().items()
    return [[name, param.data().copy()] for name, param in params if param.shape and min(param.shape)]


# -- Gluon models ---------------------------------------------------------------------------------------------


def make_layer(kind, num_hiddens, num_layers=1, layout="TNC"):
    """A fused layer of kind rnn (tanh), gru, lstm; or, with the layout "cells", cells one above the other."""
    if layout == "cells":
        cell = {"rnn": gluon.rnn.RNNCell, "gru": gluon.rnn.GRUCell, "lstm": gluon.rnn.LSTMCell}[kind]
        stack = gluon.rnn.HybridSequentialRNNCell()
        for _ in range(num_layers):
            stack.add(cell(num_hiddens))
        return stack
    if kind == "rnn":
        return gluon.rnn.RNN(num_hiddens, num_layers, activation="tanh", layout=layout)
    return {"gru": gluon.rnn.GRU, "lstm": gluon.rnn.LSTM}[kind](num_hiddens, num_layers, layout=layout)


def make_rnn_model(kind, num_hiddens, num_layers, layout, vocab_size, seed):
    """The notebook's RNNModel around such a layer, with random weights of a sane size in all parameters."""
    model = notebook["RNNModel"](make_layer(kind, num_hiddens, num_layers, layout), vocab_size)
    model.initialize(ctx=device(), force_reinit=True)
    run_model(model, nd.zeros((1, 1), ctx=device()))
    draw = np.random.RandomState(seed)
    for _, param in sorted(model.collect_params().items()):
        param.set_data(nd.array(draw.uniform(-0.5, 0.5, param.shape)))
    return model


def layouts_that_run(kind, num_hiddens, num_layers, vocab_size):
    """The layouts of make_layer with which the notebook's RNNModel runs; raises what "TNC" raises if none does."""
    working, errors = [], []
    for layout in ("TNC", "NTC", "cells"):
        try:
            model = make_rnn_model(kind, num_hiddens, num_layers, layout, vocab_size, 0)
            run_model(model, nd.zeros((2, 3), ctx=device()))
            working.append(layout)
        except WRONG_FORM as error:
            errors.append(error)
    if not working:
        raise errors[0]
    return working


def run_model(model, inputs, before=None):
    """[output, list of state arrays] of one call, going on from the state of an earlier result if one is given."""
    state = begin_state(model, inputs.shape[0]) if before is None else before[1]
    result = _computed(model(inputs, state))
    if not isinstance(result, (list, tuple)) or len(result) != 2:
        return result
    output, state = result
    return [output, state if isinstance(state, list) else flat(state)]


def begin_state(model, batch_size):
    """A model's first state, however its begin_state wants to be asked."""
    ctx = device()
    return _first_that_works(
        lambda: model.begin_state(batch_size=batch_size, ctx=ctx),
        lambda: model.begin_state(batch_size, ctx),
        lambda: model.begin_state(batch_size),
    )


def flat(state):
    """The arrays of a state, which may be one array or nested lists or tuples."""
    return [array for part in state for array in flat(part)] if isinstance(state, (list, tuple)) else [state]


def gradients_of_model(model, inputs, weights):
    """The gradients of Σ weights · ln softmax(output) for a model's parameters: pairs of name and values."""
    state = begin_state(model, inputs.shape[0])
    with autograd.record(train_mode=False):  # without dropout
        log_p = nd.log_softmax(model(inputs, state)[0])
        total = (weights.astype(log_p.dtype) * log_p).sum()
    total.backward(train_mode=False)
    params = model.collect_params().items()
    return [[name, param.grad()] for name, param in params if param.grad_req != "null" and param.shape]


def first_state_shapes(batch_size, *form):
    """The shapes of the first state of the notebook's RNNModel; none if it cannot be had."""
    try:
        model = make_rnn_model(*form)
        return [list(array.shape) for array in flat(begin_state(model, batch_size))]
    except WRONG_FORM:
        return []


def describe_model(model):
    """A model's parameters, each as its name, its shape, and whether it is learnt; nothing if it is no block."""
    params = model.collect_params() if hasattr(model, "collect_params") else {}
    return [[key, [int(n) for n in param.shape or ()], param.grad_req != "null"] for key, param in params.items()]


def make_mlp(inputs, *args):
    """The notebook's NGramMLP, with random weights that let a difference be seen, always the same."""
    mlp, draw = notebook["NGramMLP"](*args), np.random.RandomState(157)
    mlp.initialize(ctx=device(), force_reinit=True)
    _computed(mlp(inputs))
    for _, param in sorted(mlp.collect_params().items()):
        if param.grad_req != "null":
            param.set_data(nd.array(draw.uniform(-0.5, 0.5, param.shape)))
    return mlp


def multiply_output_layer(block, vocab_size, factor):
    """Multiply the weight and the bias of the layer that makes `vocab_size` outputs."""
    for param in block.collect_params().values():
        if vocab_size in param.shape:
            param.set_data(param.data() * factor)


def learn(block, inputs, labels, num_updates, learning_rate):
    """Losses of a block before and after some updates by Adam on one minibatch, without dropout."""
    nats = gluon.loss.SoftmaxCELoss()
    before = nats(block(inputs), labels).mean()
    trainer = gluon.Trainer(block.collect_params(), "adam", {"learning_rate": learning_rate})
    for _ in range(num_updates):
        with autograd.record():
            mean = nats(block(inputs), labels).mean()
        mean.backward()
        trainer.step(1, ignore_stale_grad=True)
    return [before, nats(block(inputs), labels).mean()]


def gradients_of_rnn(rnn, inputs, state, params, weights):
    """Gradients of Σ_t Σ weights_t · outputs_t with respect to the parameters of the notebook's rnn."""
    for param in params:
        param.attach_grad()
    with autograd.record():
        outputs, _ = rnn(inputs, state, params)
        total = sum((weight * output).sum() for weight, output in zip(weights, outputs, strict=True))
    total.backward()
    return [param.grad for param in params]


# -- lock-step perplexity -------------------------------------------------------------------------------------


class _Window:
    """An N-gram model as one that reads: its state is the last n characters."""

    def __init__(self, mlp, encode, indices, vocab_size):
        self.mlp, self.encode, self.vocab_size = mlp, encode, vocab_size
        given = Path(os.environ["HW_DATA_DIR"], "test.txt").read_text(encoding="utf-8")
        text = indices[[ALPHABET.index(char) for char in given[:2000]]].astype("float32")
        self.n = min(range(1, LONGEST_CONTEXT + 1), key=lambda n: self.nats(text, n))  # only who trained it knows

    def nats(self, text, n):
        """Its mean loss on a text with n characters of context."""
        places = np.arange(len(text) - n)[:, None] + np.arange(n)
        contexts, labels = nd.array(text[places], ctx=device()), nd.array(text[n:], ctx=device())
        try:
            scores = self.mlp(self.encode(contexts, self.vocab_size))
            return float(gluon.loss.SoftmaxCELoss()(scores, labels).mean().asscalar())
        except WRONG_FORM:
            return math.inf

    def begin_state(self, batch_size, *_, **__):
        return nd.zeros((batch_size, self.n), ctx=device())

    def __call__(self, inputs, state):
        window = nd.concat(state, inputs.astype("float32"), dim=1)[:, 1:]
        return self.mlp(self.encode(window, self.vocab_size)), window


_windows = {}


def open_class(known):
    """The names of the notebook's models but for those that are known; its N-gram models are among them."""
    names = [*(notebook.get("models") or {}), *(notebook.get("ngram_models") or {})]
    return [name for name in names if name not in known]


def _model(name, indices, vocab_size):
    """One of the notebook's models, or one of its N-gram models."""
    if name in notebook["models"]:
        return notebook["models"][name]
    ngrams = notebook.get("ngram_models") or {}
    if name not in ngrams:
        raise Missing(f"models[{name!r}]")
    if name not in _windows:  # it keeps nothing of what it reads
        encode = notebook["encode_bag" if name.endswith("bag") else "encode_sequential"]
        _windows[name] = _Window(ngrams[name], encode, indices, vocab_size)
    return _windows[name]


class _Opened:
    """A model in the middle of reading: its state, and how the alphabet maps to its indices."""

    def __init__(self, name, lanes):
        to_index = notebook.get("char_to_idx")
        if not isinstance(to_index, dict):
            pairs = notebook["idx_to_char"]
            pairs = pairs.items() if isinstance(pairs, dict) else enumerate(pairs)
            to_index = {char: index for index, char in pairs}
        self.indices = np.array([int(to_index[char]) for char in ALPHABET])
        self.columns = nd.array(self.indices, ctx=device(), dtype="int32")
        self.inputs = np.zeros(128, "float32")  # what the model is fed for each character, by its code
        self.inputs[[ord(char) for char in ALPHABET]] = self.indices
        self.is_in_order = self.indices.tolist() == list(range(len(ALPHABET)))
        self.lanes, self.has_answered = lanes, False
        self.vocab_size = notebook.get("vocab_size") or len(to_index)
        self.model = None if name == "scratch" else _model(name, self.indices, self.vocab_size)
        self.state = self.before = self.begin(lanes)

    def begin(self, lanes):
        if self.model is not None:
            return begin_state(self.model, lanes)
        width = notebook["scratch_params"][1].shape[0]  # num_hiddens may have changed since
        return notebook["init_rnn_state"](lanes, width, device())

    def advance(self, inputs, state):
        if self.model is not None:
            with _quick_layers():
                return self.model(inputs, state)
        onehot = notebook["to_onehot"](inputs, self.vocab_size)
        return notebook["rnn"](onehot, state, notebook["scratch_params"])

    def joined(self, inputs, state, *_):
        outputs, state = self.advance(inputs, state)
        return nd.concat(*outputs, dim=0), state


@contextlib.contextmanager
def _quick_layers():
    """Spare Gluon's recurrent layers what they do at every call: they lay all their parameters out anew.

    What they compute is the same, bit by bit. Whoever has put a function of their own in the place of one that a layer
    calls, or overrides it in a layer, is not spared anything.
    """
    kernel = rnn_layer._RNNLayer._forward_kernel
    places = (kernel, rnn_layer.__file__), (nd.RNN, "<string>"), (nd._internal._rnn_param_concat, "<string>")
    are_own = all(getattr(getattr(one, "__code__", 0), "co_filename", 0) == file for one, file in places)
    if are_own:
        rnn_layer._RNNLayer._forward_kernel = functools.partialmethod(_forward_kernel, kernel)
    try:
        yield
    finally:
        if are_own:
            rnn_layer._RNNLayer._forward_kernel = kernel


def _forward_kernel(layer, plain, F, inputs, states, sequence_length, **params):
    """Takes the place of the method of that name, where it is sure to answer the same; else calls it."""
    is_inference = F is nd and not autograd.is_recording() and not autograd.is_training()
    is_usual = layer._projection_size is None and not layer._use_sequence_length
    is_spared = is_inference and is_usual and all(map(_is_plain, [inputs, *states]))
    if not is_spared or not all(map(_is_plain, params.values())):
        return plain(layer, F, inputs, states, sequence_length, **params)
    is_batch_first = layer._layout == "NTC"
    outputs, *states = _run_laid_out(layer, params, inputs.swapaxes(0, 1) if is_batch_first else inputs, states)
    return outputs.swapaxes(0, 1) if is_batch_first else outputs, states


def _is_plain(array):
    return type(array) is nd.NDArray and array.context.device_type == "cpu" and array.dtype == np.float32


class _LaidOut:
    """Parameters of a recurrent layer as one vector, and the operators that have prepared themselves for it."""

    def __init__(self, layer, params):
        sides = ["l", "r"][: layer._dir]
        order = itertools.product(("weight", "bias"), range(layer._num_layers), sides, ("i2h", "h2h"))
        names = [f"{side}{i}_{gate}_{kind}" for kind, i, side, gate in order]
        self.params, self.arrays = params, [params[name] for name in names]
        self.vector, self.bytes = _in_rows(self.arrays), [4 * array.size for array in self.arrays]
        self.has_lasted, self.operators = False, {}

    def are_those(self, params):
        """Whether these are the very arrays that were laid out."""
        return params.keys() == self.params.keys() and all(params[name] is self.params[name] for name in params)

    def is_current(self):
        """Whether the vector is still what the arrays hold: their numbers may be changed at any time."""
        place = _address(self.vector)
        for array, length in zip(self.arrays, self.bytes, strict=True):
            if _memcmp(_address(array), place, length):
                return False
            place += length
        return True

    def run(self, layer, inputs, states):
        """[outputs, new states…] of the operator that the layer would call.

        When parameters have lasted for a step, one is made that keeps them in the form in which it needs them.
        """
        attributes = {
            "state_size": layer._hidden_size,
            "num_layers": layer._num_layers,
            "bidirectional": layer._dir == 2,
            "mode": layer._mode,
            "p": layer._dropout,
            "state_outputs": True,
            "lstm_state_clip_min": layer._lstm_state_clip_min,
            "lstm_state_clip_max": layer._lstm_state_clip_max,
            "lstm_state_clip_nan": layer._lstm_state_clip_nan,
        }
        given = [inputs, self.vector, *states]
        if not self.has_lasted:
            return nd.RNN(*given, **attributes)
        key = (*(array.shape for array in given), *attributes.values())
        if key not in self.operators:
            symbol = mx.sym.RNN(*(mx.sym.var(f"input{i}") for i in range(len(given))), **attributes)
            data = [i for i in range(len(given)) if i != 1]
            flags = {"static_alloc": True, "static_shape": True, "data_indices": data, "param_indices": [1]}
            self.operators[key] = nd.CachedOp(symbol, list(flags.items()))
        return self.operators[key](*given)


_laid_out_last: dict = {}  # by the number of the layer


def _run_laid_out(layer, params, inputs, states):
    """[outputs, new states…] with the parameters that a layer has now; they are compared while MXNet works."""
    found = _laid_out_last.get(id(layer))
    if found and found.are_those(params):
        answer = found.run(layer, inputs, states)
        if found.is_current():
            found.has_lasted = True
            return answer
    if id(layer) not in _laid_out_last and len(_laid_out_last) >= MOST_LAYERS:
        _laid_out_last.clear()
    _laid_out_last[id(layer)] = found = _LaidOut(layer, params)
    return found.run(layer, inputs, states)


def _address(array):
    """Where the numbers of an array on the CPU lie, once they are all there."""
    address = ctypes.c_void_p()
    array.wait_to_read()
    mx.base.check_call(mx.base._LIB.MXNDArrayGetData(array.handle, ctypes.byref(address)))
    return address.value


def _arrived(numbers):
    """An NDArray of them; MXNet's own way waits until MXNet has done all that it was asked before."""
    array = nd.empty(numbers.shape, ctx=device(), dtype=numbers.dtype)
    if array.context.device_type == "cpu":
        ctypes.memmove(_address(array), numbers.ctypes.data, numbers.nbytes)
    else:
        array._sync_copyfrom(numbers)
    return array


def _in_rows(arrays):
    """One long vector of several; they are copied by rows, while MXNet's own operator copies number by number."""
    width = math.gcd(*(array.size for array in arrays))
    return nd.concat(*(array.reshape((-1, width)) for array in arrays), dim=0).reshape((-1,))


def load_params(name):
    """Give a model the weights of `<name>.params`, a file that was handed in; raises if they do not fit."""
    path = str(Path(os.environ["HW_CHECKPOINT_DIR"], f"{name}.params"))
    if name != "scratch":
        if name not in notebook["models"]:
            raise Missing(f"models[{name!r}]")
        notebook["models"][name].load_parameters(path, ctx=device())
        return
    arrays, expected = nd.load(path), [param.shape for param in notebook["scratch_params"]]
    if isinstance(arrays, dict):
        arrays = [arrays[key] for key in (SCRATCH if set(arrays) == set(SCRATCH) else arrays)]
    if [array.shape for array in arrays] != expected:
        raise ValueError(f"the arrays in scratch.params have other shapes than scratch_params: {expected}")
    notebook["scratch_params"] = [array.as_in_context(device()) for array in arrays]


def open_model(name, lanes):
    """Begin to read `lanes` texts side by side with one of scratch, rnn, gru, lstm, lstm2."""
    return _Opened(name, lanes)


def step(opened, text):
    """Feed one character of a text to each lane; return the scores of the next, [lanes, 27], in ALPHABET's order."""
    fed = opened.inputs[np.frombuffer(text.encode(), "uint8"), None]
    opened.before = opened.state
    try:
        output, state = _advanced(opened, _arrived(fed))
    except WRONG_FORM:
        if opened.inputs.dtype == np.int32:
            raise
        opened.inputs = opened.inputs.astype("int32")  # a model may look its characters up in a table
        return step(opened, text)
    output = output[-1] if isinstance(output, (list, tuple)) else output
    opened.state, opened.has_answered = state, True
    if opened.is_in_order and type(output) is nd.NDArray and output.shape == (opened.lanes, len(ALPHABET)):
        return output.copy()  # models may write their scores into one array, and others are asked before it is sent
    scores = output.reshape((opened.lanes, -1))
    if opened.is_in_order and isinstance(scores, nd.NDArray) and scores.shape == (opened.lanes, len(ALPHABET)):
        return scores.copy()
    return nd.take(scores, opened.columns, axis=1)


def step_again(opened, text):
    """The last step, of which nothing came: from the state that was there before it."""
    opened.state = opened.before
    return step(opened, text)


def read_alone(name, columns):
    """Feed columns of characters one after the other, with nobody to wait for; nothing comes of it."""
    opened = open_model(name, len(columns[0]))
    for text in columns:
        step(opened, text).asnumpy()


def _advanced(opened, inputs):
    """What comes of a step; of the first one, after waiting for it: which form the model wants is decided by that."""
    result = opened.advance(inputs, opened.state)
    return result if opened.has_answered else _computed(result)


def weights(opened):
    """What the model is made of: its parameters, the index of each symbol of ALPHABET, and the vocabulary's size.

    No parameters, if it is no block.
    """
    params = []
    if opened.model is None:
        params = [[str(i), param] for i, param in enumerate(notebook["scratch_params"])]
    elif hasattr(opened.model, "collect_params"):
        params = read_params(opened.model)
    return [params, opened.indices.tolist(), int(opened.vocab_size)]


def own_perplexity(name, symbols, lanes=20, steps=50):
    """What the notebook's evaluate_perplexity says of one of its models on a text of ALPHABET; None if it fails."""
    opened = open_model(name, 1)
    model = PlainModel(opened.begin, opened.joined) if opened.model is None else opened.model
    text = opened.indices[symbols.asnumpy().astype(int)].tolist()

    def evaluate(indices):
        return float(notebook["evaluate_perplexity"](model, indices, lanes, steps, device()))

    try:
        return call_in_any_form(evaluate, text)
    except Exception:  # noqa: BLE001  whatever is wrong with it is judged elsewhere
        return None
