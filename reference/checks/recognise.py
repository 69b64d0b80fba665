"""Recognising known mistakes by what they make of the inputs. Staff only."""

import contextlib

import numpy as np
from expect import FORWARD, Mistake, is_close


def arrays_in(value):
    """The arrays in a list, tuple or array, however many there are and of whatever shapes; none if it holds others."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        return [np.array(item, float) for item in value]
    return []


def agree(some, others, tolerance=FORWARD):
    """Whether two sequences of arrays are the same, shapes included."""
    has_same_shapes = [np.shape(a) for a in some] == [np.shape(b) for b in others]
    return has_same_shapes and all(is_close(a, b, **tolerance) for a, b in zip(some, others, strict=True))


def name_mistake(found, right, known, tolerance=FORWARD):
    """Raise the first known mistake (its name, what it makes of the inputs) that explains what was found."""
    if agree(found, right, tolerance):
        return
    for mistake, wrong in known:
        if agree(found, wrong, tolerance) and not agree(right, wrong, tolerance):
            raise Mistake(mistake)


@contextlib.contextmanager
def named(mistake):
    """A failed assertion without a name gets this one."""
    try:
        yield
    except Mistake:
        raise
    except AssertionError as error:
        raise Mistake(mistake, str(error)) from error


def assert_unchanged(after, before, what):
    """The arrays are still those that were handed over."""
    after = arrays_in(after)
    if len(after) != len(before) or not all(np.array_equal(a, b) for a, b in zip(after, before, strict=True)):
        raise Mistake("input_changed", f"{what} is not what it was.")
