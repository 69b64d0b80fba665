"""Turn what came back from the notebook into arrays, numbers and text, or fail with a sentence for its author."""

import math

import numpy as np

# float32 against float64, for weights of a sane size: correct implementations differ by at most 2e-6 in outputs
# and in gradients relative to the largest one, and by less than 1e-5 after the few updates that the checks make.
# Mistakes differ by far more.
FORWARD = {"rtol": 1e-4, "atol": 1e-5}
GRADIENT = {"rtol": 1e-3, "atol": 1e-5}
TRAINED = {"rtol": 1e-3, "atol": 2e-4}  # parameters after training
PERPLEXITY = {"rtol": 1e-3, "atol": 0}
CLIPPED = {"rtol": 2e-5, "atol": 1e-7}  # `clip_global_norm` adds 1e-8 to the norm


def kind(value):
    """What to call a value in a sentence."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a {getattr(value, 'type_name', type(value).__name__)}"


def as_array(value, what, shape=None):
    """A float64 array; of this shape, if one is given."""
    try:
        array = np.array(value, dtype=float)
    except (TypeError, ValueError):
        array = None
    assert array is not None, f"{what} should be an array, but is {kind(value)}."
    if shape is not None:
        assert array.shape == tuple(shape), f"{what} should have shape {list(shape)}, but has {list(array.shape)}."
    assert not np.isnan(array).any(), f"{what} contains nan."
    return array


def as_arrays(value, what, count, shape=None):
    """`count` arrays from a list or tuple (or from one array, along its first axis)."""
    is_sequence = isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)
    assert is_sequence, f"{what} should be a list of {count} arrays, but is {kind(value)}."
    assert len(value) == count, f"{what} should hold {count} arrays, but holds {len(value)}."
    return [as_array(item, f"{what}[{i}]", shape) for i, item in enumerate(value)]


def as_state(value, what, shape):
    """The one array of an RNN's state: a tuple or list with one array of this shape."""
    is_sequence = isinstance(value, (list, tuple))
    assert is_sequence, f"{what} should be a tuple with one array, but is {kind(value)}."
    return as_arrays(value, what, 1, shape)[0]


def as_pair(value, what, names):
    """The two parts of a tuple or list."""
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2
    assert is_pair, f"{what} should return {names}, but returned {kind(value)}."
    return value


def as_number(value, what):
    """A float, also from an array with one entry."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    assert is_number, f"{what} should be a number, but is {kind(value)}."
    assert not math.isnan(value), f"{what} is nan."
    return float(value)


def as_numbers(value, what, count):
    """A list of floats."""
    is_sequence = isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)
    assert is_sequence, f"{what} should be a list of {count} numbers, but is {kind(value)}."
    assert len(value) == count, f"{what} should hold {count} numbers, but holds {len(value)}."
    return [as_number(item, f"{what}[{i}]") for i, item in enumerate(value)]


def as_text(value, what):
    """A str."""
    assert isinstance(value, str), f"{what} should be a str, but is {kind(value)}."
    return value


def as_dict(value, what, keys):
    """A dict with at least these keys."""
    assert isinstance(value, dict), f"{what} should be a dict, but is {kind(value)}."
    missing = [key for key in keys if key not in value]
    assert not missing, f"{what} has no entry {missing[0]!r}."
    return value


def is_close(actual, expected, rtol, atol):
    """Whether all entries agree."""
    return bool(np.allclose(actual, expected, rtol=rtol, atol=atol))


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
