"""Reads text with the notebook's own models: character by character, each score given before the next is shown."""

import functools

import numpy as np
import oracle
from expect import Mistake, as_array, as_dict, decoding

ALPHABET = " abcdefghijklmnopqrstuvwxyz"  # the order in which symbols and scores cross
LANES, STEPS, WARM_UP = 40, 14, 4  # places of the text; characters read at each; those whose scores do not count
GUESSING = float(np.log(len(ALPHABET)))  # nats per character


@functools.cache
def read(student, name, text):
    """(scores [S, B, 27], the characters that came [S, B]) of one of scratch, rnn, gru, lstm, lstm2 on a text."""
    starts = np.arange(LANES) * ((len(text) - STEPS) // LANES)
    symbols = symbols_of(text)[starts + np.arange(STEPS + 1)[:, None]]
    opened = student.keep(student.stubs.ref("open_model"), name, LANES)
    what, shape = f"what {name} makes of one character in each of {LANES} texts", (LANES, len(ALPHABET))
    columns = ["".join(ALPHABET[symbol] for symbol in column) for column in symbols[:-1]]
    scores = [as_array(student.stubs.step(opened, column), what, shape) for column in columns]
    return np.stack(scores[WARM_UP:]), symbols[WARM_UP + 1 :]


def symbols_of(text):
    """Characters as their places in the alphabet."""
    return np.array([ALPHABET.index(char) for char in text])


def nats_per_char(student, name, text):
    """The mean of −ln p(x_t | x_<t): ln of the perplexity."""
    scores, labels = read(student, name, text)
    return float(oracle.nats(scores, labels).mean())


def described_params(student, name):
    """The parameters of one of the notebook's `models`, each as its name, its shape, and whether it is learnt."""
    model = as_dict(student.get("models"), "models", [name])[name]
    params = as_shapes(student.stubs.describe_model(model), f"models[{name!r}]")
    if not params:
        raise Mistake("wrong_type", f"models[{name!r}] should be a Gluon block with parameters.")
    return params


def as_shapes(described, what):
    """The same of what stubs.describe_model says."""
    with decoding(f"The description of {what}"):
        params = [(str(key), tuple(int(n) for n in shape), bool(learnt)) for key, shape, learnt in described]
    is_sane = all(len(shape) <= 8 and all(0 <= n < 1 << 32 for n in shape) for _, shape, _ in params)
    assert is_sane, f"{what} has parameters of impossible shapes."
    return params
