"""Fakes on the grader's side: a table-driven language model in the forms that predict and evaluate functions take."""

import numpy as np
from expect import (
    as_arrays,
    as_count,
    as_dict,
    as_indices,
    as_state,
    as_text,
    callback,
    decoding,
    first_zeros,
    kind,
    zeros_for,
)
from oracle import TableMachine, consecutive_minibatches

LETTERS = "abcdefghijklmnopqrstuvwxyz"  # no capitals, no space: a notebook may normalise its prefix


def alphabet(student, rng, vocab_size):
    """idx_to_char, of the type that the notebook uses, and char_to_idx, in a random order."""
    chars = [LETTERS[i] for i in rng.permutation(len(LETTERS))[:vocab_size]]
    own = student.get("idx_to_char") if student.has("idx_to_char") else None
    index = {char: i for i, char in enumerate(chars)}
    return (dict(enumerate(chars)) if isinstance(own, dict) else chars), index


class Reader:
    """Runs a TableMachine and remembers what it was fed; its state travels as an array filled with one number."""

    def __init__(self, rng, vocab_size):
        self.machine = TableMachine(rng, vocab_size)
        self.forget()

    def forget(self):
        """Nothing has been read yet."""
        self.fed = []  # arrays [T, B]
        self.scores = []  # [T, B, V] of each call, where a model keeps them
        self.went_on = []  # for each call: was it handed the state that the call before returned?
        self.flags = []  # for each call: (was a gradient recorded?, was it in training mode?)
        self._last = None

    def read(self, symbols, states):
        """Symbols [T, B] and the state numbers [B] -> (scores [T, B, V], state numbers)."""
        self.went_on.append(self._last is not None and list(states) == self._last)
        self.fed.append(symbols)
        scores, states = [], list(states)
        for row in symbols:
            steps = [self.machine.advance(state, symbol) for state, symbol in zip(states, row, strict=True)]
            scores.append([score for score, _ in steps])
            states = [state for _, state in steps]
        self._last = states
        return np.array(scores), states

    def decode(self, array):
        """The state numbers in an array [..., B, H]."""
        numbers = array.reshape(-1, *array.shape[-2:])[0, :, 0]
        known = np.isin(numbers, np.arange(self.machine.num_states)) & (array == numbers[:, None]).all(axis=-1)
        assert known.all(), "The model was handed a state that neither begins a text nor was returned by the model."
        return [int(number) for number in numbers]

    def assert_text(self, text, name, letters, prefix, num_chars):
        """The text is the greedy continuation of the prefix; otherwise say what went wrong on the way."""
        expected = "".join(letters[i] for i in self.machine.greedy(prefix, num_chars))
        text, words = as_text(text, f"What {name} returns"), expected[: len(prefix)]
        call = f"{name}({words!r}, {num_chars}, ...)"
        if text == expected:
            return
        assert len(text) == len(expected), f"{call} gave {len(text)} characters, expected {len(expected)}."
        assert text.startswith(words), f"{call} gave {text!r}, which does not begin with the prefix."
        fed = [int(i) for array in self.fed for i in array[:, 0]]
        seen = "".join(letters[i] for i in fed)
        assert fed[: len(prefix)] == prefix, (
            f"{call} fed {seen[: len(prefix)]!r} to warm up, where all of {words!r} should come first."
        )
        assert all(self.went_on[1:]), f"{call} does not hand each call the state that the call before returned."
        raise AssertionError(
            f"{call} gave {text!r}, expected {expected!r}: take the symbol with the largest score in the last output."
        )


class TableRnn(Reader):
    """In the form of `rnn` and `init_rnn_state`."""

    def __init__(self, rng, vocab_size, num_hiddens):
        super().__init__(rng, vocab_size)
        self.num_hiddens = num_hiddens
        self.init_rnn_state = zeros_for(1, num_hiddens)
        self.rnn = callback("rnn", self._rnn)

    def _rnn(self, inputs, state, params):
        """T one-hot arrays [1, V] and a state -> (T outputs, the new state)."""
        count = len(inputs) if hasattr(inputs, "__len__") else 0
        assert count, f"The inputs handed to rnn should be a list of arrays, but are {kind(inputs)}."
        what = "the list of inputs handed to rnn"
        inputs = np.stack(as_arrays(inputs, what, count, (1, self.machine.vocab_size)))
        is_onehot = (inputs.sum(axis=-1) == 1).all() and (inputs.max(axis=-1) == 1).all()
        assert is_onehot, "The inputs handed to rnn should be one-hot."
        array = as_state(state, "the state handed to rnn", (1, self.num_hiddens))
        scores, states = self.read(inputs.argmax(axis=-1), self.decode(array))
        return list(scores.astype("float32")), (np.full((1, self.num_hiddens), states[0], "float32"),)


class TableModel(Reader):
    """In the form of a Gluon model, as the two callbacks of `stubs.CallbackModel`."""

    def __init__(self, rng, vocab_size, scale=1.0):
        super().__init__(rng, vocab_size)
        self.scale = scale
        self.begin, self.step = callback("begin_state", first_zeros), callback("model", self._step)

    def _step(self, inputs, state, is_recording, is_training):
        """Inputs [B, T] and a state -> (scores [T·B, V], the new state)."""
        symbols = as_indices(inputs, "The input handed to the model, [B, T],", self.machine.vocab_size).T
        self.flags.append((is_recording, is_training))
        shape = (1, symbols.shape[1], 2)
        array = as_state(state, "the state handed to the model", shape)
        scores, states = self.read(symbols, self.decode(array))
        self.scores.append(scores * self.scale)
        output = self.scores[-1].reshape(-1, self.machine.vocab_size).astype("float32")
        return output, [np.broadcast_to(np.array(states, "float32")[:, None], shape)]


def consecutive_for(text):
    """A `data_iter_consecutive` for the notebook to call on this text or a part of it, which works."""

    def data_iter_consecutive(corpus_indices, batch_size, num_steps, ctx=None):
        part = as_indices(corpus_indices, "The text handed to data_iter_consecutive", max(text) + 1, ndim=1)
        sizes = as_count(batch_size, "batch_size"), as_count(num_steps, "num_steps")
        return consecutive_minibatches(part.tolist(), *sizes)

    return callback("data_iter_consecutive", data_iter_consecutive)


def described_params(student, name):
    """Names and shapes of the parameters of one of the notebook's `models`."""
    model = as_dict(student.get("models"), "models", [name])[name]
    params = as_shapes(student.stubs.describe_model(model), f"models[{name!r}]")
    assert params, f"models[{name!r}] should be a Gluon block with parameters."
    return params


def as_shapes(described, what):
    """Names and shapes in what stubs.describe_model says."""
    with decoding(f"The description of {what}"):
        params = [(str(key), tuple(int(n) for n in shape)) for key, shape in described]
    is_sane = all(len(shape) <= 8 and all(0 <= n < 1 << 32 for n in shape) for _, shape in params)
    assert is_sane, f"{what} has parameters of impossible shapes."
    return params
