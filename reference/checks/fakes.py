"""Fakes on the grader's side: a table-driven language model in the forms that predict and evaluate functions take."""

import numpy as np
from expect import as_array, as_arrays, as_state, as_text, kind
from oracle import TableMachine

LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ"


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
        self.fed = []  # arrays [T, B]
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
        known = np.isin(numbers, np.arange(self.machine.num_states)).all()
        assert known and (array == numbers[:, None]).all(), (
            "The model was handed a state that neither begins a text nor was returned by the model."
        )
        return [int(number) for number in numbers]

    def symbols(self, array, what):
        """Integer symbols in range."""
        inside = (array == np.round(array)).all() and array.min() >= 0 and array.max() < self.machine.vocab_size
        assert inside, f"{what} should hold indices below {self.machine.vocab_size}."
        return array.astype(int)

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

    def init_rnn_state(self, batch_size, num_hiddens, ctx=None):
        """Zeros."""
        return (np.zeros((batch_size, num_hiddens), "float32"),)

    def rnn(self, inputs, state, params):
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

    def __init__(self, rng, vocab_size, num_hiddens=2, scale=1.0):
        super().__init__(rng, vocab_size)
        self.num_hiddens, self.scale = num_hiddens, scale
        self.scores = []  # [T, B, V] of each call

    def begin(self, batch_size):
        """The first state."""
        return [np.zeros((1, batch_size, self.num_hiddens), "float32")]

    def step(self, inputs, state, is_recording, is_training):
        """Inputs [B, T] and a state -> (scores [T·B, V], the new state)."""
        inputs = as_array(inputs, "the input handed to the model")
        assert inputs.ndim == 2, f"The model should be handed inputs [B, T], but got shape {list(inputs.shape)}."
        self.flags.append((is_recording, is_training))
        shape = (1, len(inputs), self.num_hiddens)
        array = as_state(state, "the state handed to the model", shape)
        symbols = self.symbols(inputs.T, "the input handed to the model")
        scores, states = self.read(symbols, self.decode(array))
        self.scores.append(scores * self.scale)
        output = self.scores[-1].reshape(-1, self.machine.vocab_size).astype("float32")
        return output, [np.broadcast_to(np.array(states, "float32")[:, None], shape)]
