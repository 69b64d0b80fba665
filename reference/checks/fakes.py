"""Fakes on the grader's side: a table-driven language model in the forms that predict and evaluate functions take."""

import itertools

import numpy as np
from expect import (
    MOST_SYMBOLS,
    Mistake,
    as_array,
    as_arrays,
    as_count,
    as_indices,
    as_state,
    as_text,
    callback,
    first_zeros,
    kind,
)
from oracle import TableMachine, bigram_probabilities, consecutive_minibatches

LETTERS = "abcdefghijklmnopqrstuvwxyz"  # no capitals: a notebook may normalise its prefix
BASE = 3  # of the digits in which a model's state number is kept, one in each of two arrays


def alphabet(student, rng, vocab_size):
    """idx_to_char, of the type that the notebook uses, and char_to_idx, in a random order."""
    chars = [LETTERS[i] for i in rng.permutation(len(LETTERS))[:vocab_size]]
    own = student.get("idx_to_char") if student.has("idx_to_char") else None
    index = {char: i for i, char in enumerate(chars)}
    return (dict(enumerate(chars)) if isinstance(own, dict) else chars), index


def put_space(letters, index, symbol, prefix):
    """Rename a symbol to the space, unless two would stand together in the prefix: a notebook may make them one."""
    if (symbol, symbol) not in itertools.pairwise(prefix):
        del index[letters[symbol]]
        letters[symbol], index[" "] = " ", symbol


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
        self._count = 0  # of symbols

    def read(self, symbols, states):
        """Symbols [T, B] and the state numbers [B] -> (scores [T, B, V], state numbers)."""
        self.went_on.append(self._last is not None and list(states) == self._last)
        self.fed.append(symbols)
        self._count += symbols.size
        assert self._count <= MOST_SYMBOLS, "The model is asked without end."
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

    def telling_prefix(self, rng, length, num_chars):
        """Symbols to begin with that tell mistakes in reading them apart; the text then ends with another symbol."""
        for _ in range(200):
            prefix = [int(i) for i in rng.integers(0, self.machine.vocab_size, length)]
            parts = (prefix[:1], prefix[:-1], prefix[-1:]) if length > 1 else ()
            wrong = {self.machine.greedy(part, 1)[-1] for part in parts}
            written = self.machine.greedy(prefix, max(num_chars, 1))[length:]
            is_telling = written[0] not in wrong and prefix[-1] not in {0, *prefix[:-1][:1], written[0], *wrong}
            if is_telling and (num_chars == 0 or written[-1] not in prefix):
                break
        return prefix

    def assert_text(self, text, name, letters, prefix, num_chars):
        """The text is the greedy continuation of the prefix; otherwise say what went wrong on the way."""
        expected = "".join(letters[i] for i in self.machine.greedy(prefix, num_chars))
        text, words = as_text(text, f"What {name} returns"), expected[: len(prefix)]
        if text == expected:
            return
        fed = [int(i) for array in self.fed for i in array[:, 0]]
        seen = "".join(letters[i] for i in fed)
        observed = f"{name}({words!r}, {num_chars}, ...) fed {seen!r} and gave {text!r}, expected {expected!r}."
        index = {letters[i]: i for i in range(self.machine.vocab_size)}
        if num_chars and not fed:
            raise Mistake("never_asked", observed)
        if not set(text) <= set(index) or (
            len(text) == len(expected) and is_renamed(text, expected, seen, len(prefix))
        ):
            raise Mistake("own_alphabet", observed)
        if text == expected[len(prefix) :] or (len(text) == len(expected) and not text.startswith(words)):
            raise Mistake("prefix_missing", observed)
        if len(text) != len(expected):
            raise Mistake("wrong_length", observed)
        chosen = [index[char] for char in text[len(prefix) :]]
        mistake = self._mistake_of_feeding(fed, prefix, chosen) or self._mistake_of_choosing(fed, prefix, chosen)
        raise Mistake(mistake, observed)

    def _mistake_of_feeding(self, fed, prefix, chosen):
        """What is wrong with what was fed, in which order and beside which state; empty if nothing is."""
        warm_up, after = fed[: len(prefix)], fed[len(prefix) :]
        if warm_up != prefix:
            is_cut = len(prefix) > 1 and warm_up[:-1] == prefix[:-1]
            return "last_skipped" if is_cut else "no_warm_up"
        if not all(self.went_on[1:]):
            return "state_lost"
        if after[: len(chosen) - 1] == chosen[:-1]:
            return ""
        is_again = after[:1] == prefix[-1:] and after[1 : len(chosen)] == chosen[:-1]
        return "fed_twice" if is_again or after[: len(prefix)] == prefix else "not_fed_back"

    def _mistake_of_choosing(self, fed, prefix, chosen):
        """What is wrong with the choices, where all that was fed is right."""
        state, scores = 0, []
        for symbol in fed:
            score, state = self.machine.advance(state, symbol)
            scores.append(score)
        if chosen == [int(np.argmin(score)) for score in scores[len(prefix) - 1 :][: len(chosen)]]:
            return "least_likely"
        if not any(chosen):
            return "always_first"
        is_at_once = len(self.fed[0]) > 1
        return "first_output" if is_at_once and chosen[0] == int(np.argmax(scores[0])) else "not_likeliest"


def is_renamed(text, expected, seen, start):
    """Whether a text is the expected one but for other characters in place of the symbols that were written.

    What was read, `seen`, was right then, to the character before the last. A few symbols are no proof.
    """
    pairs = set(zip(text[start:], expected[start:], strict=True))
    is_one_to_one = len(pairs) == len({new for new, _ in pairs}) == len({old for _, old in pairs}) > 2
    return is_one_to_one and expected.startswith(seen) and len(seen) >= len(expected) - 1


class TableRnn(Reader):
    """In the form of `to_onehot`, `init_rnn_state` and `rnn`, which say when they are called in a wrong way."""

    def __init__(self, rng, vocab_size, num_hiddens):
        super().__init__(rng, vocab_size)
        self.num_hiddens = num_hiddens
        shapes = ((vocab_size, num_hiddens), (num_hiddens, num_hiddens), (num_hiddens,))
        shapes += ((num_hiddens, vocab_size), (vocab_size,))
        self.params = [rng.normal(0, 0.5, shape).astype("float32") for shape in shapes]
        self.to_onehot = callback("to_onehot", self._to_onehot)
        self.init_rnn_state = callback("init_rnn_state", self._init_rnn_state)
        self.rnn = callback("rnn", self._rnn)

    def _to_onehot(self, X, size):
        """X [1, T], or one text [T], as the lecture has it -> T one-hot arrays [1, V]."""
        V = self.machine.vocab_size
        if size != V:
            raise Mistake("wrong_sizes", f"to_onehot should be called with size {V}, but got {size!r}.")
        what = "X, as handed to to_onehot,"
        symbols = np.atleast_2d(as_array(X, what))
        if (symbols >= V).any():
            raise Mistake("own_alphabet", f"{what} holds indices that char_to_idx does not.")
        return list(np.eye(V, dtype="float32")[as_indices(symbols, what, V).T])

    def _init_rnn_state(self, batch_size, num_hiddens, ctx):
        """The state 0, in the form of zeros."""
        sizes = (1, self.num_hiddens)
        if (batch_size, num_hiddens) != sizes:
            raise Mistake("wrong_sizes", f"init_rnn_state got {(batch_size, num_hiddens)!r}, expected {sizes}.")
        return (np.zeros(sizes, "float32"),)

    def _rnn(self, inputs, state, params):
        """T one-hot arrays [1, V] and a state -> (T outputs, the new state)."""
        count = len(inputs) if hasattr(inputs, "__len__") else 0
        assert count, f"The inputs handed to rnn should be a list of arrays, but are {kind(inputs)}."
        what = "the list of inputs handed to rnn"
        inputs = np.stack(as_arrays(inputs, what, count, (1, self.machine.vocab_size)))
        is_onehot = (inputs.sum(axis=-1) == 1).all() and (inputs.max(axis=-1) == 1).all()
        assert is_onehot, "The inputs handed to rnn should be one-hot."
        given = as_arrays(params, "the params handed to rnn", len(self.params))
        if not all(np.array_equal(value, own) for value, own in zip(given, self.params, strict=True)):
            raise Mistake("own_params", "rnn got other parameters than predict_rnn.")
        array = as_state(state, "the state handed to rnn", (1, self.num_hiddens))
        scores, states = self.read(inputs.argmax(axis=-1), self.decode(array))
        return list(scores.astype("float32")), (np.full((1, self.num_hiddens), states[0], "float32"),)


class TableModel(Reader):
    """In the form of a Gluon model, as the two callbacks of `stubs.PlainModel` and `stubs.CallbackModel`."""

    def __init__(self, rng, vocab_size, scale=1.0):
        super().__init__(rng, vocab_size)
        self.scale = scale
        self.begin, self.step = callback("begin_state", self._begin), callback("model", self._step)

    def _begin(self, batch_size):
        """Two arrays, as an LSTM has: a state number is the first and BASE times the second."""
        return first_zeros(batch_size) * 2

    def _step(self, inputs, state, is_recording, is_training):
        """Inputs [B, T] and a state -> (scores [T·B, V], the new state)."""
        symbols = as_indices(inputs, "The input handed to the model, [B, T],", self.machine.vocab_size).T
        self.flags.append((is_recording, is_training))
        shape = (1, symbols.shape[1], 2)
        arrays = as_arrays(state, "the state handed to the model", 2, shape)
        low, high = (self.decode(array) for array in arrays)
        states = [int(first + BASE * second) for first, second in zip(low, high, strict=True)]
        assert max(states) < self.machine.num_states, "The two arrays of the state do not belong together."
        scores, states = self.read(symbols, states)
        self.scores.append(scores * self.scale)
        output = self.scores[-1].reshape(-1, self.machine.vocab_size).astype("float32")
        digits = np.array([[state % BASE for state in states], [state // BASE for state in states]], "float32")
        return output, [np.broadcast_to(digit[:, None], shape) for digit in digits]


class BigramModel(TableModel):
    """Finds likely what came after a symbol in a text, each pair counted once more than it stands there."""

    def __init__(self, rng, vocab_size, text):
        super().__init__(rng, vocab_size)
        self.machine.scores[:] = np.log(bigram_probabilities(text, vocab_size))


def consecutive_for(text, given):
    """A `data_iter_consecutive` for the notebook to call on this text or a part; `given` collects what it gives."""

    def data_iter_consecutive(corpus_indices, batch_size, num_steps, ctx=None):
        part = as_array(corpus_indices, "The text handed to data_iter_consecutive")
        starts = range(len(text) - part.size + 1) if part.ndim == 1 and part.size else []
        if not any(np.array_equal(part, text[i : i + part.size]) for i in starts):
            raise Mistake("other_text", "data_iter_consecutive is handed another text than evaluate_perplexity.")
        sizes = as_count(batch_size, "batch_size"), as_count(num_steps, "num_steps")
        minibatches = consecutive_minibatches(part.astype(int).tolist(), *sizes)
        given.extend(minibatches)
        return minibatches

    return callback("data_iter_consecutive", data_iter_consecutive)
