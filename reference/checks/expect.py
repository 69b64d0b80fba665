"""Turn what came back from the notebook into arrays, numbers and text, or fail with a sentence for its author."""

import inspect
import math
from contextlib import contextmanager

import numpy as np

# Tolerances of all checks. float32 against float64, for weights of a sane size: correct implementations differ by at
# most 2e-6 in outputs and in gradients relative to the largest one, and by less than 1e-5 after the few updates that
# the checks make. Mistakes differ by far more.
FORWARD = {"rtol": 1e-4, "atol": 1e-5}
GRADIENT = {"rtol": 1e-3, "atol": 1e-5}
TRAINED = {"rtol": 2e-4, "atol": 4e-5}  # parameters after training; a weight decay of 1e-4 shows
PERPLEXITY = {"rtol": 2e-4, "atol": 0}
CLIPPED = {"rtol": 2e-5, "atol": 1e-7}  # `clip_global_norm` adds 1e-8 to the norm
# A GPU adds up in another order, from call to call even, and may multiply with 10 bits of mantissa (TF32: 2^-11).
LOOSER = {"cpu": 1, "gpu": 20}
_slack = LOOSER["cpu"]


def use_device(device):
    """From now on, compare with the tolerances of "cpu" or "gpu"."""
    global _slack
    _slack = LOOSER[device]


MOST_SYMBOLS = 200_000  # that a check takes at once: it works on them itself, outside every limit of the sandbox


class Mistake(AssertionError):
    """A mistake that was recognised: assignment.yaml has, under this name, the sentence that its student reads."""

    def __init__(self, mistake, observed=""):
        super().__init__(observed)
        self.mistake = mistake


def kind(value):
    """What to call a value in a sentence."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a {getattr(value, 'type_name', type(value).__name__)}"


def wrong_kind(value, what, expected):
    """The mistake of a value that is something else."""
    mistake = "returns_none" if value is None else "wrong_type"
    return Mistake(mistake, f"{what} should be {expected}, but is {kind(value)}.")


def as_array(value, what, shape=None):
    """A float64 array; of this shape, if one is given."""
    try:
        array = np.array(value, dtype=float)
    except (TypeError, ValueError, OverflowError):
        array = None
    if array is None:
        raise wrong_kind(value, what, "an array")
    if shape is not None and array.shape != tuple(shape):
        raise Mistake("wrong_shape", f"{what} should have shape {list(shape)}, but has {list(array.shape)}.")
    if np.isnan(array).any():
        raise Mistake("not_finite", f"{what} contains nan.")
    return array


def as_arrays(value, what, count, shape=None):
    """`count` arrays from a list or tuple (or from one array, along its first axis)."""
    is_sequence = isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)
    if not is_sequence:
        raise wrong_kind(value, what, f"a list of {count} arrays")
    if len(value) != count:
        raise Mistake("wrong_count", f"{what} should hold {count} arrays, but holds {len(value)}.")
    return [as_array(item, f"{what}[{i}]", shape) for i, item in enumerate(value)]


def as_state(value, what, shape):
    """The one array of an RNN's state: a tuple or list with one array of this shape."""
    if not isinstance(value, (list, tuple)):
        raise wrong_kind(value, what, "a tuple with one array")
    return as_arrays(value, what, 1, shape)[0]


def as_pair(value, what, names):
    """The two parts of a tuple or list."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise wrong_kind(value, f"What {what} returns", names)
    return value


def as_number(value, what):
    """A float, also from an array with one entry."""
    if isinstance(value, (np.ndarray, np.generic)) and value.size == 1:
        value = value.item()
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number:
        raise wrong_kind(value, what, "a number")
    assert isinstance(value, float) or abs(value) < 1 << 62, f"{what} is out of range."
    if math.isnan(value):
        raise Mistake("not_finite", f"{what} is nan.")
    return float(value)


def as_count(value, what):
    """A positive int of a sane size."""
    number = as_number(value, what)
    is_count = 0 < number < 1 << 40 and number == int(number)
    assert is_count, f"{what} should be a positive integer, but is {number:.6g}."
    return int(number)


def as_indices(value, what, below, ndim=2):
    """An int array of symbols 0 to below - 1, with so many axes."""
    size = value.size if isinstance(value, np.ndarray) else 0
    assert size <= MOST_SYMBOLS, f"{what} holds {size} symbols, more than anybody asked for."
    array = as_array(value, what)
    if array.ndim != ndim:
        raise Mistake("wrong_shape", f"{what} should have {ndim} axes, but has shape {list(array.shape)}.")
    assert array.size, f"{what} is empty."
    whole = (array == np.round(array)) & (array >= 0) & (array < below)
    assert whole.all(), f"{what} should hold indices from 0 to {below - 1}."
    return array.astype(int)


def as_numbers(value, what, count):
    """A list of floats."""
    is_sequence = isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)
    if not is_sequence:
        raise wrong_kind(value, what, f"a list of {count} numbers")
    if len(value) != count:
        raise Mistake("wrong_count", f"{what} should hold {count} numbers, but holds {len(value)}.")
    return [as_number(item, f"{what}[{i}]") for i, item in enumerate(value)]


def as_text(value, what):
    """A str."""
    if not isinstance(value, str):
        raise wrong_kind(value, what, "a str")
    return value


def as_dict(value, what, keys):
    """A dict with at least these keys."""
    if not isinstance(value, dict):
        raise wrong_kind(value, what, "a dict")
    missing = [key for key in keys if key not in value]
    assert not missing, f"{what} has no entry {missing[0]!r}."
    return value


def is_close(actual, expected, rtol, atol):
    """Whether all entries agree."""
    return bool(np.allclose(actual, expected, rtol=rtol * _slack, atol=atol * _slack))


def assert_close(actual, expected, what, tolerance, why=""):
    """Arrays agree within a tolerance; the message shows where they differ most. Shapes agree already."""
    actual, expected = np.asarray(actual, float), np.asarray(expected, float)
    if is_close(actual, expected, **tolerance):
        return
    worst = np.unravel_index(np.argmax(np.abs(actual - expected)), actual.shape)
    place = f" at {[int(i) for i in worst]}" if worst else ""
    raise AssertionError(
        f"{what} is {actual[worst]:.6g}{place}, expected {expected[worst]:.6g}." + (f" {why}" if why else "")
    )


@contextmanager
def decoding(what):
    """Whatever goes wrong inside is the fault of what came back, not of the check."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise AssertionError(f"{what} came back in a form that cannot be read ({error}).") from error


def as_params(pairs, shapes):
    """The values in [name, value] pairs, which should be of these shapes."""
    with decoding("The list of parameters"):
        values = [value for _, value in pairs]
    found = as_arrays(values, "The list of parameters", len(shapes))
    return [as_array(value, "A parameter", shape) for value, shape in zip(found, shapes, strict=True)]


def callback(name, function):
    """A function for the notebook to call, which asserts that it is called with the arguments it has."""
    signature = inspect.signature(function)

    def answer(*args, **kwargs):
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            raise AssertionError(f"{name} should be called as {name}{signature}.") from None
        return function(*bound.args, **bound.kwargs)

    return answer


def onehot_for(vocab_size):
    """A `to_onehot(X, size)` for the notebook to call, which works."""

    def to_onehot(X, size):
        assert size == vocab_size, f"to_onehot should be called with size {vocab_size}, but got {size!r}."
        symbols = as_indices(X, "X, as handed to to_onehot,", vocab_size)
        return list(np.eye(vocab_size, dtype="float32")[symbols.T])

    return callback("to_onehot", to_onehot)


def zeros_for(batch_size, num_hiddens):
    """An `init_rnn_state(batch_size, num_hiddens, ctx)` for the notebook to call, which works; its state is a list."""
    sizes = (batch_size, num_hiddens)

    def init_rnn_state(batch_size, num_hiddens, ctx):
        got = (batch_size, num_hiddens)
        assert got == sizes, f"init_rnn_state should be called with {sizes}, but got {got!r}."
        return [np.zeros(sizes, "float32")]  # of which a loop may also replace the entries

    return callback("init_rnn_state", init_rnn_state)


def first_zeros(batch_size):
    """The first state of a fake model, one array [1, B, 2]."""
    assert isinstance(batch_size, int), "begin_state should be called with a batch_size."
    assert 0 < batch_size < 1000, f"begin_state should not be called with batch_size {batch_size}."
    return [np.zeros((1, batch_size, 2), "float32")]
