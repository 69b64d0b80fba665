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
    if any(len(values) != num_layers for values in parts) or parts[1][0].ndim != 2 or not parts[1][0].size:
        return []
    layers, width = list(zip(*parts, strict=True)), parts[1][0].shape[1]
    found = []
    for embedding, dense in _ends([value for name, value in params if not name.endswith(PARTS)], width, V):
        first = embedding.shape[1]
        rows = oracle.GATES[kind] * width
        expected = [[(rows, width if i else first), (rows, width), (rows,), (rows,)] for i in range(num_layers)]
        if [[value.shape for value in layer] for layer in layers] != expected:
            continue
        folded = [(layers[0][0] @ embedding.T, *layers[0][1:]), *layers[1:]]
        found.append(oracle.gluon_model(kind, folded, dense, X, V))
        if kind == "rnn":
            (w_xh, w_hh, b_i, b_h), (w_hq, b_q) = folded[0], dense
            found += _scratch([w_xh.T, w_hh.T, b_i + b_h, w_hq.T, b_q], X, V)
    return [one.reshape(X.shape[1], len(X), V) for one in found]


def _ends(rest, width, V):
    """What stands before the layers, one-hot vectors or an embedding [V, E], and the dense layer behind them."""
    biases = [value for value in rest if value.shape == (V,)]
    tables = [value for value in rest if value.ndim == 2 and len(value) == V]
    if len(biases) != 1 or len(rest) != 1 + len(tables):
        return
    if len(tables) == 1 and tables[0].shape[1] == width:
        yield np.eye(V), (tables[0], biases[0])
    if len(tables) == 2:
        for embedding, weight in (tables, tables[::-1]):
            if weight.shape[1] == width:
                yield embedding, (weight, biases[0])


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
