"""The two data iterators, judged by the laws that they keep."""

import itertools

import numpy as np
import pytest
from expect import FORWARD, Mistake, as_array, assert_close, decoding

STUB_LIMIT = 500  # stubs.BATCH_LIMIT


def batches_of(student, name, corpus, batch_size, num_steps):
    """The minibatches of one epoch as pairs (X, Y) of arrays [B, T]; their form is checked."""
    found = student.stubs.collect_batches(student.ref(name), corpus, batch_size, num_steps, student.ctx)
    call = f"{name}(text, {batch_size}, {num_steps}, ctx)"
    with decoding(f"What {call} yields"):
        found = [(X, Y, {str(kind_x), str(kind_y)}) for X, Y, kind_x, kind_y in found]
    if len(found) >= STUB_LIMIT:
        raise Mistake("endless", f"{call} does not end.")
    batches, shape = [], (batch_size, num_steps)
    for X, Y, kinds in found:
        if kinds != {"NDArray"}:
            raise Mistake("wrong_type", f"{call} should yield NDArrays, but yields {sorted(kinds)[0]}.")
        if batches and np.ndim(X) == 2 and np.size(X) < batch_size * num_steps:
            raise Mistake("leftover", f"{call} yields {list(np.shape(X))} after minibatches {list(shape)}.")
        batches.append((as_array(X, f"X of {call}", shape), as_array(Y, f"Y of {call}", shape)))
    return batches


@pytest.mark.check("data_iter_random.example")
def test_random_example(student):
    """A text of 0 to 29 makes windows of 6 consecutive numbers; Y is one ahead."""
    batches = batches_of(student, "data_iter_random", list(range(30)), 2, 6)
    assert batches, "data_iter_random(list(range(30)), 2, 6, ctx) yields nothing."
    for X, Y in batches:
        assert_close(X - X[:, :1], [list(range(6))] * 2, "X, less its first column,", FORWARD)
        assert_close(Y, X + 1, "Y", FORWARD, "In this text each number is followed by the next.")


@pytest.mark.check("data_iter_consecutive.example")
def test_consecutive_example(student):
    """In a text of 0 to 39, each row of the second minibatch begins where the same row of the first ended."""
    batches = batches_of(student, "data_iter_consecutive", list(range(40)), 2, 6)
    assert len(batches) > 1, f"There should be 3 minibatches, not {len(batches)}."
    (X, Y), (next_X, _) = batches[:2]
    assert_close(X - X[:, :1], [list(range(6))] * 2, "X, less its first column,", FORWARD)
    assert_close(Y, X + 1, "Y", FORWARD, "In this text each number is followed by the next.")
    assert_close(next_X[:, 0], X[:, -1] + 1, "The first column of the second X", FORWARD)
