"""What the weights of a model make of a text: what it answers is held against this, and nobody loses a point by it."""

### BEGIN HIDDEN TESTS
import numpy as np
import oracle

KINDS = {"rnn": ("rnn", 1), "gru": ("gru", 1), "lstm": ("lstm", 1), "lstm2": ("lstm", 2)}
PARTS = ("i2h_weight", "h2h_weight", "i2h_bias", "h2h_bias")
ACTIVATIONS = (np.tanh, lambda values: np.maximum(values, 0))


def scores(model, params, X, V):
    """The scores [T, B, V] of a model on indices X [B, T], in each way in which its parameters can be meant.

    `params` are pairs of a name and an array. None of them, if the model is not built of the usual parts.
    """
    if model == "scratch":
        return _scratch([value for _, value in params], X, V)
    if model not in KINDS:
        return []
    kind, num_layers = KINDS[model]
    parts = [[value for name, value in params if name.endswith(part)] for part in PARTS]
    rest = sorted((value for name, value in params if not name.endswith(PARTS)), key=np.ndim)
    if any(len(values) != num_layers for values in parts) or len(rest) != 2 or parts[1][0].ndim != 2:
        return []
    width = parts[1][0].shape[1]
    rows = oracle.GATES[kind] * width
    for i, layer in enumerate(zip(*parts, strict=True)):
        expected = [(rows, width if i else V), (rows, width), (rows,), (rows,)]
        if [value.shape for value in layer] != expected:
            return []
    if not width or [value.shape for value in rest] != [(V,), (V, width)]:
        return []
    layers, dense = list(zip(*parts, strict=True)), (rest[1], rest[0])
    found = [oracle.gluon_model(kind, layers, dense, X, V)]
    if kind == "rnn":
        (w_xh, w_hh, b_i, b_h), (w_hq, b_q) = layers[0], dense
        found += _scratch([w_xh.T, w_hh.T, b_i + b_h, w_hq.T, b_q], X, V)
    return [one.reshape(X.shape[1], len(X), V) for one in found]


def _scratch(params, X, V):
    """With tanh, and with relu."""
    if len(params) != 5 or params[1].ndim != 2 or not params[1].size:
        return []
    width = params[1].shape[0]
    shapes = [(V, width), (width, width), (width,), (width, V), (V,)]
    if [value.size for value in params] != [int(np.prod(shape)) for shape in shapes]:
        return []
    params = [value.reshape(shape) for value, shape in zip(params, shapes, strict=True)]
    inputs, state = oracle.to_onehot(X, V), np.zeros((len(X), width))
    return [oracle.recurrence(inputs, state, params, activation)[0] for activation in ACTIVATIONS]


### END HIDDEN TESTS
